//! The kernel command line (`/chosen/bootargs`), put together by linux-loader.

use crate::help::Help;
use linux_loader::cmdline;
use thiserror::Error;

/// Bytes the kernel has for its command line, its NUL included: `COMMAND_LINE_SIZE` of
/// `arch/arm64/include/uapi/asm/setup.h`. What is longer would be cut off silently.
pub const COMMAND_LINE_SIZE: usize = 2048;

/// Why a command line can't be given to the kernel.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum CmdlineError {
    #[error("the kernel command line holds a NUL at byte {at}; it would end there")]
    Nul { at: usize },
    #[error("the kernel command line holds a line break at byte {at}")]
    LineBreak { at: usize },
    #[error("the kernel command line holds {character:?} at byte {at}; it is printable ASCII")]
    NotAscii { at: usize, character: char },
    #[error(
        "the kernel command line has {length} bytes; an arm64 kernel takes {}",
        COMMAND_LINE_SIZE - 1
    )]
    TooLong { length: usize },
}

impl Help for CmdlineError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Nul { .. } => None,
            Self::NotAscii { .. } => Some(
                "leave it out; what a program in the guest is to read can be in the initrd"
                    .to_owned(),
            ),
            Self::LineBreak { .. } => {
                Some("give parameters on one line: --cmdline 'console=ttyS0 quiet'".to_owned())
            }
            Self::TooLong { .. } => Some(
                "shorten --cmdline, or build parameters into the kernel with CONFIG_CMDLINE"
                    .to_owned(),
            ),
        }
    }
}

/// A command line that the kernel takes as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline(String);

impl Cmdline {
    /// The machine's `defaults` (one parameter each, such as `console=ttyS0`) followed by what the
    /// person gave, so that `user` overrides.
    ///
    /// A default is left out where `user` sets that parameter. The kernel tells parameters apart
    /// by their name with `-` and `_` alike (`parameq` of `kernel/params.c`), and leaves what
    /// follows `--` to init.
    ///
    /// # Errors
    ///
    /// A character in the text that isn't printable ASCII, or a text longer than the kernel takes.
    pub fn compose(defaults: &[&str], user: Option<&str>) -> Result<Self, CmdlineError> {
        let user = user.unwrap_or_default().trim_matches([' ', '\t']);
        let given: Vec<String> =
            parameters(user).take_while(|p| *p != "--").map(normal_name).collect();
        let mut line =
            cmdline::Cmdline::new(COMMAND_LINE_SIZE).map_err(|error| refusal(&error, user, 0))?;
        let kept = defaults.iter().copied().filter(|d| !given.contains(&normal_name(d)));
        for part in kept.chain((!user.is_empty()).then_some(user)) {
            if let Err(error) = line.insert_str(part) {
                let before = line.as_cstring().map_or(0, |line| line.count_bytes());
                // A space goes between them.
                let before = if before == 0 { 0 } else { before.saturating_add(1) };
                return Err(refusal(&error, part, before));
            }
        }
        let line = line.as_cstring().map_err(|error| refusal(&error, user, 0))?;
        Ok(Self(line.into_string().unwrap_or_default()))
    }

    /// Whether the kernel is to boot from the initrd as from a disk: `root=/dev/ram0`.
    pub fn has_ram_disk_root(&self) -> bool {
        let mut given = parameters(&self.0).take_while(|p| *p != "--");
        given.any(|p| p.trim_matches('"').strip_prefix("root=").is_some_and(is_ram_disk))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the crate refused a text for, which was to follow `before` bytes, with the place.
fn refusal(error: &cmdline::Error, text: &str, before: usize) -> CmdlineError {
    let wrong = text.char_indices().find(|(_, c)| !matches!(c, ' '..='~'));
    match (error, wrong) {
        (cmdline::Error::TooLarge, _) | (_, None) => {
            CmdlineError::TooLong { length: before.saturating_add(text.len()) }
        }
        (_, Some((at, '\0'))) => CmdlineError::Nul { at },
        (_, Some((at, '\n' | '\r'))) => CmdlineError::LineBreak { at },
        (_, Some((at, character))) => CmdlineError::NotAscii { at, character },
    }
}

/// Whether `root=` names the RAM disk: /dev/ram is an older name of /dev/ram0.
fn is_ram_disk(root: &str) -> bool {
    matches!(root, "/dev/ram" | "/dev/ram0")
}

/// The parameters of a command line: separated by white space, except between double quotes
/// (`next_arg` of `lib/cmdline.c`).
fn parameters(line: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    line.split(move |c: char| {
        quoted ^= c == '"';
        !quoted && c.is_ascii_whitespace()
    })
    .filter(|p| !p.is_empty())
}

/// A parameter's name, before any `=`, as the kernel compares it.
fn normal_name(parameter: &str) -> String {
    let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
    name.trim_start_matches('"').replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: &[&str] = &["console=ttyS0", "reboot=k"];

    #[test]
    fn defaults_come_first_unless_the_person_sets_them() {
        for (user, line) in [
            (None, "console=ttyS0 reboot=k"),
            (Some(""), "console=ttyS0 reboot=k"),
            (Some("  quiet "), "console=ttyS0 reboot=k quiet"),
            (Some("console=hvc0"), "reboot=k console=hvc0"),
            (Some("console=hvc0 reboot=t"), "console=hvc0 reboot=t"),
            (Some("a=\"x console=y\""), "console=ttyS0 reboot=k a=\"x console=y\""),
            (Some("\"console=hvc0\""), "reboot=k \"console=hvc0\""),
            (Some("-- console=x"), "console=ttyS0 reboot=k -- console=x"),
            (Some("xconsole=1 console.x=2"), "console=ttyS0 reboot=k xconsole=1 console.x=2"),
        ] {
            assert_eq!(Cmdline::compose(DEFAULTS, user).unwrap().as_str(), line, "{user:?}");
        }
    }

    #[test]
    fn dashes_and_underscores_name_the_same_parameter() {
        let line = Cmdline::compose(&["log-buf-len=1M"], Some("log_buf_len=4M")).unwrap();
        assert_eq!(line.as_str(), "log_buf_len=4M");
    }

    #[test]
    fn a_ram_disk_as_root_is_seen() {
        for (line, is_root) in [
            ("", false),
            ("quiet root=/dev/ram0 rw", true),
            ("root=/dev/ram", true),
            ("\"root=/dev/ram0\"", true),
            ("root=/dev/vda", false),
            ("broot=/dev/ram0", false),
            ("-- root=/dev/ram0", false),
        ] {
            let cmdline = Cmdline::compose(&[], Some(line)).unwrap();
            assert_eq!(cmdline.has_ram_disk_root(), is_root, "{line}");
        }
    }

    #[test]
    fn what_the_kernel_would_misread_is_refused() {
        let fits = "x".repeat(COMMAND_LINE_SIZE - 1);
        assert_eq!(Cmdline::compose(&[], Some(&fits)).unwrap().as_str(), fits);
        for (text, error) in [
            ("a\0b".to_owned(), CmdlineError::Nul { at: 1 }),
            ("ab\nc".to_owned(), CmdlineError::LineBreak { at: 2 }),
            ("a\rb".to_owned(), CmdlineError::LineBreak { at: 1 }),
            ("a=\u{e9}".to_owned(), CmdlineError::NotAscii { at: 2, character: '\u{e9}' }),
            ("a\tb".to_owned(), CmdlineError::NotAscii { at: 1, character: '\t' }),
            ("x".repeat(COMMAND_LINE_SIZE), CmdlineError::TooLong { length: COMMAND_LINE_SIZE }),
        ] {
            assert_eq!(Cmdline::compose(&[], Some(&text)).unwrap_err(), error);
        }
    }
}
