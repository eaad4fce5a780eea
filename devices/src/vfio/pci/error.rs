//! Why a PCI function can't be assigned, or reset.

use std::error::Error;
use std::fmt;

use super::super::irq::IrqError;
use super::super::remedy;
use super::super::uapi::{DeviceInfo, IoctlError};
use super::config::ConfigError;
use crate::pci::BarError;
use boot::help::Help;

/// An error of the function `name`.
#[derive(Debug)]
pub struct FunctionError {
    /// The function's name.
    pub name: String,
    /// What went wrong.
    pub kind: FunctionErrorKind,
}

impl fmt::Display for FunctionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.kind)
    }
}

impl Error for FunctionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}

/// What went wrong with a function.
#[derive(Debug, thiserror::Error)]
pub enum FunctionErrorKind {
    /// VFIO doesn't describe it.
    #[error("can't be assigned: VFIO doesn't tell what it has")]
    Info(#[source] IoctlError),
    /// VFIO describes another device.
    #[error("can't be assigned: VFIO describes no PCI function, but {0}")]
    NotPci(DeviceInfo),
    /// Its configuration space isn't one that a guest can have.
    #[error("can't be assigned")]
    Config(#[source] ConfigError),
    /// No function can have such BARs.
    #[error("can't be assigned")]
    Bar(#[source] BarError),
    /// Its interrupt line can't be connected.
    #[error("can't be assigned: its interrupt line")]
    Irq(#[source] IrqError),
    /// It has message-signalled interrupts only, and the guest's interrupt controller takes none.
    #[error(
        "can't be assigned: it has no interrupt line, and the guest's interrupt controller takes no \
         message-signalled interrupts"
    )]
    NoInterrupt,
    /// VFIO can't reset it now, as the host does something else to it.
    #[error("can't be reset: the host holds it, as while it is unbound from its driver")]
    Busy(#[source] IoctlError),
    /// VFIO couldn't reset it.
    #[error("can't be reset")]
    Reset(#[source] IoctlError),
    /// Its vfio-user server didn't reset it.
    #[error("can't be reset: its server refuses that")]
    ResetByServer(#[source] IoctlError),
}

impl Help for FunctionError {
    fn help(&self) -> Option<String> {
        let Self { name, kind } = self;
        match kind {
            FunctionErrorKind::Info(_) => Some(remedy::KERNEL_LOG.to_owned()),
            FunctionErrorKind::Config(ConfigError::HeaderType(_)) => {
                Some("name what is behind the bridge: strait device list".to_owned())
            }
            FunctionErrorKind::Config(_) => Some(
                "a function that answers with all ones is gone from its bus: see dmesg, and \
                 echo 1 > /sys/bus/pci/rescan"
                    .to_owned(),
            ),
            FunctionErrorKind::Irq(error) => error.help(),
            FunctionErrorKind::NoInterrupt => {
                Some("--gic 3 on a host that has it: its ITS takes them".to_owned())
            }
            FunctionErrorKind::Busy(_) => Some(format!(
                "once the host has let go of it: echo 1 > /sys/bus/pci/devices/{name}/reset (strait \
                 does so too before it gives it to another guest)"
            )),
            FunctionErrorKind::Reset(_) => Some(format!(
                "power-cycle the board, or let the guest have the device as it is: \
                 {name},reset=off"
            )),
            FunctionErrorKind::ResetByServer(_) => Some(format!(
                "{}, or let the guest have the device as it is: --vfio-user {name},reset=off",
                remedy::START_AGAIN
            )),
            FunctionErrorKind::NotPci(_) | FunctionErrorKind::Bar(_) => None,
        }
    }
}
