//! Why a file is no initrd.

use crate::help::Help;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::file::{FileError, shell_word};
use crate::format::{Compressor, FileSystem, Format};

/// Why a file is no initrd.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum InitrdError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("initrd {} {fault}", path.display())]
    Content { path: PathBuf, fault: InitrdFault },
}

/// What can be wrong with the content of an initrd.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum InitrdFault {
    #[error("can't be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is {0}; Linux takes cpio archives")]
    Foreign(Format),
    #[error("is gzip'ed, but what it holds is {0}; Linux takes cpio archives")]
    ForeignInside(Format),
    #[error("is cut off: it ends within {wrapper}")]
    CutOff { wrapper: &'static str },
    #[error("is damaged: {wrapper} is malformed")]
    Damaged { wrapper: &'static str },
    #[error("is compressed by xz with a check that Linux doesn't know; CRC32 it does")]
    XzCheck,
    #[error("is compressed by lz4 in a frame that Linux doesn't know")]
    Lz4Frame,
    #[error("is {0}; Linux boots from one only with root=/dev/ram0, and takes cpio archives else")]
    NotRoot(FileSystem),
}

/// Makes a cpio archive of what is in the directory `root`.
const PACK: &str = "(cd root && find . | cpio -o -H newc) > initrd.cpio";

impl Help for InitrdError {
    fn help(&self) -> Option<String> {
        let (path, fault) = match self {
            Self::File(error) => return error.help(),
            Self::Content { path, fault } => (shell_word(path), fault),
        };
        Some(match fault {
            InitrdFault::Unreadable(_) => return None,
            InitrdFault::Foreign(format) => foreign_help(*format, &path),
            InitrdFault::ForeignInside(format) => inside_help(*format, &path),
            InitrdFault::CutOff { .. } | InitrdFault::Damaged { .. } => {
                "copy or download it again; sha256sum tells whether copies differ".to_owned()
            }
            InitrdFault::XzCheck => format!("xz -dc {path} | xz --check=crc32 > initrd.xz"),
            InitrdFault::Lz4Frame => format!("lz4 -dc {path} | lz4 -l > initrd.lz4"),
            InitrdFault::NotRoot(_) => {
                "--cmdline root=/dev/ram0, if the guest's kernel has CONFIG_BLK_DEV_RAM".to_owned()
            }
        })
    }
}

/// What makes an initrd of the file at `path`.
fn foreign_help(format: Format, path: &str) -> String {
    match format {
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
    }
}

/// The same for what is gzip'ed.
fn inside_help(format: Format, path: &str) -> String {
    match format {
        Format::Tar => format!("mkdir root && tar -xzf {path} -C root && {PACK}"),
        Format::OldCpio => format!(
            "mkdir root && {} -dc {path} | cpio -idD root && {PACK}",
            Compressor::Gzip.command()
        ),
        // strait takes gzip'ed kernels.
        Format::Arm64Kernel => foreign_help(format, path),
        _ => foreign_help(Format::Unknown, path),
    }
}
