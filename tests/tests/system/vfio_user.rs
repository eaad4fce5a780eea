//! PCI devices of other processes: a server in the model host, and its device in a guest.

use std::time::{Duration, Instant};

use tests::harness::{Board, Failure, Guest, Host, PLATFORM_DMA, Process, TestResult, payload};

/// Where the server listens.
pub const SOCKET: &str = "/tmp/device.sock";
/// The device's name in the guest.
pub const DEVICE: &str = "0000:00:01.0";
/// What strait says of a failed device, once.
const FAILED: &str = "the device has failed";

/// Starts a server.
fn serve_at(host: &Host, socket: &str) -> Result<Process, Failure> {
    let mut server = host.start(&format!("exec agent vfio-user serve {socket} 2>&1"))?;
    server.wait_for("serving")?;
    Ok(server)
}

pub fn serve(host: &Host) -> Result<Process, Failure> {
    serve_at(host, SOCKET)
}

/// A guest with the served device.
fn guest(host: &Host) -> Result<Guest, Failure> {
    host.guest(&format!("--vfio-user {SOCKET}"))
}

/// Has all of the device driven.
pub fn drive(guest: &mut Guest, device: &str) -> TestResult {
    let said = guest.sh(&format!("agent vfio-user drive {device}"))?;
    assert!(said.contains("copies: 64 on 4 vectors") && said.contains("passed"), "{said}");
    Ok(())
}

/// Has the server go wrong in this way; what the guest says is left. Said when strait has told of it,
/// on the same terminal.
fn go_wrong(guest: &mut Guest, way: u32) -> Result<String, Failure> {
    guest.sh(&format!("agent vfio-user wrong {DEVICE} {way} >/tmp/left; sleep 1; cat /tmp/left"))
}

/// Checks what is left of a device whose server went wrong: nothing but ones, and a guest that
/// lives.
fn has_failed(guest: &mut Guest, said: &str, why: &str) -> TestResult {
    assert!(said.contains("identity 0xffffffff\nmemory 0xffffffff"), "{said}");
    // Configuration space, too.
    assert_eq!(guest.sh(&format!("hexdump -n 4 -e '1/4 \"%08x\"' {CONFIG}"))?, "ffffffff");
    // Told by another thread, which a busy machine may keep waiting.
    for _ in 0..100 {
        if guest.process().output().contains(FAILED) {
            break;
        }
        guest.sh("sleep 0.1")?;
    }
    let output = guest.process().output();
    let told: Vec<_> = output.lines().filter(|line| line.contains(FAILED)).collect();
    assert!(told.len() == 1 && told[0].contains(SOCKET) && told[0].contains(why), "{told:?}");
    Ok(())
}

/// The device's configuration space as the guest's kernel reads it.
const CONFIG: &str = "/sys/bus/pci/devices/0000:00:01.0/config";

#[test]
fn a_guest_drives_a_device_of_another_process() -> TestResult {
    let host = Board::new().boot()?;
    let _server = serve(&host)?;
    let offer = host.sh(&format!("strait device show --vfio-user {SOCKET}"))?;
    for wanted in [
        "1b36:7573, class ff0000",
        "BAR 2: 0x4000 bytes, readable, writable, mappable at 0x0-0x3fff",
        "MSI-X: count 4",
    ] {
        assert!(offer.contains(wanted), "no {wanted} in:\n{offer}");
    }
    let plan =
        host.sh(&format!("strait run --kernel /k/model --vfio-user {SOCKET},addr=03.0 --dry-run"))?;
    assert!(plan.contains(&format!("00:03.0  {SOCKET}")), "{plan}");

    let mut one = guest(&host)?;
    assert!(one.sh("cat /sys/bus/pci/devices/*/uevent")?.contains("PCI_ID=1B36:7573"));
    drive(&mut one, DEVICE)?;
    assert_eq!(one.power_off()?, 0);
    // The same server takes the next, which is traced.
    let trace = format!("--trace {SOCKET},out=/tmp/trace");
    let mut next = host.guest(&format!("--vfio-user {SOCKET},addr=1f.0 {trace}"))?;
    drive(&mut next, "0000:00:1f.0")?;
    assert_eq!(next.power_off()?, 0);
    let trace = host.sh("cat /tmp/trace")?;
    for wanted in
        [" config:0x000 0x75731b36 PCI_VENDOR_ID", " write 0x", " 2:0x", "interrupt msix 3\n"]
    {
        assert!(trace.contains(wanted), "no {wanted} in:\n{trace}");
    }
    Ok(())
}

#[test]
fn a_server_in_libvfio_user_s_manners_asks_for_memory_by_messages() -> TestResult {
    let host = Board::new().boot()?;
    let single = "/tmp/single.sock";
    // On a connection of its own, and all the time; or on the one that there is.
    let _servers = [
        serve_at(&host, &format!("{SOCKET} messages"))?,
        serve_at(&host, &format!("{single} single"))?,
    ];
    let mut guest = host.guest(&format!("--vfio-user {SOCKET} --vfio-user {single}"))?;
    drive(&mut guest, DEVICE)?;
    drive(&mut guest, "0000:00:02.0")?;
    // A refused write, with data behind the refusal, is ignored: SERR# in the command register.
    let command = format!("hexdump -s 4 -n 2 -e '1/2 \"%04x\"' {CONFIG}");
    let before = guest.sh(&command)?;
    guest.sh(&format!("printf '\\001' | dd of={CONFIG} bs=1 seek=5 conv=notrunc"))?;
    assert_eq!(guest.sh(&command)?, before);
    drive(&mut guest, DEVICE)?;
    assert!(!guest.process().output().contains(FAILED));
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn servers_of_strangers_are_refused_unless_told() -> TestResult {
    let host = Board::new().boot()?;
    host.sh("mkdir -m 755 /tmp/theirs && chown 1000 /tmp/theirs && mkdir -m 777 /tmp/open")?;
    let (theirs, open) = ("/tmp/theirs/socket", "/tmp/open/socket");
    let mut server =
        host.start(&format!("exec agent as 1000 agent vfio-user serve {theirs} 2>&1"))?;
    server.wait_for("serving")?;
    let _open = serve_at(&host, open)?;
    let plan = |socket: &str| {
        host.run(&format!("strait run --kernel /k/model --dry-run --vfio-user {socket}"))
    };
    for (socket, why, mend) in [
        (theirs, "of user 1000", format!("--vfio-user {theirs},peer=1000\n")),
        (open, "all users can write to /tmp/open", format!("--vfio-user {open},peer=any\n")),
    ] {
        let refused = plan(socket)?;
        assert_eq!(refused.status, 1, "{}", refused.errors);
        assert!(
            refused.errors.contains(why) && refused.errors.contains(&mend),
            "{}",
            refused.errors
        );
    }
    for socket in [format!("{theirs},peer=1000"), format!("{open},peer=any")] {
        let taken = plan(&socket)?;
        assert_eq!(taken.status, 0, "{}", taken.errors);
        let offer = host.sh(&format!("strait device show --vfio-user {socket}"))?;
        assert!(offer.contains("1b36:7573"), "{offer}");
    }
    Ok(())
}

#[test]
fn where_there_are_no_messages_its_line_works() -> TestResult {
    let host = Board::new().gic(2).boot()?;
    let _server = serve(&host)?;
    let mut guest = guest(&host)?;
    let said = guest.sh(&format!("agent vfio-user line {DEVICE}"))?;
    assert!(said.contains("line: a level"), "{said}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn devices_of_two_processes_beside_one_of_the_host() -> TestResult {
    let host = Board::new().boot()?;
    let second = "/tmp/second.sock";
    let _servers = [serve(&host)?, serve_at(&host, second)?];
    host.bind(PLATFORM_DMA[0])?;
    let mut guest = host.guest(&format!(
        "--cpus 2 --vfio-user {SOCKET} --vfio-platform {} --vfio-user {second}",
        PLATFORM_DMA[0]
    ))?;
    guest.begin(&format!(
        "agent vfio-user copy {DEVICE} 20 >/tmp/one & agent vfio-user copy 0000:00:02.0 20 && \
         wait $! && cat /tmp/one"
    ))?;
    let (status, said) = guest.finish()?;
    assert_eq!((status, said.matches("copied 320").count()), (0, 2), "{said}");
    assert!(guest.log_of("PL330")?.contains("Loaded driver for PL330 DMAC"));
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_server_that_dies_leaves_a_failed_device() -> TestResult {
    let host = Board::new().boot()?;
    let server = serve(&host)?;
    let mut guest = guest(&host)?;
    drive(&mut guest, DEVICE)?;
    let said = go_wrong(&mut guest, 1)?;
    has_failed(&mut guest, &said, "the server closed the connection")?;
    assert_eq!(server.exit_status()?, 128 + 6);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_server_that_hangs_stops_the_guest_once() -> TestResult {
    let host = Board::new().boot()?;
    let server = serve(&host)?;
    let mut first = guest(&host)?;
    let said = go_wrong(&mut first, 2)?;
    has_failed(&mut first, &said, "the server doesn't answer VFIO_USER_REGION_WRITE")?;
    // Another finds it as it is, and is told so.
    let refused = host.run(&format!("strait run --kernel /k/model --vfio-user {SOCKET}"))?;
    assert_eq!(refused.status, 1);
    assert!(refused.errors.contains("doesn't answer within 5 s\n  help: "), "{}", refused.errors);
    // When it goes on, it finds that both are gone.
    server.signal(18)?;
    host.until(&format!("strait device show --vfio-user {SOCKET}"))?;
    assert_eq!(first.power_off()?, 0);
    let mut second = guest(&host)?;
    drive(&mut second, DEVICE)?;
    assert_eq!(second.power_off()?, 0);
    Ok(())
}

#[test]
fn a_server_that_hangs_stops_no_end() -> TestResult {
    let host = Board::new().file("k/spin", payload::spin()).boot()?;
    let server = serve(&host)?;
    let strait = host.strait(&format!("run --kernel /k/spin --vfio-user {SOCKET}"))?;
    host.until("grep -qs vcpu0 /proc/[0-9]*/task/*/comm")?;
    // The kick of vCPUs (SIGRTMIN) does nothing where another process sends it, to the main thread.
    strait.signal(34)?;
    // The end is what asks the server first.
    server.signal(19)?;
    strait.signal(15)?;
    assert_eq!(strait.exit_status()?, 128 + 15);
    assert!(strait.output().contains("doesn't answer"), "{}", strait.output());
    Ok(())
}

#[test]
fn a_server_that_sends_nonsense_is_left() -> TestResult {
    let host = Board::new().boot()?;
    let _server = serve(&host)?;
    let mut guest = guest(&host)?;
    let said = go_wrong(&mut guest, 3)?;
    has_failed(&mut guest, &said, "the server sent")?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_server_that_dies_while_nobody_asks_is_noticed() -> TestResult {
    let host = Board::new().boot()?;
    let server = serve(&host)?;
    let mut guest = host.guest(&format!("--vfio-user {SOCKET} --on-reset restart"))?;
    server.signal(9)?;
    guest.process().wait_for(FAILED)?;
    guest.process().wait_for("from here on\n")?;
    assert_eq!(guest.sh("echo alive")?.trim(), "alive");
    // As with a function that the host has taken back, a guest that begins anew doesn't find it.
    guest.begin_anew()?;
    guest.sh(&format!("[ ! -e /sys/bus/pci/devices/{DEVICE} ]"))?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_signal_ends_a_run_that_waits_for_a_server() -> TestResult {
    let host = Board::new().boot()?;
    // The server has 5 s for its answer, of which the end may take some on a busy machine.
    let mut took = Vec::new();
    while took.len() < 5 && took.iter().all(|time| *time >= Duration::from_secs(4)) {
        let server = serve(&host)?;
        let pid = server.pid()?;
        let mut guest = guest(&host)?;
        guest.begin(&format!("agent vfio-user wrong {DEVICE} 2"))?;
        host.until(&format!("grep -q '^State:.T' /proc/{pid}/status"))?;
        let asked = Instant::now();
        guest.process().signal(15)?;
        assert_eq!(guest.exit_status()?, 128 + 15);
        took.push(asked.elapsed());
        server.signal(9)?;
        server.exit_status()?;
    }
    assert!(took.iter().any(|time| *time < Duration::from_secs(4)), "{took:?}");
    Ok(())
}
