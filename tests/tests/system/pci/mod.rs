//! Assigned PCI devices: a guest's own drivers drive a disk, a network card and others.

mod binding;
mod drivers;
pub mod express;
mod hot_plug;
mod interrupts;
mod loss;
mod memory;
mod reset;

use tests::harness::{Board, Failure, Guest, Host, Launch, TestResult};

/// Where the devices are on the host.
const DISK: &str = "0000:00:05.0";
const CARD: &str = "0000:00:06.0";
const EDU: &str = "0000:00:07.0";
const TESTDEV: &str = "0000:00:08.0";

/// Where a guest finds the first device.
const FIRST: &str = "0000:00:01.0";

/// A board with an NVMe disk.
fn with_disk() -> Board {
    Board::new().disk("disk", 256 << 20).device("nvme,drive=disk,serial=one,addr=5")
}

/// A board with an edu, which reaches all of its memory.
fn with_edu() -> Board {
    Board::new().device("edu,addr=7,dma_mask=0xffffffffffff")
}

/// Binds devices to VFIO and starts a guest with them.
fn guest_with(host: &Host, devices: &[&str], launch: Launch) -> Result<Guest, Failure> {
    devices.iter().try_for_each(|name| host.bind(name))?;
    let options: String = devices.iter().map(|name| format!("--vfio-pci {name} ")).collect();
    host.launch(&launch.with(&options))
}

/// Has the guest make a file system, fill it, and mount it again; the sum of what it holds.
fn fill_disk(guest: &mut Guest) -> Result<String, Failure> {
    guest.sh(
        "mkdir -p /disk && mke2fs -q /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /disk && \
         dd if=/dev/urandom of=/disk/noise bs=1M count=4 2>/dev/null && \
         seq 1 20000 >/disk/numbers && sync && cat /disk/n* | sha256sum >/tmp/sum && umount /disk",
    )?;
    let sum = disk_checksum(guest)?;
    assert_eq!(guest.sh("cat /tmp/sum")?.trim(), sum, "what came back isn't what was written");
    Ok(sum)
}

/// Mounts the file system and sums up what it holds.
fn disk_checksum(guest: &mut Guest) -> Result<String, Failure> {
    let command = "mkdir -p /disk && mount -t ext4 -o ro /dev/nvme0n1 /disk && \
                   cat /disk/n* | sha256sum && umount /disk";
    Ok(guest.sh(command)?.trim().to_owned())
}

/// The same, on the host, which has the disk.
fn host_checksum(host: &Host) -> Result<String, Failure> {
    host.until("[ -e /dev/nvme0n1 ]")?;
    let command = "mkdir -p /disk && mount -o ro /dev/nvme0n1 /disk && cat /disk/n* | sha256sum && \
                   umount /disk";
    Ok(host.sh(command)?.trim().to_owned())
}

/// Checks that no driver of the guest missed an interrupt: they say so when they find out by a
/// timeout.
fn check_no_missed_interrupt(guest: &mut Guest) -> TestResult {
    let words = ["timeout,", "timed out", "nobody cared", "Hardware Unit Hang", "NETDEV WATCHDOG"];
    let log = guest.log_of(&words.join("\\|"))?;
    assert!(!words.iter().any(|word| log.contains(word)), "{log}");
    Ok(())
}

/// Checks that the host is well: nothing crashed, and its VFIO found no fault.
fn check_host(host: &Host) -> TestResult {
    let log = host.sh("dmesg")?;
    for word in ["BUG", "Oops", "WARNING", "Call trace", "SError"] {
        assert!(!log.contains(word), "{word}:\n{log}");
    }
    Ok(())
}
