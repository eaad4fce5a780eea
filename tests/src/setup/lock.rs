//! Locks between runs of this tool: files that are locked by who makes something or uses it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use super::error::{Error, FileError};
use super::progress::Step;
use super::signals;

/// How often a lock is tried that another run holds.
const POLL: Duration = Duration::from_millis(200);

/// A file that is only there to be locked.
pub(super) struct LockFile {
    path: PathBuf,
}

/// A lock that is held until this is dropped, or the process ends.
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Removes the file, so that the next one to lock makes a new one.
    pub(super) fn remove(self) -> Result<(), Error> {
        fs::remove_file(&self.path).at("remove", &self.path)
    }
}

impl LockFile {
    /// The lock file at `path`, made when it is first locked.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Takes the lock if nobody holds it.
    pub(super) fn try_exclusive(&self) -> Result<Option<Lock>, Error> {
        self.attempt(File::try_lock)
    }

    /// Takes the lock, saying for whom it waits.
    pub(super) fn exclusive(&self, step: &Step) -> Result<Lock, Error> {
        self.wait(step, File::try_lock)
    }

    /// Takes the lock together with others that take it so.
    pub(super) fn shared(&self, step: &Step) -> Result<Lock, Error> {
        self.wait(step, File::try_lock_shared)
    }

    fn wait(
        &self,
        step: &Step,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Lock, Error> {
        let mut said = false;
        loop {
            if let Some(held) = self.attempt(&lock)? {
                return Ok(held);
            }
            if !said {
                step.phase("waiting for another `cargo model` that makes it");
                said = true;
            }
            if signals::requested() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(POLL);
        }
    }

    fn attempt(
        &self,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Option<Lock>, Error> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).at("create", dir)?;
        }
        let path = &self.path;
        let open = File::options().create(true).truncate(false).write(true).open(path);
        let file = open.at("open", path)?;
        match lock(&file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => return Err(source).at("lock", path),
        }
        // `clean` may have removed the file between our opening and our locking it.
        let ours = file.metadata().at("examine", path)?;
        match fs::metadata(path) {
            Ok(named) if named.ino() == ours.ino() && named.dev() == ours.dev() => {
                Ok(Some(Lock { path: path.clone(), _file: file }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(source).at("examine", path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_lock_file_is_made_anew() {
        let path = std::env::temp_dir().join(format!("lock-test-{}", std::process::id()));
        let lock = LockFile::new(path.clone());
        lock.try_exclusive().unwrap().unwrap().remove().unwrap();
        assert!(!path.exists());
        let held = lock.try_exclusive().unwrap();
        assert!(held.is_some() && lock.try_exclusive().unwrap().is_none());
        held.unwrap().remove().unwrap();
    }
}
