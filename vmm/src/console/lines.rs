//! A console's output as lines of plain text.

/// The longest line, in bytes; what is longer counts as several.
const MAX_LINE: usize = 4096;

/// Cuts output into lines, without control characters and the escape sequences of terminals (ECMA-48).
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    escape: Escape,
}

/// How far into an escape sequence the output is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    /// Behind ESC.
    Begun,
    /// In a control sequence: ESC [ up to a byte of 0x40 to 0x7e (ECMA-48, 5.4).
    Control,
    /// In a control string: ESC ], P, X, ^ or _ up to BEL, or ESC and a backslash (ECMA-48, 5.6).
    String,
}

impl Lines {
    /// Takes output; calls `each` with every line that ends in it. Stops where `each` answers true.
    pub fn take(&mut self, bytes: &[u8], each: &mut dyn FnMut(&str) -> bool) -> bool {
        for byte in bytes {
            let ends = match self.plain(*byte) {
                Some(b'\n') => true,
                Some(byte) => {
                    self.line.push(byte);
                    self.line.len() >= MAX_LINE
                }
                None => false,
            };
            if ends {
                let line = std::mem::take(&mut self.line);
                if each(&text(&line)) {
                    return true;
                }
            }
        }
        false
    }

    /// The line that hasn't ended yet.
    pub fn unfinished(&self) -> Option<String> {
        (!self.line.is_empty()).then(|| text(&self.line))
    }

    /// A byte that belongs to the text.
    fn plain(&mut self, byte: u8) -> Option<u8> {
        let (next, plain) = match (self.escape, byte) {
            (_, 0x1b) => (Escape::Begun, None),
            (Escape::None, b'\n' | b'\t' | b' '..=0x7e | 0x80..) => (Escape::None, Some(byte)),
            (Escape::None, _) => (Escape::None, None),
            (Escape::Begun, b'[') => (Escape::Control, None),
            (Escape::Begun, b']' | b'P' | b'X' | b'^' | b'_') => (Escape::String, None),
            // Intermediate bytes, as of "ESC ( B", come before the last (ECMA-35, 13.2.1).
            (Escape::Begun, b' '..=b'/') => (Escape::Begun, None),
            (Escape::Begun, b'\n') | (Escape::Control | Escape::String, b'\n') => {
                (Escape::None, Some(byte))
            }
            (Escape::Begun, _) => (Escape::None, None),
            (Escape::Control, 0x40..=0x7e) => (Escape::None, None),
            (Escape::Control, _) => (Escape::Control, None),
            (Escape::String, 0x07) => (Escape::None, None),
            (Escape::String, _) => (Escape::String, None),
        };
        self.escape = next;
        plain
    }
}

/// The text of a line, without the control characters that have two bytes (U+0080 to U+009F): terminals take them
/// for such as begin sequences (ECMA-48, 5.3).
fn text(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let is_plain = |c: &char| *c == '\t' || !c.is_control();
    if text.chars().all(|c| is_plain(&c)) {
        return text.into_owned();
    }
    text.chars().filter(is_plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(parts: &[&[u8]]) -> (Vec<String>, Option<String>) {
        let (mut lines, mut all) = (Lines::default(), Vec::new());
        for part in parts {
            lines.take(part, &mut |line| {
                all.push(line.to_owned());
                false
            });
        }
        (all, lines.unfinished())
    }

    #[test]
    fn colours_and_carriage_returns_are_no_text() {
        let (all, rest) = lines(&[
            b"[\x1b[0;32m  OK  \x1b[0m] Star",
            b"ted\r\n\x1b]0;title\x07\x1b(Bplain\x1b]8;;x\x1b\\ text\ttab\x00\n\nlogin: ",
        ]);
        assert_eq!(all, ["[  OK  ] Started", "plain text\ttab", ""]);
        assert_eq!(rest.as_deref(), Some("login: "));
    }

    #[test]
    fn control_characters_of_two_bytes_are_no_text() {
        let (all, rest) = lines(&["a\u{9b}31mpanic\u{85}\n\tb\u{9d}0;é".as_bytes()]);
        assert_eq!(all, ["a31mpanic"]);
        assert_eq!(rest.as_deref(), Some("\tb0;é"));
    }

    #[test]
    fn sequences_that_never_end_end_with_their_line() {
        let (all, rest) = lines(&[b"a\x1b[31", b"\x01\nb\x1b]x\nc\x1b\nd\xff"]);
        assert_eq!(all, ["a", "b", "c"]);
        assert_eq!(rest.as_deref(), Some("d\u{fffd}"));
    }

    #[test]
    fn lines_are_bounded() {
        let long = vec![b'x'; 2 * MAX_LINE + 1];
        let (all, rest) = lines(&[&long]);
        assert_eq!(all.iter().map(String::len).collect::<Vec<_>>(), [MAX_LINE, MAX_LINE]);
        assert_eq!(rest.unwrap().len(), 1);
    }

    #[test]
    fn nothing_is_taken_behind_a_hit() {
        let mut lines = Lines::default();
        let mut seen = 0;
        assert!(lines.take(b"a\nb\nc\n", &mut |line| {
            seen += 1;
            line == "b"
        }));
        assert_eq!(seen, 2);
    }
}
