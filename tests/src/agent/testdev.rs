//! QEMU's PCI test device (docs/specs/pci-testdev.rst): it counts writes to its registers, in memory
//! and behind I/O ports.

use crate::CommandError;
use crate::noiommu::NoIommuDevice;

/// VFIO's region of the configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`), the command register,
/// and its bits for I/O and memory.
const CONFIG: u32 = 7;
const COMMAND: u64 = 4;
const DECODING: u8 = 0b11;

/// Of a register set: the test, where its register is, what it takes, how often that was written,
/// and its name.
const TEST: u64 = 0;
const OFFSET: u64 = 4;
const DATA: u64 = 8;
const WRITES: u64 = 12;
const NAME: u64 = 16;

/// Has each of the two BARs count `writes`.
pub(crate) fn run(name: &str, writes: u64) -> Result<(), CommandError> {
    let device = NoIommuDevice::open(name)?;
    let [command] = device.read(CONFIG, COMMAND)?;
    device.write(CONFIG, COMMAND, &[command | DECODING])?;
    for (region, kind) in [(0, "mmio"), (1, "portio")] {
        // The first test: without an eventfd of QEMU's.
        device.write(region, TEST, &[0])?;
        let called = text(&device, region)?;
        if called != format!("{kind}-no-eventfd") {
            return Err(format!("region {region} has the test {called:?}").into());
        }
        let offset = u64::from(number(&device, region, OFFSET)?);
        let data = device.read::<1>(region, DATA)?;
        for _ in 0..writes {
            device.write(region, offset, &data)?;
        }
        // Neither another value nor another place counts.
        device.write(region, offset, &[!data[0]])?;
        device.write(region, offset + 1, &data)?;
        let counted = number(&device, region, WRITES)?;
        if u64::from(counted) != writes {
            return Err(format!("region {region} counted {counted} of {writes} writes").into());
        }
        println!("{called}: {counted} writes");
    }
    Ok(())
}

/// Four bytes by an access each: the device answers by single bytes.
fn number(device: &NoIommuDevice, region: u32, offset: u64) -> Result<u32, CommandError> {
    let mut bytes = [0; 4];
    for (byte, at) in bytes.iter_mut().zip(offset..) {
        [*byte] = device.read(region, at)?;
    }
    Ok(u32::from_le_bytes(bytes))
}

fn text(device: &NoIommuDevice, region: u32) -> Result<String, CommandError> {
    let mut text = String::new();
    for offset in NAME..NAME + 32 {
        match device.read(region, offset)? {
            [0] => break,
            [byte] => text.push(char::from(byte)),
        }
    }
    Ok(text)
}
