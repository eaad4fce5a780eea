//! TOML files that a person gives: those of `--config`, and tables of registers.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The largest one, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The text of the file at `path`.
///
/// # Errors
///
/// Why it can't be read, in words: it is too large, or no text.
pub fn read(path: &Path) -> Result<String, String> {
    let unreadable = |e| format!("it can't be read: {e}");
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(format!("it is larger than {} KiB", MAX_SIZE >> 10));
    }
    String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".into())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn a_file_is_a_text_of_bounded_size() {
        let file = TempFile::new().unwrap();
        let path = file.as_path();
        let read_of = |bytes: &[u8]| {
            fs::write(path, bytes).unwrap();
            read(path)
        };
        assert_eq!(read_of(b"a = 1\n").unwrap(), "a = 1\n");
        assert!(read_of(&[b'#'; 1 << 20]).is_ok());
        assert!(read_of(&vec![b'#'; (1 << 20) + 1]).unwrap_err().contains("larger than 1024 KiB"));
        assert!(read_of(&[0xff]).unwrap_err().contains("no UTF-8"));
        assert!(read(Path::new("/nonexistent")).unwrap_err().contains("can't be read"));
        assert!(read(Path::new("/")).unwrap_err().contains("can't be read"));
    }
}
