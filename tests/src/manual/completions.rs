//! Completions for bash, zsh and fish.

use std::fmt::Write;

use super::help::{Help, Item};

const MADE: &str = "# Made by `cargo model manual` from `strait --help`.\n";

/// What lists the names of the host's devices, and those of the PCI bus only.
const DEVICES: &str = "strait device list 2>/dev/null | awk 'NR > 1 { print $1 }'";
const PCI_DEVICES: &str = "strait device list 2>/dev/null | awk '$2 == \"pci\" { print $1 }'";

/// What a value is.
enum Kind<'a> {
    Choices(Vec<&'a str>),
    Device,
    PciDevice,
    File,
    Other,
}

impl<'a> Kind<'a> {
    fn of(item: &'a Item) -> Option<Self> {
        let value = item.value()?;
        let choices = item.choices();
        Some(match value {
            _ if !choices.is_empty() => Self::Choices(choices),
            _ if value.starts_with("BDF") => Self::PciDevice,
            _ if value.starts_with("NAME") => Self::Device,
            _ if value.starts_with("FILE") || value.starts_with("PATH") => Self::File,
            _ => Self::Other,
        })
    }
}

/// The names of what a help text explains that are no options.
fn words(help: &Help) -> Vec<&str> {
    let words = help.items().filter(|item| item.indent == 2 && item.option().is_none());
    words.map(|item| item.term.as_str()).collect()
}

/// For bash, `strait.bash`.
pub(super) fn bash(main: &Help, commands: &[(&str, Help)]) -> String {
    let mut text = format!("{MADE}_strait() {{\n");
    text.push_str("    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n");
    text.push_str("    COMPREPLY=()\n    case $before in\n");
    let mut seen = Vec::new();
    for item in commands.iter().flat_map(|(_, help)| help.options()) {
        let Some((option, kind)) = item.option().zip(Kind::of(item)) else { continue };
        if seen.contains(&option) {
            continue;
        }
        seen.push(option);
        let reply = match kind {
            Kind::Choices(choices) => format!("-W '{}'", choices.join(" ")),
            Kind::Device => format!("-W \"$({DEVICES})\""),
            Kind::PciDevice => format!("-W \"$({PCI_DEVICES})\""),
            Kind::File => "-f".to_owned(),
            Kind::Other => {
                let _ = writeln!(text, "    {option}) return ;;");
                continue;
            }
        };
        let _ =
            writeln!(text, "    {option}) COMPREPLY=($(compgen {reply} -- \"$word\")); return ;;");
    }
    text.push_str("    esac\n    case ${COMP_WORDS[1]} in\n");
    for (name, help) in commands {
        let all: Vec<&str> =
            words(help).into_iter().chain(help.options().filter_map(Item::option)).collect();
        let _ = writeln!(
            text,
            "    {name}) COMPREPLY=($(compgen -W '{}' -- \"$word\")) ;;",
            all.join(" ")
        );
    }
    let first: Vec<&str> =
        words(main).into_iter().chain(main.options().filter_map(Item::option)).collect();
    let _ =
        writeln!(text, "    *) COMPREPLY=($(compgen -W '{}' -- \"$word\")) ;;", first.join(" "));
    text.push_str("    esac\n}\ncomplete -o filenames -F _strait strait\n");
    text
}

/// For zsh, `_strait`.
pub(super) fn zsh(main: &Help, commands: &[(&str, Help)]) -> String {
    let mut text = format!("#compdef strait\n{MADE}\n_strait() {{\n    local -a commands\n");
    text.push_str("    commands=(\n");
    for item in main.items().filter(|item| item.option().is_none()) {
        let _ = writeln!(text, "        '{}:{}'", item.term, quoted(item.sentence()));
    }
    text.push_str("    )\n    if (( CURRENT == 2 )); then\n");
    text.push_str("        _describe command commands\n        return\n    fi\n");
    text.push_str("    case ${words[2]} in\n");
    for (name, help) in commands {
        let _ = writeln!(text, "    {name})\n        _arguments \\");
        for item in help.options() {
            let Some(option) = item.option() else { continue };
            let action = match Kind::of(item) {
                None => String::new(),
                // A colon would begin the next part.
                Some(Kind::Choices(choices)) => {
                    format!(":value:({})", choices.join(" ").replace(':', "\\:"))
                }
                Some(Kind::Device) => format!(":device:($({}))", DEVICES.replace('\'', "'\\''")),
                Some(Kind::PciDevice) => {
                    format!(":device:($({}))", PCI_DEVICES.replace('\'', "'\\''"))
                }
                Some(Kind::File) => ":file:_files".to_owned(),
                Some(Kind::Other) => ":value:".to_owned(),
            };
            let _ =
                writeln!(text, "            '*{option}[{}]{action}' \\", quoted(item.sentence()));
        }
        let _ = writeln!(text, "            '*:word:({})'\n        ;;", words(help).join(" "));
    }
    text.push_str("    esac\n}\n\n_strait \"$@\"\n");
    text
}

/// For fish, `strait.fish`.
pub(super) fn fish(main: &Help, commands: &[(&str, Help)]) -> String {
    let mut text = format!("{MADE}complete -c strait -f\n");
    for item in main.items() {
        let _ = match item.option() {
            Some(option) => writeln!(
                text,
                "complete -c strait -n __fish_use_subcommand -l {} -d '{}'",
                option.trim_start_matches('-'),
                quoted(item.sentence())
            ),
            None => writeln!(
                text,
                "complete -c strait -n __fish_use_subcommand -a {} -d '{}'",
                item.term,
                quoted(item.sentence())
            ),
        };
    }
    for (name, help) in commands {
        let condition = format!("-n '__fish_seen_subcommand_from {name}'");
        for word in words(help) {
            let _ = writeln!(text, "complete -c strait {condition} -a {word}");
        }
        for item in help.options() {
            let Some(option) = item.option() else { continue };
            let value = match Kind::of(item) {
                None => String::new(),
                Some(Kind::Choices(choices)) => format!(" -x -a '{}'", choices.join(" ")),
                Some(Kind::Device) => format!(" -x -a \"({})\"", DEVICES.replace('$', "\\$")),
                Some(Kind::PciDevice) => {
                    format!(" -x -a \"({})\"", PCI_DEVICES.replace('$', "\\$").replace('"', "\\\""))
                }
                Some(Kind::File) => " -r -F".to_owned(),
                Some(Kind::Other) => " -x".to_owned(),
            };
            let _ = writeln!(
                text,
                "complete -c strait {condition} -l {}{value} -d '{}'",
                option.trim_start_matches('-'),
                quoted(item.sentence())
            );
        }
    }
    text
}

/// Text as it stands between single quotes, brackets and colons of the shells.
fn quoted(text: &str) -> String {
    text.replace(['\'', '`'], "").replace(['[', ']', ':'], " ")
}
