//! A guest that is a whole system: Debian, with its own kernel, on a disk.

use tests::harness::{Board, Launch, PLATFORM_DMA, TestResult};

/// Where the disk is on the host.
const DISK: &str = "0000:00:05.0";

#[test]
fn a_system_on_an_assigned_disk_boots_and_shuts_down_cleanly() -> TestResult {
    let host = Board::new().debian().device("nvme,drive=debian,serial=one,addr=5").boot()?;
    let dma = PLATFORM_DMA[0];
    host.bind(DISK)?;
    host.bind(dma)?;
    let options = format!("--vfio-pci {DISK} --vfio-platform {dma}");
    let mut guest = host.log_in(&Launch::debian("/dev/nvme0n1").with(&options))?;
    let state = guest.run("systemctl is-system-running --wait; systemctl --failed --no-legend")?.1;
    assert_eq!(state.trim(), "running");
    let root = guest.sh("findmnt --noheadings --output SOURCE,FSTYPE /")?;
    assert_eq!(root.trim(), "/dev/nvme0n1 ext4");
    // Its own udev found the device and loaded the driver for it, from the disk.
    let driver = "/sys/bus/amba/drivers/dma-pl330/*.dma-controller";
    guest.sh(&format!("timeout 60 sh -c 'until ls {driver}; do sleep 0.2; done' 2>&1"))?;
    guest.sh("dd if=/dev/urandom of=/noise bs=1M count=8 && sync /noise")?;
    let written = guest.sh("sha256sum </noise")?;
    assert_eq!(guest.shut_down()?, 0);

    // A journal that had to be replayed would be refused: the mount writes nothing.
    host.unbind(DISK)?;
    host.until("[ -e /dev/nvme0n1 ]")?;
    host.sh("mkdir /disk && mount -t ext4 -o ro /dev/nvme0n1 /disk")?;
    assert_eq!(host.sh("sha256sum </disk/noise")?.trim(), written.trim());
    let log = host.sh("dmesg | grep EXT4")?;
    assert!(!log.contains("recovery") && !log.contains("rror"), "{log}");
    Ok(())
}
