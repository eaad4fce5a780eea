//! What is known of PCI functions: the names of registers, and how to have some do DMA, to see what they are
//! kept from.

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use super::{edu, nvme, test_engine};
use crate::pci::ConfigSnapshot;
use crate::vfio::register_table::RegisterTable;
use crate::vfio::selftest::{Isolation, SelfTest, SelfTestError};

/// `PCI_COMMAND`, and its bits for memory and bus mastering, and against INTx (PCI Local Bus
/// Specification 3.0, 6.2.2).
const COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: u16 = 0b110;
const NO_INTX: u16 = 1 << 10;

/// The header of configuration space, as a binding's text is (PCI Local Bus Specification 3.0, 6.1 to 6.2.5;
/// names as in Linux' include/uapi/linux/pci_regs.h).
pub(super) const HEADER: &str = "\
000/16 PCI_VENDOR_ID
002/16 PCI_DEVICE_ID
004/16 PCI_COMMAND IO=0 MEMORY=1 MASTER=2 INTX_DISABLE=10
006/16 PCI_STATUS INTERRUPT=3 CAP_LIST=4
008 PCI_CLASS_REVISION REVISION=7:0 CLASS=31:8
00c/8 PCI_CACHE_LINE_SIZE
00d/8 PCI_LATENCY_TIMER
00e/8 PCI_HEADER_TYPE
010*6+4 PCI_BASE_ADDRESS_
02c/16 PCI_SUBSYSTEM_VENDOR_ID
02e/16 PCI_SUBSYSTEM_ID
030 PCI_ROM_ADDRESS ENABLE=0
034/8 PCI_CAPABILITY_LIST
03c/8 PCI_INTERRUPT_LINE
03d/8 PCI_INTERRUPT_PIN
";

/// The registers of a function with this configuration space, as far as they are known: of its header, and of
/// its first BAR.
#[cold]
pub fn registers(config: &ConfigSnapshot) -> RegisterTable {
    let class = [0x0b, 0x0a, 0x09].map(|offset| config.u8(offset));
    let own = if class == nvme::CLASS { nvme::REGISTERS } else { "" };
    with_header(RegisterTable::parse(own))
}

/// These registers of a function, and those of its header.
#[cold]
pub fn with_header(own: RegisterTable) -> RegisterTable {
    own.with(VFIO_PCI_CONFIG_REGION_INDEX, HEADER)
}

/// What has a function try to read and to write what isn't its.
type Isolate = fn(&mut SelfTest) -> Result<Isolation, SelfTestError>;

/// The verdict on a function's isolation, if it is one of those.
///
/// # Errors
///
/// The host refuses something without which nothing can be tested.
#[cold]
pub(super) fn isolation(test: &mut SelfTest) -> Result<Option<Isolation>, SelfTestError> {
    let calls = test.calls().clone();
    let Ok(config) = calls.region_info(VFIO_PCI_CONFIG_REGION_INDEX) else { return Ok(None) };
    let mut header = [0; 12];
    if calls.read(&config, 0, &mut header).is_err() {
        return Ok(None);
    }
    let Some(isolate) = by_header(&header) else { return Ok(None) };
    let [.., c0, c1, _, _, _, _, _, _] = header;
    let command = u16::from_le_bytes([c0, c1]);
    let on = command | MEMORY_AND_MASTER | NO_INTX;
    calls.write(&config, COMMAND, &on.to_le_bytes()).map_err(SelfTestError::Config)?;
    let verdict = isolate(test);
    // Nobody should find it turned on; what it does is over.
    let off = calls.write(&config, COMMAND, &command.to_le_bytes());
    test.unmap_all();
    let verdict = verdict?;
    off.map_err(SelfTestError::Config)?;
    Ok(Some(verdict))
}

/// What is known of a function with this header: its vendor and device, and its class.
fn by_header(header: &[u8; 12]) -> Option<Isolate> {
    let [v0, v1, d0, d1, _, _, _, _, _, interface, sub, base] = *header;
    match [v0, v1, d0, d1] {
        edu::IDENTITY => Some(edu::isolation),
        test_engine::IDENTITY => Some(test_engine::isolation),
        _ => ([base, sub, interface] == nvme::CLASS).then_some(nvme::isolation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_known_by_their_header() {
        let edu = [0x34, 0x12, 0xe8, 0x11, 0, 0, 0, 0, 0, 0, 0xff, 0];
        let nvme = [0x36, 0x1b, 0x10, 0, 0, 0, 0, 0, 2, 2, 8, 1];
        let sata = [0x36, 0x1b, 0x10, 0, 0, 0, 0, 0, 2, 1, 6, 1];
        let engine = [0xb5, 0x13, 0x80, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0];
        assert!(by_header(&edu).is_some());
        assert!(by_header(&engine).is_some());
        assert!(by_header(&nvme).is_some());
        assert!(by_header(&sata).is_none());
        assert!(by_header(&[0xff; 12]).is_none());
    }

    #[test]
    fn the_registers_of_a_function_are_its_own_and_those_of_its_header() {
        let function = |class: &[u8]| {
            let mut bytes = vec![0; 64];
            bytes.splice(9..12, class.iter().copied());
            registers(&ConfigSnapshot::new(bytes))
        };
        let places = |table: &RegisterTable, name| table.find(name);
        for (class, own) in [([2, 8, 1], vec![(0, 0x14..0x18)]), ([1, 6, 1], vec![])] {
            let table = function(&class);
            assert_eq!(places(&table, "CC"), own);
            let command = [(VFIO_PCI_CONFIG_REGION_INDEX, 4..6)];
            assert_eq!(places(&table, "PCI_COMMAND"), command);
        }
        // One that a person has named them for.
        let table = with_header(RegisterTable::parse("014 MINE\n"));
        assert_eq!(places(&table, "MINE"), [(0, 0x14..0x18)]);
        assert_eq!(
            places(&table, "PCI_BASE_ADDRESS_5"),
            [(VFIO_PCI_CONFIG_REGION_INDEX, 0x24..0x28)]
        );
    }
}
