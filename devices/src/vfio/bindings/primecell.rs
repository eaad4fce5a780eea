//! What Arm's PrimeCell devices have in common: identification registers, `arm,primecell`, and
//! `apb_pclk`, the clock of the register interface, without which Linux' AMBA bus takes no device.
//!
//! Documentation/devicetree/bindings/arm/primecell.yaml; Linux drivers/amba/bus.c.

use super::super::node::{Clock, NodeBuilder};
use super::super::quiesce::QuiesceError;
use super::super::region::{AccessError, RegisterAccess};

/// Peripheral Identification Registers 0 to 3, a byte each: offsets in bytes within the first page.
const PERIPH_ID: [u64; 4] = [0xfe0, 0xfe4, 0xfe8, 0xfec];

/// The name of the register interface's clock.
pub(super) const APB_PCLK: &str = "apb_pclk";

/// The rate in Hz of that clock where it isn't known. The AMBA bus doesn't ask: it switches the
/// clock on and off, which in a guest does nothing.
pub(super) const DEFAULT_RATE: u32 = 24_000_000;

/// Checks that the device is this part by Arm, called `expected`. To be done before anything is
/// written: to another device, offsets mean something else.
///
/// # Errors
///
/// It is another, or its registers can't be read.
pub(super) fn check_part(
    registers: &dyn RegisterAccess,
    part: u32,
    expected: &'static str,
) -> Result<(), QuiesceError> {
    let found = identification(registers)?;
    if is_part(found, part) { Ok(()) } else { Err(QuiesceError::WrongDevice { expected, found }) }
}

/// The device's part number in bits 11:0, its designer in 19:12, its revision and configuration
/// above.
fn identification(registers: &dyn RegisterAccess) -> Result<u32, AccessError> {
    let mut id = [0; 4];
    for (byte, offset) in id.iter_mut().zip(PERIPH_ID) {
        [*byte, ..] = registers.read32(offset)?.to_le_bytes();
    }
    Ok(u32::from_le_bytes(id))
}

/// Whether an [`identification`] is that of a part by Arm (designer 0x41), of any revision.
fn is_part(identification: u32, part: u32) -> bool {
    identification & 0x000f_ffff == 0x0004_1000 | part
}

/// Adds `arm,primecell`, by which the guest's kernel puts the device on its AMBA bus, where the
/// drivers are. A host that has the device on its platform bus, for vfio-platform, leaves it out.
pub(super) fn add_primecell(builder: &mut NodeBuilder) {
    let primecell = "arm,primecell";
    if !builder.compatible.iter().any(|string| string == primecell) {
        builder.compatible.push(primecell.to_owned());
    }
}

/// Whether one of the clocks is the register interface's.
pub(super) fn has_apb_clock(clocks: &[Clock]) -> bool {
    clocks.iter().any(|clock| clock.name.as_deref() == Some(APB_PCLK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_part_number_and_designer_are_compared() {
        for (id, part, expected) in [
            (0x0004_1330, 0x330, true),
            (0x0034_1330, 0x330, true),
            (0x0004_1080, 0x330, false),
            (0x0014_1011, 0x011, true),
            (0x0018_0011, 0x011, false),
            (0, 0, false),
        ] {
            assert_eq!(is_part(id, part), expected, "{id:#x}");
        }
    }
}
