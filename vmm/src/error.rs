//! The error a person reads: what failed, on what, and what to do.

use std::error::Error as StdError;

use devices::vfio::{error_chain, remedy};

use boot::help::Help;

/// More open files than any guest takes that hasn't hundreds of interrupts.
const ENOUGH_FILES: u64 = 1024;

/// A failure on its way to the person.
#[derive(Debug)]
pub struct Error {
    message: String,
    help: Option<String>,
    exit_status: u8,
}

impl Error {
    /// A failure without a cause below it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None, exit_status: 1 }
    }

    /// Wrong use of the command line, exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_status: 2, ..Self::new(message) }
    }

    /// The text of `error` and of everything that caused it.
    pub fn chain(error: &dyn StdError) -> Self {
        Self::new(error_chain::chain(error))
    }

    /// Adds what to do about it.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds what to do about it, where that is known.
    pub fn maybe_help(self, help: Option<String>) -> Self {
        match help {
            Some(help) => self.help(help),
            None => self,
        }
    }

    /// What failed and why, without the help.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it, where that is known.
    pub fn take_help(self) -> Option<String> {
        self.help
    }

    /// The exit status it ends strait with.
    pub fn exit_status(&self) -> u8 {
        self.exit_status
    }

    /// The lines for standard error, with which strait ends.
    pub fn report(&self) -> String {
        format!("error: {}\n", self.log_text())
    }

    /// The lines for the log, which says by itself how bad it is: what failed and why, and the help.
    pub fn log_text(&self) -> String {
        let mut text = self.message.clone();
        let help = of_exhaustion(&self.message, self.help.is_some()).or_else(|| self.help.clone());
        for (index, line) in help.iter().flat_map(|help| help.lines()).enumerate() {
            let lead = if index == 0 { "  help: " } else { "        " };
            text.push('\n');
            text.push_str(lead);
            text.push_str(line);
        }
        text
    }
}

/// What to do where the host has no more of what every step may need, by the error number in a message
/// (errno(3)): of memory, if nothing is known that helps more.
#[cold]
fn of_exhaustion(message: &str, is_known: bool) -> Option<String> {
    let ends_by = |number: i32| message.contains(&format!("(os error {number})"));
    if ends_by(libc::EMFILE) {
        return Some(remedy::open_files(ENOUGH_FILES));
    }
    if ends_by(libc::EAGAIN) && ["thread", "can't listen"].iter().any(|what| message.contains(what))
    {
        return Some(
            "ulimit -u and pids.max of the control group tell how many threads there may be".into(),
        );
    }
    if ends_by(libc::ENOSPC) && message.contains("epoll") {
        return Some(
            "sysctl fs.epoll.max_user_watches tells how many descriptors the processes of a user may poll"
                .into(),
        );
    }
    let is_full = !is_known && [libc::ENOMEM, libc::ENFILE, libc::ENOBUFS].into_iter().any(ends_by);
    is_full.then(|| {
        "free -m and ulimit -a tell what the host and this process may have; a smaller --memory"
            .to_owned()
    })
}

impl<E: Help + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        let help = error.help();
        Self { help, ..Self::chain(&error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no device")]
    struct NoDevice(#[source] std::io::Error);

    #[test]
    fn the_report_has_the_causes_and_the_help() {
        let error = NoDevice(std::io::ErrorKind::NotFound.into());
        let report = Error::chain(&error).help("look at sysfs\nor elsewhere").report();
        assert_eq!(
            report,
            "error: no device: entity not found\n  help: look at sysfs\n        or elsewhere\n"
        );
        assert_eq!(Error::new("no device").help("run").log_text(), "no device\n  help: run");
    }

    #[test]
    fn whatever_step_had_no_descriptor_is_told_how_to_have_more() {
        for (number, known, expected) in [
            (libc::EMFILE, Some("see dmesg"), "ulimit -n 1024"),
            (libc::ENOMEM, None, "free -m"),
            (libc::ENOBUFS, None, "free -m"),
            (libc::ENOMEM, Some("ulimit -v"), "help: ulimit -v"),
        ] {
            let cause = std::io::Error::from_raw_os_error(number);
            let error =
                Error::new(format!("no socket: {cause}")).maybe_help(known.map(str::to_owned));
            assert!(error.log_text().contains(expected), "{}", error.log_text());
        }
    }

    #[test]
    fn wrong_use_has_its_own_exit_status() {
        assert_eq!(Error::usage("no").exit_status(), 2);
        assert_eq!(Error::new("no").exit_status(), 1);
    }
}
