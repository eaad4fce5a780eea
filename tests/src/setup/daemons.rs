//! Daemons of rust-vmm, which serve devices of the host to guests by vhost-user.
//!
//! They come from crates.io at fixed versions, with the versions that each has locked, and are built for
//! the model: statically linked, and without what only costs time.

use std::path::Path;

use super::cache::{Cache, Key, LockedEntry};
use super::error::Error;
use super::process;
use super::progress::Progress;
use super::toolchain::Toolchain;

/// Their names and versions.
const DAEMONS: [&str; 2] = ["vhost-device-i2c@0.1.0", "vhost-device-input@0.1.0"];

/// How they are built, beside that.
const INSTALL: [&str; 3] = ["--locked", "--debug", "--no-track"];
/// What the profile has: `CARGO_PROFILE_DEV_…`.
const PROFILE: [(&str, &str); 3] = [
    ("CARGO_PROFILE_DEV_DEBUG", "0"),
    ("CARGO_PROFILE_DEV_INCREMENTAL", "false"),
    ("CARGO_PROFILE_DEV_STRIP", "symbols"),
];

/// Builds them, as far as they aren't in the cache.
///
/// # Errors
///
/// crates.io can't be reached, or one doesn't build.
pub(super) fn build(
    toolchain: &Toolchain,
    cache: &Cache,
    progress: &Progress,
) -> Result<LockedEntry, Error> {
    let step = progress.step("vhost-user daemons", cache.log("vhost-user-daemons"));
    let key = Key::new().with_all("daemons", &DAEMONS).with_all("install", &INSTALL);
    let key = PROFILE.iter().fold(key, |key, (name, value)| key.with(name, value));
    cache.entry("vhost-user-daemons", key).get(&step, |dirs| {
        let target = dirs.work.join("target");
        let mut crates = 0_u32;
        for daemon in DAEMONS {
            step.phase("compiling");
            let mut install = install(toolchain, &target, &dirs.out);
            process::run(&step, install.arg(daemon), |line| {
                if line.trim_start().starts_with("Compiling ") {
                    crates = crates.saturating_add(1);
                    step.count(format!("{crates} crates"));
                }
            })?;
        }
        step.done("built");
        Ok(())
    })
}

/// A command that installs a program below `to`, whose crates are built in `target`.
fn install(toolchain: &Toolchain, target: &Path, to: &Path) -> std::process::Command {
    let mut command = toolchain.cargo_for_target("install");
    command.args(INSTALL).envs(PROFILE).arg("--target-dir").arg(target).arg("--root").arg(to);
    command
}
