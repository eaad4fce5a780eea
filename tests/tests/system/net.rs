//! Networks: virtio-net on a tap of the host, by threads of strait and by vhost-net.

use tests::harness::{
    Board, DmaTest, Failure, Guest, Host, PLATFORM_DMA, TestResult, exchange, payload,
};
use tests::suite::SOAK;

/// The host's address on its tap, and the guest's.
pub const HOST: &str = "192.168.77.1";
pub const GUEST: &str = "192.168.77.2";

/// Makes a tap of this name for this user, with the host's address.
pub fn make_tap(host: &Host, name: &str, user: u32) -> TestResult {
    host.sh(&format!(
        "agent tap {name} {user} tap && ip addr add {HOST}/24 dev {name} && ip link set {name} up"
    ))?;
    Ok(())
}

/// Gives the guest's interface its address, and waits until it reaches the host.
pub fn connect(guest: &mut Guest) -> TestResult {
    guest.sh(&format!(
        "ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up && \
         until ping -c 1 -W 1 {HOST} >/dev/null; do :; done"
    ))?;
    Ok(())
}

/// A feature bit of the guest's driver.
fn has_feature(guest: &mut Guest, bit: usize) -> Result<bool, Failure> {
    let bits = guest.sh("cat /sys/class/net/eth0/device/features")?;
    Ok(bits.trim().as_bytes().get(bit) == Some(&b'1'))
}

/// Has the guest's driver reset its queues one by one (`VIRTIO_F_RING_RESET`), under way. Where an answer
/// doesn't come, the failure says how far packets came, and whether the next one does.
fn reset_queues(guest: &mut Guest) -> TestResult {
    let sizes = [(64, 256), (256, 32), (128, 128)].map(|(receive, transmit)| {
        format!("ping -c 1 -W 10 {HOST} >/dev/null && agent ring-size eth0 {receive} {transmit}")
    });
    let sizes = sizes.join(" && echo resized && ");
    let counts = "grep Icmp: /proc/net/snmp; grep eth0 /proc/net/dev; cat /proc/net/raw; \
                  ip neigh; grep virtio /proc/interrupts";
    guest.sh(&format!(
        "({{ {counts}; }} >/tmp/before; ping -A -c 300 {HOST} >/dev/null & {{ {sizes}; }} || \
         {{ cat /tmp/before; {counts}; ping -c 3 -W 10 {HOST}; {counts}; exit 1; }}; wait)"
    ))?;
    Ok(())
}

/// How many bytes are sent in each direction.
fn amount() -> u64 {
    if std::env::var_os(SOAK).is_some() { 64 << 20 } else { 4 << 20 }
}

#[test]
fn packets_arrive_by_threads_and_by_vhost() -> TestResult {
    let host = Board::new().cpus(2).boot()?;
    make_tap(&host, "tap0", 0)?;
    host.bind(PLATFORM_DMA[0])?;
    let assigned = format!("--vfio-platform {}", PLATFORM_DMA[0]);
    for options in
        [format!("vhost=off --cpus 1 {assigned}"), format!("vhost=on --cpus 4 {assigned}")]
    {
        let mac = "02:00:00:00:00:07";
        let mut guest = host.guest(&format!("--net tap=tap0,mac={mac},{options}"))?;
        assert_eq!(guest.sh("cat /sys/class/net/eth0/address")?.trim(), mac);
        connect(&mut guest)?;
        // MRG_RXBUF, HOST_TSO4, GUEST_TSO4, STATUS, MTU, EVENT_IDX.
        for bit in [15, 11, 7, 16, 3, 29] {
            assert!(has_feature(&mut guest, bit)?, "{bit}");
        }
        exchange(&host, &mut guest, [HOST, GUEST], amount())?;
        DmaTest::default().pass(&mut guest)?;
        reset_queues(&mut guest)?;
        exchange(&host, &mut guest, [HOST, GUEST], 100_000)?;
        // The driver goes and comes, which resets the device.
        guest.sh(
            "cd /sys/bus/virtio/drivers/virtio_net && echo virtio0 >unbind && echo virtio0 >bind",
        )?;
        connect(&mut guest)?;
        exchange(&host, &mut guest, [HOST, GUEST], 100_000)?;
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}

/// What strait says and advises when run by this user with these options.
fn refusal(host: &Host, user: u32, options: &str) -> Result<(String, String), Failure> {
    let run = format!("agent as {user} strait run --kernel /k/off {options}");
    let answer = host.run(&run)?;
    assert_eq!(answer.output, "", "{options}");
    assert!(matches!(answer.status, 1 | 2), "{options}: {}: {}", answer.status, answer.errors);
    let (error, help) = answer.errors.split_once("\n  help: ").unwrap_or((&answer.errors, ""));
    Ok((error.to_owned(), help.to_owned()))
}

#[test]
fn taps_that_a_guest_can_t_have_are_refused_with_what_to_type() -> TestResult {
    let host =
        Board::new().file("k/off", payload::power_off()).file("k/spin", payload::spin()).boot()?;
    host.sh("chmod 666 /dev/kvm /dev/net/tun && chmod 600 /dev/vhost-net")?;
    make_tap(&host, "mine", 1000)?;
    host.sh(
        "agent tap other 1001 tap && agent tap ip 1000 tun && agent tap many 1000 multi-queue",
    )?;
    let again = "mode tap user $USER";
    // Who runs it, options, what the error and the help say.
    let cases = [
        (1000, "--net tap=none", "there is no network interface none", again),
        (1000, "--net tap=other", "was made for another", "sudo ip link delete other"),
        (1000, "--net tap=ip", "ip is a tun interface", "sudo ip link delete ip"),
        (1000, "--net tap=many", "many has several queues", "sudo ip link delete many"),
        (1000, "--net tap=lo", "lo is no tap interface", again),
        (1000, "--net tap=mine --net tap=mine", "--net tap=mine is given twice", "of its own"),
        (1000, "--net tap=mine,vhost=on", "/dev/vhost-net can't be opened", "/dev/vhost-net"),
        (1000, "--net fd=0 0<>/dev/null", "descriptor 0 is no tap interface", "IFF_VNET_HDR"),
        (1000, "--net fd=7 7<>/dev/net/tun", "descriptor 7 is no tap interface", again),
        (1000, "--net tap=mine,mac=01:00:00:00:00:00", "address of a group", "--help"),
    ];
    for (user, options, error, help) in cases {
        let (said, helped) = refusal(&host, user, options)?;
        assert!(said.contains(error) && helped.contains(help), "{options}: {said}: {helped}");
    }
    // It is its user's without privileges; one that is in use is refused.
    let run = "exec agent as 1000 strait run --kernel /k/spin --net tap=mine";
    let process = host.start(run)?;
    host.until("grep -q 1 /sys/class/net/mine/carrier")?;
    let (said, help) = refusal(&host, 1000, "--net tap=mine")?;
    assert!(said.contains("another process uses the tap interface mine"), "{said}");
    assert!(help.contains("fdinfo"), "{help}");
    host.sh(&format!("kill {}", process.pid()?))?;
    process.exit_status()?;
    // Root makes those that there aren't, and says so.
    let made = host.run("strait run --kernel /k/off --net tap=new0")?;
    assert_eq!(made.status, 0, "{}", made.errors);
    assert!(
        made.errors.contains("new0: this tap interface was made for the run"),
        "{}",
        made.errors
    );
    assert!(!host.sh("ls /sys/class/net")?.contains("new0"));
    Ok(())
}

#[test]
fn a_guest_with_a_gicv2_loses_all_but_one_of_its_networks() -> TestResult {
    let host = Board::new().gic(2).boot()?;
    make_tap(&host, "tap0", 0)?;
    host.sh(
        "for tap in tap1 tap2 tap3 tap4; do agent tap $tap 0 tap && ip link set $tap up; done",
    )?;
    let lost = "--net tap=tap1,vhost=off --net tap=tap2,vhost=on --net tap=tap3,vhost=off \
                --net tap=tap4,vhost=on";
    let mut guest = host.guest(&format!("--cpus 4 --net tap=tap0 {lost}"))?;
    connect(&mut guest)?;
    exchange(&host, &mut guest, [HOST, GUEST], 1 << 20)?;
    for tap in [1, 2] {
        let carrier = format!("/sys/class/net/eth{tap}/carrier");
        guest.sh(&format!("ip link set eth{tap} up && grep -q 1 {carrier}"))?;
        // A tap that is deleted takes the link down, and the log says so once.
        host.sh(&format!("ip link delete tap{tap}"))?;
        guest.sh(&format!("until grep -q 0 {carrier}; do sleep 0.1; done"))?;
        let said = format!("net{tap}: tap{tap} has been deleted");
        assert_eq!(guest.process().output().matches(&said).count(), 1);
        // The link stays down after a reset.
        guest.sh(&format!(
            "device=$(basename $(readlink /sys/class/net/eth{tap}/device)) && \
             cd /sys/bus/virtio/drivers/virtio_net && echo $device >unbind && echo $device >bind && \
             cd / && ip link set eth{tap} up && grep -q 0 {carrier}"
        ))?;
        assert_eq!(guest.process().output().matches(&said).count(), 1);
    }
    // So does one that is deleted while no driver has its device.
    for tap in [3, 4] {
        let net = format!("/sys/class/net/eth{tap}");
        guest.sh(&format!(
            "basename $(readlink {net}/device) >/dev{tap} && \
             cat /dev{tap} >/sys/bus/virtio/drivers/virtio_net/unbind"
        ))?;
        host.sh(&format!("ip link delete tap{tap}"))?;
        guest.sh(&format!(
            "cat /dev{tap} >/sys/bus/virtio/drivers/virtio_net/bind && \
             net=/sys/bus/virtio/devices/$(cat /dev{tap})/net && \
             ip link set $(ls $net) up && grep -q 0 $net/*/carrier"
        ))?;
        let said = format!("net{tap}: tap{tap} has been deleted");
        assert_eq!(guest.process().output().matches(&said).count(), 1);
    }
    assert_eq!(guest.process().output().matches("has to reset").count(), 0);
    exchange(&host, &mut guest, [HOST, GUEST], 100_000)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
