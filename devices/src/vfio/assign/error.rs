//! Why a device can't be assigned, and what to type.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::host::{Bus, GroupMember, Host, HostDevice, ReadError};
use super::super::sys::IoctlError;

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
    /// Somebody has the group.
    #[error("{name} can't be assigned: another process uses {}", path.display())]
    Busy {
        /// The device.
        name: String,
        /// The group's file.
        path: PathBuf,
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
        message-signalled interrupts, and VFIO isn't told to go on without"
    )]
    UnsafeInterrupts {
        /// The device.
        name: String,
        /// What the kernel answered.
        #[source]
        source: IoctlError,
    },
    /// The container speaks another protocol.
    #[error("the host's VFIO has interface version {version}; this program knows version 0")]
    ApiVersion {
        /// The host's.
        version: u32,
    },
    /// The container has no fitting IOMMU model.
    #[error("the host's kernel has no type 1 IOMMU model for VFIO")]
    NoType1,
    /// The container refused a request.
    #[error("VFIO can't be set up")]
    Container(#[source] IoctlError),
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
}

impl AssignError {
    /// Why the container's or the group's file couldn't be opened.
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
                if path == host.container_node() {
                    Self::NoContainer { name, path }
                } else {
                    Self::NoGroupNode { name, path, number: host.group_node_number(group) }
                }
            }
            Some(libc::EACCES | libc::EPERM) => {
                // SAFETY: takes nothing and never fails.
                let uid = unsafe { libc::geteuid() };
                let (owner, mode) =
                    path.metadata().map_or((0, 0), |node| (node.uid(), node.mode() & 0o7777));
                Self::NotPermitted { name, path, uid, owner, mode, source }
            }
            Some(libc::EBUSY) => Self::Busy { name, path, source },
            _ => Self::Open { name, path, source },
        }
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
            Self::NotPermitted { path, uid, .. } => permit(path, *uid),
            Self::Busy { path, .. } => format!("fuser -v {}", path.display()),
            Self::UnsafeInterrupts { .. } => {
                "echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts, or \
                 boot the host with vfio_iommu_type1.allow_unsafe_interrupts=1"
                    .to_owned()
            }
            Self::NoType1 => "modprobe vfio_iommu_type1, which is there if the kernel was built \
                with CONFIG_VFIO_IOMMU_TYPE1"
                .to_owned(),
            Self::Attach { .. } | Self::OpenDevice { .. } => {
                "dmesg has the driver's own words".to_owned()
            }
            Self::Nothing
            | Self::Open { .. }
            | Self::ApiVersion { .. }
            | Self::Container(_)
            | Self::Read(_) => return None,
        })
    }
}

fn which(near: &[String], candidates: &[String]) -> Option<String> {
    if !near.is_empty() {
        return Some(format!("did you mean {}?", near.join(" or ")));
    }
    const SHOWN: usize = 8;
    let shown = candidates.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match candidates.len() {
        0 => Some("no device of these buses is behind an IOMMU on this host".to_owned()),
        1..=SHOWN => Some(format!("behind an IOMMU are: {shown}")),
        more => Some(format!("behind an IOMMU are: {shown} and {} more", more - SHOWN)),
    }
}

fn with_drivers(members: &[GroupMember]) -> String {
    let member =
        |m: &GroupMember| format!("{} (driver {})", m.name, m.driver.as_deref().unwrap_or("none"));
    members.iter().map(member).collect::<Vec<_>>().join(", ")
}

fn group_node(path: &Path, number: Option<&str>) -> String {
    match number.and_then(|number| number.split_once(':')) {
        Some((major, minor)) => format!(
            "mknod {} c {major} {minor}; in a container, let it have that device",
            path.display()
        ),
        None => "the host's kernel needs CONFIG_VFIO_GROUP".to_owned(),
    }
}

fn permit(path: &Path, uid: u32) -> String {
    if uid == 0 {
        return format!(
            "a container or service must be let have {} (docker --device, systemd DeviceAllow=)",
            path.display()
        );
    }
    format!(
        "sudo chown {uid} {}, or to keep it so: echo 'SUBSYSTEM==\"vfio\", OWNER=\"{uid}\"' | sudo \
         tee /etc/udev/rules.d/60-vfio.rules",
        path.display()
    )
}
