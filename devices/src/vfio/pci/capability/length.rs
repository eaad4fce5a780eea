//! The lengths of capabilities.
//!
//! They are VFIO's (Linux: `drivers/vfio/pci/vfio_pci_config.c`), which guards no byte behind a
//! capability: there a guest would read and write the hardware. The sources are those of
//! [`super`]'s layouts; the names in brackets are `include/uapi/linux/pci_regs.h`'s.

use super::{
    ADVANCED_FEATURES, CapabilityId, EXPRESS, EXPRESS_FLAGS, MSI, MSIX, PM, ROOT_COMPLEX_ENDPOINT,
};
use crate::pci::{ConfigSnapshot, Msi, Msix};
use CapabilityId::{Extended, Standard};

/// The least that a capability has: its number and the next one's place.
const STANDARD_HEADER: u16 = 2;
const EXTENDED_HEADER: u16 = 4;

/// The length in bytes of the capability of this number at `offset` of a function's configuration
/// space. Of one whose length isn't known it is the header's.
pub(super) fn length(id: CapabilityId, config: &ConfigSnapshot, offset: u16) -> u16 {
    let byte = |at: u16| config.u8(offset.saturating_add(at));
    let word = |at: u16| config.u16(offset.saturating_add(at));
    let dword = |at: u16| config.u32(offset.saturating_add(at));
    // The upper 12 bits of a vendor's header (7.9.5, 7.9.6).
    let of_vendor = || word(6) >> 4;
    let known = match id {
        PM => 8,
        // Vital product data: its address and its data register (PCI 3.0, appendix I).
        Standard(0x03) => 8,
        MSI => Msi::new(dword(0), 0).size(),
        // PCI-X: 8, and with error correction 24 (PCI-X 2.0, 7.2; the version in bits 13:12).
        Standard(0x07) => {
            if word(2) >> 12 & 0b11 == 0 {
                8
            } else {
                24
            }
        }
        // A vendor's: its third byte (PCI 3.0, appendix H).
        Standard(0x09) => byte(2).into(),
        // Debug port: where the registers are (EHCI 1.0, C.2).
        Standard(0x0a) => 4,
        EXPRESS => express(byte(EXPRESS_FLAGS)),
        MSIX => Msix::SIZE,
        // SATA: with the index and data pair in configuration space 16 (Serial ATA AHCI 1.3, 2.4).
        Standard(0x12) if byte(4) & 0xf == 0xf => 16,
        Standard(0x12) => 8,
        ADVANCED_FEATURES => 6,
        // Advanced error reporting: what follows is a root port's (PCI_ERR_ROOT_COMMAND).
        Extended(0x01) => 0x2c,
        Extended(0x02 | 0x08 | 0x09) => virtual_channels(dword(4), dword(8)),
        Extended(0x03) => 12,
        Extended(0x04) => 16,
        Extended(0x0b | 0x23) => of_vendor(),
        // Dynamic power allocation: a byte for each substate, of which byte 4 has the last one's
        // number (7.9.12).
        Extended(0x16) => 16 + u16::from(byte(4) & 0x1f) + 1,
        Standard(_) | Extended(_) => 0,
    };
    let least = if matches!(id, Standard(_)) { STANDARD_HEADER } else { EXTENDED_HEADER };
    known.max(least)
}

/// PCI Express, by the low byte of its flags: up to the link registers of an endpoint, and without
/// them if it is integrated in the root complex; from version 2 on, those of the second kind too (7.5.3).
fn express(flags: u8) -> u16 {
    match (flags & 0xf, flags >> 4) {
        (0 | 1, ROOT_COMPLEX_ENDPOINT) => 0x0c,
        (0 | 1, _) => 0x14,
        (_, ROOT_COMPLEX_ENDPOINT) => 0x2c,
        _ => 0x34,
    }
}

/// Virtual channels, by the two port capability registers: 16 bytes, 12 for each channel, and the
/// table by which they take turns (7.9.1).
fn virtual_channels(first: u32, second: u32) -> u16 {
    const BASE: u16 = 0x10;
    const EACH: u16 = 0x0c;
    let [extended, ..] = (first & 0b111).to_le_bytes();
    let channels = BASE + EACH * (1 + u16::from(extended));
    // A half byte for each phase; the table begins at a multiple of 16.
    let phases = match second & 0b1110 {
        0b1000.. => 128,
        0b0100.. => 64,
        0b0010.. => 32,
        _ => return channels,
    };
    channels.next_multiple_of(16) + phases / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of a capability whose bytes, from its third on, are these.
    fn of(id: CapabilityId, bytes: &[u8]) -> u16 {
        let offset = 0x140;
        let mut image = vec![0; offset + 2];
        image.extend_from_slice(bytes);
        image.resize(4096, 0);
        length(id, &ConfigSnapshot::new(image), u16::try_from(offset).unwrap())
    }

    #[test]
    fn lengths_are_those_of_the_specifications() {
        for (control, expected) in [(0, 10), (0x80, 14), (0x100, 20), (0x180, 24)] {
            assert_eq!(of(MSI, &u16::to_le_bytes(control)), expected);
        }
        // Version and type: an endpoint, one of the root complex, a legacy endpoint.
        for (flags, expected) in
            [(0x01, 0x14), (0x91, 0x0c), (0x02, 0x34), (0x92, 0x2c), (0x12, 0x34)]
        {
            assert_eq!(of(EXPRESS, &[flags, 0]), expected, "{flags:#x}");
        }
        assert_eq!((of(PM, &[]), of(MSIX, &[0xff, 7]), of(ADVANCED_FEATURES, &[])), (8, 12, 6));
        assert_eq!((of(Standard(7), &[0, 0x0f]), of(Standard(7), &[0, 0x10])), (8, 24));
        assert_eq!((of(Standard(0x12), &[0, 0, 0xf]), of(Standard(0x12), &[0, 0, 4])), (16, 8));
        assert_eq!((of(Standard(9), &[0x18]), of(Standard(9), &[0])), (0x18, 2));
        assert_eq!(of(Standard(9), &[0xff]), 0xff);
        for vendor in [Extended(0x0b), Extended(0x23)] {
            assert_eq!(of(vendor, &[0, 0, 0x36, 0x1b, 0x01, 0x02]), 0x20);
            assert_eq!(of(vendor, &[0; 6]), 4);
            assert_eq!(of(vendor, &[0xff; 6]), 0xfff);
        }
        assert_eq!(of(Extended(0x16), &[0, 0, 0x03]), 20);
        assert_eq!(of(Extended(0x01), &[0xff; 8]), 0x2c);
        // One channel, eight, and with tables of 32 and 128 phases.
        let channels =
            |extended: u8, phases: u8| of(Extended(2), &[0, 0, extended, 0, 0, 0, phases]);
        assert_eq!((channels(0, 0), channels(7, 1)), (0x1c, 0x70));
        assert_eq!((channels(0, 2), channels(1, 8)), (0x20 + 16, 0x30 + 64));
        assert_eq!((of(Standard(0x77), &[]), of(Extended(0x77), &[])), (2, 4));
    }
}
