//! The guest's kernel: an arm64 `Image`, as it is, gzip'ed, or in an EFI zboot wrapper.
//!
//! Placement follows the kernel's Documentation/arch/arm64/booting.rst. linux-loader puts the image
//! into RAM; recognising, unpacking and placing it are ours, since the crate has none of them and
//! takes the file's size for the kernel's end, where the header's `image_size`, with the BSS, counts.

mod error;
mod image;
mod unpack;

use std::fmt;
#[cfg(target_arch = "aarch64")]
use std::io::{self, Cursor};
use std::path::Path;

#[cfg(target_arch = "aarch64")]
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};

pub use error::{KernelError, KernelFault};
pub use unpack::UnpackError;

use crate::file::{BootFile, Role};
#[cfg(target_arch = "aarch64")]
use crate::file::{FileError, FileFault};
use crate::format::{Compressor, Format, START_SIZE};
use crate::layout::{Placement, Ram};
use image::{HEADER_SIZE, Header};
use unpack::{Compression, MAX_UNPACKED_SIZE, Zboot, unpack};

/// How a kernel file wraps its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packaging {
    /// `Image`
    Image,
    /// `Image.gz`
    Gzip,
    /// `vmlinuz.efi` with a gzip payload
    ZbootGzip,
    /// `vmlinuz.efi` with a zstd payload
    ZbootZstd,
}

impl fmt::Display for Packaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "uncompressed",
            Self::Gzip => "gzip'ed",
            Self::ZbootGzip => "an EFI zboot image compressed by gzip",
            Self::ZbootZstd => "an EFI zboot image compressed by zstd",
        })
    }
}

/// A kernel that can be booted; an uncompressed one is still in its open file.
#[derive(Debug)]
pub struct Kernel {
    file: BootFile,
    packaging: Packaging,
    header: Header,
    /// The image, where it had to be decompressed.
    unpacked: Option<Vec<u8>>,
}

impl Kernel {
    /// Opens the kernel at `path` and reads its header; a compressed one is decompressed.
    ///
    /// # Errors
    ///
    /// The file can't be read, isn't a little-endian arm64 kernel (the error says what it is),
    /// or is cut off or damaged.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let file = BootFile::open(Role::Kernel, path)?;
        let mut buffer = [0; START_SIZE];
        let start = file.read_start(&mut buffer)?;
        match parse(&file, start) {
            Ok((packaging, header, unpacked)) => Ok(Self { file, packaging, header, unpacked }),
            Err(fault) => Err(KernelError::Content { path: path.to_owned(), fault }),
        }
    }

    /// The file's path as it was given.
    pub fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    /// How the file wraps its image.
    pub fn packaging(&self) -> Packaging {
        self.packaging
    }

    /// The page size in bytes that the kernel was built for, where its header says.
    pub fn page_size(&self) -> Option<u64> {
        self.header.page_size()
    }

    /// Bytes of the (decompressed) image file.
    fn image_length(&self) -> u64 {
        self.unpacked.as_ref().map_or(self.file.size(), |image| image.len() as u64)
    }

    /// How many bytes its image has, and how many it takes in memory, where it has less than three
    /// quarters: the rest is its BSS, or was cut off.
    pub fn shortage(&self) -> Option<(u64, u64)> {
        let (has, takes) = (self.image_length(), self.header.image_size()?);
        (has < takes / 4 * 3).then_some((has, takes))
    }

    /// Where it lies in RAM of `ram_size` bytes from guest physical address `ram_base` on.
    ///
    /// # Errors
    ///
    /// It doesn't fit with its BSS.
    pub fn placement(&self, ram_base: u64, ram_size: u64) -> Result<Placement, KernelError> {
        let ram = Ram { base: ram_base, size: ram_size };
        self.header.placement(ram, self.image_length()).map_err(|needed| KernelError::Content {
            path: self.file.path().to_owned(),
            fault: KernelFault::DoesNotFit { needed, ram: ram_size },
        })
    }
}

#[cfg(target_arch = "aarch64")]
impl Kernel {
    /// Has linux-loader, whose loader for this format exists for arm64 only, put the image into
    /// guest memory from guest physical address `load` on, which is where its
    /// [placement](Self::placement) has it; an uncompressed one straight from its file, without a
    /// buffer.
    ///
    /// # Errors
    ///
    /// The file can't be read or has shrunk, or the guest has no memory there.
    pub fn load_into<M: GuestMemoryBackend>(self, memory: &M, load: u64) -> Result<(), FileError> {
        use linux_loader::loader::KernelLoader;
        use linux_loader::loader::pe::PE;
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

/// How a kernel is packed, its header, and the image where that had to be decompressed.
type Contents = (Packaging, Header, Option<Vec<u8>>);

/// Reads the header of a kernel that begins with `start`, after decompressing it if need be.
fn parse(file: &BootFile, start: &[u8]) -> Result<Contents, KernelFault> {
    let (format, size) = (Format::of(start), file.size());
    if let (Format::Arm64Kernel, Some(header)) = (format, Header::parse(start)) {
        check(&header, start, size)?;
        return Ok((Packaging::Image, header, None));
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
    Ok((packaging, header, Some(image)))
}

/// Refuses an image that strait can't run or that is cut off.
fn check(header: &Header, start: &[u8], size: u64) -> Result<(), KernelFault> {
    if header.is_big_endian() {
        return Err(KernelFault::BigEndian);
    }
    let least = header.least_file_size(start);
    if size < least { Err(KernelFault::Truncated { size, least }) } else { Ok(()) }
}
