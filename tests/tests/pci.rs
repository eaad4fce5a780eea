//! Assigned PCI devices: a guest's own drivers drive a disk and a network card that belong to it.

use tests::harness::{Board, Failure, Guest, Host, Story};

/// Where the devices are on the host.
const NVME: &str = "0000:00:05.0";

/// A board with an NVMe disk.
fn with_disk() -> Board {
    Board::new().disk("disk", 256 << 20).device("nvme,drive=disk,serial=one,addr=5")
}

#[test]
fn look() -> Story {
    let host = with_disk().boot()?;
    println!("{}", host.sh("strait device list; strait device show 00:05.0; strait device bind 00:05.0; strait device show 00:05.0; strait device test 00:05.0; true")?);
    let mut guest = host.guest("--vfio-pci 00:05.0 --stats /tmp/stats --log-level info")?;
    println!(
        "{}",
        guest
            .sh("dmesg | tail -40; ls -la /sys/bus/pci/devices /dev/nvme*; cat /proc/interrupts")?
    );
    println!("{}", guest.sh("time dd if=/dev/nvme0n1 of=/dev/null bs=4096 count=2000 iflag=direct; cat /proc/interrupts | grep nvme; dmesg | grep nvme")?);
    println!("{}", guest.power_off()?);
    println!("{}", host.sh("cat /tmp/stats")?);
    Ok(())
}
