//! Virtio devices of other processes: of programs that strait starts, and of backends that are there.

use tests::harness::{Board, Failure, Guest, Host, Launch, PLATFORM_DMA, Process, TestResult};

/// A host that has the programs of a Debian system, whose disk is mounted at `/debian`.
pub fn with_programs(board: Board) -> Result<Host, Failure> {
    let host = board.debian().device("nvme,drive=debian,serial=one").boot()?;
    host.mount_debian("/dev/nvme0n1", "ro")?;
    Ok(host)
}

/// Checks that a program that serves a guest has a root directory and these namespaces of its own.
fn check_confined(host: &Host, program: &str, namespaces: &str) -> TestResult {
    host.sh(&format!(
        "for pid in $(pidof {program}); do for of in {namespaces}; do \
         [ $(readlink /proc/$pid/ns/$of) != $(readlink /proc/self/ns/$of) ] || continue 2; done; \
         [ ! -e /proc/$pid/root/bin/strait ] && exit; done; ls -l /proc/[0-9]*/ns; exit 1"
    ))?;
    Ok(())
}

#[test]
fn a_guest_shares_directories_and_drives_an_assigned_device() -> TestResult {
    let host = with_programs(Board::new())?;
    let dma = PLATFORM_DMA[0];
    host.bind(dma)?;
    host.sh("mkdir /tmp/data && echo from the host >/tmp/data/in")?;
    let shares = "--share data=/tmp/data --share fixed=/debian,ro";
    let mut guest = host.guest(&format!("{shares} --vfio-platform {dma}"))?;
    guest.sh(
        "mkdir /data /fixed && mount -t virtiofs data /data && mount -t virtiofs fixed /fixed",
    )?;
    assert_eq!(guest.sh("cat /data/in")?.trim(), "from the host");
    guest.begin("dd if=/dev/urandom of=/data/out bs=64k count=64 && sync && md5sum /data/out")?;
    let (status, said) = guest.finish()?;
    let sum = said.split_whitespace().find(|word| word.len() == 32).unwrap_or_default();
    assert_eq!((status, host.sh("md5sum </tmp/data/out")?.contains(sum)), (0, true), "{said}");
    assert!(guest.sh("cat /fixed/etc/os-release")?.contains("Debian"));
    check_confined(&host, "virtiofsd", "mnt net pid")?;
    assert_ne!(guest.run("touch /fixed/new")?.0, 0);
    assert!(guest.log_of("PL330")?.contains("Loaded driver for PL330 DMAC"));
    tests::harness::DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    // Nothing of them is left, and nothing where their sockets were.
    host.sh("! pidof virtiofsd && [ -z \"$(find /tmp -name '*socket*')\" ]")?;
    Ok(())
}

#[test]
fn a_shared_directory_is_a_guest_s_root() -> TestResult {
    let host = with_programs(Board::new())?;
    let root = "rootfstype=virtiofs root=system ro init=/usr/bin/cat -- /etc/os-release";
    let mut process = host.strait(&format!(
        "run --kernel /k/model --share system=/debian,ro --cmdline 'console=ttyS0 panic=-1 {root}'"
    ))?;
    process.wait_for("Debian GNU/Linux")?;
    process.wait_for("Attempted to kill init")?;
    process.exit_status()?;
    host.sh("! pidof virtiofsd")?;
    Ok(())
}

/// What the guest does with its address.
const LEASE: &str = "[ $1 = bound ] && ip addr add $ip/24 dev $interface && \
                     ip route add default via $router && echo leased $ip via $router";

/// Gives a host passt, and an address that it can hand on.
pub fn set_up_network(host: &Host) -> TestResult {
    host.sh(
        "ln -s /debian/usr/bin/passt /bin && ip link set lo up && ip link add br0 type bridge && \
         ip addr add 10.5.0.1/24 dev br0 && ip link set br0 up && \
         ip route add default via 10.5.0.254",
    )?;
    Ok(())
}

/// Has a guest ask for the address.
pub fn lease(guest: &mut Guest) -> TestResult {
    guest.sh(&format!("printf '#!/bin/sh\\n%s\\n' '{LEASE}' >/lease && chmod +x /lease"))?;
    let leased =
        guest.sh("ip link set lo up; ip link set eth0 up && udhcpc -i eth0 -n -q -s /lease")?;
    assert!(leased.contains("leased 10.5.0.1 via 10.5.0.254"), "{leased}");
    Ok(())
}

#[test]
fn a_guest_has_a_network_without_root() -> TestResult {
    let host = with_programs(Board::new())?;
    set_up_network(&host)?;
    let mut guest = host.guest("--net passt,tcp=7000")?;
    check_confined(&host, "passt", "mnt user ipc uts")?;
    lease(&mut guest)?;
    // Both ways.
    send_by_passt(&host, &mut guest)?;
    receive_by_passt(&host, &mut guest)?;
    // Another is started: the link was down meanwhile. It learns the guest's address by what that sends.
    guest.sh(&format!("before={CHANGES}"))?;
    host.sh("kill -9 $(pidof passt)")?;
    guest.process().wait_for("was ended by signal 9; strait starts another\n")?;
    guest.process().wait_for("there is a backend again\n")?;
    guest.sh(&format!("until [ $(({CHANGES})) = $((before + 2)) ]; do sleep 0.1; done"))?;
    assert_eq!(guest.sh("cat /sys/class/net/eth0/carrier")?.trim(), "1");
    send_by_passt(&host, &mut guest)?;
    receive_by_passt(&host, &mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    host.sh("! pidof passt")?;
    Ok(())
}

/// How often a guest's link has gone up or down.
const CHANGES: &str = "$(cat /sys/class/net/eth0/carrier_changes)";

/// Has a guest send to the host, which is where its gateway is.
fn send_by_passt(host: &Host, guest: &mut Guest) -> TestResult {
    let receiver = host.start("agent receive tcp:127.0.0.1:5000")?;
    guest.sh("agent send tcp:10.5.0.254:5000 1048576")?;
    assert_eq!(receiver.exit_status()?, 0);
    Ok(())
}

/// Sends a guest what comes to the port of the host that is the guest's.
fn receive_by_passt(host: &Host, guest: &mut Guest) -> TestResult {
    guest.begin("agent receive tcp:0.0.0.0:7000")?;
    // passt takes connections before the guest does, and ends them then.
    host.until("agent send tcp:127.0.0.1:7000 1048576")?;
    let (status, said) = guest.finish()?;
    assert!(status == 0 && said.contains("1048576 bytes"), "{said}");
    Ok(())
}

#[test]
fn a_share_s_killed_server_is_started_again() -> TestResult {
    let host = with_programs(Board::new())?;
    host.sh("mkdir /tmp/data && echo one >/tmp/data/a")?;
    let mut guest = host.guest("--share data=/tmp/data")?;
    guest.sh("mkdir /data && mount -t virtiofs data /data")?;
    for round in 1..=2 {
        assert_eq!(guest.sh("cat /data/a && umount /data")?.trim(), "one");
        // One that ends within a second of its start isn't started again.
        host.sh("sleep 1.2; pidof virtiofsd >/tmp/before && kill -9 $(cat /tmp/before)")?;
        guest.process().wait_for("the guest has to reset the device\n")?;
        guest.sh("cd /sys/bus/virtio/drivers/virtiofs && device=$(ls -d virtio*) && \
             echo $device >unbind && echo $device >bind && mount -t virtiofs data /data")?;
        host.sh("now=$(pidof virtiofsd) && [ \"$now\" != \"$(cat /tmp/before)\" ]")?;
        check_confined(&host, "virtiofsd", "mnt net pid")?;
        guest.sh(&format!("echo {round} >/data/b && sync"))?;
        assert_eq!(host.sh("cat /tmp/data/b")?.trim(), round.to_string());
    }
    assert_eq!(guest.power_off()?, 0);
    host.sh("! pidof virtiofsd")?;
    Ok(())
}

/// Who isn't root.
const USER: &str = "agent as 1000";

#[test]
fn an_ordinary_user_s_guest_has_directories_and_a_network() -> TestResult {
    let host = with_programs(Board::new())?;
    set_up_network(&host)?;
    host.sh("chmod 666 /dev/kvm && mkdir /tmp/data && chown 1000 /tmp/data && chmod 1777 /tmp")?;
    let launch = Launch::model().program(&format!("{USER} strait"));
    let mut guest = host.launch(&launch.with("--share data=/tmp/data --net passt"))?;
    check_confined(&host, "virtiofsd", "mnt net pid")?;
    check_confined(&host, "passt", "mnt user ipc uts")?;
    guest.sh("mkdir /data && mount -t virtiofs data /data && echo from the guest >/data/a")?;
    assert_eq!(host.sh("stat -c %u /tmp/data/a && cat /tmp/data/a")?, "1000\nfrom the guest\n");
    lease(&mut guest)?;
    let receiver = host.start("agent receive tcp:127.0.0.1:5000")?;
    guest.sh("agent send tcp:10.5.0.254:5000 65536")?;
    assert_eq!(receiver.exit_status()?, 0);
    assert_eq!(guest.power_off()?, 0);
    host.sh("! pidof passt virtiofsd")?;
    Ok(())
}

/// Starts a virtiofsd as people do, by a user.
fn serve_directory(host: &Host, user: &str) -> Result<Process, Failure> {
    let server = "/usr/libexec/virtiofsd --socket-path /tmp/fs.sock --shared-dir /tmp/data";
    let process = host.start(&format!("exec {user} {server} 2>&1"))?;
    host.until("[ -S /tmp/fs.sock ]")?;
    Ok(process)
}

#[test]
fn a_file_system_s_server_is_killed_and_started_again() -> TestResult {
    let host = with_programs(Board::new())?;
    host.sh("mkdir /tmp/data && chown 1000 /tmp/data && chmod 1777 /tmp && echo one >/tmp/data/a")?;
    for user in ["", USER] {
        let server = serve_directory(&host, user)?;
        let peer = if user.is_empty() { "" } else { ",peer=any" };
        let device = format!("--vhost-user fs,socket=/tmp/fs.sock,tag=data{peer}");
        let mut guest = host.guest(&device)?;
        check_confined(&host, "virtiofsd", "mnt net pid")?;
        guest.sh("mkdir /data && mount -t virtiofs data /data")?;
        assert_eq!(guest.sh("cat /data/a && umount /data")?.trim(), "one");
        // What the driver told it is lost with it.
        host.sh("kill -9 $(pidof virtiofsd) && rm -f /tmp/fs.sock*")?;
        server.exit_status()?;
        guest.process().wait_for("the guest has to reset the device\n")?;
        let _again = serve_directory(&host, user)?;
        guest.sh("cd /sys/bus/virtio/drivers/virtiofs && device=$(ls -d virtio*) && \
             echo $device >unbind && echo $device >bind && mount -t virtiofs data /data")?;
        assert_eq!(guest.sh("cat /data/a")?.trim(), "one");
        assert_eq!(guest.power_off()?, 0);
        host.sh("kill -9 $(pidof virtiofsd); rm -f /tmp/fs.sock*")?;
    }
    Ok(())
}

const SOCKET: &str = "/tmp/rng.sock";

fn serve(host: &Host, wrong: &str) -> Result<Process, Failure> {
    let mut backend = host.start(&format!("exec agent vhost-user serve {SOCKET} {wrong} 2>&1"))?;
    backend.wait_for("serving")?;
    Ok(backend)
}

/// What the guest's driver gets of the device: its bytes, which are all the same.
fn read(guest: &mut Guest) -> Result<String, Failure> {
    guest.sh("echo virtio_rng.0 >/sys/class/misc/hw_random/rng_current; \
         timeout 60 dd if=/dev/hwrng bs=16 count=4 2>/dev/null | hexdump -v -e '1/1 \"%02x\\n\"' | \
         sort | uniq -c | sort -rn | head -1 | awk '{ print $1 }'")
}

#[test]
fn a_backend_is_killed_and_started_again() -> TestResult {
    let host = Board::new().boot()?;
    let backend = serve(&host, "")?;
    let mut guest = host.guest(&format!("--vhost-user rng,socket={SOCKET}"))?;
    // Randomness has no run of as many equal bytes.
    let equal: u32 = read(&mut guest)?.trim().parse().unwrap_or(0);
    assert!(equal >= 16, "{equal}");
    backend.signal(9)?;
    guest.process().wait_for("strait waits for another")?;
    let _again = serve(&host, "")?;
    guest.process().wait_for("there is a backend again\n")?;
    let equal: u32 = read(&mut guest)?.trim().parse().unwrap_or(0);
    assert!(equal >= 16, "{equal}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_backend_that_goes_wrong_ends_nothing() -> TestResult {
    let host = Board::new().boot()?;
    let strait = format!("strait run --kernel /k/model --vhost-user rng,socket={SOCKET}");
    // While it is asked what it offers: told, in time.
    for (wrong, said) in [
        ("1 hang", "doesn't answer GET_FEATURES within 5 s"),
        ("1 nonsense", "doesn't keep to the protocol"),
        ("15 descriptors", "GET_PROTOCOL_FEATURES"),
    ] {
        let backend = serve(&host, wrong)?;
        let answer = host.run(&strait)?;
        assert_eq!(answer.status, 1, "{}", answer.errors);
        assert!(
            answer.errors.contains(said) && answer.errors.contains("help: "),
            "{}",
            answer.errors
        );
        backend.signal(9)?;
    }
    // When the guest's driver begins: its device alone is of no use.
    for (wrong, said) in
        [("5 hang", "doesn't answer SET_MEM_TABLE"), ("12 die", "closed the connection")]
    {
        let backend = serve(&host, wrong)?;
        let mut guest = host.guest(&format!("--vhost-user rng,socket={SOCKET}"))?;
        // It may have been said before the guest's shell was there.
        let mut log = guest.process().output();
        while !log.contains(said) {
            log += &guest.process().wait_for("\n")?;
        }
        assert!(guest.sh("dd if=/dev/urandom bs=16 count=1 | wc -c")?.contains("16"));
        assert_eq!(guest.power_off()?, 0);
        backend.signal(9)?;
    }
    Ok(())
}
