//! TOML files that a person gives: those of `--config`, and tables of registers.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use devices::{poll, stop};

/// The largest one, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// How long a pipe is waited for before it is looked whether a signal ends strait.
const INTERVAL: Duration = Duration::from_millis(100);

/// The text of the file at `path`. A pipe is waited for.
///
/// # Errors
///
/// Why it can't be read, in words: it is too large, or no text, or a signal ends strait.
pub fn read(path: &Path) -> Result<String, String> {
    read_unless(path, stop::check)
}

fn read_unless(path: &Path, stop: impl Fn() -> io::Result<()>) -> Result<String, String> {
    let unreadable = |e| format!("it can't be read: {e}");
    // Without O_NONBLOCK, opening a FIFO would wait for its writer, whatever signal comes.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = file.map_err(unreadable)?.take(MAX_SIZE.saturating_add(1));
    let mut bytes = Vec::new();
    loop {
        stop().map_err(unreadable)?;
        if !is_readable(file.get_ref().as_raw_fd()) {
            continue;
        }
        match file.read_to_end(&mut bytes) {
            Ok(_) => break,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(unreadable(e)),
        }
    }
    if bytes.len() as u64 > MAX_SIZE {
        return Err(format!("it is larger than {} KiB", MAX_SIZE >> 10));
    }
    String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".into())
}

/// Waits a while for what can be read, which a FIFO has once it had a writer; whether there is some.
fn is_readable(fd: RawFd) -> bool {
    // One that has failed has found nothing.
    poll::wait(&mut [poll::readable(fd)], Some(INTERVAL)).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;
    use std::time::Duration;

    use vmm_sys_util::tempdir::TempDir;
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

    #[test]
    fn a_pipe_is_waited_for_unless_a_signal_ends_that() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("pipe");
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let stopped = read_unless(&path, || Err(io::Error::other("a signal")));
        assert!(stopped.unwrap_err().contains("a signal"));
        let writer = thread::spawn({
            let path = path.clone();
            move || {
                let mut file = OpenOptions::new().write(true).open(path).unwrap();
                for _ in 0..3 {
                    io::Write::write_all(&mut file, b"a = 1\n").unwrap();
                    thread::sleep(Duration::from_millis(20));
                }
            }
        });
        assert_eq!(read(&path).unwrap(), "a = 1\n".repeat(3));
        writer.join().unwrap();
    }
}
