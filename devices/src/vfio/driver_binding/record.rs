//! The driver that a device had before VFIO's, on disk: whatever happens to the process that bound the
//! device, a later one can restore it. A reboot clears the records, as it does the bindings.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::host::{Host, HostDevice};
/// Permissions of the records: of their owner alone.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How long to wait for another process that changes drivers.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// A record that can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the driver before can't be recorded: {what} {}", path.display())]
pub struct BindRecordError {
    /// The operation that failed.
    pub what: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The error of the system call.
    #[source]
    pub source: io::Error,
}

/// The binding of a device before VFIO's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindRecord {
    /// Its driver.
    pub driver: Option<String>,
    /// The module of that driver, by another name as a rule; `None` if it is built in.
    pub module: Option<String>,
    /// Its `driver_override`.
    pub driver_override: Option<String>,
}

impl BindRecord {
    fn to_text(&self) -> String {
        let line = |key, value: &Option<String>| match value {
            Some(value) => format!("{key} {value}\n"),
            None => String::new(),
        };
        line("driver", &self.driver)
            + &line("module", &self.module)
            + &line("driver_override", &self.driver_override)
    }

    /// Parses the output of [`Self::to_text`]; unknown lines are ignored.
    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
        };
        Self {
            driver: value("driver"),
            module: value("module"),
            driver_override: value("driver_override"),
        }
    }
}

/// The user, and optionally the group, who may open the files of a bound device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The user ID.
    pub user: u32,
    /// The group ID.
    pub group: Option<u32>,
}

impl Owner {
    /// As it is stored: `1000` or `1000:100`.
    fn to_text(self) -> String {
        match self.group {
            Some(group) => format!("{}:{group}", self.user),
            None => self.user.to_string(),
        }
    }

    /// Parses the output of [`Self::to_text`].
    fn parse(text: &str) -> Option<Self> {
        let (user, group) = match text.trim_end().split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text.trim_end(), None),
        };
        let group = group.map(str::parse).transpose().ok()?;
        Some(Self { user: user.parse().ok()?, group })
    }

    /// Makes a file this owner's, readable and writable.
    pub(super) fn chown(self, file: &Path) -> io::Result<()> {
        chown(file, Some(self.user), self.group)?;
        let mode = if self.group.is_some() { 0o660 } else { 0o600 };
        fs::set_permissions(file, PermissionsExt::from_mode(mode))
    }
}

/// The records of all devices, a file each: `<state>/<bus>/<name>`. Their owners outlive the binding,
/// in `<state>/owners/<bus>/<name>`.
pub struct BindRecords {
    directory: PathBuf,
}

impl BindRecords {
    /// Those of this host, which need not exist.
    pub fn of(host: &Host) -> Self {
        Self { directory: host.state().to_owned() }
    }

    /// Locks the records against other processes until the file is dropped. Another process is waited for
    /// unless this is `hurried`.
    pub(super) fn lock(&self, is_hurried: fn() -> bool) -> Result<File, BindRecordError> {
        make(&self.directory)?;
        let path = self.directory.join("lock");
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(FILE_MODE);
        let file = options.open(&path).map_err(failed("can't create", &path))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock)
                    if started.elapsed() < LOCK_TIMEOUT && !is_hurried() =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let source = io::Error::from(io::ErrorKind::TimedOut);
                    return Err(failed("another strait holds", &path)(source));
                }
                // A kernel without CONFIG_FILE_LOCKING, too small for two processes of strait.
                Err(TryLockError::Error(error)) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    return Ok(file);
                }
                Err(TryLockError::Error(source)) => {
                    return Err(failed("can't lock", &path)(source));
                }
            }
        }
    }

    /// The record of a device; `None` if there is none, or this user may not read it.
    ///
    /// # Errors
    ///
    /// The file is there but can't be read.
    pub fn read(&self, device: &HostDevice) -> Result<Option<BindRecord>, BindRecordError> {
        let path = self.path(device);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(BindRecord::parse(&text))),
            // A user who may not read it may not change drivers either.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(failed("can't read", &path)(source)),
        }
    }

    /// Writes the record of a device, atomically.
    pub(super) fn write(
        &self,
        device: &HostDevice,
        record: &BindRecord,
    ) -> Result<(), BindRecordError> {
        let path = self.path(device);
        let directory = self.directory.join(device.bus().name());
        make(&directory)?;
        let partial = directory.join(format!(".{}", std::process::id()));
        let written = fs::write(&partial, record.to_text());
        written.and_then(|()| fs::rename(&partial, &path)).map_err(failed("can't write", &path))
    }

    /// The owner of the device's files whenever it is bound to VFIO.
    pub(super) fn owner(&self, device: &HostDevice) -> Option<Owner> {
        Owner::parse(&fs::read_to_string(self.owner_path(device)).ok()?)
    }

    /// Writes that owner.
    pub(super) fn write_owner(
        &self,
        device: &HostDevice,
        owner: Owner,
    ) -> Result<(), BindRecordError> {
        let path = self.owner_path(device);
        path.parent().map_or(Ok(()), make)?;
        fs::write(&path, owner.to_text()).map_err(failed("can't write", &path))
    }

    /// Removes the record of a device.
    pub(super) fn remove(&self, device: &HostDevice) -> Result<(), BindRecordError> {
        let path = self.path(device);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(failed("can't remove", &path)(source))
            }
            _ => Ok(()),
        }
    }

    fn owner_path(&self, device: &HostDevice) -> PathBuf {
        self.directory.join("owners").join(device.bus().name()).join(device.name())
    }

    fn path(&self, device: &HostDevice) -> PathBuf {
        self.directory.join(device.bus().name()).join(device.name())
    }
}

/// Creates a directory that is its owner's alone, and those above it.
fn make(directory: &Path) -> Result<(), BindRecordError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(DIRECTORY_MODE);
    builder.create(directory).map_err(failed("can't create", directory))
}

/// The error of an operation on this file or directory.
fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindRecordError + use<> {
    let path = path.to_owned();
    move |source| BindRecordError { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::super::testing::FakeHost;
    use super::*;

    #[test]
    fn a_record_is_read_back_as_written_until_it_is_removed() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", None, None);
        let device = fake.host().find("1.dma").unwrap().unwrap();
        let records = BindRecords::of(&fake.host());
        assert_eq!(records.read(&device).unwrap(), None);
        let text = |text: &str| Some(text.to_owned());
        for (driver, driver_override) in
            [(None, None), (text("dma-pl330"), None), (text("a b"), text("x")), (None, text("x"))]
        {
            let module = driver.clone();
            let record = BindRecord { driver, module, driver_override };
            records.write(&device, &record).unwrap();
            assert_eq!(records.read(&device).unwrap(), Some(record));
        }
        let mode = fake.path("run/strait").metadata().unwrap().mode();
        assert_eq!(mode & 0o777, DIRECTORY_MODE);
        records.remove(&device).unwrap();
        records.remove(&device).unwrap();
        assert_eq!(records.read(&device).unwrap(), None);
    }

    #[test]
    fn unknown_and_incomplete_lines_of_a_record_are_ignored() {
        for (text, driver) in [("", None), ("driver\n", None), ("x y\ndriver a\n", Some("a"))] {
            assert_eq!(BindRecord::parse(text).driver.as_deref(), driver, "{text:?}");
        }
    }

    #[test]
    fn a_second_process_waits_for_the_lock() {
        let fake = FakeHost::new();
        let first = BindRecords::of(&fake.host()).lock(|| false).unwrap();
        let host = fake.host();
        let second = std::thread::spawn(move || BindRecords::of(&host).lock(|| false).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_created_is_named() {
        let fake = FakeHost::new();
        fake.write("run/strait", "a file");
        let error = BindRecords::of(&fake.host()).lock(|| false).unwrap_err();
        assert!(error.to_string().ends_with("run/strait"), "{error}");
    }

    #[test]
    fn an_owner_is_read_back_as_written() {
        for owner in [Owner { user: 0, group: None }, Owner { user: 1000, group: Some(100) }] {
            assert_eq!(Owner::parse(&owner.to_text()), Some(owner));
        }
        for nonsense in ["", ":", "1:", ":1", "a", "-1"] {
            assert_eq!(Owner::parse(nonsense), None, "{nonsense}");
        }
    }
}
