//! A fully preemptible host (PREEMPT_RT) whose pages have 64 KiB: registers that don't fill one are
//! trapped, and all else is as ever, for guests with pages of either size.

use tests::harness::{AMBA_DMA, BACKENDS, Board, DmaTest, Host, Launch, PLATFORM_DMA, TestResult};
use tests::suite::SOAK;

/// Where the disk and the edu are on the host.
const DISK: &str = "0000:00:05.0";
const EDU: &str = "0000:00:06.0";

/// Checks that the host is well: nothing crashed, and its VFIO found no fault.
fn host_is_well(host: &Host) -> TestResult {
    let log = host.sh("dmesg")?;
    for word in ["BUG", "Oops", "WARNING", "Call trace", "SError"] {
        assert!(!log.contains(word), "{word}:\n{log}");
    }
    Ok(())
}

/// The ways to the IOMMU that a test tries with guests of one size of pages: with `--soak` both, else one of
/// them by this index, so that devices of each kind, sizes of pages and ways meet in pairs.
fn backends(index: usize) -> Vec<&'static str> {
    if std::env::var_os(SOAK).is_some() { BACKENDS.to_vec() } else { vec![BACKENDS[index]] }
}

#[test]
fn platform_and_amba_devices_work_with_4k_and_64k_guest_pages() -> TestResult {
    let host = Board::new().large_pages().boot()?;
    let devices = [PLATFORM_DMA[0], AMBA_DMA[0]];
    devices.iter().try_for_each(|name| host.bind(name))?;
    let options: String = devices.iter().map(|name| format!("--vfio-platform {name} ")).collect();
    let plan = host.sh(&format!("strait run --kernel /k/model --dry-run {options}"))?;
    for wanted in ["0x00c000000-0x00c000fff  2c0a0000.dma region 0, trapped", "SPI 72 "] {
        assert!(plan.contains(wanted), "no {wanted} in:\n{plan}");
    }
    let said = host.sh(&format!("strait device test {}", devices[0]))?;
    assert!(said.contains(": passed"), "{said}");
    let test = DmaTest { channels: 16, ..DmaTest::default() };
    for (index, page) in ["4 kB", "64 kB"].into_iter().enumerate() {
        for backend in backends(index) {
            let launch = [Launch::model(), Launch::large_pages()][index]
                .clone()
                .with(&format!("{options} --iommu {backend}"));
            let mut guest = host.launch(&launch)?;
            guest
                .sh(&format!("grep -m 1 -w KernelPageSize /proc/self/smaps | grep -w '{page}'"))?;
            if page == "4 kB" {
                test.pass(&mut guest)?;
            } else {
                // Its kernel is fully preemptible too: it ends a level interrupt before the handler's
                // thread has served it, so that each comes twice.
                let text = guest.sh(&test.command())?;
                assert_eq!(test.check(&text).map(|summaries| summaries.len()), Ok(16));
            }
            assert_eq!(guest.power_off()?, 0);
        }
    }
    // The host's own driver gets a device that it can use.
    host.unbind(AMBA_DMA[0])?;
    assert_eq!(host.driver(AMBA_DMA[0])?.as_deref(), Some("dma-pl330"));
    host_is_well(&host)
}

#[test]
fn a_device_copies_during_cpu_hotplug_and_suspend() -> TestResult {
    let host = Board::new().large_pages().boot()?;
    let devices = [PLATFORM_DMA[0], AMBA_DMA[0]];
    devices.iter().try_for_each(|name| host.bind(name))?;
    let options: String = devices.iter().map(|name| format!("--vfio-platform {name} ")).collect();
    // Room for a line of each copy.
    let launch = Launch::large_pages().cmdline("log_buf_len=1M");
    let mut guest = host.launch(&launch.with(&format!("--cpus 2 {options}")))?;
    let test = DmaTest { copies: 30, channels: 16, ..DmaTest::default() };
    // The CPU that is switched off has the interrupts.
    let text = guest.sh(&format!(
        "{} >/tmp/copies & copies=$!; n=0; \
         while kill -0 $copies 2>/dev/null && [ $n -lt 10 ]; do \
         for irq in $(grep -F .dma /proc/interrupts | cut -d: -f1); do \
         echo 2 >/proc/irq/$irq/smp_affinity; done; \
         echo 0 >/sys/devices/system/cpu/cpu1/online || exit 1; \
         echo 1 >/sys/devices/system/cpu/cpu1/online || exit 1; n=$((n + 1)); done; \
         echo hotplugs: $n; wait $copies; cat /tmp/copies",
        test.command()
    ))?;
    assert!(!text.contains("hotplugs: 0"), "{text}");
    assert_eq!(test.check(&text).map(|summaries| summaries.len()), Ok(16));
    // An alarm that comes before the guest sleeps keeps it from doing so, by the count
    // (Documentation/ABI/testing/sysfs-power, wakeup_count).
    let text = guest.sh(&format!(
        "{} >/tmp/copies & copies=$!; n=0; \
         while kill -0 $copies 2>/dev/null && [ $n -lt 2 ]; do \
         cat /sys/power/wakeup_count >/tmp/count; echo 0 >/sys/class/rtc/rtc0/wakealarm; \
         echo +4 >/sys/class/rtc/rtc0/wakealarm && cat /tmp/count >/sys/power/wakeup_count && \
         echo freeze >/sys/power/state && n=$((n + 1)); sleep 0.2; done; \
         echo sleeps: $n; wait $copies; cat /tmp/copies",
        test.command()
    ))?;
    assert!(text.contains("PM: suspend exit") && !text.contains("sleeps: 0"), "{text}");
    assert_eq!(test.check(&text).map(|summaries| summaries.len()), Ok(16));
    assert_eq!(guest.power_off()?, 0);
    host_is_well(&host)
}

#[test]
fn debians_kernel_drives_a_device() -> TestResult {
    let host = Board::new().large_pages().stock().boot()?;
    host.bind(PLATFORM_DMA[0])?;
    let mut guest =
        host.launch(&Launch::stock().with(&format!("--vfio-platform {}", PLATFORM_DMA[0])))?;
    assert!(guest.log_of("PL330")?.contains("Loaded driver for PL330 DMAC"));
    assert!(guest.sh("ls /sys/class/dma")?.contains("dma0chan7"));
    assert_eq!(guest.power_off()?, 0);
    host_is_well(&host)
}

#[test]
fn pci_devices_work_with_4k_and_64k_guest_pages() -> TestResult {
    let host = Board::new()
        .large_pages()
        .disk("disk", 64 << 20)
        .device("nvme,drive=disk,serial=one,addr=5")
        .device("edu,addr=6,dma_mask=0xffffffffffff")
        .boot()?;
    for name in [DISK, EDU] {
        host.bind(name)?;
        let said = host.sh(&format!("strait device test {name}"))?;
        assert!(said.contains(": passed"), "{said}");
    }
    for (index, launch) in [Launch::model(), Launch::large_pages()].into_iter().enumerate() {
        for backend in backends(1 - index) {
            let options = format!("--vfio-pci {DISK} --vfio-pci {EDU} --iommu {backend}");
            let mut guest = host.launch(&launch.clone().with(&options))?;
            guest.sh("dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null && \
                 dd if=/tmp/noise of=/dev/nvme0n1 bs=64k conv=fsync 2>/dev/null && \
                 dd if=/dev/nvme0n1 bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/noise")?;
            guest.sh("agent edu 0000:00:02.0 msi 8")?;
            let lines = guest.sh("grep nvme /proc/interrupts")?;
            assert!(lines.contains("MSI"), "{lines}");
            assert_eq!(guest.power_off()?, 0);
        }
    }
    host_is_well(&host)
}
