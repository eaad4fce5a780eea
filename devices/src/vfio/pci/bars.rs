//! A function's BARs: VFIO's regions, mapped into the guest where it has placed them, or trapped.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use serde::Serialize;
use vfio_bindings::bindings::vfio::VFIO_PCI_ROM_REGION_INDEX;

use super::super::region::{AccessError, Area, VfioRegion};
use super::super::uapi::DeviceCalls;
use super::error::FunctionErrorKind;
use crate::bus::MemorySlots;
use crate::extent::Extent;
use crate::pci::config::BASE_ADDRESS_0;
use crate::pci::{AddressSpace, Bar, BarRange, Bars, ConfigSnapshot, MsixArea, ROM, rom_size};
use crate::ratelimit::LogLimit;

// VFIO numbers its regions as PCI its registers.
const _: () = assert!(VFIO_PCI_ROM_REGION_INDEX == ROM as u32);

/// What a BAR, or the expansion ROM, is to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BarInfo {
    /// Which: 0 to 5, or [`ROM`].
    pub bar: u8,
    /// Its kind and size; a ROM is memory.
    #[serde(flatten)]
    pub kind: Bar,
    /// The parts that are mapped into the guest, in bytes from its start.
    pub mapped: Vec<Extent>,
}

/// A memory slot of the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Mapping {
    /// Its guest physical address.
    gpa: u64,
    /// Its address in this process.
    host: NonNull<u8>,
    /// In bytes.
    size: u64,
}

// SAFETY: the address is passed on and never accessed.
unsafe impl Send for Mapping {}

/// A function's BARs and expansion ROM.
pub struct VfioBars {
    /// Their registers, as the guest programs them.
    pub registers: Bars,
    /// By number.
    regions: [Option<VfioRegion>; 7],
    slots: Option<Arc<dyn MemorySlots>>,
    /// The slots that the guest has, also those that the hypervisor refused to unmap.
    mapped: Vec<Mapping>,
    log: LogLimit,
}

impl VfioBars {
    /// Those that VFIO has regions of, of the kinds that `config` tells. No page that has a part in
    /// `trapped` is mapped, and nothing is if `page_size`, the host's in bytes, is `None`.
    ///
    /// # Errors
    ///
    /// VFIO doesn't describe a region, or no function can have such registers.
    pub fn open(
        name: &str,
        calls: &Arc<dyn DeviceCalls>,
        config: &ConfigSnapshot,
        page_size: Option<u64>,
        trapped: &[MsixArea],
    ) -> Result<Self, FunctionErrorKind> {
        let mut regions: [Option<VfioRegion>; 7] = Default::default();
        let mut kinds = [None; 6];
        let mut is_upper_half = false;
        for (bar, region) in (0..=ROM).zip(&mut regions) {
            if std::mem::take(&mut is_upper_half) {
                continue;
            }
            let of_bar = trapped.iter().filter(|area| area.bar == bar);
            let holes: Vec<Range<u64>> =
                of_bar.map(|area| area.offset..area.offset.saturating_add(area.size)).collect();
            // The ROM is read by the guest once, if at all.
            let page_size = page_size.filter(|_| bar != ROM);
            let opened = VfioRegion::open_around(calls.clone(), bar.into(), page_size, &holes)
                .map_err(FunctionErrorKind::Info)?;
            if opened.size() == 0 {
                continue;
            }
            if let Some(kind) = kinds.get_mut(usize::from(bar)) {
                let flags = config.u32(BASE_ADDRESS_0 + 4 * u16::from(bar));
                let found = Bar::from_register(flags, opened.size());
                (is_upper_half, *kind) = (found.is_64(), Some(found));
            }
            *region = Some(opened);
        }
        let [.., rom] = &regions;
        let rom = rom.as_ref().and_then(|rom| rom_size(rom.size()));
        let registers = Bars::new(kinds, rom).map_err(FunctionErrorKind::Bar)?;
        let (slots, mapped) = Default::default();
        Ok(Self { registers, regions, slots, mapped, log: LogLimit::named(name) })
    }

    /// What they are to the guest.
    pub fn info(&self) -> Vec<BarInfo> {
        let all = (0..=ROM).zip(&self.regions).filter_map(|(bar, region)| {
            let mapped =
                region.as_ref()?.areas().iter().map(|area| Extent::from(&area.range())).collect();
            Some(BarInfo { bar, kind: self.registers.kind(bar)?, mapped })
        });
        all.collect()
    }

    /// Has all accesses trap. Before anything is mapped into a guest.
    pub fn unmap(&mut self) {
        self.regions.iter_mut().flatten().for_each(VfioRegion::unmap);
    }

    /// Uses these memory slots from here on.
    ///
    /// # Safety
    ///
    /// `self` must not be dropped while the guest can run and anything [is mapped](Self::is_mapped).
    pub unsafe fn map_through(&mut self, slots: Arc<dyn MemorySlots>) {
        self.slots = Some(slots);
    }

    /// Maps the mappable parts of these ranges into the guest, and nothing else.
    pub fn forward(&mut self, ranges: &[BarRange]) {
        let wanted: Vec<Mapping> =
            ranges.iter().flat_map(|range| self.mappings_of(range)).collect();
        let Some(slots) = self.slots.clone() else { return };
        self.unmap_except(&wanted);
        for slot in wanted {
            if self.mapped.contains(&slot) {
                continue;
            }
            let Mapping { gpa, host, size } = slot;
            // SAFETY: mapped for as long as the region lives, which is as long as `self`, which
            // outlives the guest's run or this slot (`map_through`).
            match unsafe { slots.map(gpa, host, size) } {
                Ok(()) => self.mapped.push(slot),
                Err(error) => {
                    let what = "can't be mapped into the guest at";
                    self.log.warn(format_args!("{what} {gpa:#x}: {error}"));
                }
            }
        }
    }

    /// Unmaps everything from the guest, until BARs are forwarded anew. Whether anything was mapped.
    pub fn trap(&mut self) -> bool {
        let before = self.mapped.len();
        self.unmap_except(&[]);
        if before != 0 {
            self.log.warn(format_args!(
                "the host can't give the guest its registers, so that they trap"
            ));
        }
        self.mapped.len() != before
    }

    /// Whether anything is mapped into the guest.
    pub fn is_mapped(&self) -> bool {
        !self.mapped.is_empty()
    }

    /// Unmaps what isn't wanted. What the hypervisor refuses to unmap stays in the list, to be tried
    /// again the next time.
    fn unmap_except(&mut self, wanted: &[Mapping]) {
        let Some(slots) = self.slots.clone() else { return };
        let (mut stay, go): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.mapped).into_iter().partition(|slot| wanted.contains(slot));
        for slot in go {
            let Mapping { gpa, size, .. } = slot;
            if let Err(error) = slots.unmap(gpa, size) {
                stay.push(slot);
                let what = "can't be unmapped from the guest at";
                self.log.warn(format_args!("{what} {gpa:#x}: {error}"));
            }
        }
        self.mapped = stay;
    }

    /// The mappings of a range's mappable parts.
    fn mappings_of(&self, BarRange { bar, space, range }: &BarRange) -> Vec<Mapping> {
        let region = self.region(*bar).filter(|_| *space == AddressSpace::Memory);
        let mapping = |area: &Area| {
            let gpa = range.start.checked_add(area.range().start)?;
            Some(Mapping { gpa, host: area.host(), size: area.size() })
        };
        region.map(VfioRegion::areas).unwrap_or_default().iter().filter_map(mapping).collect()
    }

    fn region(&self, bar: u8) -> Option<&VfioRegion> {
        self.regions.get(usize::from(bar)).and_then(Option::as_ref)
    }

    /// Reads 1, 2, 4 or 8 bytes at `offset` of a BAR; all ones if that fails.
    pub fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let Some(region) = self.region(bar) else {
            data.fill(0xff);
            return;
        };
        if let Err(error) = region.read(offset, data) {
            data.fill(0xff);
            self.log_failed(bar, &error);
        }
    }

    /// Writes 1, 2, 4 or 8 bytes at `offset` of a BAR.
    pub fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        if let Some(Err(error)) = self.region(bar).map(|region| region.write(offset, data)) {
            self.log_failed(bar, &error);
        }
    }

    fn log_failed(&self, bar: u8, error: &AccessError) {
        self.log.warn(format_args!("a guest's access to BAR {bar} is ignored: {error}"));
    }
}
