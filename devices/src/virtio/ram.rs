//! Guest RAM as the data path accesses it.

use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU16, Ordering};

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{
    Error, GuestMemoryBackendSliceIterator, GuestMemorySliceIterator, Result,
};
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    Permissions, VolatileSlice,
};

/// Guest RAM whose first region, which is nearly always the only one, is looked at first: half a
/// dozen accesses are made for a buffer, and a search for the region is most of what each costs.
#[derive(Clone, Debug)]
pub(super) struct Ram {
    memory: GuestMemoryMmap,
    /// The first region: its GPA, its size in bytes, and where it is mapped.
    start: u64,
    size: usize,
    host: *mut u8,
}

// SAFETY: `host` points into `memory`, which may be shared and sent between threads, and stays mapped
// as long as that lives; it is accessed as `memory` is, by volatile accesses.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    /// Of this memory.
    pub(super) fn new(memory: GuestMemoryMmap) -> Self {
        let first = memory.iter().next().map(|region| {
            let size = usize::try_from(region.len()).unwrap_or(0);
            (region.start_addr().raw_value(), size, region.as_ptr())
        });
        let (start, size, host) = first.unwrap_or((0, 0, std::ptr::null_mut()));
        Self { memory, start, size, host }
    }

    /// The same as vm-memory has it.
    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// These bytes, if they are in the first region.
    #[inline(always)]
    fn first(&self, addr: GuestAddress, count: usize) -> Option<VolatileSlice<'_>> {
        let offset = usize::try_from(addr.raw_value().checked_sub(self.start)?).ok()?;
        if count == 0 || offset.checked_add(count)? > self.size {
            return None;
        }
        // SAFETY: `offset` and the `count` bytes from there are within the region, which is mapped at
        // `host` as long as `memory` lives, which the slice borrows with `self`.
        Some(unsafe { VolatileSlice::new(self.host.add(offset), count) })
    }

    /// Where these bytes are mapped, if they are in the first region.
    #[inline(always)]
    pub(super) fn host(&self, addr: GuestAddress, count: usize) -> Option<*mut u8> {
        self.first(addr, count).map(|slice| slice.ptr_guard_mut().as_ptr())
    }

    /// The two little-endian words there, if they are in the first region and aligned.
    #[inline(always)]
    pub(super) fn words(&self, addr: GuestAddress) -> Option<[u64; 2]> {
        self.table(addr, 1)?.words(0)
    }

    /// So many pairs of words there, if all are in the first region and aligned.
    #[inline(always)]
    pub(super) fn table(&self, addr: GuestAddress, count: u16) -> Option<Table<'_>> {
        let host: *mut u64 = self.host(addr, 16 * usize::from(count))?.cast();
        host.is_aligned().then_some(Table { host, count, _ram: PhantomData })
    }

    /// Writes two words, the first at this address, little-endian, if they are in the first region and
    /// aligned; whether they are.
    #[inline(always)]
    pub(super) fn write_words(&self, addr: GuestAddress, words: [u32; 2]) -> bool {
        let Some(place) = self.host(addr, 8).map(<*mut u8>::cast::<u32>) else { return false };
        if !place.is_aligned() {
            return false;
        }
        let [first, second] = words.map(u32::to_le);
        // SAFETY: both are within the region, which is mapped as long as `memory` lives, and aligned; no
        // reference of Rust is to guest RAM.
        unsafe {
            place.write_volatile(first);
            place.add(1).write_volatile(second);
        }
        true
    }

    /// The little-endian index of a ring at this address, if it is in the first region and aligned.
    #[inline(always)]
    fn ring_index(&self, addr: GuestAddress) -> Option<&AtomicU16> {
        let place: *mut u16 = self.host(addr, 2)?.cast();
        // SAFETY: it is within the region, which is mapped as long as `memory` lives, and aligned; the
        // guest's accesses to it are of the same size.
        place.is_aligned().then(|| unsafe { AtomicU16::from_ptr(place) })
    }

    /// What a ring's index is, if it is in the first region and aligned.
    #[inline(always)]
    pub(super) fn load_index(&self, addr: GuestAddress) -> Option<u16> {
        self.ring_index(addr).map(|index| u16::from_le(index.load(Ordering::Relaxed)))
    }

    /// Sets a ring's index, if it is in the first region and aligned, after what was written before;
    /// whether it is.
    #[inline(always)]
    pub(super) fn store_index(&self, addr: GuestAddress, index: u16) -> bool {
        let place = self.ring_index(addr);
        place.map(|place| place.store(index.to_le(), Ordering::Release)).is_some()
    }

    /// Writes a byte, if it is in the first region; whether it is.
    #[inline(always)]
    pub(super) fn write_byte(&self, addr: GuestAddress, byte: u8) -> bool {
        let Some(place) = self.host(addr, 1) else { return false };
        // SAFETY: it is within the region, which is mapped as long as `memory` lives, and no reference
        // of Rust is to guest RAM.
        unsafe { place.write_volatile(byte) };
        true
    }
}

/// Pairs of words in guest RAM, one behind the other.
pub(super) struct Table<'a> {
    host: *const u64,
    count: u16,
    _ram: PhantomData<&'a Ram>,
}

impl Table<'_> {
    /// The two little-endian words of a pair, if there are as many.
    #[inline(always)]
    pub(super) fn words(&self, index: u16) -> Option<[u64; 2]> {
        if index >= self.count {
            return None;
        }
        // SAFETY: `index` is below `count`, and all pairs are within the first region of a `Ram` that
        // outlives this and keeps it mapped, and aligned; others may write them meanwhile, and any bytes
        // are a number.
        let words = unsafe {
            let pair = self.host.add(2 * usize::from(index));
            [pair.read_volatile(), pair.add(1).read_volatile()]
        };
        Some(words.map(u64::from_le))
    }
}

impl GuestMemory for Ram {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    #[inline(always)]
    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        self.first(addr, count).is_some()
            || GuestMemoryBackend::check_range(&self.memory, addr, count)
    }

    #[inline(always)]
    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>> {
        Ok(match self.first(addr, count) {
            Some(slice) => Slices::First(Some(slice)),
            None => Slices::All(GuestMemoryBackend::get_slices(&self.memory, addr, count)),
        })
    }
}

/// The parts of a range.
enum Slices<'a> {
    First(Option<VolatileSlice<'a>>),
    All(GuestMemoryBackendSliceIterator<'a, GuestMemoryMmap>),
}

impl<'a> Iterator for Slices<'a> {
    type Item = std::result::Result<VolatileSlice<'a>, Error>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::First(slice) => slice.take().map(Ok),
            Self::All(slices) => slices.next(),
        }
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, BS<'a, ()>> for Slices<'a> {
    // What vm-memory has for any iterator takes as long as the access.
    #[inline(always)]
    fn stop_on_error(mut self) -> Result<impl Iterator<Item = VolatileSlice<'a>>> {
        let first = self.next().transpose()?;
        Ok(Accessible { first, others: self })
    }
}

/// The parts of a range up to one that isn't RAM, which isn't the first.
struct Accessible<'a> {
    first: Option<VolatileSlice<'a>>,
    others: Slices<'a>,
}

impl<'a> Iterator for Accessible<'a> {
    type Item = VolatileSlice<'a>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        self.first.take().or_else(|| self.others.next()?.ok())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn ranges_of_one_region_of_several_and_of_none() {
        let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000)];
        let ram = Ram::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let sizes = |addr, count| -> Option<Vec<usize>> {
            let slices = ram.get_slices(GuestAddress(addr), count, Permissions::Read).unwrap();
            slices.map(|slice| slice.ok().map(|slice| slice.len())).collect()
        };
        assert_eq!(sizes(0x1000, 0x1000), Some(vec![0x1000]));
        assert_eq!(sizes(0x1ff0, 0x20), Some(vec![0x10, 0x10]));
        assert_eq!(sizes(0x2ff0, 0x10), Some(vec![0x10]));
        assert_eq!(sizes(0x1000, 0), Some(vec![]));
        for (addr, count) in [(0xfff, 2), (0x2fff, 2), (0x3000, 1), (0, 1), (u64::MAX, 1)] {
            assert_eq!(sizes(addr, count), None, "{addr:#x}");
            assert!(!ram.check_range(GuestAddress(addr), count, Permissions::Write), "{addr:#x}");
        }
        assert!(ram.check_range(GuestAddress(0x1ff0), 0x20, Permissions::Write));
        ram.write_obj(0x1122_3344u32, GuestAddress(0x1ffe)).unwrap();
        assert_eq!(ram.read_obj::<u32>(GuestAddress(0x1ffe)).unwrap(), 0x1122_3344);
        ram.write_obj(u64::MAX - 1, GuestAddress(0x1ff0)).unwrap();
        assert!(
            ram.write_byte(GuestAddress(0x1ff8), 7) && !ram.write_byte(GuestAddress(0x2000), 7)
        );
        assert_eq!(ram.words(GuestAddress(0x1ff0)), Some([u64::MAX - 1, 0x3344_0000_0000_0007]));
        for addr in [0x1ff1, 0x1ff8, 0x2000, 0xfff, u64::MAX] {
            assert_eq!(ram.words(GuestAddress(addr)), None, "{addr:#x}");
        }
        assert!(ram.write_words(GuestAddress(0x1ff4), [1, 0x0203_0405]));
        assert_eq!(ram.load_index(GuestAddress(0x1ff8)), Some(0x0405));
        assert!(ram.store_index(GuestAddress(0x1ffa), 0x0607));
        assert_eq!(ram.words(GuestAddress(0x1ff0)), Some([0x1_ffff_fffe, 0x3344_0000_0607_0405]));
        for addr in [0x1ff9, 0x1fff, 0x2000, 0xfff, u64::MAX] {
            let addr = GuestAddress(addr);
            assert!(ram.load_index(addr).is_none() && !ram.store_index(addr, 1), "{addr:?}");
            assert!(!ram.write_words(addr, [1, 2]), "{addr:?}");
        }
        assert!(!ram.write_words(GuestAddress(0x1ffc), [1, 2]));
        // As vm-memory has it: what is there is read, unless nothing is.
        let mut bytes = [0; 0x20];
        assert_eq!(ram.read(&mut bytes, GuestAddress(0x1ff0)).unwrap(), 0x20);
        assert_eq!(ram.read(&mut bytes, GuestAddress(0x2ff0)).unwrap(), 0x10);
        assert!(ram.read(&mut bytes, GuestAddress(0x3000)).is_err());
    }
}
