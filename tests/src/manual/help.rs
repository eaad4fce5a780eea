//! A help text, taken apart.

/// A help text: what a command is for, how it is typed, its options, and what else there is to say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Help {
    /// The first line.
    pub(super) summary: String,
    /// How it is typed, a line each.
    pub(super) usage: Vec<String>,
    /// The rest, in order.
    pub(super) blocks: Vec<Block>,
}

/// A part of a help text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Lines of text.
    Paragraph(String),
    /// A line that is shown as it stands.
    Literal(String),
    /// A heading, which ends in a colon.
    Heading(String),
    /// Something that is explained: an option, a command, an option's option.
    Item(Item),
}

/// Something that is explained.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// How far it is indented: 2 for options, 4 for options of options.
    pub(super) indent: usize,
    /// What is typed: `--memory SIZE`, `--help, -h`, `addr=A`, `list`.
    pub(super) term: String,
    /// What it means.
    pub(super) text: String,
}

impl Item {
    /// The long option that it is, such as `--memory`.
    pub(super) fn option(&self) -> Option<&str> {
        let option = self.term.split([' ', ',']).next()?;
        option.starts_with("--").then_some(option)
    }

    /// What stands for its value, such as `SIZE`; options without a value have none.
    pub(super) fn value(&self) -> Option<&str> {
        let value = self.term.strip_prefix(self.option()?)?.strip_prefix(' ')?;
        (!value.starts_with('-')).then_some(value)
    }

    /// The values that it can have, where they are or begin with words: `auto|2|3`, `off|unix:PATH`.
    pub(super) fn choices(&self) -> Vec<&str> {
        let value = self.value().unwrap_or_default();
        let value = value.split('[').next().unwrap_or_default();
        // Of `unix:PATH`, `unix:` is the word.
        let is_word = |word: &&str| {
            let word = word.strip_suffix(':').unwrap_or(word);
            word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        let words: Vec<&str> =
            value.split('|').filter_map(|choice| choice.split_inclusive(':').next()).collect();
        if words.len() > 1 && words.iter().all(is_word) { words } else { Vec::new() }
    }

    /// The first sentence of what it means.
    pub(super) fn sentence(&self) -> &str {
        let text = self.text.split(" [").next().unwrap_or(&self.text);
        let end = text.find(". ").or(text.find(": ")).unwrap_or(text.len());
        text.get(..end).unwrap_or(text).trim_end_matches(['.', ':'])
    }
}

impl Help {
    /// Takes a help text apart.
    pub(super) fn parse(text: &str) -> Self {
        let mut help = Self::default();
        let mut paragraph = Vec::new();
        let mut in_usage = false;
        for line in text.lines() {
            let indent = line.len() - line.trim_start().len();
            let words = line.trim();
            if words.is_empty() {
                in_usage = false;
                help.end_paragraph(&mut paragraph);
            } else if help.summary.is_empty() {
                words.clone_into(&mut help.summary);
            } else if let Some(usage) = line.strip_prefix("Usage: ") {
                in_usage = true;
                help.usage.push(usage.to_owned());
            } else if in_usage {
                help.usage.push(words.to_owned());
            } else if indent == 0 && words.ends_with(':') && paragraph.is_empty() {
                help.blocks.push(Block::Heading(words.trim_end_matches(':').to_owned()));
            } else if let (2 | 4, Some(item)) = (indent, item(indent, words)) {
                help.end_paragraph(&mut paragraph);
                help.blocks.push(Block::Item(item));
            } else if let (5.., Some(Block::Item(item))) = (indent, help.blocks.last_mut()) {
                if !item.text.is_empty() {
                    item.text.push(' ');
                }
                item.text.push_str(words);
            } else if indent > 4 {
                help.blocks.push(Block::Literal(words.to_owned()));
            } else {
                paragraph.push(words.to_owned());
            }
        }
        help.end_paragraph(&mut paragraph);
        help
    }

    /// Everything that is explained.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Item(item) => Some(item),
            _ => None,
        })
    }

    /// Its options.
    pub(super) fn options(&self) -> impl Iterator<Item = &Item> {
        self.items().filter(|item| item.option().is_some())
    }

    fn end_paragraph(&mut self, lines: &mut Vec<String>) {
        if !lines.is_empty() {
            self.blocks.push(Block::Paragraph(std::mem::take(lines).join(" ")));
        }
    }
}

/// A line that begins to explain something: a term, then two spaces or the end of the line.
fn item(indent: usize, words: &str) -> Option<Item> {
    let (term, text) = words.split_once("  ").unwrap_or((words, ""));
    let is_option = term.starts_with("--") || (indent == 4 && term.contains('='));
    let is_command = !text.is_empty() && !term.contains(' ');
    let (term, text) = (term.to_owned(), text.trim_start().to_owned());
    (is_option || is_command).then_some(Item { indent, term, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Do it.

Usage: it [OPTIONS]
       it --now

       it check    what is there

  list    What there is, and
          more of it
  show    One

What it takes:
  --memory SIZE      How much [256M]
  --iommu auto|iommufd|container
                     The way. As ever [auto]
    addr=A           Where
  --help, -h         Print this

Exit status: 0 done,
1 not.
";

    #[test]
    fn a_help_text_is_parsed() {
        let help = Help::parse(TEXT);
        assert_eq!(help.summary, "Do it.");
        assert_eq!(help.usage, ["it [OPTIONS]", "it --now"]);
        let terms: Vec<_> = help.items().map(|item| item.term.as_str()).collect();
        let options = ["--memory SIZE", "--iommu auto|iommufd|container"];
        assert_eq!(terms, ["list", "show", options[0], options[1], "addr=A", "--help, -h"]);
        let texts: Vec<_> = help.items().map(|item| item.text.as_str()).collect();
        assert_eq!(texts[0], "What there is, and more of it");
        assert_eq!(texts[3], "The way. As ever [auto]");
        assert!(help.blocks.contains(&Block::Heading("What it takes".to_owned())));
        assert_eq!(help.blocks[0], Block::Literal("it check    what is there".to_owned()));
        let last = Block::Paragraph("Exit status: 0 done, 1 not.".to_owned());
        assert_eq!(help.blocks.last(), Some(&last));
    }

    #[test]
    fn options_have_their_values() {
        let help = Help::parse(TEXT);
        let options: Vec<_> = help.options().map(|i| (i.option().unwrap(), i.value())).collect();
        let choices = "auto|iommufd|container";
        let expected = [("--memory", Some("SIZE")), ("--iommu", Some(choices)), ("--help", None)];
        assert_eq!(options, expected);
        let iommu = help.options().nth(1).unwrap();
        assert_eq!(iommu.choices(), ["auto", "iommufd", "container"]);
        assert_eq!(
            (iommu.sentence(), help.options().next().unwrap().sentence()),
            ("The way", "How much")
        );
    }
}
