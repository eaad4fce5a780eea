//! The guest's kernel: an arm64 `Image`, as it is, gzip'ed, or in an EFI zboot wrapper.
//!
//! Placement follows the kernel's Documentation/arch/arm64/booting.rst. linux-loader puts the image
//! into RAM; recognising, unpacking and placing it are ours, since the crate has none of them and
//! takes the file's size for the kernel's end, where the header's `image_size`, with the BSS, counts.

mod error;
mod image;
#[cfg(target_arch = "aarch64")]
mod load;
mod unpack;

use std::fmt;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

pub use error::KernelError;
pub use unpack::UnpackError;

use crate::file::{BootFile, Role};
use crate::format::{Compressor, Format, START_SIZE};
use crate::layout::Ram;
use image::{HEADER_SIZE, Header};
use unpack::{Compression, UNPACKED_MAX, Zboot, unpack};

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

/// Where a kernel lies in guest RAM: guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where its first byte is loaded.
    pub load: u64,
    /// Where the boot CPU enters it.
    pub entry: u64,
    /// The first address behind its BSS: nothing may be put below.
    pub end: u64,
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
        let length = file.read_start(&mut buffer)?;
        let start = buffer.get(..length).unwrap_or_default();
        let format = Format::of(start);
        if let (Format::Arm64Kernel, Some(header)) = (format, Header::parse(start)) {
            check(&file, &header, start, file.size())?;
            return Ok(Self { file, packaging: Packaging::Image, header, unpacked: None });
        }
        if let Some(zboot) = Zboot::parse(start) {
            return Self::from_zboot(file, zboot);
        }
        match format {
            Format::Compressed(Compressor::Gzip) => {
                let size = file.size();
                Self::unpack(file, Packaging::Gzip, Compression::Gzip, 0, size)
            }
            Format::Unknown | Format::Zeroes if file.size() < HEADER_SIZE => {
                Err(KernelError::TooShort { path: path.to_owned(), size: file.size() })
            }
            format => Err(KernelError::Foreign { path: path.to_owned(), format }),
        }
    }

    /// Takes the image out of an EFI zboot kernel.
    fn from_zboot(file: BootFile, zboot: Zboot) -> Result<Self, KernelError> {
        let path = || file.path().to_owned();
        let least = zboot.least_file_size();
        let (packaging, compression) = match zboot.compression {
            Ok(Compression::Gzip) => (Packaging::ZbootGzip, Compression::Gzip),
            Ok(Compression::Zstd) => (Packaging::ZbootZstd, Compression::Zstd),
            Err(compression) => {
                return Err(KernelError::ZbootCompression { path: path(), compression });
            }
        };
        if file.size() < least {
            return Err(KernelError::Truncated { path: path(), size: file.size(), least });
        }
        Self::unpack(file, packaging, compression, zboot.offset, zboot.size)
    }

    /// Decompresses the `size` bytes from `offset` on.
    fn unpack(
        file: BootFile,
        packaging: Packaging,
        compression: Compression,
        offset: u64,
        size: u64,
    ) -> Result<Self, KernelError> {
        let path = || file.path().to_owned();
        let mut source = file.file();
        source.seek(SeekFrom::Start(offset)).map_err(|e| file.unreadable(e))?;
        let image = unpack(compression, source.take(size), UNPACKED_MAX)
            .map_err(|source| KernelError::Unpack { path: path(), packaging, source })?;
        let start = image.get(..START_SIZE).unwrap_or(&image);
        let Some(header) = Header::parse(start) else {
            let format = Format::of(start);
            return Err(KernelError::ForeignInside { path: path(), packaging, format });
        };
        check(&file, &header, start, image.len() as u64)?;
        Ok(Self { file, packaging, header, unpacked: Some(image) })
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
        self.header.placement(ram, self.image_length()).map_err(|needed| KernelError::DoesNotFit {
            path: self.file.path().to_owned(),
            needed,
            ram: ram_size,
        })
    }
}

/// Refuses an image that strait can't run or that is cut off.
fn check(file: &BootFile, header: &Header, start: &[u8], size: u64) -> Result<(), KernelError> {
    let path = || file.path().to_owned();
    if header.is_big_endian() {
        return Err(KernelError::BigEndian { path: path() });
    }
    let least = header.least_file_size(start);
    if size < least {
        return Err(KernelError::Truncated { path: path(), size, least });
    }
    Ok(())
}
