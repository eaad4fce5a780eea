//! A network card and an SD host controller of the platform bus: the host's drivers have them, their
//! self-tests pass, a guest's own drivers drive them, together with a DMA controller.

use tests::harness::{
    BACKENDS, Board, Costs, DmaTest, ETHERNET, Failure, Guest, Host, PLATFORM_DMA, SD_HOST,
    TestResult, exchange,
};
use tests::suite::SOAK;

use super::device::json;
use super::self_test::isolated;

/// The host's address on the card's network, and the guest's.
const HOST: &str = "10.9.0.1";
const GUEST: &str = "10.9.0.2";

/// The size of the card in bytes.
const CARD: u64 = 8 << 20;

/// Frames of several pages, fewer for the same bytes; QEMU's card has none of 8 KiB and more.
const JUMBO: u32 = 8000;

fn board() -> Board {
    Board::new().ethernet().sd_card(CARD)
}

/// Has the host's own card up, and starts a guest with both devices and a DMA controller. Frames are of up
/// to `mtu` bytes.
fn guest_through(backend: &str, host: &Host, mtu: u32) -> Result<Guest, Failure> {
    host.sh(&format!(
        "card=$(ls /sys/bus/pci/devices/0000:00:09.0/virtio*/net) && \
         ip addr add {HOST}/24 dev $card && ip link set $card mtu {mtu} up"
    ))?;
    let devices = [ETHERNET, SD_HOST, PLATFORM_DMA[0]];
    devices.into_iter().try_for_each(|name| host.bind(name))?;
    let options = devices.map(|name| format!("--vfio-platform {name}")).join(" ");
    let mut guest = host.guest(&format!("{options} --iommu {backend}"))?;
    guest.sh(&format!(
        "ip addr add {GUEST}/24 dev eth0 && ip link set eth0 mtu {mtu} up && \
         until ping -c 1 -W 1 {HOST} >/dev/null; do :; done"
    ))?;
    Ok(guest)
}

/// Makes a file system on the card, fills it with a file of so many MiB, and mounts it again; the sum of
/// what it holds.
fn fill_card(guest: &mut Guest, size: u32) -> Result<String, Failure> {
    guest.sh(&format!(
        "mkdir -p /card && mke2fs -q -b 4096 /dev/mmcblk0 >/dev/null && mount -t ext4 /dev/mmcblk0 /card && \
         dd if=/dev/urandom of=/card/noise bs=1M count={size} 2>/dev/null && \
         seq 1 20000 >/card/numbers && sync && cat /card/n* | sha256sum >/tmp/sum && \
         umount /card && {{ {CHECKSUM}; }} >/tmp/again && cmp /tmp/sum /tmp/again"
    ))?;
    guest.sh("cat /tmp/sum")
}

/// The command that mounts the card and sums up what it holds.
const CHECKSUM: &str = "mkdir -p /card && mount -t ext4 -o ro /dev/mmcblk0 /card && \
                        cat /card/n* | sha256sum && umount /card";

/// Checks that the drivers have their clocks, by SCMI: names, rates in Hz, and whose they are.
fn check_clocks(guest: &mut Guest) -> TestResult {
    let summary = guest.sh("cat /sys/kernel/debug/clk/clk_summary")?;
    // Enabled, prepared, protected, rate, accuracy, phase, duty cycle, by hardware, consumer, its name for it.
    for (enabled, rate, consumer, name) in [
        (1, 100_000_000, "c000000.ethernet", "pclk"),
        (1, 100_000_000, "c000000.ethernet", "hclk"),
        (1, 125_000_000, "c000000.ethernet", "tx_clk"),
        (1, 200_000_000, "c010000.mmc", "clk_xin"),
        (1, 100_000_000, "c010000.mmc", "clk_ahb"),
        (0, 24_000_000, "c020000.dma-controller", "apb_pclk"),
    ] {
        let is_it = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.first().is_some_and(|first| first.starts_with(&format!("{name}.")))
                && words.get(1..).is_some_and(|words| {
                    words.join(" ") == format!("{enabled} 1 0 {rate} 0 0 50000 Y {consumer} {name}")
                })
        };
        assert_eq!(summary.lines().filter(is_it).count(), 1, "{name}: {summary}");
    }
    Ok(())
}

/// Checks that no driver of the guest missed an interrupt or saw an error.
fn check_drivers(guest: &mut Guest) -> TestResult {
    let words = ["timed out", "nobody cared", "WATCHDOG", "bus error", "I/O error", "Timeout"];
    let log = guest.log_of(&words.join("\\|"))?;
    assert!(!words.iter().any(|word| log.contains(word)), "{log}");
    Ok(())
}

#[test]
fn a_guest_has_network_card_sd_card_and_dma_controller() -> TestResult {
    let host = board().boot()?;
    let mut guest = guest_through(BACKENDS[0], &host, JUMBO)?;
    let bytes = if std::env::var_os(SOAK).is_some() { 64 << 20 } else { 8 << 20 };
    exchange(&host, &mut guest, [HOST, GUEST], bytes)?;
    let written = fill_card(&mut guest, 6)?;
    DmaTest::default().pass(&mut guest)?;

    check_clocks(&mut guest)?;

    // In steady state, all of it costs the VMM nothing.
    let sender = host.start(&format!("agent receive tcp:{HOST}:5000"))?;
    let command = format!("{{ agent send tcp:{HOST}:5000 {} && {CHECKSUM}; }}", 2 << 20);
    let (costs, said) = Costs::of(&host, &mut guest, &command, "vfio-irq")?;
    assert!(said.contains(written.trim()), "{said}");
    assert_eq!(sender.exit_status()?, 0);
    let [before, after] = &costs.exits;
    for counter in ["mmio_exit_user", "signal_exits"] {
        assert_eq!(after.get(counter), before.get(counter), "{counter}");
    }
    assert_eq!(costs.wakeups[0], costs.wakeups[1], "threads of the VMM were woken");
    let [before, after] = &costs.guest_interrupts;
    let handled: u64 = ["eth0", "mmc0"].iter().flat_map(|name| after.since(before, name)).sum();
    assert!(handled > 100, "{after:?}");
    assert_eq!(costs.host_interrupts, handled);

    check_drivers(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    // The host's driver finds what the guest wrote.
    host.unbind(SD_HOST)?;
    host.until("[ -e /dev/mmcblk0 ]")?;
    assert_eq!(host.sh(CHECKSUM)?, written);
    Ok(())
}

#[test]
fn they_work_with_gicv2_through_a_container() -> TestResult {
    let host = board().gic(2).boot()?;
    let mut guest = guest_through(BACKENDS[1], &host, 1500)?;
    exchange(&host, &mut guest, [HOST, GUEST], 1 << 20)?;
    fill_card(&mut guest, 1)?;
    DmaTest::default().pass(&mut guest)?;
    check_drivers(&mut guest)?;
    // Ended from outside, the guest leaves a card that receives; the next owner isn't to have that.
    let receives = "[ $(($(devmem 0x2c100000) & 4)) != 0 ]";
    host.sh(receives)?;
    guest.process().signal(15)?;
    assert_eq!(guest.exit_status()?, 128 + 15);
    assert_eq!(host.run(receives)?.status, 1);
    Ok(())
}

#[test]
fn the_hosts_drivers_have_them_and_their_self_tests_pass() -> TestResult {
    let host = board().boot()?;
    let own = [(ETHERNET, "macb", "Cadence GEM"), (SD_HOST, "sdhci-arasan", "Arasan SDHCI")];
    host.until("[ -e /dev/mmcblk0 ]")?;
    host.sh(&format!(
        "mkdir -p /card && mke2fs -q -b 4096 /dev/mmcblk0 >/dev/null && mount -t ext4 /dev/mmcblk0 /card && \
         seq 1 20000 >/card/numbers && umount /card && \
         ip link set $(ls /sys/bus/platform/devices/{ETHERNET}/net) up"
    ))?;
    host.until(&format!("grep -q 1 /sys/bus/platform/devices/{ETHERNET}/net/*/carrier"))?;
    let written = host.sh(CHECKSUM)?;
    for ((name, driver, test), backend) in own.into_iter().zip(BACKENDS) {
        assert_eq!(host.driver(name)?.as_deref(), Some(driver));
        host.sh(&format!("strait device bind {name} --force"))?;
        let verdict = json(&host, &format!("device test {name} --iommu {backend}"))?;
        assert_eq!((&verdict["test"], &verdict["passed"]), (&test.into(), &true.into()));
        let number = |key: &str| verdict["channels"][0][key].as_u64().unwrap_or_default();
        assert!(number("transfers") >= 16 && number("bytes") > 16 << 10, "{verdict}");
        isolated(&verdict, "event 0x10 received");
        host.sh(&format!("strait device unbind {name}"))?;
        assert_eq!(host.driver(name)?.as_deref(), Some(driver));
    }
    host.until("[ -e /dev/mmcblk0 ]")?;
    assert_eq!(host.sh(CHECKSUM)?, written, "the test has written to the card");
    Ok(())
}
