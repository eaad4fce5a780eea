//! What messages tell a person to type is what the command line takes: every option and command of
//! strait in a string of the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use lexopt::Parser;

use super::{HELP, check, device, run};

/// Options of other programs, in strings of their own: crosvm's.
const OF_OTHERS: [&str; 1] = ["--vfio"];

/// Programs of others in the advice; options behind them are theirs.
const OTHERS: [&str; 10] = [
    "crosvm",
    "docker",
    "dumpimage",
    "fuser",
    "passt",
    "prlimit",
    "udevadm",
    "unpack_bootimg",
    "virtiofsd",
    "xz",
];

/// The texts of `--help`, with the words that come before the options.
const HELPS: [(&[&str], &str); 4] =
    [(&[], HELP), (&["run"], run::HELP), (&["device"], device::HELP), (&["check"], check::HELP)];

/// The words of a text that are options.
fn options(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
    words.filter(|word| {
        word.strip_prefix("--")
            .is_some_and(|name| !name.trim_matches('-').is_empty() && !name.starts_with('-'))
    })
}

/// The strings of a source file but for those of its tests, as they print.
fn strings(source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let (mut strings, mut rest) = (Vec::new(), source);
    while let Some(at) = rest.find(['"', '/', '\'']) {
        let (before, from) = rest.split_at(at);
        let skip = |n| from.get(n..).unwrap_or_default();
        rest = if from.starts_with("//") {
            from.split_once('\n').map_or("", |(_, rest)| rest)
        } else if from.starts_with("'\"'") || from.starts_with("'\\'") {
            skip(3)
        } else if from.starts_with("'\\\"'") {
            skip(4)
        } else if let Some(string) = from.strip_prefix('"') {
            let raw = before.ends_with('r');
            let mut escaped = false;
            let end = string.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped && !raw;
                ends
            });
            let (string, rest) = string.split_at(end.unwrap_or(string.len()));
            let lines = string.split("\\\n").map(str::trim_start).collect::<String>();
            strings.push(lines);
            rest.get(1..).unwrap_or_default()
        } else {
            skip(1)
        };
    }
    strings
}

/// All source files of the crates that make strait, but for tests.
fn sources() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut directories: Vec<PathBuf> =
        ["arch", "boot", "devices", "vmm"].map(|name| root.join(name).join("src")).into();
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !["tests", "testing"].contains(&name) {
                directories.push(path);
            } else if name.ends_with(".rs") && !["tests.rs", "testing.rs"].contains(&name) {
                files.push(path);
            }
        }
    }
    files
}

/// What a message tells to type that strait doesn't take.
fn nonsense(message: &str, known: &BTreeSet<&str>) -> Vec<String> {
    let words: Vec<&str> = message.split_whitespace().collect();
    let mut wrong = Vec::new();
    let mut others = false;
    for (at, word) in words.iter().enumerate() {
        others |= OTHERS.contains(&word.trim_start_matches(['`', '(']));
        let taken = |option: &&str| known.contains(option) || OF_OTHERS.contains(option);
        let unknown = options(word).filter(|option| !others && !taken(option));
        wrong.extend(unknown.map(str::to_owned));
        let next = |n: usize| {
            let word = words.get(at.saturating_add(n)).copied().unwrap_or_default();
            word.trim_matches(['`', ',', ';', '.', ':', ')'])
        };
        if word.trim_start_matches('`') == "strait" && next(1) == "device" {
            let verbs =
                ["list", "show", "bind", "unbind", "test", "export", "kconfig", "--help", "{verb}"];
            if !verbs.contains(&next(2)) {
                wrong.push(format!("strait device {}", next(2)));
            }
        }
    }
    wrong
}

#[test]
fn every_option_of_a_help_is_taken() {
    for (words, help) in HELPS {
        // Elsewhere a text may speak of other commands' options.
        let lines = help.lines().filter_map(|line| line.trim_start().split(' ').next());
        for option in lines.flat_map(options) {
            // The last word is a value, if it takes one.
            let arguments = ["strait"].iter().chain(words).chain([&option, &"1"]);
            if let Err(error) = super::parse(Parser::from_iter(arguments)) {
                let unknown = error.message().contains("invalid option");
                assert!(!unknown, "{words:?} {option}: {}", error.message());
            }
        }
    }
}

#[test]
fn every_message_tells_to_type_what_is_taken() {
    let known: BTreeSet<&str> = HELPS.iter().flat_map(|(_, help)| options(help)).collect();
    assert!(known.contains("--vfio-platform") && known.len() > 20, "{known:?}");
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for path in sources() {
        for string in strings(&fs::read_to_string(&path).unwrap()) {
            seen += options(&string).count();
            let nonsense = nonsense(&string, &known);
            wrong.extend(nonsense.into_iter().map(|word| format!("{}: {word}", path.display())));
        }
    }
    assert!(seen > 100, "only {seen} options were found in the sources' strings");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn strings_are_found_in_sources() {
    let source = "// \"no\"\nlet a = '\"'; let b = \"--one \\\n   two \\\"q\\\"\";\nlet c = r\"\\\"; x \"d\"\n\
                  #[cfg(test)] \"--no\"";
    assert_eq!(strings(source), ["--one two \\\"q\\\"", "\\", "d"]);
    let known = BTreeSet::from(["--json"]);
    assert_eq!(
        nonsense("`strait device eat`, --block=x", &known),
        ["strait device eat", "--block"]
    );
    assert!(nonsense("strait device list --json; xz --check=crc32", &known).is_empty());
}
