//! Consoles elsewhere than on standard input and output: their clients come and go, or get stuck.

use tests::harness::{Board, Failure, Guest, Host, Launch, Process, TestResult, payload};

/// The data register of the guest's serial port, by guest physical address.
const SERIAL: u32 = 0x0900_0000;

/// More bytes than are kept (64 KiB) and than a socket's buffer holds of single ones.
const MUCH: u32 = 80_000;

/// More bytes than a small file system holds.
const SOME: u32 = 9000;

const SIGKILL: i32 = 9;

/// A disk by which a guest without a client, or with one that is stuck, and the host tell each other.
const MARKS: &str = "--block /k/marks";

/// Has the guest wait until the host has written to the disk.
const AWAIT_MARK: &str = "until dd if=/dev/vda bs=512 count=1 iflag=direct 2>/dev/null | grep -q go; \
     do sleep 0.1; done";

fn board() -> Board {
    Board::new()
        .file("k/wait", payload::wait())
        .file("k/marks", vec![0; 1024])
        .file("k/some", payload::write_byte(SERIAL, u32::from(b'y'), SOME))
        .file("k/mmu-off", payload::access_with_write_back(SERIAL, false))
        .file("k/mmu-on", payload::access_with_write_back(SERIAL, true))
        .file("k/app.elf", payload::elf(SERIAL, "bare metal\n"))
        .file("k/app.bin", payload::binary(SERIAL, "bare metal\n"))
}

/// A client of the console at this path.
fn attach(host: &Host, path: &str) -> Result<Process, Failure> {
    host.start(&format!("exec agent client {path}"))
}

/// Has it go, and waits until it is gone.
fn leave(client: &Process) -> TestResult {
    client.end_of_input()?;
    client.exit_status().map(|_| ())
}

/// Has the guest go on.
fn mark(host: &Host) -> TestResult {
    host.sh("echo go | dd of=/k/marks conv=notrunc 2>/dev/null").map(|_| ())
}

/// Has the next one wait.
fn clear_mark(host: &Host) -> TestResult {
    host.sh("dd if=/dev/zero of=/k/marks bs=512 count=2 conv=notrunc 2>/dev/null").map(|_| ())
}

/// A client comes late, types, goes, and another one sees what it has missed; the guest is powered off.
fn come_and_go(host: &Host, path: &str, strait: &Process) -> TestResult {
    clear_mark(host)?;
    let mut client = attach(host, path)?;
    // What was printed before anybody was there.
    client.wait_for("GUEST READY: shell")?;
    client.send("echo typed $((6 * 7))\n")?;
    client.wait_for("typed 42")?;
    let say = "echo missed $((6 * 7)); echo said | dd of=/dev/vda bs=512 seek=1 conv=sync 2>/dev/null; sync";
    client.send(format!("({AWAIT_MARK}; {say}) & echo begun $((6 * 7))\n"))?;
    client.wait_for("begun 42")?;
    leave(&client)?;
    mark(host)?;
    host.until("grep -q said /k/marks")?;
    let mut client = attach(host, path)?;
    client.wait_for("missed 42")?;
    client.send("poweroff -f\n")?;
    assert_eq!((strait.exit_status()?, client.exit_status()?), (0, 0));
    Ok(())
}

#[test]
fn a_terminal_s_client_comes_back_and_sees_what_it_has_missed() -> TestResult {
    let host = board().boot()?;
    for (launch, name) in [
        (Launch::model().with(&format!("--console pty {MARKS}")), "serial"),
        (on_hvc0(&format!("--console off --virtio-console pty --cpus 4 {MARKS}")), "virtio"),
    ] {
        let mut strait = host.strait(&launch.arguments())?;
        strait.wait_for(&format!("strait: {name} console: "))?;
        let path = strait.wait_for("\n")?;
        come_and_go(&host, path.trim(), &strait)?;
    }
    Ok(())
}

/// A guest whose init is on hvc0.
fn on_hvc0(options: &str) -> Launch {
    Launch::model().cmdline("console=hvc0").with(options)
}

#[test]
fn a_virtio_console_moves_text_both_ways_without_exits() -> TestResult {
    let host = board().cpus(2).boot()?;
    let options = "--console file:/tmp/serial --virtio-console stdio --cpus 2";
    let mut guest = host.launch(&on_hvc0(options))?;
    assert_eq!(guest.sh("readlink /proc/self/fd/1")?.trim(), "/dev/hvc0");
    // 10 000 characters of each.
    let print = |to: &str| format!("head -c 10000 /dev/zero | tr '\\0' z >{to}");
    let nothing = host.exits_during(&mut guest, "true")?;
    let serial = host.exits_during(&mut guest, &print("/dev/ttyS0"))?;
    let virtio = host.exits_during(&mut guest, &print("/dev/hvc0"))?;
    assert!(serial >= 10_000, "{serial}");
    assert!(virtio <= nothing + 20, "{virtio}, {nothing} without");
    host.until("[ $(tr -dc z </tmp/serial | wc -c) = 10000 ]")?;
    text_goes_both_ways(&host, &mut guest, 2000)?;
    assert_eq!(guest.power_off()?, 0);
    by_pl011(&host, serial)?;
    bare_metal_programs(&host)?;
    // Two on one.
    let both = Launch::model().with("--console stdio --virtio-console stdio");
    let answer = host.run(&format!("strait {}", both.arguments()))?;
    assert_eq!(answer.status, 2, "{answer:?}");
    Ok(())
}

/// Has the guest print so many lines on its console, and read them there: all of them, in order.
pub fn text_goes_both_ways(host: &Host, guest: &mut Guest, lines: u32) -> TestResult {
    let expected = host.sh(&format!("seq 1 {lines} | sha256sum"))?;
    // Some lines by a write for each. Linux' driver of a virtio console then waits with its CPU busy until
    // each is taken, so the others go many at a time.
    let text =
        guest.sh(&format!("seq 1 100; stty -opost <&1; seq 101 {lines} | cat; stty opost <&1"))?;
    assert_eq!(text.lines().count(), lines as usize);
    let typed = guest.sh(&format!("sha256sum <<'END'\n{text}END"))?;
    assert_eq!(typed, expected);
    Ok(())
}

/// The same on a PL011, which costs Linux two exits a character, as its driver asks each time whether there is
/// room; `ns16550a` is what the other serial port costs.
fn by_pl011(host: &Host, ns16550a: u64) -> TestResult {
    let launch = Launch::model().cmdline("console=ttyAMA0").with("--serial pl011 --cpus 2");
    let mut guest = host.launch(&launch)?;
    assert_eq!(guest.sh("readlink /proc/self/fd/1")?.trim(), "/dev/ttyAMA0");
    let print = "head -c 10000 /dev/zero | tr '\\0' z >/dev/ttyAMA0";
    let pl011 = host.exits_during(&mut guest, print)?;
    assert!((10_000..ns16550a * 2).contains(&pl011), "{pl011}, an ns16550a {ns16550a}");
    text_goes_both_ways(host, &mut guest, 1000)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// Programs that are no Linux kernel find a PL011 and the device tree, which is at the base of RAM, or at its
/// end.
fn bare_metal_programs(host: &Host) -> TestResult {
    let at = format!("/k/app.bin,at={:#x}", payload::LINKED_TO + 0x20_0004);
    for kernel in ["/k/app.elf", &at, "/k/app.bin,at=0x40080000"] {
        for serial in ["pl011", "8250"] {
            let run = format!("strait run --kernel {kernel} --serial {serial} --timeout 60");
            let answer = host.run(&run)?;
            assert_eq!((answer.status, answer.output.as_str()), (0, "bare metal\n"), "{answer:?}");
        }
        let plan = host.sh(&format!("strait run --kernel {kernel} --dry-run"))?;
        assert!(plan.contains("bootargs = \"\""), "{plan}");
    }
    // Their accesses may be such as Linux makes none to devices.
    for kernel in ["/k/mmu-off", "/k/mmu-on"] {
        let run =
            format!("strait run --kernel {kernel} --serial pl011 --timeout 60 --stats /tmp/s");
        let answer = host.run(&run)?;
        assert_eq!((answer.status, answer.output.as_str()), (0, "ab\n"), "{answer:?}");
        let stats = host.sh("cat /tmp/s")?;
        assert!(stats.contains("\"undecodable\": 6"), "{stats}");
    }
    let nowhere = host.run("strait run --kernel /k/app.bin,at=0x0")?;
    assert!(nowhere.errors.contains("the guest has no RAM"), "{nowhere:?}");
    Ok(())
}

#[test]
fn a_virtio_console_has_the_size_of_its_terminal() -> TestResult {
    let host = board().boot()?;
    let launch = on_hvc0("--virtio-console stdio").arguments();
    let mut shell = host
        .on_terminal(&format!("stty rows 40 cols 100; echo tty=$(tty).; exec strait {launch}"))?;
    shell.wait_for("tty=")?;
    let tty = shell.wait_for(".")?;
    shell.wait_for("GUEST READY: ")?;
    shell.send("echo size $(stty size).\n")?;
    shell.wait_for("size 40 100.")?;
    host.sh(&format!("stty -F {} rows 51 cols 132", tty.trim_end_matches('.')))?;
    shell.send("until stty size | grep -q '51 132'; do sleep 0.1; done; echo re''sized\n")?;
    shell.wait_for("resized")?;
    shell.send("poweroff -f\n")?;
    assert_eq!(shell.exit_status()?, 0);
    Ok(())
}

#[test]
fn a_socket_s_client_comes_back_and_a_stuck_one_stops_nobody() -> TestResult {
    let host = board().boot()?;
    let launch = Launch::model().with(&format!("--console unix:/tmp/console {MARKS}"));
    // Its first client comes when the host has no open file left (accept4, ENFILE): strait has looked for one
    // once before.
    let short = "exec agent fail /tmp/failed 242 23 2 strait";
    let strait = host.start(&format!("{short} {} 2>&1", launch.arguments()))?;
    host.until("[ -S /tmp/console ]")?;
    let listing = host.sh("ls -l /tmp/console")?;
    assert!(listing.starts_with("srw-------"), "{listing}");
    come_and_go(&host, "/tmp/console", &strait)?;
    assert_eq!(host.run("[ -e /tmp/console ]")?.status, 1);
    let said = strait.output();
    assert!(said.contains("a client can't be accepted, it is tried again: "), "{said}");
    assert!(host.sh("cat /tmp/failed")?.contains("strait"));

    // Two at one socket; and one that is left behind.
    let run = "run --kernel /k/wait --console unix:/tmp/console";
    let strait = host.strait(run)?;
    host.until("[ -S /tmp/console ]")?;
    let answer = host.run(&format!("strait {run}"))?;
    assert!(answer.errors.contains("somebody listens there"), "{answer:?}");
    strait.signal(SIGKILL)?;
    strait.exit_status()?;
    host.sh("[ -S /tmp/console ]")?;

    // A client that takes nothing, while the guest prints more than anybody keeps.
    clear_mark(&host)?;
    let options = format!("--console unix:/tmp/console --stats /tmp/stats {MARKS}");
    let strait = host.strait(&Launch::model().with(&options).arguments())?.timeout(300);
    let mut client = host.start("until agent client /tmp/console; do sleep 0.1; done")?;
    client.wait_for("GUEST READY: shell")?;
    client.send(format!(
        "echo so''on; {AWAIT_MARK}; head -c {MUCH} /dev/zero | tr '\\0' x; poweroff -f\n"
    ))?;
    client.wait_for("soon")?;
    host.sh("kill -STOP $(pidof agent | tr ' ' '\\n' | head -1)")?;
    mark(&host)?;
    assert_eq!(strait.exit_status()?, 0);
    let stats: serde_json::Value =
        serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("statistics are JSON");
    let dropped = stats["output_dropped"]["console"].as_u64().unwrap_or_default();
    assert!(dropped > 0 && dropped < u64::from(MUCH), "{dropped}");
    Ok(())
}

#[test]
fn a_file_gets_the_output_of_each_run_and_a_full_one_ends_none() -> TestResult {
    let host = board().boot()?;
    let run = "strait run --kernel /k/some --console file:/tmp/log";
    let answer = host.run(&format!("echo before >/tmp/log; {run} && {run} --dry-run"))?;
    assert_eq!((answer.status, answer.errors.as_str()), (0, ""), "{answer:?}");
    assert!(answer.output.contains("serial console (ns16550a), file:/tmp/log"), "{answer:?}");
    let log = host.sh("cat /tmp/log")?;
    assert!(log == format!("before\n{}", "y".repeat(SOME.try_into().unwrap_or(0))));
    host.sh("mkdir /tmp/full && mount -t tmpfs -o size=8k none /tmp/full")?;
    let run = "strait run --kernel /k/some --console file:/tmp/full/log --stats /tmp/stats";
    let answer = host.run(run)?;
    assert_eq!(answer.status, 0, "{answer:?}");
    assert_eq!(answer.errors.matches("can't be written").count(), 1, "{answer:?}");
    assert_eq!(
        host.sh("wc -c </tmp/full/log; ls -l /tmp/full/log")?.split_whitespace().next(),
        Some("8192")
    );
    for wrong in ["/tmp", "/tmp/none/log", "/dev/ptmx"] {
        let answer = host.run(&format!("strait run --kernel /k/some --console file:{wrong}"))?;
        let named = answer.errors.contains(&format!("--console file:{wrong}: "));
        assert!(answer.status == 1 && named, "{answer:?}");
    }
    Ok(())
}
