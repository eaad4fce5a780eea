//! Why a device can't be exported.

use boot::help::Help;

use super::super::node::alias::AliasTaken;

/// Why a device's node can't be given to another VMM.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Where its registers are isn't known.
    #[error("{name} can't be exported: where its region {index} is on the host isn't known: {why}")]
    Address {
        /// The device.
        name: String,
        /// The region.
        index: usize,
        /// Why not.
        why: String,
    },
    /// One of its interrupts isn't an SPI.
    #[error(
        "{name} can't be exported: its interrupt {index} goes to {controller}, and Xen gives guests \
         those of the interrupt controller of the CPUs alone"
    )]
    Interrupt {
        /// The device.
        name: String,
        /// The interrupt.
        index: usize,
        /// The path of its controller.
        controller: String,
    },
    /// Its registers don't fit where QEMU has devices of the host.
    #[error(
        "{name} can't be exported: its region {index} of {size:#x} bytes doesn't fit into the 32 MiB \
         that QEMU's virt board has for devices of the host"
    )]
    Full {
        /// The device.
        name: String,
        /// The region.
        index: usize,
        /// Its size in bytes.
        size: u64,
    },
    /// An address in the guest that its pages can't have.
    #[error(
        "{name} can't be exported: {gpa:#x} can't be the address of its region {index}, which is at \
         {start:#x} on the host: Xen maps whole pages"
    )]
    Misaligned {
        /// The device.
        name: String,
        /// The region.
        index: usize,
        /// The address that was asked for (GPA).
        gpa: u64,
        /// Where it is on the host, by physical address.
        start: u64,
    },
    /// Two devices have the same alias.
    #[error(transparent)]
    Alias(#[from] AliasTaken),
}

impl Help for ExportError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Misaligned { start, .. } => {
                let offset = start & 0xfff;
                Some(format!("an address that ends in {offset:03x}: addr=0x10000{offset:03x}"))
            }
            Self::Full { .. } => Some("addr=host, or an address: addr=0x10000000".into()),
            Self::Alias(_) => Some("another name: alias=serial3".into()),
            Self::Address { .. } | Self::Interrupt { .. } => None,
        }
    }
}
