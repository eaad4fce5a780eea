//! The image into guest RAM, by linux-loader, whose loader for this format exists for arm64 only.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::pe::PE;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, ReadVolatile, VolatileMemoryError,
    VolatileSlice,
};

use super::Kernel;
use crate::file::FileError;

impl Kernel {
    /// Puts the image into guest memory from guest physical address `load` on, which is where its
    /// [placement](Self::placement) has it; an uncompressed one straight from its file, without a
    /// buffer.
    ///
    /// # Errors
    ///
    /// The file can't be read or has shrunk, or the guest has no memory there.
    pub fn load_into<M: GuestMemoryBackend>(self, memory: &M, load: u64) -> Result<(), FileError> {
        let length = self.header.loaded_size(self.image_length());
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let base = load.checked_sub(self.header.load_offset()).map(GuestAddress);
        if base.is_none() || !memory.check_range(GuestAddress(load), bytes) {
            let outside = GuestMemoryError::InvalidGuestAddress(GuestAddress(load));
            return Err(self.file.unplaced(load, outside));
        }
        let loaded = match &self.unpacked {
            Some(image) => {
                let image = image.get(..bytes).unwrap_or(image);
                PE::load(memory, base, &mut Cursor::new(image), None)
            }
            None => PE::load(memory, base, &mut Start::of(self.file.file(), length), None),
        };
        // The crate doesn't tell a file that has shrunk from one that can't be read.
        loaded.map(drop).map_err(|error| match self.file.file().metadata() {
            Ok(now) if self.unpacked.is_none() && now.len() < length => {
                self.file.shrunk(length, now.len())
            }
            _ => self.file.unreadable(io::Error::other(error)),
        })
    }
}

/// The first bytes of a file: a signature may follow the image, and the crate loads files to their
/// end.
struct Start<'a> {
    file: &'a File,
    length: u64,
    position: u64,
}

impl<'a> Start<'a> {
    fn of(file: &'a File, length: u64) -> Self {
        Self { file, length, position: 0 }
    }

    /// How many of `wanted` bytes there are from the present position on.
    fn left(&self, wanted: usize) -> usize {
        let left = self.length.saturating_sub(self.position);
        usize::try_from(left).unwrap_or(usize::MAX).min(wanted)
    }
}

impl Read for Start<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.left(buffer.len());
        let count =
            self.file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.position)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}

impl Seek for Start<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for Start<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.position)).map_err(VolatileMemoryError::IOError)?;
        let mut buffer = buffer.subslice(0, self.left(buffer.len()))?;
        let count = file.read_volatile(&mut buffer)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}
