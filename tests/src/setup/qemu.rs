//! QEMU with the model's assignable devices, from Debian's source package.

use std::fs;
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::cache::{BuildDirs, Key};
use super::error::{Error, FileError};
use super::machine::Machine;
use super::packages::{self, Need};
use super::part::{Part, upstream};
use super::process::{self, command};
use super::progress::Step;

/// The board and what can be plugged into it, and nothing else.
const CONFIGURE: [&str; 16] = [
    "--target-list=aarch64-softmmu",
    "--without-default-features",
    "--without-default-devices",
    "--with-devices-aarch64=model",
    "--enable-tcg",
    "--enable-fdt=system",
    "--enable-virtfs",
    "--enable-attr",
    "--enable-trace-backends=nop",
    "--disable-docs",
    "--disable-tools",
    "--disable-guest-agent",
    "--disable-install-blobs",
    "--disable-debug-info",
    "--disable-qom-cast-debug",
    // For all but what tests/model/qemu.patch says: 100 s of CPU time less than 2.
    "-Doptimization=1",
];

/// What QEMU's configure wants of Python, which Debian 12 has in older versions only.
const PYTHON_PACKAGES: [&str; 3] =
    ["meson==1.5.0", "pycotap==1.3.1", "tomli; python_version < '3.11'"];

/// By how much its build steps back behind that of the host's kernel (nice(1)).
const NICE: &str = "10";

/// The program's name.
pub(super) const PROGRAM: &str = "qemu-system-aarch64";

/// The part's name in the cache.
pub(super) const NAME: &str = "qemu";

/// How QEMU is made.
pub(super) struct Qemu<'a> {
    /// The machine that builds it.
    pub(super) machine: &'a Machine,
    /// The directory with the patch and the list of devices.
    pub(super) model: PathBuf,
    /// Of Debian's source package.
    pub(super) version: &'a str,
}

impl Qemu<'_> {
    fn patch(&self) -> PathBuf {
        self.model.join("qemu.patch")
    }

    fn devices(&self) -> PathBuf {
        self.model.join("qemu.mak")
    }

    fn unpack(&self, step: &Step, dirs: &BuildDirs) -> Result<PathBuf, Error> {
        step.phase("unpacking");
        let tar =
            file_with(&dirs.work, |name| name.starts_with("qemu_") && name.contains(".orig.tar"))?;
        let source = dirs.work.join("source");
        fs::create_dir(&source).at("create", &source)?;
        let mut untar = command("tar");
        untar.arg("-xf").arg(&tar).arg("--strip-components=1").arg("-C").arg(&source);
        process::run(step, &mut untar, |_| {})?;
        let mut patch = command("patch");
        patch.current_dir(&source).args(["--strip=1", "--forward", "-i"]).arg(self.patch());
        process::run(step, &mut patch, |_| {})?;
        let devices = source.join("configs/devices/aarch64-softmmu/model.mak");
        fs::copy(self.devices(), &devices).at("write", &devices)?;
        Ok(source)
    }

    fn configure(
        &self,
        step: &Step,
        dirs: &BuildDirs,
        source: &Path,
        build: &Path,
    ) -> Result<(), Error> {
        step.phase("configuring");
        let environment = dirs.work.join("python");
        // The system's own: the package python3-venv belongs to it.
        let mut venv = command("/usr/bin/python3");
        process::run(step, venv.args(["-m", "venv"]).arg(&environment), |_| {})?;
        let python = environment.join("bin/python3");
        let mut pip = command(&python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check"]).args(PYTHON_PACKAGES);
        process::run(step, &mut pip, |_| {})?;
        let mut configure = command(source.join("configure"));
        configure.current_dir(build).args(CONFIGURE);
        configure.arg(format!("--python={}", python.display()));
        process::run(step, &mut configure, |_| {})
    }
}

impl Part for Qemu<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> String {
        format!("QEMU {}", upstream(self.version))
    }

    fn needs(&self) -> Vec<Need> {
        vec![packages::QEMU]
    }

    // It is linked to the system's libraries, so their release counts too.
    fn key(&self) -> Result<Key, Error> {
        let key = Key::new()
            .with("version", self.version)
            .with("release", &self.machine.release)
            .with("processor", std::env::consts::ARCH)
            .with_all("configure", &CONFIGURE)
            .with_all("python", &PYTHON_PACKAGES);
        key.with_file(&self.patch())?.with_file(&self.devices())
    }

    fn fetch(&self, archive: &Archive, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        archive.download_source(step, &dirs.work, &format!("qemu={}", self.version))
    }

    fn build(&self, step: &Step, dirs: &BuildDirs) -> Result<(), Error> {
        let source = self.unpack(step, dirs)?;
        let build = dirs.work.join("build");
        fs::create_dir(&build).at("create", &build)?;
        self.configure(step, dirs, &source, &build)?;
        step.phase("compiling");
        // The kernel takes longer and ends with what one processor does alone: it goes first.
        let mut ninja = command("nice");
        ninja.args(["-n", NICE, "ninja"]);
        ninja.current_dir(&build).arg(format!("-j{}", self.machine.cpus)).arg(PROGRAM);
        process::run(step, &mut ninja, |line| {
            if let Some(count) = ninja_count(line) {
                step.count(count.to_owned());
            }
        })?;
        let program = dirs.out.join(PROGRAM);
        let mut strip = command("strip");
        process::run(step, strip.arg("-o").arg(&program).arg(build.join(PROGRAM)), |_| {})?;
        // Started once from where it will lie, it proves that it needs nothing of the build.
        process::run(step, command(&program).arg("--version"), |_| {})
    }
}

/// The one file in `dir` whose name is as asked.
pub(super) fn file_with(dir: &Path, is_it: impl Fn(&str) -> bool) -> Result<PathBuf, Error> {
    for entry in fs::read_dir(dir).at("read", dir)? {
        let path = entry.at("read", dir)?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&is_it) {
            return Ok(path);
        }
    }
    Err(Error::Missing { what: "file that was downloaded".to_owned(), place: dir.to_owned() })
}

/// `n/m` of a line `[n/m] what is compiled`.
fn ninja_count(line: &str) -> Option<&str> {
    let (count, _) = line.strip_prefix('[')?.split_once(']')?;
    let (done, all) = count.split_once('/')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(done) && is_number(all)).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninjas_count_is_found_and_nothing_else() {
        let table = [
            ("[12/1034] Compiling C object a.o", Some("12/1034")),
            ("[12/] x", None),
            ("[a/b] x", None),
            ("12/1034", None),
            ("[12/1034", None),
            ("", None),
        ];
        for (line, count) in table {
            assert_eq!(ninja_count(line), count, "{line}");
        }
    }
}
