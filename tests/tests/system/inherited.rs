//! Devices passed as descriptors: strait needs no permission over anything in /dev/vfio.

use serde_json::Value;
use tests::harness::{
    BACKENDS, Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, SteadyState, TestResult,
    payload,
};

/// What user 1000 is given: the device's file and an iommufd, both opened by root.
const PASSED: &str = "--vfio-platform fd=7 --iommufd-fd 8 7<>/dev/vfio/devices/vfio0 8<>/dev/iommu";

/// A host with a device bound, and nothing of /dev/vfio or /dev/iommu left to anybody but root.
fn host() -> Result<Host, Failure> {
    host_of(Board::new().file("k/off", payload::power_off()), PLATFORM_DMA[0])
}

/// The same of this board and device.
fn host_of(board: Board, device: &str) -> Result<Host, Failure> {
    let host = board.boot()?;
    host.bind(device)?;
    host.sh(
        "chmod 700 /dev/vfio && chmod 600 /dev/iommu && chmod 666 /dev/kvm && chmod 1777 /tmp",
    )?;
    let nothing =
        host.run("agent as 1000 sh -c ': <>/dev/iommu'; agent as 1000 sh -c 'ls /dev/vfio'")?;
    assert_eq!(nothing.errors.matches("denied").count(), 2, "{}", nothing.errors);
    Ok(host)
}

/// strait by user 1000, who may pin so many KiB.
fn as_user(kib: u64) -> String {
    format!("agent as 1000 memlock={} strait", kib << 10)
}

/// A guest of user 1000 with the first device and as much memory as may be pinned.
fn guest(host: &Host) -> Result<Guest, Failure> {
    guest_with(host, PASSED)
}

/// The same with what these arguments pass.
fn guest_with(host: &Host, passed: &str) -> Result<Guest, Failure> {
    let program = as_user(256 << 10);
    host.launch(
        &Launch::model().memory("256M").program(&program).with("--stats /tmp/stats").with(passed),
    )
}

#[test]
fn an_unprivileged_user_assigns_a_platform_device() -> TestResult {
    let host = host()?;
    let mut guest = guest(&host)?;
    assert_eq!(host.sh(&format!("stat -c %u /proc/{}", guest.pid()?))?, "1000\n");
    let capabilities = host.sh(&format!("grep CapEff /proc/{}/status", guest.pid()?))?;
    assert!(capabilities.contains("0000000000000000"), "{capabilities}");

    let test = DmaTest::default();
    let steady = SteadyState::measure(&host, &mut guest, DmaTest::LONG)?;
    assert!(steady.bytes > 200 * 4096, "{} bytes", steady.bytes);
    assert_eq!(
        steady.costs.exits[0].get("mmio_exit_user"),
        steady.costs.exits[1].get("mmio_exit_user")
    );
    assert_eq!(steady.costs.host_interrupts, steady.lines.iter().sum::<u64>());
    assert_eq!(guest.power_off()?, 0);
    let stats = host.sh("cat /tmp/stats")?;
    let stats: Value = serde_json::from_str(&stats).unwrap_or_else(|e| panic!("{e}: {stats}"));
    assert_eq!(stats["iommu"], "iommufd");
    // Nothing is left of it: root has the device by either way.
    for backend in BACKENDS {
        let arguments = format!("--vfio-platform {} --iommu {backend}", PLATFORM_DMA[0]);
        let mut guest = host.guest(&arguments)?;
        test.pass(&mut guest)?;
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

#[test]
fn an_unprivileged_user_assigns_a_pci_device() -> TestResult {
    let board = Board::new().device("edu,addr=7,dma_mask=0xffffffffffff");
    let host = host_of(board, "0000:00:07.0")?;
    let passed = PASSED.replace("platform", "pci");
    let mut guest = guest_with(&host, &passed)?;
    assert_eq!(host.sh(&format!("stat -c %u /proc/{}", guest.pid()?))?, "1000\n");
    for by in ["msi", "line"] {
        guest.sh(&format!("agent edu 0000:00:01.0 {by} 20"))?;
    }
    assert_eq!(guest.power_off()?, 0);
    // A device of one bus is none of another's option.
    let command = format!("strait run --kernel /k/model {PASSED}");
    let (error, help) = refusal(&host, &command, 1)?;
    assert!(error.contains("0000:00:07.0") && help.contains("--vfio-pci"), "{error}: {help}");
    Ok(())
}

#[test]
fn the_host_takes_back_a_function_that_was_passed() -> TestResult {
    const EDU: &str = "0000:00:07.0";
    let host = host_of(Board::new().device("edu,addr=7,dma_mask=0xffffffffffff"), EDU)?;
    let passed = PASSED.replace("--vfio-platform fd=7", "--vfio-pci fd=7,hotplug=on");
    // With a process of its own for the guest: neither keeps the file open.
    let launch = Launch::model().with("--stats /tmp/stats").with(&passed);
    let mut guest = host.launch(&launch)?;
    guest.sh("agent edu 0000:01:00.0 msi 5")?;
    host.sh("! ls -l /proc/[0-9]*/fd/7 /proc/[0-9]*/fd/8 2>/dev/null | grep -e vfio -e iommu")?;
    host.sh(&format!("echo {EDU} >/sys/bus/pci/drivers/vfio-pci/unbind"))?;
    guest.process().wait_for(&format!("{EDU}: the host takes it back"))?;
    guest.sh("true")?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_device_of_a_killed_run_with_a_passed_iommufd_is_given_back() -> TestResult {
    let host = Board::new().boot()?;
    let device = PLATFORM_DMA[0];
    let passed = format!("--bind --vfio-platform {device} --iommufd-fd 8 8<>/dev/iommu");
    let mut guest = host.guest(&passed)?;
    DmaTest::default().pass(&mut guest)?;
    host.sh("kill -9 $(pidof strait | cut -d ' ' -f 1)")?;
    assert_eq!(guest.exit_status()?, 128 + 9);
    // The parent has stopped it by an iommufd of its own.
    let said = guest.process().output();
    assert!(!said.contains("stays bound"), "{said}");
    host.sh(&format!("[ ! -e /sys/bus/platform/devices/{device}/driver ]"))?;
    Ok(())
}

/// The error and the help of running strait in this way.
fn refusal(host: &Host, command: &str, status: i32) -> Result<(String, String), Failure> {
    let answer = host.run(command)?;
    assert_eq!((answer.status, answer.output.as_str()), (status, ""), "{}", answer.errors);
    // On a busy host it may say before how far it is.
    let said = answer.errors.find("error: ").and_then(|at| answer.errors.get(at..));
    let said = said.unwrap_or_default();
    let (error, help) = said.split_once("\n  help: ").unwrap_or((said, ""));
    Ok((error.to_owned(), help.trim_end().to_owned()))
}

#[test]
fn an_insufficient_locked_memory_limit_is_refused() -> TestResult {
    let host = host()?;
    let run = |kib| format!("{} run --kernel /k/off --memory 256M {PASSED}", as_user(kib));
    let (error, help) = refusal(&host, &run(262_140), 1)?;
    assert_eq!(
        error,
        "error: the guest's RAM (262144 KiB) can't be pinned for DMA: this process may pin 262140 \
         KiB (RLIMIT_MEMLOCK)"
    );
    assert!(help.starts_with("ulimit -l 262144 "), "{help}");
    host.sh(&run(262_144))?;

    // iommufd counts what all processes of a user have pinned: one guest fits, two don't.
    host.bind(PLATFORM_DMA[1])?;
    let first = guest(&host)?;
    let second = run(300 << 10).replace("vfio0", "vfio1");
    let (error, help) = refusal(&host, &second, 1)?;
    assert_eq!(
        error,
        "error: the guest's RAM (262144 KiB) can't be pinned for DMA: user 1000 may pin 307200 KiB \
         in all of their processes (RLIMIT_MEMLOCK), and others have pinned 262144 KiB"
    );
    assert!(help.starts_with("ulimit -l 524288 "), "{help}");
    host.sh(&second.replace(&as_user(300 << 10), &as_user(512 << 10)))?;
    assert_eq!(first.power_off()?, 0);
    host.sh(&second)?;
    Ok(())
}

#[test]
fn unsuitable_descriptors_are_refused() -> TestResult {
    let host = host()?;
    host.bind(PLATFORM_DMA[1])?;
    let device = "/dev/vfio/devices/vfio0";
    let group = format!("/dev/vfio/{}", host.group(PLATFORM_DMA[0])?);
    let name = PLATFORM_DMA[0];
    // strait's arguments and redirections, its exit status, what the error and the help say.
    type Case<'a> = (String, i32, &'a str, &'a str);
    let cases: [Case<'_>; 11] = [
        ("--vfio-platform fd=7".into(), 2, "descriptor 7 isn't open", "--help"),
        ("--vfio-platform fd=x".into(), 2, "`x`", "--help"),
        (
            "--vfio-platform fd=0 0<>/dev/null".into(),
            1,
            "descriptor 0 is no file of a VFIO device",
            device,
        ),
        (format!("--vfio-platform fd=7 7<>{group}"), 1, "7 is no file of a VFIO device", "7<>"),
        ("--vfio-platform fd=7 7<>/tmp/x".into(), 1, "7 is no file of a VFIO device", "7<>"),
        (
            format!("--vfio-platform fd=7 7<{device}"),
            1,
            "isn't open for reading and writing",
            "7<>",
        ),
        (
            format!("--vfio-platform fd=7 --iommufd-fd 7 7<>{device}"),
            1,
            "descriptor 7 is no iommufd",
            "7<>/dev/iommu",
        ),
        (
            format!("--vfio-platform fd=7 --vfio-platform fd=8 7<>{device} 8<>{device}"),
            1,
            "twice",
            "once",
        ),
        (format!("--vfio-platform fd=7 --vfio-platform {name} 7<>{device}"), 1, "twice", "once"),
        (format!("--vfio-platform fd=7 --iommu container 7<>{device}"), 2, "--iommu", "iommufd"),
        (format!("--vfio-platform fd=7 --bind 7<>{device}"), 2, "--bind", "strait device bind"),
    ];
    for (arguments, status, error, help) in cases {
        let command = format!("strait run --kernel /k/off {arguments}");
        let (said, helped) = refusal(&host, &command, status)?;
        assert!(said.contains(error) && helped.contains(help), "{command}: {said}: {helped}");
    }
    // The iommufd is strait's to open where none is passed, and a named device stands beside.
    let other = PLATFORM_DMA[1];
    let both = format!("--vfio-platform fd=7 --vfio-platform {other} 7<>{device}");
    host.sh(&format!("strait run --kernel /k/off {both}"))?;
    Ok(())
}

#[test]
fn a_descriptor_in_use_is_refused() -> TestResult {
    let host =
        Board::new().file("k/off", payload::power_off()).file("k/spin", payload::spin()).boot()?;
    host.bind(PLATFORM_DMA[0])?;
    let device = "/dev/vfio/devices/vfio0";
    let run = "strait run --vfio-platform fd=7 --kernel";
    // Straits in one shell with one descriptor; the shell's stays open, and bound, to its end.
    let mut holder = host.start(&format!(
        "exec 7<>{device} 2>&1; {run} /k/spin & read line; {run} /k/off; echo refused $?; \
         read line; kill -TERM $!; wait $!; echo ended $?; {run} /k/off; echo refused $?"
    ))?;
    host.until("grep -q vfio-irq /proc/interrupts")?;
    holder.send("\n")?;
    let bound = "can't be assigned: descriptor 7 is bound to an iommufd already";
    holder.wait_for(bound)?;
    holder.wait_for("refused 1")?;
    // Another file of the same device is refused by the kernel.
    let (error, help) = refusal(&host, &format!("{run} /k/off 7<>{device}"), 1)?;
    assert!(error.contains(&format!("another process uses {device}")), "{error}");
    assert!(help.contains("fuser"), "{help}");
    holder.send("\n")?;
    holder.wait_for("ended 143")?;
    holder.wait_for(bound)?;
    holder.wait_for("refused 1")?;
    holder.exit_status()?;
    // A file opened anew is nobody's.
    host.sh(&format!("{run} /k/off 7<>{device}"))?;
    Ok(())
}
