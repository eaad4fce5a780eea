//! InvalidUse uses: each is an error of three parts (what failed, on what, what to do), and the host
//! stays as it was.

use tests::harness::{AMBA_DMA, BACKENDS, Board, Failure, Host, PLATFORM_DMA, TestResult, payload};

/// An invalid use and its error.
struct InvalidUse<'a> {
    /// strait's arguments.
    arguments: &'a str,
    /// Its exit status.
    status: i32,
    /// What the first line says.
    error: &'a [&'a str],
    /// What the help says.
    help: &'a [&'a str],
}

/// What strait might change on the host: drivers, the device's registers, files, machines.
fn state(host: &Host) -> Result<String, Failure> {
    host.sh("for device in /sys/bus/platform/devices/2c*.dma /sys/bus/amba/devices/2c*.dma; do \
             echo $device $(readlink $device/driver) $(cat $device/driver_override); done; \
             agent pl330 0x2c0a0000 status; ls -l /dev/vfio /dev/kvm | cut -c 1-30; \
             ls /sys/kernel/debug/kvm /tmp /k; cat /proc/mounts; \
             cat /sys/module/vfio*/parameters/* 2>/dev/null")
}

impl InvalidUse<'_> {
    /// Does it, and checks the answer and the host.
    fn is_refused_on(&self, host: &Host) -> TestResult {
        self.is_refused_by(host, "strait")
    }

    /// The same with strait run by `program`.
    fn is_refused_by(&self, host: &Host, program: &str) -> TestResult {
        let command = format!("{program} run {}", self.arguments);
        let before = state(host)?;
        let answer = host.run(&command)?;
        assert_eq!(state(host)?, before, "`{command}` changed the host");
        let text = &answer.errors;
        assert_eq!(answer.status, self.status, "`{command}`: {text}");
        assert_eq!(answer.output, "", "`{command}` speaks on standard output");
        let (error, help) = text.split_once("\n  help: ").unwrap_or((text, ""));
        assert!(error.starts_with("error: "), "`{command}`: {text}");
        for (part, wanted) in [(error, self.error), (help, self.help)] {
            for words in wanted {
                assert!(part.contains(words), "`{command}` doesn't say {words:?}: {text}");
            }
        }
        assert!(!help.trim().is_empty(), "`{command}` has no help: {text}");
        Ok(())
    }
}

#[test]
fn unassignable_devices_are_refused() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(PLATFORM_DMA[0])?;
    let [bound, unbound, own] = [PLATFORM_DMA[0], PLATFORM_DMA[1], AMBA_DMA[0]];
    let table: &[(String, &[&str], &[&str])] = &[
        ("2c0f0000.dma".into(), &["no device 2c0f0000.dma"], &["2c0a0000.dma"]),
        ("../../../etc".into(), &["etc"], &["2c0a0000.dma"]),
        (
            own.into(),
            &[own, "its driver is dma-pl330, not vfio-amba"],
            &["strait device bind", own],
        ),
        (
            unbound.into(),
            &[unbound, "bound to no driver", "vfio-platform"],
            &["strait device bind", unbound],
        ),
        (format!("{bound} --vfio-platform {bound}"), &[bound, "twice"], &["once"]),
        (
            format!("{bound} --vfio-platform /sys/bus/platform/devices/{bound}"),
            &[bound, "twice"],
            &["once"],
        ),
    ];
    for (device, error, help) in table {
        let arguments = &format!("--kernel /k/model --vfio-platform {device}");
        InvalidUse { arguments, status: 1, error, help }.is_refused_on(&host)?;
    }
    Ok(())
}

#[test]
fn shared_reserved_and_busy_groups_are_refused() -> TestResult {
    let host = Board::new().file("k/spin", payload::spin()).boot()?;
    let device = PLATFORM_DMA[0];
    host.bind(device)?;
    let group = format!("/sys/kernel/iommu_groups/{}", host.group(device)?);
    let arguments = &format!("--kernel /k/model --vfio-platform {device}");

    // On this board every device has a group of its own: another view of sysfs makes one shared.
    host.sh(&format!(
        "mkdir -p /tmp/shared && ln -s /sys/devices/platform/{device} /tmp/shared/ && \
         ln -s $(readlink -f /sys/bus/amba/devices/{other}) /tmp/shared/ && \
         mount --bind /tmp/shared {group}/devices",
        other = AMBA_DMA[0]
    ))?;
    let error = &[device, "shared with", AMBA_DMA[0], "dma-pl330"];
    InvalidUse { arguments, status: 1, error, help: &["--group", device] }.is_refused_on(&host)?;
    host.sh(&format!("umount {group}/devices"))?;

    // RAM is at 0x40000000.
    host.sh(&format!(
        "echo '0x0000000050000000 0x00000000500fffff direct' >/tmp/reserved && \
         mount --bind /tmp/reserved {group}/reserved_regions"
    ))?;
    let error = &["0x50000000", "0x500fffff"];
    let larger = &format!("{arguments} --memory 1G");
    InvalidUse { arguments: larger, status: 1, error, help: &["memory"] }.is_refused_on(&host)?;
    host.sh(&format!("umount {group}/reserved_regions"))?;

    // Whichever way the one has it, and whichever the other would.
    for theirs in BACKENDS {
        let other = host.strait(&format!(
            "run --kernel /k/spin --vfio-platform {device} --iommu {theirs} --stats /tmp/stats"
        ))?;
        host.until("[ -n \"$(ls /sys/kernel/debug/kvm | grep -- -)\" ]")?;
        host.until("grep -q vfio-irq /proc/interrupts")?;
        for ours in BACKENDS {
            let arguments = &format!("{arguments} --iommu {ours}");
            let error = &[device, "another process uses"];
            let help = &["fuser", "/dev/vfio/devices/vfio"];
            InvalidUse { arguments, status: 1, error, help }.is_refused_on(&host)?;
        }
        other.signal(15)?;
        assert_eq!(other.exit_status()?, 128 + 15);
    }
    Ok(())
}

#[test]
fn missing_permissions_are_named() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    let device = PLATFORM_DMA[0];
    host.bind(device)?;
    let node = format!("/dev/vfio/{}", host.group(device)?);
    let arguments = &format!("--kernel /k/off --vfio-platform {device}");

    host.sh("chmod 600 /dev/kvm")?;
    let error = &["/dev/kvm"];
    InvalidUse { arguments: "--kernel /k/off", status: 1, error, help: &["/dev/kvm"] }
        .is_refused_by(&host, "agent as 1000 strait")?;
    host.sh("chmod 666 /dev/kvm")?;

    let permit = format!("strait device bind --owner 1000 {device}");
    let error = &[device, &node, "1000"];
    InvalidUse { arguments, status: 1, error, help: &[&permit, "udevadm control --reload"] }
        .is_refused_by(&host, "agent as 1000 strait")?;
    host.sh(&format!("{permit} && chmod 600 /dev/vfio/vfio"))?;
    let container = &format!("{arguments} --iommu container");
    let error = &[device, "user 1000 may not open /dev/vfio/vfio, which"];
    InvalidUse { arguments: container, status: 1, error, help: &["chmod 666 /dev/vfio/vfio"] }
        .is_refused_by(&host, "agent as 1000 strait")?;
    host.sh("chmod 666 /dev/vfio/vfio")?;

    let error = &["RLIMIT_MEMLOCK"];
    InvalidUse { arguments, status: 1, error, help: &["ulimit -l"] }
        .is_refused_by(&host, "agent as 1000 memlock=8388608 strait")?;
    // With what the helps say to do, it works.
    host.sh(&format!("agent as 1000 memlock=1073741824 strait run {arguments}"))?;

    // The same through iommufd, for which that permits nothing.
    let arguments = &format!("{arguments} --iommu iommufd");
    host.sh("chown 0 /dev/vfio/devices/vfio0")?;
    let error = &[device, "user 1000 may not open", "/dev/iommu", "/dev/vfio/devices/vfio0"];
    InvalidUse { arguments, status: 1, error, help: &[&permit, "chmod 666 /dev/iommu"] }
        .is_refused_by(&host, "agent as 1000 strait")?;
    host.sh(&format!("{permit} && chmod 666 /dev/iommu"))?;
    let error = &["RLIMIT_MEMLOCK"];
    InvalidUse { arguments, status: 1, error, help: &["ulimit -l"] }
        .is_refused_by(&host, "agent as 1000 memlock=8388608 strait")?;
    host.sh(&format!("agent as 1000 memlock=1073741824 strait run {arguments}"))?;
    Ok(())
}

#[test]
fn missing_iommu_interfaces_are_named() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    let device = PLATFORM_DMA[0];
    host.bind(device)?;
    let arguments = &format!("--kernel /k/off --vfio-platform {device}");
    let cases: [(&str, &str, &str); 4] = [
        ("iommufd", "/dev/iommu", "CONFIG_IOMMUFD"),
        ("iommufd", "/dev/vfio/devices/vfio0", "mknod /dev/vfio/devices/vfio0 c "),
        ("container", "/dev/vfio/vfio", "CONFIG_VFIO_CONTAINER"),
        ("container", &format!("/dev/vfio/{}", host.group(device)?), "mknod /dev/vfio/"),
    ];
    for (backend, node, help) in cases {
        host.sh(&format!("mv {node} /dev/away"))?;
        let asked = &format!("{arguments} --iommu {backend}");
        let error = &[device, "there is no", node];
        InvalidUse { arguments: asked, status: 1, error, help: &[help] }.is_refused_on(&host)?;
        // Who doesn't ask gets the other.
        host.sh(&format!("strait run {arguments} && mv /dev/away {node}"))?;
    }
    Ok(())
}

#[test]
fn forbidding_kernel_parameters_are_named() -> TestResult {
    let device = PLATFORM_DMA[0];
    let arguments = &format!("--kernel /k/off --vfio-platform {device}");
    let board = Board::new().file("k/off", payload::power_off());

    let host = board
        .clone()
        .param("vfio_iommu_type1.allow_unsafe_interrupts=0")
        .param("iommufd.allow_unsafe_interrupts=0")
        .boot()?;
    host.bind(device)?;
    for (backend, module) in BACKENDS.iter().zip(["iommufd", "vfio_iommu_type1"]) {
        let arguments = &format!("{arguments} --iommu {backend}");
        let parameter = &format!("/sys/module/{module}/parameters/allow_unsafe_interrupts");
        let help = &["echo Y | sudo tee ", parameter];
        let error = &[device, "interrupts", module];
        InvalidUse { arguments, status: 1, error, help }.is_refused_on(&host)?;
        host.sh(&format!("echo Y > {parameter} && strait run {arguments}"))?;
    }
    drop(host);

    let host = board.param("vfio_platform.reset_required=1").boot()?;
    host.sh(&format!(
        "cd /sys/bus/platform; echo vfio-platform > devices/{device}/driver_override; \
         echo {device} > drivers_probe; [ ! -e devices/{device}/driver ]"
    ))?;
    let help = &["vfio_platform.reset_required=0"];
    InvalidUse { arguments, status: 1, error: &[device, "reset"], help }.is_refused_on(&host)?;
    // On the AMBA bus no reset is required.
    host.bind(AMBA_DMA[0])?;
    host.sh(&format!("strait run --kernel /k/off --vfio-platform {}", AMBA_DMA[0]))?;
    Ok(())
}

#[test]
fn unreachable_vfio_user_servers_are_refused() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    let mut server = host.start("exec agent vfio-user serve /tmp/device 2>&1")?;
    server.wait_for("serving")?;
    let stale = host.start("exec agent vfio-user serve /tmp/stale")?;
    host.until("[ -S /tmp/stale ]")?;
    stale.signal(9)?;
    stale.exit_status()?;
    host.sh("touch /tmp/file && chmod 700 /tmp/device")?;
    let table: &[(&str, i32, &[&str], &[&str])] = &[
        ("/tmp/missing", 1, &["no server can be reached at /tmp/missing"], &["start the server"]),
        ("/tmp/file", 1, &["/tmp/file is no socket"], &["socket on which the server listens"]),
        ("/tmp/stale", 1, &["/tmp/stale", "refused"], &["rm /tmp/stale"]),
        ("/tmp/device,addr=20.0", 2, &["--vfio-user", "20.0"], &["strait run --help"]),
        ("/tmp/device,colour=red", 2, &["--vfio-user", "colour"], &["strait run --help"]),
        ("/tmp/device --vfio-user /tmp/../tmp/device", 2, &["twice"], &["a server for each"]),
    ];
    for &(server, status, error, help) in table {
        let arguments = &format!("--kernel /k/off --vfio-user {server}");
        InvalidUse { arguments, status, error, help }.is_refused_on(&host)?;
    }
    let arguments = "--kernel /k/off --vfio-user /tmp/device";
    let (error, help) = (&["/tmp/device", "Permission denied"], &["ls -l /tmp/device", "setfacl"]);
    InvalidUse { arguments, status: 1, error, help }
        .is_refused_by(&host, "agent as 1000 strait")?;
    // With permission it takes no privilege.
    host.sh(&format!("chmod 777 /tmp/device /dev/kvm && agent as 1000 strait run {arguments}"))?;
    Ok(())
}

#[test]
fn unusable_kernels_and_initrds_are_refused() -> TestResult {
    let host = Board::new().stock().file("k/off", payload::power_off()).boot()?;
    // An x86 kernel has 0xaa55 at 0x1fe and "HdrS" at 0x202 (its boot protocol's header).
    host.sh(
        "cd /tmp; touch empty; head -c 20000000 /k/stock >truncated; head -c 5000000 /k/model >half; head -c 40 /k/model >short; \
         { head -c 510 /dev/zero; printf '\\125\\252\\353\\152HdrS'; head -c 9000 /dev/zero; } >x86; \
         echo '#!/bin/sh' >script; gzip -c script >script.gz; gzip -c /bin/busybox | head -c 99999 >early.gz; \
         cp /k/guest.cpio large; truncate -s 300M large; cp /bin/agent elf; \
         gzip -c /k/guest.cpio | head -c 300001 >cut.gz",
    )?;
    let table: &[(&str, i32, &[&str], &[&str])] = &[
        ("--kernel /tmp/missing", 1, &["/tmp/missing"], &[]),
        ("--kernel /tmp", 1, &["/tmp", "directory"], &[]),
        ("--kernel /tmp/empty", 1, &["/tmp/empty", "empty"], &[]),
        ("--kernel /tmp/short", 1, &["/tmp/short", "too short"], &[]),
        ("--kernel /tmp/truncated", 1, &["/tmp/truncated", "truncated"], &[]),
        ("--kernel /tmp/half", 1, &["/tmp/half", "truncated"], &[]),
        ("--kernel /tmp/x86", 1, &["/tmp/x86", "x86"], &[]),
        ("--kernel /tmp/early.gz", 1, &["/tmp/early.gz", "gzip"], &[]),
        ("--kernel /tmp/elf", 1, &["/tmp/elf", "has no RAM"], &["link it to"]),
        ("--kernel /k/off --initrd /tmp/missing", 1, &["/tmp/missing"], &[]),
        ("--kernel /k/off --initrd /tmp", 1, &["/tmp", "directory"], &[]),
        ("--kernel /k/off --initrd /tmp/empty", 1, &["/tmp/empty", "empty"], &[]),
        (
            "--kernel /k/off --initrd /k/model",
            1,
            &["/k/model", "arm64 Linux kernel"],
            &["--kernel /k/model"],
        ),
        ("--kernel /k/off --initrd /tmp/cut.gz", 1, &["/tmp/cut.gz", "cut off", "gzip"], &[]),
        (
            "--kernel /k/off --initrd /tmp/large --memory 256M",
            1,
            &["300 MiB", "256 MiB"],
            &["memory"],
        ),
        ("--kernel /k/model --memory 8M", 1, &["/k/model"], &["memory"]),
    ];
    for &(arguments, status, error, help) in table {
        InvalidUse { arguments, status, error, help }.is_refused_on(&host)?;
    }
    Ok(())
}

#[test]
fn invalid_options_are_refused() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    let table: &[(&str, i32, &[&str], &[&str])] = &[
        ("--memory 0M", 2, &["--memory", "0"], &["--memory"]),
        ("--memory 0", 2, &["--memory"], &[]),
        ("--memory lots", 2, &["--memory", "lots"], &[]),
        ("--memory 64T", 1, &["65536G"], &["--memory"]),
        ("--memory 99999999999999999999G", 2, &["--memory"], &[]),
        ("--cpus 0", 2, &["--cpus"], &[]),
        ("--cpus 1000", 2, &["--cpus", "1000"], &["--cpus"]),
        ("--timeout never", 2, &["--timeout"], &[]),
        ("--vfio-platform ''", 2, &["--vfio-platform"], &[]),
        ("--colour red", 2, &["--colour"], &[]),
        ("--memory 64M --memory 1G", 2, &["--memory", "twice", "64M", "1G"], &["--help"]),
        ("--stats /nowhere/stats", 1, &["/nowhere/stats"], &["--stats"]),
        ("--dump-dtb /nowhere/dtb", 1, &["/nowhere/dtb"], &["--dump-dtb"]),
    ];
    for &(arguments, status, error, help) in table {
        let arguments = &format!("--kernel /k/off {arguments}");
        InvalidUse { arguments, status, error, help }.is_refused_on(&host)?;
    }
    let arguments = "";
    InvalidUse { arguments, status: 2, error: &["kernel"], help: &["--kernel"] }
        .is_refused_on(&host)?;
    // More than the host can lock for DMA, though not more than it has.
    host.bind(PLATFORM_DMA[0])?;
    let arguments = &format!("--kernel /k/off --memory 32G --vfio-platform {}", PLATFORM_DMA[0]);
    InvalidUse { arguments, status: 1, error: &["32G"], help: &["--memory"] }
        .is_refused_on(&host)?;
    Ok(())
}
