//! What is taken from Debian as it is: its arm64 kernel with some modules, and busybox.

use std::fs;
use std::path::{Path, PathBuf};

use super::archive::{Archive, Versions};
use super::cache::{BuildDirs, Cache, Key};
use super::error::{Error, FileError};
use super::modules;
use super::packages::{self, Need};
use super::part::{Part, upstream};
use super::process::{self, command};
use super::progress::Step;
use super::qemu::file_with;

/// The modules that an unmodified guest needs for what is assigned to it.
pub(super) const MODULES: [&str; 1] = ["pl330"];

/// The names of the parts in the cache.
pub(super) const KERNEL: &str = "stock-kernel";
pub(super) const BUSYBOX: &str = "busybox";

/// What the kernel's package is called in the cache. `cargo model clean` removes it, since all that
/// is made of it is there.
const PACKAGE: &str = "linux-image";

/// Debian's stock kernel.
pub(super) struct Kernel<'a> {
    /// Where its package is, which the Debian system is made of too.
    pub(super) cache: &'a Cache,
    /// What the archive has.
    pub(super) versions: &'a Versions,
}

/// The kernel's package, as apt-get takes it.
pub(super) fn kernel_package(versions: &Versions) -> String {
    format!("{}={}", versions.linux_image_package, versions.linux_image)
}

/// Puts the kernel's package into `to`; downloads it if it isn't in the cache.
pub(super) fn fetch_kernel(
    cache: &Cache,
    versions: &Versions,
    archive: &Archive,
    step: &Step,
    to: &Path,
) -> Result<(), Error> {
    let package = kernel_package(versions);
    let key = Key::new().with("package", &package);
    let kept = cache
        .entry(PACKAGE, key)
        .get(step, |dirs| archive.download(step, &dirs.out, &[package]))?;
    let from = file_with(&kept.dir, |name| name.ends_with(".deb"))?;
    fs::hard_link(&from, to.join("linux-image.deb")).at("link", from)
}

/// Unpacks the kernel's packages in `work`, copies the kernel to `kernel`, and returns the directory
/// of its modules, which is named after its release.
pub(super) fn unpack_kernel(step: &Step, work: &Path, kernel: &Path) -> Result<PathBuf, Error> {
    unpack(step, work)?;
    // Since Debian 13 packages have /usr/lib/modules, earlier ones /lib/modules.
    let merged = work.join("usr/lib/modules");
    let trees = if merged.is_dir() { merged } else { work.join("lib/modules") };
    let tree = file_with(&trees, |_| true)?;
    // Since 7.2 the kernel lies beside its modules.
    let beside = tree.join("vmlinuz");
    let from = if beside.is_file() {
        beside
    } else {
        file_with(&work.join("boot"), |name| name.starts_with("vmlinuz"))?
    };
    fs::copy(&from, kernel).at("copy", &from)?;
    Ok(tree)
}

impl Part for Kernel<'_> {
    fn name(&self) -> &'static str {
        KERNEL
    }

    fn title(&self) -> String {
        format!("Debian's kernel {}", upstream(&self.versions.linux_image))
    }

    fn needs(&self) -> Vec<Need> {
        vec![packages::UNPACK]
    }

    fn key(&self) -> Result<Key, Error> {
        let package = kernel_package(self.versions);
        Ok(Key::new().with("package", package).with_all("modules", &MODULES))
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        fetch_kernel(self.cache, self.versions, archive, step, &dirs.work)
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        let tree = unpack_kernel(step, &dirs.work, &dirs.out.join("vmlinuz"))?;
        modules::collect(step, &tree, &MODULES, &dirs.out.join("modules"))
    }
}

/// Debian's statically linked busybox.
pub(super) struct Busybox<'a> {
    /// Its version.
    pub(super) version: &'a str,
}

impl Busybox<'_> {
    fn package(&self) -> String {
        format!("busybox-static={}", self.version)
    }
}

impl Part for Busybox<'_> {
    fn name(&self) -> &'static str {
        BUSYBOX
    }

    fn title(&self) -> String {
        format!("busybox {}", upstream(self.version))
    }

    fn needs(&self) -> Vec<Need> {
        vec![packages::UNPACK]
    }

    fn key(&self) -> Result<Key, Error> {
        Ok(Key::new().with("package", self.package()))
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        archive.download(step, &dirs.work, &[self.package()])
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        unpack(step, &dirs.work)?;
        let places = ["usr/bin/busybox", "bin/busybox"].map(|place| dirs.work.join(place));
        let program = places.iter().find(|place| place.is_file()).ok_or_else(|| {
            Error::Missing { what: "busybox".to_owned(), place: dirs.work.clone() }
        })?;
        fs::copy(program, dirs.out.join("busybox")).at("copy", program).map(drop)
    }
}

/// Unpacks the packages in `work` there.
pub(super) fn unpack(step: &Step, work: &Path) -> Result<(), Error> {
    step.phase("unpacking");
    for entry in fs::read_dir(work).at("read", work)? {
        let path = entry.at("read", work)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            process::run(step, command("dpkg-deb").arg("-x").args([&path, work]), |_| {})?;
        }
    }
    Ok(())
}
