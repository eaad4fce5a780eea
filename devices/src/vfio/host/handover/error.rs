//! Why a device's driver couldn't be changed.

use std::io;
use std::path::PathBuf;

use super::super::super::assign::AssignError;
use super::super::{Bus, ReadError, RecordError};

/// Why a device's driver couldn't be changed, and what to type.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It can't be assigned whatever its driver.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// The kernel refused a step.
    #[error("{name} can't change its driver: {} doesn't take {value:?}", path.display())]
    Write {
        /// The device.
        name: String,
        /// The attribute.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// The driver was asked, and left the device alone.
    #[error("{driver} doesn't take {name}{}", now.as_ref().map_or(String::new(), |now|
        format!(": its driver is {now}")))]
    NotTaken {
        /// The device.
        name: String,
        /// The driver.
        driver: String,
        /// The driver that it has instead.
        now: Option<String>,
    },
    /// Somebody has it open, and the kernel would wait for them.
    #[error("{name} can't be taken from VFIO: another process uses {}", path.display())]
    InUse {
        /// The device.
        name: String,
        /// The file that tells.
        path: PathBuf,
        /// The files by which that process can have it.
        files: Vec<PathBuf>,
    },
    /// The driver it had is gone.
    #[error("{name} can't be given back: the host's kernel has no driver {driver} any more")]
    DriverGone {
        /// The device.
        name: String,
        /// Its driver before.
        driver: String,
        /// Its bus.
        bus: Bus,
    },
    /// What was can't be remembered or recalled.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The host can't be looked at.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl HandoverError {
    /// What mends it.
    #[cold]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Assign(error) => error.help(),
            Self::Write { source, .. } | Self::Record(RecordError { source, .. }) => denied(source),
            Self::NotTaken { .. } => Some("dmesg has the driver's own words".to_owned()),
            Self::InUse { files, .. } => {
                let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
                Some(format!("fuser -v {}, and end that process first", files.join(" ")))
            }
            Self::DriverGone { name, driver, .. } => {
                Some(format!("modprobe {driver} && strait device unbind {name}"))
            }
            Self::Read(_) => None,
        }
    }
}

fn denied(source: &io::Error) -> Option<String> {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            Some("only root changes drivers: run it with sudo".to_owned())
        }
        Some(libc::EROFS) => Some(
            "sysfs or /run is read-only here: run it on the host rather than in a container"
                .to_owned(),
        ),
        _ => Some("dmesg has the kernel's own words".to_owned()),
    }
}
