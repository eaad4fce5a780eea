//! Guests that begin with firmware, as it is packaged for QEMU's `virt`.

use tests::harness::{Board, Failure, Guest, Host, Process, TestResult};

/// How long firmware may take for anything, in seconds.
const TIMEOUT: u64 = 600;

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
fn host_with_disks(board: Board) -> Result<Host, Failure> {
    let host = board
        .debian()
        .device("nvme,drive=debian,serial=system,addr=5")
        .device("nvme,drive=efi,serial=efi,addr=6")
        .boot()?;
    host.bind("0000:00:06.0")?;
    Ok(host)
}

/// Starts firmware, with the EFI system partition on the assigned disk, and the system's root on another.
fn boot(host: &Host, options: &str) -> Result<Process, Failure> {
    let disk = host.sh("cd /sys/block && grep -l 'system *$' nvme*/device/serial")?;
    let disk = disk.split('/').next().unwrap_or_default();
    let run = "run --memory 512M --vfio-pci 0000:00:06.0";
    Ok(host.strait(&format!("{run} --block /dev/{disk} {options}"))?.timeout(TIMEOUT))
}

fn end(process: &Process) -> TestResult {
    process.signal(libc::SIGTERM)?;
    assert_eq!(process.exit_status()?, 128 + libc::SIGTERM);
    Ok(())
}

/// The Debian system that this firmware boots: its shell, on its disk.
fn debian(process: Process) -> Result<Guest, Failure> {
    let mut guest = Guest::at_prompt(process)?;
    let root = guest.sh(
        "export PATH=/usr/sbin:/usr/bin; grep PRETTY_NAME /etc/os-release; findmnt -no SOURCE /",
    )?;
    assert!(root.contains("Debian GNU/Linux 13") && root.contains("/dev/vda"), "{root}");
    Ok(guest)
}

#[test]
fn u_boot_boots_debian_from_an_assigned_disk_to_a_login() -> TestResult {
    let host = host_with_disks(Board::new().firmware_to_login())?;
    let mut process = boot(&host, "--firmware /k/u-boot")?;
    // What agetty(8) prints.
    process.wait_for("Debian GNU/Linux 13 debian ttyAMA0")?;
    process.wait_for("debian login: ")?;
    end(&process)
}

/// Waits until EDK2 starts what an installed system has it start.
fn starts_own_entry(process: &mut Process) -> TestResult {
    process.wait_for("BdsDxe: starting Boot")?;
    process.wait_for("\"debian\" from HD(1,MBR,")?;
    process.wait_for("/\\EFI\\debian\\grubaa64.efi").map(|_| ())
}

#[test]
fn edk2_boots_an_installed_debian_by_its_own_entry() -> TestResult {
    let host = host_with_disks(Board::new().firmware())?;
    let edk2 = "--firmware /k/edk2,vars=/tmp/vars";
    let mut process = boot(&host, &format!("{edk2} --on-reset restart"))?;
    // From the path of removable media, by an entry that it makes, which is in the file, in UTF-16.
    process.wait_for("UEFI QEMU NVMe Ctrl efi 1")?;
    let mut guest = debian(process)?;
    host.until("tr -d '\\0' </tmp/vars | grep -q 'Boot0001.*UEFI QEMU NVMe Ctrl efi 1'")?;
    // What Debian's installer does.
    guest.sh("modprobe efivarfs && mount -t efivarfs none /sys/firmware/efi/efivars && disk=$(ls /dev/nvme?n1) && \
              efibootmgr -q -c -d $disk -p 1 -L debian -l '\\EFI\\debian\\grubaa64.efi'")?;
    guest.begin("echo b >/proc/sysrq-trigger")?;
    starts_own_entry(guest.process())?;
    end(guest.process())?;
    let mut process = boot(&host, edk2)?;
    starts_own_entry(&mut process)?;
    end(&process)
}
