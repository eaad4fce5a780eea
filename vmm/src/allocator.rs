//! Allocates the guest's physical addresses and shared peripheral interrupts.

use std::borrow::Cow;
use std::ops::Range;

use arch::layout;
use boot::layout::Ram;
use devices::irq::Spi;

/// Regions are at least this far apart: the largest page of any host, since a page of the guest's
/// address space belongs to one region only.
const REGION_ALIGNMENT: u64 = 64 << 10;

/// Larger regions are aligned so that KVM can map them in blocks of this size.
const MAX_ALIGNMENT: u64 = 2 << 20;

/// The most SPIs that there are for messages of PCI functions: on a GICv2's eight CPUs, enough for a
/// dozen devices with an interrupt a CPU.
const MESSAGE_SPIS: u32 = 128;

/// SPIs for messages come in multiples of this, and begin at one: MSI, with at most 32 vectors, has
/// them aligned to their number (PCI 3.0, 6.8.1.6 "Message Data": functions change the low bits).
const MESSAGE_SPI_ALIGNMENT: u32 = 32;

/// The address space that every KVM VM has, in bytes (Documentation/virt/kvm/api.rst, 4.2
/// KVM_CREATE_VM: 40 bits unless asked for otherwise).
const ADDRESSES: u64 = 1 << 40;

/// What RAM is called.
pub const RAM: &str = "RAM";

/// The guest physical addresses and SPIs that are allocated.
#[derive(Debug)]
pub struct Allocator {
    allocated: Vec<(Range<u64>, Cow<'static, str>)>,
    next_spi: u32,
}

/// Why addresses can't be allocated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// They overlap something else.
    #[error("it would be at {}, where {other} is, at {}", show(range), show(other_range))]
    Taken {
        /// Where it should be (GPA).
        range: Range<u64>,
        /// What is there.
        other: String,
        /// Where that is (GPA).
        other_range: Range<u64>,
    },
    /// They are beyond what a guest can address.
    #[error("{start:#x} and {size:#x} bytes from there are beyond what a guest can address")]
    Beyond {
        /// Where it should be (GPA).
        start: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A mapped region doesn't begin at a page.
    #[error("{start:#x} is no multiple of the host's pages of {page:#x} bytes")]
    Misaligned {
        /// Where it should be (GPA).
        start: u64,
        /// The size of the host's pages in bytes.
        page: u64,
    },
    /// No free addresses are left.
    #[error("nothing of that size is free between {}", show(&layout::PLATFORM))]
    Full,
}

impl Allocator {
    /// The machine without assigned devices, with this RAM, and with or without its serial port.
    pub fn new(ram: Ram, serial: bool) -> Self {
        // All that either GIC takes: which it is isn't known while planning.
        let gic = layout::GIC_DIST.start..layout::GIC_REDIST.end;
        let mut allocated = vec![
            (gic, Cow::Borrowed("the interrupt controller")),
            (layout::RTC, "the RTC".into()),
            (layout::PVPANIC, "the panic device".into()),
            (ram.base..ram.end(), RAM.into()),
        ];
        if serial {
            allocated.push((layout::SERIAL, "the serial console".into()));
        }
        Self { allocated, next_spi: layout::spi::PLATFORM }
    }

    /// Reserves what firmware and its variables are in.
    #[cold]
    pub fn reserve_flash(&mut self) {
        self.allocated.push((layout::FIRMWARE.start..layout::VARIABLES.end, "the flash".into()));
    }

    /// Reserves what the power button is on. Before anything else is reserved.
    pub fn reserve_power_button(&mut self) {
        self.allocated.push((layout::GPIO, "the power button's GPIO controller".into()));
    }

    /// Reserves what messages of SCMI are in. Before anything else is reserved.
    pub fn reserve_scmi(&mut self) {
        self.allocated.push((layout::SCMI, "the memory for SCMI".into()));
    }

    /// Reserves what a PCI host needs, but for its window for 64-bit registers, which goes
    /// [above](Self::end) all else. Before anything else is reserved.
    pub fn reserve_pci(&mut self) {
        self.allocated.extend([
            (layout::PCI_MMIO32, "the PCI host's memory window".into()),
            (layout::PCI_IO, "the PCI host's I/O window".into()),
            (layout::PCI_ECAM, "the PCI host's configuration space".into()),
        ]);
    }

    /// Checks that this RAM, of which the allocator was made, overlaps nothing else of the machine.
    ///
    /// # Errors
    ///
    /// It does.
    pub fn check_ram(&self, ram: Ram) -> Result<(), AllocError> {
        let range = ram.base..ram.end();
        let overlaps = |taken: &Range<u64>| taken.start < range.end && range.start < taken.end;
        let mut others = self.allocated.iter().filter(|(taken, _)| *taken != range);
        others.find(|(taken, _)| overlaps(taken)).map_or(Ok(()), |(taken, other)| {
            let (other, other_range) = (other.to_string(), taken.clone());
            Err(AllocError::Taken { range: range.clone(), other, other_range })
        })
    }

    /// The first address (GPA) above everything that is allocated.
    pub fn end(&self) -> u64 {
        self.allocated.iter().map(|(range, _)| range.end).max().unwrap_or_default()
    }

    /// How many SPIs there are up to the last one allocated.
    pub fn spi_count(&self) -> u32 {
        self.next_spi.min(layout::spi::END)
    }

    /// SPIs that are left for messages of PCI functions, where they are SPIs; none if there are not
    /// enough to begin with. Once everything else is allocated.
    pub fn message_spis(&self) -> Range<u32> {
        let start = self.spi_count().next_multiple_of(MESSAGE_SPI_ALIGNMENT);
        start..start.saturating_add(MESSAGE_SPIS).min(layout::spi::END)
    }

    /// Reserves `size` bytes at `start` (GPA) for what is called `name`; `page` is what `start` must
    /// be a multiple of, where that matters.
    ///
    /// # Errors
    ///
    /// They overlap something, are misaligned or beyond what a guest can address.
    pub fn reserve(
        &mut self,
        start: u64,
        size: u64,
        page: Option<u64>,
        name: String,
    ) -> Result<(), AllocError> {
        if let Some(page) = page.filter(|page| !start.is_multiple_of(*page)) {
            return Err(AllocError::Misaligned { start, page });
        }
        let end = start.checked_add(size.max(1)).filter(|end| *end <= ADDRESSES);
        let range = start..end.ok_or(AllocError::Beyond { start, size })?;
        if let Some((other_range, other)) = self.overlapping(&range) {
            let (other, other_range) = (other.to_string(), other_range.clone());
            return Err(AllocError::Taken { range, other, other_range });
        }
        self.allocated.push((range, name.into()));
        Ok(())
    }

    /// Allocates `size` bytes for what is called `name`; returns their address (GPA).
    ///
    /// # Errors
    ///
    /// No free addresses are left.
    pub fn allocate(&mut self, size: u64, name: String) -> Result<u64, AllocError> {
        let alignment = size
            .checked_next_power_of_two()
            .unwrap_or(MAX_ALIGNMENT)
            .clamp(REGION_ALIGNMENT, MAX_ALIGNMENT);
        let room =
            size.max(1).checked_next_multiple_of(REGION_ALIGNMENT).ok_or(AllocError::Full)?;
        let mut start = layout::PLATFORM.start;
        loop {
            let end = start.checked_add(room).filter(|end| *end <= layout::PLATFORM.end);
            let range = start..end.ok_or(AllocError::Full)?;
            let Some((taken, _)) = self.overlapping(&range) else {
                self.allocated.push((range, name.into()));
                return Ok(start);
            };
            start = taken.end.checked_next_multiple_of(alignment).ok_or(AllocError::Full)?;
        }
    }

    /// Allocates the next SPI.
    pub fn allocate_spi(&mut self) -> Option<Spi> {
        let spi = Some(Spi(self.next_spi)).filter(|spi| spi.0 < layout::spi::END);
        self.next_spi = self.next_spi.saturating_add(1);
        spi
    }

    /// What is allocated that overlaps this range.
    fn overlapping(&self, range: &Range<u64>) -> Option<&(Range<u64>, Cow<'static, str>)> {
        self.allocated.iter().find(|(taken, _)| taken.start < range.end && range.start < taken.end)
    }
}

/// A range by its first and its last address.
fn show(range: &Range<u64>) -> String {
    format!("{:#x}-{:#x}", range.start, range.end.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Ram = Ram { base: layout::RAM_START, size: 1 << 30 };

    #[test]
    fn regions_are_placed_apart_and_aligned() {
        let mut allocator = Allocator::new(MEMORY, true);
        let sizes = [0x1000, 0x1000, 0x2_0000, 0x50_0000, 0, 1];
        let mut taken: Vec<Range<u64>> = Vec::new();
        for size in sizes {
            let gpa = allocator.allocate(size, String::new()).unwrap();
            assert!(gpa.is_multiple_of(REGION_ALIGNMENT), "{gpa:#x}");
            let range = gpa..gpa + size.max(1).next_multiple_of(REGION_ALIGNMENT);
            assert!(taken.iter().all(|r| r.end <= range.start || range.end <= r.start));
            assert!(layout::PLATFORM.start <= range.start && range.end <= layout::PLATFORM.end);
            taken.push(range);
        }
        assert!(allocator.allocate(1 << 30, String::new()) == Err(AllocError::Full));
        assert!(allocator.allocate(u64::MAX, String::new()) == Err(AllocError::Full));
    }

    #[test]
    fn what_is_placed_anywhere_avoids_what_has_its_place() {
        let mut allocator = Allocator::new(MEMORY, true);
        let first = layout::PLATFORM.start;
        allocator.reserve(first + 0x1000, 0x1000, Some(0x1000), "fixed".into()).unwrap();
        // Not even in the same page of a host with large ones.
        assert_eq!(allocator.allocate(0x1000, String::new()), Ok(first + REGION_ALIGNMENT));
    }

    #[test]
    fn an_overlap_names_both_and_their_places() {
        let cases = [
            (0x4000_0000, 0x1000, "RAM"),
            (0x3fff_f000, 0x1001, "RAM"),
            (0x7fff_ffff, 1, "RAM"),
            (0x0800_0000, 0x1000, "the interrupt controller"),
            (0x0900_0000, 0x1000, "the serial console"),
            (0x0901_0fff, 1, "the RTC"),
            (0x0902_0000, 1, "the panic device"),
            (0x0c00_0800, 0x1000, "another"),
        ];
        for (start, size, expected) in cases {
            let mut allocator = Allocator::new(MEMORY, true);
            allocator.reserve(0x0c00_0000, 0x1000, None, "another".into()).unwrap();
            let error = allocator.reserve(start, size, None, "new".into()).unwrap_err();
            let AllocError::Taken { other, .. } = &error else { panic!("{error}") };
            assert_eq!(other, expected);
            assert!(error.to_string().contains(&format!("{start:#x}-")), "{error}");
        }
        for start in [0x2c0a_0000, 0x8000_0000, 0, 0x0c00_1000] {
            let mut allocator = Allocator::new(MEMORY, true);
            allocator.reserve(0x0c00_0000, 0x1000, None, "another".into()).unwrap();
            allocator.reserve(start, 0x1000, Some(0x1000), "new".into()).unwrap();
        }
        Allocator::new(MEMORY, false).reserve(0x0900_0000, 0x1000, None, "new".into()).unwrap();
    }

    #[test]
    fn a_pci_host_s_windows_are_its_own() {
        for start in [0x2000_0000, 0x2c0a_0000, 0x3f00_ffff, 0x3f80_0000] {
            let mut allocator = Allocator::new(MEMORY, true);
            allocator.reserve(start, 1, None, "new".into()).unwrap();
            let mut allocator = Allocator::new(MEMORY, true);
            allocator.reserve_pci();
            let error = allocator.reserve(start, 1, None, "new".into()).unwrap_err();
            assert!(error.to_string().contains("the PCI host's"), "{error}");
        }
    }

    #[test]
    fn the_end_is_above_ram_and_whatever_is_above_that() {
        let mut allocator = Allocator::new(MEMORY, true);
        assert_eq!((allocator.end(), allocator.spi_count()), (MEMORY.end(), layout::spi::PLATFORM));
        allocator.reserve(1 << 39, 0x1000, None, "new".into()).unwrap();
        let spi = allocator.allocate_spi().unwrap();
        assert_eq!((allocator.end(), allocator.spi_count()), ((1 << 39) + 0x1000, spi.0 + 1));
    }

    #[test]
    fn addresses_that_cannot_be_are_refused() {
        let mut allocator = Allocator::new(MEMORY, true);
        let reserve = |allocator: &mut Allocator, start, size, page| {
            allocator.reserve(start, size, page, "new".into())
        };
        for (start, size) in [(u64::MAX, 1), (u64::MAX, 0), (1 << 40, 1), ((1 << 40) - 1, 2)] {
            let error = reserve(&mut allocator, start, size, None);
            assert_eq!(error, Err(AllocError::Beyond { start, size }));
        }
        let error = reserve(&mut allocator, 0x2c0a_1000, 0x1_0000, Some(0x1_0000));
        assert_eq!(error, Err(AllocError::Misaligned { start: 0x2c0a_1000, page: 0x1_0000 }));
    }

    #[test]
    fn messages_have_what_is_left_behind_all_other_interrupts() {
        let mut allocator = Allocator::new(MEMORY, true);
        assert_eq!(allocator.message_spis(), 64..192);
        allocator.allocate_spi().unwrap();
        assert_eq!(allocator.message_spis(), 96..224);
        while allocator.spi_count() < 900 {
            allocator.allocate_spi().unwrap();
        }
        assert_eq!(allocator.message_spis(), 928..960);
        while allocator.allocate_spi().is_some() {}
        assert!(allocator.message_spis().is_empty());
    }

    #[test]
    fn interrupts_come_to_an_end() {
        let mut allocator = Allocator::new(MEMORY, true);
        let count = std::iter::from_fn(|| allocator.allocate_spi()).count();
        assert_eq!(u32::try_from(count), Ok(layout::spi::END - layout::spi::PLATFORM));
        assert_eq!(allocator.allocate_spi(), None);
    }
}
