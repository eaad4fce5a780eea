//! Options that are given once: of two values, nobody can tell which one was meant.

use std::ffi::{OsStr, OsString};

use lexopt::{Parser, ValueExt};

/// The options that were given, with their values.
#[derive(Default)]
pub(super) struct Once(Vec<(&'static str, OsString)>);

impl Once {
    /// Notes an option's value.
    ///
    /// # Errors
    ///
    /// It has one already; both are named.
    pub(super) fn note(&mut self, option: &'static str, value: &OsStr) -> Result<(), String> {
        if let Some((_, first)) = self.0.iter().find(|(given, _)| *given == option) {
            let (first, second) = (first.display(), value.display());
            return Err(format!("{option} is given twice, as `{first}` and as `{second}`"));
        }
        self.0.push((option, value.to_owned()));
        Ok(())
    }

    /// The value of the option that was just parsed.
    pub(super) fn value(
        &mut self,
        option: &'static str,
        parser: &mut Parser,
    ) -> Result<OsString, lexopt::Error> {
        let value = parser.value()?;
        self.note(option, &value).map_err(|why| lexopt::Error::Custom(why.into()))?;
        Ok(value)
    }

    /// The same, read by `parse`; a failure names the option and the value.
    pub(super) fn parsed<T>(
        &mut self,
        option: &'static str,
        parser: &mut Parser,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, lexopt::Error> {
        read(option, self.value(option, parser)?, parse)
    }
}

/// Reads an option's value; a failure names the option and the value.
pub(super) fn read<T>(
    option: &str,
    text: OsString,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, lexopt::Error> {
    let text = text.string()?;
    parse(&text).map_err(|why| lexopt::Error::Custom(format!("{option} {text}: {why}").into()))
}
