//! What the system model is made of: paths of finished files, and nothing about how they came.

use std::ffi::OsString;
use std::path::PathBuf;
use std::{env, fs, io};

use serde::{Deserialize, Serialize};

/// The environment variable that names the file in which a system test finds its [`Artifacts`].
pub const VARIABLE: &str = "STRAIT_MODEL";

/// Everything a model host is started from. All paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifacts {
    /// `qemu-system-aarch64` with the assignable devices behind the SMMU of its `virt` board. It
    /// has no option ROMs: a PCI network device needs `romfile=`.
    pub qemu: PathBuf,
    /// The arm64 `Image` that serves as the host's kernel, and as a guest's.
    pub host_kernel: PathBuf,
    /// Modules of [`Self::host_kernel`], such as `dmatest.ko`, in the order in which `insmod` takes
    /// them.
    pub host_modules: Vec<PathBuf>,
    /// The same with pages of 64 KiB, which only tests need.
    pub host_64k: Option<Kernel>,
    /// The same of the newest sources and with SR-IOV, which only long tests need.
    #[serde(default)]
    pub host_newest: Option<Kernel>,
    /// Debian's arm64 `vmlinuz`, unmodified.
    pub stock_kernel: PathBuf,
    /// A directory with `pl330.ko` of [`Self::stock_kernel`] and the modules it depends on,
    /// decompressed. The file `modules.order` in it has their names in the order in which `insmod`
    /// takes them, one a line.
    pub stock_modules: PathBuf,
    /// Debian's kernels of other releases, oldest first, with the same modules; only tests need them.
    #[serde(default)]
    pub other_kernels: Vec<Kernel>,
    /// The newest of them with what a host loads, VFIO's modules among it; only tests need it.
    #[serde(default)]
    pub debian_newest: Option<Kernel>,
    /// A statically linked arm64 busybox.
    pub busybox: PathBuf,
    /// A Debian system, which only tests need.
    pub debian: Option<Debian>,
    /// Firmware, which only tests need.
    pub firmware: Option<Firmware>,
    /// `strait`: arm64, statically linked, release profile.
    pub strait: PathBuf,
    /// The test agent: arm64, statically linked.
    pub agent: PathBuf,
}

/// A kernel and its modules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// The arm64 `Image`.
    pub image: PathBuf,
    /// Its modules in the order in which `insmod` takes them.
    pub modules: Vec<PathBuf>,
}

/// A Debian system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debian {
    /// A disk that is an ext4 file system with the system, its root. Its `root` has no password.
    pub disk: PathBuf,
    /// Its kernel, with the modules that mount the file system.
    pub kernel: Kernel,
}

/// Firmware for QEMU's `virt`, and what it can boot a system with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firmware {
    /// U-Boot.
    pub u_boot: PathBuf,
    /// EDK2.
    pub edk2: PathBuf,
    /// GRUB, an EFI program with all of its modules, which reads `EFI/debian/grub.cfg` on its partition.
    pub grub: PathBuf,
}

impl Artifacts {
    /// What the JSON file named by the environment variable [`VARIABLE`] says.
    ///
    /// # Errors
    ///
    /// The variable isn't set, or its file can't be read or isn't what [`Self::to_json`] writes.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_file(env::var_os(VARIABLE))
    }

    /// The content of the file that [`VARIABLE`] names.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }

    fn from_file(path: Option<OsString>) -> Result<Self, Error> {
        let path = PathBuf::from(path.filter(|path| !path.is_empty()).ok_or(Error::NotSet)?);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(source) => return Err(Error::Read { path, source }),
        };
        serde_json::from_slice(&json).map_err(|source| Error::Parse { path, source })
    }
}

/// Why there are no [`Artifacts`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody ran a system test by hand.
    #[error(
        "{VARIABLE} isn't set, so there is no system model to run on\n  help: cargo model test"
    )]
    NotSet,
    /// The file isn't there or isn't readable.
    #[error("can't read {path}, which {VARIABLE} names\n  help: cargo model setup", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path}, which {VARIABLE} names, doesn't describe a model\n  help: cargo model setup", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Artifacts {
        Artifacts {
            qemu: "/q/qemu-system-aarch64".into(),
            host_kernel: "/k/Image".into(),
            host_modules: vec!["/k/a.ko".into(), "/k/b.ko".into()],
            host_64k: Some(Kernel { image: "/l/Image".into(), modules: vec!["/l/a.ko".into()] }),
            host_newest: Some(Kernel { image: "/n/Image".into(), modules: Vec::new() }),
            stock_kernel: "/s/vmlinuz".into(),
            stock_modules: "/s/modules".into(),
            other_kernels: vec![Kernel { image: "/o/vmlinuz".into(), modules: Vec::new() }],
            debian_newest: Some(Kernel { image: "/o/vmlinuz".into(), modules: Vec::new() }),
            busybox: "/b/busybox".into(),
            debian: Some(Debian {
                disk: "/d/disk.img".into(),
                kernel: Kernel { image: "/d/vmlinuz".into(), modules: vec!["/d/a.ko".into()] },
            }),
            firmware: Some(Firmware {
                u_boot: "/f/u-boot.bin".into(),
                edk2: "/f/QEMU_EFI.fd".into(),
                grub: "/f/grubaa64.efi".into(),
            }),
            strait: "/t/strait".into(),
            agent: "/t/agent".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let path = env::temp_dir().join(format!("artifacts-{}.json", std::process::id()));
        fs::write(&path, sample().to_json().unwrap()).unwrap();
        let read = Artifacts::from_file(Some(path.clone().into()));
        fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), sample());
    }

    #[test]
    fn an_unset_and_an_empty_variable_are_the_same() {
        assert!(matches!(Artifacts::from_file(None), Err(Error::NotSet)));
        assert!(matches!(Artifacts::from_file(Some("".into())), Err(Error::NotSet)));
    }

    #[test]
    fn a_missing_file_and_a_foreign_file_are_told_apart() {
        let missing = Artifacts::from_file(Some("/nonexistent/model.json".into()));
        assert!(matches!(missing, Err(Error::Read { .. })));
        let foreign = Artifacts::from_file(Some("/proc/self/status".into()));
        assert!(matches!(foreign, Err(Error::Parse { .. })));
    }
}
