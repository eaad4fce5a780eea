//! Configuration space: the registers of a type 0 header, and accesses to registers kept as bytes.
//!
//! Offsets and bits are those of PCI Local Bus 3.0, 6.1 and 6.2, under the names of Linux'
//! `include/uapi/linux/pci_regs.h` without `PCI_`.

/// Command register (16 bits).
pub const COMMAND: u16 = 0x04;
/// I/O BARs are decoded.
pub const COMMAND_IO: u16 = 1 << 0;
/// Memory BARs are decoded.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may do DMA and send messages.
pub const COMMAND_MASTER: u16 = 1 << 2;

/// Status register (16 bits).
pub const STATUS: u16 = 0x06;
/// There is a list of capabilities.
pub const STATUS_CAP_LIST: u16 = 1 << 4;

/// Header type (8 bits).
pub const HEADER_TYPE: u16 = 0x0e;
/// The device has several functions.
pub const HEADER_TYPE_MFD: u8 = 0x80;

/// Base address register 0 (32 bits).
pub const BASE_ADDRESS_0: u16 = 0x10;
/// The expansion ROM's base address register (32 bits).
pub const ROM_ADDRESS: u16 = 0x30;
/// The offset of the first capability (8 bits).
pub const CAPABILITY_LIST: u16 = 0x34;
/// The interrupt pin (8 bits): 1 for INTA to 4 for INTD, 0 for none.
pub const INTERRUPT_PIN: u16 = 0x3d;

/// The size of the header in bytes. Without privileges sysfs shows nothing else.
pub const STD_HEADER_SIZEOF: u16 = 0x40;
/// The size of conventional configuration space in bytes: extended configuration space follows.
pub const CFG_SPACE_SIZE: u16 = 0x100;
/// The size of PCI Express configuration space in bytes.
pub const CFG_SPACE_EXP_SIZE: u16 = 0x1000;

/// Configuration space as it was read from a function. Beyond its end are all ones, as from a
/// function that isn't there.
#[derive(Clone, Debug, Default)]
pub struct ConfigSnapshot(Vec<u8>);

impl ConfigSnapshot {
    /// These bytes, 64 to 4096 of them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Its size in bytes.
    pub fn size(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// Whether all of `length` bytes at `offset` are within.
    pub fn contains(&self, offset: u16, length: u16) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size())
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: u16) -> u8 {
        self.0.get(usize::from(offset)).copied().unwrap_or(u8::MAX)
    }

    /// The little-endian number at `offset`.
    pub fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.u8(offset), self.u8(offset.saturating_add(1))])
    }

    /// The little-endian number at `offset`.
    pub fn u32(&self, offset: u16) -> u32 {
        let (low, high) = (self.u16(offset), self.u16(offset.saturating_add(2)));
        u32::from(high) << 16 | u32::from(low)
    }
}

/// Copies what lies at `offset` of `registers`; beyond their end is zero.
pub(super) fn read(registers: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| registers.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

/// The dword `old` after `data` was written `offset` bytes into it; what lies beyond it is ignored.
pub(super) fn merge(old: u32, offset: usize, data: &[u8]) -> u32 {
    let mut bytes = old.to_le_bytes();
    for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
        *to = *from;
    }
    u32::from_le_bytes(bytes)
}

/// `old` with the bits of `mask` from `new`.
pub(super) fn change(old: u32, new: u32, mask: u32) -> u32 {
    old & !mask | new & mask
}

/// The low and the high half of a 64-bit register.
pub(crate) fn halves(value: u64) -> [u32; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "halves are what is wanted")]
    [value as u32, (value >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_end_with_the_registers() {
        for (offset, expected) in [(0, [1, 2]), (1, [2, 3]), (2, [3, 0]), (3, [0, 0])] {
            let mut data = [0xff; 2];
            read(&[1, 2, 3], offset, &mut data);
            assert_eq!(data, expected);
        }
        let mut data = [0xff];
        read(&[1], u64::MAX, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn a_part_of_a_dword_is_written() {
        assert_eq!(merge(0x4433_2211, 0, &[0xaa]), 0x4433_22aa);
        assert_eq!(merge(0x4433_2211, 2, &[0xaa, 0xbb]), 0xbbaa_2211);
        assert_eq!(merge(0x4433_2211, 3, &[0xaa, 0xbb]), 0xaa33_2211);
        assert_eq!(merge(0x4433_2211, 4, &[0xaa]), 0x4433_2211);
        assert_eq!(change(0xffff_0000, 0x0f0f_0f0f, 0xff00_00ff), 0x0fff_000f);
    }
}
