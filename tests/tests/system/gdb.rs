//! A debugger by GDB's remote protocol: what it sees and does of an unmodified Linux guest, and what is left
//! of that.

use tests::harness::{Board, Failure, Guest, Host, PLATFORM_DMA, Process, TestResult, payload};

/// Where guests listen.
const SOCKET: &str = "/tmp/gdb";

/// GDB's numbers of registers.
const PC: usize = 32;
const SCTLR_EL1: usize = 0xc080;

/// A debugger that is connected.
struct Gdb(Process);

impl Gdb {
    fn connect(host: &Host, address: &str) -> Result<Self, Failure> {
        host.until(&format!(
            "[ -e {address} ] || case {address} in tcp:*) true;; *) false;; esac"
        ))?;
        let mut gdb = Self(host.start(&format!("exec agent gdb {address}"))?);
        assert!(gdb.ask("qSupported:swbreak+;hwbreak+")?.contains("swbreak+;hwbreak+"));
        Ok(gdb)
    }

    /// The answer to a packet.
    fn ask(&mut self, packet: &str) -> Result<String, Failure> {
        self.0.send(format!("{packet}\n"))?;
        self.answer()
    }

    /// A packet whose answer comes later.
    fn begin(&self, packet: &str) -> TestResult {
        self.0.send(format!("!{packet}\n"))
    }

    /// The answer to the next that has one.
    fn answer(&mut self) -> Result<String, Failure> {
        self.0.wait_for("< ")?;
        Ok(self.0.wait_for("\n")?.trim_end().to_owned())
    }

    /// Has it stop where the guest goes on to a stop by itself, and answers the packet that tells of it.
    fn stop(&mut self) -> Result<String, Failure> {
        self.0.send("interrupt\n")?;
        self.answer()
    }

    fn expect(&mut self, packet: &str, answer: &str) -> TestResult {
        assert_eq!(self.ask(packet)?, answer, "{packet}");
        Ok(())
    }

    /// A register of the current thread.
    fn register(&mut self, number: usize) -> Result<u64, Failure> {
        let text = self.ask(&format!("p{number:x}"))?;
        Ok(u64::from_str_radix(&text, 16).expect("a register is hexadecimal").swap_bytes())
    }

    /// What `monitor` says.
    fn monitor(&mut self, command: &str) -> Result<String, Failure> {
        let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.ask(&format!("qRcmd,{hex}"))
    }

    /// Goes without a word.
    fn die(self) -> TestResult {
        self.0.signal(9)?;
        self.0.exit_status().map(|_| ())
    }
}

/// Where the guest's kernel has a symbol.
fn symbol(guest: &mut Guest, name: &str) -> Result<u64, Failure> {
    let line = guest.sh(&format!("grep ' {name}$' /proc/kallsyms"))?;
    let address = line.split_whitespace().next().unwrap_or_default();
    Ok(u64::from_str_radix(address, 16).expect("kallsyms begins with an address"))
}

/// The thread of a stop.
fn thread(stop: &str) -> String {
    let (_, rest) = stop.split_once("thread:").expect("a stop has a thread");
    rest.split(';').next().unwrap_or_default().to_owned()
}

#[test]
fn a_debugger_stops_steps_and_watches_linux_and_leaves_it_as_it_was() -> TestResult {
    let host = Board::new().cpus(2).boot()?;
    host.bind(PLATFORM_DMA[0])?;
    let device = format!("--stats /tmp/stats --vfio-platform {}", PLATFORM_DMA[0]);
    let mut guest = host.guest(&format!("--cpus 2 --gdb unix:{SOCKET} {device}"))?;
    let sync = symbol(&mut guest, "ksys_sync")?;
    let timeout = symbol(&mut guest, "panic_timeout")?;
    let mut gdb = Gdb::connect(&host, SOCKET)?;
    let description = gdb.ask("qXfer:features:read:target.xml:0,3fff")?;
    assert!(description.contains("\"SCTLR_EL1\" bitsize=\"64\" regnum=\"49280\""), "{description}");
    gdb.expect("qfThreadInfo", "m01,02")?;
    // A breakpoint in memory isn't seen there; and is hit by the vCPU that comes.
    let code = gdb.ask(&format!("m{sync:x},8"))?;
    gdb.expect(&format!("Z0,{sync:x},4"), "OK")?;
    gdb.expect(&format!("m{sync:x},8"), &code)?;
    guest.begin("sync")?;
    let stop = gdb.ask("vCont;c")?;
    assert!(stop.starts_with("T05") && stop.contains("swbreak:;"), "{stop}");
    let stopped = thread(&stop);
    gdb.expect(&format!("Hg{stopped}"), "OK")?;
    assert_eq!(gdb.register(PC)?, sync);
    assert_eq!(gdb.register(SCTLR_EL1)? & 1, 1, "the MMU is on");
    // Two steps, over the breakpoint, whatever interrupts wait.
    gdb.expect(&format!("z0,{sync:x},4"), "OK")?;
    for steps in 1..=2 {
        let stop = gdb.ask(&format!("vCont;s:{stopped}"))?;
        assert!(stop.starts_with("T05") && thread(&stop) == stopped, "{stop}");
        assert_eq!(gdb.register(PC)?, sync + 4 * steps);
    }
    // A breakpoint of the hardware.
    gdb.begin("vCont;c")?;
    assert_eq!(guest.finish()?.0, 0);
    assert!(gdb.stop()?.starts_with("T02"));
    gdb.expect(&format!("Z1,{sync:x},4"), "OK")?;
    guest.begin("sync")?;
    let stop = gdb.ask("vCont;c")?;
    assert!(stop.starts_with("T05") && stop.contains("hwbreak:;"), "{stop}");
    gdb.expect(&format!("z1,{sync:x},4"), "OK")?;
    gdb.begin("vCont;c")?;
    assert_eq!(guest.finish()?.0, 0);
    // A watchpoint, before the store and after it.
    assert!(gdb.stop()?.starts_with("T02"));
    gdb.expect(&format!("Z2,{timeout:x},4"), "OK")?;
    guest.begin("echo 77 >/proc/sys/kernel/panic")?;
    let stop = gdb.ask("vCont;c")?;
    assert!(stop.contains(&format!("watch:{timeout:x};")), "{stop}");
    let before = gdb.ask(&format!("m{timeout:x},4"))?;
    gdb.expect(&format!("z2,{timeout:x},4"), "OK")?;
    let stopped = thread(&stop);
    gdb.expect(&format!("Hg{stopped}"), "OK")?;
    gdb.ask(&format!("vCont;s:{stopped}"))?;
    let after = gdb.ask(&format!("m{timeout:x},4"))?;
    assert_eq!((before == after, after.as_str()), (false, "4d000000"));
    // It dies, and leaves the guest with nothing of it.
    gdb.expect(&format!("Z0,{sync:x},4"), "OK")?;
    gdb.expect(&format!("Z1,{:x},4", sync + 4), "OK")?;
    gdb.die()?;
    assert_eq!(guest.finish()?.0, 0);
    guest.sh("sync && sync")?;
    another(&host, &mut guest, sync, &code)
}

/// The next debugger finds the guest as it was, looks, and lets go; the last one ends it.
fn another(host: &Host, guest: &mut Guest, sync: u64, code: &str) -> TestResult {
    let mut gdb = Gdb::connect(host, SOCKET)?;
    gdb.expect(&format!("m{sync:x},8"), code)?;
    assert!(gdb.monitor("info devices")?.contains("|rtc: "));
    // The debugger's thread reads the kernel's counters itself.
    assert!(gdb.monitor("info irqs")?.contains("fired"));
    assert!(gdb.monitor("info stats")?.contains("fired"));
    assert!(gdb.monitor("nonsense")?.contains("info devices"));
    // The kernel's image is at the beginning of RAM: its header's magic number.
    assert!(gdb.monitor("memory physical")?.contains("physical"));
    let magics = [0x4000_0038_u64, 0x4020_0038].map(|gpa| gdb.ask(&format!("m{gpa:x},4")));
    let magics = magics.into_iter().collect::<Result<Vec<_>, _>>()?;
    assert!(magics.iter().any(|magic| magic == "41524d64"), "{magics:?}");
    // There is a device, and nothing.
    for address in [0x900_0000_u64, 0xffff_ffff_ffff_fffe] {
        assert!(gdb.ask(&format!("m{address:x},4"))?.starts_with('E'));
    }
    gdb.expect("Z0,9000000,4", "E0e")?;
    gdb.expect("D", "OK")?;
    guest.sh("sync")?;
    let mut gdb = Gdb::connect(host, SOCKET)?;
    assert!(gdb.ask("?")?.starts_with("T05"));
    gdb.begin("k")?;
    assert_eq!(guest.exit_status()?, 0);
    host.sh(&format!("[ ! -e {SOCKET} ]"))?;
    Ok(())
}

#[test]
fn a_guest_waits_for_its_debugger_and_tells_it_its_end() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    host.sh("ip link set lo up")?;
    let plan =
        host.sh(&format!("strait run --kernel /k/off --dry-run --gdb unix:{SOCKET},wait"))?;
    assert!(
        plan.contains(&format!("\nGDB: target remote {SOCKET}, the guest waits for it\n")),
        "{plan}"
    );
    host.sh(&format!("[ ! -e {SOCKET} ]"))?;
    // It comes when the host has no open file left (accept4, ENFILE), and is accepted when there is one.
    let short = "exec agent fail /tmp/failed 242 23 1";
    let mut strait =
        host.start(&format!("{short} strait run --kernel /k/off --gdb tcp:0,wait 2>&1"))?;
    strait.wait_for("strait: GDB: target remote 127.0.0.1:")?;
    let port = strait.wait_for(",")?;
    let mut gdb = Gdb::connect(&host, &format!("tcp:127.0.0.1:{}", port.trim_end_matches(',')))?;
    // The first instruction has not run: x0 is the device tree's address.
    gdb.expect("Hg1", "OK")?;
    assert!(host.sh("cat /tmp/failed")?.contains("gdb"));
    let (entry, tree) = (gdb.register(PC)?, gdb.register(0)?);
    assert!(entry >= 0x4000_0000 && entry.is_multiple_of(4), "{entry:#x}");
    assert!(gdb.ask(&format!("m{tree:x},4"))? == "d00dfeed", "{tree:#x}");
    assert!(gdb.ask("vCont;s:1")?.starts_with("T05"));
    assert_ne!(gdb.register(PC)?, entry);
    gdb.expect("P05=efbeadde00000000", "OK")?;
    assert_eq!(gdb.register(5)?, 0xdead_beef);
    gdb.expect("vCont;c", "W00")?;
    assert_eq!(strait.exit_status()?, 0);
    Ok(())
}

#[test]
fn a_debugger_connects_to_a_host_that_was_short_of_memory() -> TestResult {
    let host = Board::new().file("k/off", payload::power_off()).boot()?;
    host.sh("ip link set lo up")?;
    // Each wait in which it could come or be heard, one after the other (ppoll, ENOMEM); the first is the standard
    // library's.
    for wait in 2..6 {
        let short = format!("exec agent fail /tmp/failed 73 12 {wait}");
        let mut strait =
            host.start(&format!("{short} strait run --kernel /k/off --gdb tcp:0,wait 2>&1"))?;
        strait.wait_for("strait: GDB: target remote 127.0.0.1:")?;
        let port = strait.wait_for(",")?;
        let port = format!("tcp:127.0.0.1:{}", port.trim_end_matches(','));
        let mut gdb = Gdb::connect(&host, &port)?;
        gdb.expect("Hg1", "OK")?;
        assert!(gdb.register(PC)? >= 0x4000_0000);
        gdb.expect("vCont;c", "W00")?;
        assert_eq!(strait.exit_status()?, 0);
        let failed = host.sh("cat /tmp/failed")?;
        assert!(failed.contains("gdb"), "{wait}: {failed}");
    }
    Ok(())
}

#[test]
fn a_debugger_has_a_guest_that_begins_anew() -> TestResult {
    let host = Board::new().cpus(2).file("k/reset", payload::reset()).boot()?;
    let options = format!("--cpus 2 --on-reset restart --gdb unix:{SOCKET},wait");
    let strait = host.strait(&format!("run --kernel /k/reset {options}"))?;
    let mut gdb = Gdb::connect(&host, SOCKET)?;
    // Wherever it is: a vCPU that asks for a reset waits elsewhere than one that is stopped.
    gdb.expect("Hg1", "OK")?;
    let entry = gdb.register(PC)?;
    for _ in 0..100 {
        gdb.begin("vCont;c")?;
        assert!(gdb.stop()?.starts_with("T02"));
    }
    for _ in 0..3 {
        gdb.expect(&format!("Z1,{entry:x},4"), "OK")?;
        let stop = gdb.ask("vCont;c")?;
        assert!(stop.starts_with("T05thread:01;hwbreak:;"), "{stop}");
        assert_eq!(gdb.register(PC)?, entry);
        gdb.expect(&format!("z1,{entry:x},4"), "OK")?;
        gdb.ask("vCont;s:1")?;
        assert_ne!(gdb.register(PC)?, entry);
    }
    gdb.begin("k")?;
    assert_eq!(strait.exit_status()?, 0);
    Ok(())
}

#[test]
fn what_a_debugger_steps_over_is_traced_as_if_it_ran() -> TestResult {
    /// The first register of a PL330 that says what it is, where a guest has it.
    const REGISTER: u32 = 0x0c00_0fe0;
    /// `LDRB W0, [X2]`, by which the guest reads it.
    const LOAD: &str = "40004039";
    const READS: usize = 50;
    let name = PLATFORM_DMA[0];
    let code = payload::read_byte(REGISTER, u32::try_from(READS).unwrap_or_default());
    let host = Board::new().file("k/read", code).boot()?;
    host.bind(name)?;
    let guest = host.strait(&format!(
        "run --kernel /k/read --memory 16M --vfio-platform {name} --gdb unix:{SOCKET},wait \
         --trace {name},out=/tmp/trace"
    ))?;
    let mut gdb = Gdb::connect(&host, SOCKET)?;
    gdb.expect("Hg1", "OK")?;
    let (mut loads, mut steps) = (Vec::new(), 0);
    while loads.len() < 3 {
        // What it asks for itself doesn't reach the device.
        gdb.expect(&format!("m{REGISTER:x},1"), "E0e")?;
        gdb.expect(&format!("M{REGISTER:x},1:00"), "E0e")?;
        let pc = gdb.register(PC)?;
        if gdb.ask(&format!("m{pc:x},4"))? == LOAD {
            loads.push(pc);
        }
        assert!(gdb.ask("vCont;s:1")?.starts_with("T05"));
        assert_ne!(gdb.register(PC)?, pc);
        steps += 1;
        assert!(steps < 100, "{loads:x?}");
    }
    // It stops before the next, and goes on from there.
    let load = loads.first().copied().unwrap_or_default();
    gdb.expect(&format!("Z0,{load:x},4"), "OK")?;
    assert!(gdb.ask("vCont;c")?.contains("swbreak:;"));
    assert_eq!(gdb.register(PC)?, load);
    host.until(&format!("[ $(grep -c ' read ' /tmp/trace) = {} ]", loads.len()))?;
    gdb.expect(&format!("z0,{load:x},4"), "OK")?;
    // A watchpoint there is one that the CPU never comes to: the access has trapped before.
    gdb.expect(&format!("Z3,{REGISTER:x},1"), "OK")?;
    gdb.expect("vCont;c", "W00")?;
    assert_eq!(guest.exit_status()?, 0);
    let trace = host.sh("cat /tmp/trace")?;
    let line = format!(" cpu0 {load:016x} read  0xfe0 0x30 periph_id_0.0");
    assert_eq!((trace.matches(&line).count(), trace.lines().count()), (READS, READS), "{trace}");
    Ok(())
}
