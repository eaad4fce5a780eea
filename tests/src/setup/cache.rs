//! The cache: finished things in directories named by what they were made of.
//!
//! An entry lies in `<name>-<hash of its inputs>`. It is made in `<name>-<hash>.partial` and
//! renamed when it is complete, so whatever carries the final name is whole. The file
//! `locks/<name>-<hash>` is locked by who makes it (exclusively) and by who uses it (shared).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::{env, io};

use sha2::{Digest, Sha256};

use super::error::{Error, FileError};
use super::lock::{Lock, LockFile};
use super::progress::Step;

/// The ending of a directory in which something is being made.
pub(super) const PARTIAL: &str = ".partial";

/// What an entry is made of, hashed.
pub(super) struct Key(Sha256);

impl Key {
    /// Of nothing yet.
    pub(super) fn new() -> Self {
        Self(Sha256::new())
    }

    /// Adds an input. Its name and length keep neighbours apart.
    pub(super) fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update(format!("{name} {}\n", value.len()));
        self.0.update(value);
        self
    }

    /// Adds a list of inputs, such as the arguments of a command.
    pub(super) fn with_all(self, name: &str, values: &[&str]) -> Self {
        values.iter().fold(self, |key, value| key.with(name, value))
    }

    /// Adds the content of a file.
    pub(super) fn with_file(self, path: &Path) -> Result<Self, Error> {
        let content = fs::read(path).at("read", path)?;
        Ok(self.with("file", content))
    }

    /// Sixteen hex digits: enough for the few entries that a cache ever sees.
    fn digits(self) -> String {
        self.0.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The directory that holds everything.
#[derive(Clone)]
pub(super) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The cache in `$STRAIT_CACHE`, else `$XDG_CACHE_HOME/strait-model`, else
    /// `~/.cache/strait-model`; made if need be.
    pub(super) fn open() -> Result<Self, Error> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = place(set("STRAIT_CACHE"), set("XDG_CACHE_HOME"), set("HOME"));
        Self::at(root.ok_or(Error::NoCache)?)
    }

    /// The cache in this directory, made if need be.
    pub(super) fn at(root: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&root).at("create", &root)?;
        // Builds run in directories of their own, so paths must not depend on the current one.
        let root = fs::canonicalize(&root).at("find", &root)?;
        Ok(Self { root })
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The log of the step with this name.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// The entry `name` made of `key`, which may not exist yet.
    pub(super) fn entry(&self, name: &str, key: Key) -> CacheEntry {
        let name = format!("{name}-{}", key.digits());
        let dir = self.root.join(&name);
        CacheEntry {
            partial: self.root.join(format!("{name}{PARTIAL}")),
            lock: self.lock(&name),
            dir,
        }
    }

    /// The lock called `name`.
    pub(super) fn lock(&self, name: &str) -> LockFile {
        LockFile::new(self.root.join("locks").join(name))
    }
}

fn place(own: Option<PathBuf>, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    own.or_else(|| xdg.filter(|dir| dir.is_absolute()).map(|dir| dir.join("strait-model")))
        .or_else(|| home.map(|dir| dir.join(".cache/strait-model")))
}

/// An entry, finished or not.
pub(super) struct CacheEntry {
    dir: PathBuf,
    partial: PathBuf,
    lock: LockFile,
}

/// A finished entry that `clean` leaves alone for as long as this lives.
pub(super) struct LockedEntry {
    /// Its directory.
    pub(super) dir: PathBuf,
    _lock: Lock,
}

/// Where an entry is being made.
pub(super) struct BuildDirs {
    /// What is put here becomes the entry.
    pub(super) out: PathBuf,
    /// Everything here is thrown away.
    pub(super) work: PathBuf,
}

impl CacheEntry {
    /// Whether it is finished.
    pub(super) fn is_made(&self) -> bool {
        self.dir.is_dir()
    }

    /// The directory's name, for [`super::clean`].
    pub(super) fn name(&self) -> Option<&std::ffi::OsStr> {
        self.dir.file_name()
    }

    /// The finished entry; `make` makes it unless it is there.
    ///
    /// # Errors
    ///
    /// What `make` failed with, or the cache can't be written.
    pub(super) fn get(
        &self,
        step: &Step,
        make: impl FnOnce(&BuildDirs) -> Result<(), Error>,
    ) -> Result<LockedEntry, Error> {
        let held = self.lock.shared(step)?;
        if self.is_made() {
            return Ok(LockedEntry { dir: self.dir.clone(), _lock: held });
        }
        drop(held);
        let making = self.lock.exclusive(step)?;
        if !self.is_made() {
            step.begin_log()?;
            let made = self.make(make);
            if made.is_err() {
                step.phase("removing what is incomplete");
            }
            let swept = remove_dir(&self.partial);
            made.and(swept)?;
        }
        drop(making);
        let held = self.lock.shared(step)?;
        if self.is_made() {
            return Ok(LockedEntry { dir: self.dir.clone(), _lock: held });
        }
        Err(Error::Missing {
            what: "entry (was it cleaned just now?)".to_owned(),
            place: self.dir.clone(),
        })
    }

    fn make(&self, make: impl FnOnce(&BuildDirs) -> Result<(), Error>) -> Result<(), Error> {
        remove_dir(&self.partial)?;
        let dirs = BuildDirs { out: self.partial.join("out"), work: self.partial.join("work") };
        for dir in [&dirs.out, &dirs.work] {
            fs::create_dir_all(dir).at("create", dir)?;
        }
        make(&dirs)?;
        sync(&dirs.out)?;
        fs::rename(&dirs.out, &self.dir).at("finish", &self.dir)
    }
}

/// Writes files through to the disk, so that the rename can't outrun them.
fn sync(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        for entry in fs::read_dir(path).at("read", path)? {
            sync(&entry.at("read", path)?.path())?;
        }
    }
    File::open(path).and_then(|file| file.sync_all()).at("write", path)
}

/// Removes a directory with all in it, if it is there.
pub(super) fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", dir),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::progress::Progress;

    /// A cache of the test's own, removed with it.
    struct Fixture {
        cache: Cache,
        progress: Progress,
    }

    impl Fixture {
        fn new(name: &str) -> Self {
            let root = env::temp_dir().join(format!("cache-test-{}-{name}", std::process::id()));
            Self { cache: Cache::at(root).unwrap(), progress: Progress::start() }
        }

        fn step(&self) -> Step {
            self.progress.step("thing", self.cache.log("thing"))
        }

        fn thing(&self, input: &str) -> CacheEntry {
            self.cache.entry("thing", Key::new().with("input", input))
        }
    }

    impl Drop for Fixture {
        fn drop(&mut self) {
            remove_dir(&self.cache.root).unwrap();
        }
    }

    #[test]
    fn the_cache_lies_where_the_first_variable_says() {
        let path = |text: &str| Some(PathBuf::from(text));
        let table = [
            (path("/own"), path("/xdg"), path("/home/me"), path("/own")),
            (None, path("/xdg"), path("/home/me"), path("/xdg/strait-model")),
            (None, path("relative"), path("/home/me"), path("/home/me/.cache/strait-model")),
            (None, None, path("/home/me"), path("/home/me/.cache/strait-model")),
            (None, None, None, None),
        ];
        for (own, xdg, home, expected) in table {
            assert_eq!(place(own, xdg, home), expected);
        }
    }

    #[test]
    fn every_input_and_every_border_between_inputs_changes_the_key() {
        let keys = [
            Key::new(),
            Key::new().with("a", ""),
            Key::new().with("a", "x"),
            Key::new().with("b", "x"),
            Key::new().with("a", "x").with("a", "y"),
            Key::new().with("a", "xy"),
            Key::new().with_all("a", &["y", "x"]),
        ];
        let mut digits: Vec<_> = keys.into_iter().map(Key::digits).collect();
        assert!(digits.iter().all(|d| d.len() == 16));
        let count = digits.len();
        digits.sort();
        digits.dedup();
        assert_eq!(digits.len(), count);
        assert_eq!(Key::new().with("a", "x").digits(), Key::new().with("a", "x").digits());
    }

    #[test]
    fn an_entry_is_made_once() {
        let fixture = Fixture::new("once");
        let step = fixture.step();
        let made = fixture.thing("a").get(&step, |dirs| {
            fs::write(dirs.work.join("scrap"), "scrap").unwrap();
            fs::write(dirs.out.join("file"), "content").at("write", &dirs.out)
        });
        let dir = made.unwrap().dir;
        let again = fixture.thing("a").get(&step, |_| panic!("it is there already"));
        assert_eq!(again.unwrap().dir, dir);
        let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files, ["file"]);
        assert!(!fixture.thing("a").partial.exists());
    }

    #[test]
    fn a_failure_and_what_an_interrupted_run_left_are_cleared_away() {
        let fixture = Fixture::new("failure");
        let thing = fixture.thing("a");
        fs::create_dir_all(thing.partial.join("out")).unwrap();
        fs::write(thing.partial.join("out/stale"), "stale").unwrap();
        let failed = thing.get(&fixture.step(), |dirs| {
            assert_eq!(fs::read_dir(&dirs.out).unwrap().count(), 0);
            Err(Error::Interrupted)
        });
        assert!(matches!(failed, Err(Error::Interrupted)));
        assert!(!thing.is_made() && !thing.partial.exists());
    }

    #[test]
    fn an_entry_in_use_can_not_be_locked_exclusively() {
        let fixture = Fixture::new("held");
        let thing = fixture.thing("a");
        let first = thing.get(&fixture.step(), |_| Ok(())).unwrap();
        let second = thing.get(&fixture.step(), |_| Ok(())).unwrap();
        assert!(thing.lock.try_exclusive().unwrap().is_none());
        drop(first);
        assert!(thing.lock.try_exclusive().unwrap().is_none());
        drop(second);
        assert!(thing.lock.try_exclusive().unwrap().is_some());
    }

    #[test]
    fn the_second_run_waits_for_the_first_and_takes_what_it_made() {
        let fixture = Fixture::new("two");
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let thing = fixture.thing("a");
                    let held = thing.get(&fixture.step(), |dirs| {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(200));
                        fs::write(dirs.out.join("file"), "content").at("write", &dirs.out)
                    });
                    assert!(held.unwrap().dir.join("file").exists());
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
