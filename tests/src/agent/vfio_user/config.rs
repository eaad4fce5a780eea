//! The configuration space of the served device (PCI Local Bus 3.0, chapter 6).

use super::{MEMORY_SIZE, REGISTERS_SIZE, TABLE_SIZE, VECTORS, VENDOR_DEVICE};

/// Its size in bytes.
pub(super) const SIZE: usize = 256;
const MSIX: usize = 0x40;

/// The configuration space: bytes, and which of their bits can be written.
pub(super) struct Config {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
}

impl Config {
    pub(super) fn new() -> Self {
        let mut config = Self { bytes: [0; SIZE], writable: [0; SIZE] };
        config.set(0x00, &VENDOR_DEVICE.to_le_bytes(), &[]);
        // Memory decoding, bus mastering, INTx off; a capability list.
        config.set(0x04, &[0, 0, 0x10, 0], &[0x06, 0x04]);
        // Of no class of its own.
        config.set(0x08, &[1, 0, 0, 0xff], &[]);
        config.bar(0, REGISTERS_SIZE, 0x0);
        config.bar(2, MEMORY_SIZE, 0xc);
        config.bar(4, TABLE_SIZE, 0x0);
        config.set(0x34, &[MSIX.to_le_bytes()[0]], &[]);
        // INTA.
        config.set(0x3c, &[0, 1], &[0xff]);
        let [low, high] = (VECTORS - 1).to_le_bytes();
        // Table at 0 of BAR 4, pending bits at half of it; enable and function mask can be written.
        config.set(MSIX, &[0x11, 0, low, high], &[0, 0, 0, 0xc0]);
        config.set(MSIX + 4, &4u32.to_le_bytes(), &[]);
        config.set(MSIX + 8, &(0x800u32 | 4).to_le_bytes(), &[]);
        config
    }

    fn set(&mut self, at: usize, bytes: &[u8], writable: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }

    fn bar(&mut self, index: usize, size: u64, flags: u8) {
        let mask = !(size - 1);
        let width = if flags & 4 != 0 { 8 } else { 4 };
        self.set(0x10 + 4 * index, &[flags], &mask.to_le_bytes()[..width]);
    }

    /// Whether MSI-X is on.
    pub(super) fn has_msix_on(&self) -> bool {
        self.bytes[MSIX + 3] & 0x80 != 0
    }

    /// Whether the line is off, by the command register.
    pub(super) fn has_line_off(&self) -> bool {
        self.bytes[5] & 0x04 != 0
    }

    /// Shows in the status register whether the line is asserted.
    pub(super) fn show_line(&mut self, asserted: bool) {
        self.bytes[6] = self.bytes[6] & !0x08 | u8::from(asserted) << 3;
    }

    pub(super) fn read(&self, offset: usize, data: &mut [u8]) -> Option<()> {
        data.copy_from_slice(self.bytes.get(offset..offset.checked_add(data.len())?)?);
        Some(())
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> Option<()> {
        let range = offset..offset.checked_add(data.len())?;
        let (bytes, masks) = (self.bytes.get_mut(range.clone())?, self.writable.get(range)?);
        for ((byte, mask), new) in bytes.iter_mut().zip(masks).zip(data) {
            *byte = *byte & !mask | new & mask;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn bars_tell_their_sizes() {
        let mut config = Config::new();
        for (at, expected) in
            [(0x10, 0xffff_f000u32), (0x18, 0xffff_c00c), (0x1c, u32::MAX), (0x14, 0)]
        {
            config.write(at, &[0xff; 4]).unwrap();
            let mut bytes = [0; 4];
            config.read(at, &mut bytes).unwrap();
            assert_eq!(u32::from_le_bytes(bytes), expected, "{at:#x}");
        }
        assert!(config.write(253, &[0; 4]).is_none());
    }
}
