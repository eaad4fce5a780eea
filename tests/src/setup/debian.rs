//! A Debian system on a disk image, with Debian's kernel, for guests that boot from a disk.
//!
//! Its packages are unpacked and not installed: no arm64 program runs here, so that neither an
//! emulator nor root is needed. `tests/model/debian/make-image` sets up what the packages' own
//! scripts would.

use std::fs;
use std::path::{Path, PathBuf};

use super::archive::{Archive, Versions};
use super::cache::{BuildDirs, Cache, Key};
use super::error::{Error, FileError};
use super::modules;
use super::packages::{self, Need};
use super::part::Part;
use super::process::{self, command};
use super::progress::Step;
use super::stock;
use crate::artifacts;

/// The modules of its kernel that it can load, beside those that they depend on.
const MODULES: [&str; 17] = [
    "autofs4",
    "crc32c_generic",
    "e1000e",
    "efivarfs",
    "evdev",
    "ext4",
    "gpio_keys",
    "nvme",
    "overlay",
    "pl330",
    "vfio_iommu_type1",
    "vfio_pci",
    "virtio-rng",
    "virtio_balloon",
    "virtio_blk",
    "virtio_net",
    "vmw_vsock_virtio_transport",
];

/// Those that it takes to mount a root file system, which an initrd has. ext4's checksums are in a
/// module that it doesn't depend on by name (`MODULE_SOFTDEP` in `fs/ext4/super.c`).
const INITRD_MODULES: [&str; 4] = ["crc32c_generic", "ext4", "nvme", "virtio_blk"];

/// What else depmod takes of a kernel's directory.
const BUILT_IN: [&str; 2] = ["modules.builtin", "modules.builtin.modinfo"];

/// The files from which the image is made, in the directory `debian` of the model's.
const SOURCES: [&str; 4] = ["make-image", "masked-units", "80-dhcp.network", "udev-trigger.conf"];

/// The part's name in the cache.
pub(super) const NAME: &str = "debian-system";

/// The files of the part.
const DISK: &str = "disk.img";
const KERNEL: &str = "vmlinuz";
const MODULE_DIRECTORY: &str = "modules";

/// How the system is made.
pub(super) struct System<'a> {
    /// Where the package of its kernel is.
    pub(super) cache: &'a Cache,
    /// The model's directory.
    pub(super) model: PathBuf,
    /// What the archive has.
    pub(super) versions: &'a Versions,
}

impl Part for System<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> String {
        format!("Debian system of {} packages", self.versions.debian_system.len())
    }

    fn needs(&self) -> Vec<Need> {
        vec![packages::DEBIAN_SYSTEM]
    }

    fn key(&self) -> Result<Key, Error> {
        let packages: Vec<&str> = self.versions.debian_system.iter().map(String::as_str).collect();
        let key = Key::new()
            .with("kernel", stock::kernel_package(self.versions))
            .with_all("packages", &packages)
            .with_all("modules", &MODULES)
            .with_all("initrd", &INITRD_MODULES);
        let sources = self.model.join("debian");
        SOURCES.iter().try_fold(key, |key, name| key.with_file(&sources.join(name)))
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        stock::fetch_kernel(self.cache, self.versions, archive, step, &dirs.work)?;
        let packages = dirs.work.join("packages");
        fs::create_dir(&packages).at("create", &packages)?;
        archive.download(step, &packages, &self.versions.debian_system)
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        let tree = stock::unpack_kernel(step, &dirs.work, &dirs.out.join(KERNEL))?;
        let release = tree.file_name().unwrap_or_default();
        let chosen = dirs.work.join(MODULE_DIRECTORY).join(release);
        modules::collect(step, &tree, &MODULES, &chosen)?;
        for name in BUILT_IN {
            let from = tree.join(name);
            fs::copy(&from, chosen.join(name)).at("copy", from)?;
        }
        modules::collect(step, &tree, &INITRD_MODULES, &dirs.out.join(MODULE_DIRECTORY))?;
        step.phase("making a disk image");
        let image = dirs.work.join(DISK);
        let mut make = command("fakeroot");
        make.arg(self.model.join("debian/make-image"));
        make.arg(dirs.work.join("packages")).arg(&chosen).arg(&image);
        process::run(step, &mut make, |_| {})?;
        let done = dirs.out.join(DISK);
        fs::rename(&image, &done).at("finish", done)
    }
}

/// The system that lies in this directory.
///
/// # Errors
///
/// Its list of modules can't be read.
pub(super) fn found(directory: &Path) -> Result<artifacts::Debian, Error> {
    let modules = modules::listed(&directory.join(MODULE_DIRECTORY))?;
    let kernel = artifacts::Kernel { image: directory.join(KERNEL), modules };
    Ok(artifacts::Debian { disk: directory.join(DISK), kernel })
}
