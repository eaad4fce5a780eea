//! Debian's kernels of other releases than the model's: an older one and the newest there is, for guests; the
//! newest one is a host's, too.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::archive::{Archive, Versions};
use super::cache::{BuildDirs, Key};
use super::error::{Error, FileError};
use super::modules;
use super::packages::{self, Need};
use super::part::Part;
use super::progress::Step;
use super::stock;
use crate::artifacts;

/// The part's name in the cache.
pub(super) const NAME: &str = "other-kernels";

/// Where they are taken from: the release before the model's, and what is newer than any release.
pub(super) const SUITES: [&str; 2] = ["bookworm", "trixie-backports"];

/// What a host with the newest of them loads: VFIO, networks and sockets of guests, and the driver that a disk
/// has before VFIO has it. The port of the agent and the IOMMU are built in.
const HOST_MODULES: [&str; 6] =
    ["nvme", "tun", "vfio_iommu_type1", "vfio_pci", "vhost_net", "vhost_vsock"];

/// The directory of these modules, beside the newest kernel.
const HOST_DIRECTORY: &str = "host-modules";

/// The kernel of a suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SuiteKernel {
    /// The suite's name.
    pub(super) suite: String,
    /// The packages that hold the kernel and its modules, each as `name=version`.
    pub(super) packages: Vec<String>,
}

/// The kernels of all [`SUITES`].
pub(super) struct OtherKernels<'a> {
    /// What the archive has.
    pub(super) versions: &'a Versions,
}

impl Part for OtherKernels<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> String {
        "Debian's other kernels".to_owned()
    }

    fn needs(&self) -> Vec<Need> {
        vec![packages::UNPACK]
    }

    fn key(&self) -> Result<Key, Error> {
        let kernels = self.versions.other_kernels.iter();
        let packages: Vec<&str> =
            kernels.flat_map(|kernel| &kernel.packages).map(String::as_str).collect();
        let key = Key::new().with_all("packages", &packages).with_all("modules", &stock::MODULES);
        Ok(key.with_all("host-modules", &HOST_MODULES))
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        for SuiteKernel { suite, packages } in &self.versions.other_kernels {
            let directory = dirs.work.join(suite);
            fs::create_dir(&directory).at("create", &directory)?;
            archive.download(step, &directory, packages)?;
        }
        Ok(())
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        for SuiteKernel { suite, .. } in &self.versions.other_kernels {
            let out = dirs.out.join(suite);
            fs::create_dir(&out).at("create", &out)?;
            let tree = stock::unpack_kernel(step, &dirs.work.join(suite), &out.join("vmlinuz"))?;
            modules::collect(step, &tree, &stock::MODULES, &out.join("modules"))?;
            if SUITES.last().is_some_and(|newest| newest == suite) {
                modules::collect(step, &tree, &HOST_MODULES, &out.join(HOST_DIRECTORY))?;
            }
        }
        Ok(())
    }
}

/// What lies in the directory of this part.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// The kernels with the modules of guests, in the order of [`SUITES`].
    pub(super) guests: Vec<artifacts::Kernel>,
    /// The newest with those of a host.
    pub(super) host: Option<artifacts::Kernel>,
}

/// The kernels that lie in this directory.
///
/// # Errors
///
/// A list of modules can't be read.
pub(super) fn found(directory: &Path) -> Result<Found, Error> {
    let kernel = |suite: &str, modules: &str| {
        let directory = directory.join(suite);
        let modules = modules::listed(&directory.join(modules))?;
        Ok(artifacts::Kernel { image: directory.join("vmlinuz"), modules })
    };
    Ok(Found {
        guests: SUITES
            .into_iter()
            .map(|suite| kernel(suite, "modules"))
            .collect::<Result<_, _>>()?,
        host: SUITES.last().map(|suite| kernel(suite, HOST_DIRECTORY)).transpose()?,
    })
}
