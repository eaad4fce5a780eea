//! Why a device couldn't be tested at all.

use std::io;

use boot::help::Help;

use super::super::assign::AssignError;
use super::super::quiesce::QuiesceError;
use super::super::region::AccessError;
use super::super::remedy;
use super::super::uapi::IoctlError;

/// Why a device couldn't be tested.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// It can't be opened.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// VFIO doesn't describe it.
    #[error("VFIO doesn't describe the device")]
    Info(#[source] IoctlError),
    /// A step with an interrupt, such as `arm`, failed.
    #[error("can't {0} interrupt {1}")]
    Interrupt(&'static str, u32, #[source] io::Error),
    /// There is no memory for a buffer of so many bytes.
    #[error("the host can't allocate {0} bytes of memory")]
    NoMemory(u64, #[source] io::Error),
    /// There is no IOVA for a buffer of so many bytes.
    #[error("the IOMMU has no {0:#x} free bytes of IOVA below 4 GiB")]
    NoIova(u64),
    /// A buffer can't be mapped.
    #[error("{size:#x} bytes of memory can't be mapped at IOVA {iova:#x}")]
    Map {
        /// Its first IOVA.
        iova: u64,
        /// How many bytes.
        size: u64,
        /// What the kernel refused.
        #[source]
        source: IoctlError,
    },
    /// Its registers can't be reached.
    #[error("the device's registers can't be reached")]
    Access(#[from] AccessError),
    /// A PCI function's configuration space can't be written.
    #[error("the function's configuration space can't be written")]
    Config(#[source] io::Error),
    /// It can't be stopped.
    #[error("the device can't be stopped")]
    Quiesce(#[from] QuiesceError),
}

impl Help for SelfTestError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Assign(error) => error.help(),
            Self::Interrupt(..) => Some("/proc/interrupts shows who else has the line".to_owned()),
            Self::Map { source, .. } if source.is(libc::ENOMEM) => {
                Some("ulimit -l unlimited, or run it as root".to_owned())
            }
            Self::NoMemory(..) => Some("free some: `free -m`".to_owned()),
            Self::Quiesce(_) => Some("power-cycle the board".to_owned()),
            Self::Info(_) | Self::Config(_) | Self::Map { .. } => {
                Some(remedy::KERNEL_LOG.to_owned())
            }
            Self::NoIova(_) | Self::Access(_) => None,
        }
    }
}
