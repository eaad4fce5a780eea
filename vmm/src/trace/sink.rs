//! Where a trace goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::Error;
use crate::output;

/// How long a reader that takes nothing is waited for before the end is looked for.
const INTERVAL: Duration = Duration::from_millis(100);

/// A file, a pipe, or standard error.
#[derive(Debug)]
pub struct Sink {
    /// `None` for standard error, which takes lines and drops what isn't read.
    file: Option<File>,
    name: String,
    /// It couldn't be written once, and isn't any more.
    failed: AtomicBool,
}

impl Sink {
    /// Opens what is at `path`: a file is made anew, in the place of what was there and readable by its owner
    /// only, for what a guest writes may be secret; a named pipe has to have a reader. Standard error without a
    /// path. `name` is the trace's.
    ///
    /// # Errors
    ///
    /// It can't be opened.
    pub fn open(path: Option<&Path>, name: &str) -> Result<Self, Error> {
        let file = path.map(|path| open(path, name)).transpose()?;
        Ok(Self { file, name: name.to_owned(), failed: AtomicBool::new(false) })
    }

    /// Writes all of this, and waits for a reader unless `given_up`. Whether it could; where it can't, that is
    /// logged, and nothing follows: who reads it would go on in the middle of a line.
    pub fn write(&self, text: &str, given_up: impl Fn() -> bool) -> bool {
        let Some(file) = &self.file else {
            text.split_inclusive('\n').for_each(output::say);
            return true;
        };
        if self.failed.load(Ordering::Relaxed) {
            return false;
        }
        let Err(error) = write(file, text.as_bytes(), given_up) else { return true };
        self.failed.store(true, Ordering::Relaxed);
        log::warn!("{}: its trace can't be written, and ends here: {error}", self.name);
        false
    }
}

fn write(mut file: &File, mut left: &[u8], given_up: impl Fn() -> bool) -> io::Result<()> {
    while !left.is_empty() {
        match file.write(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => left = left.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if given_up() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                output::wait_until_writable(file.as_raw_fd(), INTERVAL);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open(path: &Path, name: &str) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    // A link may have been planted, and a pipe may have no reader.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW;
    options.write(true).mode(0o600).custom_flags(flags);
    let is_file = fs::symlink_metadata(path).map(|there| there.is_file());
    if !matches!(is_file, Ok(false)) {
        options.create_new(true);
    }
    let removed = if matches!(is_file, Ok(true)) { fs::remove_file(path) } else { Ok(()) };
    removed.and_then(|()| options.open(path)).map_err(|error| {
        let (why, help) = match error.raw_os_error() {
            Some(libc::ENXIO) => {
                ("nobody reads that pipe".to_owned(), "its reader first: cat PIPE & strait run …")
            }
            Some(libc::ELOOP) => {
                ("it is a symbolic link".to_owned(), "out= with the path of a file")
            }
            _ => (error.to_string(), "out=FILE in a directory you can write to"),
        };
        Error::new(format!("--trace {name},out={}: it can't be written: {why}", path.display()))
            .help(help)
    })
}
