//! Why a device can't be assigned, and the remedy.

use boot::help::Help;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use boot::fdt::host::HostError;

use super::super::host::{GroupMember, HostBus, Process, ReadError, list_users};
use super::super::inherited::InheritedError;
use super::super::remedy;
use super::super::uapi::IoctlError;
use super::files::{ClosedFile, VfioFile, list_closed, permit};

/// Why a device can't be assigned.
#[derive(Debug, thiserror::Error)]
pub enum AssignError {
    /// No device was named.
    #[error("there is no device to assign")]
    NoDevices,
    /// No bus has a device of this name.
    #[error("there is no device {name} on the host's platform, AMBA or PCI bus")]
    NotFound {
        /// The name.
        name: String,
        /// Similar names.
        similar: Vec<String>,
        /// Devices behind an IOMMU.
        candidates: Vec<String>,
    },
    /// A device was named twice.
    #[error("{name} can't be assigned twice to one guest")]
    Duplicate {
        /// The device.
        name: String,
    },
    /// A device was named by the option for devices of other buses.
    #[error("{name} can't be assigned by this option: it is on the {bus} bus")]
    OtherBus {
        /// The device.
        name: String,
        /// Its bus.
        bus: HostBus,
    },
    /// The device is a PCI bridge.
    #[error("{name} can't be assigned: it is a bridge, and what is behind it needs it on the host")]
    Bridge {
        /// The bridge.
        name: String,
    },
    /// The device isn't bound to VFIO's driver.
    #[error("{name} can't be assigned: {}", not_bound(*bus, driver.as_deref()))]
    NotBound {
        /// The device.
        name: String,
        /// Its bus.
        bus: HostBus,
        /// Its driver.
        driver: Option<String>,
    },
    /// The device is bound to no driver, since VFIO's requires a reset function.
    #[error(
        "{name} can't be assigned: vfio-platform refuses it, for the host's kernel knows no \
        way to reset it"
    )]
    ResetRequired {
        /// The device.
        name: String,
    },
    /// The kernel has no VFIO driver for the device's bus.
    #[error("{name} can't be assigned: the host's kernel has no {} driver", bus.vfio_driver())]
    NoVfioDriver {
        /// The device.
        name: String,
        /// Its bus.
        bus: HostBus,
    },
    /// The device is behind no IOMMU.
    #[error("{name} can't be assigned: it is in no IOMMU group, so nothing would confine its DMA")]
    NoGroup {
        /// The device.
        name: String,
    },
    /// The device's group is VFIO's own, without an IOMMU (`enable_unsafe_noiommu_mode`).
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
    /// The device's group isn't viable: the host uses other devices of it.
    #[error("{name} can't be assigned: {}", not_viable(*group, members))]
    NotViable {
        /// The device.
        name: String,
        /// Its group.
        group: u32,
        /// Those that the host uses; none if only the kernel says so.
        members: Vec<GroupMember>,
        /// The request that was refused, if one was.
        #[source]
        source: Option<IoctlError>,
    },
    /// A file in `/dev` is missing.
    #[error("{name} can't be assigned: there is no {}{file}", path.display())]
    NoFile {
        /// The device.
        name: String,
        /// The file's path.
        path: PathBuf,
        /// Which file it is.
        file: VfioFile,
    },
    /// The device has no file of its own, which iommufd needs.
    #[error("{name} can't be assigned through iommufd: the host's kernel makes no file for it")]
    NoCdev {
        /// The device.
        name: String,
    },
    /// This user may not open files.
    #[error("{name} can't be assigned: user {uid} may not open {}", list_closed(closed))]
    NotPermitted {
        /// The device.
        name: String,
        /// All files that can't be opened of those that are needed.
        closed: Vec<ClosedFile>,
        /// The user.
        uid: u32,
        /// The error of `open(2)` or `faccessat(2)`.
        #[source]
        source: io::Error,
    },
    /// Another process has the device open, or another device of its group.
    #[error("{name} can't be assigned: another process uses {}{}", path.display(), list_users(users))]
    Busy {
        /// The device.
        name: String,
        /// The processes that this user can see.
        users: Vec<Process>,
        /// The file that couldn't be opened.
        path: PathBuf,
        /// The files through which a process can have the device open.
        files: Vec<PathBuf>,
    },
    /// A file can't be opened for another reason.
    #[error("{name} can't be assigned: {} can't be opened", path.display())]
    Open {
        /// The device.
        name: String,
        /// The file.
        path: PathBuf,
        /// The error of `open(2)`.
        #[source]
        source: io::Error,
    },
    /// Message-signalled interrupts aren't isolated, which VFIO requires.
    #[error(
        "{name} can't be assigned: the host can't keep devices from sending each other's \
        message-signalled interrupts, and {module} doesn't allow that"
    )]
    UnsafeInterrupts {
        /// The device.
        name: String,
        /// The module with the parameter `allow_unsafe_interrupts`.
        module: &'static str,
        /// The request that was refused.
        #[source]
        source: IoctlError,
    },
    /// The container has no type 1 IOMMU model.
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
        "{name} can't be assigned: descriptor {fd} is bound to an iommufd already, and so another \
        process's"
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
    /// The group or the device can't be attached to the container or the IOAS.
    #[error("{name} can't be assigned: its IOMMU group {group} can't be attached")]
    Attach {
        /// The device.
        name: String,
        /// Its group.
        group: u32,
        /// The request that was refused.
        #[source]
        source: IoctlError,
    },
    /// The device's VFIO driver can't open it.
    #[error("{name} can't be assigned: its VFIO driver can't open it")]
    OpenDevice {
        /// The device.
        name: String,
        /// The request that was refused.
        #[source]
        source: IoctlError,
    },
    /// VFIO wants a token, or another one, before it opens a function with SR-IOV.
    #[error("{name} can't be assigned: {}", wants_token(physical.as_deref(), *given))]
    VfToken {
        /// The function.
        name: String,
        /// Its physical function; `None` if it is one.
        physical: Option<String>,
        /// Whether there was a token.
        given: bool,
        /// The request that was refused.
        #[source]
        source: IoctlError,
    },
    /// VFIO takes no token for the device.
    #[error("{name} has no VF token: {}", takes_no_token(physical.as_deref()))]
    NoVfToken {
        /// The device.
        name: String,
        /// Its physical function, if it is a virtual one.
        physical: Option<String>,
    },
    /// Sysfs can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The host's device tree can't be read, or is malformed.
    #[error(transparent)]
    Tree(#[from] HostError),
}

impl AssignError {
    /// Whether the remedy would make the device assignable, so that a run with it can be planned.
    pub fn can_be_mended(&self) -> bool {
        !matches!(
            self,
            Self::NoDevices
                | Self::NotFound { .. }
                | Self::Duplicate { .. }
                | Self::OtherBus { .. }
                | Self::Bridge { .. }
                | Self::Inherited(_)
                | Self::AlreadyBound { .. }
                | Self::InheritedWithContainer
                | Self::NoVfToken { .. }
                | Self::Read(_)
        )
    }

    /// Whether the kernel lacks what is needed, whoever asks.
    pub(crate) fn is_kernel_lacking(&self) -> bool {
        let Self::NoFile { file, .. } = self else { return matches!(self, Self::NoCdev { .. }) };
        matches!(file, VfioFile::Container | VfioFile::Iommufd | VfioFile::Group(None))
    }
}

impl Help for AssignError {
    #[cold]
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { similar, candidates, .. } => alternatives(similar, candidates),
            Self::Duplicate { .. } => "name each device once".to_owned(),
            Self::OtherBus { name, bus: HostBus::Pci } => format!("--vfio-pci {name}"),
            Self::OtherBus { name, .. } => format!("--vfio-platform {name}"),
            Self::Bridge { .. } => "strait device list".to_owned(),
            Self::NotBound { name, .. } => remedy::bind(name),
            Self::ResetRequired { name } => {
                format!("{}; {}", remedy::RESET_REQUIRED, remedy::bind(name))
            }
            Self::NoVfioDriver { bus, .. } => {
                remedy::load_module(bus.vfio_driver(), bus.vfio_option())
            }
            Self::NoGroup { .. } => remedy::BEHIND_IOMMU.to_owned(),
            Self::NoIommu { .. } => {
                "echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, and see that \
                 the device is behind an IOMMU"
                    .to_owned()
            }
            Self::NotViable { group, members, .. } if members.is_empty() => {
                format!("ls -l /sys/kernel/iommu_groups/{group}/devices/*/driver")
            }
            Self::NotViable { name, .. } => format!("strait device bind --group {name}"),
            Self::NoFile { path, file, .. } => match file {
                VfioFile::Container => remedy::CONTAINER.to_owned(),
                VfioFile::Iommufd => remedy::IOMMUFD.to_owned(),
                VfioFile::Group(None) => "the host's kernel needs CONFIG_VFIO_GROUP".to_owned(),
                VfioFile::Group(Some(number)) | VfioFile::Device(number) => {
                    remedy::create_node(path, *number)
                }
            },
            Self::NoCdev { .. } => remedy::DEVICE_CDEV.to_owned(),
            Self::NotPermitted { closed, uid, .. } => permit(*uid, closed),
            Self::Busy { files, .. } => remedy::show_users(files),
            Self::UnsafeInterrupts { module, .. } => remedy::allow_unsafe_interrupts(module),
            Self::Inherited(error) => return error.help(),
            Self::AlreadyBound { .. } => {
                "whoever starts strait opens the device's file anew, and leaves \
                VFIO_DEVICE_BIND_IOMMUFD to strait"
                    .to_owned()
            }
            Self::InheritedWithContainer => "--iommu iommufd".to_owned(),
            Self::NoType1 => remedy::load_module("vfio_iommu_type1", "CONFIG_VFIO_IOMMU_TYPE1"),
            Self::VfToken { name, physical, .. } => format!(
                "--vfio-pci {name},vf-token=UUID, with the token that {}",
                match physical {
                    Some(physical) => format!("{physical} was opened with"),
                    None => "its virtual functions were opened with".to_owned(),
                }
            ),
            Self::NoVfToken { name, .. } => format!("--vfio-pci {name}"),
            Self::Attach { .. } | Self::OpenDevice { .. } => remedy::KERNEL_LOG.to_owned(),
            Self::NoDevices | Self::Open { .. } | Self::Setup(_) | Self::Read(_) => return None,
            Self::Tree(error) => return error.help(),
        })
    }
}

/// Why VFIO doesn't open a function with SR-IOV.
fn wants_token(physical: Option<&str>, given: bool) -> String {
    match (physical, given) {
        (_, true) => "VFIO doesn't take this VF token".to_owned(),
        (Some(physical), false) => format!("VFIO asks for the VF token of {physical}"),
        (None, false) => "VFIO asks for a VF token, as its virtual functions are in use".to_owned(),
    }
}

/// Why VFIO takes no token for a device.
fn takes_no_token(physical: Option<&str>) -> String {
    match physical {
        Some(physical) => format!("its physical function {physical} isn't bound to VFIO"),
        None => "it is no function with SR-IOV".to_owned(),
    }
}

/// Names similar to one that no device has, or else the devices that there are.
fn alternatives(similar: &[String], candidates: &[String]) -> String {
    const MAX_SHOWN: usize = 8;
    if !similar.is_empty() {
        return format!("did you mean {}?", similar.join(" or "));
    }
    let shown =
        candidates.iter().take(MAX_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match candidates.len() {
        0 => "no device of these buses is behind an IOMMU on this host".to_owned(),
        1..=MAX_SHOWN => format!("behind an IOMMU are: {shown}"),
        count => format!("behind an IOMMU are: {shown} and {} more", count - MAX_SHOWN),
    }
}

/// The driver of a device that isn't bound to VFIO's, for a message.
fn not_bound(bus: HostBus, driver: Option<&str>) -> String {
    let vfio_driver = bus.vfio_driver();
    match driver {
        Some(driver) => format!("its driver is {driver}, not {vfio_driver}"),
        None => format!("it is bound to no driver, and must be to {vfio_driver}"),
    }
}

/// Who uses a group that isn't viable, for a message.
fn not_viable(group: u32, members: &[GroupMember]) -> String {
    let member =
        |m: &GroupMember| format!("{} (driver {})", m.name, m.driver.as_deref().unwrap_or("none"));
    match &members.iter().map(member).collect::<Vec<_>>()[..] {
        [] => format!("another driver of the host uses its IOMMU group {group}"),
        members => format!("its IOMMU group {group} is shared with {}", members.join(", ")),
    }
}
