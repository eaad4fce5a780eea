//! `--trace`: what a guest's driver does with its device.

use std::collections::BTreeMap;

use serde_json::Value;
use tests::harness::payload::{self, EventLine};
use tests::harness::{Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, TestResult};

const NAME: &str = PLATFORM_DMA[0];

/// A little work for a PL330.
const WORK: DmaTest = DmaTest { copies: 10, size: 4096, channels: 8 };

fn host() -> Result<Host, Failure> {
    let host = Board::new().boot()?;
    host.bind(NAME)?;
    Ok(host)
}

/// The accesses to the device that the VMM has counted: reads and writes.
fn counted(host: &Host) -> Result<[u64; 2], Failure> {
    let text = host.sh("cat /tmp/stats")?;
    let stats: Value = serde_json::from_str(&text).expect("statistics are JSON");
    Ok(["reads", "writes"].map(|kind| stats["devices"][NAME][kind].as_u64().unwrap_or_default()))
}

/// Checks that lines come in this order, maybe with others between them: each is a part of one.
fn check_order<'a>(trace: &'a str, parts: &[&str]) {
    let mut lines = trace.lines();
    for part in parts {
        let found: Option<&'a str> = lines.find(|line| line.contains(part));
        assert!(found.is_some(), "no {part} where it is due in:\n{trace}");
    }
}

#[test]
fn a_driver_s_accesses_and_interrupts_are_told_by_name() -> TestResult {
    let host = host()?;
    let options =
        format!("--vfio-platform {NAME} --stats /tmp/stats --trace {NAME},out=/tmp/trace");
    let mut guest = host.guest(&options)?;
    WORK.pass(&mut guest)?;
    let handled: u64 = guest.interrupts()?.sum(".dma");
    assert_eq!(guest.power_off()?, 0);
    assert_eq!(host.sh("stat -c %a /tmp/trace")?.trim(), "600");
    let trace = host.sh("cat /tmp/trace")?;
    // Linux' driver finds the device, reads what it has, and lets a channel go.
    check_order(
        &trace,
        &[
            "read  0xfe0 0x00000030 periph_id_0",
            "read  0xff0 0x0000000d pcell_id_0",
            "CR0 ",
            "read  0xd00 0x00000000 DBGSTATUS",
            "DBGINST0",
            "DBGINST1",
            "write 0xd04 0x00000000 DBGCMD",
            "interrupt ",
            "INT_EVENT_RIS",
            "INTCLR",
            " ended",
        ],
    );
    let count = |word: &str| trace.lines().filter(|line| line.contains(word)).count() as u64;
    assert_eq!([count(" read  "), count(" write ")], counted(&host)?, "{trace}");
    let ended = count(" ended");
    assert!(count("interrupt ") == 2 * ended && ended >= handled && handled > 10, "{trace}");
    // Accesses are a vCPU's, of the kernel's code.
    let access = trace.lines().find(|line| line.contains("DBGCMD")).unwrap_or_default();
    assert!(access.contains(" cpu0 ffff"), "{access}");
    let times = trace.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    assert!(times.is_sorted_by(|a: &f64, b: &f64| a <= b), "{trace}");
    Ok(())
}

/// A guest that has its DMA controller raise an interrupt so many times, and takes it.
const TRIES: usize = 5;
const LINE: EventLine = EventLine { controller: 0x0c00_0000, event: 3, intid: 96 + 3 };

/// What strait says of a payload that runs with these options, and its exit status.
fn run(host: &Host, kernel: &str, options: &str) -> Result<(i32, String), Failure> {
    let command = format!("run --kernel /k/{kernel} --memory 16M --vfio-platform {NAME} {options}");
    let strait = host.strait(&command)?;
    let status = strait.exit_status()?;
    Ok((status, strait.output()))
}

#[test]
fn programs_read_it_as_json_and_as_value_changes() -> TestResult {
    let tries = u32::try_from(TRIES).unwrap_or_default();
    let board = Board::new()
        .file("k/take", payload::take_interrupts(LINE, false, tries))
        .file("k/anew", payload::take_interrupts_and_reset(LINE, 1))
        .file("k/read", payload::read_byte(LINE.controller + 0xfe0, 20_000))
        .file("table", "[ENABLE]\noffset = 0x20\nfields = { THREE = 3 }\n");
    let host = board.boot()?;
    host.bind(NAME)?;

    let (status, said) = run(&host, "take", &format!("--trace {NAME},out=/tmp/t,format=json"))?;
    assert_eq!((status, said.as_str()), (0, ""));
    let trace = host.sh("cat /tmp/t")?;
    let events: Vec<Value> =
        trace.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let of = |kind: &'static str| events.iter().filter(move |event| event["event"] == kind);
    let written = |name: &str| of("write").filter(|e| e["registers"][0]["name"] == name).count();
    for register in ["INTEN", "DBGINST0", "DBGINST1", "DBGCMD", "INTCLR"] {
        assert_eq!(written(register), TRIES, "{register}: {trace}");
    }
    assert_eq!(of("write").count(), 5 * TRIES);
    for kind in ["interrupt", "ended"] {
        assert_eq!(of(kind).filter(|event| event["index"] == 3).count(), TRIES, "{trace}");
    }
    let first = of("write").next().expect("the guest has written");
    assert_eq!(
        (&first["value"], &first["width"], &first["cpu"]),
        (&"0x8".into(), &4.into(), &0.into())
    );
    assert!(first["pc"].as_str().is_some_and(|pc| pc.starts_with("0x4")), "{first}");

    // Of the device by its node in the guest.
    let options = "--trace dma-controller@c000000,out=/tmp/t.vcd,format=vcd,pc=off";
    assert_eq!(run(&host, "take", options)?.0, 0);
    let changes = value_changes(&host.sh("cat /tmp/t.vcd")?);
    let levels: Vec<&str> = changes["interrupt3"].iter().map(String::as_str).collect();
    assert_eq!(levels, ["1", "0"].repeat(TRIES));
    assert_eq!(changes["INTCLR"], vec!["1000"; TRIES]);
    assert_eq!(changes["write"].len(), 5 * TRIES);

    // By names of one's own, and of one register alone.
    let options =
        format!("--trace {NAME},table=/table,registers=ENABLE,0x24,pc=off --iommu container");
    let (status, said) = run(&host, "take", &options)?;
    assert_eq!(
        (status, said.matches(" cpu0 write 0x020 0x00000008 ENABLE THREE\n").count()),
        (0, TRIES)
    );
    assert_eq!(said.lines().filter(|line| line.contains("write")).count(), TRIES, "{said}");

    // Each life's last events are written at its end.
    let options = format!("--trace {NAME},out=/tmp/t,last=3 --on-reset restart --timeout 3");
    assert_eq!(run(&host, "anew", &options)?.0, 124);
    let trace = host.sh("head -n 4 /tmp/t")?;
    assert!(trace.starts_with("# ") && trace.contains(" events left out\n"), "{trace}");
    assert_eq!(
        trace.matches(" interrupt 3").count() + trace.matches("DBGCMD").count(),
        2,
        "{trace}"
    );
    assert!(trace.ends_with("the guest begins anew\n"), "{trace}");
    // And when a value appears: the first time it does.
    let options = format!("--trace {NAME},out=/tmp/t,last=2,trigger=INTCLR=0x8");
    assert_eq!(run(&host, "take", &options)?.0, 0);
    assert!(
        host.sh("head -n 3 /tmp/t")?.lines().nth(2).is_some_and(|line| line.contains("INTCLR"))
    );

    // A full disk and a reader that goes are no guest's concern.
    host.sh("mkdir /small && mount -t tmpfs -o size=16k none /small && mkfifo /tmp/pipe")?;
    let reader = host.start("head -c 100 /tmp/pipe")?;
    for out in ["/small/t", "/tmp/pipe"] {
        let options = format!("--trace {NAME},out={out}");
        let (status, said) = run(&host, "read", &options)?;
        assert_eq!(status, 0, "{said}");
        assert_eq!(said.matches("its trace can't be written").count(), 1, "{said}");
        assert!(said.contains("events of its trace were lost"), "{said}");
    }
    assert_eq!(reader.exit_status()?, 0);
    let (status, said) = run(&host, "take", &format!("--trace {NAME},out=/tmp/pipe"))?;
    assert!(status == 1 && said.contains("nobody reads that pipe"), "{said}");
    for (option, why) in [
        ("other", "no assigned device of that name"),
        (&format!("{NAME},registers=NONE"), "no register is called NONE"),
        (&format!("{NAME},table=/k/take"), "table=/k/take"),
    ] {
        let (status, said) = run(&host, "take", &format!("--trace {option} --dry-run"))?;
        assert!(status != 0 && said.contains(why) && said.contains("help: "), "{said}");
    }
    let (_, said) = run(&host, "take", &format!("--trace {NAME},last=9 --dry-run"))?;
    assert!(said.contains("trace: 2c0a0000.dma, text, to standard error; "), "{said}");
    assert!(said.contains("region 0, trapped"), "{said}");
    Ok(())
}

#[test]
fn a_guest_that_crashes_leaves_its_last_accesses() -> TestResult {
    let host = host()?;
    let launch = Launch::model().does("panic");
    let guest = host.launch(
        &launch.with(&format!("--vfio-platform {NAME} --trace {NAME},out=/tmp/t,last=20")),
    )?;
    assert_eq!(guest.exit_status()?, 4);
    let trace = host.sh("cat /tmp/t")?;
    assert_eq!(trace.lines().count(), 21, "{trace}");
    assert!(trace.starts_with("# ") && trace.contains(" events left out\n"), "{trace}");
    assert!(trace.contains(" cpu0 ffff"), "{trace}");
    Ok(())
}

/// Where PCI functions are on the host.
const DISK: &str = "0000:00:05.0";
const EDU: &str = "0000:00:07.0";

/// Registers of an edu (QEMU, docs/specs/edu.rst).
const EDU_TABLE: &str = "\
[ID]
offset = 0
[FACTORIAL]
offset = 0x08
bar = 0
[RAISED]
offset = 0x24
fields = { FACTORIAL = 0, COPY = 8 }
[ELSEWHERE]
offset = 0x24
bar = 2
";

#[test]
fn functions_of_pci_are_told_with_their_configuration_and_messages() -> TestResult {
    let host = Board::new()
        .disk("disk", 64 << 20)
        .device("nvme,drive=disk,serial=one,addr=5")
        .device("edu,addr=7,dma_mask=0xffffffffffff")
        .file("edu.toml", EDU_TABLE)
        .boot()?;
    [DISK, EDU].iter().try_for_each(|name| host.bind(name))?;
    let traces = format!(
        "--trace {DISK},out=/tmp/nvme --trace {EDU},out=/tmp/edu,format=json,table=/edu.toml"
    );
    let options = format!("--vfio-pci {DISK} --vfio-pci {EDU} --stats /tmp/stats {traces}");
    let mut guest = host.guest(&options)?;
    guest.sh("dd if=/dev/urandom of=/tmp/noise bs=64k count=16 2>/dev/null && \
         dd if=/tmp/noise of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null && \
         dd if=/dev/nvme0n1 bs=64k count=16 iflag=direct 2>/dev/null | cmp - /tmp/noise")?;
    let handled: u64 = guest.interrupts()?.sum("nvme0q");
    for by in ["msi", "line"] {
        let said = guest.sh(&format!("agent edu 0000:00:02.0 {by} 2"))?;
        assert!(said.contains(" 5 interrupts"), "{said}");
    }
    assert_eq!(guest.power_off()?, 0);

    let trace = host.sh("cat /tmp/nvme")?;
    // The bus is scanned; the driver resets the controller, has it run, asks it who it is, and reads.
    check_order(
        &trace,
        &[
            "read  config:0x000 0x00101b36 PCI_VENDOR_ID 0x1b36; PCI_DEVICE_ID 0x10",
            "write config:0x010 0xffffffff PCI_BASE_ADDRESS_0",
            " PCI_COMMAND MEMORY",
            " CAP",
            "read  0x01c 0x00000000 CSTS",
            "write 0x024 0x001f001f AQA ASQS=0x1f ACQS=0x1f",
            "write 0x014 0x00460061 CC EN CSS=0x6 IOSQES=0x6 IOCQES=0x4",
            "read  0x01c 0x00000001 CSTS RDY",
            "write 0x1000 0x00000001 SQTDBL0",
            "interrupt msix 0",
            " CQHDBL0",
            " SQTDBL1",
            "interrupt msix 1",
            " CQHDBL1",
        ],
    );
    let messages = trace.lines().filter(|line| line.contains("interrupt msix ")).count() as u64;
    assert!(messages >= handled && handled > 10, "{handled} of {messages}");
    let edu = host.sh("cat /tmp/edu")?;
    let events: Vec<Value> =
        edu.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let of = |kind: &str, event: &str| {
        events.iter().filter(|e| e["kind"] == kind && e["event"] == event).count()
    };
    assert_eq!([of("msi", "interrupt"), of("intx", "interrupt"), of("intx", "ended")], [5; 3]);
    let raised = |field: &str| {
        let registers = events.iter().map(|event| &event["registers"][0]);
        registers.filter(|r| r["name"] == "RAISED" && r["fields"][field] == 1).count()
    };
    assert_eq!([raised("FACTORIAL"), raised("COPY")], [2, 8], "{edu}");

    // Nothing is missing: the disk's BAR alone is above 4 GiB. The scan finds slots that are empty, too.
    let stats: Value = serde_json::from_str(&host.sh("cat /tmp/stats")?).expect("it is JSON");
    for (kind, word) in [("reads", "read "), ("writes", "write")] {
        let counted = |device: &str| stats["devices"][device][kind].as_u64().unwrap_or_default();
        let count = |place: &str| trace.matches(&format!(" {word} {place}")).count() as u64;
        assert_eq!(count("0x"), counted("PCI 64-bit memory"), "{stats}");
        let of_edu = |event: &&Value| event["event"] == word.trim() && event["region"] == "config";
        let config = count("config:") + events.iter().filter(of_edu).count() as u64;
        assert!((1..=counted("PCI configuration")).contains(&config), "{config}: {stats}");
    }
    // What is planned, by the name as it was given; and what can't be.
    let dry = |trace: &str| {
        let devices = "--vfio-pci 00:05.0 --vfio-pci 0000:00:07.0 --dry-run";
        host.sh(&format!("strait run --kernel /k/model {devices} --trace {trace} 2>&1 || true"))
    };
    let plan = dry("00:05.0,registers=CC,1:0x0-0x7")?;
    assert!(plan.contains(&format!("trace: {DISK}, text, to standard error; some reg")), "{plan}");
    for bar in ["BAR 0: 64-bit memory, 0x4000 bytes, trapped", " 0x100000 bytes, mapped"] {
        assert!(plan.contains(bar), "no {bar} in:\n{plan}");
    }
    let refused = dry("00:09.0")?;
    assert!(refused.contains(&format!("help: --trace {DISK} or {EDU}")), "{refused}");
    Ok(())
}

/// Has a guest use a traced disk and a traced edu, by messages and by its line.
fn use_functions(guest: &mut Guest) -> TestResult {
    guest.sh("dd if=/dev/urandom of=/tmp/noise bs=64k count=4 2>/dev/null && \
         dd if=/tmp/noise of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null && \
         dd if=/dev/nvme0n1 bs=64k count=4 iflag=direct 2>/dev/null | cmp - /tmp/noise")?;
    for by in ["msi", "line"] {
        let said = guest.sh(&format!("agent edu 0000:00:02.0 {by} 1"))?;
        assert!(said.contains(" 3 interrupts"), "{said}");
    }
    Ok(())
}

#[test]
fn traced_functions_begin_anew_and_are_taken_back() -> TestResult {
    let host = Board::new()
        .disk("disk", 64 << 20)
        .device("nvme,drive=disk,serial=one,addr=5")
        .device("edu,addr=7,dma_mask=0xffffffffffff")
        .boot()?;
    for backend in ["iommufd", "container"] {
        begin_anew_and_take_back(&host, &format!("--iommu {backend} --on-reset restart"))?;
    }
    let log = host.sh("dmesg")?;
    let is_well = !["BUG", "Oops", "WARNING", "Call trace"].iter().any(|word| log.contains(word));
    assert!(is_well, "{log}");
    Ok(())
}

fn begin_anew_and_take_back(host: &Host, options: &str) -> TestResult {
    [DISK, EDU].iter().try_for_each(|name| host.bind(name))?;
    let traces =
        format!("--trace {DISK},out=/tmp/nvme --trace {EDU},out=/tmp/edu,format=json {options}");
    let mut guest = host.guest(&format!("--vfio-pci {DISK} --vfio-pci {EDU} {traces}"))?;
    use_functions(&mut guest)?;
    // With messages under way.
    guest.sh("dd if=/dev/nvme0n1 of=/dev/null bs=64k 2>/dev/null & true")?;
    guest.begin_anew()?;
    use_functions(&mut guest)?;
    let handled: u64 = guest.interrupts()?.sum("nvme0q");
    // In the middle of reading.
    guest.sh(
        "(while dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done; \
         echo over >/tmp/over) &",
    )?;
    host.sh(&format!("echo {DISK} >/sys/bus/pci/drivers/vfio-pci/unbind"))?;
    guest.process().wait_for(&format!("{DISK}: the host takes it back"))?;
    let config = guest.sh("hexdump -n 4 /sys/bus/pci/devices/0000:00:01.0/config")?;
    assert!(config.contains("ffff ffff"), "{config}");
    guest.sh("echo 1 >/sys/bus/pci/devices/0000:00:01.0/remove")?;
    guest.begin("while ! [ -e /tmp/over ]; do sleep 0.1; done; [ ! -e /dev/nvme0n1 ]")?;
    assert_eq!(guest.finish()?.0, 0);
    // The other goes on, until it is gone, too.
    guest.sh("agent edu 0000:00:02.0 line 1")?;
    host.sh(&format!("echo 1 >/sys/bus/pci/devices/{EDU}/remove"))?;
    guest.process().wait_for(&format!("{EDU}: the host takes it back"))?;
    assert_ne!(guest.run("agent edu 0000:00:02.0 msi 1")?.0, 0);
    // A life without either.
    guest.begin_anew()?;
    guest.sh("! ls -d /sys/bus/pci/devices/0000:00:0[12].0")?;
    let said = guest.process().output();
    assert!(!said.contains("error:") && !said.contains(" were lost"), "{said}");
    assert_eq!(guest.power_off()?, 0);
    host.sh("echo 1 >/sys/bus/pci/rescan")?;
    host.until(&format!("[ -e /sys/bus/pci/devices/{EDU} ]"))?;

    let trace = host.sh("cat /tmp/nvme")?;
    let lives: Vec<&str> = trace.split("the guest begins anew\n").collect();
    let [_, second, third] = lives.as_slice() else { panic!("{} lives in {trace}", lives.len()) };
    let begun = [
        "read  config:0x000 0x00101b36 PCI_VENDOR_ID",
        " CC EN ",
        " CSTS RDY",
        "interrupt msix 0",
        "interrupt msix 1",
    ];
    lives.iter().take(2).for_each(|life| check_order(life, &begun));
    // What was under way is forgotten.
    let before = second.split(" CC EN ").next().unwrap_or_default();
    assert!(!before.contains("interrupt"), "{before}");
    let messages = second.lines().filter(|line| line.contains("interrupt msix ")).count() as u64;
    assert!(messages >= handled && handled > 4, "{handled} of {messages}");
    // Without the function all bits are ones, and nothing interrupts.
    let (_, lost) = second.rsplit_once("interrupt msix ").unwrap_or_default();
    assert!(lost.contains("read  config:0x000 0xffffffff PCI_VENDOR_ID"), "{lost}");
    assert!(third.contains("read  config:0x000 0xffffffff PCI_VENDOR_ID"), "{third}");
    assert!(!third.contains("interrupt") && !third.contains(" CC "), "{third}");

    let trace = host.sh("cat /tmp/edu")?;
    let events: Vec<Value> =
        trace.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let lives: Vec<&[Value]> = events.split(|event| event["event"] == "reset").collect();
    let count = |life: &[Value], kind: &str, event: &str| {
        life.iter().filter(|e| e["kind"] == kind && e["event"] == event).count()
    };
    let counts: Vec<_> = lives
        .iter()
        .map(|life| {
            [("msi", "interrupt"), ("intx", "interrupt"), ("intx", "ended")]
                .map(|(kind, event)| count(life, kind, event))
        })
        .collect();
    assert_eq!(counts, [[3, 3, 3], [3, 6, 6], [0, 0, 0]], "{trace}");
    Ok(())
}

/// What a value change dump has (IEEE 1364-2005, 18.2): the values of each signal, in their order.
fn value_changes(text: &str) -> BTreeMap<String, Vec<String>> {
    let (declared, changed) = text.split_once("$enddefinitions $end\n").expect("declarations end");
    let mut names = BTreeMap::new();
    let mut depth = 0;
    for line in declared.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["$var", "wire" | "event", size, id, name, "$end"] => {
                assert!(depth == 1 && size.parse::<u32>().is_ok_and(|size| size <= 64), "{line}");
                assert!(names.insert(*id, (*name).to_owned()).is_none(), "{id} twice");
            }
            ["$scope", "module", _, "$end"] => depth += 1,
            ["$upscope", "$end"] => depth -= 1,
            ["$timescale", "1ns", "$end"] | ["$version", "strait", "$end"] => {}
            _ => panic!("{line}"),
        }
    }
    let mut changes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut time = 0;
    for line in changed.lines() {
        let (value, id) = match line.split_at(1) {
            ("#", now) => {
                let now: u64 = now.parse().expect("a time is a number");
                assert!(now > time, "{now} after {time}");
                time = now;
                continue;
            }
            ("b", rest) => rest.split_once(' ').expect("a vector has a value and a signal"),
            bit => bit,
        };
        assert!(value.bytes().all(|digit| matches!(digit, b'0' | b'1')), "{line}");
        let name = names.get(id).unwrap_or_else(|| panic!("{line}: no such signal"));
        changes.entry(name.clone()).or_default().push(value.to_owned());
    }
    changes
}
