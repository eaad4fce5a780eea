//! What all parts of the model that are made of Debian's archive have in common.

use super::archive::{Archive, Versions};
use super::cache::{BuildDirs, Cache, CacheEntry, Key};
use super::debian::System;
use super::error::Error;
use super::firmware::Firmware;
use super::kernels::OtherKernels;
use super::linux::{self, Linux, Variant};
use super::machine::Machine;
use super::packages::Need;
use super::progress::Step;
use super::qemu::Qemu;
use super::stock::{Busybox, Kernel};
use super::workspace;

/// A part of the model that lies in the cache.
pub(super) trait Part: Sync {
    /// Its name in the cache.
    fn name(&self) -> &'static str;

    /// Its name with its version, for the person.
    fn title(&self) -> String;

    /// What it is made of.
    fn key(&self) -> Result<Key, Error>;

    /// The packages without which it can't be built.
    fn needs(&self) -> Vec<Need>;

    /// Downloads what it is made of.
    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error>;

    /// Builds or unpacks what was downloaded.
    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error>;

    /// Where it lies.
    fn entry(&self, cache: &Cache) -> Result<CacheEntry, Error> {
        Ok(cache.entry(self.name(), self.key()?))
    }
}

/// The parts, one field each.
pub(super) struct Parts<'a> {
    /// QEMU.
    pub(super) qemu: Qemu<'a>,
    /// The host's kernel.
    pub(super) linux: Linux<'a>,
    /// The host's kernel with pages of 64 KiB.
    pub(super) linux_64k: Linux<'a>,
    /// The host's kernel of the newest sources.
    pub(super) linux_newest: Linux<'a>,
    /// Debian's kernel.
    pub(super) stock: Kernel<'a>,
    /// Debian's kernels of other releases.
    pub(super) other_kernels: OtherKernels<'a>,
    /// Debian's busybox.
    pub(super) busybox: Busybox<'a>,
    /// A Debian system on a disk.
    pub(super) system: System<'a>,
    /// Firmware.
    pub(super) firmware: Firmware<'a>,
}

impl<'a> Parts<'a> {
    /// The parts as this machine makes them of these versions.
    pub(super) fn new(machine: &'a Machine, cache: &'a Cache, versions: &'a Versions) -> Self {
        let model = workspace::model_dir();
        let kernel = |variant| {
            let sources = match variant {
                Variant::Usual | Variant::LargePages => {
                    linux::sources_package(&versions.linux_source)
                }
                Variant::Newest => versions.newest_linux_source.clone(),
            };
            Linux { machine, cache, model: model.clone(), sources, variant }
        };
        Self {
            linux: kernel(Variant::Usual),
            linux_64k: kernel(Variant::LargePages),
            linux_newest: kernel(Variant::Newest),
            qemu: Qemu { machine, model: model.clone(), version: &versions.qemu },
            stock: Kernel { cache, versions },
            other_kernels: OtherKernels { versions },
            busybox: Busybox { version: &versions.busybox },
            system: System { cache, model: model.clone(), versions },
            firmware: Firmware { versions },
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> [&dyn Part; 9] {
        let Self {
            qemu,
            linux,
            linux_64k,
            linux_newest,
            stock,
            other_kernels,
            busybox,
            system,
            firmware,
        } = self;
        [linux, qemu, linux_64k, stock, other_kernels, busybox, system, firmware, linux_newest]
    }
}

/// Upstream's version: Debian's without the epoch and the revision.
pub(super) fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    version.split(['-', '+']).next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_version_has_no_epoch_and_no_revision() {
        let table =
            [("1:10.0.13+ds-0+deb13u1", "10.0.13"), ("6.12.9-1", "6.12.9"), ("3", "3"), ("", "")];
        for (version, expected) in table {
            assert_eq!(upstream(version), expected);
        }
    }
}
