//! Why a device can't be assigned, and what to type.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use boot::fdt::host::HostError;

use super::super::host::{
    Bus, DeviceNumber, GroupMember, Host, HostDevice, OpenFiles, Process, ReadError, named,
};
use super::super::inherited::InheritedError;
use super::super::uapi::IoctlError;

/// Why a device can't be assigned.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// No device was named.
    #[error("there is no device to assign")]
    Nothing,
    /// No bus has it.
    #[error("there is no device {name} on the host's platform, AMBA or PCI bus")]
    NoDevice {
        /// The name that was asked for.
        name: String,
        /// Names like it.
        near: Vec<String>,
        /// Devices behind an IOMMU.
        candidates: Vec<String>,
    },
    /// It was named twice.
    #[error("{name} can't be assigned twice to one guest")]
    Twice {
        /// The device.
        name: String,
    },
    /// It was named by the option for devices of other buses.
    #[error("{name} can't be assigned by this option: it is on the {bus} bus")]
    OtherBus {
        /// The device.
        name: String,
        /// Its bus.
        bus: Bus,
    },
    /// It is a bridge.
    #[error("{name} can't be assigned: it is a bridge, and what is behind it needs it on the host")]
    Bridge {
        /// The bridge.
        name: String,
    },
    /// It has a driver, and not VFIO's.
    #[error("{name} can't be assigned: its driver is {driver}, not {}", bus.vfio_driver())]
    OwnDriver {
        /// The device.
        name: String,
        /// Its bus.
        bus: Bus,
        /// Its driver.
        driver: String,
    },
    /// It has no driver.
    #[error("{name} can't be assigned: it is bound to no driver, and must be to {}",
        bus.vfio_driver())]
    Unbound {
        /// The device.
        name: String,
        /// Its bus.
        bus: Bus,
    },
    /// It has no driver, for VFIO's wants a reset function.
    #[error(
        "{name} can't be assigned: vfio-platform refuses it, for the host's kernel knows no \
        way to reset it"
    )]
    ResetRequired {
        /// The device.
        name: String,
    },
    /// The kernel has no VFIO driver for its bus.
    #[error("{name} can't be assigned: the host's kernel has no {} driver", bus.vfio_driver())]
    NoVfioDriver {
        /// The device.
        name: String,
        /// Its bus.
        bus: Bus,
    },
    /// It is behind no IOMMU.
    #[error("{name} can't be assigned: it is in no IOMMU group, so nothing would confine its DMA")]
    NoGroup {
        /// The device.
        name: String,
    },
    /// Its group was made up.
    #[error(
        "{name} can't be assigned: its group {group} has no IOMMU, so nothing would confine \
        its DMA"
    )]
    NoIommu {
        /// The device.
        name: String,
        /// Its group.
        group: u32,
    },
    /// Others of its group are in use on the host.
    #[error(
        "{name} can't be assigned: its IOMMU group {group} is shared with {}",
        with_drivers(members)
    )]
    NotViable {
        /// The device.
        name: String,
        /// Its group.
        group: u32,
        /// Those in use.
        members: Vec<GroupMember>,
    },
    /// The kernel takes the group for in use, and sysfs doesn't tell by whom.
    #[error("{name} can't be assigned: another driver of the host uses its IOMMU group {group}")]
    GroupInUse {
        /// The device.
        name: String,
        /// Its group.
        group: u32,
        /// What the kernel refused, if it refused anything.
        #[source]
        source: Option<IoctlError>,
    },
    /// There are no VFIO containers.
    #[error("{name} can't be assigned: there is no {}", path.display())]
    NoContainer {
        /// The device.
        name: String,
        /// The container's file.
        path: PathBuf,
    },
    /// The group has no file.
    #[error("{name} can't be assigned: there is no {}, the file of its IOMMU group",
        path.display())]
    NoGroupNode {
        /// The device.
        name: String,
        /// The group's file.
        path: PathBuf,
        /// The `major:minor` it should have; `None` if the kernel has no such group.
        number: Option<String>,
    },
    /// There is no iommufd.
    #[error("{name} can't be assigned: there is no {}", path.display())]
    NoIommufd {
        /// The device.
        name: String,
        /// The iommufd's file.
        path: PathBuf,
    },
    /// The device has no file of its own.
    #[error("{name} can't be assigned through iommufd: the host's kernel makes no file for it")]
    NoCdev {
        /// The device.
        name: String,
    },
    /// The device's own file isn't there.
    #[error("{name} can't be assigned: there is no {}, its file", path.display())]
    NoCdevNode {
        /// The device.
        name: String,
        /// The file.
        path: PathBuf,
        /// What would identify it.
        number: DeviceNumber,
    },
    /// Files may not be opened.
    #[error("{name} can't be assigned: user {uid} may not open {}", closed_files(closed))]
    NotPermitted {
        /// The device.
        name: String,
        /// The files: all of those that the way to the IOMMU takes.
        closed: Vec<ClosedFile>,
        /// Who asked.
        uid: u32,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Somebody has the device, or another one of its group.
    #[error("{name} can't be assigned: another process uses {}{}", path.display(), named(users))]
    Busy {
        /// The device.
        name: String,
        /// Those processes, as far as they can be seen.
        users: Vec<Process>,
        /// The file that was to be opened.
        path: PathBuf,
        /// The files by which that process can have it.
        files: Vec<PathBuf>,
    },
    /// A file can't be opened for another reason.
    #[error("{name} can't be assigned: {} can't be opened", path.display())]
    Open {
        /// The device.
        name: String,
        /// The file.
        path: PathBuf,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Interrupts aren't isolated, and VFIO insists.
    #[error(
        "{name} can't be assigned: the host can't keep devices from sending each other's \
        message-signalled interrupts, and {module} isn't told to go on without"
    )]
    UnsafeInterrupts {
        /// The device.
        name: String,
        /// The part of the kernel that insists.
        module: &'static str,
        /// What the kernel answered.
        #[source]
        source: IoctlError,
    },
    /// The container speaks another protocol.
    #[error("the host's VFIO has another interface version than 0, which this program knows")]
    ApiVersion,
    /// The container has no fitting IOMMU model.
    #[error("the host's kernel has no type 1 IOMMU model for VFIO")]
    NoType1,
    /// The container or the iommufd refused a request.
    #[error("VFIO can't be set up")]
    Setup(#[source] IoctlError),
    /// An inherited descriptor can't be used.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// An inherited descriptor is bound already.
    #[error(
        "{name} can't be assigned: descriptor {fd} is bound to an iommufd already, and so somebody \
        else's"
    )]
    AlreadyBound {
        /// The device.
        name: String,
        /// The descriptor.
        fd: RawFd,
    },
    /// Descriptors are inherited, and a container was asked for.
    #[error("descriptors of devices and of an iommufd can't be used with a container")]
    InheritedWithContainer,
    /// The group refused a request.
    #[error("{name} can't be assigned: its IOMMU group {group} can't be attached")]
    Attach {
        /// The device.
        name: String,
        /// Its group.
        group: u32,
        /// What the kernel answered.
        #[source]
        source: IoctlError,
    },
    /// The device's own VFIO driver refused.
    #[error("{name} can't be assigned: its VFIO driver can't open it")]
    OpenDevice {
        /// The device.
        name: String,
        /// What the kernel answered.
        #[source]
        source: IoctlError,
    },
    /// The host can't be looked at.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The host's device tree can't be read, or is malformed.
    #[error(transparent)]
    Tree(#[from] HostError),
}

/// A file that may not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedFile {
    /// Where it is.
    pub path: PathBuf,
    /// The device to which it gives access; `None` for the container and the iommufd, which give
    /// access to nothing by themselves.
    pub device: Option<String>,
    /// Whose it is.
    pub owner: u32,
    /// Its permissions.
    pub mode: u32,
}

impl AssignError {
    /// Whether the device that a person means is there, and may be had once this is mended: what it
    /// would be to a guest can be foreseen then.
    pub fn can_be_mended(&self) -> bool {
        !matches!(
            self,
            Self::Nothing
                | Self::NoDevice { .. }
                | Self::Twice { .. }
                | Self::OtherBus { .. }
                | Self::Bridge { .. }
                | Self::Inherited(_)
                | Self::AlreadyBound { .. }
                | Self::InheritedWithContainer
                | Self::Read(_)
        )
    }

    /// Why a file that leads to a device (the container, the group, the iommufd, its own) couldn't
    /// be opened.
    #[cold]
    pub(crate) fn opening(
        host: &Host,
        device: &HostDevice,
        group: u32,
        path: &Path,
        source: io::Error,
    ) -> Self {
        let (name, path) = (device.name().to_owned(), path.to_owned());
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO) => {
                Self::missing(host, device, group, path)
            }
            Some(libc::EACCES | libc::EPERM) => {
                // SAFETY: takes nothing and never fails.
                let uid = unsafe { libc::geteuid() };
                let (owner, mode) =
                    path.metadata().map_or((0, 0), |node| (node.uid(), node.mode() & 0o7777));
                let shared = path == host.container_node() || path == host.iommufd_node();
                let own = (!shared).then(|| name.clone());
                let closed = vec![ClosedFile { path, device: own, owner, mode }];
                Self::NotPermitted { name, closed, uid, source }
            }
            Some(libc::EBUSY) => Self::busy(host, device, path),
            _ => Self::Open { name, path, source },
        }
    }

    /// Somebody has the device or its group.
    #[cold]
    pub(crate) fn busy(host: &Host, device: &HostDevice, path: PathBuf) -> Self {
        let users = OpenFiles::of(host).users_by_vfio(host, device);
        let mut files = host.files_of(device);
        if files.is_empty() {
            files.push(path.clone());
        }
        Self::Busy { name: device.name().to_owned(), users, path, files }
    }

    /// A file isn't there.
    fn missing(host: &Host, device: &HostDevice, group: u32, path: PathBuf) -> Self {
        let name = device.name().to_owned();
        if path == host.container_node() {
            return Self::NoContainer { name, path };
        }
        if path == host.iommufd_node() {
            return Self::NoIommufd { name, path };
        }
        match host.cdev(device).ok().flatten().filter(|cdev| cdev.path == path) {
            Some(cdev) => Self::NoCdevNode { name, path, number: cdev.number },
            None => Self::NoGroupNode { name, path, number: host.group_node_number(group) },
        }
    }

    /// The files that are closed to this user, where it is only that.
    pub(crate) fn closed(&self) -> Option<&[ClosedFile]> {
        match self {
            Self::NotPermitted { closed, .. } => Some(closed),
            _ => None,
        }
    }

    /// This error, which a user is told of together with `other` where both are about files that are
    /// closed; else the one that permission alone doesn't mend.
    pub(crate) fn joined(mut self, other: Self) -> Self {
        match (&mut self, other) {
            (Self::NotPermitted { closed, .. }, Self::NotPermitted { closed: more, .. }) => {
                let new: Vec<_> = more.into_iter().filter(|file| !closed.contains(file)).collect();
                closed.extend(new);
                self
            }
            (Self::NotPermitted { .. }, other) => other,
            _ => self,
        }
    }

    /// Whether the kernel lacks what is needed, whoever asks.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(
            self,
            Self::NoContainer { .. }
                | Self::NoGroupNode { number: None, .. }
                | Self::NoIommufd { .. }
                | Self::NoCdev { .. }
        )
    }
}

/// Files that are closed, and why.
fn closed_files(closed: &[ClosedFile]) -> String {
    let file = |file: &ClosedFile| {
        let ClosedFile { path, owner, mode, .. } = file;
        format!("{}, which is user {owner}'s with mode {mode:04o}", path.display())
    };
    closed.iter().map(file).collect::<Vec<_>>().join(", nor ")
}

/// Devices with their drivers.
fn with_drivers(members: &[GroupMember]) -> String {
    let member =
        |m: &GroupMember| format!("{} (driver {})", m.name, m.driver.as_deref().unwrap_or("none"));
    members.iter().map(member).collect::<Vec<_>>().join(", ")
}
