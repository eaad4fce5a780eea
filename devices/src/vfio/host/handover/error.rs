//! Why a device's driver couldn't be changed.

use std::io;
use std::path::PathBuf;

use super::super::super::assign::AssignError;
use super::super::{Bus, HostUse, Hung, Process, ReadError, RecordError, named};

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
    /// The kernel doesn't come back from a step.
    #[error("{name} can't change its driver: {value:?} was written to {}, and {hung}", path.display())]
    Hung {
        /// The device.
        name: String,
        /// The attribute.
        path: PathBuf,
        /// What was written.
        value: String,
        /// What is known of why.
        hung: Hung,
    },
    /// The host uses it.
    #[error("{name} can't be taken: the host uses it: {}", list(uses))]
    UsedByHost {
        /// The device.
        name: String,
        /// What for.
        uses: Vec<HostUse>,
    },
    /// Its files can't be given to a user.
    #[error("{name}: {} can't be given to its owner", path.display())]
    Owner {
        /// The device.
        name: String,
        /// The file.
        path: PathBuf,
        /// Why not.
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
    #[error("{name} can't be taken from VFIO: another process uses {}{}", path.display(),
        named(users))]
    InUse {
        /// The device.
        name: String,
        /// Those processes, as far as they can be seen.
        users: Vec<Process>,
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
            Self::Owner { source, .. } => denied(source),
            Self::Hung { name, .. } => Some(format!(
                "dmesg | tail, which may have the driver's own words; once what it waits for is over: \
                 strait device unbind {name}"
            )),
            Self::UsedByHost { uses, .. } => Some(end(uses)),
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

/// What the host uses a device for.
fn list(uses: &[HostUse]) -> String {
    uses.iter().map(|of| of.what.as_str()).collect::<Vec<_>>().join("; ")
}

/// How that is ended, or passed over.
fn end(uses: &[HostUse]) -> String {
    let ends: Vec<&str> = uses.iter().filter_map(|of| of.end.as_deref()).collect();
    let anyway = "--force, if the host can do without and what isn't written yet may be lost";
    if ends.is_empty() { anyway.to_owned() } else { format!("{}\nor {anyway}", ends.join(" && ")) }
}
