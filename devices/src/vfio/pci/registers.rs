//! What a function's base address registers decode: VFIO's regions, mapped into the guest where the
//! guest has put them, trapped where they can't be.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::super::region::{AccessError, Region};
use super::super::uapi::{DeviceCalls, IoctlError};
use super::image::Image;
use crate::bus::MemorySlots;
use crate::pci::{Bar, BarError, Bars, Space, TablePlace, Window};
use crate::ratelimit::LogLimit;

/// Where base address registers begin in configuration space.
const FIRST: u16 = 0x10;

/// VFIO's region of the expansion ROM, and the number of its window (`VFIO_PCI_ROM_REGION_INDEX`).
pub const ROM: u8 = 6;

/// Flags of a base address register (PCI Local Bus 3.0, 6.2.5.1).
const IO: u32 = 1;
const TYPE: u32 = 0b110;
const WIDE: u32 = 0b100;
const PREFETCHABLE: u32 = 0b1000;

/// The smallest and the largest ROM that a register can express, in bytes.
const SMALLEST_ROM: u64 = 1 << 11;
const LARGEST_ROM: u64 = 1 << 31;

/// Why a function's registers can't be a guest's.
#[derive(Debug)]
pub enum RegistersError {
    /// VFIO doesn't tell what there is.
    Unknown(IoctlError),
    /// There is what can't be.
    Bar(BarError),
}

/// A window as it is shown to a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarSheet {
    /// Which: 0 to 5, or 6, the expansion ROM's.
    pub bar: u8,
    /// What it decodes; a ROM is memory.
    pub kind: Bar,
    /// What of it is mapped into the guest, in bytes from its start.
    pub mapped: Vec<Range<u64>>,
}

/// A memory slot in the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Slot {
    /// Where it is in the guest (GPA).
    gpa: u64,
    /// Where it is in this process.
    host: NonNull<u8>,
    /// In bytes.
    size: u64,
}

// SAFETY: the address is handed on and never accessed.
unsafe impl Send for Slot {}

/// A function's registers.
pub struct Registers {
    bars: Bars,
    /// By number.
    regions: [Option<Region>; 7],
    rom: Option<u64>,
    slots: Option<Arc<dyn MemorySlots>>,
    /// What the guest has, also what it shouldn't have any more and the hypervisor didn't take away.
    mapped: Vec<Slot>,
    log: LogLimit,
}

impl Registers {
    /// Those that VFIO has regions for and `config` says the kind of. No page of what is in `holes`
    /// is mapped, and nothing is if `page_size`, the host's in bytes, is `None`.
    ///
    /// # Errors
    ///
    /// VFIO doesn't tell, or tells what can't be.
    pub fn open(
        name: &str,
        calls: &Arc<dyn DeviceCalls>,
        config: &Image,
        page_size: Option<u64>,
        holes: &[TablePlace],
    ) -> Result<Self, RegistersError> {
        let mut regions: [Option<Region>; 7] = Default::default();
        let mut kinds = [None; 6];
        let mut upper_half = false;
        for (bar, region) in (0..=ROM).zip(&mut regions) {
            if std::mem::take(&mut upper_half) {
                continue;
            }
            let around = holes.iter().filter(|hole| hole.bar == bar);
            let around: Vec<Range<u64>> =
                around.map(|hole| hole.offset..hole.offset.saturating_add(hole.size)).collect();
            // The ROM is read by the guest once, if at all.
            let page_size = page_size.filter(|_| bar != ROM);
            let opened = Region::open_around(calls.clone(), bar.into(), page_size, &around)
                .map_err(RegistersError::Unknown)?;
            if opened.size() == 0 {
                continue;
            }
            if let Some(kind) = kinds.get_mut(usize::from(bar)) {
                let flags = config.u32(FIRST + 4 * u16::from(bar));
                upper_half = flags & (IO | TYPE) == WIDE;
                *kind = Some(kind_of(flags, opened.size()));
            }
            *region = Some(opened);
        }
        let rom = regions.last().and_then(Option::as_ref).map(|rom| rom.size());
        let rom = rom.and_then(u64::checked_next_power_of_two);
        let rom = rom.map(|size| size.max(SMALLEST_ROM)).filter(|size| *size <= LARGEST_ROM);
        let bars = Bars::new(kinds, rom).map_err(RegistersError::Bar)?;
        let (slots, mapped) = Default::default();
        Ok(Self { bars, regions, rom, slots, mapped, log: LogLimit::named(name) })
    }

    /// What there is.
    pub fn sheet(&self) -> Vec<BarSheet> {
        let rom = self.rom.map(|size| Bar::Memory { size, wide: false, prefetchable: false });
        let kind = |bar| if bar == ROM { rom } else { self.bars.bar(bar) };
        let all = (0..=ROM).zip(&self.regions).filter_map(|(bar, region)| {
            let areas = region.as_ref()?.areas().iter();
            Some(BarSheet { bar, kind: kind(bar)?, mapped: areas.map(|a| a.range()).collect() })
        });
        all.collect()
    }

    /// The base address registers as the guest programs them.
    pub fn bars(&mut self) -> &mut Bars {
        &mut self.bars
    }

    /// Where they decode at present.
    pub fn windows(&self) -> Vec<Window> {
        self.bars.windows()
    }

    /// Whether they decode this at present.
    pub fn decodes(&self, window: &Window) -> bool {
        self.bars.decodes(window)
    }

    /// Maps through these slots from here on.
    ///
    /// # Safety
    ///
    /// `self` must not be dropped while the guest can run.
    pub unsafe fn map_through(&mut self, slots: Arc<dyn MemorySlots>) {
        self.slots = Some(slots);
    }

    /// Maps into the guest what of these windows can be, and nothing else.
    pub fn forward(&mut self, windows: &[Window]) {
        let wanted: Vec<Slot> = windows.iter().flat_map(|window| self.slots_of(window)).collect();
        let Some(slots) = self.slots.clone() else { return };
        self.unmap_but(&wanted);
        for slot in wanted {
            if self.mapped.contains(&slot) {
                continue;
            }
            let Slot { gpa, host, size } = slot;
            // SAFETY: mapped for as long as the region lives, which is as long as `self`, which
            // outlives the guest's run (`map_through`).
            match unsafe { slots.map(gpa, host, size) } {
                Ok(()) => self.mapped.push(slot),
                Err(error) => {
                    let what = "can't be mapped into the guest at";
                    self.log.warn(format_args!("{what} {gpa:#x}: {error}"));
                }
            }
        }
    }

    /// Unmaps everything from the guest, until it is to be forwarded anew. Answers whether anything
    /// was mapped.
    pub fn trap(&mut self) -> bool {
        let before = self.mapped.len();
        self.unmap_but(&[]);
        if before != 0 {
            let what = "the host can't give the guest its registers, so that they trap";
            self.log.warn(format_args!("{what}"));
        }
        self.mapped.len() != before
    }

    /// Unmaps what isn't wanted. What the hypervisor refuses to unmap is still mapped, and tried
    /// again the next time.
    fn unmap_but(&mut self, wanted: &[Slot]) {
        let Some(slots) = self.slots.clone() else { return };
        let (mut stay, go): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.mapped).into_iter().partition(|slot| wanted.contains(slot));
        for slot in go {
            let Slot { gpa, size, .. } = slot;
            if let Err(error) = slots.unmap(gpa, size) {
                stay.push(slot);
                let what = "can't be unmapped from the guest at";
                self.log.warn(format_args!("{what} {gpa:#x}: {error}"));
            }
        }
        self.mapped = stay;
    }

    /// What of a window can be mapped.
    fn slots_of(&self, window: &Window) -> Vec<Slot> {
        let region = self.regions.get(usize::from(window.bar)).and_then(Option::as_ref);
        let region = region.filter(|_| window.space == Space::Memory);
        let areas = region.map(Region::areas).unwrap_or_default();
        let slot = |area: &super::super::region::Area| {
            let gpa = window.range.start.checked_add(area.range().start)?;
            Some(Slot { gpa, host: area.host(), size: area.size() })
        };
        areas.iter().filter_map(slot).collect()
    }

    /// Reads 1, 2, 4 or 8 bytes at `offset` of what a register decodes; all ones if that fails.
    pub fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        let Some(region) = self.regions.get(usize::from(bar)).and_then(Option::as_ref) else {
            data.fill(0xff);
            return;
        };
        if let Err(error) = region.read(offset, data) {
            data.fill(0xff);
            self.fail_access(bar, &error);
        }
    }

    /// Writes 1, 2, 4 or 8 bytes at `offset` of what a register decodes.
    pub fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        let region = self.regions.get(usize::from(bar)).and_then(Option::as_ref);
        if let Some(Err(error)) = region.map(|region| region.write(offset, data)) {
            self.fail_access(bar, &error);
        }
    }

    fn fail_access(&self, bar: u8, error: &AccessError) {
        self.log.warn(format_args!("a guest's access to BAR {bar} is ignored: {error}"));
    }
}

/// What a base address register with these flags decodes.
fn kind_of(flags: u32, size: u64) -> Bar {
    if flags & IO != 0 {
        return Bar::Io { size };
    }
    Bar::Memory { size, wide: flags & TYPE == WIDE, prefetchable: flags & PREFETCHABLE != 0 }
}
