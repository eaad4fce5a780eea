//! What a device's driver was before VFIO's: kept where a reboot clears it, so that whoever comes
//! later can restore it, however the one who changed it ended.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Host, HostDevice, Owner};

/// Only its owner has any business there.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How long others may take to change drivers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A record that can't be kept.
#[derive(Debug, thiserror::Error)]
#[error("the driver before can't be remembered: {what} {}", path.display())]
pub struct RecordError {
    /// What was tried.
    pub what: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// What a device was before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Its driver.
    pub driver: Option<String>,
    /// Its `driver_override`.
    pub driver_override: Option<String>,
}

impl Record {
    fn to_text(&self) -> String {
        let line = |key, value: &Option<String>| match value {
            Some(value) => format!("{key} {value}\n"),
            None => String::new(),
        };
        line("driver", &self.driver) + &line("driver_override", &self.driver_override)
    }

    /// Reads what [`Self::to_text`] wrote; lines of any other kind are passed over.
    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
        };
        Self { driver: value("driver"), driver_override: value("driver_override") }
    }
}

/// The records of all devices: a file each, `<state>/<bus>/<name>`; and their owners, which stay when
/// a device is given back, `<state>/owners/<bus>/<name>`.
pub(super) struct Ledger {
    directory: PathBuf,
}

impl Ledger {
    pub(super) fn of(host: &Host) -> Self {
        Self { directory: host.state.clone() }
    }

    /// Keeps others from changing drivers until the file is dropped.
    pub(super) fn lock(&self) -> Result<File, RecordError> {
        self.make(&self.directory)?;
        let path = self.directory.join("lock");
        let failed = |what| {
            let path = path.clone();
            move |source| RecordError { what, path, source }
        };
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(FILE_MODE);
        let file = options.open(&path).map_err(failed("can't create"))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(TryLockError::WouldBlock) => {
                    let source = io::Error::from(io::ErrorKind::TimedOut);
                    return Err(failed("another strait holds")(source));
                }
                // A kernel without CONFIG_FILE_LOCKING: small enough to have nobody else on it.
                Err(TryLockError::Error(error)) if error.raw_os_error() == Some(libc::ENOSYS) => {
                    return Ok(file);
                }
                Err(TryLockError::Error(source)) => return Err(failed("can't lock")(source)),
            }
        }
    }

    pub(super) fn read(&self, device: &HostDevice) -> Result<Option<Record>, RecordError> {
        let path = self.path(device);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(Record::parse(&text))),
            // Without permission to look, there is nothing that this user could restore either.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                ) =>
            {
                Ok(None)
            }
            Err(source) => Err(RecordError { what: "can't read", path, source }),
        }
    }

    /// Remembers; whoever reads finds the old record or the new one, whole.
    pub(super) fn write(&self, device: &HostDevice, record: &Record) -> Result<(), RecordError> {
        let path = self.path(device);
        let directory = self.directory.join(device.bus().name());
        self.make(&directory)?;
        let partial = directory.join(format!(".{}", std::process::id()));
        let written = fs::write(&partial, record.to_text());
        written.and_then(|()| fs::rename(&partial, &path)).map_err(|source| RecordError {
            what: "can't write",
            path,
            source,
        })
    }

    /// Whose the device's files are to be whenever it is given to VFIO.
    pub(super) fn owner(&self, device: &HostDevice) -> Option<Owner> {
        Owner::parse(&fs::read_to_string(self.owner_path(device)).ok()?)
    }

    /// Remembers that.
    pub(super) fn write_owner(&self, device: &HostDevice, owner: Owner) -> Result<(), RecordError> {
        let path = self.owner_path(device);
        path.parent().map_or(Ok(()), |directory| self.make(directory))?;
        fs::write(&path, owner.to_text()).map_err(|source| RecordError {
            what: "can't write",
            path,
            source,
        })
    }

    /// Forgets.
    pub(super) fn remove(&self, device: &HostDevice) -> Result<(), RecordError> {
        let path = self.path(device);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RecordError { what: "can't remove", path, source })
            }
            _ => Ok(()),
        }
    }

    fn make(&self, directory: &Path) -> Result<(), RecordError> {
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(|source| {
            RecordError { what: "can't create", path: directory.to_owned(), source }
        })
    }

    fn owner_path(&self, device: &HostDevice) -> PathBuf {
        self.directory.join("owners").join(device.bus().name()).join(device.name())
    }

    fn path(&self, device: &HostDevice) -> PathBuf {
        self.directory.join(device.bus().name()).join(device.name())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::super::testing::FakeHost;
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_forgotten() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", None, None);
        let device = fake.host().find("1.dma").unwrap().unwrap();
        let ledger = Ledger::of(&fake.host());
        assert_eq!(ledger.read(&device).unwrap(), None);
        let text = |text: &str| Some(text.to_owned());
        for (driver, driver_override) in
            [(None, None), (text("dma-pl330"), None), (text("a b"), text("x")), (None, text("x"))]
        {
            let record = Record { driver, driver_override };
            ledger.write(&device, &record).unwrap();
            assert_eq!(ledger.read(&device).unwrap(), Some(record));
        }
        let mode = fake.path("run/strait").metadata().unwrap().mode();
        assert_eq!(mode & 0o777, DIRECTORY_MODE);
        ledger.remove(&device).unwrap();
        ledger.remove(&device).unwrap();
        assert_eq!(ledger.read(&device).unwrap(), None);
    }

    #[test]
    fn a_damaged_record_says_what_it_still_says() {
        for (text, driver) in [("", None), ("driver\n", None), ("x y\ndriver a\n", Some("a"))] {
            assert_eq!(Record::parse(text).driver.as_deref(), driver, "{text:?}");
        }
    }

    #[test]
    fn two_that_change_drivers_wait_for_each_other() {
        let fake = FakeHost::new();
        let first = Ledger::of(&fake.host()).lock().unwrap();
        let host = fake.host();
        let second = std::thread::spawn(move || Ledger::of(&host).lock().map(drop));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!second.is_finished());
        drop(first);
        second.join().unwrap().unwrap();
    }

    #[test]
    fn a_place_that_is_none_is_named() {
        let fake = FakeHost::new();
        fake.write("run/strait", "a file");
        let error = Ledger::of(&fake.host()).lock().unwrap_err();
        assert!(error.to_string().ends_with("run/strait"), "{error}");
    }
}
