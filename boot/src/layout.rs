//! Where kernel, device tree and initrd lie in the guest's RAM.
//!
//! ```text
//!  RAM base (2 MiB aligned)
//!  │← text_offset →│ kernel and its BSS │ DTB │ initrd │        free        │
//!                  ↑ load, entry        ↑ end aligned to 64 KiB           RAM end
//! ```
//!
//! The DTB lies right behind the kernel, so that of a small kernel's RAM one 2 MiB block is touched; in front
//! of a program that begins 2 MiB or more behind the base of RAM. Where nothing says how much RAM a program
//! takes behind its file, DTB and initrd are as far from it as can be:
//!
//! ```text
//!  │ raw binary │ its BSS, its stack …        │ initrd │ DTB │
//!  ↑ load, entry                                            ↑ RAM end, or what a kernel reaches
//! ```

use crate::help::Help;
use std::ops::Range;

use thiserror::Error;

use crate::size::{GIB, KIB, MIB, Size};

/// The largest device tree an arm64 kernel takes (Documentation/arch/arm64/booting.rst, 2).
pub const MAX_DTB_SIZE: u64 = 2 * MIB;

/// The largest page of an arm64 kernel. Everything starts at a multiple of it, because the kernel
/// frees the initrd in whole pages (`free_initrd_mem`): a DTB in the same page would go with it.
const MAX_PAGE_SIZE: u64 = 64 * KIB;

/// An initrd must lie in a window of this size that starts at a multiple of 1 GiB and covers the
/// kernel (booting.rst, 4).
const INITRD_WINDOW: u64 = 32 * GIB;

/// Guest RAM that boot data may lie in: one contiguous range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// First address.
    pub base: u64,
    /// Size in bytes.
    pub size: u64,
}

impl Ram {
    /// The first address behind it; RAM that would exceed 64 bits ends there.
    pub fn end(self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

/// Where a kernel lies in guest RAM: guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where its first byte is loaded.
    pub load: u64,
    /// Where the boot CPU enters it.
    pub entry: u64,
    /// The first address behind its BSS: nothing may be put below.
    pub end: u64,
    /// Whether it may take more than that: a BSS or a stack that no header tells of.
    pub open_end: bool,
}

/// Where everything the guest boots from lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootLayout {
    /// The kernel.
    pub kernel: Placement,
    /// The device tree's address.
    pub dtb: u64,
    /// The initrd, where there is one.
    pub initrd: Option<Range<u64>>,
}

impl BootLayout {
    /// That of firmware, which is in no RAM and entered at the start of its flash (GPA): it looks for the
    /// device tree at the base of RAM, as on QEMU's `virt` (docs/system/arm/virt.rst, "Hardware configuration
    /// information for bare-metal programming").
    ///
    /// # Errors
    ///
    /// RAM is too small for a device tree.
    pub fn of_firmware(ram: Ram, flash: u64) -> Result<Self, LayoutError> {
        let kernel = Placement { load: flash, entry: flash, end: flash, open_end: false };
        if ram.size < MAX_DTB_SIZE {
            let (size, needed) = (MAX_DTB_SIZE, MAX_DTB_SIZE);
            return Err(LayoutError::Dtb { size, ram: ram.size, free: ram.size, needed });
        }
        Ok(Self { kernel, dtb: ram.base, initrd: None })
    }
}

/// What doesn't fit.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum LayoutError {
    #[error(
        "the kernel at {:#x}-{:#x} lies outside RAM at {:#x}-{:#x}",
        kernel.load, kernel.end, ram.base, ram.end()
    )]
    Kernel { kernel: Placement, ram: Ram },
    #[error("the device tree has {:#}; an arm64 kernel takes {:#}", Size(*size), Size(MAX_DTB_SIZE))]
    DtbTooLarge { size: u64 },
    #[error(
        "the device tree ({:#}) doesn't fit: of {:#} of RAM, {:#} are left behind the kernel",
        Size(*size), Size(*ram), Size(*free)
    )]
    Dtb { size: u64, ram: u64, free: u64, needed: u64 },
    #[error("the initrd ({:#}) is larger than the guest's RAM ({:#})", Size(*size), Size(*ram))]
    InitrdLargerThanRam { size: u64, ram: u64, needed: u64 },
    #[error(
        "the initrd ({:#}) doesn't fit: of {:#} of RAM, {:#} are left behind kernel and device tree",
        Size(*size), Size(*ram), Size(*free)
    )]
    Initrd { size: u64, ram: u64, free: u64, needed: u64 },
    #[error(
        "the initrd ({:#}) ends {:#} behind the kernel's first GiB; arm64 kernels find it within {:#}",
        Size(*size), Size(*reach), Size(INITRD_WINDOW)
    )]
    InitrdWindow { size: u64, reach: u64 },
}

impl Help for LayoutError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Dtb { needed, .. }
            | Self::InitrdLargerThanRam { needed, .. }
            | Self::Initrd { needed, .. } => Some(more_memory(*needed)),
            Self::InitrdWindow { .. } => {
                Some("a smaller initrd: the kernel looks no further".into())
            }
            Self::DtbTooLarge { .. } => {
                Some("strait run --dry-run shows the tree; assign fewer devices".to_owned())
            }
            Self::Kernel { .. } => None,
        }
    }
}

/// The option that gives the guest at least `needed` bytes of RAM, with room to run.
pub(crate) fn more_memory(needed: u64) -> String {
    const STEP: u64 = 64 * MIB;
    let roomy = needed.saturating_add(needed / 4).div_ceil(STEP).saturating_mul(STEP);
    format!("--memory {}M", roomy / MIB)
}

/// Lays out RAM for a kernel at `kernel`, a device tree of at most `dtb_size` bytes and an initrd
/// of `initrd_size` bytes.
///
/// The device tree names the initrd's address, so its size is known only afterwards: give
/// [`MAX_DTB_SIZE`] as `dtb_size` then. It costs addresses, not memory.
///
/// # Errors
///
/// What doesn't fit, and into what.
pub fn layout(
    ram: Ram,
    kernel: Placement,
    dtb_size: u64,
    initrd_size: Option<u64>,
) -> Result<BootLayout, LayoutError> {
    if kernel.load < ram.base || kernel.end < kernel.load || kernel.end > ram.end() {
        return Err(LayoutError::Kernel { kernel, ram });
    }
    let dtb = place_dtb(ram, kernel, dtb_size)?;
    let initrd = match initrd_size {
        Some(size) => Some(place_initrd(ram, kernel, &dtb, size)?),
        None => None,
    };
    Ok(BootLayout { kernel, dtb: dtb.start, initrd })
}

/// Places `size` bytes of device tree behind the kernel, or at the end of RAM; or at the base of RAM, where
/// programs look for it that were made for QEMU's `virt` (docs/system/arm/virt.rst, "Hardware configuration
/// information for bare-metal programming"), if theirs begin behind it.
fn place_dtb(ram: Ram, kernel: Placement, size: u64) -> Result<Range<u64>, LayoutError> {
    if size > MAX_DTB_SIZE {
        return Err(LayoutError::DtbTooLarge { size });
    }
    if kernel.load.saturating_sub(ram.base) >= MAX_DTB_SIZE {
        return Ok(ram.base..ram.base.saturating_add(size));
    }
    let behind = kernel.end.checked_next_multiple_of(MAX_PAGE_SIZE).unwrap_or(u64::MAX);
    let last = highest(reach(ram, kernel), size).filter(|_| kernel.open_end);
    let start = last.map_or(behind, |last| last.max(behind));
    let end = start.saturating_add(size);
    if end > ram.end() {
        let free = ram.end().saturating_sub(start);
        return Err(LayoutError::Dtb { size, ram: ram.size, free, needed: end - ram.base });
    }
    Ok(start..end)
}

/// The end of what a kernel finds: that of RAM, or of the [window](INITRD_WINDOW) that it is in.
fn reach(ram: Ram, kernel: Placement) -> u64 {
    let window = kernel.load - kernel.load % GIB;
    ram.end().min(window.saturating_add(INITRD_WINDOW))
}

/// The highest page from which on so many bytes end no later than here.
fn highest(end: u64, size: u64) -> Option<u64> {
    let start = end.checked_sub(size)?;
    Some(start - start % MAX_PAGE_SIZE)
}

/// Places `size` bytes of initrd at the first page behind kernel and device tree; or as far from the kernel as
/// can be.
fn place_initrd(
    ram: Ram,
    kernel: Placement,
    dtb: &Range<u64>,
    size: u64,
) -> Result<Range<u64>, LayoutError> {
    if kernel.open_end {
        let end = reach(ram, kernel);
        let below = if dtb.start >= kernel.end { end.min(dtb.start) } else { end };
        if let Some(start) = highest(below, size).filter(|start| *start >= kernel.end) {
            return Ok(start..start.saturating_add(size));
        }
    }
    let after = dtb.end.max(kernel.end);
    let start = after.checked_next_multiple_of(MAX_PAGE_SIZE).unwrap_or(u64::MAX);
    let end = start.saturating_add(size);
    let needed = end.saturating_sub(ram.base);
    if size > ram.size {
        return Err(LayoutError::InitrdLargerThanRam { size, ram: ram.size, needed });
    }
    if end > ram.end() {
        let free = ram.end().saturating_sub(start);
        return Err(LayoutError::Initrd { size, ram: ram.size, free, needed });
    }
    let window = kernel.load - kernel.load % GIB;
    let reach = end - window;
    if reach > INITRD_WINDOW {
        return Err(LayoutError::InitrdWindow { size, reach });
    }
    Ok(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x4000_0000;

    fn ram(size: u64) -> Ram {
        Ram { base: BASE, size }
    }

    fn kernel(size: u64) -> Placement {
        Placement { load: BASE, entry: BASE, end: BASE + size, open_end: false }
    }

    #[test]
    fn everything_lies_behind_the_kernel_without_overlap() {
        let layout = layout(ram(64 * MIB), kernel(10 * MIB + 1), 5000, Some(3 * MIB)).unwrap();
        assert_eq!(layout.dtb, BASE + 10 * MIB + 64 * KIB);
        let initrd = layout.initrd.unwrap();
        assert_eq!(initrd, layout.dtb + 64 * KIB..layout.dtb + 64 * KIB + 3 * MIB);
    }

    #[test]
    fn a_small_kernel_shares_its_block_with_the_device_tree() {
        let layout = layout(ram(64 * MIB), kernel(4096), MAX_DTB_SIZE, Some(1)).unwrap();
        assert_eq!((layout.dtb + 64 * KIB) / (2 * MIB), BASE / (2 * MIB));
        assert!(layout.initrd.unwrap().start >= layout.dtb + MAX_DTB_SIZE);
    }

    #[test]
    fn what_lies_behind_a_program_of_unknown_size_is_at_the_end_of_ram() {
        let of = |at, file, size, initrd| {
            let kernel = Placement { load: at, entry: at, end: at + file, open_end: true };
            let layout = layout(ram(size), kernel, MAX_DTB_SIZE, initrd).unwrap();
            (layout.dtb - BASE, layout.initrd.map(|initrd| initrd.start - BASE))
        };
        let app = BASE + 0x8_0000;
        assert_eq!(of(app, 0x3000, 128 * MIB, None), (126 * MIB, None));
        assert_eq!(of(app, 0x3000, 128 * MIB, Some(1)), (126 * MIB, Some(126 * MIB - 64 * KIB)));
        // The device tree is in front of it.
        let far = BASE + 2 * MIB;
        assert_eq!(of(far, 1, 128 * MIB, Some(MIB)), (0, Some(127 * MIB)));
        // No further than a kernel looks for its initrd.
        let initrd = Some(32 * GIB - 3 * MIB);
        assert_eq!(of(app, 1, 64 * GIB, Some(MIB)), (32 * GIB - 2 * MIB, Some(32 * GIB - 3 * MIB)));
        assert_eq!(of(app, 1, 64 * GIB, initrd), (32 * GIB - 2 * MIB, Some(MIB)));
        // What doesn't fit there is behind what there is of it.
        assert_eq!(of(app, MIB, 4 * MIB, None), (2 * MIB, None));
        assert_eq!(of(app, 2 * MIB, 5 * MIB, Some(MIB / 2)), (3 * MIB, Some(5 * MIB / 2)));
        let full = Placement { load: BASE, entry: BASE, end: BASE + MIB, open_end: true };
        for size in [2 * MIB, 3 * MIB] {
            let is_free = layout(ram(size), full, MAX_DTB_SIZE, None);
            assert_eq!(is_free.is_ok(), size == 3 * MIB, "{is_free:?}");
        }
        layout(ram(64 * MIB), full, MAX_DTB_SIZE, Some(62 * MIB)).unwrap_err();
    }

    #[test]
    fn ram_may_be_used_to_its_last_byte() {
        let size = 62 * MIB - 128 * KIB;
        let fits = layout(ram(64 * MIB), kernel(2 * MIB), 64 * KIB, Some(size)).unwrap();
        assert!(fits.initrd.unwrap().end <= BASE + 64 * MIB);
        let full = layout(ram(64 * MIB), kernel(2 * MIB), 64 * KIB, Some(size + 64 * KIB)).unwrap();
        assert_eq!(full.initrd.unwrap().end, BASE + 64 * MIB);
        layout(ram(64 * MIB), kernel(2 * MIB), 64 * KIB, Some(size + 64 * KIB + 1)).unwrap_err();
    }

    #[test]
    fn what_does_not_fit_is_named_with_both_sizes_and_what_mends_it() {
        let small = ram(64 * MIB);
        for (result, text, help) in [
            (
                layout(small, kernel(MIB), 4096, Some(300 * MIB)),
                "the initrd (300 MiB) is larger than the guest's RAM (64 MiB)",
                Some("--memory 384M"),
            ),
            (
                layout(small, kernel(MIB), 64 * KIB, Some(63 * MIB)),
                "the initrd (63 MiB) doesn't fit: of 64 MiB of RAM, 62.9 MiB are left behind \
                 kernel and device tree",
                Some("--memory 128M"),
            ),
            (
                layout(small, kernel(63 * MIB), MAX_DTB_SIZE, None),
                "the device tree (2 MiB) doesn't fit: of 64 MiB of RAM, 1 MiB are left behind the \
                 kernel",
                Some("--memory 128M"),
            ),
            (
                layout(small, kernel(MIB), MAX_DTB_SIZE + 1, None),
                "the device tree has 2.0 MiB; an arm64 kernel takes 2 MiB",
                Some("strait run --dry-run shows the tree; assign fewer devices"),
            ),
            (
                layout(ram(64 * GIB), kernel(MIB), 4096, Some(33 * GIB)),
                "the initrd (33 GiB) ends 33.0 GiB behind the kernel's first GiB; arm64 kernels \
                 find it within 32 GiB",
                Some("a smaller initrd: the kernel looks no further"),
            ),
            (
                layout(small, kernel(65 * MIB), 4096, None),
                "the kernel at 0x40000000-0x44100000 lies outside RAM at 0x40000000-0x44000000",
                None,
            ),
        ] {
            let error = result.unwrap_err();
            assert_eq!(error.to_string(), text);
            assert_eq!(error.help().as_deref(), help);
        }
    }

    #[test]
    fn sizes_from_outside_never_wrap() {
        for size in [u64::MAX, u64::MAX - BASE, u64::MAX / 2] {
            layout(ram(64 * MIB), kernel(MIB), 4096, Some(size)).unwrap_err();
            layout(ram(u64::MAX), kernel(MIB), 4096, Some(size)).unwrap_err();
            layout(ram(64 * MIB), kernel(MIB), size, None).unwrap_err();
            layout(ram(64 * MIB), kernel(size - BASE), 4096, None).unwrap_err();
        }
    }
}
