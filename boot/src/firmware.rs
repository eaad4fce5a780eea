//! Firmware: what is in the flash that a guest begins in.

use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::file::{BootFile, FileError, Role, shell_word};
use crate::format::{EM_AARCH64, Format, PE_AARCH64, START_SIZE};
use crate::help::{Help, efi_program};
use crate::size::Size;

/// What 32-bit Arm firmware begins with: a branch under the condition "always" (Arm ARM for Armv7-A and
/// Armv7-R, A8.8.18 "B").
const ARM_BRANCH: u8 = 0xea;

/// Firmware that can be run, in its open file.
#[derive(Debug)]
pub struct Firmware {
    file: BootFile,
}

/// Why a file can't be firmware.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum FirmwareError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("firmware {} {fault}", path.display())]
    Content { path: PathBuf, fault: FirmwareFault },
}

/// What can be wrong with firmware.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant's text says it")]
pub enum FirmwareFault {
    #[error("has {:#}; a bank of flash has {:#}", Size(*size), Size(*limit))]
    TooLarge { size: u64, limit: u64 },
    #[error("is {0}, not the content of a flash")]
    Foreign(Format),
    #[error("is for 32-bit Arm; a guest's CPUs are 64-bit Arm")]
    Arm32,
    #[error("isn't for 64-bit Arm: no instruction is at its start, where a guest begins")]
    NoCode,
}

impl Help for FirmwareError {
    fn help(&self) -> Option<String> {
        let (path, fault) = match self {
            Self::File(error) => return error.help(),
            Self::Content { path, fault } => (shell_word(path), fault),
        };
        Some(match fault {
            FirmwareFault::TooLarge { .. } => format!("ls -l {path}; a disk is given by --block"),
            FirmwareFault::Foreign(Format::Elf(EM_AARCH64)) => {
                format!("aarch64-linux-gnu-objcopy -O binary {path} firmware.bin")
            }
            FirmwareFault::Foreign(Format::Arm64Kernel | Format::Zboot) => {
                format!("strait run --kernel {path}")
            }
            FirmwareFault::Foreign(Format::Efi(PE_AARCH64)) => efi_program(&path),
            FirmwareFault::Foreign(Format::Compressed(compressor)) => {
                format!("{} -dc {path} > firmware.bin", compressor.command())
            }
            FirmwareFault::Foreign(Format::DiskImage(_) | Format::Disk | Format::FileSystem(_)) => {
                format!("strait run --firmware FILE --block {path}")
            }
            FirmwareFault::Foreign(_) | FirmwareFault::Arm32 | FirmwareFault::NoCode => {
                "apt install u-boot-qemu qemu-efi-aarch64\n\
                 --firmware /usr/lib/u-boot/qemu_arm64/u-boot.bin\n\
                 or --firmware /usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
                    .to_owned()
            }
        })
    }
}

impl Firmware {
    /// Opens the firmware at `path`, which is to be in flash of `limit` bytes.
    ///
    /// # Errors
    ///
    /// The file can't be read, is too large, or can't be firmware for AArch64: the error says what it is.
    pub fn open(path: &Path, limit: u64) -> Result<Self, FirmwareError> {
        let file = BootFile::open(Role::Firmware, path)?;
        let mut buffer = [0; START_SIZE];
        let start = file.read_start(&mut buffer)?;
        match check(start, file.size(), limit) {
            Ok(()) => Ok(Self { file }),
            Err(fault) => Err(FirmwareError::Content { path: path.to_owned(), fault }),
        }
    }

    /// The file's path as it was given.
    pub fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.file.size()
    }

    /// All of it.
    pub fn content(&self) -> impl Read {
        self.file.extent(self.file.size())
    }
}

/// Checks what begins like this.
fn check(start: &[u8], size: u64, limit: u64) -> Result<(), FirmwareFault> {
    match Format::of(start) {
        Format::Unknown => {}
        // Over a header, say: it has the magic numbers of some archives, but not of kernels.
        format if format != Format::Arm64Kernel && begins_with_branch(start) => {}
        Format::Zeroes => return Err(FirmwareFault::NoCode),
        format => return Err(FirmwareFault::Foreign(format)),
    }
    if size > limit {
        return Err(FirmwareFault::TooLarge { size, limit });
    }
    match start {
        // Undefined (Arm ARM, C6.2 "UDF").
        [0, 0, 0, 0, ..] | [_, _, _] | [_, _] | [_] => Err(FirmwareFault::NoCode),
        [_, _, _, ARM_BRANCH, ..] => Err(FirmwareFault::Arm32),
        _ => Ok(()),
    }
}

/// Whether it begins with a branch of A64 (Arm ARM, C6.2 "B").
fn begins_with_branch(start: &[u8]) -> bool {
    const OPCODE: u8 = 0b0001_0100;
    matches!(start, [_, _, _, last, ..] if last & 0b1111_1100 == OPCODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_begins_with_an_instruction() {
        let check = |start: &[u8]| super::check(start, 1 << 20, 64 << 20);
        // U-Boot's and EDK2's.
        assert_eq!(check(&[0x0a, 0, 0, 0x14, 0x1f, 0x20, 3, 0xd5]), Ok(()));
        assert_eq!(check(&[0, 4, 0, 0x14, 0, 0, 0, 0]), Ok(()));
        // EDK2's for x86, and U-Boot's for 32-bit Arm.
        let mut volume = [0; 64];
        volume[40..44].copy_from_slice(b"_FVH");
        assert_eq!(check(&volume), Err(FirmwareFault::NoCode));
        assert_eq!(check(&[0xb8, 0, 0, 0xea, 0, 0, 0, 0]), Err(FirmwareFault::Arm32));
        for (start, format) in [
            (&b"\x7fELF\x02\x01"[..], "an ELF"),
            (&b"\x1f\x8b\x08\0\0\0\0\0\0\0"[..], "gzip"),
            (&b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
        ] {
            let error = check(start).unwrap_err().to_string();
            assert!(error.contains(format), "{error}");
        }
        assert_eq!(check(&[0x14]), Err(FirmwareFault::NoCode));
    }

    #[test]
    fn a_branch_is_no_archive() {
        // By 0x174, 0x22c7c, 0x1c71c and 0x94, over what may be anything.
        let branches = [[0x5d, 0, 0, 0x14], [0x1f, 0x8b, 0, 0x14], [0xc7, 0x71, 0, 0x14]];
        for branch in branches.into_iter().chain([[0x25, 0, 0, 0x14]]) {
            let mut start = [0; START_SIZE];
            start[..4].copy_from_slice(&branch);
            start[510..512].copy_from_slice(b"\x55\xaa");
            assert_eq!(super::check(&start, 1 << 20, 64 << 20), Ok(()));
            assert_eq!(
                super::check(&start, 2, 1),
                Err(FirmwareFault::TooLarge { size: 2, limit: 1 })
            );
            start[56..60].copy_from_slice(b"ARM\x64");
            let kernel = super::check(&start, 1 << 20, 64 << 20);
            assert_eq!(kernel, Err(FirmwareFault::Foreign(Format::Arm64Kernel)));
        }
    }

    #[test]
    fn what_is_advised_can_be_done() {
        let help = |format| {
            let fault = FirmwareFault::Foreign(format);
            FirmwareError::Content { path: "a.efi".into(), fault }.help().unwrap_or_default()
        };
        assert_eq!(help(Format::Zboot), "strait run --kernel a.efi");
        let of_program = help(Format::Efi(PE_AARCH64));
        assert!(of_program.contains("EFI/BOOT/BOOTAA64.EFI"), "{of_program}");
        assert!(!of_program.contains("--kernel"), "{of_program}");
        // Of another machine.
        assert!(help(Format::Efi(0x8664)).contains("apt install"));
    }

    #[test]
    fn firmware_fits_its_flash() {
        let start = [0, 4, 0, 0x14];
        assert_eq!(super::check(&start, 64 << 20, 64 << 20), Ok(()));
        let error = super::check(&start, (64 << 20) + 1, 64 << 20).unwrap_err();
        assert_eq!(error.to_string(), "has 64.0 MiB; a bank of flash has 64 MiB");
    }
}
