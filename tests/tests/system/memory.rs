//! A guest's RAM: of huge pages, at another address, given back.

use tests::harness::{
    AMBA_DMA, BACKENDS, Board, DmaTest, Failure, Host, Launch, PLATFORM_DMA, TestResult, payload,
};

/// Where the disk is on the host.
const DISK: &str = "0000:00:05.0";

/// How many huge pages of 2 MiB the host has that nobody uses.
fn free_pages(host: &Host) -> Result<u64, Failure> {
    let free = host.sh("cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")?;
    Ok(free.trim().parse().unwrap_or(u64::MAX))
}

/// Has the host do what the help of an error says.
fn mend(host: &Host, errors: &str) -> TestResult {
    let help = errors.lines().find_map(|line| line.trim().strip_prefix("help: ")).unwrap();
    let sudo = "sudo() { \"$@\"; }";
    host.sh(&format!("{sudo}; {help}")).map(drop)
}

#[test]
fn devices_reach_ram_of_reserved_huge_pages_wherever_it_is() -> TestResult {
    let host = Board::new()
        .disk("disk", 64 << 20)
        .device("nvme,drive=disk,serial=one,addr=5")
        .file("k/off", payload::power_off())
        .boot()?;
    let pl330 = PLATFORM_DMA[0];
    [DISK, pl330].iter().try_for_each(|name| host.bind(name))?;
    let devices = format!("--vfio-platform {pl330} --vfio-pci {DISK}");
    let plan = format!("strait run --kernel /k/model --initrd /k/guest.cpio --dry-run {devices}");
    let short = host.run(&format!("{plan} --memory 128M,hugepages=2M"))?;
    assert_eq!(short.status, 1);
    assert!(short.errors.contains("takes 64 huge page(s) of 2M: of this host's 0, 0 are free"));
    mend(&host, &short.errors)?;
    // Where a PL330, of 32 bits, still reaches it.
    let high = "128M,hugepages=2M,base=0x80000000";
    let text = host.sh(&format!("{plan} --memory {high}"))?;
    for wanted in ["128M of RAM in huge pages of 2M", "0x080000000-0x087ffffff  RAM"] {
        assert!(text.contains(wanted), "no {wanted} in:\n{text}");
    }
    assert!(host.sh("strait check")?.contains("reserved: 64 of 2M (64 free)"));
    let test = DmaTest { channels: 8, ..DmaTest::default() };
    for (backend, memory) in BACKENDS.into_iter().zip(["128M,hugepages=2M", high]) {
        let options = format!("{devices} --iommu {backend}");
        let mut guest = host.launch(&Launch::model().memory(memory).with(&options))?;
        assert_eq!(free_pages(&host)?, 0);
        test.pass(&mut guest)?;
        guest.sh("dd if=/dev/urandom of=/tmp/noise bs=64k count=64 2>/dev/null && \
             dd if=/tmp/noise of=/dev/nvme0n1 bs=64k conv=fsync 2>/dev/null && \
             dd if=/dev/nvme0n1 bs=64k count=64 iflag=direct 2>/dev/null | cmp - /tmp/noise")?;
        let first = guest.sh("grep -m 1 'System RAM' /proc/iomem")?;
        let base = if memory == high { "80000000-" } else { "40000000-" };
        assert!(first.starts_with(base), "{first}");
        assert_eq!(guest.power_off()?, 0);
        assert_eq!(free_pages(&host)?, 64);
    }
    // Another process has the pages.
    let memory = "128M,hugepages=2M,base=0x100000000";
    let mut guest = host.launch(&Launch::model().memory(memory))?;
    assert!(guest.sh("grep -m 1 'System RAM' /proc/iomem")?.starts_with("100000000-"));
    let taken = host.run("strait run --kernel /k/off --memory 2M,hugepages=2M")?;
    assert_eq!(taken.status, 1);
    assert!(taken.errors.contains("takes 1 huge page(s) of 2M: of this host's 64, 0 are free"));
    guest.sh("dd if=/dev/zero of=/tmp/fill bs=1M count=32 2>/dev/null && rm /tmp/fill")?;
    assert_eq!(guest.power_off()?, 0);
    let server = "exec agent vfio-user serve /tmp/device.sock 2>&1";
    host.start(server)?.wait_for("serving")?;
    let shared = "--memory 128M,hugepages=2M --vfio-user /tmp/device.sock";
    host.sh(&format!("strait run --kernel /k/off {shared}"))?;
    Ok(())
}

#[test]
fn ram_makes_room_for_a_device_at_the_host_s_address() -> TestResult {
    let host = Board::new().memory("6G").file("k/off", payload::power_off()).boot()?;
    let name = AMBA_DMA[0];
    host.bind(name)?;
    let run = "strait run --kernel /k/off";
    // 2 GiB, where the device then is in RAM of 1 GiB.
    let device = format!("--vfio-platform {name},addr=0x80000000");
    let taken = host.run(&format!("{run} --memory 2G {device}"))?;
    assert_eq!(taken.status, 1);
    let help = "RAM behind it, by --memory SIZE,base=0xc0000000";
    assert!(taken.errors.contains(help), "{}", taken.errors);
    host.sh(&format!("{run} --memory 2G,base=0xc0000000 {device}"))?;
    for (memory, why) in [
        ("64M,base=0x8000000", "where the interrupt controller is"),
        ("64M,base=0x40100000", "no multiple of 2M"),
        ("64M,base=0x10000000000000", "beyond 52 bits"),
        ("64M,hugepages=16M", "this host has no huge pages of 16M to reserve"),
    ] {
        let refused = host.run(&format!("{run} --memory {memory}"))?;
        assert!(refused.status != 0 && refused.errors.contains(why), "{}", refused.errors);
    }
    Ok(())
}

/// Waits until so many MiB of a process' memory are huge pages that the host made by itself, as this
/// line of its mappings counts them.
fn until_huge(host: &Host, pid: u32, line: &str, mebibytes: u32) -> TestResult {
    let sum = format!("awk '/^{line}:/ {{ sum += $2 }} END {{ print sum }}' /proc/{pid}/smaps");
    host.until(&format!("[ $({sum}) -ge {} ]", mebibytes << 10))
}

#[test]
fn ram_is_of_huge_pages_that_the_host_makes() -> TestResult {
    let host = Board::new().file("k/wait", payload::wait()).boot()?;
    let pl330 = PLATFORM_DMA[0];
    host.bind(pl330)?;
    let run = "run --kernel /k/wait --memory 128M,hugepages=thp";
    // All of it, though the guest touches none: it is there before it is pinned.
    let assigned = host.strait(&format!("{run} --vfio-platform {pl330}"))?;
    until_huge(&host, assigned.pid()?, "AnonHugePages", 128)?;
    assigned.signal(9)?;
    assigned.exit_status()?;
    // Memory that processes share has a switch of its own.
    let server = "exec agent vhost-user serve /tmp/rng.sock 2>&1";
    host.start(server)?.wait_for("serving")?;
    let shared = format!("{run} --vfio-platform {pl330} --vhost-user rng,socket=/tmp/rng.sock");
    let refused = host.run(&format!("strait {shared}"))?;
    let why = "transparent huge pages are off for memory that processes share";
    assert!(refused.status == 1 && refused.errors.contains(why), "{}", refused.errors);
    mend(&host, &refused.errors)?;
    let shared = host.strait(&shared)?;
    let supervisor = shared.pid()?;
    host.until(&format!("grep -qs '^PPid:.{supervisor}$' /proc/[0-9]*/status"))?;
    until_huge(&host, host.vmm(supervisor)?, "ShmemPmdMapped", 128)?;
    shared.signal(9)?;
    shared.exit_status()?;
    // A guest's own accesses make them, too.
    let mut guest = host.launch(&Launch::model().memory("256M,hugepages=thp"))?;
    until_huge(&host, guest.pid()?, "AnonHugePages", 16)?;
    guest.sh("dd if=/dev/zero of=/tmp/fill bs=1M count=64 2>/dev/null && rm /tmp/fill")?;
    until_huge(&host, guest.pid()?, "AnonHugePages", 64)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// How much of the host's memory a process has, in KiB.
pub fn resident(host: &Host, pid: u32) -> Result<u64, Failure> {
    let status = host.sh(&format!("awk '/^VmRSS/ {{ print $2 }}' /proc/{pid}/status"))?;
    Ok(status.trim().parse().unwrap_or_default())
}

#[test]
fn memory_that_a_guest_frees_goes_back_to_the_host() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(PLATFORM_DMA[0])?;
    let balloon = "--balloon free-page-reporting";
    let mut guest = host.guest(balloon)?;
    let pid = guest.pid()?;
    let before = resident(&host, pid)?;
    guest.sh("dd if=/dev/urandom of=/tmp/fill bs=1M count=64 2>/dev/null")?;
    let full = resident(&host, pid)?;
    assert!(full > before + (56 << 10), "{before} KiB, then {full}");
    guest.sh("rm /tmp/fill")?;
    let freed = full - (48 << 10);
    host.until(&format!("awk '/^VmRSS/ {{ exit $2 >= {freed} }}' /proc/{pid}/status"))?;
    // What it has kept is what it was.
    guest.sh(
        "dd if=/dev/urandom of=/tmp/kept bs=1M count=16 2>/dev/null && \
         md5sum /tmp/kept >/tmp/sum && dd if=/dev/urandom of=/tmp/fill bs=1M count=48 2>/dev/null",
    )?;
    let freed = resident(&host, pid)? - (32 << 10);
    guest.sh("rm /tmp/fill")?;
    host.until(&format!("awk '/^VmRSS/ {{ exit $2 >= {freed} }}' /proc/{pid}/status"))?;
    guest.sh("echo 3 >/proc/sys/vm/drop_caches; md5sum -c /tmp/sum")?;
    assert_eq!(guest.power_off()?, 0);
    let refused = host.run(&format!(
        "strait run --kernel /k/model {balloon} --vfio-platform {}",
        PLATFORM_DMA[0]
    ))?;
    assert!(refused.status == 2 && refused.errors.contains("DMA of its assigned devices"));
    Ok(())
}
