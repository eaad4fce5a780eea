//! Functions in hot-plug slots: a guest ejects them, and is told when the host takes them back.

use tests::harness::{DmaTest, Guest, Host, Launch, PLATFORM_DMA, TestResult};

use super::{
    DISK, EDU, check_host, check_no_missed_interrupt, disk_checksum, fill_disk, host_checksum,
    with_disk,
};

/// Where a guest finds the functions: behind the first and the second port.
const DISK_IN_GUEST: &str = "0000:01:00.0";
const EDU_IN_GUEST: &str = "0000:02:00.0";

/// Configuration space of two ports on bus 0, and of what may be on buses 1 and 2 (GPA).
const PORTS_AND_BUSES: [u32; 4] = [0x3f80_8000, 0x3f81_0000, 0x3f90_0000, 0x3fa0_0000];

/// Ejects the disk, in the first slot, as a person does.
fn eject_disk(guest: &mut Guest) -> TestResult {
    guest.begin("echo 0 >/sys/bus/pci/slots/1/power")?;
    guest.process().wait_for(&format!("{DISK}: the guest has ejected it"))?;
    assert_eq!(guest.finish()?.0, 0);
    Ok(())
}

/// Whether the guest's kernel has a function.
fn has(guest: &mut Guest, function: &str) -> Result<bool, tests::harness::Failure> {
    Ok(guest.run(&format!("[ -e /sys/bus/pci/devices/{function} ]"))?.0 == 0)
}

/// Gives a guest a disk and an edu in slots; it ejects the disk, and the host takes the edu.
fn lose_both(host: &Host, options: &str, bound: bool) -> TestResult {
    let devices = format!(
        "--vfio-pci {DISK},hotplug=on --vfio-pci {EDU},hotplug=on,addr=1e.0 --vfio-platform {} \
         --cpus 2",
        PLATFORM_DMA[0]
    );
    let planned = host.sh(&format!("strait run --dry-run --kernel /k/model {devices}"))?;
    let place = format!("02:00.0  {EDU}, in the slot of root port 00:1e.0");
    assert!(planned.contains(&place), "{planned}");
    let mut guest = host.launch(&Launch::model().with(&format!("{devices} {options}")))?;
    assert_eq!(guest.sh("cd /sys/bus/pci/slots && echo *")?.trim(), "1 2");
    assert_eq!(guest.sh("cat /sys/bus/pci/slots/2/address")?.trim(), "0000:02:00");
    let sum = fill_disk(&mut guest)?;
    check_no_missed_interrupt(&mut guest)?;
    for by in ["msi", "line"] {
        guest.sh(&format!("agent edu {EDU_IN_GUEST} {by} 5"))?;
    }
    // Their buses are reset, by the ports: the disk can be reset on the host, the edu can't.
    let directory = format!("/sys/bus/pci/devices/{EDU_IN_GUEST}");
    for at in [&format!("/sys/bus/pci/devices/{DISK_IN_GUEST}"), &directory] {
        guest.sh(&format!("echo bus >{at}/reset_method && echo 1 >{at}/reset"))?;
    }
    guest.sh(&format!("agent edu {EDU_IN_GUEST} msi 5"))?;
    assert_eq!(disk_checksum(&mut guest)?, sum);

    eject_disk(&mut guest)?;
    assert!(!has(&mut guest, DISK_IN_GUEST)?);
    assert_eq!(guest.sh("cat /sys/bus/pci/slots/1/adapter")?.trim(), "0");
    // The slot is empty from then on.
    assert_ne!(guest.run("echo 1 >/sys/bus/pci/slots/1/power")?.0, 0);
    // The host has it, with what the guest has written, while that goes on.
    host.sh(&format!("strait device unbind {DISK}"))?;
    assert_eq!(host_checksum(host)?, sum);
    guest.sh(&format!("agent edu {EDU_IN_GUEST} msi 5"))?;
    DmaTest::default().pass(&mut guest)?;

    // The guest isn't asked: its kernel removes what is behind a link that is down.
    host.sh(&format!("echo {EDU} >/sys/bus/pci/drivers/vfio-pci/unbind"))?;
    guest.process().wait_for(&format!("{EDU}: the host takes it back"))?;
    guest.begin(&format!("while [ -e {directory} ]; do sleep 0.1; done"))?;
    assert_eq!(guest.finish()?.0, 0);
    assert_eq!(guest.sh("cat /sys/bus/pci/slots/2/adapter")?.trim(), "0");
    DmaTest::default().pass(&mut guest)?;
    let said = guest.process().output();
    assert!(!said.contains("strait: error:"), "{said}");
    assert_eq!(guest.power_off()?, 0);
    if !bound {
        assert_eq!(
            host.sh(&format!("basename $(readlink /sys/bus/pci/devices/{DISK}/driver)"))?.trim(),
            "nvme"
        );
    }
    host.sh(&format!(
        "echo >/sys/bus/pci/devices/{EDU}/driver_override; echo {EDU} >/sys/bus/pci/drivers_probe; true"
    ))?;
    check_host(host)
}

#[test]
fn functions_in_slots_are_ejected_by_the_guest_and_taken_by_the_host() -> TestResult {
    let host = with_disk().device("edu,addr=7,dma_mask=0xffffffffffff").boot()?;
    host.bind(PLATFORM_DMA[0])?;
    for (options, bound) in [("--iommu iommufd", true), ("--bind --iommu container", false)] {
        if bound {
            host.bind(DISK)?;
            host.bind(EDU)?;
        }
        lose_both(&host, options, bound)?;
    }
    Ok(())
}

#[test]
fn a_slot_stays_empty_in_the_next_life_of_a_guest() -> TestResult {
    let host = with_disk().device("edu,addr=7,dma_mask=0xffffffffffff").boot()?;
    host.bind(DISK)?;
    host.bind(EDU)?;
    let devices = format!(
        "--vfio-pci {DISK},hotplug=on --vfio-pci {EDU},hotplug=on --on-reset restart --trace {EDU}"
    );
    let mut guest = host.launch(&Launch::model().with(&devices))?;
    let sum = fill_disk(&mut guest)?;
    guest.begin_anew()?;
    // The first life's bus numbers are gone, and are given again.
    assert_eq!(disk_checksum(&mut guest)?, sum);
    guest.sh(&format!("agent edu {EDU_IN_GUEST} msi 5"))?;
    eject_disk(&mut guest)?;
    guest.begin_anew()?;
    assert!(!has(&mut guest, DISK_IN_GUEST)? && has(&mut guest, EDU_IN_GUEST)?);
    guest.sh(&format!("agent edu {EDU_IN_GUEST} msi 5"))?;
    // Whatever is written to the ports harms none but the guest, which ejects the edu, too.
    for _ in 0..3 {
        for place in PORTS_AND_BUSES {
            guest.sh(&format!("agent random-access {place:#x} 0x1000 1000"))?;
        }
    }
    assert_eq!(guest.power_off()?, 0);
    check_host(&host)
}

#[test]
fn a_guest_ejects_the_only_device_of_a_container() -> TestResult {
    let host = with_disk().boot()?;
    host.bind(DISK)?;
    let devices = format!("--vfio-pci {DISK},hotplug=on --iommu container");
    let mut guest = host.launch(&Launch::model().with(&devices))?;
    eject_disk(&mut guest)?;
    host.sh(&format!("strait device unbind {DISK}"))?;
    host.until("[ -e /dev/nvme0n1 ]")?;
    // Its RAM isn't mapped for DMA any more, and nobody unmaps it.
    guest.process().send("poweroff -f\n")?;
    assert_eq!(guest.exit_status()?, 0);
    let said = guest.process().output();
    assert!(!said.contains("strait: error:"), "{said}");
    check_host(&host)
}
