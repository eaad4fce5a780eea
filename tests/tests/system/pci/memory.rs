//! BARs that are disabled, moved or accessed at random, by the guest or on the host.

use serde_json::Value;
use tests::harness::payload::{self, Toggle};
use tests::harness::{Launch, TestResult};

use super::{
    DISK, EDU, FIRST, TESTDEV, check_host, check_no_missed_interrupt, fill_disk, guest_with,
    with_disk, with_edu,
};

#[test]
fn reads_are_ones_while_the_guest_disables_memory() -> TestResult {
    // One vCPU reads the NVMe's first register, mapped or trapped; the other turns memory off and on,
    // puts the function into D3 and back, and has it reset itself.
    const CONFIG: u32 = 0x3f80_8000;
    const BAR: u32 = 0x2000_0000;
    let place = [(CONFIG + 0x10, BAR), (CONFIG + 0x14, 0), (CONFIG + 4, 2)];
    let toggle = |times, stores: &[(u32, u32)]| Toggle { times, stores: stores.to_vec() };
    let toggles = [
        toggle(1, &place),
        toggle(1500, &[(CONFIG + 4, 0), (CONFIG + 4, 2)]),
        toggle(20, &[(CONFIG + 0x64, 3), (CONFIG + 0x64, 0)]),
        toggle(3, &[&[(CONFIG + 0x88, 0x8000)], &place[..]].concat()),
    ];
    let host = with_disk()
        .file("k/toggle", payload::toggle_while_read(BAR, &toggles))
        .file("k/spin", payload::spin())
        .boot()?;
    for options in ["", ",mmap=off"] {
        let strait = host.strait(&format!(
            "run --kernel /k/toggle --cpus 2 --bind --vfio-pci {DISK}{options} --stats /tmp/stats"
        ))?;
        assert_eq!(strait.exit_status()?, 0, "{options}: {}", strait.output());
        assert_eq!(host.driver(DISK)?.as_deref(), Some("nvme"), "it is given back");
        let stats: Value = serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("it is JSON");
        // Both did what they are there for.
        let count =
            |device: &str, what: &str| stats["devices"][device][what].as_u64().unwrap_or_default();
        assert!(count("PCI memory", "reads") > 1000, "{stats:#}");
        assert_eq!(count("PCI configuration", "writes"), 3 + 3000 + 40 + 12, "{stats:#}");
        println!("{options}: {stats:#}");
    }
    // That these are where the payload takes them to be.
    host.bind(DISK)?;
    let shown = host.sh(&format!("strait device show {DISK}"))?;
    for wanted in ["capability at 0x060: power management", "capability at 0x080: PCI Express"] {
        assert!(shown.contains(wanted), "no {wanted} in:\n{shown}");
    }
    check_host(&host)
}

#[test]
fn a_guest_survives_memory_that_is_disabled_on_the_host() -> TestResult {
    let host = with_edu().boot()?;
    let mut guest = guest_with(&host, &[EDU], Launch::model())?;
    let device = format!("/sys/bus/pci/devices/{FIRST}");
    let bar = guest.sh(&format!("echo 1 >{device}/enable && cut -d ' ' -f 1 {device}/resource"))?;
    let bar = bar.lines().next().unwrap_or_default();
    let reads_ones = format!("agent memory check {bar} 64 0xff");
    assert_ne!(guest.run(&reads_ones)?.0, 0);
    let pid = host.vmm(guest.pid()?)?;
    host.sh(&format!("agent vfio memory off {pid}"))?;
    guest.sh(&reads_ones)?;
    host.sh(&format!("agent vfio memory on {pid}"))?;
    assert_ne!(guest.run(&reads_ones)?.0, 0, "by traps");
    guest.sh(&format!("agent edu {FIRST} msi 5"))?;
    let said = guest.process().output();
    assert_eq!(said.matches("can't give the guest its registers").count(), 1, "{said}");
    assert_eq!(guest.power_off()?, 0);
    check_host(&host)
}

#[test]
fn random_accesses_of_a_guest_harm_only_itself() -> TestResult {
    let host = with_disk()
        .device("edu,addr=7,dma_mask=0xffffffffffff")
        .device("pci-testdev,addr=8")
        .boot()?;
    host.sh(&format!("strait device bind {DISK} {EDU} {TESTDEV}"))?;
    let devices = format!("--vfio-pci {DISK} --vfio-pci {EDU} --vfio-pci {TESTDEV}");
    let mut guest = host.guest(&devices)?;
    // Their drivers would be in the way.
    guest.sh(&format!("echo {FIRST} >/sys/bus/pci/drivers/nvme/unbind"))?;
    // Configuration space of each, and of functions that there aren't; then the windows, in which
    // BARs are by then wherever they are.
    for round in 0..4 {
        for slot in [1, 2, 3] {
            guest.sh(&format!(
                "agent random-access {:#x} 0x1000 3000",
                0x3f80_0000 + (slot << 15)
            ))?;
        }
        guest.sh(&format!("agent random-access 0x3f80{round}000 0x1000 500 read-only"))?;
        guest.sh("agent random-access 0x20000000 0x1f000000 1000 read-only")?;
        guest.sh("agent random-access 0x3f000000 0x10000 1000")?;
    }
    assert_eq!(guest.power_off()?, 0, "strait is there to the end");
    // All works for the next.
    let mut guest = host.guest(&devices)?;
    fill_disk(&mut guest)?;
    guest.sh("agent edu 0000:00:02.0 msi 5")?;
    guest.sh("agent testdev 0000:00:03.0 5")?;
    check_no_missed_interrupt(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    check_host(&host)
}
