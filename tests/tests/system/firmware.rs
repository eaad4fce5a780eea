//! Guests that begin with firmware, as it is packaged for QEMU's `virt`.

use tests::harness::{Board, Failure, Host, Process, TestResult};

/// How long firmware may take for anything, in seconds.
const TIMEOUT: u64 = 300;

/// U-Boot at its prompt, with what it saves in `/tmp/env`.
fn u_boot(host: &Host, options: &str) -> Result<Process, Failure> {
    let command = format!("exec strait run --firmware /k/u-boot,vars=/tmp/env {options} 2>&1");
    let mut process = host.start(&command)?.timeout(TIMEOUT);
    await_prompt(&mut process)?;
    Ok(process)
}

/// Waits for U-Boot, which is starting, to offer its prompt.
fn await_prompt(process: &mut Process) -> TestResult {
    process.wait_for("stop autoboot")?;
    process.send("\r")?;
    process.wait_for("=> ").map(|_| ())
}

/// Checks that U-Boot has what was saved.
fn check_environment(process: &mut Process) -> TestResult {
    process.send("printenv kept\r")?;
    process.wait_for("kept=variable").map(|_| ())
}

#[test]
fn u_boot_keeps_its_environment_in_a_file() -> TestResult {
    let host = Board::new().firmware().boot()?;
    let mut process = u_boot(&host, "")?;
    // Another guest's variables would be lost.
    let second = host.run("strait run --firmware /k/u-boot,vars=/tmp/env 2>&1")?;
    assert!(second.output.contains("/tmp/env is in use by another program"), "{}", second.output);
    process.send("setenv kept variable; saveenv\r")?;
    process.wait_for("Writing to Flash... done")?;
    process.send("reset\r")?;
    assert_eq!(process.exit_status()?, 3);
    let mut process = u_boot(&host, "--on-reset restart")?;
    check_environment(&mut process)?;
    // What isn't saved is lost when the guest begins anew.
    process.send("setenv kept another; reset\r")?;
    await_prompt(&mut process)?;
    check_environment(&mut process)?;
    process.send("poweroff\r")?;
    assert_eq!(process.exit_status()?, 0);
    Ok(())
}

/// A host whose NVMe disk with an EFI system partition is given to VFIO; the disk with the Debian system is
/// `/dev/nvme0n1`.
fn host_with_disks() -> Result<Host, Failure> {
    let host = Board::new()
        .debian()
        .firmware()
        .device("nvme,drive=debian,serial=system,addr=5")
        .device("nvme,drive=efi,serial=efi,addr=6")
        .boot()?;
    host.bind("0000:00:06.0")?;
    Ok(host)
}

/// Boots the system by this firmware, whose partition is on an assigned disk, and its root on another.
fn boots_debian(firmware: &str) -> Result<Host, Failure> {
    let host = host_with_disks()?;
    let disk = host.sh("cd /sys/block && grep -l 'system *$' nvme*/device/serial")?;
    let disk = disk.split('/').next().unwrap_or_default();
    let mut process = host
        .strait(&format!(
            "run --firmware {firmware} --memory 512M --vfio-pci 0000:00:06.0 --block /dev/{disk}"
        ))?
        .timeout(TIMEOUT);
    // Its own systemd says so.
    process.wait_for("Welcome to ")?;
    process.wait_for("Debian GNU/Linux 13")?;
    process.signal(libc::SIGTERM)?;
    assert_eq!(process.exit_status()?, 128 + libc::SIGTERM);
    Ok(host)
}

#[test]
fn u_boot_boots_debian_from_an_assigned_disk() -> TestResult {
    boots_debian("/k/u-boot").map(drop)
}

#[test]
fn edk2_boots_debian_from_an_assigned_disk_and_keeps_its_entry() -> TestResult {
    let host = boots_debian("/k/edk2,vars=/tmp/vars")?;
    // The variable of the entry by which it has booted, in UTF-16, and what that is called.
    host.sh("tr -d '\\0' </tmp/vars | grep -q 'Boot0001.*UEFI QEMU NVMe Ctrl efi 1'")?;
    Ok(())
}
