//! The model host's kernels, from Debian's kernel sources: the one that all of the model runs on, and for some
//! of the tests one with pages of 64 KiB and one of the newest sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::{Archive, LINUX};
use super::board_dtbs;
use super::cache::{BuildDirs, Cache, Key, LockedEntry};
use super::error::{Error, FileError};
use super::machine::Machine;
use super::modules;
use super::options::Options;
use super::packages::{self, Need};
use super::part::{Part, upstream};
use super::process::{self, command};
use super::progress::{Progress, Step};
use super::qemu::file_with;

/// The same sources make the same kernel, whoever builds it and when.
const REPRODUCIBLE: [(&str, &str); 3] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
    ("KBUILD_BUILD_USER", "strait"),
    ("KBUILD_BUILD_HOST", "model"),
];
const TARGETS: [&str; 2] = ["Image", "modules"];

/// What isn't unpacked of the sources: half of all files, of other processors and of devices that
/// the model doesn't have. Configuring takes every `Kconfig` there is.
const EXCLUDED: [&str; 6] = [
    "arch/[!a]*/*.[chS]",
    "drivers/gpu/*.[ch]",
    "drivers/media/*.[ch]",
    "drivers/net/wireless/*.[ch]",
    "sound/*.[ch]",
    "tools/testing/*",
];

/// The parts' names in the cache.
pub(super) const NAME: &str = "host-kernel";
pub(super) const NAME_64K: &str = "host-kernel-64k";
pub(super) const NAME_NEWEST: &str = "host-kernel-newest";

/// What the package of sources is called in the cache. `cargo model clean` removes it, since all
/// that is made of it is there.
const SOURCES: &str = "linux-source";

/// Which of the host's kernels it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// What everything runs on.
    Usual,
    /// With pages of 64 KiB, for tests alone; the devices of boards, which are for tests too, come with it.
    LargePages,
    /// Of the newest sources, for long tests alone.
    Newest,
}

/// How a kernel is made.
pub(super) struct Linux<'a> {
    /// The machine that builds it.
    pub(super) machine: &'a Machine,
    /// Where the package of sources is, which several are made from.
    pub(super) cache: &'a Cache,
    /// The directory with `host.config` and those of the other variants.
    pub(super) model: PathBuf,
    /// Debian's package of sources, as `name=version`.
    pub(super) sources: String,
    /// Which one it is.
    pub(super) variant: Variant,
}

impl Linux<'_> {
    /// What is asked of it: a configuration, and another one that has the last word.
    fn configs(&self) -> Vec<PathBuf> {
        let names: &[&str] = match self.variant {
            Variant::Usual => &["host.config"],
            Variant::LargePages => &["host.config", "host-64k.config"],
            Variant::Newest => &["host.config", "host-newest.config"],
        };
        names.iter().map(|name| self.model.join(name)).collect()
    }

    /// What is asked of it altogether.
    fn asked(&self) -> Result<String, Error> {
        let texts =
            self.configs().into_iter().map(|path| fs::read_to_string(&path).at("read", path));
        Ok(merged(&texts.collect::<Result<Vec<_>, _>>()?))
    }

    fn unpack(&self, step: &Step, dirs: &BuildDirs) -> Result<PathBuf, Error> {
        step.phase("unpacking");
        let package = file_with(&dirs.work, |name| name.ends_with(".deb"))?;
        let unpacked = dirs.work.join("package");
        process::run(step, command("dpkg-deb").arg("-x").args([&package, &unpacked]), |_| {})?;
        let (directory, _) = name_and_version(&self.sources);
        let tar = unpacked.join(format!("usr/src/{directory}.tar.xz"));
        let source = dirs.work.join("source");
        fs::create_dir(&source).at("create", &source)?;
        let mut untar = command("tar");
        untar.arg("-xf").arg(&tar).arg("--strip-components=1").arg("-C").arg(&source);
        untar.args(["--anchored", "--wildcards"]);
        untar.args(EXCLUDED.map(|pattern| format!("--exclude={directory}/{pattern}")));
        process::run(step, &mut untar, |_| {})?;
        Ok(source)
    }

    fn make(&self, source: &Path, build: &Path) -> Command {
        let mut make = command("nice");
        make.args(["-n", self.nice(), "make"]).current_dir(source).envs(REPRODUCIBLE);
        make.arg("ARCH=arm64").arg(format!("O={}", build.display()));
        if !self.machine.is_arm {
            make.arg("CROSS_COMPILE=aarch64-linux-gnu-");
        }
        make
    }

    /// By how much its build steps back (nice(1)): the kernel that all wait for doesn't.
    fn nice(&self) -> &'static str {
        match self.variant {
            Variant::Usual => "0",
            Variant::LargePages | Variant::Newest => "15",
        }
    }

    /// Kconfig drops what it doesn't know, and what depends on something else, without a word. The newest sources
    /// change with each release, so that it is said of them, and tests find what is missing.
    fn check_config(&self, step: &Step, asked: &str, result: &Path) -> Result<(), Error> {
        let result = fs::read_to_string(result).at("read", result)?;
        let options = dropped(asked, &result);
        match self.configs().pop() {
            _ if self.variant == Variant::Newest => {
                if !options.is_empty() {
                    step.say(&format!("has no {}", options.join(", ")));
                }
                Ok(())
            }
            Some(config) if !options.is_empty() => Err(Error::ConfigDropped { config, options }),
            _ => Ok(()),
        }
    }

    fn collect(&self, step: &Step, build: &Path, out: &Path) -> Result<(), Error> {
        let copy = |from: PathBuf, name: &str| fs::copy(&from, out.join(name)).at("copy", from);
        copy(build.join("arch/arm64/boot/Image"), "Image")?;
        copy(build.join(".config"), "config")?;
        let path = build.join(modules::ORDER);
        let built = fs::read_to_string(&path).at("read", &path)?;
        let names: Vec<&str> = built
            .lines()
            .filter_map(|line| Path::new(line).file_stem().and_then(|stem| stem.to_str()))
            .collect();
        modules::collect(step, build, &names, &out.join("modules"))
    }
}

impl Part for Linux<'_> {
    fn name(&self) -> &'static str {
        match self.variant {
            Variant::Usual => NAME,
            Variant::LargePages => NAME_64K,
            Variant::Newest => NAME_NEWEST,
        }
    }

    fn title(&self) -> String {
        let pages = match self.variant {
            Variant::Usual | Variant::Newest => "",
            Variant::LargePages => " of 64 KiB pages",
        };
        format!("host kernel {}{pages}", upstream(name_and_version(&self.sources).1))
    }

    fn needs(&self) -> Vec<Need> {
        needs(self.machine).to_vec()
    }

    fn key(&self) -> Result<Key, Error> {
        let (_, version) = name_and_version(&self.sources);
        let key = Key::new().with("version", version).with_all("targets", &TARGETS);
        let key = match self.variant {
            Variant::Usual | Variant::Newest => key,
            Variant::LargePages => key.with_all("boards", &board_dtbs::BOARDS),
        };
        Ok(key.with("config", self.asked()?))
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        let sources = fetch_sources(self.cache, archive, step, &self.sources)?;
        let from = file_with(&sources.dir, |name| name.ends_with(".deb"))?;
        let to = dirs.work.join("linux-source.deb");
        fs::hard_link(&from, &to).at("link", from)
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        let source = self.unpack(step, dirs)?;
        let build = dirs.work.join("build");
        step.phase("configuring");
        let asked = self.asked()?;
        let config = dirs.work.join("asked.config");
        fs::write(&config, &asked).at("write", &config)?;
        let mut configure = self.make(&source, &build);
        configure.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &config);
        process::run(step, &mut configure, |_| {})?;
        self.check_config(step, &asked, &build.join(".config"))?;
        step.phase("compiling");
        let mut files = 0_u32;
        let mut make = self.make(&source, &build);
        make.arg(format!("-j{}", self.machine.cpus)).args(TARGETS);
        process::run(step, &mut make, |line| {
            if is_compiled(line) {
                files = files.saturating_add(1);
                step.count(format!("{files} files"));
            }
        })?;
        if self.variant == Variant::LargePages {
            let mut make = self.make(&source, &build);
            make.arg(format!("-j{}", self.machine.cpus));
            board_dtbs::compile(step, &mut make, &build, &dirs.out)?;
        }
        self.collect(step, &build, &dirs.out)
    }
}

/// What a kernel is built with.
fn needs(machine: &Machine) -> [Need; 2] {
    [packages::LINUX, if machine.is_arm { packages::NATIVE } else { packages::CROSS }]
}

/// The package with this version of the model's sources, as `name=version`.
pub(super) fn sources_package(version: &str) -> String {
    format!("linux-source-{LINUX}={version}")
}

/// The parts of a package's `name=version`.
fn name_and_version(package: &str) -> (&str, &str) {
    package.split_once('=').unwrap_or((package, ""))
}

/// This package of sources, `name=version`, in a directory of the cache.
fn fetch_sources(
    cache: &Cache,
    archive: &Archive,
    step: &Step,
    package: &str,
) -> Result<LockedEntry, Error> {
    let (_, version) = name_and_version(package);
    let entry = cache.entry(SOURCES, Key::new().with("version", version));
    entry.get(step, |dirs| archive.download(step, &dirs.out, &[package.to_owned()]))
}

/// The package of the host kernel's sources, for who builds another kernel of them on this machine, which
/// then can; nothing where the archive isn't known, since the model was given.
///
/// # Errors
///
/// It can't be downloaded, or what builds a kernel can't be installed.
pub(super) fn sources(options: &Options) -> Result<Option<(LockedEntry, PathBuf)>, Error> {
    let (cache, progress, machine) = (Cache::open()?, Progress::start(), Machine::detect());
    let step = progress.step("sources of Linux", cache.log(SOURCES));
    let archive = Archive::new(&cache, &machine, options.debian_mirror());
    let Some(versions) = archive.known().filter(|_| machine.is_debian) else { return Ok(None) };
    packages::install(&machine, &cache, &step, &needs(&machine))?;
    let package = sources_package(&versions.linux_source);
    let held = fetch_sources(&cache, &archive, &step, &package)?;
    let package = file_with(&held.dir, |name| name.ends_with(".deb"))?;
    Ok(Some((held, package)))
}

/// One configuration of several: what a later one says of an option counts.
fn merged(configs: &[String]) -> String {
    let lines = configs.iter().flat_map(|text| text.lines()).map(str::trim);
    let options = lines.filter(|line| line.starts_with("CONFIG_"));
    let named = options.filter_map(|line| line.split_once('='));
    let merged: BTreeMap<&str, &str> = named.collect();
    merged.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

/// The lines of `asked` that have no effect in the configuration `result`.
fn dropped(asked: &str, result: &str) -> Vec<String> {
    let asked = asked.lines().map(str::trim).filter(|line| line.starts_with("CONFIG_"));
    let is_met = |line: &str| match line.strip_suffix("=n") {
        // An option that isn't there at all is as good as one that is off.
        Some(name) => !result.lines().any(|r| r.split_once('=').is_some_and(|(n, _)| n == name)),
        None => result.lines().any(|r| r == line),
    };
    asked.filter(|line| !is_met(line)).map(str::to_owned).collect()
}

/// Whether a line of make's output says that a file was compiled.
fn is_compiled(line: &str) -> bool {
    let word = line.split_whitespace().next();
    line.starts_with("  ") && matches!(word, Some("CC" | "AS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_an_option_counts() {
        let first = "# a comment\nCONFIG_B=y\nCONFIG_A=y\nCONFIG_S=\"x=1\"\n".to_owned();
        let second = "CONFIG_A=n\n".to_owned();
        assert_eq!(merged(&[first, second]), "CONFIG_A=n\nCONFIG_B=y\nCONFIG_S=\"x=1\"\n");
    }

    #[test]
    fn options_without_effect_are_listed() {
        let result = "CONFIG_A=y\nCONFIG_AB=m\n# CONFIG_OFF is not set\nCONFIG_S=\"x\"\n";
        let table: [(&str, &[&str]); 8] = [
            ("CONFIG_A=y", &[]),
            ("CONFIG_AB=m", &[]),
            ("CONFIG_AB=y", &["CONFIG_AB=y"]),
            ("CONFIG_OFF=n\nCONFIG_UNKNOWN=n", &[]),
            ("CONFIG_A=n", &["CONFIG_A=n"]),
            ("CONFIG_OFF=y", &["CONFIG_OFF=y"]),
            ("CONFIG_S=\"x\"\n# a comment\n", &[]),
            ("CONFIG_X=y\nCONFIG_A=y\nCONFIG_S=\"y\"", &["CONFIG_X=y", "CONFIG_S=\"y\""]),
        ];
        for (asked, expected) in table {
            assert_eq!(dropped(asked, result), expected, "{asked}");
        }
    }

    #[test]
    fn compiled_files_are_counted_and_other_lines_are_not() {
        let table = [
            ("  CC      init/main.o", true),
            ("  CC [M]  drivers/dma/dmatest.o", true),
            ("  AS      arch/arm64/kernel/head.o", true),
            ("  LD      vmlinux", false),
            ("CC is a compiler", false),
            ("", false),
        ];
        for (line, counts) in table {
            assert_eq!(is_compiled(line), counts, "{line}");
        }
    }
}
