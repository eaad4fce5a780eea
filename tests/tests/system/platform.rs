//! Assigned platform devices: a guest's own pl330 driver drives a PL330 that belongs to it.

use tests::harness::payload::{self, EventLine};
use tests::harness::{
    AMBA_DMA, BACKENDS, Board, Costs, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA,
    SteadyState, TestResult,
};
use tests::suite::SOAK;

/// What the guest's driver says when it has found a controller.
const FOUND: &str = "Loaded driver for PL330 DMAC";
/// Where the first assigned device is in the guest.
const FIRST: &str = "0xc000000";

fn assigned(devices: &[&str]) -> String {
    devices.iter().map(|name| format!("--vfio-platform {name} ")).collect()
}

/// Binds devices to VFIO and starts a guest that owns them, by the way to the IOMMU that strait takes
/// by itself.
fn guest_with(host: &Host, devices: &[&str]) -> Result<Guest, Failure> {
    guest_through("auto", host, devices)
}

/// The same by this way to the IOMMU.
fn guest_through(backend: &str, host: &Host, devices: &[&str]) -> Result<Guest, Failure> {
    devices.iter().try_for_each(|name| host.bind(name))?;
    let mut guest = host.guest(&format!("{}--iommu {backend}", assigned(devices)))?;
    assert_eq!(guest.log_of(FOUND)?.matches(FOUND).count(), devices.len());
    Ok(guest)
}

/// Checks that transfers cost the VMM nothing: no exit to it, no thread of it woken.
fn costs_nothing(costs: &Costs) {
    let [before, after] = &costs.exits;
    for counter in ["mmio_exit_user", "signal_exits"] {
        assert_eq!(after.get(counter), before.get(counter), "{counter}");
    }
    assert!(after.get("exits") > before.get("exits"), "KVM counts nothing: {after:?}");
    let [before, after] = &costs.wakeups;
    assert!(before.iter().count() > 0, "no thread but the vCPUs was looked at");
    assert_eq!(before, after, "threads of the VMM were woken");
}

/// Measures the default test until each of eight lines was handled exactly once per copy. Two events
/// that come together may be handled as one, the more often the busier the machine is that models
/// all this; that is so now of these lines, now of those.
fn each_line_once_per_transfer(host: &Host, guest: &mut Guest) -> Result<SteadyState, Failure> {
    const RUNS: usize = 8;
    const LINES: [bool; 9] = [true, true, true, true, true, true, true, true, false];
    let test = DmaTest::LONG;
    let copies = u64::from(test.copies);
    let mut exact = [false; LINES.len()];
    let mut seen = Vec::new();
    for _ in 0..RUNS {
        let steady = SteadyState::measure(host, guest, test)?;
        costs_nothing(&steady.costs);
        assert_eq!(steady.costs.host_interrupts, steady.lines.iter().sum::<u64>());
        assert_eq!(steady.lines.len(), LINES.len(), "{:?}", steady.lines);
        for (exact, count) in exact.iter_mut().zip(&steady.lines) {
            *exact |= *count == copies;
        }
        if exact == LINES {
            return Ok(steady);
        }
        seen.push(steady.lines);
    }
    panic!("some lines were in none of {RUNS} runs handled once per transfer: {seen:?}");
}

#[test]
fn dma_on_the_platform_bus_causes_no_exits() -> TestResult {
    let host = Board::new().cpus(1).boot()?;
    let mut guest = guest_with(&host, &PLATFORM_DMA[..1])?;
    let steady = each_line_once_per_transfer(&host, &mut guest)?;
    assert!(steady.bytes > 200 * 4096, "{} bytes", steady.bytes);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn dma_on_the_amba_bus_causes_no_exits() -> TestResult {
    let host = Board::new().cpus(1).boot()?;
    assert_eq!(host.driver(AMBA_DMA[0])?.as_deref(), Some("dma-pl330"));
    let mut guest = guest_through("container", &host, &AMBA_DMA[..1])?;
    each_line_once_per_transfer(&host, &mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    // The host's own driver gets a device that it can use.
    host.unbind(AMBA_DMA[0])?;
    assert_eq!(host.driver(AMBA_DMA[0])?.as_deref(), Some("dma-pl330"));
    Ok(())
}

#[test]
fn a_dry_run_describes_the_device() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(PLATFORM_DMA[0])?;
    let device = PLATFORM_DMA[0];
    let plan =
        host.sh(&format!("strait run --kernel /k/model --vfio-platform {device} --dry-run"))?;
    for wanted in [
        format!("0x00c000000-0x00c000fff  {device} region 0, mapped"),
        format!("SPI 72   {device} interrupt 8, level, resampled"),
        "iommus: ".into(),
        "IOMMU: iommufd".into(),
        "compatible = \"arm,pl330\", \"arm,primecell\";".into(),
        "dma-coherent;".into(),
    ] {
        assert!(plan.contains(&wanted), "no {wanted} in:\n{plan}");
    }
    let interrupts = host.sh("cat /proc/interrupts")?;
    assert!(!interrupts.contains("vfio-irq"), "{interrupts}");
    Ok(())
}

#[test]
fn a_device_works_with_gicv2() -> TestResult {
    let host = Board::new().gic(2).boot()?;
    let mut guest = guest_with(&host, &PLATFORM_DMA[..1])?;
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn cpus_with_and_without_vhe_drive_it() -> TestResult {
    // Armv8.0 has no VHE, Armv8.2 has it, and KVM may be told to do without.
    for (cpu, parameter, vhe) in [
        ("cortex-a53", "", false),
        ("neoverse-n1", "", true),
        ("neoverse-n1", "kvm-arm.mode=nvhe", false),
    ] {
        let host = Board::new().cpu(cpu).param(parameter).boot()?;
        let log = host.sh("dmesg | grep -F 'mode initialized successfully'")?;
        assert_eq!(log.contains("nVHE"), !vhe, "{cpu} {parameter}: {log}");
        let mut guest = guest_with(&host, &PLATFORM_DMA[..1])?;
        DmaTest::default().pass(&mut guest)?;
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn two_devices_in_one_guest() -> TestResult {
    let host = Board::new().boot()?;
    let devices = [PLATFORM_DMA[0], AMBA_DMA[1]];
    let test = DmaTest { channels: 16, ..DmaTest::default() };
    for backend in BACKENDS {
        let mut guest = guest_through(backend, &host, &devices)?;
        test.pass(&mut guest)?;
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn two_guests_with_a_device_each() -> TestResult {
    let host = Board::new().boot()?;
    // By different ways to the IOMMU.
    let mut one = guest_through(BACKENDS[0], &host, &PLATFORM_DMA[..1])?;
    let mut two = guest_through(BACKENDS[1], &host, &PLATFORM_DMA[1..])?;
    let test = DmaTest::default();
    let before = [one.interrupts()?, two.interrupts()?];
    one.begin(&test.command())?;
    two.begin(&test.command())?;
    for (guest, before) in [&mut one, &mut two].into_iter().zip(&before) {
        let (status, text) = guest.finish()?;
        assert_eq!(status, 0, "{text}");
        assert_eq!(test.check(&text).map(|summaries| summaries.len()), Ok(8));
        assert_eq!(test.check_lines(before, &guest.interrupts()?), Ok(()));
    }
    // A device that one has is refused to another.
    let refused =
        host.run(&format!("strait run --kernel /k/model {}", assigned(&PLATFORM_DMA[..1])))?;
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains(PLATFORM_DMA[0]), "{}", refused.errors);
    assert_eq!((one.power_off()?, two.power_off()?), (0, 0));
    Ok(())
}

#[test]
fn a_32_bit_dma_controller_works_with_ram_above_4_gib() -> TestResult {
    let host = Board::new().memory("8G").boot()?;
    host.bind(PLATFORM_DMA[0])?;
    let launch = Launch::model().memory("5G").with(&assigned(&PLATFORM_DMA[..1]));
    let mut guest = host.launch(&launch)?;
    assert!(guest.sh("cat /proc/iomem")?.contains("-17fffffff : System RAM"));
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_line_that_is_high_before_boot_causes_no_spurious_interrupt() -> TestResult {
    let host = Board::new().boot()?;
    let device = PLATFORM_DMA[0];
    host.bind(device)?;
    host.sh("agent pl330 0x2c0a0000 raise 2 && agent pl330 0x2c0a0000 raise 7")?;
    assert!(host.sh("agent pl330 0x2c0a0000 status")?.contains("interrupts 0x84"));
    let mut guest = host.guest(&assigned(&[device]))?;
    assert_eq!(guest.interrupts()?.sum(".dma"), 0, "an interrupt before the first transfer");
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn an_interrupt_raised_while_disabled_is_delivered() -> TestResult {
    const LINE: EventLine = EventLine { controller: 0x0c00_0000, event: 3, intid: 96 + 3 };
    // Without Linux, whose driver can't stand an interrupt before it has probed: the payload tells
    // by its ending whether each interrupt came, 100 times with its SPI disabled while it rises.
    let tries = if std::env::var_os(SOAK).is_some() { 10_000 } else { 100 };
    let host = Board::new()
        .file("k/high", payload::take_interrupts(LINE, true, 1))
        .file("k/high-often", payload::take_interrupts(LINE, true, tries))
        .file("k/low-often", payload::take_interrupts(LINE, false, tries))
        .boot()?;
    let device = PLATFORM_DMA[0];
    host.bind(device)?;
    let status = |kernel: &str, options: &str| {
        host.strait(&format!("run --kernel /k/{kernel} --vfio-platform {device}{options}"))?
            .exit_status()
    };
    for cpus in ["", " --cpus 2"] {
        for kernel in ["high", "high-often"] {
            host.sh("agent pl330 0x2c0a0000 raise 3")?;
            assert_eq!(status(kernel, &format!(",quiesce=off{cpus}"))?, 0, "{kernel}{cpus}");
        }
        assert_eq!(status("low-often", cpus)?, 0);
    }
    // That the payload tells an interrupt that doesn't come: a quiesced line isn't high.
    host.sh("agent pl330 0x2c0a0000 raise 3")?;
    assert_eq!(status("high", "")?, 3);
    Ok(())
}

#[test]
fn a_device_whose_vmm_was_killed_can_be_assigned_again() -> TestResult {
    let host = Board::new().boot()?;
    let device = PLATFORM_DMA[0];
    let mut guest = guest_with(&host, &[device])?;
    guest.begin(&DmaTest { copies: 0, ..DmaTest::default() }.command())?;
    // In the middle of it.
    host.until("[ $(awk '/vfio-irq/ { n += $2 + $3 } END { print n }' /proc/interrupts) -gt 50 ]")?;
    guest.process().signal(9)?;
    assert_eq!(guest.exit_status()?, 128 + 9);
    // Also by the other way to the IOMMU.
    for backend in BACKENDS.iter().rev() {
        let mut guest = host.guest(&format!("{}--iommu {backend}", assigned(&[device])))?;
        DmaTest::default().pass(&mut guest)?;
        guest.process().signal(9)?;
        assert_eq!(guest.exit_status()?, 128 + 9);
    }
    Ok(())
}

#[test]
fn a_running_device_is_quiesced_for_the_next_guest() -> TestResult {
    let host = Board::new().boot()?;
    let device = PLATFORM_DMA[0];
    let running = || -> Result<bool, Failure> {
        let status = host.sh("agent pl330 0x2c0a0000 status")?;
        Ok(status.lines().any(|line| line.starts_with("channel") && !line.contains("stopped")))
    };
    host.bind(device)?;
    // What lies beyond mem= is the program's and its data's.
    let launch = Launch::model().cmdline("mem=192M").with(&assigned(&[device]));
    let mut guest = host.launch(&launch)?;
    // A channel that copies whenever event 4 happens, for ever.
    let [at, from, to] = ["0x4d000000", "0x4d100000", "0x4d200000"];
    guest.sh(&format!(
        "agent memory fill {from} 4096 0x77 && agent memory fill {to} 4096 0 && \
         agent pl330 {FIRST} copy-on 4 5 {at} {from} {to} 4096 && agent pl330 {FIRST} signal 4 && \
         agent memory check {to} 4096 0x77"
    ))?;
    guest.process().signal(9)?;
    assert_eq!(guest.exit_status()?, 128 + 9);
    assert!(running()?, "the channel should have outlived its VMM");
    let mut guest = host.guest(&format!("{}--iommu container", assigned(&[device])))?;
    assert!(!running()?);
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    // And after a guest, for whoever comes next.
    let mut guest = host.launch(&launch)?;
    // Linux' driver can't stand an event of another's making: it goes first.
    guest.sh(&format!(
        "cd /sys/bus/amba/drivers/dma-pl330 && basename *.dma* >unbind && \
         agent pl330 {FIRST} copy-on 4 5 {at} {from} {to} 4096 && agent pl330 {FIRST} raise 1"
    ))?;
    assert_eq!(guest.power_off()?, 0);
    assert!(!running()?);
    assert!(host.sh("agent pl330 0x2c0a0000 status")?.contains("enabled 0x0 interrupts 0x0"));
    Ok(())
}

#[test]
fn a_device_is_stopped_where_the_iommu_lets_it_reach_all_memory_afterwards() -> TestResult {
    // The default domain, which the device has again when its files are closed, is identity.
    let host = Board::new().param("iommu.passthrough=1").boot()?;
    let device = PLATFORM_DMA[0];
    let group = format!("/sys/bus/platform/devices/{device}/iommu_group/type");
    for (backend, killed) in BACKENDS.into_iter().zip([false, true]) {
        // The parent stops what a child that was killed leaves.
        let options = format!("--bind --iommu {backend} --vfio-platform {device}");
        let mut guest = host.launch(&Launch::model().cmdline("mem=192M").with(&options))?;
        assert_eq!(host.sh(&format!("cat {group}"))?.trim(), "identity");
        let [at, from, to] = ["0x4d000000", "0x4d100000", "0x4d200000"];
        guest.sh(&format!(
            "cd /sys/bus/amba/drivers/dma-pl330 && basename *.dma* >unbind && \
             agent pl330 {FIRST} copy-on 4 5 {at} {from} {to} 4096 && agent pl330 {FIRST} raise 1"
        ))?;
        if killed {
            host.sh("kill -9 $(pidof strait | cut -d ' ' -f 1)")?;
            assert_eq!(guest.exit_status()?, 128 + 9);
        } else {
            assert_eq!(guest.power_off()?, 0);
        }
        let status = host.sh("agent pl330 0x2c0a0000 status")?;
        let mut channels = status.lines().filter(|line| line.starts_with("channel"));
        assert!(channels.all(|line| line.contains("stopped")), "{status}");
    }
    Ok(())
}
