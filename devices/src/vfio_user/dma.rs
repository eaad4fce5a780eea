//! The guest's RAM as the server reaches it: by its file, or by messages.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use super::message::{Command, MOST_DATA, Payload, Reader};

/// A stretch of memory that the server may reach.
#[derive(Debug)]
struct Lent {
    iova: u64,
    size: u64,
    host: NonNull<u8>,
}

/// The file behind a stretch of this process's memory.
#[derive(Debug)]
struct Backing {
    file: Arc<File>,
    host: NonNull<u8>,
    size: u64,
}

/// What the server may reach of this process's memory.
#[derive(Debug, Default)]
pub(super) struct Ram {
    backing: Option<Backing>,
    lent: Vec<Lent>,
}

// SAFETY: the addresses are of memory that whoever lent it keeps mapped; it is only accessed byte by
// byte, as memory that may change at any time.
unsafe impl Send for Ram {}

impl Ram {
    /// Makes known that `size` bytes at `host` are those of the file, from its start.
    pub(super) fn back(&mut self, file: File, host: NonNull<u8>, size: u64) {
        self.backing = Some(Backing { file: Arc::new(file), host, size });
    }

    /// The file behind this memory and where it is in there, if there is one.
    pub(super) fn file_of(&self, host: NonNull<u8>, size: u64) -> Option<(Arc<File>, u64)> {
        let backing = self.backing.as_ref()?;
        let offset = host.addr().get().checked_sub(backing.host.addr().get())?;
        let offset = u64::try_from(offset).ok()?;
        (offset.checked_add(size)? <= backing.size).then(|| (backing.file.clone(), offset))
    }

    /// Lends memory: `size` bytes at `host`, which the server calls `iova`.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped until it is [taken back](Self::take_back), and may change at any
    /// time.
    pub(super) unsafe fn lend(&mut self, iova: u64, host: NonNull<u8>, size: u64) {
        self.lent.push(Lent { iova, size, host });
    }

    /// Ends what was lent within these IOVAs.
    pub(super) fn take_back(&mut self, iova: u64, size: u64) {
        let end = iova.saturating_add(size);
        self.lent.retain(|lent| lent.iova < iova || lent.iova.saturating_add(lent.size) > end);
    }

    /// Serves a request of the server's, and says with what it is answered, or with which error
    /// number refused.
    pub(super) fn serve(&self, command: u16, request: &[u8]) -> Result<Payload, i32> {
        let served = if command == Command::DmaRead.number() {
            self.serve_read(request)
        } else if command == Command::DmaWrite.number() {
            self.serve_write(request)
        } else {
            return Err(libc::ENOSYS);
        };
        served.ok_or(libc::EINVAL)
    }

    fn serve_read(&self, request: &[u8]) -> Option<Payload> {
        let mut reader = Reader(request);
        let (iova, size) = (reader.u64()?, reader.u64()?);
        usize::try_from(size).ok().filter(|size| *size <= MOST_DATA)?;
        let data = self.read(iova, size)?;
        Some(Payload::default().u64(iova).u64(size).bytes(&data))
    }

    fn serve_write(&self, request: &[u8]) -> Option<Payload> {
        let mut reader = Reader(request);
        let (iova, size) = (reader.u64()?, reader.u64()?);
        usize::try_from(size).ok().filter(|size| *size == reader.0.len())?;
        self.write(iova, reader.0)?;
        Some(Payload::default().u64(iova).u64(size))
    }

    /// Reads what the server may read.
    fn read(&self, iova: u64, size: u64) -> Option<Vec<u8>> {
        let (host, size) = self.find(iova, size)?;
        // SAFETY: `find` found `size` bytes from `host` on lent, and so mapped.
        Some((0..size).map(|at| unsafe { host.add(at).read_volatile() }).collect())
    }

    /// Writes where the server may write.
    fn write(&self, iova: u64, data: &[u8]) -> Option<()> {
        let (host, _) = self.find(iova, u64::try_from(data.len()).ok()?)?;
        for (at, byte) in data.iter().enumerate() {
            // SAFETY: `find` found as many bytes as `data` has from `host` on lent, and so mapped.
            unsafe { host.add(at).write_volatile(*byte) };
        }
        Some(())
    }

    /// Where these IOVAs are in this process, if they were lent together.
    fn find(&self, iova: u64, size: u64) -> Option<(NonNull<u8>, usize)> {
        let end = iova.checked_add(size)?;
        let lent = self.lent.iter().find(|lent| {
            lent.iova <= iova && lent.iova.checked_add(lent.size).is_some_and(|last| end <= last)
        })?;
        let offset = usize::try_from(iova.checked_sub(lent.iova)?).ok()?;
        // SAFETY: `offset` is within the memory that was lent.
        Some((unsafe { lent.host.add(offset) }, usize::try_from(size).ok()?))
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn only_what_was_lent_is_reached() {
        let mut memory = [0u8; 64];
        let host = NonNull::from(&mut memory).cast::<u8>();
        let mut ram = Ram::default();
        // SAFETY: the memory outlives `ram`, and is only read through it.
        unsafe { ram.lend(0x4000_0000, host, 64) };
        ram.write(0x4000_003c, &[1, 2, 3, 4]).unwrap();
        assert_eq!(ram.read(0x4000_003b, 5), Some(vec![0, 1, 2, 3, 4]));
        for (iova, size) in [(0x3fff_ffff, 1), (0x4000_0040, 1), (0x4000_003f, 2), (u64::MAX, 2)] {
            assert_eq!(ram.read(iova, size), None, "{iova:#x}");
        }
        assert_eq!(ram.write(0x4000_003d, &[0; 4]), None);
        ram.take_back(0x4000_0000, 63);
        assert!(ram.read(0x4000_0000, 1).is_some());
        ram.take_back(0x4000_0000, 64);
        assert_eq!(ram.read(0x4000_0000, 1), None);
    }

    #[test]
    fn the_file_behind_memory_is_known_by_its_addresses() {
        let mut memory = [0u8; 64];
        let host = NonNull::from(&mut memory).cast::<u8>();
        let mut ram = Ram::default();
        assert!(ram.file_of(host, 1).is_none());
        ram.back(TempFile::new().unwrap().into_file(), host, 64);
        // SAFETY: all of these are within the array, or one past its end.
        let at = |offset| unsafe { host.add(offset) };
        assert_eq!(ram.file_of(at(16), 48).map(|(_, offset)| offset), Some(16));
        assert!(ram.file_of(at(16), 49).is_none());
        assert!(ram.file_of(at(16), u64::MAX).is_none());
    }
}
