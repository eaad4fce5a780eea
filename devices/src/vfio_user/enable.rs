//! Turning messages on and off in the server's configuration space.
//!
//! For a host's function VFIO's kernel driver does so itself when it is given eventfds
//! (`vfio_msi_enable`); a server is told by its device's own registers, and some deliver nothing
//! before (PCI Local Bus 3.0, 6.8).

use std::borrow::Cow;

use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSI_IRQ_INDEX};

use super::client::CallError;
use crate::ratelimit::LogLimit;

/// Where the status register is, its bit for a list of capabilities, and where that begins.
const STATUS: u64 = 0x06;
const LIST: u8 = 1 << 4;
const FIRST: u64 = 0x34;

/// A list with more goes in circles: each takes 4 bytes of those behind the header.
const MOST: usize = 48;

const MSI: u8 = 0x05;
const MSIX: u8 = 0x11;
/// The enable bits of the two, in their message control registers.
const MSI_ENABLE: u16 = 1 << 0;
const MSIX_ENABLE: u16 = 1 << 15;
/// How many vectors of MSI are enabled, as a power of two.
const MSI_VECTORS: u16 = 0b111 << 4;

/// A guest may turn messages on and off as often as it likes.
static LOG: LogLimit = LogLimit::new(Cow::Borrowed("vfio-user"));

/// A device's configuration space.
pub(super) trait Config {
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), CallError>;
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), CallError>;
}

/// Turns the messages of this index, MSI's or MSI-X's, on with so many vectors, or off. A device
/// without the capability, or whose server refuses, is left as it is.
pub(super) fn set(
    config: &mut dyn Config,
    index: u32,
    vectors: Option<usize>,
) -> Result<(), CallError> {
    match try_set(config, index, vectors) {
        Err(CallError::Refused(errno)) => {
            let what = "the server refuses their control register";
            LOG.debug(format_args!("messages {index}: {what}: {errno}"));
            Ok(())
        }
        result => result,
    }
}

fn try_set(config: &mut dyn Config, index: u32, vectors: Option<usize>) -> Result<(), CallError> {
    let msi = index == VFIO_PCI_MSI_IRQ_INDEX;
    let (id, enable) = if msi { (MSI, MSI_ENABLE) } else { (MSIX, MSIX_ENABLE) };
    let Some(capability) = find(config, id)? else { return Ok(()) };
    let (region, offset) = (VFIO_PCI_CONFIG_REGION_INDEX, capability.saturating_add(2));
    let mut bytes = [0; 2];
    config.read(region, offset, &mut bytes)?;
    let before = u16::from_le_bytes(bytes);
    let mut control = if vectors.is_some() { before | enable } else { before & !enable };
    if let Some(count) = vectors.filter(|_| msi) {
        let power = count.max(1).next_power_of_two().trailing_zeros().min(5);
        let power = u16::try_from(power).unwrap_or(0);
        control = control & !MSI_VECTORS | power << 4;
    }
    if control == before {
        return Ok(());
    }
    config.write(region, offset, &control.to_le_bytes())
}

/// Where the capability with this identity is.
fn find(config: &mut dyn Config, id: u8) -> Result<Option<u64>, CallError> {
    let mut byte = |offset| {
        let mut byte = [0];
        config.read(VFIO_PCI_CONFIG_REGION_INDEX, offset, &mut byte).map(|()| byte[0])
    };
    if byte(STATUS)? & LIST == 0 {
        return Ok(None);
    }
    let mut next = byte(FIRST)? & !3;
    for _ in 0..MOST {
        let at = u64::from(next);
        if next == 0 {
            break;
        }
        if byte(at)? == id {
            return Ok(Some(at));
        }
        next = byte(at.saturating_add(1))? & !3;
    }
    Ok(None)
}
