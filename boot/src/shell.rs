//! Words of commands that a person is told to type.

use std::path::Path;

/// A path as a POSIX shell takes it for one word (POSIX.1-2017, Shell Command Language, 2.2.2).
pub(crate) fn word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%=".contains(c);
    if text.starts_with('-') {
        return word(&Path::new(".").join(path));
    }
    if text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        for (path, expected) in [
            ("/boot/Image-6.12+deb13_arm64", "/boot/Image-6.12+deb13_arm64"),
            ("my kernel", "'my kernel'"),
            ("it's", "'it'\\''s'"),
            ("$HOME/*", "'$HOME/*'"),
            ("-rf", "./-rf"),
        ] {
            assert_eq!(word(Path::new(path)), expected);
        }
    }
}
