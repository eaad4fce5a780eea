//! A guest's device reaches the guest's memory and nothing else.

use tests::harness::{
    BACKENDS, Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, Process, TestResult,
};

/// The device in the guest, and what lies beyond its `mem=`: the program's and the data's.
const DEVICE: &str = "0xc000000";
const PROGRAM: &str = "0x4d000000";
const OURS: &str = "0x4d100000";
const TARGET: &str = "0x4d200000";

/// A guest with a device of its own and no driver for it, by this way to the IOMMU.
fn attacker(host: &Host, backend: &str) -> Result<Guest, Failure> {
    host.bind(PLATFORM_DMA[0])?;
    let arguments = format!("--vfio-platform {} --iommu {backend}", PLATFORM_DMA[0]);
    let launch = Launch::model().cmdline("mem=192M").with(&arguments);
    let mut guest = host.launch(&launch)?;
    guest.sh("cd /sys/bus/amba/drivers/dma-pl330 && basename *.dma* >unbind")?;
    guest
        .sh(&format!("agent memory fill {OURS} 4096 0x5a && agent memory fill {TARGET} 4096 0"))?;
    Ok(guest)
}

/// Has the guest's device copy a page.
fn copy(guest: &mut Guest, from: &str, to: &str) -> Result<(), Failure> {
    // A fault may or may not stop the channel; what was copied is looked at by others.
    let (_, said) =
        guest.run(&format!("agent pl330 {DEVICE} copy 0 {PROGRAM} {from} {to} 4096"))?;
    assert!(said.contains("channel 0"), "the device did nothing: {said}");
    Ok(())
}

/// A page of host memory, its physical address outside the guest's RAM and within 32 bits.
fn canary(host: &Host) -> Result<(Process, String), Failure> {
    let mut canary = host.start("exec agent canary 0x80000000 0xf0000000 2>&1")?;
    canary.wait_for("canary ")?;
    let address = canary.wait_for("\n")?.trim().to_owned();
    Ok((canary, address))
}

/// What the SMMU reports of an address: the event queue's entry, F_TRANSLATION (0x10) of StreamID
/// 0xe0 (IHI 0070, "Event records"), as the kernel's driver prints it.
fn reported(host: &Host, address: &str) -> Result<(), Failure> {
    let digits = address.trim_start_matches("0x");
    host.until(&format!(
        "dmesg | grep -A 4 'event 0x10 received' >/tmp/faults && \
         grep -q 0x000000e000000010 /tmp/faults && grep -q 0x00000000{digits} /tmp/faults"
    ))
}

#[test]
fn dma_within_guest_memory_works() -> TestResult {
    let host = Board::new().boot()?;
    for backend in BACKENDS {
        let mut guest = attacker(&host, backend)?;
        copy(&mut guest, OURS, TARGET)?;
        guest.sh(&format!("agent memory check {TARGET} 4096 0x5a"))?;
        assert!(!host.sh("dmesg")?.contains("event 0x10"));
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn dma_cannot_write_host_memory() -> TestResult {
    let host = Board::new().boot()?;
    for backend in BACKENDS {
        let mut guest = attacker(&host, backend)?;
        let (mut canary, address) = canary(&host)?;
        copy(&mut guest, OURS, &address)?;
        reported(&host, &address)?;
        canary.send("\n")?;
        canary.wait_for("intact")?;
        assert_eq!(canary.exit_status()?, 0);
        // The guest lives on, and its device works.
        copy(&mut guest, OURS, TARGET)?;
        guest.sh(&format!("agent memory check {TARGET} 4096 0x5a"))?;
        assert_eq!(guest.power_off()?, 0);
        // The next one's faults are its own.
        host.sh("dmesg -c >/dev/null")?;
    }
    Ok(())
}

#[test]
fn dma_cannot_read_host_memory() -> TestResult {
    let host = Board::new().boot()?;
    let mut guest = attacker(&host, "auto")?;
    let (canary, address) = canary(&host)?;
    // The guest's own bytes go through the device first: what stays in it is known.
    copy(&mut guest, OURS, TARGET)?;
    copy(&mut guest, &address, TARGET)?;
    reported(&host, &address)?;
    // Whatever is there now, it isn't the canary: that has no two equal bytes in a row.
    let (_, zero) = guest.run(&format!("agent memory check {TARGET} 4096 0"))?;
    let (_, ours) = guest.run(&format!("agent memory check {TARGET} 4096 0x5a"))?;
    assert!(zero.is_empty() || ours.is_empty(), "{zero}{ours}");
    canary.send("\n")?;
    assert_eq!(canary.exit_status()?, 0);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn dma_cannot_reach_another_guest() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(PLATFORM_DMA[1])?;
    let victim = format!("--vfio-platform {} --iommu container", PLATFORM_DMA[1]);
    let mut victim = host.guest(&victim)?;
    let mut guest = attacker(&host, "iommufd")?;
    // The victim copies and verifies all the while.
    let test = DmaTest { copies: 80, ..DmaTest::LONG };
    victim.begin(&test.command())?;
    host.until("[ $(awk '/vfio-irq/ { n += $2 + $3 } END { print n }' /proc/interrupts) -gt 50 ]")?;
    // Sixteen places beyond the attacker's RAM, some of which hold the victim's.
    for page in 0..16_u32 {
        copy(&mut guest, OURS, &format!("{:#x}", 0x5000_0000 + page * 0x0a00_0000))?;
    }
    let (status, text) = victim.finish()?;
    assert_eq!(status, 0, "{text}");
    assert_eq!(test.check(&text).map(|summaries| summaries.len()), Ok(8));
    DmaTest::default().pass(&mut victim)?;
    assert!(host.sh("dmesg")?.contains("event 0x10 received"));
    assert_eq!((guest.power_off()?, victim.power_off()?), (0, 0));
    Ok(())
}

#[test]
fn dma_reaches_nothing_after_the_vmm_was_killed() -> TestResult {
    let host = Board::new().boot()?;
    for backend in BACKENDS {
        let mut guest = attacker(&host, backend)?;
        let (mut canary, address) = canary(&host)?;
        guest.sh(&format!("agent pl330 {DEVICE} copy-on 4 5 {PROGRAM} {OURS} {address} 4096"))?;
        // The VMM gone without a word, the device still holds its program; the host wakes it.
        guest.process().signal(9)?;
        assert_eq!(guest.exit_status()?, 128 + 9);
        host.sh("agent pl330 0x2c0a0000 signal 4")?;
        canary.send("\n")?;
        canary.wait_for("intact")?;
        assert_eq!(canary.exit_status()?, 0);
    }
    Ok(())
}
