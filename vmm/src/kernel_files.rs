//! Files of the kernel that are read while the guest runs: kept open from before, as the sandbox leaves
//! no paths by which to open them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::sync;

/// Those that are kept, by their paths.
static KEPT: Mutex<BTreeMap<String, File>> = Mutex::new(BTreeMap::new());

/// No other file may be opened any more.
static ONLY_KEPT: AtomicBool = AtomicBool::new(false);

/// From here on only files that are kept are read: the sandbox ends a process that opens another.
pub fn read_only_kept() {
    ONLY_KEPT.store(true, Ordering::Release);
}

/// Keeps the file open for [`read`]. One that can't be opened can't be read later either.
#[cold]
pub fn keep(path: &str) {
    if let Ok(file) = File::open(path) {
        sync::lock(&KEPT).insert(path.to_owned(), file);
    }
}

/// What the file has at the moment.
///
/// # Errors
///
/// It can't be read, or it isn't kept and can't be opened.
#[cold]
pub fn read(path: &str) -> io::Result<String> {
    let kept = sync::lock(&KEPT);
    let Some(mut file) = kept.get(path) else {
        if ONLY_KEPT.load(Ordering::Acquire) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        return fs::read_to_string(path);
    };
    file.rewind()?;
    let mut text = String::new();
    Plain(file).read_to_string(&mut text)?;
    Ok(text)
}

/// A file that isn't asked for its size before it is read: these have none.
struct Plain<'a>(&'a File);

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_read_from_its_beginning_each_time_even_without_its_path() {
        let path = std::env::temp_dir().join(format!("strait-kept-{}", std::process::id()));
        let name = path.to_str().unwrap();
        fs::write(&path, "one").unwrap();
        keep(name);
        assert_eq!((read(name).unwrap(), read(name).unwrap()), ("one".into(), "one".into()));
        fs::write(&path, "second").unwrap();
        assert_eq!(read(name).unwrap(), "second");
        fs::remove_file(&path).unwrap();
        assert_eq!(read(name).unwrap(), "second");
    }

    #[test]
    fn what_is_not_kept_is_opened() {
        keep("/no/such/file");
        assert!(read("/no/such/file").is_err());
        assert!(read("/proc/self/status").unwrap().starts_with("Name:"));
    }
}
