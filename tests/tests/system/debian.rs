//! A guest that is a whole system: Debian, with its own kernel, on a disk.

use tests::harness::{Board, Failure, Guest, Host, Launch, PLATFORM_DMA, Process, TestResult};
use tests::suite::SOAK;

/// Where disks are on the host: that with the system, and an empty one.
const DISK: &str = "0000:00:05.0";
const EMPTY_DISK: &str = "0000:00:06.0";

/// Where a guest has its DMA controller.
const DMA: &str = "0xc000000";

/// The host's address on a tap, and the guest's; the guest's address for sockets.
const HOST_ADDRESS: &str = "192.168.77.1";
const GUEST_ADDRESS: &str = "192.168.77.2";
const CID: u32 = 3;

const SIGTERM: i32 = 15;

/// How many bytes go through a socket in each direction.
const BY_SOCKET: u64 = 1 << 20;

/// Where its second console is.
const HVC0: &str = "/tmp/hvc0";

/// How long each direction may take, in seconds.
const TRANSFER: u64 = 600;

/// How many bytes a network takes in each direction.
fn by_network() -> u64 {
    if std::env::var_os(SOAK).is_some() { 64 << 20 } else { 4 << 20 }
}

/// A host with both disks, a tap, and a DMA controller and the empty disk to be assigned.
fn boot() -> Result<Host, Failure> {
    let host = Board::new()
        .debian()
        .device("nvme,drive=debian,serial=system,addr=5")
        .disk("empty", 64 << 20)
        .device("nvme,drive=empty,serial=empty,addr=6")
        .boot()?;
    host.bind(EMPTY_DISK)?;
    host.bind(PLATFORM_DMA[0])?;
    host.sh(&format!(
        "agent tap tap0 0 tap && ip addr add {HOST_ADDRESS}/24 dev tap0 && ip link set tap0 up"
    ))?;
    Ok(host)
}

/// The name of the NVMe disk with this serial number, in whatever runs commands by `sh`.
fn disk(sh: impl FnOnce(&str) -> Result<String, Failure>, serial: &str) -> Result<String, Failure> {
    // Names go by which disk was found first.
    let command = format!("cd /sys/block && grep -l '{serial} *$' nvme*/device/serial");
    let path = sh(&command)?;
    Ok(format!("/dev/{}", path.split('/').next().unwrap_or_default()))
}

/// A system that is up, with all that it can have, and its root on the disk given by `root`.
fn log_in(host: &Host, root: &str) -> Result<Guest, Failure> {
    let dma = PLATFORM_DMA[0];
    // The last 64 MiB of memory are the DMA controller's.
    let launch = Launch::debian().cmdline("mem=448M").with(&format!(
        "{root} --vfio-pci {EMPTY_DISK} --vfio-platform {dma} --net tap=tap0 --vsock cid={CID} \
         --virtio-console unix:{HVC0} --grace 600"
    ));
    let mut guest = host.log_in(&launch)?;
    check_state(&mut guest)?;
    // Its own udev finds the DMA controller and loads the driver, which is on the disk.
    let driver = "until ls /sys/bus/amba/drivers/dma-pl330/*.dma-controller; do sleep 0.2; done";
    guest.sh(&format!("timeout 60 sh -c '{driver}' 2>/dev/null"))?;
    Ok(guest)
}

/// Logs in on the virtio console, where the system offers a login without being told. The prompt was
/// printed before anybody was there to see it.
fn log_in_on_hvc0(host: &Host) -> TestResult {
    let mut client = host.start(&format!("exec agent client {HVC0}"))?.timeout(TRANSFER);
    client.wait_for("login: ")?;
    client.send("root\n")?;
    client.wait_for("# ")?;
    client.send("echo on=$(tty).\n")?;
    client.wait_for("on=/dev/hvc0.")?;
    client.end_of_input()?;
    client.exit_status().map(|_| ())
}

/// Checks that all units of the guest are up.
fn check_state(guest: &mut Guest) -> TestResult {
    let state = guest.run("systemctl is-system-running --wait; systemctl --failed --no-legend")?.1;
    assert_eq!(state.trim(), "running");
    Ok(())
}

/// Has the guest's own login manager power it off, which sees the power button pressed. It is masked where
/// nobody presses it.
fn press_power_button(mut guest: Guest) -> TestResult {
    // udev isn't told of platform devices that were there before it (udev-trigger.conf).
    guest
        .sh("udevadm trigger --action=add --subsystem-match=platform --sysname-match=gpio-keys")?;
    guest.sh("cd /etc/systemd/system && rm dbus.service dbus.socket systemd-logind.service && \
              systemctl daemon-reload && systemctl start dbus.socket systemd-logind")?;
    // It opens what udev has tagged for it (logind.conf(5), HandlePowerKey=).
    guest.sh("logind=$(systemctl show -P MainPID systemd-logind) && timeout 600 sh -c \
              \"until ls -l /proc/$logind/fd | grep -q /dev/input/event; do sleep 0.2; done\"")?;
    guest.process().signal(SIGTERM)?;
    assert_eq!(guest.exit_status()?, 0);
    Ok(())
}

/// Has the guest write to its root's disk and to the empty one, send by its network and by a socket,
/// while its DMA controller copies, all at once; the sums of what it wrote to the files `noise` of both
/// disks.
fn work_with_all(host: &Host, guest: &mut Guest) -> Result<Vec<String>, Failure> {
    connect(guest)?;
    let (network, socket) = (format!("tcp:{HOST_ADDRESS}:5000"), "vsock:2:5000");
    let receivers = [network.as_str(), socket]
        .map(|address| Ok(host.start(&format!("agent receive {address}"))?.timeout(TRANSFER)));
    let bytes = by_network();
    let other = disk(|command| guest.sh(command), "empty")?;
    guest.sh(&format!("mke2fs -q -t ext4 {other} && mount {other} /mnt"))?;
    // Its driver would be in the way.
    let driver = "/sys/bus/amba/drivers/dma-pl330";
    guest.sh(&format!("basename {driver}/*.dma-controller >{driver}/unbind"))?;
    let (program, from, to) = ("0x5c000000", "0x5c001000", "0x5c002000");
    let write = "dd if=/dev/urandom bs=64K count=256 conv=fsync 2>/dev/null";
    let output = guest.sh(&format!(
        "{write} of=/noise & first=$!
         {write} of=/mnt/noise & second=$!
         /run/agent send {network} {bytes} >/run/network & third=$!
         /run/agent send {socket} {BY_SOCKET} >/run/socket & fourth=$!
         for byte in $(seq 100); do
             /run/agent memory fill {from} 4096 $byte &&
                 /run/agent pl330 {DMA} copy 1 {program} {from} {to} 4096 >/dev/null &&
                 /run/agent memory check {to} 4096 $byte && echo copied
             kill -0 $first 2>/dev/null || kill -0 $second 2>/dev/null || break
         done
         wait $first && wait $second && wait $third && wait $fourth &&
             umount /mnt && e2fsck -fn {other} >/run/checked 2>&1 && mount {other} /mnt &&
             sha256sum </noise && sha256sum </mnt/noise && cat /run/network /run/socket"
    ))?;
    for receiver in receivers {
        assert_eq!(receiver.and_then(|receiver: Process| receiver.exit_status())?, 0);
    }
    for bytes in [bytes, BY_SOCKET] {
        assert!(output.contains(&format!("\n{bytes} bytes, sum ")), "{output}");
    }
    assert!(output.matches("copied").count() >= 2, "{output}");
    let sums: Vec<_> =
        output.lines().filter(|line| line.ends_with(" -")).map(str::to_owned).collect();
    assert_eq!(sums.len(), 2, "{output}");
    Ok(sums)
}

/// Gives the guest's network its address.
fn connect(guest: &mut Guest) -> TestResult {
    guest.sh(&format!(
        "card=$(ls /sys/class/net | grep ^en) && ip addr add {GUEST_ADDRESS}/24 dev $card && \
         ip link set $card up && until ping -c 1 -W 1 {HOST_ADDRESS} >/dev/null; do :; done"
    ))?;
    Ok(())
}

/// Sends so many bytes from one to the other, in either direction, where `to` is.
fn send(host: &Host, guest: &mut Guest, to: &str, bytes: u64) -> TestResult {
    let sender = host.start(&format!("exec agent send {to} {bytes}"))?.timeout(TRANSFER);
    let received = guest.sh(&format!("/run/agent receive {to}"))?;
    assert_eq!(sender.exit_status()?, 0);
    assert!(received.contains(&format!("{bytes} bytes, sum ")), "{received}");
    Ok(())
}

/// Sends bytes to the guest by its network and by a socket, and some to where a program of its own sends
/// them back.
fn send_to_guest(host: &Host, guest: &mut Guest) -> TestResult {
    send(host, guest, &format!("tcp:{GUEST_ADDRESS}:5000"), by_network())?;
    send(host, guest, &format!("vsock:{CID}:5000"), BY_SOCKET)?;
    let echoed = format!("exec agent echoed vsock:{CID}:5001 {BY_SOCKET}");
    let client = host.start(&echoed)?.timeout(TRANSFER);
    // A pipe that takes anything takes a page: a larger block can keep socat from emptying it.
    guest.sh("socat -b 4096 VSOCK-LISTEN:5001 PIPE")?;
    assert_eq!(client.exit_status()?, 0);
    Ok(())
}

/// Checks that a disk of the host has the file `noise` with this sum, and no journal to be replayed:
/// the guest has let go of it.
fn check_disk(host: &Host, serial: &str, sum: &str) -> TestResult {
    let disk = disk(|command| host.sh(command), serial)?;
    host.sh(&format!("mkdir -p /disk && mount -t ext4 -o ro {disk} /disk"))?;
    assert_eq!(host.sh("sha256sum </disk/noise")?.trim(), sum);
    host.sh("umount /disk")?;
    let log = host.sh("dmesg | grep EXT4")?;
    assert!(!log.contains("recovery") && !log.contains("rror"), "{log}");
    Ok(())
}

/// Gives a disk back to the host's driver.
fn give_back(host: &Host, device: &str) -> TestResult {
    host.unbind(device)?;
    host.until(&format!("[ -e /sys/bus/pci/devices/{device}/nvme/nvme*/nvme*n1 ]"))
}

#[test]
fn a_system_on_a_disk_works_with_all_at_once() -> TestResult {
    let host = boot()?;
    let disk = disk(|command| host.sh(command), "system")?;
    let mut guest = log_in(&host, &format!("--block {disk}"))?;
    let root = guest.sh("findmnt --noheadings --output SOURCE,FSTYPE /")?;
    assert_eq!(root.trim(), "/dev/vda ext4");
    let sums = work_with_all(&host, &mut guest)?;
    send_to_guest(&host, &mut guest)?;
    log_in_on_hvc0(&host)?;
    press_power_button(guest)?;
    check_disk(&host, "system", &sums[0])?;
    give_back(&host, EMPTY_DISK)?;
    check_disk(&host, "empty", &sums[1])
}

// Most of this is in the test above, and two more boots take their time.
#[test]
#[ignore = "takes long: cargo model test --soak"]
fn a_system_on_an_assigned_disk_restarts_and_shuts_down_cleanly() -> TestResult {
    let host = boot()?;
    host.bind(DISK)?;
    let mut guest = log_in(&host, &format!("--vfio-pci {DISK}"))?;
    let root = guest.sh("findmnt --noheadings --output SOURCE,FSTYPE /")?;
    assert_eq!(root.trim(), format!("{} ext4", disk(|command| guest.sh(command), "system")?));
    let sums = work_with_all(&host, &mut guest)?;
    guest.begin("systemctl reboot")?;
    assert_eq!(guest.exit_status()?, 3);

    let mut guest = log_in(&host, &format!("--vfio-pci {DISK}"))?;
    assert_eq!(guest.sh("sha256sum </noise")?.trim(), sums[0]);
    assert_eq!(guest.shut_down()?, 0);
    give_back(&host, DISK)?;
    check_disk(&host, "system", &sums[0])
}

/// passt's address, which its guest gets, and that of the host's gateway, where its guest finds the host.
const PASST_ADDRESS: &str = "10.5.0.1";
const PASST_GATEWAY: &str = "10.5.0.254";

/// Has the guest's own programs get it an address by DHCP, and sends bytes both ways.
fn work_with_passt(host: &Host, guest: &mut Guest) -> TestResult {
    guest.sh(&format!(
        "systemctl start systemd-networkd && timeout 600 sh -c \
         'until ip -4 addr | grep -q {PASST_ADDRESS}/; do sleep 0.2; done'"
    ))?;
    let bytes = by_network();
    let receiver = host.start("agent receive tcp:127.0.0.1:5000")?.timeout(TRANSFER);
    guest.sh(&format!("/run/agent send tcp:{PASST_GATEWAY}:5000 {bytes}"))?;
    assert_eq!(receiver.exit_status()?, 0);
    guest.begin("/run/agent receive tcp:0.0.0.0:7000")?;
    // passt takes connections before the guest does, and ends them then.
    host.until(&format!("agent send tcp:127.0.0.1:7000 {bytes}"))?;
    let (status, said) = guest.finish()?;
    assert!(status == 0 && said.contains(&format!("{bytes} bytes, sum ")), "{said}");
    Ok(())
}

/// Has the guest make a file system on its disk, fill it, check it, and give its room back, which the
/// image on the host then has.
fn work_with_an_image(host: &Host, guest: &mut Guest, image: &str) -> TestResult {
    let room = || -> Result<u64, Failure> {
        Ok(host.sh(&format!("du -k {image} | cut -f1"))?.trim().parse().unwrap_or(0))
    };
    guest.sh(
        "mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt && cp -r /etc/pam.d /mnt && \
              dd if=/dev/urandom of=/mnt/noise bs=1M count=16 2>/dev/null",
    )?;
    let sum =
        guest.sh("sha256sum </mnt/noise; umount /mnt; e2fsck -fn /dev/vda >/run/checked 2>&1")?;
    guest.sh("mount -t ext4 /dev/vda /mnt && diff -r /etc/pam.d /mnt/pam.d")?;
    assert_eq!(guest.sh("sha256sum </mnt/noise")?, sum);
    let full = room()?;
    guest.sh(
        "rm /mnt/noise && sync && fstrim /mnt && umount /mnt && e2fsck -fn /dev/vda >/run/checked 2>&1",
    )?;
    let trimmed = room()?;
    assert!(full > 16_000 && trimmed < full - 14_000, "{full} KiB, then {trimmed}");
    Ok(())
}

#[test]
fn a_system_in_a_shared_directory_boots_without_a_disk() -> TestResult {
    let host = Board::new().debian().device("nvme,drive=debian,serial=system").boot()?;
    host.mount_debian("/dev/nvme0n1", "rw")?;
    host.sh(&format!(
        "ln -s /debian/usr/bin/passt /bin && ip link set lo up && ip link add br0 type bridge && \
         ip addr add {PASST_ADDRESS}/24 dev br0 && ip link set br0 up && \
         ip route add default via {PASST_GATEWAY} && \
         mkdir /images && mount -t tmpfs none /images && truncate -s 64M /images/a"
    ))?;
    // Both consoles offer a login, and the serial one's goes to a file.
    let launch = Launch::debian()
        .without_initrd()
        .cmdline("rootfstype=virtiofs root=system console=hvc0 systemd.tty.term.hvc0=dumb")
        .with(
            "--share system=/debian,cache=always --console file:/tmp/serial --virtio-console stdio \
             --net passt,tcp=7000 --block /images/a",
        );
    host.sh("cp /bin/agent /debian/usr/bin/agent")?;
    let mut guest = host.log_in(&launch)?;
    guest.sh("cp /usr/bin/agent /run")?;
    check_state(&mut guest)?;
    let root = guest.sh("findmnt --noheadings --output SOURCE,FSTYPE /")?;
    assert_eq!(root.trim(), "system virtiofs");
    assert_eq!(guest.sh("ps -o tty= -p $$")?.trim(), "hvc0");
    host.until("grep -q 'debian ttyS0' /tmp/serial")?;
    guest.sh("dd if=/dev/urandom of=/noise bs=1M count=4 conv=fsync 2>/dev/null")?;
    let sum = guest.sh("sha256sum </noise")?;
    assert_eq!(host.sh("sha256sum </debian/noise")?.trim(), sum.trim());
    work_with_passt(&host, &mut guest)?;
    work_with_an_image(&host, &mut guest, "/images/a")?;
    assert_eq!(guest.shut_down()?, 0);
    host.sh("! pidof virtiofsd passt && umount /debian")?;
    Ok(())
}
