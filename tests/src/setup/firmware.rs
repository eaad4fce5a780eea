//! Debian's firmware for QEMU's `virt`, and its boot loader for EFI.

use std::fs;
use std::path::Path;

use super::archive::{Archive, Versions};
use super::cache::{BuildDirs, Key};
use super::error::{Error, FileError};
use super::packages::{self, Need};
use super::part::Part;
use super::progress::Step;
use super::stock;
use crate::artifacts;

/// The part's name in the cache.
pub(super) const NAME: &str = "firmware";

/// The packages.
pub(super) const PACKAGES: [&str; 3] =
    ["u-boot-qemu", "qemu-efi-aarch64", "grub-efi-arm64-unsigned"];

/// The files of the part, and where the packages have them.
const U_BOOT: (&str, &str) = ("u-boot.bin", "usr/lib/u-boot/qemu_arm64/u-boot.bin");
const EDK2: (&str, &str) = ("QEMU_EFI.fd", "usr/share/qemu-efi-aarch64/QEMU_EFI.fd");
const GRUB: (&str, &str) = ("grubaa64.efi", "usr/lib/grub/arm64-efi/monolithic/grubaa64.efi");

/// How it is made.
pub(super) struct Firmware<'a> {
    /// What the archive has.
    pub(super) versions: &'a Versions,
}

impl Part for Firmware<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> String {
        "Debian's firmware".to_owned()
    }

    fn needs(&self) -> Vec<Need> {
        vec![packages::UNPACK]
    }

    fn key(&self) -> Result<Key, Error> {
        let packages: Vec<&str> = self.versions.firmware.iter().map(String::as_str).collect();
        Ok(Key::new().with_all("packages", &packages))
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        archive.download(step, &dirs.work, &self.versions.firmware)
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        stock::unpack(step, &dirs.work)?;
        for (name, place) in [U_BOOT, EDK2, GRUB] {
            let from = dirs.work.join(place);
            fs::copy(&from, dirs.out.join(name)).at("copy", &from)?;
        }
        Ok(())
    }
}

/// The firmware that lies in this directory.
pub(super) fn found(directory: &Path) -> artifacts::Firmware {
    let [u_boot, edk2, grub] = [U_BOOT, EDK2, GRUB].map(|(name, _)| directory.join(name));
    artifacts::Firmware { u_boot, edk2, grub }
}
