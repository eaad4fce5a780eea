//! What is in the file systems of the model host and of its guests.

use std::fs;
use std::path::{Path, PathBuf};

use super::calls;
use super::cpio::Archive;
use super::failure::Failure;
use crate::artifacts::{Artifacts, Debian, Firmware, Kernel};

/// The host's first process.
const HOST_INIT: &str = include_str!("../../model/init");
/// A guest's first process.
const GUEST_INIT: &str = include_str!("../../model/guest/init");
/// The guest's command that runs the kernel's DMA test.
const GUEST_DMATEST: &str = include_str!("../../model/guest/dmatest");

/// The first process of a Debian system's initrd.
const DEBIAN_INIT: &str = include_str!("../../model/debian/init");

/// Modules that are loaded with parameters, never at boot: what tests DMA controllers, by a guest's
/// `dmatest` command, and a bus that is memory, by tests.
const WITH_PARAMETERS: [&str; 2] = ["dmatest.ko", "i2c_stub.ko"];

/// What a host can run beside its own kernel.
pub(super) struct Systems<'a> {
    /// Debian's kernel.
    pub(super) stock: bool,
    /// Those of other releases.
    pub(super) other_kernels: bool,
    /// A Debian system.
    pub(super) debian: Option<&'a Debian>,
    /// Firmware.
    pub(super) firmware: Option<&'a Firmware>,
    /// A kernel that the host has instead of the usual one.
    pub(super) kernel: Option<&'a Kernel>,
    /// That is the one with pages of 64 KiB.
    pub(super) large: bool,
}

/// The host's: busybox, strait, the agent, kernels, firmware and guests' initrds under `/k`.
pub(super) fn host(
    artifacts: &Artifacts,
    systems: &Systems<'_>,
    files: &[(String, Vec<u8>)],
) -> Result<Vec<u8>, Failure> {
    let Systems { stock, other_kernels, debian, firmware, kernel, large } = *systems;
    let mut archive = skeleton(artifacts, HOST_INIT)?;
    let strait = read(&artifacts.strait)?;
    match calls::script() {
        None => archive.file("bin/strait", &strait),
        Some(script) => {
            archive.file("bin/strait", script.as_bytes());
            archive.directory("traced");
            archive.file(calls::PROGRAM, &strait);
        }
    }
    modules(&mut archive, kernel.map_or(&artifacts.host_modules, |kernel| &kernel.modules))?;
    archive.directory("k");
    archive.file("k/model", &read(&artifacts.host_kernel)?);
    archive.file("k/guest.cpio", &model_guest(artifacts, &artifacts.host_modules)?);
    if let Some(kernel) = kernel.filter(|_| large) {
        archive.file("k/large", &read(&kernel.image)?);
        archive.file("k/large.cpio", &model_guest(artifacts, &kernel.modules)?);
    }
    if stock {
        archive.file("k/stock", &read(&artifacts.stock_kernel)?);
        archive.file("k/stock.cpio", &stock_guest(artifacts)?);
    }
    if other_kernels {
        for (index, kernel) in artifacts.other_kernels.iter().enumerate() {
            archive.file(&format!("k/other{index}"), &read(&kernel.image)?);
            let initrd = kernel_guest(artifacts, &kernel.modules)?;
            archive.file(&format!("k/other{index}.cpio"), &initrd);
        }
    }
    if let Some(debian) = debian {
        archive.file("k/debian", &read(&debian.kernel.image)?);
        archive.file("k/debian.cpio", &debian_initrd(artifacts, debian)?);
    }
    if let Some(firmware) = firmware {
        archive.file("k/u-boot", &read(&firmware.u_boot)?);
        archive.file("k/edk2", &read(&firmware.edk2)?);
    }
    for (name, bytes) in files {
        archive.file(name, bytes);
    }
    Ok(archive.finish())
}

/// That of a guest that runs a kernel of the host's with these modules, with the DMA test.
fn model_guest(artifacts: &Artifacts, kernel_modules: &[PathBuf]) -> Result<Vec<u8>, Failure> {
    let mut archive = skeleton(artifacts, GUEST_INIT)?;
    archive.file("bin/dmatest", GUEST_DMATEST.as_bytes());
    modules(&mut archive, kernel_modules)?;
    Ok(archive.finish())
}

/// That of a guest that runs Debian's kernel, with Debian's own pl330 module.
fn stock_guest(artifacts: &Artifacts) -> Result<Vec<u8>, Failure> {
    let directory = &artifacts.stock_modules;
    let order = read(&directory.join("modules.order"))?;
    let paths: Vec<_> = String::from_utf8_lossy(&order)
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| directory.join(name))
        .collect();
    kernel_guest(artifacts, &paths)
}

/// That of a guest that runs a kernel with these modules.
fn kernel_guest(artifacts: &Artifacts, kernel_modules: &[PathBuf]) -> Result<Vec<u8>, Failure> {
    let mut archive = skeleton(artifacts, GUEST_INIT)?;
    modules(&mut archive, kernel_modules)?;
    Ok(archive.finish())
}

/// That which mounts the root file system of a Debian system.
pub(super) fn debian_initrd(artifacts: &Artifacts, debian: &Debian) -> Result<Vec<u8>, Failure> {
    let mut archive = skeleton(artifacts, DEBIAN_INIT)?;
    modules(&mut archive, &debian.kernel.modules)?;
    Ok(archive.finish())
}

/// The least that boots and powers off: busybox, and an init of one line.
pub(crate) fn power_off_guest(artifacts: &Artifacts) -> Result<Vec<u8>, Failure> {
    let mut archive = Archive::default();
    archive.directory("bin");
    archive.directory("dev");
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", &read(&artifacts.busybox)?);
    archive.file("init", b"#!/bin/busybox sh\n/bin/busybox poweroff -f\n");
    Ok(archive.finish())
}

/// What host and guests have in common.
fn skeleton(artifacts: &Artifacts, init: &str) -> Result<Archive, Failure> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "tmp", "root"] {
        archive.directory(directory);
    }
    // Before devtmpfs is mounted, init's standard streams are this.
    archive.character_device("dev/console", 5, 1);
    archive.file("init", init.as_bytes());
    archive.file("bin/busybox", &read(&artifacts.busybox)?);
    archive.symlink("bin/sh", "busybox");
    archive.file("bin/agent", &read(&artifacts.agent)?);
    Ok(archive)
}

/// Puts modules into `/m` that take parameters, and those that init loads into `/m/boot`, in order.
fn modules<P: AsRef<Path>>(archive: &mut Archive, paths: &[P]) -> Result<(), Failure> {
    archive.directory("m");
    archive.directory("m/boot");
    for (index, path) in paths.iter().map(AsRef::as_ref).enumerate() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let bytes = read(path)?;
        if WITH_PARAMETERS.contains(&name.as_ref()) {
            archive.file(&format!("m/{name}"), &bytes);
        } else {
            archive.file(&format!("m/boot/{index:02}-{name}"), &bytes);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::new(format!("can't read {}: {error}", path.display())))
}
