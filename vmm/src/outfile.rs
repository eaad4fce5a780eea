//! Files that strait writes: atomically, and at the very path that was given.
//!
//! In directories that others may write to, such as /tmp, a link may have been planted under the
//! name: nothing is written through a link. Links to strait's own output, as /dev/stdout is one, lead there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::output;

/// How many names are tried for what becomes the file: others may have been left behind.
const NAMES: u32 = 16;

/// Makes `bytes` the content of the file at `path`, with these permissions for whom the umask leaves
/// them: whoever opens it finds the old or the new one, whole. A device or a pipe gets them as they
/// come, unless nobody reads them.
///
/// # Errors
///
/// It can't be written, is a directory, or a pipe that nobody reads.
#[cold]
pub fn write(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    if let Ok(there) = fs::metadata(path)
        && !there.is_file()
    {
        // A directory refuses.
        return output::write(&non_blocking().open(path)?, bytes);
    }
    if let Some(own) = own_output(path) {
        return (&*own).write_all(bytes);
    }
    let (mut file, beside) = create_beside(path, mode)?;
    file.write_all(bytes).and_then(|()| fs::rename(&beside, path)).inspect_err(|_| {
        let _ = fs::remove_file(&beside);
    })
}

/// Standard output or error, where that is a regular file and the path a link to it: /dev/stdout leads to
/// /proc/self/fd/1, and a file beside it can't take its place.
fn own_output(path: &Path) -> Option<ManuallyDrop<File>> {
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_symlink)?;
    let there = fs::metadata(path).ok()?;
    [libc::STDOUT_FILENO, libc::STDERR_FILENO].into_iter().map(borrow).find(|own| {
        let is_it = |own: fs::Metadata| (own.dev(), own.ino()) == (there.dev(), there.ino());
        own.metadata().is_ok_and(is_it)
    })
}

fn borrow(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: standard output and error are open as long as the process (`own_standard_descriptors` of
    // main.rs), and are not closed by what isn't dropped.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

/// Opens a device or a pipe to write to, without waiting for a reader.
fn non_blocking() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

/// Checks that [`write()`] will be able to, as far as can be known.
///
/// # Errors
///
/// It won't.
pub fn check(path: &Path, mode: u32) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(there) if !there.is_file() => Ok(()),
        Ok(_) if own_output(path).is_some() => Ok(()),
        _ => create_beside(path, mode).and_then(|(_, beside)| fs::remove_file(beside)),
    }
}

/// A new file beside `path`, to take its place.
fn create_beside(path: &Path, mode: u32) -> io::Result<(File, PathBuf)> {
    let mut taken = io::ErrorKind::AlreadyExists.into();
    for number in 0..NAMES {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        if number > 0 {
            name.push(format!(".{number}"));
        }
        let beside = PathBuf::from(name);
        // O_EXCL, which create_new is, doesn't follow a link that has the name.
        let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside);
        match made {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => taken = e,
            other => return other.map(|file| (file, beside)),
        }
    }
    Err(taken)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory of a test's own, gone at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("strait-{test}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn nothing_is_written_through_links() {
        let scratch = Scratch::new("links");
        let (path, victim) = (scratch.0.join("stats"), scratch.0.join("victim"));
        fs::write(&victim, "mine").unwrap();
        symlink(&victim, scratch.0.join(format!("stats.{}", std::process::id()))).unwrap();
        check(&path, 0o644).unwrap();
        write(&path, 0o644, b"one").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        // The name itself may be a link too: it is replaced.
        fs::remove_file(&path).unwrap();
        symlink(&victim, &path).unwrap();
        write(&path, 0o644, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert_eq!(scratch.names().len(), 3, "{:?}", scratch.names());
    }

    #[test]
    fn a_link_to_strait_s_own_output_leads_there() {
        let scratch = Scratch::new("own");
        let (path, output) = (scratch.0.join("stdout"), scratch.0.join("output"));
        symlink("/proc/self/fd/2", &path).unwrap();
        let file = File::create(&output).unwrap();
        // SAFETY: takes numbers; standard error is put back.
        let before = unsafe { libc::dup(2) };
        // SAFETY: as above.
        unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&file), 2) };
        let results = [check(&path, 0o600), write(&path, 0o600, b"new")];
        // SAFETY: as above.
        unsafe { libc::dup2(before, 2) };
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(fs::read(&output).unwrap().ends_with(b"new"));
        assert_eq!(scratch.names(), ["output", "stdout"]);
    }

    #[test]
    fn what_is_secret_is_so_even_where_a_file_was() {
        let scratch = Scratch::new("secret");
        let path = scratch.0.join("dtb");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        write(&path, 0o600, b"new").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(scratch.names(), ["dtb"]);
    }

    #[test]
    fn what_can_t_be_written_leaves_nothing() {
        let scratch = Scratch::new("nothing");
        for path in [scratch.0.clone(), scratch.0.join("no/such")] {
            assert!(check(&path, 0o644).is_err() && write(&path, 0o644, b"x").is_err());
        }
        for number in 0..NAMES {
            let more = if number == 0 { String::new() } else { format!(".{number}") };
            let name = format!("stats.{}{more}", std::process::id());
            fs::write(scratch.0.join(name), "").unwrap();
        }
        let error = write(&scratch.0.join("stats"), 0o644, b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        write(Path::new("/dev/null"), 0o600, b"x").unwrap();
    }

    #[test]
    fn a_pipe_gets_the_bytes_and_nobody_waits_for_its_reader() {
        let scratch = Scratch::new("pipe");
        let pipe = scratch.0.join("pipe");
        let name = std::ffi::CString::new(pipe.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the name is a C string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let error = write(&pipe, 0o600, b"new").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
        let mut options = OpenOptions::new();
        let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(&pipe).unwrap();
        write(&pipe, 0o600, b"new").unwrap();
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
        assert_eq!(bytes, b"new");
    }
}
