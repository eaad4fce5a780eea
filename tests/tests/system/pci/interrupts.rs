//! Interrupts of PCI functions: MSI, MSI-X, INTx.

use serde_json::Value;
use tests::harness::{BACKENDS, Costs, Failure, Guest, Host, Launch, TestResult};
use tests::suite::SOAK;

use super::{
    DISK, EDU, FIRST, TESTDEV, check_host, check_no_missed_interrupt, fill_disk, guest_with,
    with_disk, with_edu,
};

/// Has the guest read `count` blocks, eight at a time, past the page cache; checks that no interrupt is
/// lost and none causes an exit. Answers how many the host handled.
fn read_without_exits(host: &Host, guest: &mut Guest, count: u32) -> Result<u64, Failure> {
    let completed = |guest: &mut Guest| -> Result<u64, Failure> {
        let text = guest.sh("awk '{ print $1 }' /sys/block/nvme0n1/stat")?;
        Ok(text.trim().parse().unwrap_or_default())
    };
    let before = completed(guest)?;
    let command = format!(
        "(for n in 0 1 2 3 4 5 6 7; do dd if=/dev/nvme0n1 of=/dev/null bs=4096 \
         count={} iflag=direct 2>/dev/null & done; wait)",
        count / 8
    );
    let (costs, _) = Costs::of(host, guest, &command, "vfio-msix")?;
    let reads = completed(guest)? - before;
    assert!(reads >= count.into(), "{reads}");
    let [earlier, later] = &costs.guest_interrupts;
    let handled: u64 = later.since(earlier, "nvme0q").iter().sum();
    // One that comes while an earlier one is still pending is one with it, in the controller as in
    // the device; that none is missing is told by all reads being done, and none of them late.
    let fired = costs.host_interrupts;
    assert!(handled <= fired && fired <= reads, "{reads} reads, {fired} on the host, {handled}");
    assert!(handled > reads / 50, "{handled} for {reads} reads");
    assert_eq!((costs.exits_to_user_space(), costs.wakeups_of_the_vmm()), (0, 0));
    check_no_missed_interrupt(guest)?;
    println!("{reads} reads, {fired} interrupts on the host, {handled} in the guest");
    Ok(fired)
}

#[test]
fn reads_lose_no_interrupt_and_cause_no_exit() -> TestResult {
    let host = with_disk().boot()?;
    let launch = Launch::model().with("--cpus 2 --stats /tmp/stats");
    let mut guest = guest_with(&host, &[DISK], launch)?;
    let reads = if std::env::var_os(SOAK).is_some() { 100_000 } else { 20_000 };
    let fired = read_without_exits(&host, &mut guest, reads)?;
    guest.process().signal(10)?;
    host.until("grep -q msix /tmp/stats")?;
    let stats: Value = serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("it is JSON");
    let told = &stats["pci_interrupts"][0];
    assert_eq!((&told["function"], &told["vectors"]), (&DISK.into(), &3.into()), "{told}");
    let told = told["fired"].as_array().into_iter().flatten().filter_map(Value::as_u64);
    assert!(told.sum::<u64>() >= fired, "{stats}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn messages_are_interrupts_of_a_gicv2_without_an_exit() -> TestResult {
    let host = with_disk().gic(2).device("edu,addr=7,dma_mask=0xffffffffffff").boot()?;
    let mut guest = guest_with(&host, &[DISK, EDU], Launch::model().with("--cpus 2"))?;
    let lines = guest.sh("grep nvme /proc/interrupts")?;
    assert!(lines.contains("MSIX") && !lines.contains("Level"), "{lines}");
    read_without_exits(&host, &mut guest, 8000)?;
    fill_disk(&mut guest)?;
    for by in ["msi", "line"] {
        let said = guest.sh(&format!("agent edu 0000:00:02.0 {by} 20"))?;
        assert!(said.contains("41 interrupts"), "{said}");
    }
    check_no_missed_interrupt(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    check_host(&host)
}

#[test]
fn a_program_in_the_guest_uses_msi_and_intx() -> TestResult {
    let host = with_edu().device("pci-testdev,addr=8").boot()?;
    for backend in BACKENDS {
        let launch = Launch::model().with(&format!("--iommu {backend} "));
        let mut guest = guest_with(&host, &[EDU, TESTDEV], launch)?;
        for by in ["msi", "line"] {
            let said = guest.sh(&format!("agent edu {FIRST} {by} 15"))?;
            assert!(said.contains("15 pages each way, 31 interrupts"), "{said}");
        }
        let said = guest.sh("agent testdev 0000:00:02.0 1000")?;
        assert!(said.contains("mmio-no-eventfd: 1000 writes"), "{said}");
        assert!(said.contains("portio-no-eventfd: 1000 writes"), "{said}");
        assert_eq!(guest.power_off()?, 0);
    }
    check_host(&host)
}

#[test]
fn without_an_its_functions_use_intx() -> TestResult {
    let host = with_disk().device("edu,addr=7,dma_mask=0xffffffffffff").boot()?;
    let launch = Launch::model().with("--gic 3,its=off ");
    let mut guest = guest_with(&host, &[DISK, EDU], launch)?;
    assert!(guest.process().output().contains("interrupt pins only"));
    fill_disk(&mut guest)?;
    let lines = guest.sh("grep nvme /proc/interrupts")?;
    assert!(lines.contains("Level") && !lines.contains("MSI"), "{lines}");
    guest.sh("agent edu 0000:00:02.0 line 20")?;
    check_no_missed_interrupt(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    check_host(&host)
}
