//! `--config FILE`: options of `strait run` in a TOML file, under the names that they have on the command
//! line; and `--print-config`, which writes such a file.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use boot::order;
use lexopt::{Arg, Parser};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::usage_error;
use super::super::values::GivenOnce;
use super::{HELP, RunOptions};
use crate::error::Error;
use crate::toml_file;

/// Options that are for the command line alone.
const NOT_IN_FILES: [&str; 3] = ["config", "print-config", "help"];

/// An option that is given: its name without dashes, and its value if it takes one.
type Given = (String, Option<String>);

/// A value of an option that takes one, and where it is in the file.
type Located = (Option<String>, Range<usize>);

/// Whether the option of this name takes a value, by its line in the help; `None` if there is no such option.
fn takes_value(name: &str) -> Option<bool> {
    let mut behind = HELP.lines().filter_map(|line| line.strip_prefix("  --")?.strip_prefix(name));
    behind.find_map(|rest| match rest.as_bytes() {
        [] | [b' ', b' ', ..] | [b',', ..] => Some(false),
        [b' ', ..] => Some(true),
        _ => None,
    })
}

/// An option of a file: its name, its value, and where it is.
struct Entry {
    given: Given,
    line: usize,
}

/// A file of options.
pub(super) struct ConfigFile {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl ConfigFile {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// It can't be read, is no TOML, or has no value for an option: told with its line.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let text = read(path)?;
        let line = |span: Range<usize>| line_of(&text, span.start);
        let table = DeTable::parse(&text)
            .map_err(|e| wrong(path, e.span().map_or(1, line), e.message()))?;
        // As they come in the file: devices are numbered in their order.
        let mut keys: Vec<_> = table.get_ref().iter().collect();
        order::sort_by_key(&mut keys, |(key, _)| key.span().start);
        let mut entries = Vec::new();
        for (key, value) in keys {
            let name = key.get_ref();
            let all = values(name, value, &text);
            for (value, span) in all.map_err(|why| wrong(path, line(key.span()), &why))? {
                entries.push(Entry { given: (name.to_string(), value), line: line(span) });
            }
        }
        Ok(Self { path: path.to_owned(), entries })
    }

    /// Takes its options into `options`.
    ///
    /// # Errors
    ///
    /// One is none, or its value makes no sense: told with its line.
    pub(super) fn take(&self, options: &mut RunOptions, once: &mut GivenOnce) -> Result<(), Error> {
        self.entries.iter().try_for_each(|Entry { given, line }| {
            take(given, options, once).map_err(|e| {
                let help = usage_error(&e, "run").take_help();
                wrong(&self.path, *line, &e.to_string()).maybe_help(help)
            })
        })
    }

    /// The same error, of wrong use, with where in this file those options are that it names.
    #[cold]
    pub(super) fn note(&self, error: Error) -> Error {
        let is_word = |c: char| c == '-' || c.is_ascii_alphanumeric();
        let mut noted: Vec<&str> = Vec::new();
        let mut places = String::new();
        for Entry { given: (name, _), line } in &self.entries {
            let option = format!("--{name}");
            let is_named = error.message().split(|c| !is_word(c)).any(|word| word == option);
            if is_named && !noted.contains(&name.as_str()) {
                noted.push(name);
                let _ = write!(places, "\n{option} is line {line} of {}", self.path.display());
            }
        }
        let message = error.message().to_owned();
        let help = error.take_help().unwrap_or_default() + &places;
        Error::usage(message)
            .maybe_help(Some(help.trim_start().to_owned()).filter(|help| !help.is_empty()))
    }
}

fn wrong(path: &Path, line: usize, why: &str) -> Error {
    Error::usage(format!("--config {}:{line}: {why}", path.display()))
}

/// Takes one option.
fn take(
    (name, value): &Given,
    options: &mut RunOptions,
    once: &mut GivenOnce,
) -> Result<(), lexopt::Error> {
    let word = match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    };
    let mut parser = Parser::from_args([word]);
    options.take(&mut parser, once)?;
    // What is left is a value of an option that takes none.
    parser.next().map(|_| ())
}

fn read(path: &Path) -> Result<String, Error> {
    toml_file::read(path).map_err(|why| {
        Error::new(format!("--config {}: {why}", path.display()))
            .help("strait run --kernel Image --print-config writes such a file")
    })
}

/// The line of a place in a text, from 1.
fn line_of(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    before.bytes().filter(|byte| *byte == b'\n').count().saturating_add(1)
}

/// How often an option is given by its value in the file, and with which values.
fn values(name: &str, value: &Spanned<DeValue<'_>>, text: &str) -> Result<Vec<Located>, String> {
    if NOT_IN_FILES.contains(&name) {
        return Err(format!("`{name}` is for the command line alone"));
    }
    if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-') {
        return Err(format!("`{name}` is no option"));
    }
    // A name that isn't known is told as on the command line, by whoever takes it.
    let takes_value = takes_value(name);
    match (value.get_ref(), takes_value) {
        (DeValue::Boolean(true), Some(false) | None) => Ok(vec![(None, value.span())]),
        (DeValue::Boolean(false), Some(false)) => Ok(Vec::new()),
        (_, Some(false)) => Err(format!("`{name}` is true or false")),
        (DeValue::Array(array), _) => {
            array.iter().map(|one| Ok((Some(scalar(name, one, text)?), one.span()))).collect()
        }
        _ => Ok(vec![(Some(scalar(name, value, text)?), value.span())]),
    }
}

/// A value as it is typed.
fn scalar(name: &str, value: &Spanned<DeValue<'_>>, text: &str) -> Result<String, String> {
    match value.get_ref() {
        DeValue::String(string) => Ok(string.to_string()),
        // As written: an address is hexadecimal.
        DeValue::Integer(_) | DeValue::Float(_) => {
            Ok(text.get(value.span()).unwrap_or_default().replace('_', ""))
        }
        _ => Err(format!("`{name}` is a string, a number, or a list of them")),
    }
}

/// The options behind `run`, of which the file's come first; what the command line has once takes the place of
/// the file's, and if it `only_plans` binds nothing.
///
/// # Errors
///
/// A value isn't UTF-8.
pub(super) fn print(
    parser: Parser,
    file: Option<ConfigFile>,
    only_plans: bool,
) -> Result<String, Error> {
    let entries = file.into_iter().flat_map(|file| file.entries);
    let mut given: Vec<Given> = entries.map(|entry| entry.given).collect();
    if only_plans {
        given.retain(|(name, _)| name != "bind" && name != "force");
    }
    for (name, value) in typed(parser)? {
        if !is_repeated(&name) {
            given.retain(|(other, _)| *other != name);
        }
        given.push((name, value));
    }
    Ok(text(&given))
}

/// The options that are typed.
fn typed(mut parser: Parser) -> Result<Vec<Given>, Error> {
    let wrong = |e: lexopt::Error| usage_error(&e, "run");
    let mut given = Vec::new();
    while let Some(Arg::Long(name)) = parser.next().map_err(wrong)? {
        let name = name.to_owned();
        let value = match takes_value(&name) {
            Some(true) => Some(parser.value().map_err(wrong)?),
            _ => None,
        };
        if NOT_IN_FILES.contains(&name.as_str()) {
            continue;
        }
        let not_utf8 = |value: OsString| {
            Error::usage(format!("--print-config: --{name} {} is no UTF-8 text", value.display()))
        };
        let value = value.map(OsString::into_string).transpose().map_err(not_utf8)?;
        given.push((name, value));
    }
    Ok(given)
}

/// Whether an option may be repeated, by its help.
fn is_repeated(name: &str) -> bool {
    let start = format!("  --{name} ");
    let of_option = HELP.lines().skip_while(|line| !line.starts_with(&start));
    let rest = of_option.skip(1).take_while(|line| line.starts_with("   "));
    let words: Vec<_> = rest.flat_map(str::split_whitespace).collect();
    words.join(" ").to_ascii_lowercase().contains("be repeated")
}

/// These options as a file.
fn text(given: &[Given]) -> String {
    let mut text = String::new();
    let mut done: Vec<&str> = Vec::new();
    for (name, value) in given {
        if done.contains(&name.as_str()) {
            continue;
        }
        done.push(name);
        let all = given.iter().filter(|(other, _)| other == name);
        let values: Vec<_> = all.filter_map(|(_, value)| value.as_deref().map(quoted)).collect();
        let value = match (value, values.as_slice()) {
            (None, _) => "true".to_owned(),
            (Some(_), [one]) if !is_repeated(name) => one.clone(),
            (Some(_), several) => format!("[{}]", several.join(", ")),
        };
        let _ = writeln!(text, "{name} = {value}");
    }
    text
}

/// A basic string (TOML 1.0, "String").
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04X}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::super::super::{Command, parse};
    use super::*;

    /// Parses a command line whose `--config` is a file with this text.
    fn with_file(text: &str, more: &[&str]) -> Result<Command, Error> {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("strait-config-{}-{number}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let words = ["run", "--config", path.to_str().unwrap()];
        let result = parse(Parser::from_args(words.iter().chain(more)));
        std::fs::remove_file(&path).unwrap();
        result
    }

    fn options(text: &str, more: &[&str]) -> RunOptions {
        match with_file(text, more) {
            Ok(Command::Run(options)) => *options,
            other => panic!("{other:?}"),
        }
    }

    fn printed(text: &str, more: &[&str]) -> String {
        match with_file(text, &[more, &["--print-config"]].concat()) {
            Ok(Command::Print(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    const FILE: &str = "# A guest.\nkernel = 'Image'\ncpus = 4\nmemory = \"1G,base=0x8000_0000\"\n\
                        vfio-platform = [\"a,compatible=arm,pl330\", \"b\"]\nbind = true\nforce = false\n\
                        timeout = 1.5\nblock = \"disk,ro\"\n";

    #[test]
    fn a_file_has_the_options_of_the_command_line() {
        let file = options(&FILE.replace("8000_0000", "80000000"), &[]);
        let words = "run --kernel Image --cpus 4 --memory 1G,base=0x80000000 --vfio-platform \
                     a,compatible=arm,pl330 --vfio-platform b --bind --timeout 1.5 --block disk,ro";
        let Ok(Command::Run(typed)) = parse(Parser::from_args(words.split(' '))) else { panic!() };
        assert_eq!(format!("{file:?}"), format!("{typed:?}"));
    }

    #[test]
    fn the_command_line_counts_more_and_adds() {
        let file = "kernel = 'a'\ncpus = 2\nblock = ['x']\n";
        let options = options(file, &["--kernel", "b", "--block", "y"]);
        assert_eq!((options.kernel.path.to_str(), options.cpus), (Some("b"), 2));
        assert_eq!(options.block.len(), 2);
    }

    #[test]
    fn a_dry_run_of_a_file_binds_nothing() {
        let file = "kernel = 'a'\nbind = true\nforce = true\nvfio-platform = 'x'\n";
        let plan = options(file, &["--dry-run", "--json"]);
        assert!(plan.dry_run && !plan.bind && !plan.force);
        let text = printed(file, &["--dry-run"]);
        assert!(text.contains("dry-run = true") && !text.contains("bind"), "{text}");
        assert_eq!(printed(&text, &[]), text);
        for more in [&["--dry-run", "--bind"][..], &["--dry-run", "--force"]] {
            with_file("kernel = 'a'\nbind = true\n", more).unwrap_err();
        }
    }

    #[test]
    fn options_of_a_file_that_do_not_go_with_others_are_told_with_their_line() {
        for (file, more, lines) in [
            ("kernel = 'a'\nbind = true\n", &["--dry-run", "--force"][..], "--bind is line 2 of "),
            ("kernel = 'a'\n", &["--firmware", "b"], "--kernel is line 1 of "),
            ("initrd = 'a'\n\nfirmware = 'b'\n", &[], "--initrd is line 1 of "),
            ("kernel = 'a'\nuntil = ['x', 'y']\n", &["--console", "off"], "--until is line 2 of "),
        ] {
            let report = with_file(file, more).unwrap_err().report();
            assert!(report.contains(lines), "{file}: {report}");
        }
        // None of these are the file's.
        let report = with_file("kernel = 'a'\n", &["--dry-run", "--bind"]).unwrap_err().report();
        assert!(!report.contains("line"), "{report}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (file, why) in [
            ("kernel = 'a'\ncpus = 0\n", ":2: --cpus 0: a whole number"),
            ("kernel = 'a'\n\ncpu = 2\n", ":3: invalid option '--cpu'"),
            ("kernel = \n", ":1: "),
            ("kernel = 'a'\nbind = 1\n", ":2: `bind` is true or false"),
            ("kernel = true\n", ":1: `kernel` is a string"),
            ("kernel = ['a', 'b']\n", ":1: --kernel is given twice, as `a` and as `b`"),
            ("[kernel]\nfile = 'a'\n", ":1: `kernel` is a string"),
            ("config = 'a'\n", ":1: `config` is for the command line alone"),
            ("kernel = 'a'\nblock = [1979-05-27]\n", ":2: `block` is a string"),
            ("kernel = 'a'\nkernel = 'b'\n", ":2: "),
            ("\"kernel=x --cpus\" = '3'\n", ":1: `kernel=x --cpus` is no option"),
        ] {
            let report = with_file(file, &[]).unwrap_err().report();
            assert!(report.contains(why), "{file}: {report}");
        }
        let path = "/no/such";
        let report = parse(Parser::from_args(["run", "--config", path])).unwrap_err().report();
        assert!(report.contains("--config /no/such: it can't be read: No such file"), "{report}");
        let endless = parse(Parser::from_args(["run", "--config", "/dev/zero"])).unwrap_err();
        assert!(endless.report().contains("larger than 1024 KiB"));
    }

    #[test]
    fn what_is_printed_is_read_as_the_same() {
        let more =
            ["--cmdline", "quiet \"a\\b\"\u{7f}\té", "--cpus=3", "--block", "y", "--until=/x$/"];
        let first = printed(FILE.replace("8000_0000", "80000000").as_str(), &more);
        let expected = "kernel = \"Image\"\nmemory = \"1G,base=0x80000000\"\n\
                        vfio-platform = [\"a,compatible=arm,pl330\", \"b\"]\nbind = true\n\
                        timeout = \"1.5\"\nblock = [\"disk,ro\", \"y\"]\n\
                        cmdline = \"quiet \\\"a\\\\b\\\"\\u007F\\té\"\ncpus = \"3\"\nuntil = [\"/x$/\"]\n";
        assert_eq!(first, expected);
        assert_eq!(printed(&first, &[]), first);
    }

    #[test]
    fn the_help_tells_which_options_take_values() {
        for (name, takes) in [
            ("bind", false),
            ("help", false),
            ("kernel", true),
            ("dtb-overlay", true),
            ("log", true),
        ] {
            assert_eq!(takes_value(name), Some(takes), "{name}");
        }
        assert_eq!(takes_value("bin"), None);
        assert!(is_repeated("vfio-platform") && is_repeated("until") && is_repeated("dtb-overlay"));
        assert!(!is_repeated("kernel") && !is_repeated("cpus") && !is_repeated("timeout"));
    }
}
