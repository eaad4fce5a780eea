//! Why a device's driver couldn't be changed.

use boot::file::shell_word;
use boot::help::Help;
use std::io;
use std::path::PathBuf;

use super::super::assign::AssignError;
use super::super::host::{HostUse, Process, ReadError, list_users};
use super::super::remedy;
use super::{BindRecordError, WriteError};

/// Why a device's driver couldn't be changed, and what to type.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// It can't be assigned, whatever its driver.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// A sysfs attribute couldn't be written.
    #[error("the driver of {name} can't be changed: {value:?} can't be written to {}", path.display())]
    Write {
        /// The device.
        name: String,
        /// The attribute.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why not.
        #[source]
        source: WriteError,
    },
    /// The host uses the device.
    #[error("{name} can't be bound to VFIO: the host uses it: {}", list(uses))]
    UsedByHost {
        /// The device.
        name: String,
        /// The uses.
        uses: Vec<HostUse>,
    },
    /// The owner of its files can't be changed.
    #[error("{name}: {} can't be given to its owner", path.display())]
    Owner {
        /// The device.
        name: String,
        /// The file.
        path: PathBuf,
        /// The error of `chown(2)` or `chmod(2)`.
        #[source]
        source: io::Error,
    },
    /// The driver was told to probe the device, and didn't bind to it.
    #[error("{driver} doesn't bind to {name}{}", now.as_ref().map_or(String::new(), |now|
        format!(": its driver is {now}")))]
    NotTaken {
        /// The device.
        name: String,
        /// The driver.
        driver: String,
        /// The driver it is bound to instead.
        now: Option<String>,
    },
    /// A process has it open through VFIO, and unbinding it would wait for that process.
    #[error("{name} can't be unbound from VFIO: another process uses {}{}", path.display(),
        list_users(users))]
    InUse {
        /// The device.
        name: String,
        /// Those processes that this user can see.
        users: Vec<Process>,
        /// The file that shows it.
        path: PathBuf,
        /// The files through which a process can have it open.
        files: Vec<PathBuf>,
    },
    /// Its driver before isn't in the kernel any more.
    #[error(
        "{name} can't be bound to {driver}, its driver before: the host's kernel doesn't have it any more"
    )]
    DriverGone {
        /// The device.
        name: String,
        /// Its driver before.
        driver: String,
        /// The module that had it, if that is known.
        module: Option<String>,
        /// The device's directory in sysfs.
        path: PathBuf,
    },
    /// The record of its driver can't be read or written.
    #[error(transparent)]
    BindRecord(#[from] BindRecordError),
    /// Sysfs can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl BindError {
    /// Whether the write of an attribute hasn't returned.
    pub fn is_hung(&self) -> bool {
        matches!(self, Self::Write { source: WriteError::Hung(_), .. })
    }
}

impl Help for BindError {
    #[cold]
    fn help(&self) -> Option<String> {
        match self {
            Self::Assign(error) => error.help(),
            Self::Write { source: WriteError::Refused(source), .. }
            | Self::Owner { source, .. } => denied(source),
            Self::Write { name, source: WriteError::Hung(_), .. } => Some(format!(
                "{}; once the driver has what it waits for: strait device unbind {name}",
                remedy::KERNEL_LOG
            )),
            Self::BindRecord(error) => error.help(),
            Self::UsedByHost { uses, .. } => Some(end(uses)),
            Self::NotTaken { .. } => Some(remedy::KERNEL_LOG.to_owned()),
            Self::InUse { files, .. } => {
                Some(format!("{}, and end that process first", remedy::show_users(files)))
            }
            Self::DriverGone { name, module, path, .. } => {
                let module = module.clone().unwrap_or_else(|| {
                    format!("\"$(cat {})\"", shell_word(&path.join("modalias")))
                });
                Some(format!("modprobe {module} && strait device unbind {name}"))
            }
            Self::Read(_) => None,
        }
    }
}

impl Help for BindRecordError {
    #[cold]
    fn help(&self) -> Option<String> {
        let Self { path, source, .. } = self;
        match (source.kind(), source.raw_os_error()) {
            (io::ErrorKind::TimedOut, _) => {
                Some(format!("{}, and wait for its end, or end it", remedy::show_users(&[path])))
            }
            (_, Some(libc::ENOSPC | libc::EDQUOT)) => {
                let directory = path.parent().unwrap_or(path);
                Some(format!("it is full: df -h {0}; df -i {0}", shell_word(directory)))
            }
            _ => denied(source),
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
        _ => Some(remedy::KERNEL_LOG.to_owned()),
    }
}

/// The uses of a device, for a message.
fn list(uses: &[HostUse]) -> String {
    uses.iter().map(|of| of.what.as_str()).collect::<Vec<_>>().join("; ")
}

/// The commands that end the uses, or the option that ignores them.
fn end(uses: &[HostUse]) -> String {
    let ends: Vec<&str> = uses.iter().filter_map(|of| of.end.as_deref()).collect();
    let anyway = "--force, if the host can do without and what isn't written yet may be lost";
    if ends.is_empty() { anyway.to_owned() } else { format!("{}\nor {anyway}", ends.join(" && ")) }
}
