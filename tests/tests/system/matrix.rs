//! Every device that a guest can have, all at work at once, beside an assigned one: with both versions of
//! the interrupt controller, both ways to the IOMMU, one vCPU and four.

use tests::harness::{
    BACKENDS, Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, TestResult,
};
use tests::suite::SOAK;

use crate::console::text_goes_both_ways;

/// What is sent each way by each network and by sockets, and written to each disk, in bytes.
const AMOUNT: u32 = 1 << 20;

/// The host's taps, each a network of its own: its name, who moves its packets, its address, the guest's.
const NETWORKS: [(&str, &str, &str, &str); 2] = [
    ("tap0", "vhost=on", "192.168.77.1", "192.168.77.2"),
    ("tap1", "vhost=off", "192.168.78.1", "192.168.78.2"),
];

/// A host with all that the devices need.
fn boot(gic: u8) -> Result<Host, Failure> {
    let host = Board::new()
        .gic(gic)
        .debian()
        .disk("disk", 16 << 20)
        .device("nvme,drive=debian,serial=debian")
        .device("nvme,drive=disk,serial=disk")
        .boot()?;
    // Which of the two is found first differs. Guests' RAM, which processes share, is then sooner there.
    host.sh("for disk in /sys/block/nvme*; do \
         ln -s /dev/${disk##*/} /dev/$(tr -d ' ' <$disk/device/serial); done; \
         mkdir /tmp/shared && truncate -s 8M /tmp/image && \
         echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled")?;
    host.mount_debian("/dev/debian", "ro")?;
    host.bind(PLATFORM_DMA[0])?;
    for (tap, _, address, _) in NETWORKS {
        host.sh(&format!(
            "agent tap {tap} 0 tap && ip addr add {address}/24 dev {tap} && ip link set {tap} up"
        ))?;
    }
    Ok(host)
}

/// A guest with every device, whose shell is on hvc0.
fn launch(backend: &str, cpus: u8) -> Launch {
    // Its drivers map for DMA what they hand over, or don't.
    let platform = if cpus == 1 { "" } else { "--virtio-access-platform" };
    let networks = NETWORKS.map(|(tap, vhost, ..)| format!("--net tap={tap},{vhost}")).join(" ");
    Launch::model().memory("160M").cmdline("console=hvc0").with(&format!(
        "--cpus {cpus} --iommu {backend} --vfio-platform {} --console file:/tmp/serial \
         --virtio-console stdio --block /tmp/image,queues=4 --block /dev/disk,direct {networks} \
         --vsock cid=3 --share data=/tmp/shared {platform}",
        PLATFORM_DMA[0]
    ))
}

/// The commands that send over each network and by sockets: who receives, who sends, where.
fn streams() -> Vec<(&'static str, String)> {
    let of = |address: &str| format!("receive {address}&&send {address} {AMOUNT}");
    let mut streams = vec![
        ("host", of("vsock:any:5000").replace("send vsock:any", "send vsock:2")),
        ("guest", of("vsock:any:5001").replace("send vsock:any", "send vsock:3")),
    ];
    for (_, _, host, guest) in NETWORKS {
        streams.push(("host", of(&format!("tcp:{host}:5000"))));
        streams.push(("guest", of(&format!("tcp:{guest}:5001"))));
    }
    streams
}

/// Has all devices work at once, and checks what came of each.
fn work(host: &Host, guest: &mut Guest) -> TestResult {
    for (index, (.., host, address)) in NETWORKS.iter().enumerate() {
        guest.sh(&format!(
            "ip addr add {address}/24 dev eth{index} && ip link set eth{index} up && \
             until ping -c 1 -W 1 {host} >/dev/null; do :; done"
        ))?;
    }
    // Each command in the background, with its status in a file.
    let mut names = Vec::new();
    let mut background = |guest: &mut Guest, name: &str, command: &str| {
        names.push(name.to_owned());
        guest.sh(&format!("{{ {command}; echo status $?; }} >/tmp/{name} 2>&1 &"))
    };
    let mut others = Vec::new();
    for (index, (receiver, commands)) in streams().into_iter().enumerate() {
        let (receive, send) = commands.split_once("&&").unwrap_or_default();
        let (here, there) = if receiver == "guest" { (receive, send) } else { (send, receive) };
        others.push(host.start(&format!("exec agent {there} 2>&1"))?);
        background(guest, &format!("stream{index}"), &format!("agent {here}"))?;
    }
    for disk in ["vda", "vdb"] {
        let verify = format!("agent disk verify /dev/{disk} {AMOUNT} 16 1");
        background(guest, disk, &verify)?;
    }
    background(
        guest,
        "share",
        "mkdir -p /data && mount -t virtiofs data /data && rm -f /data/out && \
         dd if=/dev/urandom of=/data/out bs=64k count=16 2>/dev/null && sync && sha256sum /data/out",
    )?;
    background(guest, "entropy", "for i in $(seq 32); do head -c 64 /dev/hwrng | md5sum; done")?;
    DmaTest::default().pass(guest)?;
    guest.sh("wait")?;
    for name in names {
        let said = guest.sh(&format!("cat /tmp/{name}"))?;
        assert!(said.trim_end().ends_with("status 0"), "{name}: {said}");
    }
    for other in others {
        assert_eq!(other.exit_status()?, 0, "{}", other.output());
    }
    let sum = host.sh("sha256sum </tmp/shared/out | cut -d ' ' -f 1")?;
    assert!(guest.sh("cat /tmp/share")?.contains(sum.trim()));
    assert_eq!(guest.sh("sort -u /tmp/entropy | grep -c -e -")?.trim(), "32");
    text_goes_both_ways(host, guest, 2000)
}

/// A guest with each of the ways to the IOMMU, with these numbers of vCPUs. Of the three things that vary,
/// the two tests have every pair; `--soak` has all.
fn every_device_works(gic: u8, cpus: [u8; 2]) -> TestResult {
    let host = boot(gic)?;
    let rounds = if std::env::var_os(SOAK).is_some() { 2 } else { 1 };
    for round in 0..rounds {
        for (index, backend) in BACKENDS.into_iter().enumerate() {
            let [first, second] = cpus;
            let cpus = if index == round { first } else { second };
            let mut guest = host.launch(&launch(backend, cpus))?;
            assert_eq!(guest.sh("readlink /proc/self/fd/1")?.trim(), "/dev/hvc0");
            let mapped = guest.sh("cut -c 34 /sys/bus/virtio/devices/*/features | sort -u")?;
            assert_eq!(mapped.trim(), if cpus == 1 { "0" } else { "1" });
            work(&host, &mut guest)?;
            assert_eq!(guest.power_off()?, 0);
        }
    }
    Ok(())
}

#[test]
fn every_device_works_with_a_gicv3() -> TestResult {
    every_device_works(3, [1, 4])
}

#[test]
fn every_device_works_with_a_gicv2() -> TestResult {
    every_device_works(2, [4, 1])
}
