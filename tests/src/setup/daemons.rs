//! Daemons of rust-vmm, which serve devices of the host to guests by vhost-user.
//!
//! They come from crates.io and are built for the model, statically linked: in one workspace, whose locked
//! versions are `tests/model/daemons.lock`. Their own have a `vhost-user-backend` 0.10.0, whose queues
//! begin at the start of the used ring whatever is in it, so that a daemon can't go on where another ended
//! (0.10.1 mends it).

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::Archive;
use super::cache::{BuildDirs, Cache, Key, LockedEntry};
use super::error::{Error, FileError};
use super::machine::Machine;
use super::options::Options;
use super::process::{self, command};
use super::progress::{Progress, Step};
use super::qemu::file_with;
use super::toolchain::{TARGET, Toolchain};

/// Their names, and the version that each has.
const DAEMONS: [&str; 3] = [GPIO, "vhost-device-i2c", "vhost-device-input"];
const VERSION: &str = "0.1.0";

/// The one that takes Debian's libgpiod, and a libclang to make bindings to it.
const GPIO: &str = "vhost-device-gpio";
/// The name and version of a libclang at PyPI.
const LIBCLANG: &str = "libclang==18.1.1";

/// The versions of all crates.
const LOCK: &str = include_str!("../../model/daemons.lock");

/// How they are built: without what only costs time.
const PROFILE: [(&str, &str); 3] = [
    ("CARGO_PROFILE_DEV_DEBUG", "0"),
    ("CARGO_PROFILE_DEV_INCREMENTAL", "false"),
    ("CARGO_PROFILE_DEV_STRIP", "symbols"),
];

/// Builds them, as far as they aren't in the cache. Where nothing is taken from Debian's archive, there
/// is none for GPIO lines.
///
/// # Errors
///
/// Something can't be downloaded, or one doesn't build.
pub(super) fn build(toolchain: &Toolchain, options: &Options) -> Result<LockedEntry, Error> {
    let (cache, progress, machine) = (Cache::open()?, Progress::start(), Machine::detect());
    let step = progress.step("vhost-user daemons", cache.log("vhost-user-daemons"));
    let archive = Archive::new(&cache, &machine, options.debian_mirror());
    let library = archive.known().filter(|_| machine.is_debian);
    let library = library.map(|versions| format!("libgpiod-dev={}", versions.libgpiod));
    let key = Key::new().with("version", VERSION).with("lock", LOCK).with_all("daemons", &DAEMONS);
    let key = key.with("library", library.as_deref().unwrap_or_default()).with("clang", LIBCLANG);
    let key = PROFILE.iter().fold(key, |key, (name, value)| key.with(name, value));
    cache.entry("vhost-user-daemons", key).get(&step, |dirs| {
        step.phase("downloading");
        let mut build = toolchain.cargo_for_target("build");
        build.args(["--locked", "--workspace"]).envs(PROFILE).current_dir(&dirs.work);
        build.env("CARGO_TARGET_DIR", dirs.work.join("target"));
        match library {
            Some(library) => {
                archive.download(&step, &dirs.work, &[library])?;
                build.envs(bindings(&step, toolchain, &dirs.work)?);
            }
            None => drop(build.args(["--exclude", GPIO])),
        }
        unpack(&step, toolchain, &dirs.work)?;
        compile(&step, &mut build)?;
        collect(dirs)?;
        step.done("built");
        Ok(())
    })
}

/// Makes a workspace of them, of the sources that cargo has downloaded.
fn unpack(step: &Step, toolchain: &Toolchain, to: &Path) -> Result<(), Error> {
    for daemon in DAEMONS {
        let package = format!("{daemon}@{VERSION}");
        process::run(step, toolchain.cargo("info").args(["--quiet", &package]), |_| {})?;
        let source = downloaded(&format!("{daemon}-{VERSION}"))?;
        let copied = to.join(daemon);
        process::run(step, command("cp").arg("-r").args([&source, &copied]), |_| {})?;
        // The workspace's is in its place.
        let lock = copied.join("Cargo.lock");
        fs::remove_file(&lock).at("remove", lock)?;
    }
    let manifest = format!("[workspace]\nresolver = \"2\"\nmembers = {DAEMONS:?}\n");
    for (name, text) in [("Cargo.toml", manifest.as_str()), ("Cargo.lock", LOCK)] {
        let path = to.join(name);
        fs::write(&path, text).at("write", path)?;
    }
    Ok(())
}

/// Where cargo has unpacked a package.
fn downloaded(package: &str) -> Result<PathBuf, Error> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo"))).unwrap_or_default();
    let sources = home.join("registry/src");
    let registries = fs::read_dir(&sources).at("read", &sources)?.flatten();
    let mut found = registries.map(|registry| registry.path().join(package));
    found
        .find(|directory| directory.is_dir())
        .ok_or_else(|| Error::Missing { what: package.to_owned(), place: sources })
}

/// What the build needs to find libgpiod, whose package is in `work`, and libclang, which it downloads.
fn bindings(
    step: &Step,
    toolchain: &Toolchain,
    work: &Path,
) -> Result<Vec<(&'static str, OsString)>, Error> {
    let [clang, library] = ["clang", "library"].map(|part| work.join(part));
    let mut pip = command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-compile", LIBCLANG, "--target"]);
    process::run(step, pip.arg(&clang), |_| {})?;
    let package = file_with(work, |name| name.ends_with(".deb"))?;
    process::run(step, command("dpkg-deb").arg("-x").args([&package, &library]), |_| {})?;
    // Its headers include none but the compiler's own.
    let headers = process::capture(toolchain.linker().arg("-print-file-name=include"))?;
    Ok(vec![
        ("BINDGEN_EXTRA_CLANG_ARGS", format!("-ffreestanding -isystem {}", headers.trim()).into()),
        ("LIBCLANG_PATH", clang.join("clang/native").into()),
        ("SYSTEM_DEPS_LIBGPIOD_NO_PKG_CONFIG", "1".into()),
        ("SYSTEM_DEPS_LIBGPIOD_LIB", "gpiod".into()),
        ("SYSTEM_DEPS_LIBGPIOD_INCLUDE", library.join("usr/include").into()),
        ("SYSTEM_DEPS_LIBGPIOD_SEARCH_NATIVE", library.join("usr/lib/aarch64-linux-gnu").into()),
    ])
}

fn compile(step: &Step, build: &mut Command) -> Result<(), Error> {
    step.phase("compiling");
    let mut crates = 0_u32;
    process::run(step, build, |line| {
        if line.trim_start().starts_with("Compiling ") {
            crates = crates.saturating_add(1);
            step.count(format!("{crates} crates"));
        }
    })
}

/// Moves what was built to where it stays.
fn collect(dirs: &BuildDirs) -> Result<(), Error> {
    let built = dirs.work.join("target").join(TARGET).join("debug");
    for daemon in DAEMONS {
        let (from, to) = (built.join(daemon), dirs.out.join(daemon));
        if daemon != GPIO || from.exists() {
            fs::rename(from, &to).at("finish", to)?;
        }
    }
    Ok(())
}
