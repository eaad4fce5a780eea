//! A guest that is a whole system: Debian, with its own kernel, on a disk.

use tests::harness::{Board, Failure, Guest, Host, Launch, PLATFORM_DMA, TestResult};

/// Where disks are on the host: that with the system, and an empty one.
const DISK: &str = "0000:00:05.0";
const EMPTY_DISK: &str = "0000:00:06.0";

/// Where a guest has its DMA controller.
const DMA: &str = "0xc000000";

/// A board with both disks.
fn with_disks() -> Board {
    Board::new()
        .debian()
        .device("nvme,drive=debian,serial=system,addr=5")
        .disk("empty", 64 << 20)
        .device("nvme,drive=empty,serial=empty,addr=6")
}

/// The name of the NVMe disk with this serial number, in whatever runs commands by `sh`.
fn disk(sh: impl FnOnce(&str) -> Result<String, Failure>, serial: &str) -> Result<String, Failure> {
    // Names go by which disk was found first.
    let name =
        sh(&format!("cd /sys/block && grep -l '{serial} *$' nvme*/device/serial | cut -d / -f 1"))?;
    Ok(format!("/dev/{}", name.trim()))
}

/// Has the guest write to its root's disk and to the disk `other`, while its DMA controller copies;
/// the sums of what it wrote to the files `noise` of both.
fn work_with_all(guest: &mut Guest, other: &str) -> Result<Vec<String>, Failure> {
    guest.sh(&format!("mke2fs -q -t ext4 {other} && mount {other} /mnt"))?;
    // Its driver would be in the way. The memory is what Linux was told not to use.
    let driver = "/sys/bus/amba/drivers/dma-pl330";
    guest.sh(&format!("basename {driver}/*.dma-controller >{driver}/unbind"))?;
    let (program, from, to) = ("0x5c000000", "0x5c001000", "0x5c002000");
    let write = "dd if=/dev/urandom bs=64K count=256 conv=fsync 2>/dev/null";
    let output = guest.sh(&format!(
        "{write} of=/noise & first=$!
         {write} of=/mnt/noise & second=$!
         for byte in $(seq 100); do
             /run/agent memory fill {from} 4096 $byte &&
                 /run/agent pl330 {DMA} copy 1 {program} {from} {to} 4096 >/dev/null &&
                 /run/agent memory check {to} 4096 $byte && echo copied
             kill -0 $first 2>/dev/null || kill -0 $second 2>/dev/null || break
         done
         wait $first && wait $second && umount /mnt && mount {other} /mnt &&
             sha256sum </noise && sha256sum </mnt/noise"
    ))?;
    assert!(output.matches("copied").count() >= 2, "{output}");
    let sums = output.lines().filter(|line| line.ends_with(" -")).map(str::to_owned);
    Ok(sums.collect())
}

/// Checks that a disk of the host has the file `noise` with this sum, and no journal to be replayed:
/// the guest has let go of it.
fn check_disk(host: &Host, disk: &str, sum: &str) -> TestResult {
    host.sh(&format!("mkdir -p /disk && mount -t ext4 -o ro {disk} /disk"))?;
    assert_eq!(host.sh("sha256sum </disk/noise")?.trim(), sum);
    host.sh("umount /disk")?;
    let log = host.sh("dmesg | grep EXT4")?;
    assert!(!log.contains("recovery") && !log.contains("rror"), "{log}");
    Ok(())
}

#[test]
fn a_system_on_an_assigned_disk_works_with_others_at_once() -> TestResult {
    let host = with_disks().boot()?;
    let devices = [DISK, EMPTY_DISK, PLATFORM_DMA[0]];
    devices.iter().try_for_each(|device| host.bind(device))?;
    let launch = Launch::debian().cmdline("mem=448M").with(&format!(
        "--vfio-pci {DISK} --vfio-pci {EMPTY_DISK} --vfio-platform {}",
        PLATFORM_DMA[0]
    ));
    let mut guest = host.log_in(&launch)?;
    let state = guest.run("systemctl is-system-running --wait; systemctl --failed --no-legend")?.1;
    assert_eq!(state.trim(), "running");
    let root = guest.sh("findmnt --noheadings --output SOURCE,FSTYPE /")?;
    assert_eq!(root.trim(), format!("{} ext4", disk(|command| guest.sh(command), "system")?));
    // Its own udev found the DMA controller and loaded the driver, which is on the disk.
    let driver = "until ls /sys/bus/amba/drivers/dma-pl330/*.dma-controller; do sleep 0.2; done";
    guest.sh(&format!("timeout 60 sh -c '{driver}' 2>/dev/null"))?;
    let empty = disk(|command| guest.sh(command), "empty")?;
    let sums = work_with_all(&mut guest, &empty)?;
    assert_eq!(guest.shut_down()?, 0);

    for (device, serial, sum) in [(DISK, "system", &sums[0]), (EMPTY_DISK, "empty", &sums[1])] {
        host.unbind(device)?;
        host.until(&format!("[ -e /sys/bus/pci/devices/{device}/nvme/nvme*/nvme*n1 ]"))?;
        check_disk(&host, &disk(|command| host.sh(command), serial)?, sum)?;
    }
    Ok(())
}
