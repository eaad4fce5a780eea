//! What is taken from Debian as it is: its arm64 kernel with some modules, and busybox.

use std::fs;
use std::path::Path;

use super::archive::{Archive, Versions};
use super::cache::{BuildDirs, Key};
use super::error::{Error, FileError};
use super::modules;
use super::packages::{self, Need};
use super::part::{Part, upstream};
use super::process::{self, command};
use super::progress::Step;
use super::qemu::file_with;

/// The modules that an unmodified guest needs for what is assigned to it.
const MODULES: [&str; 1] = ["pl330"];

/// The names of the parts in the cache.
pub(super) const KERNEL: &str = "stock-kernel";
pub(super) const BUSYBOX: &str = "busybox";

/// Debian's stock kernel.
pub(super) struct Kernel<'a> {
    /// What the archive has.
    pub(super) versions: &'a Versions,
}

impl Kernel<'_> {
    fn package(&self) -> String {
        format!("{}={}", self.versions.linux_image_package, self.versions.linux_image)
    }
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
        Ok(Key::new().with("package", self.package()).with_all("modules", &MODULES))
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        archive.download(step, &dirs.work, &[self.package()])
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        unpack(step, dirs)?;
        let kernel = file_with(&dirs.work.join("boot"), |name| name.starts_with("vmlinuz"))?;
        fs::copy(&kernel, dirs.out.join("vmlinuz")).at("copy", &kernel)?;
        // Debian 13 has /usr/lib/modules in the package, earlier releases /lib/modules.
        let merged = dirs.work.join("usr/lib/modules");
        let tree = if merged.is_dir() { merged } else { dirs.work.join("lib/modules") };
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
        unpack(step, dirs)?;
        let places = ["usr/bin/busybox", "bin/busybox"].map(|place| dirs.work.join(place));
        let program = places.iter().find(|place| place.is_file()).ok_or_else(|| {
            Error::Missing { what: "busybox".to_owned(), place: dirs.work.clone() }
        })?;
        fs::copy(program, dirs.out.join("busybox")).at("copy", program).map(drop)
    }
}

fn unpack(step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
    step.phase("unpacking");
    let package: &Path = &file_with(&dirs.work, |name| name.ends_with(".deb"))?;
    process::run(step, command("dpkg-deb").arg("-x").args([package, &dirs.work]), |_| {})
}
