//! The little of JSON (RFC 8259) that version data needs: a number or `true` by the names that lead
//! to it.
//!
//! A general reader would be larger than all the rest of the protocol.

/// How deep objects and arrays may be nested.
const DEEPEST: u32 = 16;

/// The whole number that these names lead to, each within the object of the one before; the last of
/// a name counts. `Err` if the text isn't JSON, `Ok(None)` if there is no such number.
pub(super) fn number(text: &[u8], path: &[&str]) -> Result<Option<u64>, ()> {
    let word = word(text, path)?.and_then(|word| std::str::from_utf8(word).ok());
    Ok(word.and_then(|word| word.parse().ok()))
}

/// Whether these names lead to `true`, as for [`number`].
pub(super) fn is_true(text: &[u8], path: &[&str]) -> Result<bool, ()> {
    Ok(word(text, path)? == Some(b"true"))
}

/// The number, `true`, `false` or `null` that these names lead to.
fn word<'a>(text: &'a [u8], path: &[&str]) -> Result<Option<&'a [u8]>, ()> {
    let mut reader = Reader { rest: text, found: None };
    reader.value(Some(path), DEEPEST).ok_or(())?;
    reader.skip_blanks();
    if reader.rest.is_empty() { Ok(reader.found) } else { Err(()) }
}

struct Reader<'a> {
    rest: &'a [u8],
    found: Option<&'a [u8]>,
}

impl<'a> Reader<'a> {
    /// Reads a value; `path` leads on from it, where it is on the way.
    fn value(&mut self, path: Option<&[&str]>, deepest: u32) -> Option<()> {
        let deepest = deepest.checked_sub(1)?;
        self.skip_blanks();
        match self.rest.first()? {
            b'{' => self.items(b'}', |reader| {
                let name = reader.string()?;
                reader.skip_blanks();
                reader.expect(b':')?;
                let next = path.and_then(|path| path.split_first());
                let next = next.filter(|(first, _)| first.as_bytes() == name);
                reader.value(next.map(|(_, rest)| rest), deepest)
            }),
            b'[' => self.items(b']', |reader| reader.value(None, deepest)),
            b'"' => self.string().map(drop),
            _ => {
                let word = self.word()?;
                if path.is_some_and(<[&str]>::is_empty) {
                    self.found = Some(word);
                }
                Some(())
            }
        }
    }

    /// Reads what is between two brackets, separated by commas.
    fn items(&mut self, end: u8, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.rest = self.rest.get(1..)?;
        self.skip_blanks();
        if self.expect(end).is_some() {
            return Some(());
        }
        loop {
            self.skip_blanks();
            item(self)?;
            self.skip_blanks();
            if self.expect(end).is_some() {
                return Some(());
            }
            self.expect(b',')?;
        }
    }

    /// Reads a string; names with escapes are none that matter, so these are left as they are.
    fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b'"')?;
        let start = self.rest;
        let mut length = 0usize;
        loop {
            match start.get(length)? {
                b'"' => break,
                b'\\' => length = length.checked_add(2)?,
                0..0x20 => return None,
                _ => length = length.checked_add(1)?,
            }
        }
        self.rest = start.get(length.checked_add(1)?..)?;
        start.get(..length)
    }

    /// Reads a number, `true`, `false` or `null`.
    fn word(&mut self) -> Option<&'a [u8]> {
        let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        let length = self.rest.iter().position(|byte| !part(byte)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        let known = matches!(word, b"true" | b"false" | b"null");
        (known || word.first().is_some_and(|first| *first == b'-' || first.is_ascii_digit()))
            .then_some(word)
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.rest.split_first()?;
        (*first == byte).then(|| self.rest = rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: [&str; 2] = ["capabilities", "max_msg_fds"];

    #[test]
    fn numbers_are_found_by_their_names() {
        let cases = [
            (r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}"#, Some(8)),
            (
                r#" { "capabilities" : { "a" : [1,{"max_msg_fds":2}], "max_msg_fds" : 16 } } "#,
                Some(16),
            ),
            (r#"{"max_msg_fds":8,"capabilities":{"x":{"max_msg_fds":9}}}"#, None),
            (r#"{"capabilities":{"max_msg_fds":"8"}}"#, None),
            (r#"{"capabilities":{"max_msg_fds":-8}}"#, None),
            (r#"{"capabilities":{"max_msg_fds":1.5}}"#, None),
            (r#"{"capabilities":[]}"#, None),
            (r#"{"a\"b":true,"capabilities":{"max_msg_fds":3}}"#, Some(3)),
            ("{}", None),
            ("7", None),
        ];
        for (text, expected) in cases {
            assert_eq!(number(text.as_bytes(), &PATH), Ok(expected), "{text}");
        }
    }

    #[test]
    fn only_true_is_true() {
        for (value, expected) in
            [("true", true), ("false", false), ("1", false), ("\"true\"", false), ("null", false)]
        {
            let text = format!(r#"{{"a":{{"b":{{"c":{value},"d":true}}}}}}"#);
            assert_eq!(is_true(text.as_bytes(), &["a", "b", "c"]), Ok(expected), "{value}");
        }
        assert_eq!(is_true(b"{", &["a"]), Err(()));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = "[".repeat(100_000);
        let cases = [
            "",
            "{",
            "}",
            "{]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "[1",
            "\"",
            "\"\\",
            "nul",
            "{} {}",
            "{\"a\":1 \"b\":2}",
            "HTTP/1.1",
            "{\"a\n\":1}",
            &deep,
        ];
        for text in cases {
            assert_eq!(number(text.as_bytes(), &PATH), Err(()), "{text:.20}");
        }
    }
}
