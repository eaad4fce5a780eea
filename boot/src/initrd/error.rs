//! Why a file is no initrd.

use std::path::PathBuf;

use thiserror::Error;

use crate::file::FileError;
use crate::format::{Compressor, FileSystem, Format};
use crate::shell;

/// Why a file is no initrd.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum InitrdError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("initrd {} is {format}; Linux takes cpio archives", path.display())]
    Foreign { path: PathBuf, format: Format },
    #[error(
        "initrd {} is gzip'ed, but what it holds is {format}; Linux takes cpio archives",
        path.display()
    )]
    ForeignInside { path: PathBuf, format: Format },
    #[error("initrd {} is cut off: it ends within {wrapper}", path.display())]
    CutOff { path: PathBuf, wrapper: &'static str },
    #[error("initrd {} is damaged: {wrapper} makes no sense", path.display())]
    Damaged { path: PathBuf, wrapper: &'static str },
    #[error(
        "initrd {} is compressed by xz with a check that Linux doesn't know; CRC32 it does",
        path.display()
    )]
    XzCheck { path: PathBuf },
    #[error("initrd {} is compressed by lz4 in a frame that Linux doesn't know", path.display())]
    Lz4Frame { path: PathBuf },
    #[error(
        "initrd {} is {kind}; Linux boots from one only with root=/dev/ram0, and takes cpio \
         archives else",
        path.display()
    )]
    NotRoot { path: PathBuf, kind: FileSystem },
}

/// Makes a cpio archive of what is in the directory `root`.
const PACK: &str = "(cd root && find . | cpio -o -H newc) > initrd.cpio";

impl InitrdError {
    /// What mends it: a command or an option, where there is one.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::File(error) => error.help(),
            Self::Foreign { path, format } => foreign_help(*format, &shell::word(path)),
            Self::ForeignInside { path, format } => inside_help(*format, &shell::word(path)),
            Self::CutOff { .. } | Self::Damaged { .. } => {
                Some("copy or download it again; sha256sum tells whether copies differ".to_owned())
            }
            Self::XzCheck { path } => {
                let path = shell::word(path);
                Some(format!("xz -dc {path} | xz --check=crc32 > initrd.xz"))
            }
            Self::Lz4Frame { path } => {
                Some(format!("lz4 -dc {} | lz4 -l > initrd.lz4", shell::word(path)))
            }
            Self::NotRoot { .. } => Some(
                "--cmdline root=/dev/ram0, if the guest's kernel has CONFIG_BLK_DEV_RAM".to_owned(),
            ),
        }
    }
}

/// What makes an initrd of the file at `path`, where something can.
fn foreign_help(format: Format, path: &str) -> Option<String> {
    Some(match format {
        Format::Arm64Kernel | Format::Zboot => {
            format!("strait run --kernel {path} --initrd initrd.cpio")
        }
        Format::UImage(_) => format!(
            "dumpimage -l {path} lists what it holds, which -p counts from 0 on:\n\
             dumpimage -T multi -p 1 -o initrd {path}"
        ),
        Format::Fit => format!(
            "dumpimage -l {path} lists what it holds, which -p counts from 0 on:\n\
             dumpimage -T flat_dt -p 1 -o initrd {path}"
        ),
        Format::DeviceTree => {
            "strait makes the guest's device tree itself; --dtb-overlay FILE changes it".to_owned()
        }
        Format::AndroidBoot => format!("unpack_bootimg --boot_img {path} --out . && ls -l ramdisk"),
        Format::OldCpio => format!("mkdir root && cpio -idD root < {path} && {PACK}"),
        Format::Tar => format!("mkdir root && tar -xf {path} -C root && {PACK}"),
        Format::Zip => format!("mkdir root && unzip -q {path} -d root && {PACK}"),
        _ => format!("make one of what is in a directory: {PACK}"),
    })
}

/// The same for what is gzip'ed.
fn inside_help(format: Format, path: &str) -> Option<String> {
    match format {
        Format::Tar => Some(format!("mkdir root && tar -xzf {path} -C root && {PACK}")),
        Format::OldCpio => Some(format!(
            "mkdir root && {} -dc {path} | cpio -idD root && {PACK}",
            Compressor::Gzip.command()
        )),
        // strait takes gzip'ed kernels.
        Format::Arm64Kernel => foreign_help(format, path),
        _ => foreign_help(Format::Unknown, path),
    }
}
