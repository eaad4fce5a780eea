//! `strait check`: a host as it should be, and one in which each thing is broken in turn.

use std::fs;

use serde_json::Value;
use tests::harness::{Board, Failure, Host, PLATFORM_DMA, TestResult, payload};
use tests::setup::workspace;

/// The findings, after looking at the exit status; `program` is how strait is run.
pub fn check(host: &Host, program: &str, arguments: &str) -> Result<Value, Failure> {
    let answer = host.run(&format!("{program} check --json {arguments}"))?;
    let diagnosis: Value = serde_json::from_str(&answer.output)
        .unwrap_or_else(|e| panic!("{e}: {}{}", answer.output, answer.errors));
    assert_eq!(diagnosis["assignable"] == true, answer.status == 0, "{diagnosis}");
    Ok(diagnosis)
}

/// The subjects that aren't fine, with their levels.
fn complaints(diagnosis: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let findings = diagnosis["findings"].as_array().into_iter().flatten();
    findings
        .filter(|finding| finding["level"] != "fine")
        .inspect(|finding| assert!(finding["help"].is_string(), "no help: {finding}"))
        .map(|finding| (text(&finding["subject"]), text(&finding["level"])))
        .collect()
}

/// The kinds of device that can be assigned.
pub fn assignable(diagnosis: &Value) -> Vec<&str> {
    let kinds = diagnosis["kinds"].as_array().into_iter().flatten();
    let can = kinds.filter(|kind| kind["assignable"] == true);
    can.filter_map(|kind| kind["kind"].as_str()).collect()
}

/// A subject, its level, and what the help says.
pub type Complaint<'a> = (&'a str, &'a str, &'a str);

/// Checks that exactly this is complained of, and that the help says so.
pub fn complains(diagnosis: &Value, expected: &[Complaint<'_>]) {
    let wanted: Vec<(String, String)> =
        expected.iter().map(|(s, l, _)| ((*s).to_owned(), (*l).to_owned())).collect();
    assert_eq!(complaints(diagnosis), wanted, "{diagnosis:#}");
    for (subject, _, help) in expected {
        let findings = diagnosis["findings"].as_array().into_iter().flatten();
        let mut of_it = findings.filter(|finding| finding["subject"] == *subject);
        assert!(
            of_it.any(|f| f["help"].as_str().is_some_and(|text| text.contains(help))),
            "{subject} doesn't help with {help}: {diagnosis:#}"
        );
    }
}

#[test]
fn a_complete_host_has_no_complaints() -> TestResult {
    let host = Board::new().boot()?;
    let diagnosis = check(&host, "strait", "")?;
    complains(&diagnosis, &[]);
    let findings = diagnosis["findings"].as_array().map_or(0, Vec::len);
    assert!(findings >= 14, "{diagnosis:#}");
    let text = host.sh("strait check")?;
    assert!(text.contains("GICv3") && text.contains("a device can be assigned"), "{text}");
    for works in ["works: /dev/iommu, allow", "works: /dev/vfio/vfio, type 1, allow"] {
        assert!(text.contains(works), "{works}: {text}");
    }
    // What it promises holds.
    host.sh(&format!("strait device bind {}", PLATFORM_DMA[0]))?;
    host.sh(&format!(
        "strait run --kernel /k/model --dry-run --vfio-platform {}",
        PLATFORM_DMA[0]
    ))?;
    drop(host);
    let old = Board::new().gic(2).boot()?;
    assert!(old.sh("strait check")?.contains("GICv2"));
    // A GICv2m frame doesn't isolate the messages of PCI functions.
    let allow = ["iommufd", "vfio_iommu_type1"]
        .map(|module| format!("/sys/module/{module}/parameters/allow_unsafe_interrupts"));
    allow.iter().try_for_each(|flag| old.sh(&format!("echo N > {flag}")).map(drop))?;
    let [iommufd, container] = &allow;
    let expected = [("iommufd", "blocks", &**iommufd), ("VFIO containers", "blocks", container)];
    complains(&check(&old, "strait", "")?, &expected);
    Ok(())
}

#[test]
fn missing_kernel_options_are_named() -> TestResult {
    let missing = |initcall: &str| Board::new().param(&format!("initcall_blacklist={initcall}"));
    let cases: [(Board, &[Complaint<'_>]); 8] = [
        (Board::new().param("kvm-arm.mode=none"), &[("KVM", "blocks", "CONFIG_KVM")]),
        (
            missing("vfio_platform_driver_init"),
            &[("vfio-platform", "degraded", "CONFIG_VFIO_PLATFORM")],
        ),
        (missing("vfio_amba_driver_init"), &[("vfio-amba", "degraded", "CONFIG_VFIO_AMBA")]),
        (missing("vfio_pci_init"), &[("vfio-pci", "degraded", "CONFIG_VFIO_PCI")]),
        (
            missing("vfio_platform_driver_init,vfio_amba_driver_init,vfio_pci_init"),
            &[
                ("vfio-platform", "blocks", "CONFIG_VFIO_PLATFORM"),
                ("vfio-amba", "blocks", "CONFIG_VFIO_AMBA"),
                ("vfio-pci", "blocks", "CONFIG_VFIO_PCI"),
            ],
        ),
        // One way to the IOMMU is enough.
        (missing("vfio_iommu_type1_init"), &[]),
        (missing("iommufd_init"), &[]),
        (
            missing("vfio_iommu_type1_init,iommufd_init"),
            &[
                ("iommufd", "blocks", "CONFIG_IOMMUFD"),
                ("VFIO containers", "blocks", "CONFIG_VFIO_IOMMU_TYPE1"),
            ],
        ),
    ];
    for (board, expected) in cases {
        let host = board.boot()?;
        complains(&check(&host, "strait", "")?, expected);
    }
    Ok(())
}

#[test]
fn forbidding_kernel_parameters_are_named() -> TestResult {
    let module = |name| format!("/sys/module/{name}/parameters/allow_unsafe_interrupts");
    let [iommufd, type1] = ["iommufd", "vfio_iommu_type1"].map(module);
    let host = Board::new()
        .param("iommufd.allow_unsafe_interrupts=0")
        .param("vfio_iommu_type1.allow_unsafe_interrupts=0")
        .boot()?;
    let both: &[_] =
        &[("iommufd", "degraded", &*iommufd), ("VFIO containers", "degraded", &*type1)];
    let diagnosis = check(&host, "strait", "")?;
    complains(&diagnosis, both);
    // The ITS isolates the messages of PCI functions.
    assert_eq!(assignable(&diagnosis), ["pci", "vfio-user"], "{diagnosis:#}");
    // What either says to do mends it, and what it promises holds.
    host.bind(PLATFORM_DMA[0])?;
    for (parameter, backend) in [(type1, "container"), (iommufd, "iommufd")] {
        host.sh(&format!("echo Y > {parameter}"))?;
        complains(&check(&host, "strait", "")?, &[]);
        let run = format!("strait run --kernel /k/model --vfio-platform {}", PLATFORM_DMA[0]);
        let plan = host.sh(&format!("{run} --dry-run"))?;
        assert!(plan.contains(&format!("IOMMU: {backend}")), "{plan}");
        host.sh(&format!("echo N > {parameter}"))?;
    }
    drop(host);

    let host = Board::new().param("vfio_platform.reset_required=1").boot()?;
    let help = "vfio_platform.reset_required=0";
    let diagnosis = check(&host, "strait", "")?;
    complains(&diagnosis, &[("reset_required", "degraded", help)]);
    // vfio-amba and vfio-pci don't ask for one.
    assert_eq!(assignable(&diagnosis), ["amba", "pci", "vfio-user"], "{diagnosis:#}");
    drop(host);
    let host = Board::new()
        .param("vfio_platform.reset_required=1")
        .param("initcall_blacklist=vfio_amba_driver_init,vfio_pci_init")
        .boot()?;
    let diagnosis = check(&host, "strait", "")?;
    let drivers = [("vfio-amba", "blocks", "CONFIG"), ("vfio-pci", "blocks", "CONFIG")];
    complains(&diagnosis, &[&drivers[..], &[("reset_required", "blocks", help)]].concat());
    assert_eq!(assignable(&diagnosis), ["vfio-user"], "{diagnosis:#}");
    Ok(())
}

/// As Debian's kernels are: PCI functions are all that can be assigned.
#[test]
fn a_host_with_debians_options_assigns_pci_functions() -> TestResult {
    let missing = "vfio_platform_driver_init,vfio_amba_driver_init,iommufd_init";
    let host = Board::new()
        .param(&format!("initcall_blacklist={missing}"))
        .param("vfio_iommu_type1.allow_unsafe_interrupts=0")
        .device("edu,addr=5")
        .boot()?;
    let drivers = [("vfio-platform", "degraded", "CONFIG"), ("vfio-amba", "degraded", "CONFIG")];
    // Either would do for those, once mended.
    let ways = [
        ("iommufd", "degraded", "CONFIG_IOMMUFD"),
        ("VFIO containers", "degraded", "allow_unsafe_interrupts"),
    ];
    let with_ways = |others: &[Complaint<'static>]| [&drivers[..], &ways, others].concat();
    let diagnosis = check(&host, "strait", "")?;
    complains(&diagnosis, &with_ways(&[]));
    assert_eq!(assignable(&diagnosis), ["pci", "vfio-user"], "{diagnosis:#}");
    let text = host.sh("strait check")?;
    assert!(text.contains("no device is bound"), "{text}");

    // What it promises holds.
    host.sh("strait device bind 00:05.0")?;
    host.sh("strait run --kernel /k/model --dry-run --vfio-pci 00:05.0")?;
    let file = format!("/dev/vfio/{}", host.group("0000:00:05.0")?);
    let text = host.sh("strait check")?;
    assert!(text.contains(&format!("{file} (0000:00:05.0)")), "{text}");
    // And another's files are checked.
    let person = "agent as 1000 memlock=1073741824 strait";
    host.sh("chmod 666 /dev/kvm /dev/vfio/vfio")?;
    let closed = check(&host, person, "")?;
    let blocks = |complaint: &Complaint<'static>| (complaint.0, "blocks", complaint.2);
    let mut expected = with_ways(&[("VFIO devices", "blocks", "udev")]);
    expected.iter_mut().for_each(|complaint| *complaint = blocks(complaint));
    complains(&closed, &expected);
    host.sh(&format!("chown 1000 {file}"))?;
    complains(&check(&host, person, "")?, &with_ways(&[]));
    Ok(())
}

#[test]
fn a_missing_iommu_is_named() -> TestResult {
    let host = Board::new().boot()?;
    host.sh(
        "mount -t tmpfs none /sys/class/iommu && mount -t tmpfs none /sys/kernel/iommu_groups",
    )?;
    complains(&check(&host, "strait", "")?, &[("IOMMU", "blocks", "SMMU")]);
    Ok(())
}

#[test]
fn missing_permissions_are_named() -> TestResult {
    let host = Board::new().boot()?;
    host.sh("chmod 600 /dev/kvm /dev/vfio/vfio /dev/iommu")?;
    let person = "agent as 1000 memlock=8388608 strait";
    complains(
        &check(&host, person, "")?,
        &[
            ("KVM", "blocks", "/dev/kvm"),
            ("iommufd", "blocks", "/dev/iommu"),
            ("VFIO containers", "blocks", "/dev/vfio/vfio"),
            ("locked memory", "blocks", "ulimit -l"),
        ],
    );
    host.sh("chmod 666 /dev/kvm /dev/vfio/vfio")?;
    complains(&check(&host, person, "--memory 8M")?, &[]);

    // A device that is bound, and belongs to root.
    host.sh(&format!("strait device bind {}", PLATFORM_DMA[0]))?;
    let person = "agent as 1000 memlock=1073741824 strait";
    complains(&check(&host, person, "")?, &[("VFIO devices", "blocks", "udev")]);
    host.sh(&format!("strait device bind {}", PLATFORM_DMA[1]))?;
    host.sh(&format!("chown 1000 /dev/vfio/{}", host.group(PLATFORM_DMA[1])?))?;
    complains(&check(&host, person, "")?, &[("VFIO devices", "degraded", "udev")]);
    // Its own file is enough where iommufd may be used.
    host.sh("chmod 666 /dev/iommu && chmod 600 /dev/vfio/vfio")?;
    complains(&check(&host, person, "")?, &[("VFIO devices", "blocks", "vfio-dev")]);
    host.sh("chown 1000 /dev/vfio/devices/*")?;
    complains(&check(&host, person, "")?, &[]);

    // The example of udev's rules permits all of it to a group.
    host.sh("chown -R 0 /dev/vfio && chmod 600 /dev/kvm /dev/iommu")?;
    apply_udev_rules(&host, &fs::read_to_string(workspace::root().join(RULES)).expect("rules"))?;
    complains(&check(&host, person, "")?, &[]);
    host.sh(&format!(
        "{person} run --kernel /k/model --dry-run --vfio-platform {}",
        PLATFORM_DMA[0]
    ))?;
    Ok(())
}

const RULES: &str = "resources/examples/60-strait.rules";

/// Does what rules of udev say (udev(7)) to the devices that the host has, with 1000 for any group.
/// They match by subsystem and name, and set group and mode.
fn apply_udev_rules(host: &Host, rules: &str) -> TestResult {
    for rule in rules.lines().filter(|line| !line.starts_with('#')) {
        let (mut subsystem, mut kernel, mut command) = ("", "*", String::new());
        for part in rule.split(", ") {
            let (key, value) = part.split_once('=').expect("a key and a value");
            match (key, value.trim_matches(['=', '"'])) {
                ("SUBSYSTEM", value) => subsystem = value,
                ("KERNEL", value) => kernel = value,
                ("GROUP", _) => command += "chgrp 1000 $node && ",
                ("MODE", mode) => command += &format!("chmod {mode} $node && "),
                _ => panic!("{part} isn't known here"),
            }
        }
        host.sh(&format!(
            "for device in /sys/class/{subsystem}/*; do case ${{device##*/}} in {kernel}) \
             node=/dev/$(sed -n s/^DEVNAME=//p $device/uevent) && {command} true || exit;; esac; done"
        ))?;
    }
    Ok(())
}

#[test]
fn insufficient_memory_is_named() -> TestResult {
    let host = Board::new().memory("1G").boot()?;
    complains(&check(&host, "strait", "--memory 2G")?, &[("free memory", "blocks", "--memory")]);
    host.sh("echo never > /sys/kernel/mm/transparent_hugepage/enabled")?;
    let help = "transparent_hugepage/enabled";
    complains(&check(&host, "strait", "")?, &[("huge pages", "degraded", help)]);
    Ok(())
}

/// Runs a program within a control group of this name, at its end with its status.
fn within(group: &str, program: &str) -> String {
    format!("sh -c 'echo $$ > {group}/cgroup.procs && exec \"$@\"' sh {program}")
}

#[test]
fn cgroup_limits_are_named() -> TestResult {
    const GROUP: &str = "/sys/fs/cgroup/job";
    let board = Board::new().file("k/off", payload::power_off());
    let host = board.file("k/wait", payload::wait()).boot()?;
    host.sh("mount -t cgroup2 none /sys/fs/cgroup; cd /sys/fs/cgroup && \
             echo '+memory +pids +cpuset' > cgroup.subtree_control && mkdir job")?;
    let set = |file: &str, value: &str| host.sh(&format!("echo {value} > {GROUP}/{file}"));
    let strait = within(GROUP, "strait");
    let device = PLATFORM_DMA[0];
    let run = format!("{strait} run --kernel /k/off --bind --vfio-platform {device} --cpus 2");
    // What it says, and that the device is nobody's afterwards.
    let refused = |error: &[&str]| -> TestResult {
        let answer = host.run(&run)?;
        assert_eq!(answer.status, 1, "{}", answer.errors);
        for part in error {
            assert!(answer.errors.contains(part), "{part}: {}", answer.errors);
        }
        assert_eq!(host.driver(device)?, None);
        Ok(())
    };

    set("memory.max", "128M")?;
    let file = format!("{GROUP}/memory.max");
    complains(&check(&host, &strait, "")?, &[("memory cgroup", "blocks", &file)]);
    refused(&["256M of guest RAM can't be pinned", &format!("{file} leaves"), "MemoryMax="])?;
    // A guest without devices is told that it may be killed, before and while it runs.
    for (options, status) in [("--dry-run", 0), ("--timeout 1", 124)] {
        let answer = host.run(&format!("{strait} run --kernel /k/wait {options}"))?;
        let (errors, told) = (&answer.errors, format!("and {file} leaves 1"));
        assert!(
            errors.contains(&told) && errors.contains("0 bytes of swap"),
            "{options}: {errors}"
        );
        assert_eq!(answer.status, status, "{options}: {errors}");
    }
    set("memory.max", "400M")?;
    set("memory.high", "100M")?;
    let high = format!("{GROUP}/memory.high");
    complains(&check(&host, &strait, "")?, &[("memory cgroup", "degraded", &high)]);
    set("memory.high", "max")?;
    host.sh(&run)?;

    set("pids.max", "1")?;
    complains(&check(&host, &strait, "")?, &[("threads", "blocks", "pids.max")]);
    refused(&["2 vCPUs", "pids.max leaves 0 of 1 tasks", "TasksMax=4"])?;
    set("pids.max", "max")?;
    set("cpuset.cpus", "1")?;
    complains(&check(&host, &strait, "")?, &[("CPUs", "degraded", "cpuset")]);
    let answer = host.run(&run)?;
    assert!(answer.errors.contains("2 vCPUs share 1 of the host's 2 CPUs"), "{}", answer.errors);
    assert_eq!(answer.status, 0, "{}", answer.errors);

    // A group of the devices controller, which is in an older hierarchy, denies what is root's.
    host.sh("mkdir /tmp/devices && mount -t cgroup -o devices none /tmp/devices && \
             mkdir /tmp/devices/job && cd /tmp/devices/job && \
             for device in vfio iommu; do \
                 echo c $(cat /sys/class/misc/$device/dev) rwm > devices.deny; \
             done")?;
    let denied = within("/tmp/devices/job", "strait");
    let help = "DeviceAllow=";
    let both = [("iommufd", "blocks", help), ("VFIO containers", "blocks", help)];
    complains(&check(&host, &denied, "")?, &both);
    Ok(())
}

#[test]
fn process_limits_are_named() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    let limited = |limits: &str| format!("sh -c 'ulimit {limits} && exec strait \"$@\"' sh");
    for (limit, name) in [("-v 200000", "RLIMIT_AS"), ("-d 200000", "RLIMIT_DATA")] {
        let strait = limited(limit);
        let help = limit.split_once(' ').map_or("", |(option, _)| option);
        complains(&check(&host, &strait, "")?, &[("address space", "blocks", help)]);
        let answer = host.run(&format!("{strait} run --kernel /k/off"))?;
        assert_eq!(answer.status, 1, "{}", answer.errors);
        assert!(answer.errors.contains("256M of guest RAM can't be had"), "{}", answer.errors);
        assert!(answer.errors.contains(name), "{}", answer.errors);
        host.sh(&format!("{strait} run --kernel /k/off --memory 64M"))?;
    }
    // RAM that a server maps is a file.
    let strait = limited("-f 1000");
    complains(&check(&host, &strait, "")?, &[("address space", "degraded", "ulimit -f")]);
    complains(&check(&host, &limited("-n 64"), "")?, &[("open files", "degraded", "nofile")]);
    Ok(())
}
