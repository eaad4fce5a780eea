//! Why a file can't be booted.

use crate::help::{Help, efi_program};
use std::path::PathBuf;

use thiserror::Error;

use super::Packaging;
use super::unpack::UnpackError;
use crate::file::{FileError, shell_word};
use crate::format::{EM_AARCH64, Format, PE_AARCH64};
use crate::layout::{Ram, more_memory};
use crate::size::Size;

/// What to do with a program that is made for other addresses.
const LINK: &str = "link it to addresses in the guest's RAM, which begins at 0x40000000 or where \
                    --memory SIZE,base=0x… has it";

/// Why a file can't be booted.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum KernelError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("kernel {} {fault}", path.display())]
    Content { path: PathBuf, fault: KernelFault },
}

/// What can be wrong with a kernel.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum KernelFault {
    #[error("is {0}; strait boots arm64 kernels")]
    Foreign(Format),
    #[error("is {packaging}, but what it holds is {format}; strait boots arm64 kernels")]
    ForeignInside { packaging: Packaging, format: Format },
    #[error("is too short to be one: {:#} of at least 64", Size(*size))]
    TooShort { size: u64 },
    #[error("is truncated: {size} bytes of at least {least} that its header describes")]
    Truncated { size: u64, least: u64 },
    #[error("is big-endian; strait boots little-endian kernels")]
    BigEndian,
    #[error("({packaging}) can't be unpacked: {source}")]
    Unpack { packaging: Packaging, source: UnpackError },
    #[error("is an EFI zboot image compressed by {0}; strait unpacks gzip and zstd")]
    ZbootCompression(String),
    #[error(
        "doesn't fit: with its BSS it ends {:#} behind the base of RAM, which has {:#}",
        Size(*needed), Size(*ram)
    )]
    DoesNotFit { needed: u64, ram: u64 },
    #[error("is an ELF file that is damaged")]
    ElfDamaged,
    #[error("is an ELF file, but no program that is linked to fixed addresses (ET_EXEC)")]
    ElfNotLinked,
    #[error("is an ELF file with nothing to load")]
    ElfEmpty,
    #[error(
        "is to lie at {start:#x}-{end:#x}, where the guest has no RAM: that is at {:#x}-{:#x}",
        ram.base, ram.end()
    )]
    OutsideRam { start: u64, end: u64, ram: Ram },
}

impl Help for KernelError {
    fn help(&self) -> Option<String> {
        let (path, fault) = match self {
            Self::File(error) => return error.help(),
            Self::Content { path, fault } => (shell_word(path), fault),
        };
        match fault {
            KernelFault::Foreign(format) => foreign_help(*format, &path),
            KernelFault::TooShort { .. }
            | KernelFault::Truncated { .. }
            | KernelFault::Unpack { .. } => {
                Some("copy or download it again; sha256sum tells whether copies differ".to_owned())
            }
            KernelFault::BigEndian => Some("build it with CONFIG_CPU_LITTLE_ENDIAN=y".to_owned()),
            KernelFault::ForeignInside { .. } | KernelFault::ZbootCompression(_) => {
                Some("use arch/arm64/boot/Image of the same build".to_owned())
            }
            KernelFault::DoesNotFit { needed, .. } => Some(more_memory(*needed)),
            KernelFault::ElfDamaged | KernelFault::ElfEmpty => {
                Some(format!("readelf -lW {path} shows what is in it"))
            }
            KernelFault::ElfNotLinked => Some(LINK.to_owned()),
            KernelFault::OutsideRam { end, ram, .. } if *end > ram.end() => {
                Some(more_memory(end.saturating_sub(ram.base)))
            }
            KernelFault::OutsideRam { .. } => Some(LINK.to_owned()),
        }
    }
}

/// What makes an arm64 kernel of the file at `path`, where something can.
fn foreign_help(format: Format, path: &str) -> Option<String> {
    Some(match format {
        Format::Elf(EM_AARCH64) => {
            "use arch/arm64/boot/Image of the same build instead of vmlinux".to_owned()
        }
        Format::X86Kernel | Format::RiscvKernel | Format::Arm32Kernel | Format::Elf(_) => {
            "build one: make ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- Image".to_owned()
        }
        Format::Compressed(compressor) => format!("{} -dc {path} > Image", compressor.command()),
        Format::UImage(_) => format!("dumpimage -T kernel -p 0 -o Image {path}"),
        Format::Fit => format!(
            "dumpimage -T flat_dt -p 0 -o Image {path}\n\
             (dumpimage -l {path} lists what it holds, which -p counts from 0 on)"
        ),
        Format::DeviceTree => {
            "use arch/arm64/boot/Image; strait makes the guest's device tree itself".to_owned()
        }
        Format::AndroidBoot => format!("unpack_bootimg --boot_img {path} --out . && ls -l kernel"),
        Format::Cpio | Format::OldCpio => format!("strait run --kernel Image --initrd {path}"),
        Format::Tar => format!("tar -tf {path} shows what is in it"),
        Format::Zip => format!("unzip -l {path} shows what is in it"),
        Format::DiskImage(_) | Format::Disk | Format::FileSystem(_) => {
            "the kernel is a file in it, such as /boot/vmlinuz: copy it out".to_owned()
        }
        // A kernel never comes here as what it is.
        Format::Arm64Kernel | Format::Zboot | Format::Script | Format::Text => return None,
        Format::Efi(PE_AARCH64) => efi_program(path),
        Format::Efi(_) | Format::Zeroes | Format::Empty | Format::Unknown => return None,
    })
}
