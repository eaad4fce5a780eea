//! An arm64 `Image`, as it is, gzip'ed, or in an EFI zboot wrapper.
//!
//! Placement follows the kernel's Documentation/arch/arm64/booting.rst. linux-loader puts the image
//! into RAM; recognising, unpacking and placing it are ours, since the crate has none of them and
//! takes the file's size for the kernel's end, where the header's `image_size`, with the BSS, counts.

#[cfg(target_arch = "aarch64")]
use std::io::{self, Cursor, Read};

#[cfg(target_arch = "aarch64")]
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::drivers::ScmiDrivers;
use super::image::{HEADER_SIZE, Header};
use super::unpack::{Compression, MAX_UNPACKED_SIZE, Zboot, unpack};
use super::{KernelFault, Packaging};
use crate::file::BootFile;
#[cfg(target_arch = "aarch64")]
use crate::file::{FileError, FileFault};
use crate::format::{Compressor, Format, START_SIZE};
use crate::layout::{Placement, Ram};

/// A Linux kernel; an uncompressed one is still in its open file.
#[derive(Debug)]
pub(super) struct Linux {
    packaging: Packaging,
    header: Header,
    /// The image, where it had to be decompressed.
    unpacked: Option<Vec<u8>>,
}

impl Linux {
    /// Reads the header of a kernel that begins with `start`, after decompressing it if need be.
    ///
    /// # Errors
    ///
    /// It isn't a little-endian arm64 kernel (the error says what it is), or is cut off or damaged.
    pub(super) fn parse(file: &BootFile, start: &[u8]) -> Result<Self, KernelFault> {
        let (format, size) = (Format::of(start), file.size());
        if let (Format::Arm64Kernel, Some(header)) = (format, Header::parse(start)) {
            check(&header, start, size)?;
            return Ok(Self { packaging: Packaging::Image, header, unpacked: None });
        }
        let (packaging, compression, packed) = match (Zboot::parse(start), format) {
            (Some(zboot), _) => {
                let (packaging, compression) = match zboot.compression {
                    Ok(Compression::Gzip) => (Packaging::ZbootGzip, Compression::Gzip),
                    Ok(Compression::Zstd) => (Packaging::ZbootZstd, Compression::Zstd),
                    Err(compression) => return Err(KernelFault::ZbootCompression(compression)),
                };
                let least = zboot.offset.saturating_add(zboot.size);
                if size < least {
                    return Err(KernelFault::Truncated { size, least });
                }
                (packaging, compression, file.extent(least).after(zboot.offset))
            }
            (None, Format::Compressed(Compressor::Gzip)) => {
                (Packaging::Gzip, Compression::Gzip, file.extent(size))
            }
            (None, Format::Unknown | Format::Zeroes) if size < HEADER_SIZE => {
                return Err(KernelFault::TooShort { size });
            }
            (None, format) => return Err(KernelFault::Foreign(format)),
        };
        let image = unpack(compression, packed, MAX_UNPACKED_SIZE)
            .map_err(|source| KernelFault::Unpack { packaging, source })?;
        let start = image.get(..START_SIZE).unwrap_or(&image);
        let Some(header) = Header::parse(start) else {
            return Err(KernelFault::ForeignInside { packaging, format: Format::of(start) });
        };
        check(&header, start, image.len() as u64)?;
        Ok(Self { packaging, header, unpacked: Some(image) })
    }

    /// How the file wraps its image.
    pub(super) fn packaging(&self) -> Packaging {
        self.packaging
    }

    /// The page size in bytes that the kernel was built for, where its header says.
    pub(super) fn page_size(&self) -> Option<u64> {
        self.header.page_size()
    }

    /// The drivers of SCMI that are built in.
    pub(super) fn scmi_drivers(&self, file: &BootFile) -> ScmiDrivers {
        match &self.unpacked {
            Some(image) => ScmiDrivers::of(image.as_slice()),
            None => ScmiDrivers::of(file.extent(file.size())),
        }
    }

    /// Bytes of the (decompressed) image file.
    fn image_length(&self, file: &BootFile) -> u64 {
        self.unpacked.as_ref().map_or(file.size(), |image| image.len() as u64)
    }

    /// How many bytes its image has, and how many it takes in memory, where it has less than three
    /// quarters: the rest is its BSS, or was cut off.
    pub(super) fn shortage(&self, file: &BootFile) -> Option<(u64, u64)> {
        let (has, takes) = (self.image_length(file), self.header.image_size()?);
        (has < takes / 4 * 3).then_some((has, takes))
    }

    /// Where it lies.
    ///
    /// # Errors
    ///
    /// It doesn't fit with its BSS.
    pub(super) fn placement(&self, file: &BootFile, ram: Ram) -> Result<Placement, KernelFault> {
        let placement = self.header.placement(ram, self.image_length(file));
        placement.map_err(|needed| KernelFault::DoesNotFit { needed, ram: ram.size })
    }

    /// Has linux-loader, whose loader for this format exists for arm64 only, put the image into
    /// guest memory from guest physical address `load` on; an uncompressed one straight from its file,
    /// without a buffer.
    ///
    /// # Errors
    ///
    /// The file can't be read or has shrunk, or the guest has no memory there.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn load_into<M: GuestMemoryBackend>(
        &self,
        file: &BootFile,
        memory: &M,
        load: u64,
    ) -> Result<(), FileError> {
        use linux_loader::loader::KernelLoader;
        use linux_loader::loader::pe::PE;
        let length = self.header.loaded_size(self.image_length(file));
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let base = load.checked_sub(self.header.load_offset()).map(GuestAddress);
        if base.is_none() || !memory.check_range(GuestAddress(load), bytes) {
            let source = GuestMemoryError::InvalidGuestAddress(GuestAddress(load));
            return Err(file.error(FileFault::Memory { gpa: load, source }));
        }
        // The crate loads to a file's end, but a signature may follow the image.
        let mut extent = file.extent(length);
        let loaded = match &self.unpacked {
            Some(image) => {
                let image = image.get(..bytes).unwrap_or(image);
                PE::load(memory, base, &mut Cursor::new(image), None)
            }
            None => PE::load(memory, base, &mut extent, None),
        };
        // The crate doesn't tell a file that has shrunk from one that can't be read, nor why: where it
        // stopped, that is asked again.
        loaded.map(drop).map_err(|error| {
            let shortened = self.unpacked.is_none().then(|| file.shortened(length)).flatten();
            let cause = || extent.read(&mut [0]).err().unwrap_or_else(|| io::Error::other(error));
            shortened.unwrap_or_else(|| file.error(FileFault::Read(cause())))
        })
    }
}

/// Refuses an image that strait can't run or that is cut off.
fn check(header: &Header, start: &[u8], size: u64) -> Result<(), KernelFault> {
    if header.is_big_endian() {
        return Err(KernelFault::BigEndian);
    }
    let least = header.least_file_size(start);
    if size < least { Err(KernelFault::Truncated { size, least }) } else { Ok(()) }
}
