//! What can go wrong with a PCI function that is to be a guest's.

use super::super::irq::IrqError;
use super::super::uapi::{DeviceInfo, IoctlError};
use super::config::ConfigError;
use crate::pci::BarError;

/// What went wrong with a function.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// VFIO doesn't tell what it has.
    #[error("{name} can't be assigned: VFIO doesn't tell what it has")]
    Unknown {
        /// The function.
        name: String,
        /// What VFIO refused.
        #[source]
        source: IoctlError,
    },
    /// VFIO tells of it what can't be.
    #[error("{name} can't be assigned: VFIO describes no PCI function, but {info}")]
    Strange {
        /// The function.
        name: String,
        /// What VFIO tells.
        info: DeviceInfo,
    },
    /// Its configuration space isn't one that a guest can have.
    #[error("{name} can't be assigned")]
    Config {
        /// The function.
        name: String,
        /// Why not.
        #[source]
        source: ConfigError,
    },
    /// It has registers as no function can have them.
    #[error("{name} can't be assigned")]
    Bar {
        /// The function.
        name: String,
        /// Which, and why not.
        #[source]
        source: BarError,
    },
    /// Its line can't be handed to the guest.
    #[error("{name} can't be assigned: its interrupt line")]
    Irq {
        /// The function.
        name: String,
        /// Why not.
        #[source]
        source: IrqError,
    },
    /// It has message-signalled interrupts only, and the guest's interrupt controller takes none.
    #[error(
        "{name} can't be assigned: it has no interrupt line, and the guest's interrupt controller \
         takes no message-signalled interrupts"
    )]
    NoInterrupt {
        /// The function.
        name: String,
    },
    /// The host does something else to it, so that VFIO can't reset it.
    #[error("{name} can't be reset: the host holds it, as while it is unbound from its driver")]
    Held {
        /// The function.
        name: String,
        /// What VFIO refused.
        #[source]
        source: IoctlError,
    },
    /// VFIO couldn't reset it.
    #[error("{name} can't be reset")]
    Reset {
        /// The function.
        name: String,
        /// What VFIO refused.
        #[source]
        source: IoctlError,
    },
}

impl FunctionError {
    /// What mends it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some("dmesg has the driver's own words".to_owned()),
            Self::Config { source: ConfigError::HeaderType(_), .. } => {
                Some("name what is behind the bridge: strait device list".to_owned())
            }
            Self::Config { .. } => Some(
                "a function that answers with all ones is gone from its bus: see dmesg, and \
                 echo 1 > /sys/bus/pci/rescan"
                    .to_owned(),
            ),
            Self::Irq { source, .. } => source.help(),
            Self::NoInterrupt { .. } => {
                Some("--gic 3 on a host that has it: its ITS takes them".to_owned())
            }
            Self::Held { name, .. } => Some(format!(
                "once the host has let go of it: echo 1 > /sys/bus/pci/devices/{name}/reset (strait \
                 does so too before it gives it to another guest)"
            )),
            Self::Reset { name, .. } => Some(format!(
                "power-cycle the board, or let the guest have the device as it is: \
                 {name},reset=off"
            )),
            Self::Strange { .. } | Self::Bar { .. } => None,
        }
    }
}
