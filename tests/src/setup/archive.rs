//! Debian 13's archive, reached without the system's own package lists.
//!
//! apt runs with directories of its own inside the cache. It takes the system's proxies and
//! credentials, but none of its sources and pins; signatures are checked by Debian's keyring.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::error::{Error, FileError};
use super::firmware;
use super::kernels::{self, SuiteKernel};
use super::labs;
use super::lock::LockFile;
use super::machine::Machine;
use super::mirror;
use super::process;
use super::progress::{Progress, Step};

/// The release everything is taken from, on whatever release the machine runs.
pub(super) const SUITE: &str = "trixie";
/// The kernel series of [`SUITE`]; the source package is named after it.
pub(super) const LINUX: &str = "6.12";
/// The QEMU series that `tests/model/qemu.patch` is made for, with Debian's epoch.
const QEMU: &str = "1:10.0.";

const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// The packages of the Debian system, one a line, without those that they depend on.
const DEBIAN_SYSTEM: &str = include_str!("../../model/debian/packages");

/// How old what is known of the archive may be while the cache has everything.
const MAX_AGE_COMPLETE: Duration = Duration::from_secs(24 * 3600);
/// How old it may be when something must be downloaded: a point release removes older files.
const MAX_AGE_INCOMPLETE: Duration = Duration::from_secs(600);

/// What the archive offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versions {
    /// Of the source package `qemu`.
    pub(super) qemu: String,
    /// Of `linux-source-6.12`.
    pub(super) linux_source: String,
    /// The package of the newest sources of Linux, as `name=version`.
    #[serde(default)]
    pub(super) newest_linux_source: String,
    /// The name of the package with the newest arm64 kernel.
    pub(super) linux_image_package: String,
    /// Its version.
    pub(super) linux_image: String,
    /// Of `busybox-static`.
    pub(super) busybox: String,
    /// Of `libgpiod-dev`.
    pub(super) libgpiod: String,
    /// The packages that were asked for, for the Debian system.
    debian_asked: Vec<String>,
    /// They and those that they depend on, each as `name=version`.
    pub(super) debian_system: Vec<String>,
    /// Those with firmware, each as `name=version`.
    #[serde(default)]
    pub(super) firmware: Vec<String>,
    /// The kernels of [`kernels::SUITES`].
    #[serde(default)]
    pub(super) other_kernels: Vec<SuiteKernel>,
    /// What labs are tried with, each as `name=version`.
    #[serde(default)]
    pub(super) labs: Vec<String>,
    /// The mirror it was asked of.
    mirror: String,
    /// When, in seconds since 1970.
    asked: u64,
}

/// The private apt.
pub(super) struct Archive {
    root: PathBuf,
    lock: LockFile,
    /// Where to ask, in this order.
    mirrors: Vec<String>,
}

impl Archive {
    /// The archive as this machine reaches it. `mirror` is the person's own choice.
    pub(super) fn new(cache: &Cache, machine: &Machine, mirror: Option<&str>) -> Self {
        let mirrors = match mirror {
            Some(mirror) => vec![mirror.trim_end_matches('/').to_owned()],
            None => mirror::of_system(Path::new("/etc/apt"), machine.codename.as_deref()),
        };
        Self { root: cache.root().join("apt"), lock: cache.lock("apt"), mirrors }
    }

    /// What was known when last asked, however long ago.
    pub(super) fn known(&self) -> Option<Versions> {
        let json = fs::read(self.root.join("versions.json")).ok()?;
        let versions: Versions = serde_json::from_slice(&json).ok()?;
        // Another clone may have asked for others.
        let names = |packages: &[String]| -> Vec<String> {
            let names = packages.iter().filter_map(|package| package.split('=').next());
            names.map(str::to_owned).collect()
        };
        let all = versions.debian_asked == listed(DEBIAN_SYSTEM)
            && versions.newest_linux_source.contains('=')
            && names(&versions.firmware) == firmware::PACKAGES
            && names(&versions.labs) == labs::PACKAGES.map(|(name, _)| name)
            && versions.other_kernels.iter().map(|kernel| &kernel.suite).eq(kernels::SUITES);
        all.then_some(versions)
    }

    /// What the archive offers. `is_complete` says whether the cache has everything made from the
    /// versions it is given: then an answer up to a day old will do, and being offline is no error.
    ///
    /// # Errors
    ///
    /// The archive can't be reached or lacks something.
    pub(super) fn versions(
        &self,
        progress: &Progress,
        log: PathBuf,
        is_complete: impl Fn(&Versions) -> bool,
    ) -> Result<Versions, Error> {
        let step = progress.step("Debian archive", log);
        let known = |max_age| self.known().filter(|versions| versions.age() < max_age);
        if let Some(versions) = known(MAX_AGE_COMPLETE).filter(&is_complete) {
            return Ok(versions);
        }
        let _lock = self.lock.exclusive(&step)?;
        if let Some(versions) =
            known(MAX_AGE_INCOMPLETE).or_else(|| known(MAX_AGE_COMPLETE).filter(&is_complete))
        {
            return Ok(versions);
        }
        let old = self.known().filter(&is_complete);
        step.begin_log()?;
        step.phase("asking for versions");
        // With all at hand nobody should wait long for a network that isn't there.
        let timeout = if old.is_some() { Duration::from_secs(4) } else { Duration::from_secs(30) };
        match (self.refresh(&step, timeout), old) {
            (Ok(versions), _) => {
                self.store(&versions)?;
                Ok(versions)
            }
            (Err(Error::Interrupted), _) => Err(Error::Interrupted),
            (Err(_), Some(mut versions)) => {
                step.say("can't be reached now; what is in the cache will do");
                versions.asked = now();
                self.store(&versions)?;
                Ok(versions)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Downloads binary packages of arm64, given as `name=version`, into `dir`.
    pub(super) fn download(
        &self,
        step: &Step,
        dir: &Path,
        packages: &[String],
    ) -> Result<(), Error> {
        self.fetch(step, dir, self.apt("apt-get").arg("download").args(packages))
    }

    /// Downloads the upstream tar file of the source package `name=version` into `dir`.
    pub(super) fn download_source(
        &self,
        step: &Step,
        dir: &Path,
        package: &str,
    ) -> Result<(), Error> {
        let mut command = self.apt("apt-get");
        command.args(["source", "--download-only", "--tar-only", package]);
        self.fetch(step, dir, &mut command)
    }

    fn fetch(&self, step: &Step, dir: &Path, command: &mut Command) -> Result<(), Error> {
        step.phase("downloading");
        step.count_bytes(dir);
        process::run(step, command.current_dir(dir), |_| {})
    }

    fn refresh(&self, step: &Step, timeout: Duration) -> Result<Versions, Error> {
        let keyring = KEYRINGS.into_iter().find(|path| Path::new(path).exists());
        let keyring = keyring.ok_or(Error::NoKeyring(PathBuf::from(KEYRINGS[0])))?;
        let mut result = Err(Error::NoMirror);
        for mirror in &self.mirrors {
            self.prepare(mirror, keyring)?;
            let mut update = self.apt("apt-get");
            let timeout = timeout.as_secs();
            update.args(["update", "-o", "Acquire::Retries=1", "--error-on=any"]);
            update.arg("-o").arg(format!("Acquire::http::Timeout={timeout}"));
            update.arg("-o").arg(format!("Acquire::https::Timeout={timeout}"));
            result = process::run(step, &mut update, |_| {}).and_then(|()| self.resolve(mirror));
            if matches!(result, Ok(_) | Err(Error::Interrupted)) {
                break;
            }
        }
        result
    }

    /// Writes the private list of sources.
    fn prepare(&self, mirror: &str, keyring: &str) -> Result<(), Error> {
        for dir in ["lists/partial", "archives/partial"] {
            let dir = self.root.join(dir);
            fs::create_dir_all(&dir).at("create", &dir)?;
        }
        // Only the indexes that are looked at: no translations, no AppStream data.
        let mut sources =
            format!("deb-src [signed-by={keyring} targets=Sources] {mirror} {SUITE} main\n");
        for suite in [SUITE].into_iter().chain(kernels::SUITES) {
            let options = format!("arch=arm64 signed-by={keyring} targets=Packages");
            sources.push_str(&format!("deb [{options}] {mirror} {suite} main\n"));
        }
        let path = self.root.join("sources.list");
        fs::write(&path, sources).at("write", &path)?;
        let status = self.root.join("status");
        fs::write(&status, "").at("write", &status)
    }

    /// An apt command that works in the cache, sees arm64 packages only, and prefers those of [`SUITE`].
    fn apt(&self, program: &str) -> Command {
        self.apt_for(program, SUITE)
    }

    /// One that prefers the packages of this suite.
    fn apt_for(&self, program: &str, suite: &str) -> Command {
        let mut command = process::command(program);
        let path = |name: &str| self.root.join(name).to_string_lossy().into_owned();
        let options = [
            ("Dir::Etc::SourceList", path("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
            ("Dir::Etc::Preferences", "/dev/null".to_owned()),
            ("Dir::Etc::PreferencesParts", "/dev/null".to_owned()),
            ("Dir::State::Lists", path("lists")),
            ("Dir::State::Status", path("status")),
            ("Dir::Cache", path("")),
            ("Dir::Cache::Archives", path("archives")),
            // Images of containers turn this off, and then each command parses all lists anew.
            ("Dir::Cache::pkgcache", path("pkgcache.bin")),
            ("Dir::Cache::srcpkgcache", String::new()),
            ("APT::Architecture", "arm64".to_owned()),
            ("APT::Architectures", "arm64".to_owned()),
            ("APT::Default-Release", suite.to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::PDiffs", "false".to_owned()),
            // The cache is the person's own: apt's user couldn't write to it.
            ("APT::Sandbox::User", "root".to_owned()),
        ];
        for (name, value) in options {
            command.arg("-o").arg(format!("{name}={value}"));
        }
        command
    }

    fn resolve(&self, mirror: &str) -> Result<Versions, Error> {
        let show = |package: &str| self.show(package, SUITE);
        let version = |package: &str| {
            show(package).and_then(|shown| Ok(field(&shown, "Version", package)?.to_owned()))
        };
        let source = format!("linux-source-{LINUX}");
        let image = show("linux-image-arm64")?;
        let sources =
            process::capture(self.apt("apt-cache").args(["showsrc", "--only-source", "qemu"]))?;
        let linux_image_package = dependency(&image, "linux-image-")
            .ok_or_else(|| wrong("linux-image-arm64", "depends on no kernel".to_owned()))?;
        let versions = Versions {
            qemu: field(&sources, "Version", "qemu")?.to_owned(),
            linux_source: version(&source)?,
            newest_linux_source: self.newest_sources()?,
            linux_image: version(linux_image_package)?,
            linux_image_package: linux_image_package.to_owned(),
            busybox: version("busybox-static")?,
            libgpiod: version("libgpiod-dev")?,
            debian_asked: listed(DEBIAN_SYSTEM),
            debian_system: self.closure(&listed(DEBIAN_SYSTEM))?,
            firmware: firmware::PACKAGES
                .iter()
                .map(|name| Ok(format!("{name}={}", field(&show(name)?, "Version", name)?)))
                .collect::<Result<_, Error>>()?,
            other_kernels: kernels::SUITES
                .iter()
                .map(|suite| self.suite_kernel(suite))
                .collect::<Result<_, Error>>()?,
            labs: labs::PACKAGES
                .iter()
                .map(|(name, suite)| {
                    let shown = self.show(name, suite)?;
                    Ok(format!("{name}={}", field(&shown, "Version", name)?))
                })
                .collect::<Result<_, Error>>()?,
            mirror: mirror.to_owned(),
            asked: now(),
        };
        if !versions.qemu.starts_with(QEMU) {
            let is = format!("is {}, and the model's patch is made for {QEMU}x", versions.qemu);
            return Err(wrong("qemu", is));
        }
        Ok(versions)
    }

    /// What is known of a package of this suite.
    fn show(&self, package: &str, suite: &str) -> Result<String, Error> {
        let mut show = self.apt_for("apt-cache", suite);
        process::capture(show.args(["show", "--no-all-versions", package]))
    }

    /// The newest kernel of this suite. Its modules may be in a package of their own.
    fn suite_kernel(&self, suite: &str) -> Result<SuiteKernel, Error> {
        let newest = self.show("linux-image-arm64", suite)?;
        let image = dependency(&newest, "linux-image-")
            .ok_or_else(|| wrong("linux-image-arm64", "depends on no kernel".to_owned()))?;
        let shown = self.show(image, suite)?;
        let version = field(&shown, "Version", image)?;
        let parts = ["linux-binary-", "linux-modules-"];
        let names = parts.iter().filter_map(|part| dependency(&shown, part));
        let packages = [image].into_iter().chain(names).map(|name| format!("{name}={version}"));
        Ok(SuiteKernel { suite: suite.to_owned(), packages: packages.collect() })
    }

    /// The newest sources of Linux, of the last of [`kernels::SUITES`], as `name=version`.
    fn newest_sources(&self) -> Result<String, Error> {
        let suite = kernels::SUITES.last().copied().unwrap_or(SUITE);
        let newest = self.show("linux-source", suite)?;
        let name = dependency(&newest, "linux-source-")
            .ok_or_else(|| wrong("linux-source", "depends on no sources".to_owned()))?;
        let shown = self.show(name, suite)?;
        Ok(format!("{name}={}", field(&shown, "Version", name)?))
    }

    /// These packages and what they depend on, each as `name=version`.
    fn closure(&self, packages: &[String]) -> Result<Vec<String>, Error> {
        let mut install = self.apt("apt-get");
        install.args(["install", "--simulate", "--quiet=2", "--no-install-recommends"]);
        let mut found = installed(&process::capture(install.args(packages))?);
        // apt's order is that of an installation, and may change from one of its releases to another.
        found.sort();
        Ok(found)
    }

    fn store(&self, versions: &Versions) -> Result<(), Error> {
        let path = self.root.join("versions.json");
        let json = serde_json::to_vec_pretty(versions).map_err(std::io::Error::from);
        let new = self.root.join("versions.json.new");
        json.and_then(|json| fs::write(&new, json)).at("write", &new)?;
        fs::rename(&new, &path).at("write", &path)
    }
}

impl Versions {
    fn age(&self) -> Duration {
        // A clock that was set back makes an answer from the future: take that as fresh.
        Duration::from_secs(now().saturating_sub(self.asked))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn wrong(package: &str, wrong: String) -> Error {
    Error::Package { suite: SUITE, package: package.to_owned(), wrong }
}

/// A field of the first stanza that `apt-cache show` printed for a package.
fn field<'a>(shown: &'a str, name: &str, package: &str) -> Result<&'a str, Error> {
    let value = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.ok_or_else(|| wrong(package, format!("has no field {name}")))
}

/// The first package starting with `prefix` that the shown package depends on.
fn dependency<'a>(shown: &'a str, prefix: &str) -> Option<&'a str> {
    let depends = field(shown, "Depends", "").ok()?;
    depends
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
}

/// The lines of a list that aren't comments.
fn listed(list: &str) -> Vec<String> {
    let lines = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// The packages that `apt-get install --simulate` says it would install, as `name=version`.
fn installed(said: &str) -> Vec<String> {
    let package = |line: &str| {
        let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
        Some(format!("{name}={}", rest.split_whitespace().next()?))
    };
    said.lines().filter_map(package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_SHOWN_LINES: &str = "\
Package: linux-image-arm64
Version: 6.12.9-1
Depends: initramfs-tools (>= 0.120) | dracut, linux-image-6.12.9+deb13-arm64 (= 6.12.9-1)
Description: Linux for 64-bit ARMv8 machines
 Version: not this one
";

    #[test]
    fn a_packages_version_and_dependency_are_found() {
        assert_eq!(field(MAX_SHOWN_LINES, "Version", "p").unwrap(), "6.12.9-1");
        assert_eq!(
            dependency(MAX_SHOWN_LINES, "linux-image-"),
            Some("linux-image-6.12.9+deb13-arm64")
        );
        assert_eq!(dependency(MAX_SHOWN_LINES, "dracut"), Some("dracut"));
        assert_eq!(dependency(MAX_SHOWN_LINES, "busybox"), None);
        assert!(field(MAX_SHOWN_LINES, "Ver", "p").is_err());
    }

    #[test]
    fn what_would_be_installed_is_listed() {
        let said = "\
Inst libc6 (2.41-12+deb13u5 Debian:13.6/stable [arm64]) []
Inst base-files (13.8+deb13u8 Debian:13.6/stable [arm64])
Conf libc6 (2.41-12+deb13u5 Debian:13.6/stable [arm64])
";
        assert_eq!(installed(said), ["libc6=2.41-12+deb13u5", "base-files=13.8+deb13u8"]);
    }

    #[test]
    fn cached_versions_expire() {
        let asked = |ago: u64| Versions {
            qemu: String::new(),
            linux_source: String::new(),
            newest_linux_source: String::new(),
            linux_image_package: String::new(),
            linux_image: String::new(),
            busybox: String::new(),
            libgpiod: String::new(),
            debian_asked: Vec::new(),
            debian_system: Vec::new(),
            firmware: Vec::new(),
            other_kernels: Vec::new(),
            labs: Vec::new(),
            mirror: String::new(),
            asked: now().saturating_sub(ago),
        };
        assert!(asked(60).age() < MAX_AGE_INCOMPLETE);
        assert!(asked(700).age() >= MAX_AGE_INCOMPLETE && asked(700).age() < MAX_AGE_COMPLETE);
        assert!(asked(90_000).age() >= MAX_AGE_COMPLETE);
        let future = Versions { asked: now() + 1000, ..asked(0) };
        assert!(future.age() < MAX_AGE_INCOMPLETE);
    }
}
