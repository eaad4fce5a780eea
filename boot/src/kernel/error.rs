//! Why a file can't be booted.

use std::path::PathBuf;

use thiserror::Error;

use super::Packaging;
use super::format::Format;
use super::unpack::UnpackError;
use crate::file::FileError;
use crate::layout::more_memory;
use crate::size::Size;

/// Why a file can't be booted.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum KernelError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("kernel {} is {format}; strait boots arm64 kernels", path.display())]
    Foreign { path: PathBuf, format: Format },
    #[error(
        "kernel {} is {packaging}, but what it holds is {format}; strait boots arm64 kernels",
        path.display()
    )]
    ForeignInside { path: PathBuf, packaging: Packaging, format: Format },
    #[error("kernel {} is too short to be one: {} of at least 64", path.display(), Size(*size))]
    TooShort { path: PathBuf, size: u64 },
    #[error(
        "kernel {} is truncated: {size} bytes of at least {least} that its header describes",
        path.display()
    )]
    Truncated { path: PathBuf, size: u64, least: u64 },
    #[error("kernel {} is big-endian; strait boots little-endian kernels", path.display())]
    BigEndian { path: PathBuf },
    #[error("kernel {} ({packaging}) can't be unpacked: {source}", path.display())]
    Unpack { path: PathBuf, packaging: Packaging, source: UnpackError },
    #[error(
        "kernel {} is an EFI zboot image compressed by {compression}; strait unpacks gzip and zstd",
        path.display()
    )]
    ZbootCompression { path: PathBuf, compression: String },
    #[error(
        "kernel {} doesn't fit: with its BSS it ends {} behind the base of RAM, which has {}",
        path.display(), Size(*needed), Size(*ram)
    )]
    DoesNotFit { path: PathBuf, needed: u64, ram: u64 },
}

impl KernelError {
    /// What mends it: a command or an option, where there is one.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::File(error) => error.help(),
            Self::Foreign { path, format } => format.help(&path.display().to_string()),
            Self::TooShort { .. } | Self::Truncated { .. } | Self::Unpack { .. } => {
                Some("copy or download it again; sha256sum tells whether copies differ".to_owned())
            }
            Self::BigEndian { .. } => Some("build it with CONFIG_CPU_LITTLE_ENDIAN=y".to_owned()),
            Self::ForeignInside { .. } | Self::ZbootCompression { .. } => {
                Some("use arch/arm64/boot/Image of the same build".to_owned())
            }
            Self::DoesNotFit { needed, .. } => Some(more_memory(*needed)),
        }
    }
}
