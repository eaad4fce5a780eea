//! Debian's kernels of other releases than the model's: an older one and the newest there is, for guests.

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
        Ok(Key::new().with_all("packages", &packages).with_all("modules", &stock::MODULES))
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
        }
        Ok(())
    }
}

/// The kernels that lie in this directory, in the order of [`SUITES`].
///
/// # Errors
///
/// A list of modules can't be read.
pub(super) fn found(directory: &Path) -> Result<Vec<artifacts::Kernel>, Error> {
    let kernel = |suite: &str| {
        let modules = modules::listed(&directory.join(suite).join("modules"))?;
        Ok(artifacts::Kernel { image: directory.join(suite).join("vmlinuz"), modules })
    };
    SUITES.into_iter().map(kernel).collect()
}
