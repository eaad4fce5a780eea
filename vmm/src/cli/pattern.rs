//! `--until` and `--fail-on`: what is looked for in the guest's console.

use std::fmt::{self, Display, Formatter};

use regex_lite::Regex;

/// A text or a regular expression.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// A part of a line.
    Text(String),
    /// What a line, or a part of it, matches.
    Regex(Regex),
}

impl Pattern {
    /// Whether a line has it.
    pub fn is_in(&self, line: &str) -> bool {
        match self {
            Self::Text(text) => line.contains(text),
            Self::Regex(regex) => regex.is_match(line),
        }
    }
}

/// As it is given.
impl Display for Pattern {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

/// Reads the option's value.
pub(super) fn pattern(text: &str) -> Result<Pattern, String> {
    let between = text.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
    match between.filter(|regex| !regex.is_empty()) {
        Some(regex) => Regex::new(regex)
            .map(Pattern::Regex)
            .map_err(|e| format!("what is between the slashes is no regular expression: {e}")),
        None if text.is_empty() => {
            Err("a text is needed, or a regular expression as /REGEX/".into())
        }
        None if text.contains('\n') => Err("it is looked for in each line, and has several".into()),
        None => Ok(Pattern::Text(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_make_a_regular_expression() {
        for (given, line, is_in) in [
            ("login:", "debian login: ", true),
            ("login:", "Login:", false),
            ("/^(?i)debian .*login: $/", "Debian 13 login: ", true),
            ("/^login/", "debian login:", false),
            ("/dev/vda", "mounted /dev/vda", true),
            ("a.c", "abc", false),
            ("//", "http://", true),
            ("/", "a/b", true),
        ] {
            let pattern = pattern(given).unwrap();
            assert_eq!(pattern.is_in(line), is_in, "{given} in {line}");
            assert_eq!(pattern.to_string(), given);
        }
        for given in ["", "/(/", "/[a-/", "one\ntwo"] {
            assert!(pattern(given).is_err(), "{given}");
        }
    }
}
