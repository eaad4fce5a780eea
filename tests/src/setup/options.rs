//! What a person can bring along instead of having it made.

use std::path::{Path, PathBuf};

use super::binaries;
use super::error::Error;
use super::modules;
use super::{debian, firmware, kernels, linux, qemu, stock};
use crate::artifacts;

/// Options of all commands that need the model: what to use instead of making it.
#[derive(Debug, Default, Clone, clap::Args)]
pub struct Options {
    /// A qemu-system-aarch64 with tests/model/qemu.patch.
    #[arg(long, global = true, value_name = "FILE", env = "STRAIT_QEMU")]
    qemu: Option<PathBuf>,
    /// An arm64 Image configured as tests/model/host.config says.
    #[arg(long, global = true, value_name = "FILE", env = "STRAIT_HOST_KERNEL")]
    host_kernel: Option<PathBuf>,
    /// A directory with modules of the host kernel, and their order in a file modules.order.
    #[arg(long, global = true, value_name = "DIR", env = "STRAIT_HOST_MODULES")]
    host_modules: Option<PathBuf>,
    /// An arm64 Image with pages of 64 KiB, for some of the tests (tests/model/host-64k.config).
    #[arg(long, global = true, value_name = "FILE", env = "STRAIT_HOST_KERNEL_64K")]
    host_kernel_64k: Option<PathBuf>,
    /// A directory with its modules, and a file modules.order.
    #[arg(long, global = true, value_name = "DIR", env = "STRAIT_HOST_MODULES_64K")]
    host_modules_64k: Option<PathBuf>,
    /// An arm64 Image of newer sources, for some of the long tests (tests/model/host-newest.config).
    #[arg(long, global = true, value_name = "FILE", env = "STRAIT_HOST_KERNEL_NEWEST")]
    host_kernel_newest: Option<PathBuf>,
    /// A directory with its modules, and a file modules.order.
    #[arg(long, global = true, value_name = "DIR", env = "STRAIT_HOST_MODULES_NEWEST")]
    host_modules_newest: Option<PathBuf>,
    /// A distribution's unmodified arm64 kernel.
    #[arg(long, global = true, value_name = "FILE", env = "STRAIT_STOCK_KERNEL")]
    stock_kernel: Option<PathBuf>,
    /// A directory with its pl330.ko, and a file modules.order.
    #[arg(long, global = true, value_name = "DIR", env = "STRAIT_STOCK_MODULES")]
    stock_modules: Option<PathBuf>,
    /// A statically linked arm64 busybox.
    #[arg(long, global = true, value_name = "FILE", env = "STRAIT_BUSYBOX")]
    busybox: Option<PathBuf>,
    /// A directory with a Debian system, for some of the tests: disk.img, whose file system holds it,
    /// its kernel vmlinuz, and modules, a directory with what mounts that, and a file modules.order.
    #[arg(long, global = true, value_name = "DIR", env = "STRAIT_DEBIAN_SYSTEM")]
    debian_system: Option<PathBuf>,
    /// A directory with firmware, for some of the tests: U-Boot's u-boot.bin and EDK2's QEMU_EFI.fd, both
    /// for QEMU's arm64 virt, and GRUB's grubaa64.efi.
    #[arg(long, global = true, value_name = "DIR", env = "STRAIT_FIRMWARE")]
    firmware: Option<PathBuf>,
    /// A directory with further kernels of distributions, for some of the tests: bookworm and
    /// trixie-backports, each a directory with vmlinuz, and modules, a directory with its pl330.ko and a file
    /// modules.order; the newest also with host-modules, those of a host (VFIO's, vhost's).
    #[arg(long, global = true, value_name = "DIR", env = "STRAIT_OTHER_KERNELS")]
    other_kernels: Option<PathBuf>,
    /// A gcc that links for arm64.
    #[arg(long, global = true, value_name = "FILE", env = "STRAIT_CROSS_LINKER")]
    cross_linker: Option<PathBuf>,
    /// The mirror to take Debian's packages from, if not the one of /etc/apt.
    #[arg(long, global = true, value_name = "URL", env = "STRAIT_DEBIAN_MIRROR")]
    debian_mirror: Option<String>,
}

/// What to bring along for each part, by its name.
const NEEDS: [(&str, &str); 9] = [
    (qemu::NAME, "--qemu FILE: qemu-system-aarch64 10.0 with tests/model/qemu.patch and qemu.mak"),
    (
        linux::NAME,
        "--host-kernel FILE --host-modules DIR: an arm64 Linux 6.12 configured by \
         tests/model/host.config; a directory with its dmatest.ko and a file modules.order",
    ),
    (
        linux::NAME_64K,
        "--host-kernel-64k FILE --host-modules-64k DIR: the same by tests/model/host-64k.config",
    ),
    (
        linux::NAME_NEWEST,
        "--host-kernel-newest FILE --host-modules-newest DIR: an arm64 Linux from 6.17 on by \
         tests/model/host-newest.config",
    ),
    (
        stock::KERNEL,
        "--stock-kernel FILE --stock-modules DIR: a distribution's arm64 kernel; a directory with \
         its pl330.ko and a file modules.order",
    ),
    (stock::BUSYBOX, "--busybox FILE: a statically linked arm64 busybox"),
    (
        debian::NAME,
        "--debian-system DIR: an arm64 Debian 13, as a directory debian-system-* of the cache on \
         another machine has it",
    ),
    (
        kernels::NAME,
        "--other-kernels DIR: arm64 kernels, older and newer, as a directory other-kernels-* of the cache \
         on another machine has them",
    ),
    (
        firmware::NAME,
        "--firmware DIR: u-boot.bin, QEMU_EFI.fd and grubaa64.efi, as a directory firmware-* of the \
         cache on another machine has them",
    ),
];

/// What the clone's own build takes, which has no package to come from either.
const BUILD_NEEDS: [&str; 2] = [
    "--cross-linker FILE: a gcc that links for arm64, if not aarch64-linux-gnu-gcc",
    "rustup target add aarch64-unknown-linux-gnu",
];

/// What the model is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// All that the tests need, long ones, too.
    Soak,
    /// All that the tests need but for long ones.
    Tests,
    /// A look at it: all but what only tests need, if that isn't there already.
    Use,
}

/// A kernel that was brought along, and its modules.
pub(super) struct ProvidedKernel {
    /// The kernel.
    pub(super) kernel: PathBuf,
    /// The directory of its modules.
    pub(super) modules: PathBuf,
}

/// Options of [`Options`], checked: what needn't be made.
pub(super) struct Provided {
    /// QEMU.
    pub(super) qemu: Option<PathBuf>,
    /// The host's kernel.
    pub(super) host: Option<ProvidedKernel>,
    /// The host's kernel with pages of 64 KiB.
    pub(super) host_64k: Option<ProvidedKernel>,
    /// The host's kernel of newer sources.
    pub(super) host_newest: Option<ProvidedKernel>,
    /// The stock kernel.
    pub(super) stock: Option<ProvidedKernel>,
    /// Busybox.
    pub(super) busybox: Option<PathBuf>,
    /// A Debian system.
    pub(super) debian_system: Option<artifacts::Debian>,
    /// Firmware.
    pub(super) firmware: Option<artifacts::Firmware>,
    /// Kernels of other releases.
    pub(super) other_kernels: Option<kernels::Found>,
    /// What the rest is made for.
    pub(super) purpose: Purpose,
}

impl Provided {
    /// Whether the part of this name ([`super::part::Part::name`]) needn't be made.
    pub(super) fn has(&self, part: &str) -> bool {
        match part {
            qemu::NAME => self.qemu.is_some(),
            linux::NAME => self.host.is_some(),
            linux::NAME_64K => self.host_64k.is_some(),
            linux::NAME_NEWEST => self.host_newest.is_some(),
            stock::KERNEL => self.stock.is_some(),
            stock::BUSYBOX => self.busybox.is_some(),
            debian::NAME => self.debian_system.is_some(),
            firmware::NAME => self.firmware.is_some(),
            kernels::NAME => self.other_kernels.is_some(),
            _ => false,
        }
    }

    /// Whether the part of this name may be missing.
    pub(super) fn is_optional(&self, part: &str) -> bool {
        match part {
            linux::NAME_NEWEST => self.purpose != Purpose::Soak,
            linux::NAME_64K | debian::NAME | firmware::NAME | kernels::NAME => {
                self.purpose == Purpose::Use
            }
            _ => false,
        }
    }

    /// Whether nothing need be made of Debian's archive.
    pub(super) fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }

    /// What isn't given: the options and what they take, a line each.
    pub(super) fn needs(&self) -> String {
        let needs = self.missing().into_iter().map(|(_, need)| need).chain(BUILD_NEEDS);
        let lines = needs.map(|need| format!("  help: {need}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn missing(&self) -> Vec<(&'static str, &'static str)> {
        let needs = NEEDS.into_iter();
        needs.filter(|(part, _)| !self.has(part) && !self.is_optional(part)).collect()
    }
}

impl Options {
    /// The linker that was given.
    pub(super) fn cross_linker(&self) -> Option<&Path> {
        self.cross_linker.as_deref()
    }

    /// The mirror that was given.
    pub(super) fn debian_mirror(&self) -> Option<&str> {
        self.debian_mirror.as_deref()
    }

    /// What was given, if it is what it should be.
    ///
    /// # Errors
    ///
    /// A file isn't there or is something else, or a kernel comes without its modules.
    pub(super) fn check(&self, purpose: Purpose) -> Result<Provided, Error> {
        let busybox = file("--busybox", self.busybox.as_deref())?;
        if let Some(path) = &busybox
            && let Some(wrong) = binaries::runs_in_model(path)?
        {
            return Err(bad("--busybox", path, wrong));
        }
        let host = (self.host_kernel.as_deref(), self.host_modules.as_deref());
        let host_64k = (self.host_kernel_64k.as_deref(), self.host_modules_64k.as_deref());
        let host_newest = (self.host_kernel_newest.as_deref(), self.host_modules_newest.as_deref());
        let stock = (self.stock_kernel.as_deref(), self.stock_modules.as_deref());
        Ok(Provided {
            qemu: file("--qemu", self.qemu.as_deref())?,
            host: kernel(["--host-kernel", "--host-modules"], host)?,
            host_64k: kernel(["--host-kernel-64k", "--host-modules-64k"], host_64k)?,
            host_newest: kernel(["--host-kernel-newest", "--host-modules-newest"], host_newest)?,
            stock: kernel(["--stock-kernel", "--stock-modules"], stock)?,
            busybox,
            debian_system: self.debian_system.as_deref().map(system).transpose()?,
            firmware: self.firmware.as_deref().map(provided_firmware).transpose()?,
            other_kernels: self.other_kernels.as_deref().map(provided_kernels).transpose()?,
            purpose,
        })
    }
}

fn kernel(
    options: [&'static str; 2],
    (kernel, dir): (Option<&Path>, Option<&Path>),
) -> Result<Option<ProvidedKernel>, Error> {
    let [kernel_option, modules_option] = options;
    let kernel = file(kernel_option, kernel)?;
    match (kernel, dir) {
        (None, None) => Ok(None),
        (Some(kernel), None) => Err(bad(kernel_option, &kernel, "its modules aren't given")),
        (None, Some(dir)) => Err(bad(modules_option, dir, "their kernel isn't given")),
        (Some(kernel), Some(dir)) => {
            let files = modules::listed(dir)
                .map_err(|_| bad(modules_option, dir, "has no readable file modules.order"))?;
            if !files.iter().all(|file| file.is_file()) {
                return Err(bad(modules_option, dir, "lacks a module that modules.order names"));
            }
            let modules = absolute(modules_option, dir)?;
            Ok(Some(ProvidedKernel { kernel, modules }))
        }
    }
}

fn system(directory: &Path) -> Result<artifacts::Debian, Error> {
    const OPTION: &str = "--debian-system";
    let absolute = absolute(OPTION, directory)?;
    let found = debian::found(&absolute)
        .map_err(|_| bad(OPTION, directory, "has no readable file modules/modules.order"))?;
    let artifacts::Debian { disk, kernel } = &found;
    if ![disk, &kernel.image].into_iter().chain(&kernel.modules).all(|file| file.is_file()) {
        return Err(bad(OPTION, directory, "lacks disk.img, vmlinuz, or a module"));
    }
    Ok(found)
}

fn provided_firmware(directory: &Path) -> Result<artifacts::Firmware, Error> {
    const OPTION: &str = "--firmware";
    let found = firmware::found(&absolute(OPTION, directory)?);
    if ![&found.u_boot, &found.edk2, &found.grub].iter().all(|file| file.is_file()) {
        return Err(bad(OPTION, directory, "lacks u-boot.bin, QEMU_EFI.fd or grubaa64.efi"));
    }
    Ok(found)
}

fn provided_kernels(directory: &Path) -> Result<kernels::Found, Error> {
    const OPTION: &str = "--other-kernels";
    let found = kernels::found(&absolute(OPTION, directory)?)
        .map_err(|_| bad(OPTION, directory, "has no readable file modules.order for each"))?;
    let is_whole = |kernel: &artifacts::Kernel| {
        kernel.image.is_file() && kernel.modules.iter().all(|module| module.is_file())
    };
    if !found.guests.iter().chain(&found.host).all(is_whole) {
        return Err(bad(OPTION, directory, "lacks a vmlinuz or a module"));
    }
    Ok(found)
}

fn file(option: &'static str, path: Option<&Path>) -> Result<Option<PathBuf>, Error> {
    match path {
        None => Ok(None),
        Some(path) if path.is_file() => absolute(option, path).map(Some),
        Some(path) if path.exists() => Err(bad(option, path, "isn't a file")),
        Some(path) => Err(bad(option, path, "isn't there")),
    }
}

fn absolute(option: &'static str, path: &Path) -> Result<PathBuf, Error> {
    path.canonicalize().map_err(|_| bad(option, path, "can't be reached"))
}

fn bad(option: &'static str, path: &Path, wrong: &'static str) -> Error {
    Error::BadOption { option, path: path.to_owned(), wrong }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn missing_parts_are_asked_for() {
        let purpose = Purpose::Soak;
        let nothing = Provided {
            qemu: None,
            host: None,
            host_64k: None,
            host_newest: None,
            stock: None,
            busybox: None,
            debian_system: None,
            firmware: None,
            other_kernels: None,
            purpose,
        };
        assert!(!nothing.is_complete());
        assert_eq!(nothing.needs().lines().count(), NEEDS.len() + BUILD_NEEDS.len());
        let path = || PathBuf::from("/x");
        let kernel = || Some(ProvidedKernel { kernel: path(), modules: path() });
        let most = Provided { qemu: Some(path()), host: kernel(), stock: kernel(), ..nothing };
        assert!(most.needs().contains("--busybox") && !most.needs().contains("--qemu"));
        // What only tests need is asked for where there will be tests.
        let all_but_soak = Provided { busybox: Some(path()), ..most };
        assert!(all_but_soak.needs().contains("--host-kernel-newest"));
        let all_but_tests = Provided { purpose: Purpose::Tests, ..all_but_soak };
        assert!(!all_but_tests.needs().contains("--host-kernel-newest"));
        for option in ["--host-kernel-64k", "--debian-system", "--firmware", "--other-kernels"] {
            assert!(all_but_tests.needs().contains(option), "{option}");
        }
        assert!(!all_but_tests.is_complete());
        assert!(Provided { purpose: Purpose::Use, ..all_but_tests }.is_complete());
    }

    #[test]
    fn given_files_are_checked() {
        let dir = std::env::temp_dir().join(format!("options-test-{}", std::process::id()));
        let modules = dir.join("modules");
        let empty = dir.join("empty");
        let broken = dir.join("broken");
        for each in [&modules, &empty, &broken] {
            fs::create_dir_all(each).unwrap();
        }
        let kernel = dir.join("Image");
        fs::write(&kernel, "kernel").unwrap();
        fs::write(modules.join("modules.order"), "a.ko\n").unwrap();
        fs::write(modules.join("a.ko"), "module").unwrap();
        fs::write(broken.join("modules.order"), "b.ko\n").unwrap();
        let of = |qemu: Option<&Path>,
                  kernel: Option<&Path>,
                  modules: Option<&Path>,
                  busybox: Option<&Path>| {
            let own = |path: Option<&Path>| path.map(Path::to_owned);
            Options {
                qemu: own(qemu),
                host_kernel: own(kernel),
                host_modules: own(modules),
                busybox: own(busybox),
                ..Options::default()
            }
        };
        let missing = dir.join("missing");
        let table = [
            (of(None, None, None, None), None),
            (of(Some(&kernel), Some(&kernel), Some(&modules), None), None),
            (of(Some(&missing), None, None, None), Some("isn't there")),
            (of(Some(&dir), None, None, None), Some("isn't a file")),
            (of(None, Some(&kernel), None, None), Some("its modules aren't given")),
            (of(None, None, Some(&modules), None), Some("their kernel isn't given")),
            (
                of(None, Some(&kernel), Some(&empty), None),
                Some("has no readable file modules.order"),
            ),
            (
                of(None, Some(&kernel), Some(&broken), None),
                Some("lacks a module that modules.order names"),
            ),
            (of(None, None, None, Some(&kernel)), Some("not a 64-bit little-endian ELF file")),
        ];
        for (options, expected) in table {
            let wrong = match options.check(Purpose::Tests) {
                Err(Error::BadOption { wrong, .. }) => Some(wrong),
                Err(other) => panic!("{other}"),
                Ok(_) => None,
            };
            assert_eq!(wrong, expected, "{options:?}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
