//! The guest physical address map.
//!
//! ```text
//!            0  +----------------------------------+
//!               | free (firmware, later)           |
//!    0800_0000  +----------------------------------+
//!               | GIC distributor           64 KiB |
//!    0801_0000  | GICv2 CPU interface        8 KiB |
//!    0808_0000  | GICv3 ITS                128 KiB |
//!    080a_0000  | GICv3 redistributors             | 128 KiB a vCPU, 123 of them
//!    0900_0000  +----------------------------------+
//!               | serial, RTC, panic device        | 64 KiB apart
//!    0a00_0000  +----------------------------------+
//!               | virtio-mmio                      | 4 KiB a slot
//!    0c00_0000  +----------------------------------+
//!               | assigned platform devices        |
//!    2000_0000  +----------------------------------+
//!               | PCI: MMIO32, then ECAM           |
//!    4000_0000  +----------------------------------+
//!               | RAM                              | 3 GiB of it below 4 GiB
//!               ~                                  ~
//! ```
//!
//! RAM starts at 1 GiB so that a 32-bit DMA master reaches 3 GiB of it, and runs on without a
//! gap at 4 GiB. Everything else is below RAM.

use std::ops::Range;

/// GIC distributor: 64 KiB, of which GICv2 uses 4 KiB.
pub const GIC_DIST: Range<u64> = 0x0800_0000..0x0801_0000;

/// GICv2 CPU interface (`KVM_VGIC_V2_CPU_SIZE`).
pub const GICV2_CPU: Range<u64> = 0x0801_0000..0x0801_2000;

/// GICv3 interrupt translation service (`KVM_VGIC_V3_ITS_SIZE`).
pub const GIC_ITS: Range<u64> = 0x0808_0000..0x080a_0000;

/// GICv3 redistributors.
pub const GIC_REDIST: Range<u64> = 0x080a_0000..0x0900_0000;

/// One redistributor: its RD and SGI frames (`KVM_VGIC_V3_REDIST_SIZE`).
pub const GIC_REDIST_SIZE: u64 = 0x2_0000;

/// The vCPUs whose redistributors fit: 123.
pub const MAX_CPUS: u64 = (GIC_REDIST.end - GIC_REDIST.start) / GIC_REDIST_SIZE;

/// The serial console, an ns16550a.
pub const SERIAL: Range<u64> = 0x0900_0000..0x0900_1000;

/// The real-time clock, a PL031.
pub const RTC: Range<u64> = 0x0901_0000..0x0901_1000;

/// The panic device (pvpanic).
pub const PANIC: Range<u64> = 0x0902_0000..0x0902_1000;

/// virtio-mmio slots.
pub const VIRTIO: Range<u64> = 0x0a00_0000..0x0c00_0000;

/// Assigned platform devices.
pub const PLATFORM: Range<u64> = 0x0c00_0000..0x2000_0000;

/// PCI memory windows and ECAM.
pub const PCI: Range<u64> = 0x2000_0000..0x4000_0000;

/// Where RAM starts.
pub const RAM_START: u64 = 0x4000_0000;

/// Shared peripheral interrupts, as device trees count them (INTID minus 32).
pub mod spi {
    /// The serial console's.
    pub const SERIAL: u32 = 0;
    /// The real-time clock's.
    pub const RTC: u32 = 1;
    /// The first virtio-mmio slot's.
    pub const VIRTIO: u32 = 16;
    /// The first of the assigned devices'.
    pub const PLATFORM: u32 = 64;
    /// One past the last that a GIC can have (IHI 0069H, 2.2 "INTIDs": SPIs are 32 to 1019).
    pub const END: u32 = 988;
}

// The map is in order and nothing overlaps.
const _: () = {
    let windows =
        [GIC_DIST, GICV2_CPU, GIC_ITS, GIC_REDIST, SERIAL, RTC, PANIC, VIRTIO, PLATFORM, PCI];
    let mut i = 0;
    while i < windows.len() {
        assert!(windows[i].start < windows[i].end);
        let next = if i + 1 < windows.len() { windows[i + 1].start } else { RAM_START };
        assert!(windows[i].end <= next);
        i += 1;
    }
    assert!(RAM_START.is_multiple_of(0x4000_0000));
};
