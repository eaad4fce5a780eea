//! What can go wrong with a platform device.

use std::fmt;
use std::io;

use boot::fdt::host::HostError;
use boot::help::Help;

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
    /// How to have it give the interrupt up.
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

/// What went wrong with a device, by whose name each variant but the first two begins.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// It can't be opened.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// It isn't bound to VFIO, and can't be planned with.
    #[error(transparent)]
    Unbound(#[from] UnboundError),
    /// The firmware described it by other means than a device tree.
    #[error("{0} can't be assigned: the host's device tree has no node for it")]
    NoNode(String),
    /// Linux made several devices of one node; the other one is to be assigned too.
    #[error("{0} can't be assigned: its device tree node is also that of {1}")]
    SameNode(String, String),
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
    #[error("{0} can't be assigned: its device tree node can't be read")]
    HostTree(String, #[source] HostError),
    /// The guest's node can't be made of it.
    #[error("{0} can't be assigned")]
    Node(String, #[source] NodeError),
    /// VFIO doesn't describe it.
    #[error("{0} can't be assigned: VFIO doesn't describe it")]
    Info(String, #[source] IoctlError),
    /// VFIO describes something else.
    #[error("{0} can't be assigned: VFIO describes no platform or AMBA device, but {1}")]
    NotPlatform(String, DeviceInfo),
    /// An interrupt can't be assigned.
    #[error("{0} can't be assigned")]
    Irq(String, #[source] IrqError),
    /// Its interrupts take more file descriptors than there can be.
    #[error("{0} can't be assigned: its interrupts")]
    FdLimit(String, #[source] FdLimitTooLow),
    /// It was given another number of addresses or interrupts than it has.
    #[error("{name} has {expected} {what}, and was given {found}")]
    WrongCount {
        /// The device.
        name: String,
        /// Of what.
        what: &'static str,
        /// How many it has.
        expected: usize,
        /// How many it was given.
        found: usize,
    },
    /// A region was given an address at which it can't be mapped.
    #[error("region {index} of {name} can't be at {gpa:#x}: the host's pages are {page:#x} bytes")]
    Misaligned {
        /// The device.
        name: String,
        /// The region.
        index: u32,
        /// The address (GPA).
        gpa: u64,
        /// The size of the host's pages in bytes.
        page: u64,
    },
    /// The hypervisor refuses a region.
    #[error("region {index} of {name} can't be mapped into the guest at {gpa:#x}")]
    MapRegion {
        /// The device.
        name: String,
        /// The region.
        index: u32,
        /// The address (GPA).
        gpa: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What its guest leaves running would reach the host's memory.
    #[error(
        "{name} can't be assigned: nothing can stop it (there is no binding for it, and VFIO has no reset), \
         and without a guest IOMMU group {group} keeps it from none of the host's memory (its type is \
         identity)"
    )]
    Unconfined {
        /// The device.
        name: String,
        /// Its group.
        group: u32,
    },
    /// It doesn't stop.
    #[error("{0} doesn't stop what it is doing")]
    Quiesce(String, #[source] QuiesceError),
    /// VFIO couldn't reset it.
    #[error("{0} can't be reset")]
    Reset(String, #[source] IoctlError),
}

impl PlatformError {
    /// Whether it may still be doing what it was told to.
    pub fn still_runs(&self) -> bool {
        matches!(self, Self::Quiesce(..) | Self::Reset(..))
    }
}

impl Help for PlatformError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Assign(error) => error.help(),
            Self::HostTree(_, error) => error.help(),
            Self::Irq(_, error) => error.help(),
            Self::FdLimit(_, error) => error.help(),
            Self::Node(name, error) => Some(error.help(name)),
            Self::NoNode(_) => Some(
                "boot the host with a device tree; where the firmware offers both, with acpi=off"
                    .to_owned(),
            ),
            Self::SameNode(name, other) | Self::SharedInterrupt { name, other, .. } => {
                Some(format!("--vfio-platform {other} or --vfio-platform {name}, not both"))
            }
            Self::RepeatedInterrupt { .. } => {
                Some("a host device tree whose node lists it once".to_owned())
            }
            Self::HeldInterrupt { holder, .. } => Some(holder.help()),
            Self::Quiesce(name, _) | Self::Reset(name, _) => Some(format!(
                "power-cycle the board, or let the guest have the device as it is: \
                 --vfio-platform {name},quiesce=off"
            )),
            Self::Unconfined { name, group } => Some(format!(
                "{}; or if it does no DMA by itself: --vfio-platform {name},quiesce=off",
                remedy::translate_by_default(&group.to_string())
            )),
            Self::Info(..) => Some(remedy::KERNEL_LOG.to_owned()),
            Self::Unbound(_)
            | Self::NotPlatform(..)
            | Self::WrongCount { .. }
            | Self::Misaligned { .. }
            | Self::MapRegion { .. } => None,
        }
    }
}
