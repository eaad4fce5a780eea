//! The man page, in the macros of man(7).

use std::fmt::Write;

use super::help::{Block, Help};

/// The page `strait(1)`.
pub(super) fn page(main: &Help, commands: &[(&str, Help)]) -> String {
    let mut page = String::from(".\\\" Made by `cargo model manual` from `strait --help`.\n");
    page.push_str(".TH STRAIT 1 \"\" \"strait\" \"User Commands\"\n.SH NAME\n");
    let summary = main.summary.strip_prefix("strait ").unwrap_or(&main.summary);
    line(&mut page, &format!("strait \\- {}", escaped(summary.trim_end_matches('.'))));
    page.push_str(".SH SYNOPSIS\n");
    for (_, help) in commands {
        for usage in &help.usage {
            page.push_str(".br\n");
            line(&mut page, &escaped(usage));
        }
    }
    page.push_str(".SH DESCRIPTION\n");
    blocks(&mut page, main);
    for (name, help) in commands {
        let _ = writeln!(page, ".SH STRAIT {}", name.to_uppercase());
        line(&mut page, &escaped(&help.summary));
        blocks(&mut page, help);
    }
    page
}

/// What follows the usage of a help text.
fn blocks(page: &mut String, help: &Help) {
    for block in &help.blocks {
        match block {
            Block::Heading(heading) => {
                page.push_str(".SS ");
                line(page, &escaped(heading));
            }
            Block::Paragraph(text) => {
                page.push_str(".PP\n");
                line(page, &escaped(text));
            }
            Block::Literal(text) => {
                page.push_str(".EX\n");
                line(page, &escaped(text));
                page.push_str(".EE\n");
            }
            Block::Item(item) => {
                let nested = item.indent > 2;
                if nested {
                    page.push_str(".RS\n");
                }
                page.push_str(".TP\n.B ");
                line(page, &escaped(&item.term));
                line(page, &escaped(&item.text));
                if nested {
                    page.push_str(".RE\n");
                }
            }
        }
    }
}

/// Adds a line of text; one that begins with a dot or an apostrophe would be a request.
fn line(page: &mut String, text: &str) {
    if text.starts_with(['.', '\'']) {
        page.push_str("\\&");
    }
    page.push_str(text);
    page.push('\n');
}

/// Text with what has a meaning of its own escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...").replace('\'', "\\(aq")
}
