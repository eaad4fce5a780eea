//! Why a device can't be assigned, and what to type.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use boot::fdt::host::HostError;

use super::super::host::{Bus, DeviceNumber, GroupMember, Host, HostDevice, ReadError};
use super::super::passed::PassedError;
use super::super::sys::IoctlError;
use super::help::{group_node, mknod, permit, which, with_drivers};

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
    /// A file may not be opened.
    #[error("{name} can't be assigned: user {uid} may not open {}, which is user {owner}'s with \
        mode {mode:04o}", path.display())]
    NotPermitted {
        /// The device.
        name: String,
        /// The file.
        path: PathBuf,
        /// Who asked.
        uid: u32,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// Somebody has the device, or another one of its group.
    #[error("{name} can't be assigned: another process uses {}", path.display())]
    Busy {
        /// The device.
        name: String,
        /// The file that was to be opened.
        path: PathBuf,
        /// The files by which that process can have it.
        files: Vec<PathBuf>,
        /// What the kernel answered.
        #[source]
        source: io::Error,
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
    /// A descriptor isn't what it is taken for.
    #[error(transparent)]
    Passed(#[from] PassedError),
    /// A descriptor has an owner already.
    #[error(
        "{name} can't be assigned: descriptor {fd} is bound to an iommufd already, and so somebody \
        else's"
    )]
    Bound {
        /// The device.
        name: String,
        /// The descriptor.
        fd: RawFd,
    },
    /// Descriptors were passed, and a container was asked for.
    #[error("descriptors of devices and of an iommufd can't be used with a container")]
    PassedToContainer,
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
                | Self::Passed(_)
                | Self::Bound { .. }
                | Self::PassedToContainer
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
                Self::NotPermitted { name, path, uid, owner, mode, source }
            }
            Some(libc::EBUSY) => Self::busy(host, device, path, source),
            _ => Self::Open { name, path, source },
        }
    }

    /// Somebody has the device or its group.
    #[cold]
    pub(crate) fn busy(host: &Host, device: &HostDevice, path: PathBuf, source: io::Error) -> Self {
        let mut files = host.files_of(device);
        if files.is_empty() {
            files.push(path.clone());
        }
        Self::Busy { name: device.name().to_owned(), path, files, source }
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

    /// What mends it: what to type, or where to look.
    #[cold]
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoDevice { near, candidates, .. } => return which(near, candidates),
            Self::Twice { .. } => "name each device once".to_owned(),
            Self::OtherBus { name, bus: Bus::Pci } => format!("--vfio-pci {name}"),
            Self::OtherBus { name, .. } => format!("--vfio-platform {name}"),
            Self::Bridge { .. } => "strait device list".to_owned(),
            Self::OwnDriver { name, .. } | Self::Unbound { name, .. } => {
                format!("strait device bind {name}")
            }
            Self::ResetRequired { name } => format!(
                "boot the host with vfio_platform.reset_required=0 on its command line, or where \
                 it is a module: modprobe -r vfio-platform; modprobe vfio-platform \
                 reset_required=0; strait device bind {name}"
            ),
            Self::NoVfioDriver { bus, .. } => format!(
                "modprobe {}, which is there if the kernel was built with {}",
                bus.vfio_driver(),
                bus.vfio_option()
            ),
            Self::NoGroup { .. } => "its node in the host's device tree needs an iommus property \
                (PCI: its host bridge's, an iommu-map), and the kernel that IOMMU's driver (Arm: CONFIG_ARM_SMMU, CONFIG_ARM_SMMU_V3)"
                .to_owned(),
            Self::NoIommu { .. } => {
                "echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, and see that \
                 the device is behind an IOMMU"
                    .to_owned()
            }
            Self::NotViable { name, .. } => format!("strait device bind --group {name}"),
            Self::GroupInUse { group, .. } => {
                format!("ls -l /sys/kernel/iommu_groups/{group}/devices/*/driver")
            }
            Self::NoContainer { .. } => "modprobe vfio_iommu_type1, which is there if the kernel \
                was built with CONFIG_VFIO_CONTAINER and CONFIG_VFIO_IOMMU_TYPE1; in a container, \
                let it have /dev/vfio"
                .to_owned(),
            Self::NoGroupNode { path, number, .. } => group_node(path, number.as_deref()),
            Self::NoIommufd { .. } => {
                "modprobe iommufd, which is there if the kernel was built with \
                CONFIG_IOMMUFD; in a container, let it have /dev/iommu"
                    .to_owned()
            }
            Self::NoCdev { .. } => {
                "build the host's kernel with CONFIG_VFIO_DEVICE_CDEV, or --iommu container"
                    .to_owned()
            }
            Self::NoCdevNode { path, number, .. } => mknod(path, number.major, number.minor),
            Self::NotPermitted { path, uid, .. } => permit(path, *uid),
            Self::Busy { files, .. } => {
                let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
                format!("fuser -v {}", files.join(" "))
            }
            Self::UnsafeInterrupts { module, .. } => format!(
                "echo Y > /sys/module/{module}/parameters/allow_unsafe_interrupts, or boot the \
                 host with {module}.allow_unsafe_interrupts=1"
            ),
            Self::Passed(error) => return error.help(),
            Self::Bound { .. } => "whoever starts strait opens the device's file anew, and leaves \
                VFIO_DEVICE_BIND_IOMMUFD to strait"
                .to_owned(),
            Self::PassedToContainer => "--iommu iommufd".to_owned(),
            Self::NoType1 => "modprobe vfio_iommu_type1, which is there if the kernel was built \
                with CONFIG_VFIO_IOMMU_TYPE1"
                .to_owned(),
            Self::Attach { .. } | Self::OpenDevice { .. } => {
                "dmesg has the driver's own words".to_owned()
            }
            Self::Nothing
            | Self::Open { .. }
            | Self::ApiVersion
            | Self::Setup(_)
            | Self::Read(_) => return None,
            Self::Tree(error) => return error.help(),
        })
    }
}
