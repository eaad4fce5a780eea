//! Guest RAM as the data path accesses it.

use std::iter::FusedIterator;

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
        // As vm-memory has it: what is there is read, unless nothing is.
        let mut bytes = [0; 0x20];
        assert_eq!(ram.read(&mut bytes, GuestAddress(0x1ff0)).unwrap(), 0x20);
        assert_eq!(ram.read(&mut bytes, GuestAddress(0x2ff0)).unwrap(), 0x10);
        assert!(ram.read(&mut bytes, GuestAddress(0x3000)).is_err());
    }
}
