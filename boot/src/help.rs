//! What a person can do about an error.

use std::error::Error;

/// An error that may know what mends it.
pub trait Help: Error {
    /// What mends it, in lines: commands to type, options to give. `None` where that isn't known.
    fn help(&self) -> Option<String> {
        None
    }
}

impl Help for std::io::Error {}

/// How an EFI program for 64-bit Arm at `path` is run.
pub(crate) fn efi_program(path: &str) -> String {
    format!(
        "strait run --firmware FILE --block DISK, with {path} as EFI/BOOT/BOOTAA64.EFI on the disk's \
         EFI partition"
    )
}
