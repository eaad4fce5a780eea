//! Rust for 64-bit Arm: the person's own where it can, else Debian's.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use super::cache::Cache;
use super::error::Error;
use super::machine::Machine;
use super::packages::{self, Need};
use super::process::{self, command, is_installed};
use super::progress::Step;
use super::workspace;

/// What strait and its test agent are built for.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";
/// What cargo calls [`TARGET`] in environment variables.
const TARGET_VARIABLE: &str = "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU";

/// Links programs statically: the model's initramfs has no libraries.
const STATIC: &str = "-C target-feature=+crt-static";
/// How many seconds rustup may take for the target's standard library (some 30 MB).
const RUSTUP_LIMIT: &str = "240";
/// What the root manifest names as `rust-version`.
const NEEDED: &str = env!("CARGO_PKG_RUST_VERSION");

/// What runs an arm64 program on another machine: of Debian's package `qemu-user`.
const EMULATOR: &str = "qemu-aarch64";

/// A cargo that builds for this machine and for [`TARGET`].
#[derive(Debug, Clone)]
pub struct Toolchain {
    origin: Origin,
    linker: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    /// The cargo that runs this tool. If rustup chose it, the name of the toolchain.
    Own { cargo: OsString, toolchain: Option<OsString> },
    /// Debian's packages, in `/usr/bin`.
    Debian,
}

impl Toolchain {
    /// The toolchain that is there, else one that can be had. Packages that it needs are to be
    /// installed before it is used.
    ///
    /// # Errors
    ///
    /// There is none, and this distribution has no package with one.
    pub(super) fn choose(
        machine: &Machine,
        step: &Step,
        linker: Option<&Path>,
    ) -> Result<(Self, Vec<Need>), Error> {
        let own_linker = if machine.is_arm { "gcc" } else { "aarch64-linux-gnu-gcc" };
        let compiler = if machine.is_arm { packages::NATIVE } else { packages::CROSS };
        let mut needs = if linker.is_none() && machine.is_debian { vec![compiler] } else { vec![] };
        let linker = linker.map_or_else(|| PathBuf::from(own_linker), Path::to_owned);
        let own = Self { origin: Origin::own(), linker: linker.clone() };
        let debian = Self { origin: Origin::Debian, linker };
        if own.has_target() {
            return Ok((own, needs));
        }
        if machine.is_debian && packages::are_installed(packages::RUST)? && debian.has_target() {
            return Ok((debian, needs));
        }
        if own.add_target(step)? && own.has_target() {
            return Ok((own, needs));
        }
        if !machine.is_debian || machine.is_arm {
            return Err(Error::NoRustTarget);
        }
        needs.push(packages::RUST);
        Ok((debian, needs))
    }

    /// A cargo command for this machine itself.
    pub fn cargo(&self, subcommand: &str) -> Command {
        self.command("cargo", subcommand)
    }

    /// A cargo command for [`TARGET`]: statically linked, by the linker for arm64.
    pub fn cargo_for_target(&self, subcommand: &str) -> Command {
        let mut command = self.cargo(subcommand);
        command.args(["--target", TARGET]);
        self.add_linker(&mut command);
        command
    }

    /// The linker for [`TARGET`], which is a C compiler, too.
    pub(super) fn linker(&self) -> Command {
        command(&self.linker)
    }

    /// `cargo build --release` for [`TARGET`]. Nothing unwinds in this profile, in which a panic aborts:
    /// the tables for it would be a tenth of the binary. The names of symbols tell types, by which
    /// `vmm/run.ld` finds functions.
    pub fn release_build(&self) -> Command {
        let mut command = self.cargo_for_target("build");
        let flags = format!("{STATIC} -C force-unwind-tables=no -C symbol-mangling-version=v0");
        command.arg("--release").env(format!("{TARGET_VARIABLE}_RUSTFLAGS"), flags);
        command
    }

    /// `cargo fmt`.
    pub(super) fn fmt(&self) -> Command {
        self.command("cargo-fmt", "fmt")
    }

    /// `cargo clippy` for this machine.
    pub(super) fn clippy(&self) -> Command {
        self.command("cargo-clippy", "clippy")
    }

    /// `cargo clippy` for [`TARGET`].
    pub(super) fn clippy_for_target(&self) -> Command {
        let mut command = self.clippy();
        command.args(["--target", TARGET]);
        self.add_linker(&mut command);
        command
    }

    /// What it builds for without being told: this machine's own target.
    ///
    /// # Errors
    ///
    /// rustc can't be run.
    pub(super) fn host(&self) -> Result<String, Error> {
        let said = process::capture(self.plain("rustc").arg("-vV"))?;
        let host = said.lines().find_map(|line| line.strip_prefix("host: "));
        let rustc = || PathBuf::from(self.program("rustc"));
        host.map(str::to_owned)
            .ok_or_else(|| Error::Missing { what: "host".to_owned(), place: rustc() })
    }

    /// Makes formatter and linter available.
    ///
    /// # Errors
    ///
    /// rustup has no such component, or the package can't be installed.
    pub(super) fn add_linters(
        &self,
        machine: &Machine,
        cache: &Cache,
        step: &Step,
    ) -> Result<(), Error> {
        let works = |mut command: Command| process::succeeds(command.arg("--version"));
        if works(self.fmt()) && works(self.clippy()) {
            return Ok(());
        }
        if self.is_rustups() || !machine.is_debian {
            step.begin_log()?;
            step.phase("adding clippy and rustfmt");
            let mut rustup = self.rustup();
            return process::run(
                step,
                rustup.args(["component", "add", "clippy", "rustfmt"]),
                |_| {},
            );
        }
        packages::install(machine, cache, step, &[packages::RUST_LINT])
    }

    /// Checks that the compiler is new enough.
    ///
    /// # Errors
    ///
    /// It isn't, or it can't be run.
    pub(super) fn check_version(&self) -> Result<(), Error> {
        let said = process::capture(self.plain("rustc").arg("--version"))?;
        let found = said.split_whitespace().nth(1).unwrap_or_default().to_owned();
        if numbers(&found) >= numbers(NEEDED) {
            return Ok(());
        }
        let rustc = self.program("rustc").to_string_lossy().into_owned();
        Err(Error::RustTooOld { rustc, found, needed: NEEDED.to_owned() })
    }

    fn is_rustups(&self) -> bool {
        matches!(&self.origin, Origin::Own { toolchain: Some(_), .. })
    }

    fn has_target(&self) -> bool {
        let mut rustc = self.plain("rustc");
        rustc.args(["--print", "target-libdir", "--target", TARGET]);
        let Ok(dir) = process::capture(&mut rustc) else { return false };
        let libraries = fs::read_dir(dir.trim()).into_iter().flatten().flatten();
        // rustc names the directory whether or not it is there.
        libraries
            .into_iter()
            .any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"libstd-"))
    }

    /// Asks rustup for the target; whether it did it. Without network, or with a toolchain that
    /// isn't rustup's, that is no error: Debian has one too.
    fn add_target(&self, step: &Step) -> Result<bool, Error> {
        if !self.is_rustups() || !is_installed("rustup") {
            return Ok(false);
        }
        step.begin_log()?;
        step.phase("adding rustup's target for arm64");
        match process::run(step, self.rustup().args(["target", "add", TARGET]), |_| {}) {
            Ok(()) => Ok(true),
            Err(Error::Interrupted) => Err(Error::Interrupted),
            Err(_) => {
                step.say("rustup can't provide the target for arm64; trying Debian's Rust");
                Ok(false)
            }
        }
    }

    /// rustup with a time limit.
    fn rustup(&self) -> Command {
        let mut command = self.plain("timeout");
        command.args([RUSTUP_LIMIT, "rustup"]);
        command
    }

    fn command(&self, program: &str, subcommand: &str) -> Command {
        let mut command = self.plain(program);
        command.arg(subcommand).current_dir(workspace::root());
        command.env("CARGO_TARGET_DIR", workspace::target_dir());
        command.env("CARGO_TERM_COLOR", "never").env("CARGO_TERM_PROGRESS_WHEN", "never");
        command
    }

    /// Sets what links a program, and what runs it: nothing on an arm64 machine, else QEMU.
    fn add_linker(&self, command: &mut Command) {
        if cfg!(not(target_arch = "aarch64")) {
            command.env(format!("{TARGET_VARIABLE}_RUNNER"), EMULATOR);
        }
        command.env(format!("{TARGET_VARIABLE}_LINKER"), &self.linker);
        command.env(format!("{TARGET_VARIABLE}_RUSTFLAGS"), STATIC);
    }

    /// A program of this toolchain, and others first to be found where it is.
    fn plain(&self, program: &str) -> Command {
        let mut command = command(self.program(program));
        match &self.origin {
            Origin::Own { toolchain: Some(toolchain), .. } => {
                command.env("RUSTUP_TOOLCHAIN", toolchain);
            }
            Origin::Own { toolchain: None, .. } => {}
            Origin::Debian => {
                command.env("PATH", path_with_first(Path::new("/usr/bin")));
                command.env("CARGO", "/usr/bin/cargo");
            }
        }
        command
    }

    fn program(&self, name: &str) -> OsString {
        match &self.origin {
            Origin::Own { cargo, .. } if name == "cargo" => cargo.clone(),
            // rustup's proxies obey RUSTUP_TOOLCHAIN.
            Origin::Own { .. } => name.into(),
            Origin::Debian => Path::new("/usr/bin").join(name).into(),
        }
    }
}

impl Origin {
    fn own() -> Self {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        Self::Own {
            cargo: set("CARGO").unwrap_or_else(|| "cargo".into()),
            toolchain: set("RUSTUP_TOOLCHAIN"),
        }
    }
}

fn path_with_first(dir: &Path) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(dir.to_owned()).chain(env::split_paths(&path));
    // Joining fails only for a directory with a colon, and these come from such a list.
    env::join_paths(dirs).unwrap_or_else(|_| OsStr::new("/usr/bin:/bin").to_owned())
}

/// The numbers of a version, comparable.
fn numbers(version: &str) -> Vec<u32> {
    let release = version.split(['-', '+', '~']).next().unwrap_or_default();
    release.split('.').map_while(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        let table = [
            ("1.96.0", "1.89", true),
            ("1.89.0", "1.89", true),
            ("1.100.0-nightly", "1.89", true),
            ("1.9.0", "1.89", false),
            ("1.85.1", "1.89", false),
            ("2.0", "1.89", true),
            ("", "1.89", false),
        ];
        for (found, needed, is_enough) in table {
            assert_eq!(numbers(found) >= numbers(needed), is_enough, "{found} for {needed}");
        }
    }

    #[test]
    fn debians_rust_is_run_by_its_path_and_another_by_its_name() {
        let linker = PathBuf::from("gcc");
        let debian = Toolchain { origin: Origin::Debian, linker: linker.clone() };
        assert_eq!(debian.cargo("build").get_program(), "/usr/bin/cargo");
        assert_eq!(debian.clippy().get_program(), "/usr/bin/cargo-clippy");
        let origin = Origin::Own { cargo: "/r/cargo".into(), toolchain: Some("x".into()) };
        let own = Toolchain { origin, linker };
        assert_eq!(own.cargo("build").get_program(), "/r/cargo");
        assert_eq!(own.plain("rustc").get_program(), "rustc");
        let toolchain = own.plain("rustc");
        let toolchain = toolchain.get_envs().find(|(name, _)| *name == "RUSTUP_TOOLCHAIN");
        assert_eq!(toolchain, Some((OsStr::new("RUSTUP_TOOLCHAIN"), Some(OsStr::new("x")))));
    }

    #[test]
    fn only_a_build_for_the_target_gets_the_linker() {
        let own = Toolchain {
            origin: Origin::Own { cargo: "cargo".into(), toolchain: None },
            linker: PathBuf::from("/opt/gcc"),
        };
        let linker = |command: &Command| {
            let name = format!("{TARGET_VARIABLE}_LINKER");
            command.get_envs().any(|(n, v)| n == name.as_str() && v == Some(OsStr::new("/opt/gcc")))
        };
        assert!(!linker(&own.cargo("test")));
        assert!(linker(&own.cargo_for_target("test")));
        assert!(linker(&own.clippy_for_target()));
    }
}
