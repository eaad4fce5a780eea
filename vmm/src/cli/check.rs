//! `strait check`.

use std::str::FromStr;

use lexopt::{Arg, Parser};

use super::values::GivenOnce;
use super::{Command, MemoryOptions, usage_error};
use crate::error::Error;

pub(super) const HELP: &str = include_str!("help/check.txt");

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckOptions {
    /// The RAM of the guest that is meant to run.
    pub memory: MemoryOptions,
    /// Report as JSON.
    pub json: bool,
}

/// Parses what follows `check`.
#[cold]
pub(super) fn parse(parser: &mut Parser) -> Result<Command, Error> {
    let mut options = CheckOptions { memory: MemoryOptions::new(256 << 20), json: false };
    let help = options.take_all(parser).map_err(|e| usage_error(&e, "check"))?;
    Ok(if help { Command::Print(HELP.into()) } else { Command::Check(options) })
}

impl CheckOptions {
    /// Takes all options; whether help was asked for.
    fn take_all(&mut self, parser: &mut Parser) -> Result<bool, lexopt::Error> {
        let mut once = GivenOnce::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("memory") => {
                    self.memory = once.parsed("--memory", parser, MemoryOptions::from_str)?;
                }
                Arg::Long("json") => self.json = true,
                Arg::Long("help") | Arg::Short('h') => return Ok(true),
                other => return Err(other.unexpected()),
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str]) -> Result<CheckOptions, Error> {
        let words = ["strait", "check"].iter().chain(words);
        match super::super::parse(Parser::from_iter(words))? {
            Command::Check(options) => Ok(options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn memory_and_form_can_be_chosen() {
        let default = CheckOptions { memory: MemoryOptions::new(256 << 20), json: false };
        assert_eq!(check(&[]).unwrap(), default);
        let chosen = CheckOptions { memory: MemoryOptions::new(4 << 30), json: true };
        assert_eq!(check(&["--memory", "4G", "--json"]).unwrap(), chosen);
        for words in [
            &["--memory", "much"] as &[&str],
            &["now"],
            &["--memory"],
            &["--memory", "1G", "--memory", "1G"],
        ] {
            assert_eq!(check(words).unwrap_err().exit_status(), 2, "{words:?}");
        }
    }
}
