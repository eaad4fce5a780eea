//! Functions that the host takes back, and that fail, while a guest has them.

use tests::harness::{DmaTest, Host, Launch, PLATFORM_DMA, TestResult};

use super::{DISK, EDU, FIRST, check_host, fill_disk, host_checksum, with_disk};

/// Where a guest finds the second device.
const SECOND: &str = "0000:00:02.0";

/// Takes a disk, then an edu, from a guest that has a DMA controller, too.
fn take_back(host: &Host, options: &str) -> TestResult {
    host.bind(PLATFORM_DMA[0])?;
    let devices = format!(
        "--vfio-pci {DISK} --vfio-pci {EDU} --vfio-platform {} --cpus 2 {options}",
        PLATFORM_DMA[0]
    );
    for device in [DISK, EDU] {
        host.bind(device)?;
    }
    let mut guest = host.launch(&Launch::model().with(&devices))?;
    let sum = fill_disk(&mut guest)?;
    guest.sh(&format!("agent edu {SECOND} msi 5"))?;
    // In the middle of reading.
    guest.sh(
        "(while dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done; \
         echo over >/tmp/over) &",
    )?;
    host.sh(&format!("echo {DISK} >/sys/bus/pci/drivers/vfio-pci/unbind"))?;
    guest.process().wait_for(&format!("{DISK}: the host takes it back"))?;
    let config = guest.sh(&format!("hexdump -n 4 /sys/bus/pci/devices/{FIRST}/config"))?;
    assert!(config.contains("ffff ffff"), "{config}");
    // Its driver finds out by itself, or is told to.
    guest.sh(&format!("echo 1 >/sys/bus/pci/devices/{FIRST}/remove"))?;
    guest.begin("while ! [ -e /tmp/over ]; do sleep 0.1; done; [ ! -e /dev/nvme0n1 ]")?;
    assert_eq!(guest.finish()?.0, 0);
    // The others go on.
    guest.sh(&format!("agent edu {SECOND} msi 5"))?;
    DmaTest::default().pass(&mut guest)?;
    // The host has its disk, with what the guest has written, and gives the other up altogether.
    host.sh(&format!(
        "echo >/sys/bus/pci/devices/{DISK}/driver_override; \
         echo {DISK} >/sys/bus/pci/drivers_probe"
    ))?;
    assert_eq!(host_checksum(host)?, sum);
    host.sh(&format!("echo 1 >/sys/bus/pci/devices/{EDU}/remove"))?;
    guest.process().wait_for(&format!("{EDU}: the host takes it back"))?;
    assert_ne!(guest.run(&format!("agent edu {SECOND} msi 1"))?.0, 0);
    DmaTest::default().pass(&mut guest)?;
    let said = guest.process().output();
    assert!(!said.contains("error:"), "{said}");
    assert_eq!(guest.power_off()?, 0);
    host.sh("echo 1 >/sys/bus/pci/rescan")?;
    host.until(&format!("[ -e /sys/bus/pci/devices/{EDU} ]"))?;
    check_host(host)
}

#[test]
fn functions_that_the_host_takes_back_are_removed_from_the_guest() -> TestResult {
    let host = with_disk().device("edu,addr=7,dma_mask=0xffffffffffff").boot()?;
    for backend in ["iommufd", "container"] {
        take_back(&host, &format!("--iommu {backend}"))?;
    }
    Ok(())
}
