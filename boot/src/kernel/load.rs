//! The image into guest RAM, by linux-loader, whose loader for this format exists for arm64 only.

use std::io::{self, Cursor};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::pe::PE;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::Kernel;
use crate::file::{FileError, FileFault};

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
            let source = GuestMemoryError::InvalidGuestAddress(GuestAddress(load));
            return Err(self.file.error(FileFault::Memory { gpa: load, source }));
        }
        // The crate loads to a file's end, but a signature may follow the image.
        let loaded = match &self.unpacked {
            Some(image) => {
                let image = image.get(..bytes).unwrap_or(image);
                PE::load(memory, base, &mut Cursor::new(image), None)
            }
            None => PE::load(memory, base, &mut self.file.extent(length), None),
        };
        // The crate doesn't tell a file that has shrunk from one that can't be read.
        loaded.map(drop).map_err(|error| {
            let shortened = self.unpacked.is_none().then(|| self.file.shortened(length)).flatten();
            shortened.unwrap_or_else(|| self.file.error(FileFault::Read(io::Error::other(error))))
        })
    }
}
