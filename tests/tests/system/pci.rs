//! Assigned PCI devices: a guest's own drivers drive a disk, a network card and others that belong
//! to it.

use std::time::{Duration, Instant};

use serde_json::Value;
use tests::harness::payload::{self, Toggle};
use tests::harness::{
    BACKENDS, Board, Bus, Costs, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, Story,
};

/// Where the devices are on the host.
const DISK: &str = "0000:00:05.0";
const CARD: &str = "0000:00:06.0";
const EDU: &str = "0000:00:07.0";
const TESTDEV: &str = "0000:00:08.0";

/// Where a guest finds the first device.
const FIRST: &str = "0000:00:01.0";

/// A board with an NVMe disk.
fn with_disk() -> Board {
    Board::new().disk("disk", 256 << 20).device("nvme,drive=disk,serial=one,addr=5")
}

/// A board with an edu, which reaches all of its memory.
fn with_edu() -> Board {
    Board::new().device("edu,addr=7,dma_mask=0xffffffffffff")
}

/// Binds devices to VFIO and starts a guest with them.
fn guest_with(host: &Host, devices: &[&str], launch: Launch) -> Result<Guest, Failure> {
    devices.iter().try_for_each(|name| host.bind(name))?;
    let options: String = devices.iter().map(|name| format!("--vfio-pci {name} ")).collect();
    host.launch(&launch.with(&options))
}

#[test]
fn devices_that_no_driver_of_the_guest_takes_are_told_of() -> Story {
    let host = with_disk().file("k/wait", payload::wait()).boot()?;
    let dma = PLATFORM_DMA[0];
    host.bind(dma)?;
    host.bind(DISK)?;
    let options = format!("--vfio-platform {dma} --vfio-pci {DISK} --stats /tmp/stats");
    let unused = [
        format!("strait: warn: {dma}: the guest has no interrupt of it enabled."),
        format!("strait: warn: {DISK}: the guest has never turned it on."),
    ];

    // A program without drivers: on demand and at the end, but once.
    let mut guest = host.strait(&format!("run --kernel /k/wait {options}"))?;
    host.until("grep -q vfio-irq /proc/interrupts")?;
    for end in [false, true] {
        guest.signal(if end { 15 } else { 10 })?;
        if end {
            assert_eq!(guest.exit_status()?, 128 + 15);
        } else {
            guest.wait_for("never turned it on")?;
        }
        for line in &unused {
            assert_eq!(guest.output().matches(line.as_str()).count(), 1, "{}", guest.output());
        }
    }
    assert!(guest.output().contains("CONFIG_PL330_DMA") && guest.output().contains("1b36:0010"));

    // Linux has drivers for both, which haven't done anything yet.
    let guest = host.strait(&Launch::model().does("poweroff").with(&options).arguments())?;
    assert_eq!(guest.exit_status()?, 0);
    let said = guest.output();
    assert!(!unused.iter().any(|line| said.contains(line.as_str())), "{said}");
    Ok(())
}

/// Has the guest make a file system, fill it, and mount it again; the sum of what it holds.
fn fill(guest: &mut Guest) -> Result<String, Failure> {
    guest.sh(
        "mkdir -p /disk && mke2fs -q /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /disk && \
         dd if=/dev/urandom of=/disk/noise bs=1M count=16 2>/dev/null && \
         seq 1 200000 >/disk/numbers && sync && cat /disk/n* | sha256sum >/tmp/sum && umount /disk",
    )?;
    let sum = sum(guest)?;
    assert_eq!(guest.sh("cat /tmp/sum")?.trim(), sum, "what came back isn't what was written");
    Ok(sum)
}

/// Mounts the file system and sums up what it holds.
fn sum(guest: &mut Guest) -> Result<String, Failure> {
    let command = "mkdir -p /disk && mount -t ext4 -o ro /dev/nvme0n1 /disk && \
                   cat /disk/n* | sha256sum && umount /disk";
    Ok(guest.sh(command)?.trim().to_owned())
}

/// Checks that no driver of the guest missed an interrupt: they say so when they find out by a
/// timeout.
fn nothing_missed(guest: &mut Guest) -> Story {
    let words = ["timeout,", "timed out", "nobody cared", "Hardware Unit Hang", "NETDEV WATCHDOG"];
    let log = guest.log_of(&words.join("\\|"))?;
    assert!(!words.iter().any(|word| log.contains(word)), "{log}");
    Ok(())
}

/// Checks that the host is well: nothing crashed, and its VFIO found no fault.
fn host_is_well(host: &Host) -> Story {
    let log = host.sh("dmesg")?;
    for word in ["BUG", "Oops", "WARNING", "Call trace", "SError"] {
        assert!(!log.contains(word), "{word}:\n{log}");
    }
    Ok(())
}

#[test]
fn a_file_system_on_a_disk_outlives_guests_and_their_vmm() -> Story {
    let host = with_disk().boot()?;
    let mut guest = guest_with(&host, &[DISK], Launch::model())?;
    let written = fill(&mut guest)?;
    // Its registers are moved while the guest runs, as Linux does it on request.
    guest.sh(&format!(
        "cd /sys/bus/pci && echo 1 >devices/{FIRST}/remove && echo 1 >rescan && \
         until [ -e /dev/nvme0n1 ]; do sleep 0.1; done"
    ))?;
    assert_eq!(sum(&mut guest)?, written);
    // A reset by the guest, then all of the device again.
    guest.sh("echo 1 >/sys/class/nvme/nvme0/reset_controller")?;
    assert_eq!(sum(&mut guest)?, written);
    nothing_missed(&mut guest)?;
    // In the middle of work, without a word of farewell.
    guest.begin("cat /dev/nvme0n1 >/dev/null")?;
    host.until(
        "[ $(awk '/vfio-msix/ { n += $2 + $3 } END { print n }' /proc/interrupts) -gt 100 ]",
    )?;
    guest.process().signal(9)?;
    assert_eq!(guest.exit_status()?, 128 + 9);

    let mut guest = host.guest(&format!("--vfio-pci {DISK},mmap=off"))?;
    assert_eq!(sum(&mut guest)?, written, "by traps");
    nothing_missed(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    host.unbind(DISK)?;
    host.until("[ -e /dev/nvme0n1 ]")?;
    let on_host =
        host.sh("mkdir /disk && mount -t ext4 /dev/nvme0n1 /disk && cat /disk/n* | sha256sum")?;
    assert_eq!(on_host.trim(), written);
    host_is_well(&host)
}

#[test]
fn a_hundred_thousand_reads_lose_no_interrupt_and_cost_the_vmm_nothing() -> Story {
    let host = with_disk().boot()?;
    let launch = Launch::model().with("--cpus 2 --stats /tmp/stats");
    let mut guest = guest_with(&host, &[DISK], launch)?;
    let completed = |guest: &mut Guest| -> Result<u64, Failure> {
        let text = guest.sh("awk '{ print $1 }' /sys/block/nvme0n1/stat")?;
        Ok(text.trim().parse().unwrap_or_default())
    };
    let before = completed(&mut guest)?;
    // Eight at a time, each of one block, past the page cache.
    let command = "(for n in 0 1 2 3 4 5 6 7; do dd if=/dev/nvme0n1 of=/dev/null bs=4096 \
                   count=12500 iflag=direct 2>/dev/null & done; wait)";
    let (costs, _) = Costs::of(&host, &mut guest, command, "vfio-msix")?;
    let reads = completed(&mut guest)? - before;
    assert!(reads >= 100_000, "{reads}");
    let [earlier, later] = &costs.guest_interrupts;
    let handled: u64 = later.since(earlier, "nvme0q").iter().sum();
    // One that comes while an earlier one is still pending is one with it, in the controller as in
    // the device; that none is missing is told by all reads being done, and none of them late.
    let fired = costs.host_interrupts;
    assert!(handled <= fired && fired <= reads, "{reads} reads, {fired} on the host, {handled}");
    assert!(handled > reads / 50, "{handled} for {reads} reads");
    assert_eq!((costs.exits_to_user_space(), costs.wakeups_of_the_vmm()), (0, 0));
    guest.process().signal(10)?;
    host.until("grep -q msix /tmp/stats")?;
    let stats: Value = serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("it is JSON");
    let told = &stats["pci_interrupts"][0];
    assert_eq!((&told["function"], &told["vectors"]), (&DISK.into(), &3.into()), "{told}");
    let told = told["fired"].as_array().into_iter().flatten().filter_map(Value::as_u64);
    assert!(told.sum::<u64>() >= fired, "{stats}");
    nothing_missed(&mut guest)?;
    println!("{reads} reads, {fired} interrupts on the host, {handled} in the guest");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_network_card_carries_both_ways_what_the_host_sends_and_takes() -> Story {
    let host = Board::new()
        .option("-netdev", "hubport,id=card,hubid=0")
        .option("-netdev", "hubport,id=host,hubid=0")
        .device("e1000e,netdev=card,addr=6,romfile=")
        .device("virtio-net-pci,netdev=host,addr=9,romfile=")
        .boot()?;
    host.bind(CARD)?;
    host.sh("card=$(ls /sys/bus/pci/devices/0000:00:09.0/virtio*/net) && \
         ip addr add 10.9.0.1/24 dev $card && ip link set $card up")?;
    host.sh("dd if=/dev/urandom of=/tmp/out bs=1M count=4 2>/dev/null && httpd -p 7002 -h /tmp")?;
    for (kernel, interrupts) in [("", "PCI-MSI"), ("pci=nomsi", "Level")] {
        let launch = Launch::model().cmdline(kernel).with(&format!("--vfio-pci {CARD}"));
        let mut guest = host.launch(&launch)?;
        guest.sh("ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up && \
             until ping -c 1 -W 1 10.9.0.1 >/dev/null; do :; done")?;
        guest.sh("dd if=/dev/urandom of=/tmp/out bs=1M count=4 2>/dev/null")?;
        let to_host = host.start("nc -l -p 7001 >/tmp/in")?;
        host.until("netstat -lnt | grep -q :7001")?;
        guest.sh("nc 10.9.0.1 7001 </tmp/out")?;
        to_host.exit_status()?;
        guest.sh("wget -q -O /tmp/in http://10.9.0.1:7002/out")?;
        let digest = |text: String| text.split_whitespace().next().map(str::to_owned);
        assert_eq!(digest(host.sh("sha256sum /tmp/in")?), digest(guest.sh("sha256sum /tmp/out")?));
        assert_eq!(digest(guest.sh("sha256sum /tmp/in")?), digest(host.sh("sha256sum /tmp/out")?));
        let lines = guest.sh("grep eth0 /proc/interrupts")?;
        assert!(lines.contains(interrupts), "{lines}");
        nothing_missed(&mut guest)?;
        assert_eq!(guest.power_off()?, 0);
    }
    host_is_well(&host)
}

#[test]
fn a_program_in_the_guest_drives_a_device_by_messages_and_by_its_line() -> Story {
    let host = with_edu().device("pci-testdev,addr=8").boot()?;
    for backend in BACKENDS {
        let launch = Launch::model().with(&format!("--iommu {backend} "));
        let mut guest = guest_with(&host, &[EDU, TESTDEV], launch)?;
        for by in ["msi", "line"] {
            let said = guest.sh(&format!("probe edu {FIRST} {by} 50"))?;
            assert!(said.contains("50 pages each way, 101 interrupts"), "{said}");
        }
        let said = guest.sh("probe testdev 0000:00:02.0 1000")?;
        assert!(said.contains("mmio-no-eventfd: 1000 writes"), "{said}");
        assert!(said.contains("portio-no-eventfd: 1000 writes"), "{said}");
        assert_eq!(guest.power_off()?, 0);
    }
    host_is_well(&host)
}

#[test]
fn a_guest_that_takes_memory_away_under_its_own_reads_reads_ones() -> Story {
    // One vCPU reads the NVMe's first register, mapped or trapped; the other turns memory off and on,
    // puts the function into D3 and back, and has it reset itself.
    const CONFIG: u32 = 0x3f10_8000;
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
    unbound_while_it_runs(&host)?;
    host.bind(DISK)?;
    let shown = host.sh(&format!("strait device show {DISK}"))?;
    for wanted in ["capability at 0x060: power management", "capability at 0x080: PCI Express"] {
        assert!(shown.contains(wanted), "no {wanted} in:\n{shown}");
    }
    host_is_well(&host)
}

/// Unbinds the disk while a guest has it: the host waits for the run's end, and lets nobody reset it.
fn unbound_while_it_runs(host: &Host) -> Story {
    let strait = host.strait(&format!("run --kernel /k/spin --vfio-pci {DISK}"))?;
    host.until("grep -q vfio-intx /proc/interrupts")?;
    let unbind = host.start(&format!("echo {DISK} >/sys/bus/pci/drivers/vfio-pci/unbind"))?;
    host.until("dmesg | grep -q 'blocked until released by user'")?;
    strait.signal(15)?;
    assert_eq!((strait.exit_status()?, unbind.exit_status()?), (128 + 15, 0));
    let said = strait.output();
    assert!(said.contains("the host holds it"), "{said}");
    assert!(!said.contains("power-cycle"), "{said}");
    let help = said.split("help: once the host has let go of it: ").nth(1);
    let help = help.and_then(|help| help.split(" (").next()).expect("there is a help");
    host.sh(help)?;
    Ok(())
}

#[test]
fn a_guest_outlives_memory_that_is_taken_away_behind_its_vmm_s_back() -> Story {
    let host = with_edu().boot()?;
    let mut guest = guest_with(&host, &[EDU], Launch::model())?;
    let device = format!("/sys/bus/pci/devices/{FIRST}");
    let bar = guest.sh(&format!("echo 1 >{device}/enable && cut -d ' ' -f 1 {device}/resource"))?;
    let bar = bar.lines().next().unwrap_or_default();
    let reads_ones = format!("probe memory check {bar} 64 0xff");
    assert_ne!(guest.run(&reads_ones)?.0, 0);
    let pid = guest.pid()?;
    host.sh(&format!("probe vfio memory off {pid}"))?;
    guest.sh(&reads_ones)?;
    host.sh(&format!("probe vfio memory on {pid}"))?;
    assert_ne!(guest.run(&reads_ones)?.0, 0, "by traps");
    guest.sh(&format!("probe edu {FIRST} msi 5"))?;
    let said = guest.process().output();
    assert_eq!(said.matches("can't give the guest its registers").count(), 1, "{said}");
    assert_eq!(guest.power_off()?, 0);
    host_is_well(&host)
}

#[test]
fn without_messages_there_is_the_line() -> Story {
    let host = with_disk().gic(2).device("edu,addr=7,dma_mask=0xffffffffffff").boot()?;
    let mut guest = guest_with(&host, &[DISK, EDU], Launch::model())?;
    assert!(guest.process().output().contains("interrupt pins only"));
    fill(&mut guest)?;
    let lines = guest.sh("grep nvme /proc/interrupts")?;
    assert!(lines.contains("GIC-0") && lines.contains("Level"), "{lines}");
    guest.sh("probe edu 0000:00:02.0 line 20")?;
    nothing_missed(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    host_is_well(&host)
}

#[test]
fn functions_of_a_group_are_taken_together_beside_a_dma_controller() -> Story {
    let host = Board::new()
        .disk("disk", 64 << 20)
        .device("nvme,drive=disk,serial=one,addr=5.0,multifunction=on")
        .device("edu,addr=5.1,dma_mask=0xffffffffffff")
        .boot()?;
    let second = "0000:00:05.1";
    // One is the host's: the other can't be had.
    host.bind(second)?;
    assert_eq!(host.group(DISK)?, host.group(second)?, "the board's functions share a group");
    let refused = host.run(&format!("strait run --kernel /k/model --vfio-pci {second}"))?;
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains(&format!("shared with {DISK} (driver nvme)")), "{refused:?}");
    assert!(refused.errors.contains("strait device bind --group"), "{refused:?}");
    let bound = host.sh(&format!("strait device bind --group {second} {}", PLATFORM_DMA[0]))?;
    assert!(bound.contains(DISK) && bound.contains("before nvme"), "{bound}");

    let devices = format!(
        "--vfio-platform {} --vfio-pci 05:00.0,addr=3.0 --vfio-pci 05:00.1,addr=3.1",
        PLATFORM_DMA[0]
    );
    let devices = devices.replace("05:00.", "00:05.");
    let mut guest = host.guest(&devices)?;
    let found = guest.sh("ls /sys/bus/pci/devices")?;
    assert_eq!(
        found.split_whitespace().collect::<Vec<_>>(),
        ["0000:00:00.0", "0000:00:03.0", "0000:00:03.1"]
    );
    guest.sh("cat /dev/nvme0n1 >/dev/null & echo $! >/tmp/reader; true")?;
    DmaTest::default().pass(&mut guest)?;
    guest.sh("probe edu 0000:00:03.1 msi 20")?;
    fill(&mut guest)?;
    nothing_missed(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    host_is_well(&host)
}

#[test]
fn a_guest_gone_mad_harms_nobody_but_itself() -> Story {
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
            guest.sh(&format!("probe noise {:#x} 0x1000 3000", 0x3f10_0000 + (slot << 15)))?;
        }
        guest.sh(&format!("probe noise 0x3f10{round}000 0x1000 500 gentle"))?;
        guest.sh("probe noise 0x20000000 0x1f000000 1000 gentle")?;
        guest.sh("probe noise 0x3f000000 0x10000 1000")?;
    }
    assert_eq!(guest.power_off()?, 0, "strait is there to the end");
    // All works for the next.
    let mut guest = host.guest(&devices)?;
    fill(&mut guest)?;
    guest.sh("probe edu 0000:00:02.0 msi 5")?;
    guest.sh("probe testdev 0000:00:03.0 5")?;
    nothing_missed(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    host_is_well(&host)
}

#[test]
fn devices_are_shown_borrowed_and_refused_with_what_to_type() -> Story {
    let ids = "1b36  Red Hat, Inc.\n\t0010  QEMU NVM Express Controller\n\
               C 01  Mass storage controller\n\t08  Non-Volatile memory controller\n";
    let host = with_disk().boot()?;
    host.sh(&format!("mkdir -p /usr/share/misc && printf '{ids}' >/usr/share/misc/pci.ids"))?;
    let list = host.sh("strait device list")?;
    let what = "Non-Volatile memory controller: Red Hat, Inc. QEMU NVM Express Controller";
    let line = list.lines().find(|line| line.starts_with(DISK)).unwrap_or_default();
    assert!(line.ends_with("free") && line.contains(what), "{list}");

    // Borrowed for a run that only plans, then for one.
    host.sh(&format!("strait device bind {DISK}"))?;
    let shown = host.sh("strait device show 00:05.0")?;
    for wanted in
        [what, "MSI-X with 65 vectors", "mapped at 0x0-0x1fff, else trapped", "PCI Express"]
    {
        assert!(shown.contains(wanted), "no {wanted} in:\n{shown}");
    }
    let tested = host.run("strait device test 00:05.0")?;
    assert!(tested.status == 0 && tested.output.contains("MSI-X"), "{tested:?}");
    let plan = host.sh("strait run --kernel /k/model --vfio-pci 00:05.0,addr=1f.0 --dry-run")?;
    for wanted in ["00:1f.0  0000:00:05.0", "BAR 0: 64-bit memory", "PCI configuration", "INTA"] {
        assert!(plan.contains(wanted), "no {wanted} in:\n{plan}");
    }
    needs_descriptors(&host)?;
    host.sh(&format!("strait device unbind {DISK}"))?;
    assert_eq!(host.driver(DISK)?.as_deref(), Some("nvme"));
    let guest = host.guest(&format!("--bind --vfio-pci {DISK}"))?;
    assert_eq!(host.driver(DISK)?.as_deref(), Some(Bus::Pci.vfio_driver()));
    assert_eq!(guest.power_off()?, 0);
    assert_eq!(host.driver(DISK)?.as_deref(), Some("nvme"));

    Ok(())
}

/// A disk of 65 vectors where few files may be open.
fn needs_descriptors(host: &Host) -> Story {
    let plan = "strait run --kernel /k/model --vfio-pci 00:05.0 --dry-run";
    let refused = host.run(&format!("ulimit -n 32; {plan}"))?;
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.errors.contains("this process may have 32 open"), "{refused:?}");
    let help = refused.errors.split("help: ").nth(1).and_then(|help| help.split(" by ").next());
    let help = help.expect("there is a command that mends it");
    let mended = host.run(&format!("{help}; {plan}"))?;
    assert_eq!(mended.status, 0, "{help}: {mended:?}");
    // A soft limit is raised.
    host.sh(&format!("ulimit -Sn 32; {plan} && strait device test 00:05.0"))?;
    let launch = Launch::model()
        .program("sh -c 'ulimit -Sn 32 && exec strait \"$@\"' strait")
        .with("--vfio-pci 00:05.0 --stats /tmp/passing/stats");
    host.sh("mkdir /tmp/passing")?;
    let mut guest = host.launch(&launch)?;
    host.sh("rmdir /tmp/passing")?;
    let open = host.sh(&format!("ls /proc/{}/fd | wc -l", guest.pid()?))?;
    let limit =
        host.sh(&format!("awk '/Max open files/ {{ print $4 }}' /proc/{}/limits", guest.pid()?))?;
    println!("{} descriptors are open, of {}", open.trim(), limit.trim());
    let limit: u64 = limit.trim().parse().unwrap_or_default();
    assert!(limit >= 65 + 20, "{limit}");
    nothing_missed(&mut guest)?;
    // Statistics that can't be written don't change how the guest ended.
    guest.begin("poweroff -f")?;
    assert_eq!(guest.exit_status()?, 0);
    let said = guest.process().output();
    assert!(said.contains("statistics can't be written to /tmp/passing/stats"), "{said}");
    Ok(())
}

/// Checks that a device is refused, for this reason, whoever asks, and that nothing was done to it.
fn refused(host: &Host, device: &str, reason: &str) -> Story {
    let driver = host.driver(device)?;
    for command in
        [format!("device bind {device}"), format!("run --kernel /k/off --bind --vfio-pci {device}")]
    {
        let answer = host.run(&format!("strait {command}"))?;
        let said = &answer.errors;
        assert_eq!(answer.status, 1, "{said}");
        assert!(said.contains(reason) && said.contains("--force"), "{command}: {said}");
    }
    assert_eq!(host.driver(device)?, driver, "{device}");
    let list = host.sh("strait device list")?;
    let line = list.lines().find(|line| line.starts_with(device)).unwrap_or_default();
    assert!(line.contains(&format!("used by the host: {reason}")), "{list}");
    let shown = host.sh(&format!("strait device show {device}"))?;
    assert!(shown.contains(&format!("used by the host: {reason}")), "{shown}");
    Ok(())
}

#[test]
fn what_the_host_uses_is_refused_by_name() -> Story {
    let host = with_disk()
        .file("k/off", payload::power_off())
        .option("-netdev", "hubport,id=card,hubid=0")
        .device("e1000e,netdev=card,addr=6,romfile=")
        .option("-fsdev", "local,id=share,path=/usr/share,security_model=none,readonly=on")
        .device("virtio-9p-pci,fsdev=share,mount_tag=share,addr=7")
        .boot()?;
    let share = "0000:00:07.0";

    // A disk, by what is on it: itself, what is made of it, what nobody sees any more.
    host.sh("mkdir /mnt && mke2fs -q /dev/nvme0n1 && mount -t ext4 /dev/nvme0n1 /mnt")?;
    refused(&host, DISK, "nvme0n1 is mounted on /mnt")?;
    let help = host.run(&format!("strait device bind {DISK}"))?.errors;
    assert!(help.contains("help: umount /mnt\n"), "{help}");
    let keeper = host.start("cd /mnt && echo there && read line")?;
    host.until("ls -l /proc/*/cwd 2>/dev/null | grep -q /mnt$")?;
    host.sh("umount -l /mnt")?;
    refused(&host, DISK, "nvme0n1 is claimed by a file system")?;
    keeper.signal(9)?;
    keeper.exit_status()?;
    host.sh("losetup /dev/loop0 /dev/nvme0n1")?;
    refused(&host, DISK, "nvme0n1 is part of loop0")?;
    host.sh("losetup -d /dev/loop0")?;
    let reader = host.start("exec 3</dev/nvme0n1; echo there; read line")?;
    host.until("ls -l /proc/*/fd 2>/dev/null | grep -q nvme0n1$")?;
    refused(&host, DISK, "/dev/nvme0n1 is open in process ")?;
    reader.signal(9)?;
    reader.exit_status()?;

    // A network interface.
    host.sh("ip link set eth0 up && ip addr add 10.0.0.1/24 dev eth0")?;
    refused(&host, CARD, "eth0 is up")?;
    host.sh("ip route add default via 10.0.0.2")?;
    refused(&host, CARD, "eth0 is up, and the default route is by eth0")?;
    let both = host.run(&format!("strait device bind {DISK} {CARD}"))?;
    assert!(both.status == 1 && both.errors.contains("eth0 is up"), "{}", both.errors);
    assert_eq!(host.driver(DISK)?.as_deref(), Some("nvme"), "all or nothing");

    // What ends the use is what the help says; who knows better is believed.
    host.sh(&format!("ip link set eth0 down && strait device bind {CARD}"))?;
    host.sh("mount -t ext4 /dev/nvme0n1 /mnt")?;
    host.sh(&format!("strait run --kernel /k/off --bind --force --vfio-pci {DISK}"))?;
    host.sh("umount /mnt")?;
    assert_eq!(host.driver(DISK)?.as_deref(), Some("nvme"), "given back");

    // A share's driver waits until it is unmounted.
    host.sh("mkdir /share && mount -t 9p -o trans=virtio share /share && ls /share")?;
    refused(&host, share, "9p share share is mounted on /share")?;
    let started = Instant::now();
    let run = host.strait(&format!("run --kernel /k/off --bind --force --vfio-pci {share}"))?;
    host.until(&format!("[ ! -e /sys/bus/pci/devices/{share}/driver ]"))?;
    run.signal(15)?;
    assert_eq!(run.exit_status()?, 128 + 15);
    let said = run.output();
    assert!(said.contains("driver/unbind") && said.contains("waits in msleep"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(9), "a signal is heard: {said}");
    // Until then it can't be given back either, which is told in time.
    let restore = host.run(&format!("strait device unbind {share}"))?;
    assert_eq!(restore.status, 1);
    assert!(restore.errors.contains("hasn't answered process"), "{}", restore.errors);
    host.sh("umount /share")?;
    host.sh(&format!("strait device unbind {share}"))?;
    assert_eq!(host.driver(share)?.as_deref(), Some("virtio-pci"));
    Ok(())
}

#[test]
fn a_device_behind_a_port_is_taken_out_of_its_link() -> Story {
    let host = Board::new()
        .device("pcie-root-port,id=below,addr=a,chassis=1")
        .device("virtio-rng-pci,bus=below,ats=on,iommu_platform=on,disable-legacy=on")
        .boot()?;
    let (port, device) = ("0000:00:0a.0", "0000:01:00.0");
    host.sh("strait device bind 01:00.0")?;
    let shown = host.sh("strait device show 01:00.0")?;
    for wanted in [
        "address translation services (0x0f), hidden: the guest has no IOMMU",
        "PCI Express (0x10)",
        "MSI-X with",
    ] {
        assert!(shown.contains(wanted), "no {wanted} in:\n{shown}");
    }
    let mut guest = host.guest(&format!("--vfio-pci {device}"))?;
    let config = guest.sh(&format!("xxd -p -c 4096 /sys/bus/pci/devices/{FIRST}/config"))?;
    assert!(config.starts_with("f41a4410"), "{config}");
    assert!(guest.log_of("Root Complex")?.contains("Root Complex Integrated Endpoint"));
    assert_eq!(guest.sh("dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c")?.trim(), "1024");
    nothing_missed(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);

    let list = host.sh("strait device list")?;
    let listed = |name: &str| list.lines().any(|line| line.starts_with(name));
    assert!(listed(device) && !listed(port), "{list}");
    for (options, error, help) in [
        ("--vfio-pci 00:0a.0", "it is a bridge", "strait device list"),
        ("--vfio-platform 01:00.0", "it is on the pci bus", "--vfio-pci 0000:01:00.0"),
        ("--vfio-pci 00:01.0", "its driver is virtio-pci", "strait device bind 0000:00:01.0"),
        ("--vfio-pci 00:15.0", "no device 00:15.0", "0000:01:00.0"),
        ("--vfio-pci 01:00.0,addr=20.0", "no address of a PCI function", "run --help"),
        ("--vfio-pci 01:00.0,colour=red", "no option of a PCI device", "run --help"),
    ] {
        let answer = host.run(&format!("strait run --kernel /k/model {options}"))?;
        assert_ne!(answer.status, 0, "{options}");
        let said = &answer.errors;
        assert!(said.contains(error) && said.contains(help), "{options}: {said}");
    }
    Ok(())
}
