//! Debian packages that the system itself must have, installed by apt-get.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::cache::Cache;
use super::error::{Error, FileError};
use super::machine::Machine;
use super::process::{self, is_installed};
use super::progress::Step;

/// How many seconds apt waits for another package manager to finish.
const LOCK_TIMEOUT: &str = "DPkg::Lock::Timeout=900";
/// How often apt is tried while another one updates the lists, and the pause between.
const LOCK_TRIES: u32 = 60;
const LOCK_PAUSE: Duration = Duration::from_secs(5);

/// Packages and what they are for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// What for, such as "to build QEMU".
    pub(super) why: &'static str,
    /// Their names, of a foreign architecture with `:arch`.
    pub(super) packages: &'static [&'static str],
}

/// What unpacks Debian's packages and their contents.
pub(super) const UNPACK: Need = Need { why: "to unpack", packages: &["xz-utils"] };

/// What makes a disk image with a Debian system.
pub(super) const DEBIAN_SYSTEM: Need = Need {
    why: "to make a Debian system",
    packages: &["e2fsprogs", "fakeroot", "kmod", "xz-utils"],
};

/// What QEMU's build takes.
pub(super) const QEMU: Need = Need {
    why: "to build QEMU",
    packages: &[
        "bzip2",
        "gcc",
        "libattr1-dev",
        "libc6-dev",
        "libfdt-dev",
        "libglib2.0-dev",
        "make",
        "ninja-build",
        "patch",
        "pkg-config",
        "python3-venv",
        "xz-utils",
        "zlib1g-dev",
    ],
};

/// What the kernel's build takes, beside a compiler for arm64.
pub(super) const LINUX: Need = Need {
    why: "to build the host's kernel",
    packages: &[
        "bc",
        "bison",
        "flex",
        "gcc",
        "libc6-dev",
        "libelf-dev",
        "libssl-dev",
        "make",
        "perl",
        "xz-utils",
    ],
};

/// The compiler and linker for arm64 on another machine.
pub(super) const CROSS: Need = Need {
    why: "to compile and link for arm64",
    packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
};

/// The same on an arm64 machine.
pub(super) const NATIVE: Need =
    Need { why: "to compile and link", packages: &["gcc", "libc6-dev"] };

/// Debian's own Rust for arm64, on another machine.
pub(super) const RUST: Need = Need {
    why: "to build Rust for arm64 (rustup has no such target here)",
    packages: &["cargo-web", "libstd-rust-web-dev:arm64", "rustc-web"],
};

/// What lints Debian's own Rust.
pub(super) const RUST_LINT: Need =
    Need { why: "to lint", packages: &["rust-web-clippy", "rustfmt-web"] };

/// What tests take: a reader of device trees and a debugger that aren't ours, and the tools that errors about
/// kernels and initrds advise.
pub(super) const TEST: Need = Need {
    why: "to test",
    packages: &[
        "cpio",
        "device-tree-compiler",
        "gdb-multiarch",
        "lz4",
        "lzop",
        "mkbootimg",
        "mtools",
        "python3-pip",
        "u-boot-tools",
        "unzip",
        "xz-utils",
        "zip",
        "zstd",
    ],
};

/// What compiles libFuzzer.
pub(super) const FUZZ: Need = Need { why: "to fuzz", packages: &["g++"] };

/// What runs arm64 programs on another machine.
pub(super) const EMULATE: Need =
    Need { why: "to test what is built for arm64", packages: &["qemu-user"] };

/// Whether all these packages are installed.
pub(super) fn are_installed(need: Need) -> Result<bool, Error> {
    Ok(missing(&[need])?.is_empty())
}

/// Installs what is missing of `needs`, having said what and why.
///
/// # Errors
///
/// apt-get fails, or there is no way to become root.
pub(super) fn install(
    machine: &Machine,
    cache: &Cache,
    step: &Step,
    needs: &[Need],
) -> Result<(), Error> {
    if missing(needs)?.is_empty() {
        return Ok(());
    }
    // Another run may be installing them at this moment.
    let _lock = cache.lock("packages").exclusive(step)?;
    let missing = missing(needs)?;
    if missing.is_empty() {
        return Ok(());
    }
    step.begin_log()?;
    for (why, packages) in &missing {
        step.say(&format!("installing {why}: {}", packages.join(" ")));
    }
    let mut packages: Vec<&str> = missing.into_values().flatten().collect();
    packages.sort_unstable();
    packages.dedup();
    let commands = commands(&packages, &foreign_architectures()?);
    let root = Root::find(machine, step, &commands)?;
    step.phase("installing");
    for command in &commands {
        match run_patiently(step, &root, command) {
            // One source that can't be reached doesn't keep the others from serving.
            Err(Error::Failed { .. }) if command.iter().any(|word| word == "update") => {
                step.say("apt-get update failed; trying with the package lists as they are");
            }
            result => result?,
        }
    }
    step.done("installed");
    Ok(())
}

/// Runs one of the commands, again if another package manager was at it. apt waits for dpkg's lock
/// by itself, but not for that of the lists.
fn run_patiently(step: &Step, root: &Root, command: &[String]) -> Result<(), Error> {
    let mut tries = 0;
    loop {
        let result = process::run_in_foreground(step, &mut root.command(command));
        match &result {
            Err(Error::Failed { tail, .. }) if tail.contains("get lock") && tries < LOCK_TRIES => {
                tries += 1;
                step.phase("waiting for another package manager");
                std::thread::sleep(LOCK_PAUSE);
            }
            _ => return result,
        }
    }
}

/// The commands that install `packages`, each as its words. The lists are updated first: on a
/// fresh machine there are none, and old ones name files that are gone.
fn commands(packages: &[&str], known_foreign: &str) -> Vec<Vec<String>> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut commands = Vec::new();
    let is_known = known_foreign.split_whitespace().any(|architecture| architecture == "arm64");
    if packages.iter().any(|package| package.ends_with(":arm64")) && !is_known {
        commands.push(words(&["dpkg", "--add-architecture", "arm64"]));
    }
    commands.push(words(&["apt-get", "update", "-q", "-o", LOCK_TIMEOUT]));
    let install = [
        "apt-get",
        "install",
        "-q",
        "-y",
        "--no-install-recommends",
        "--no-remove",
        "-o",
        LOCK_TIMEOUT,
    ];
    commands.push(words(&[&install, packages].concat()));
    commands
}

/// The packages of each need that aren't installed.
fn missing(needs: &[Need]) -> Result<BTreeMap<&'static str, Vec<&'static str>>, Error> {
    let path = Path::new("/var/lib/dpkg/status");
    let status = std::fs::read_to_string(path).at("read", path)?;
    let native = process::capture(process::command("dpkg").arg("--print-architecture"))?;
    Ok(missing_of(needs, &Installed::parse(&status, native.trim())))
}

fn missing_of(
    needs: &[Need],
    installed: &Installed<'_>,
) -> BTreeMap<&'static str, Vec<&'static str>> {
    let lacks = |need: &Need| {
        need.packages.iter().copied().filter(|package| !installed.has(package)).collect::<Vec<_>>()
    };
    let lacking = needs.iter().map(|need| (need.why, lacks(need)));
    lacking.filter(|(_, packages)| !packages.is_empty()).collect()
}

fn foreign_architectures() -> Result<String, Error> {
    process::capture(process::command("dpkg").arg("--print-foreign-architectures"))
}

/// The installed packages: name and architecture.
struct Installed<'a> {
    native: &'a str,
    packages: Vec<(&'a str, &'a str)>,
}

impl<'a> Installed<'a> {
    /// Of dpkg's status file (dpkg(1), "FILES").
    fn parse(status: &'a str, native: &'a str) -> Self {
        let packages = status.split("\n\n").filter_map(|stanza| {
            let field = |name: &str| {
                stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            };
            let is_whole = field("Status").is_some_and(|status| status.ends_with(" ok installed"));
            is_whole.then_some((field("Package")?, field("Architecture")?))
        });
        Self { native, packages: packages.collect() }
    }

    fn has(&self, package: &str) -> bool {
        let (name, architecture) = package.split_once(':').unwrap_or((package, self.native));
        self.packages.iter().any(|(n, a)| *n == name && (*a == architecture || *a == "all"))
    }
}

/// How this run acts as root.
enum Root {
    Already,
    Sudo,
}

impl Root {
    /// Finds the way, asking for a password now rather than under a progress line.
    fn find(machine: &Machine, step: &Step, commands: &[Vec<String>]) -> Result<Self, Error> {
        if machine.is_root {
            return Ok(Self::Already);
        }
        if is_installed("sudo") {
            let may_now = process::succeeds(process::command("sudo").args(["-n", "true"]));
            if may_now || Self::ask(step)? {
                return Ok(Self::Sudo);
            }
        }
        let commands = commands.iter().map(|words| format!("\n    {}", words.join(" "))).collect();
        Err(Error::NoRoot { commands })
    }

    /// Lets sudo ask on the terminal. Without one it fails at once.
    fn ask(step: &Step) -> Result<bool, Error> {
        step.say("sudo asks for your password, to install these packages");
        let mut command = process::command("sudo");
        command.arg("-v").stdin(Stdio::inherit());
        let status = step.hidden(|| command.status());
        let status =
            status.map_err(|source| Error::Start { program: "sudo".to_owned(), source })?;
        Ok(status.success())
    }

    fn command(&self, words: &[String]) -> Command {
        let environment = ["DEBIAN_FRONTEND=noninteractive", "APT_LISTCHANGES_FRONTEND=none"];
        let mut command = match self {
            Self::Already => process::command("env"),
            Self::Sudo => {
                let mut command = process::command("sudo");
                command.arg("env");
                command
            }
        };
        command.args(environment).args(words);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "\
Package: gcc
Status: install ok installed
Architecture: amd64
Description: compiler
 Package: trap

Package: python3-venv
Status: hold ok installed
Architecture: all

Package: make
Status: deinstall ok config-files
Architecture: amd64

Package: half
Status: install ok half-configured
Architecture: amd64

Package: libstd-rust-web-dev
Architecture: arm64
Status: install ok installed
";

    #[test]
    fn only_whole_packages_of_the_right_architecture_count_as_installed() {
        let installed = Installed::parse(STATUS, "amd64");
        let table = [
            ("gcc", true),
            ("gcc:amd64", true),
            ("gcc:arm64", false),
            ("python3-venv", true),
            ("make", false),
            ("half", false),
            ("trap", false),
            ("libstd-rust-web-dev:arm64", true),
            ("libstd-rust-web-dev", false),
            ("absent", false),
        ];
        for (package, expected) in table {
            assert_eq!(installed.has(package), expected, "{package}");
        }
    }

    #[test]
    fn what_is_missing_is_told_by_its_reason() {
        let installed = Installed::parse(STATUS, "amd64");
        let all = Need { why: "to rest", packages: &["gcc"] };
        let some = Need { why: "to build", packages: &["gcc", "make", "absent"] };
        let missing = missing_of(&[all, some], &installed);
        assert_eq!(missing.into_iter().collect::<Vec<_>>(), [("to build", vec!["make", "absent"])]);
    }

    #[test]
    fn a_foreign_architecture_is_added_only_for_a_package_of_it_and_only_once() {
        let table = [
            (&["make"][..], "", false),
            (&["make", "x:arm64"][..], "", true),
            (&["make", "x:arm64"][..], "i386\narm64\n", false),
            (&["make", "x:arm64"][..], "i386\n", true),
        ];
        for (packages, known, adds) in table {
            let commands = commands(packages, known);
            let first = commands.first().map(|words| words.join(" "));
            assert_eq!(first.as_deref() == Some("dpkg --add-architecture arm64"), adds);
            assert!(commands.last().unwrap().ends_with(&["make".to_owned()]) || packages.len() > 1);
            assert_eq!(commands.len(), if adds { 3 } else { 2 });
        }
    }
}
