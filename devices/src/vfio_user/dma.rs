//! Memory of this process that the server reaches: by mapping its file, or by messages.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use super::message::{Command, MAX_DATA, Payload, Reader};

/// Memory that the server may reach.
#[derive(Debug)]
struct Mapping {
    iova: u64,
    size: u64,
    host: NonNull<u8>,
}

/// The file behind memory of this process.
#[derive(Debug)]
struct Backing {
    file: Arc<File>,
    host: NonNull<u8>,
    size: u64,
}

/// What the server may reach of this process's memory.
#[derive(Debug, Default)]
pub(super) struct DmaMemory {
    backing: Option<Backing>,
    mappings: Vec<Mapping>,
}

// SAFETY: the addresses are of memory that whoever mapped it here keeps mapped in this process; it is
// only accessed byte by byte, as memory that may change at any time.
unsafe impl Send for DmaMemory {}

impl DmaMemory {
    /// Tells that `size` bytes at `host` are those of the file, from its start.
    pub(super) fn set_file(&mut self, file: File, host: NonNull<u8>, size: u64) {
        self.backing = Some(Backing { file: Arc::new(file), host, size });
    }

    /// The file behind this memory and the offset in it, in bytes, if it is known.
    pub(super) fn file_of(&self, host: NonNull<u8>, size: u64) -> Option<(Arc<File>, u64)> {
        let backing = self.backing.as_ref()?;
        let offset = host.addr().get().checked_sub(backing.host.addr().get())?;
        let offset = u64::try_from(offset).ok()?;
        (offset.checked_add(size)? <= backing.size).then(|| (backing.file.clone(), offset))
    }

    /// Lets the server reach the `size` bytes at `host` as IOVA `iova`.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped in this process until [`unmap`](Self::unmap), and may change at any
    /// time.
    pub(super) unsafe fn map(&mut self, iova: u64, host: NonNull<u8>, size: u64) {
        self.mappings.push(Mapping { iova, size, host });
    }

    /// Ends all mappings within these IOVAs.
    pub(super) fn unmap(&mut self, iova: u64, size: u64) {
        let end = iova.saturating_add(size);
        self.mappings.retain(|one| one.iova < iova || one.iova.saturating_add(one.size) > end);
    }

    /// Serves a request of the server's: the reply's payload, or the error number of an error reply.
    pub(super) fn serve(&self, command: u16, request: &[u8]) -> Result<Payload, i32> {
        let mut reader = Reader(request);
        let range = reader.u64().zip(reader.u64()).ok_or(libc::EINVAL);
        let served = if command == Command::DMA_READ.number {
            let (iova, size) = range?;
            let read = usize::try_from(size).is_ok_and(|size| size <= MAX_DATA);
            read.then(|| self.read(iova, size)).flatten()
        } else if command == Command::DMA_WRITE.number {
            let (iova, size) = range?;
            let whole = usize::try_from(size).is_ok_and(|size| size == reader.0.len());
            whole.then(|| self.write(iova, reader.0)).flatten().map(|()| Vec::new())
        } else {
            return Err(libc::ENOSYS);
        };
        let (head, _) = request.split_at_checked(16).ok_or(libc::EINVAL)?;
        Ok(Payload::default().bytes(head).bytes(&served.ok_or(libc::EINVAL)?))
    }

    /// Reads what the server may read.
    fn read(&self, iova: u64, size: u64) -> Option<Vec<u8>> {
        let (host, size) = self.find(iova, size)?;
        // SAFETY: `find` found that `size` bytes from `host` on are mapped.
        Some((0..size).map(|at| unsafe { host.add(at).read_volatile() }).collect())
    }

    /// Writes where the server may write.
    fn write(&self, iova: u64, data: &[u8]) -> Option<()> {
        let (host, _) = self.find(iova, u64::try_from(data.len()).ok()?)?;
        for (at, byte) in data.iter().enumerate() {
            // SAFETY: `find` found that as many bytes as `data` has from `host` on are mapped.
            unsafe { host.add(at).write_volatile(*byte) };
        }
        Some(())
    }

    /// Where these IOVAs are in this process, if one mapping has all of them.
    fn find(&self, iova: u64, size: u64) -> Option<(NonNull<u8>, usize)> {
        let end = iova.checked_add(size)?;
        let mapping = self.mappings.iter().find(|one| {
            one.iova <= iova && one.iova.checked_add(one.size).is_some_and(|last| end <= last)
        })?;
        let offset = usize::try_from(iova.checked_sub(mapping.iova)?).ok()?;
        // SAFETY: `offset` is within the mapping.
        Some((unsafe { mapping.host.add(offset) }, usize::try_from(size).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn only_mapped_memory_is_reached() {
        let mut memory = [0u8; 64];
        let host = NonNull::from(&mut memory).cast::<u8>();
        let mut dma = DmaMemory::default();
        // SAFETY: the memory outlives `dma`, and is only read through it.
        unsafe { dma.map(0x4000_0000, host, 64) };
        dma.write(0x4000_003c, &[1, 2, 3, 4]).unwrap();
        assert_eq!(dma.read(0x4000_003b, 5), Some(vec![0, 1, 2, 3, 4]));
        for (iova, size) in [(0x3fff_ffff, 1), (0x4000_0040, 1), (0x4000_003f, 2), (u64::MAX, 2)] {
            assert_eq!(dma.read(iova, size), None, "{iova:#x}");
        }
        assert_eq!(dma.write(0x4000_003d, &[0; 4]), None);
        dma.unmap(0x4000_0000, 63);
        assert!(dma.read(0x4000_0000, 1).is_some());
        dma.unmap(0x4000_0000, 64);
        assert_eq!(dma.read(0x4000_0000, 1), None);
    }

    #[test]
    fn memory_s_file_is_known_by_its_address() {
        let mut memory = [0u8; 64];
        let host = NonNull::from(&mut memory).cast::<u8>();
        let mut dma = DmaMemory::default();
        assert!(dma.file_of(host, 1).is_none());
        dma.set_file(TempFile::new().unwrap().into_file(), host, 64);
        // SAFETY: all of these are within the array, or one past its end.
        let at = |offset| unsafe { host.add(offset) };
        assert_eq!(dma.file_of(at(16), 48).map(|(_, offset)| offset), Some(16));
        assert!(dma.file_of(at(16), 49).is_none());
        assert!(dma.file_of(at(16), u64::MAX).is_none());
    }
}
