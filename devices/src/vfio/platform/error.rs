//! What can go wrong with an assigned device once it can be assigned.

use boot::help::Help;
use std::fmt;
use std::io;

use boot::fdt::host::HostError;

use super::super::assign::AssignError;
use super::super::fd_limit::FdLimitTooLow;
use super::super::irq::IrqError;
use super::super::node::NodeError;
use super::super::quiesce::QuiesceError;
use super::super::remedy;
use super::super::uapi::{DeviceInfo, IoctlError};
use super::super::unbound::UnboundError;

/// Who has requested an interrupt on the host.
#[derive(Debug)]
pub enum InterruptHolder {
    /// A device's driver.
    Device {
        /// The device.
        device: String,
        /// Its driver.
        driver: String,
        /// That is VFIO's, which requests it for a guest.
        by_vfio: bool,
    },
    /// A handler of this name, whose device isn't known.
    Handler(String),
}

impl fmt::Display for InterruptHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device { device, by_vfio: true, .. } => {
                write!(f, "{device}, which another guest has")
            }
            Self::Device { device, driver, .. } => write!(f, "{device} (driver {driver})"),
            Self::Handler(name) => write!(f, "{name} (/proc/interrupts)"),
        }
    }
}

impl InterruptHolder {
    /// What has it give the interrupt up.
    fn help(&self) -> String {
        match self {
            Self::Device { by_vfio: true, .. } => "end that guest first".to_owned(),
            Self::Device { device, .. } => {
                format!("where the host can do without {device}: strait device bind {device}")
            }
            Self::Handler(_) => "end what uses it on the host, or its driver".to_owned(),
        }
    }
}

/// What went wrong with a device.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// It can't be opened.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// What it will be can't be foreseen.
    #[error(transparent)]
    Unbound(#[from] UnboundError),
    /// The firmware described it by other means than a device tree.
    #[error("{name} can't be assigned: the host's device tree has no node for it")]
    NoNode {
        /// The device.
        name: String,
    },
    /// Linux made several devices of one node.
    #[error("{name} can't be assigned: its device tree node is also that of {other}")]
    SameNode {
        /// The device.
        name: String,
        /// The other device, which is to be assigned too.
        other: String,
    },
    /// Two devices have one interrupt.
    #[error(
        "{name} can't be assigned beside {other}: both have interrupt {interrupt}, which VFIO gives \
         to one only"
    )]
    SharedInterrupt {
        /// The device.
        name: String,
        /// The other device, which is to be assigned too.
        other: String,
        /// The interrupt, as its controller numbers it, and the controller's path in the host's
        /// device tree.
        interrupt: String,
    },
    /// A device has an interrupt twice.
    #[error(
        "{name} can't be assigned: its node {node} lists interrupt {interrupt} twice, which VFIO can \
         request only once"
    )]
    RepeatedInterrupt {
        /// The device.
        name: String,
        /// Its node's path in the host's device tree.
        node: String,
        /// The interrupt and its controller.
        interrupt: String,
    },
    /// Another device has requested its interrupt.
    #[error(
        "{name} can't be assigned: its interrupt {interrupt} is also that of {holder}, and VFIO \
         can't share it"
    )]
    HeldInterrupt {
        /// The device.
        name: String,
        /// The interrupt and its controller.
        interrupt: String,
        /// Who has it.
        holder: InterruptHolder,
    },
    /// Its node in the host's device tree is malformed.
    #[error("{name} can't be assigned: its device tree node can't be read")]
    HostTree {
        /// The device.
        name: String,
        /// Why not.
        #[source]
        source: HostError,
    },
    /// The guest's node can't be made of it.
    #[error("{name} can't be assigned")]
    Node {
        /// The device.
        name: String,
        /// Why not.
        #[source]
        source: NodeError,
    },
    /// VFIO doesn't tell what it has.
    #[error("{name} can't be assigned: VFIO doesn't tell what it has")]
    Unknown {
        /// The device.
        name: String,
        /// What VFIO refused.
        #[source]
        source: IoctlError,
    },
    /// VFIO tells of it what can't be.
    #[error("{name} can't be assigned: VFIO describes no platform or AMBA device, but {info}")]
    Strange {
        /// The device.
        name: String,
        /// What VFIO tells.
        info: DeviceInfo,
    },
    /// An interrupt can't be handed to the guest.
    #[error("{name} can't be assigned")]
    Irq {
        /// The device.
        name: String,
        /// Which, and why not.
        #[source]
        source: IrqError,
    },
    /// Its interrupts take more file descriptors than there can be.
    #[error("{name} can't be assigned: its interrupts")]
    Descriptors {
        /// The device.
        name: String,
        /// How many, and how many there can be.
        #[source]
        source: FdLimitTooLow,
    },
    /// It was given another number of places than it has.
    #[error("{name} has {wanted} {what}, and was given places for {found}")]
    Count {
        /// The device.
        name: String,
        /// Places of what.
        what: &'static str,
        /// How many it has.
        wanted: usize,
        /// How many it was given.
        found: usize,
    },
    /// A region was given a place where it can't be.
    #[error("region {index} of {name} can't be at {gpa:#x}: the host's pages are {page:#x} bytes")]
    Misplaced {
        /// The device.
        name: String,
        /// The region.
        index: u32,
        /// Its place (GPA).
        gpa: u64,
        /// The size of the host's pages in bytes.
        page: u64,
    },
    /// The hypervisor doesn't take a region.
    #[error("region {index} of {name} can't be mapped into the guest at {gpa:#x}")]
    MapRegion {
        /// The device.
        name: String,
        /// The region.
        index: u32,
        /// Its place (GPA).
        gpa: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It doesn't stop.
    #[error("{name} doesn't stop what it is doing")]
    Quiesce {
        /// The device.
        name: String,
        /// In which way.
        #[source]
        source: QuiesceError,
    },
    /// VFIO couldn't reset it.
    #[error("{name} can't be reset")]
    Reset {
        /// The device.
        name: String,
        /// What VFIO refused.
        #[source]
        source: IoctlError,
    },
}

impl Help for PlatformError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Assign(error) => error.help(),
            Self::HostTree { source, .. } => source.help(),
            Self::Irq { source, .. } => source.help(),
            Self::Descriptors { source, .. } => source.help(),
            Self::Node { name, source } => Some(source.help(name)),
            Self::NoNode { .. } => Some(
                "boot the host with a device tree; where the firmware offers both, with acpi=off"
                    .to_owned(),
            ),
            Self::SameNode { name, other } | Self::SharedInterrupt { name, other, .. } => {
                Some(format!("--vfio-platform {other} or --vfio-platform {name}, not both"))
            }
            Self::RepeatedInterrupt { .. } => {
                Some("a host device tree whose node lists it once".to_owned())
            }
            Self::HeldInterrupt { holder, .. } => Some(holder.help()),
            Self::Quiesce { name, .. } | Self::Reset { name, .. } => Some(format!(
                "power-cycle the board, or let the guest have the device as it is: \
                 --vfio-platform {name},quiesce=off"
            )),
            Self::Unknown { .. } => Some(remedy::KERNEL_LOG.to_owned()),
            Self::Unbound(_)
            | Self::Strange { .. }
            | Self::Count { .. }
            | Self::Misplaced { .. }
            | Self::MapRegion { .. } => None,
        }
    }
}
