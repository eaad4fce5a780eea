//! The guest physical address map.
//!
//! ```text
//!            0  +----------------------------------+
//!               | flash: firmware           64 MiB |
//!    0400_0000  | flash: its variables      64 MiB |
//!    0800_0000  +----------------------------------+
//!               | GIC distributor           64 KiB |
//!    0801_0000  | GICv2 CPU interface        8 KiB |
//!    0802_0000  | GICv2m frame               4 KiB |
//!    0808_0000  | GICv3 ITS                128 KiB |
//!    080a_0000  | GICv3 redistributors             | 128 KiB a vCPU, 123 of them
//!    0900_0000  +----------------------------------+
//!               | serial, RTC, pvpanic, GPIO, SCMI | 64 KiB apart
//!    0c00_0000  +----------------------------------+
//!               | assigned platform devices        |
//!    2000_0000  +----------------------------------+
//!               | PCI: MMIO32                      |
//!    3f00_0000  | PCI: I/O                  64 KiB |
//!    3f80_0000  | PCI: ECAM                        | 1 MiB a bus, 8 of them
//!    4000_0000  +----------------------------------+
//!               | RAM                              | 3 GiB of it below 4 GiB
//!               ~                                  ~
//!  the top half +----------------------------------+
//!               | PCI: MMIO64                      | or less, where RAM reaches into that half
//!               +----------------------------------+
//! ```
//!
//! RAM starts at 1 GiB so that a 32-bit DMA master reaches 3 GiB of it, and runs on without a
//! gap at 4 GiB. Everything else is below RAM, but for 64-bit BARs of PCI functions.

use std::ops::Range;

/// The flash that firmware is in, and is entered at the start of. As on QEMU's `virt`, for which
/// firmware is linked (docs/system/arm/virt.rst, "Flash"; `base_memmap` of hw/arm/virt.c).
pub const FIRMWARE: Range<u64> = 0x0000_0000..0x0400_0000;

/// The flash that firmware keeps its variables in.
pub const VARIABLES: Range<u64> = 0x0400_0000..0x0800_0000;

/// GIC distributor: 64 KiB, of which GICv2 uses 4 KiB.
pub const GIC_DIST: Range<u64> = 0x0800_0000..0x0801_0000;

/// GICv2 CPU interface (`KVM_VGIC_V2_CPU_SIZE`).
pub const GICV2_CPU: Range<u64> = 0x0801_0000..0x0801_2000;

/// GICv2m frame, which takes message-signalled interrupts to a GICv2.
pub const GICV2M: Range<u64> = 0x0802_0000..0x0802_1000;

/// GICv3 interrupt translation service (`KVM_VGIC_V3_ITS_SIZE`).
pub const GIC_ITS: Range<u64> = 0x0808_0000..0x080a_0000;

/// GICv3 redistributors.
pub const GIC_REDIST: Range<u64> = 0x080a_0000..0x0900_0000;

/// One redistributor: its RD and SGI frames (`KVM_VGIC_V3_REDIST_SIZE`).
pub const GIC_REDIST_SIZE: u64 = 0x2_0000;

/// The vCPUs whose redistributors fit: 123.
pub const MAX_GICV3_CPUS: u64 = (GIC_REDIST.end - GIC_REDIST.start) / GIC_REDIST_SIZE;

/// The serial console, an ns16550a.
pub const SERIAL: Range<u64> = 0x0900_0000..0x0900_1000;

/// The real-time clock, a PL031.
pub const RTC: Range<u64> = 0x0901_0000..0x0901_1000;

/// The paravirtual panic device, pvpanic.
pub const PVPANIC: Range<u64> = 0x0902_0000..0x0902_1000;

/// The GPIO controller with the power button, a PL061.
pub const GPIO: Range<u64> = 0x0903_0000..0x0903_1000;

/// The memory that messages of SCMI are in.
pub const SCMI: Range<u64> = 0x0904_0000..0x0904_1000;

/// Assigned platform devices.
pub const PLATFORM: Range<u64> = 0x0c00_0000..0x2000_0000;

/// PCI memory for 32-bit BARs.
pub const PCI_MMIO32: Range<u64> = 0x2000_0000..0x3f00_0000;

/// PCI I/O ports.
pub const PCI_IO: Range<u64> = 0x3f00_0000..0x3f01_0000;

/// PCI configuration space of as many buses as there can be.
pub const PCI_ECAM: Range<u64> = 0x3f80_0000..0x4000_0000;

/// The configuration space of a bus, in bytes (PCI Express Base 5.0, 7.2.2).
const PCI_BUS_SIZE: u64 = 1 << 20;

/// PCI configuration space of this number of buses, of at most 8.
pub fn pci_ecam(buses: u8) -> Range<u64> {
    let Range { start, end } = PCI_ECAM;
    start..start.saturating_add(PCI_BUS_SIZE.saturating_mul(buses.into())).min(end)
}

/// The smallest window for 64-bit BARs that is worth having, in bytes.
const MIN_PCI_MMIO64_SIZE: u64 = 4 << 30;

/// PCI memory for 64-bit BARs, in a guest with `bits` bits of physical address in which nothing
/// is at or above `above` (GPA): the top half, or the top quarter, and so on, whatever is free of
/// other things. `None` where not even 4 GiB are.
///
/// The largest BAR that fits is as large as the window, which is aligned to its size.
pub fn pci_mmio64(above: u64, bits: u32) -> Option<Range<u64>> {
    let end = 1u64.checked_shl(bits)?;
    let sizes = std::iter::successors(Some(end / 2), |size| Some(size / 2));
    let free =
        sizes.take_while(|size| *size >= MIN_PCI_MMIO64_SIZE).find(|size| end - size >= above);
    free.map(|size| end - size..end)
}

/// Where RAM starts.
pub const RAM_START: u64 = 0x4000_0000;

/// Shared peripheral interrupts, as device trees count them (INTID minus 32).
pub mod spi {
    /// The serial console's.
    pub const SERIAL: u32 = 0;
    /// The real-time clock's.
    pub const RTC: u32 = 1;
    /// The GPIO controller's, as on QEMU's `virt`.
    pub const GPIO: u32 = 7;
    /// The first of the assigned devices'.
    pub const PLATFORM: u32 = 64;
    /// One past the last that a GIC of KVM's can have: it counts interrupts in multiples of 32, and
    /// refuses 1024, where INTIDs of 1020 to 1023 are not SPIs (Linux, `vgic-kvm-device.c`,
    /// KVM_DEV_ARM_VGIC_GRP_NR_IRQS: at most 1023; IHI 0069H, 2.2 "INTIDs").
    pub const END: u32 = 960;
}

// The map is in order and nothing overlaps.
const _: () = {
    let mut windows: &[Range<u64>] = &[
        FIRMWARE, VARIABLES, GIC_DIST, GICV2_CPU, GICV2M, GIC_ITS, GIC_REDIST, SERIAL, RTC,
        PVPANIC, GPIO, SCMI, PLATFORM, PCI_MMIO32, PCI_IO, PCI_ECAM,
    ];
    while let [window, above @ ..] = windows {
        let next = if let [next, ..] = above { next.start } else { RAM_START };
        assert!(window.start < window.end && window.end <= next);
        windows = above;
    }
    assert!(RAM_START.is_multiple_of(0x4000_0000));
    // As many interrupts as KVM takes, with the 32 that are private to each CPU.
    assert!((32 + spi::END).next_multiple_of(32) < 1024);
    // PCI Express 3.0, 7.2.2: aligned to its size.
    assert!(PCI_ECAM.start.is_multiple_of(PCI_ECAM.end - PCI_ECAM.start));
    assert!(PCI_ECAM.end - PCI_ECAM.start == 8 * PCI_BUS_SIZE);
};

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn bars_of_64_bits_are_at_the_top_where_nothing_else_is() {
        for (above, bits, expected) in [
            (2 * GIB, 40, Some(512 * GIB..1024 * GIB)),
            (512 * GIB, 40, Some(512 * GIB..1024 * GIB)),
            (512 * GIB + 1, 40, Some(768 * GIB..1024 * GIB)),
            (1020 * GIB, 40, Some(1020 * GIB..1024 * GIB)),
            (1020 * GIB + 1, 40, None),
            (1024 * GIB, 40, None),
            (2 * GIB, 36, Some(32 * GIB..64 * GIB)),
            (40 * GIB, 36, Some(48 * GIB..64 * GIB)),
            (2 * GIB, 33, Some(4 * GIB..8 * GIB)),
            (2 * GIB, 32, None),
            (1500 * GIB, 41, Some(1536 * GIB..2048 * GIB)),
            (u64::MAX, 52, None),
            (0, 64, None),
        ] {
            let range = pci_mmio64(above, bits);
            assert_eq!(range, expected, "{above:#x} {bits}");
            if let Some(range) = range {
                assert!(range.start.is_multiple_of(range.end - range.start));
            }
        }
    }
}
