//! Broken queues, as a hostile guest makes them: their device fails, alone, until its driver resets it.

use tests::harness::{Board, Failure, Guest, Host, Launch, TestResult};
use tests::suite::SOAK;

/// RAM that a guest of 256 MiB doesn't use if it is told `mem=192M`.
const SPARE: u64 = 0x4c00_0000;

/// The guest's functions with their drivers, and whether it is strait that works on their queues.
const DEVICES: [(&str, &str, bool); 8] = [
    ("0000:00:01.0", "virtio_blk", true),
    ("0000:00:02.0", "virtio_net", true),
    ("0000:00:03.0", "virtio_net", false),
    ("0000:00:04.0", "vmw_vsock_virtio_transport", false),
    ("0000:00:05.0", "virtiofs", false),
    ("0000:00:06.0", "virtio_console", true),
    ("0000:00:07.0", "virtio_balloon", true),
    ("0000:00:08.0", "virtio_rng", true),
];

/// The faults that a device of strait's has to notice.
const FAULTS: usize = 14;

fn boot() -> Result<Host, Failure> {
    let host = Board::new().debian().device("nvme,drive=debian,serial=one").boot()?;
    host.mount_debian("/dev/nvme0n1", "ro")?;
    host.sh("mkdir /tmp/shared && truncate -s 4M /tmp/image")?;
    for tap in 0..2 {
        host.sh(&format!(
            "agent tap tap{tap} 0 tap && ip addr add 192.168.{tap}.1/24 dev tap{tap} && \
             ip link set tap{tap} up"
        ))?;
    }
    Ok(host)
}

/// Hands a function broken queues in its driver's place; what its status was.
fn attack(guest: &mut Guest, (function, driver, own): (&str, &str, bool)) -> TestResult {
    let directory = format!("/sys/bus/pci/devices/{function}");
    let line = guest.sh(&format!("head -n 1 {directory}/resource"))?;
    let bar = line.split(' ').next().unwrap_or_default();
    let device = guest.sh(&format!("basename {directory}/virtio*"))?;
    let driver = format!("/sys/bus/virtio/drivers/{driver}");
    let rounds = if std::env::var_os(SOAK).is_some() { 2000 } else { 25 };
    let lenient = if own { "" } else { "lenient" };
    guest.sh(&format!("echo {} >{driver}/unbind", device.trim()))?;
    let said = guest.sh(&format!("agent rings {bar} {SPARE:#x} {rounds} {lenient}"))?;
    assert!(said.contains(&format!("{rounds} random queues: reset")), "{said}");
    // What strait says of it may come within a line.
    let failed = said.matches(": 0x4f").count();
    assert!(failed == FAULTS || !own, "{driver}: {said}");
    guest.sh(&format!("echo {} >{driver}/bind", device.trim()))?;
    Ok(())
}

/// Has each device work, but for the shared directory: its server ends when it gets a broken queue.
fn use_all(host: &Host, guest: &mut Guest, when: &str) -> TestResult {
    guest.sh("agent disk verify /dev/vda 1048576 8 1")?;
    for net in 0..2 {
        guest.sh(&format!(
            "ip addr add 192.168.{net}.2/24 dev eth{net}; ip link set eth{net} up && \
             until ping -c 1 -W 1 192.168.{net}.1 >/dev/null; do :; done"
        ))?;
    }
    let receiver = host.start("agent receive vsock:any:5000")?;
    guest.sh("agent send vsock:2:5000 100000")?;
    assert_eq!(receiver.exit_status()?, 0);
    guest.sh(&format!("echo said {when} >/dev/hvc0"))?;
    host.until(&format!("grep -q 'said {when}' /tmp/hvc0"))?;
    guest.sh("head -c 64 /dev/hwrng >/dev/null")?;
    Ok(())
}

#[test]
fn broken_queues_fail_their_device_and_nothing_else() -> TestResult {
    let host = boot()?;
    let launch = Launch::model().cmdline("mem=192M").with(
        "--cpus 2 --block /tmp/image --net tap=tap0,vhost=off --net tap=tap1,vhost=on --vsock cid=3 \
         --share data=/tmp/shared --virtio-console file:/tmp/hvc0 --balloon free-page-reporting",
    );
    let mut guest = host.launch(&launch)?;
    use_all(&host, &mut guest, "before")?;
    for device in DEVICES {
        attack(&mut guest, device)?;
    }
    use_all(&host, &mut guest, "behind")?;
    // What the guest did so often was logged a few times.
    let logged = guest.process().output().matches("strait: warn: ").count();
    assert!((DEVICES.len()..DEVICES.len() * 20).contains(&logged), "{logged} lines");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
