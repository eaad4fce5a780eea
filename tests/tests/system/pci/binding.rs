//! Devices on the host: shown, bound, and refused where the host uses them.

use tests::harness::payload;
use tests::harness::{Board, Bus, Host, Launch, TestResult};

use super::{CARD, DISK, FIRST, check_no_missed_interrupt, with_disk};

#[test]
fn devices_are_shown_bound_and_refused_with_a_remedy() -> TestResult {
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
fn needs_descriptors(host: &Host) -> TestResult {
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
    let vmm = host.vmm(guest.pid()?)?;
    let open = host.sh(&format!("ls /proc/{vmm}/fd | wc -l"))?;
    let limit = host.sh(&format!("awk '/Max open files/ {{ print $4 }}' /proc/{vmm}/limits"))?;
    println!("{} descriptors are open, of {}", open.trim(), limit.trim());
    let limit: u64 = limit.trim().parse().unwrap_or_default();
    assert!(limit >= 65 + 20, "{limit}");
    check_no_missed_interrupt(&mut guest)?;
    // Statistics that can't be written don't change how the guest ended.
    guest.begin("poweroff -f")?;
    assert_eq!(guest.exit_status()?, 0);
    let said = guest.process().output();
    assert!(said.contains("statistics can't be written to /tmp/passing/stats"), "{said}");
    Ok(())
}

/// Checks that a device is refused, for this reason, whoever asks, and that nothing was done to it.
fn refused(host: &Host, device: &str, reason: &str) -> TestResult {
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
fn devices_in_use_by_the_host_are_refused_by_name() -> TestResult {
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
    let run = host.strait(&format!("run --kernel /k/off --bind --force --vfio-pci {share}"))?;
    host.until(&format!("[ ! -e /sys/bus/pci/devices/{share}/driver ]"))?;
    run.signal(15)?;
    assert_eq!(run.exit_status()?, 128 + 15);
    let said = run.output();
    assert!(said.contains("driver/unbind") && said.contains("waits in msleep"), "{said}");
    assert!(!said.contains(" for 10 s"), "a signal is heard before that: {said}");
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
fn a_device_behind_a_root_port_is_an_integrated_endpoint_in_the_guest() -> TestResult {
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
    check_no_missed_interrupt(&mut guest)?;
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
