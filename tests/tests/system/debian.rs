//! A guest that is a whole system: Debian, with its own kernel, on a disk.

use tests::harness::{Board, Failure, Guest, Host, Launch, PLATFORM_DMA, TestResult};

/// Where disks are on the host: that with the system, and an empty one.
const DISK: &str = "0000:00:05.0";
const EMPTY_DISK: &str = "0000:00:06.0";

/// Where a guest has its DMA controller.
const DMA: &str = "0xc000000";

/// The host's address on a tap, and the guest's; the guest's address for sockets.
const HOST_ADDRESS: &str = "192.168.77.1";
const GUEST_ADDRESS: &str = "192.168.77.2";
const CID: u32 = 3;

/// How many bytes the network takes in each direction, and how many go through a socket.
const BY_NETWORK: u64 = 64 << 20;
const BY_SOCKET: u64 = 1 << 20;

/// Where its second console is.
const HVC0: &str = "/tmp/hvc0";

/// How long each direction may take, in seconds.
const TRANSFER: u64 = 240;

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
         --virtio-console unix:{HVC0}"
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
    let mut client = host.start(&format!("exec agent client {HVC0}"))?.timeout(240);
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

/// Has the guest write to its root's disk and to the empty one, while its DMA controller copies; the
/// sums of what it wrote to the files `noise` of both.
fn work_with_disks(guest: &mut Guest) -> Result<Vec<String>, Failure> {
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
         for byte in $(seq 100); do
             /run/agent memory fill {from} 4096 $byte &&
                 /run/agent pl330 {DMA} copy 1 {program} {from} {to} 4096 >/dev/null &&
                 /run/agent memory check {to} 4096 $byte && echo copied
             kill -0 $first 2>/dev/null || kill -0 $second 2>/dev/null || break
         done
         wait $first && wait $second && umount /mnt && mount {other} /mnt &&
             sha256sum </noise && sha256sum </mnt/noise"
    ))?;
    assert!(output.matches("copied").count() >= 2, "{output}");
    let sums: Vec<_> =
        output.lines().filter(|line| line.ends_with(" -")).map(str::to_owned).collect();
    assert_eq!(sums.len(), 2, "{output}");
    Ok(sums)
}

/// Sends bytes in both directions by its network and by sockets.
fn work_with_networks(host: &Host, guest: &mut Guest) -> TestResult {
    guest.sh(&format!(
        "card=$(ls /sys/class/net | grep ^en) && ip addr add {GUEST_ADDRESS}/24 dev $card && \
         ip link set $card up && until ping -c 1 -W 1 {HOST_ADDRESS} >/dev/null; do :; done"
    ))?;
    let network = [HOST_ADDRESS, GUEST_ADDRESS].map(|address| format!("tcp:{address}:5000"));
    exchange(host, guest, &network, BY_NETWORK)?;
    let sockets = ["2".to_owned(), CID.to_string()].map(|cid| format!("vsock:{cid}:5000"));
    exchange(host, guest, &sockets, BY_SOCKET)
}

/// Sends so many bytes to the first address, which is the host's, and back to the guest's.
fn exchange(host: &Host, guest: &mut Guest, addresses: &[String; 2], bytes: u64) -> TestResult {
    let [on_host, on_guest] = addresses;
    let receiver = host.start(&format!("agent receive {on_host}"))?.timeout(TRANSFER);
    let sent = guest.sh(&format!("/run/agent send {on_host} {bytes}"))?;
    assert_eq!(receiver.exit_status()?, 0);
    let sender = host.start(&format!("agent send {on_guest} {bytes}"))?.timeout(TRANSFER);
    let received = guest.sh(&format!("/run/agent receive {on_guest}"))?;
    assert_eq!(sender.exit_status()?, 0);
    for said in [sent, received] {
        assert!(said.starts_with(&format!("{bytes} bytes, sum ")), "{said}");
    }
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
    let sums = work_with_disks(&mut guest)?;
    work_with_networks(&host, &mut guest)?;
    log_in_on_hvc0(&host)?;
    assert_eq!(guest.shut_down()?, 0);
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
    let sums = work_with_disks(&mut guest)?;
    guest.begin("systemctl reboot")?;
    assert_eq!(guest.exit_status()?, 3);

    let mut guest = log_in(&host, &format!("--vfio-pci {DISK}"))?;
    assert_eq!(guest.sh("sha256sum </noise")?.trim(), sums[0]);
    assert_eq!(guest.shut_down()?, 0);
    give_back(&host, DISK)?;
    check_disk(&host, "system", &sums[0])
}

#[test]
fn a_system_in_a_shared_directory_boots_without_a_disk() -> TestResult {
    let host = Board::new().debian().device("nvme,drive=debian,serial=system").boot()?;
    host.mount_debian("/dev/nvme0n1", "rw")?;
    // Both consoles offer a login, and the serial one's goes to a file.
    let launch = Launch::debian()
        .without_initrd()
        .cmdline("rootfstype=virtiofs root=system console=hvc0 systemd.tty.term.hvc0=dumb")
        .with("--share system=/debian --console file:/tmp/serial --virtio-console stdio");
    let mut guest = host.log_in(&launch)?;
    check_state(&mut guest)?;
    let root = guest.sh("findmnt --noheadings --output SOURCE,FSTYPE /")?;
    assert_eq!(root.trim(), "system virtiofs");
    assert_eq!(guest.sh("ps -o tty= -p $$")?.trim(), "hvc0");
    host.until("grep -q 'debian ttyS0' /tmp/serial")?;
    guest.sh("dd if=/dev/urandom of=/noise bs=1M count=4 conv=fsync 2>/dev/null")?;
    let sum = guest.sh("sha256sum </noise")?;
    assert_eq!(host.sh("sha256sum </debian/noise")?.trim(), sum.trim());
    assert_eq!(guest.shut_down()?, 0);
    host.sh("! pidof virtiofsd && umount /debian")?;
    Ok(())
}
