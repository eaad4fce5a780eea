//! Guest drivers at work: a disk, a network card, functions of one group.

use tests::harness::payload;
use tests::harness::{Board, DmaTest, Launch, PLATFORM_DMA, TestResult};

use super::{
    CARD, DISK, FIRST, check_host, check_no_missed_interrupt, disk_checksum, fill_disk, guest_with,
    with_disk,
};

#[test]
fn devices_that_no_guest_driver_uses_are_reported() -> TestResult {
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

#[test]
fn a_file_system_on_a_disk_survives_guests_and_their_vmm() -> TestResult {
    let host = with_disk().boot()?;
    let mut guest = guest_with(&host, &[DISK], Launch::model())?;
    let written = fill_disk(&mut guest)?;
    // Its registers are moved while the guest runs, as Linux does it on request.
    guest.sh(&format!(
        "cd /sys/bus/pci && echo 1 >devices/{FIRST}/remove && echo 1 >rescan && \
         until [ -e /dev/nvme0n1 ]; do sleep 0.1; done"
    ))?;
    assert_eq!(disk_checksum(&mut guest)?, written);
    // A reset by the guest, then all of the device again.
    guest.sh("echo 1 >/sys/class/nvme/nvme0/reset_controller")?;
    assert_eq!(disk_checksum(&mut guest)?, written);
    check_no_missed_interrupt(&mut guest)?;
    // In the middle of work, without a word of farewell.
    guest.begin("cat /dev/nvme0n1 >/dev/null")?;
    host.until(
        "[ $(awk '/vfio-msix/ { n += $2 + $3 } END { print n }' /proc/interrupts) -gt 100 ]",
    )?;
    guest.process().signal(9)?;
    assert_eq!(guest.exit_status()?, 128 + 9);

    let mut guest = host.guest(&format!("--vfio-pci {DISK},mmap=off"))?;
    assert_eq!(disk_checksum(&mut guest)?, written, "by traps");
    check_no_missed_interrupt(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    host.unbind(DISK)?;
    host.until("[ -e /dev/nvme0n1 ]")?;
    let on_host =
        host.sh("mkdir /disk && mount -t ext4 /dev/nvme0n1 /disk && cat /disk/n* | sha256sum")?;
    assert_eq!(on_host.trim(), written);
    check_host(&host)
}

#[test]
fn a_network_card_sends_and_receives() -> TestResult {
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
        check_no_missed_interrupt(&mut guest)?;
        assert_eq!(guest.power_off()?, 0);
    }
    check_host(&host)
}

#[test]
fn functions_of_one_group_are_assigned_together_with_a_platform_device() -> TestResult {
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
        // The first free device is strait's own, for entropy.
        ["0000:00:00.0", "0000:00:01.0", "0000:00:03.0", "0000:00:03.1"]
    );
    guest.sh("cat /dev/nvme0n1 >/dev/null & echo $! >/tmp/reader; true")?;
    DmaTest::default().pass(&mut guest)?;
    guest.sh("agent edu 0000:00:03.1 msi 20")?;
    fill_disk(&mut guest)?;
    check_no_missed_interrupt(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    check_host(&host)
}
