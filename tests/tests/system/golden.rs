//! What strait's commands print, compared word for word with the files in `golden/`.
//!
//! `STRAIT_BLESS=1` writes the files anew; such a run fails if it changed any, so that it never passes
//! for a comparison, and where `CI` is set it changes nothing.
//!
//! Values that differ from run to run are replaced by placeholders before they are compared, see
//! [`VARYING`] and [`SEEDS`]; KVM's counters, which differ from kernel to kernel, are left out.

use std::fs;
use std::path::PathBuf;

use tests::harness::{
    AMBA_DMA, Board, Failure, Host, PLATFORM_DMA, TestResult, UART, overlay, payload,
};
use tests::setup::workspace;

/// The environment variable that has the files written anew.
const BLESS: &str = "STRAIT_BLESS";

/// The PCI functions of the board.
const DISK: &str = "0000:00:05.0";
const EDU: &str = "0000:00:07.0";

/// Where a vfio-user server listens.
const SOCKET: &str = "/tmp/device.sock";

/// Numbers that vary: what is before and after them, and their placeholder.
const VARYING: [(&str, &str, &str); 8] = [
    ("process ", " (", "PID"),
    ("\"pid\": ", "", "\"PID\""),
    ("", " MiB, enough", "FREE"),
    ("\"wall_ns\": ", "", "\"NANOSECONDS\""),
    ("\"cpu_ns\": ", "", "\"NANOSECONDS\""),
    ("\"event_loop_wakeups\": ", "", "\"COUNT\""),
    ("\"interrupted\": ", "", "\"COUNT\""),
    ("\"awaiting_ms\": ", "", "\"MILLISECONDS\""),
];

/// Properties of device trees that are random, up to the semicolon.
const SEEDS: [&str; 2] = ["kaslr-seed = ", "rng-seed = "];

/// Compares what commands print on a host.
struct Golden<'a> {
    host: &'a Host,
    /// The files that were compared.
    compared: Vec<String>,
    /// What differs, or was written anew.
    complaints: Vec<String>,
}

impl<'a> Golden<'a> {
    fn on(host: &'a Host) -> Self {
        Self { host, compared: Vec::new(), complaints: Vec::new() }
    }

    /// Compares what strait prints with these arguments, on standard output and standard error, with
    /// `NAME.txt`.
    fn text(&mut self, name: &str, arguments: &str) -> TestResult {
        let answer = self.host.run(&format!("strait {arguments} 2>&1"))?;
        self.compare(&format!("{name}.txt"), &answer.output);
        Ok(())
    }

    /// As [`text`](Self::text), and what it prints as JSON with `NAME.json`.
    fn both(&mut self, name: &str, arguments: &str) -> TestResult {
        self.text(name, arguments)?;
        let json = self.host.run(&format!("strait {arguments} --json"))?.output;
        self.compare(&format!("{name}.json"), &json);
        Ok(())
    }

    /// As [`both`](Self::both), of the plan of a run.
    fn plan(&mut self, name: &str, arguments: &str) -> TestResult {
        self.both(name, &format!("run --kernel /k/off --dry-run {arguments}"))
    }

    fn compare(&mut self, file: &str, printed: &str) {
        let printed = with_placeholders(printed);
        let path = directory().join(file);
        let expected = fs::read_to_string(&path).unwrap_or_default();
        self.compared.push(file.to_owned());
        if printed == expected {
            return;
        }
        if std::env::var_os(BLESS).is_some() && std::env::var_os("CI").is_none() {
            fs::write(&path, printed).unwrap();
            self.complaints.push(format!("{file} was written anew"));
            return;
        }
        self.complaints.push(format!("{file}: {}", difference(&expected, &printed)));
    }

    /// Fails where anything differs, was written anew, or is a file that no command prints.
    fn end(mut self) {
        for entry in fs::read_dir(directory()).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            if !self.compared.contains(&file) {
                self.complaints.push(format!("{file}: nothing prints this any more"));
            }
        }
        assert!(
            self.complaints.is_empty(),
            "{}\n\n{BLESS}=1 writes the files anew; git diff then shows what has changed",
            self.complaints.join("\n")
        );
    }
}

fn directory() -> PathBuf {
    workspace::root().join("tests/tests/golden")
}

/// The first lines that differ.
fn difference(expected: &str, printed: &str) -> String {
    let (mut wanted, mut got) = (expected.lines(), printed.lines());
    for number in 1.. {
        match (wanted.next(), got.next()) {
            (None, None) => return "the ends of lines differ".to_owned(),
            (wanted, got) if wanted == got => (),
            (wanted, got) => {
                let [wanted, got] = [wanted, got].map(|line| line.unwrap_or("(nothing)"));
                return format!("line {number} differs\n  expected: {wanted}\n  printed:  {got}");
            }
        }
    }
    unreachable!("a text has an end")
}

/// The text with placeholders for what varies.
fn with_placeholders(text: &str) -> String {
    let mut text = match text.split_once("  \"kvm\": {") {
        Some((before, _)) => format!("{before}  \"kvm\": COUNTERS\n"),
        None => text.to_owned(),
    };
    for (before, after, placeholder) in VARYING {
        text = replace_numbers(&text, before, after, placeholder);
    }
    for seed in SEEDS {
        if let Some((before, value)) = text.split_once(seed)
            && let Some((_, after)) = value.split_once(';')
        {
            text = format!("{before}{seed}SEED;{after}");
        }
    }
    text
}

/// Replaces numbers between `before` and `after`.
fn replace_numbers(text: &str, before: &str, after: &str, placeholder: &str) -> String {
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (head, from) = rest.split_at(start);
        let end = from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len());
        let (number, tail) = from.split_at(end);
        replaced += head;
        let varies = replaced.ends_with(before) && tail.starts_with(after);
        replaced += if varies { placeholder } else { number };
        rest = tail;
    }
    replaced + rest
}

/// A cpio archive of nothing but its end, as an initrd.
fn empty_archive() -> Vec<u8> {
    let name = "TRAILER!!!\0";
    let fields = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len(), 0];
    let fields: String = fields.iter().map(|field| format!("{field:08x}")).collect();
    format!("070701{fields}{name}\0\0\0").into_bytes()
}

/// The board, with an overlay that changes a device's node and adds one.
fn board() -> Board {
    let change = overlay(
        "&_2c0a0000_dma { label = \"mine\"; }; &{/chosen} { strait,test = <1>; };
         &clocks { osc: osc { compatible = \"fixed-clock\"; #clock-cells = <0>;
                              clock-frequency = <12345678>; }; };",
    );
    let board = Board::new().uart().disk("disk", 1 << 20);
    let board = board.device("nvme,drive=disk,serial=one,addr=5");
    let board = board.device("edu,addr=7,dma_mask=0xffffffffffff");
    let board = board.file("k/off", payload::power_off()).file("k/wait", payload::wait());
    board.file("tmp/a.dtbo", change).file("tmp/initrd", empty_archive())
}

/// While the devices are the host's.
fn unbound(golden: &mut Golden<'_>) -> TestResult {
    golden.both("check", "check --memory 64M")?;
    golden.both("list-unbound", "device list")?;
    golden.both("show-platform-unbound", &format!("device show {}", PLATFORM_DMA[0]))?;
    golden.both("show-pci-unbound", &format!("device show {DISK}"))?;
    let exported = format!("device export {} {UART},clock-rate=uartclk:24000000", PLATFORM_DMA[0]);
    golden.both("export-crosvm", &format!("{exported} --for crosvm"))?;
    golden.text("export-xen", &format!("{exported} --for xen"))?;
    golden.text("export-qemu-dts", &format!("{exported} --for qemu-dts"))?;
    let devices = format!("--vfio-platform {} --vfio-pci {EDU}", AMBA_DMA[0]);
    golden.plan("plan-unbound", &devices)
}

/// Once they are VFIO's.
fn bound(golden: &mut Golden<'_>) -> TestResult {
    golden.text("bind", &format!("device bind {} {} {UART}", PLATFORM_DMA[0], AMBA_DMA[0]))?;
    golden.both("bind-again", &format!("device bind {} {DISK} {EDU}", AMBA_DMA[0]))?;
    golden.both("list-bound", "device list")?;
    golden.text("list-cdi", "device list --cdi")?;
    golden.both("show-platform", &format!("device show {}", PLATFORM_DMA[0]))?;
    golden.both("show-amba", &format!("device show {UART} --iommu container"))?;
    golden.both("show-pci", &format!("device show {DISK}"))?;
    golden.both("test", &format!("device test {UART}"))
}

/// Plans of runs without devices, and with those that are bound.
fn plans(golden: &mut Golden<'_>) -> TestResult {
    golden.plan("plan", "")?;
    golden.plan(
        "plan-options",
        "--gic 3,its=on --memory 1G,base=0x80000000,hugepages=thp --cpus 2 --initrd /tmp/initrd",
    )?;
    let [dma, amba] = [PLATFORM_DMA[0], AMBA_DMA[0]];
    let devices = format!(
        "--vfio-platform {dma} --dtb-overlay /tmp/a.dtbo \
         --vfio-platform {amba},addr=host,node-name=dmac,alias=dma7,drop=dma-coherent \
         --vfio-platform {UART},mmap=off --iommu container"
    );
    golden.plan("plan-platform", &devices)?;
    let functions = format!("--vfio-pci {DISK} --vfio-pci {EDU},addr=1f.0,mmap=off");
    golden.plan("plan-pci", &functions)?;
    golden.plan("plan-pci-pins", &format!("{functions} --gic 3,its=off"))
}

/// A device of another process.
fn served(golden: &mut Golden<'_>) -> TestResult {
    let mut server = golden.host.start(&format!("exec agent vfio-user serve {SOCKET} 2>&1"))?;
    server.wait_for("serving")?;
    golden.both("show-vfio-user", &format!("device show --vfio-user {SOCKET}"))?;
    golden.plan("plan-vfio-user", &format!("--vfio-user {SOCKET},addr=03.0"))
}

/// Where a vhost-user backend listens.
const BACKEND: &str = "/tmp/backend.sock";

/// Virtio devices of each kind. The programs that a run would start are looked for, and not started.
fn virtio(golden: &mut Golden<'_>) -> TestResult {
    let host = golden.host;
    host.sh("for program in passt virtiofsd; do printf '#!/bin/false' >/bin/$program && \
         chmod +x /bin/$program; done; truncate -s 8M /tmp/a.img /tmp/b.img && mkdir /tmp/data && \
         agent tap mine 0 tap")?;
    golden.plan(
        "plan-disks",
        "--block /tmp/a.img,ro,serial=first --block /tmp/b.img,snapshot,queues=2",
    )?;
    let networks = "--net tap=mine,mac=02:00:00:00:00:01,vhost=off \
                    --net passt,tcp=2222:22,mac=02:00:00:00:00:02";
    golden.plan("plan-networks", &format!("{networks} --vsock cid=5"))?;
    golden.plan("plan-shares", "--share data=/tmp/data --share fixed=/tmp/data,ro")?;
    let _backend = host.start(&format!("exec agent vhost-user serve {BACKEND} 2>&1"))?;
    host.until(&format!("[ -S {BACKEND} ]"))?;
    golden.plan("plan-vhost-user", &format!("--vhost-user rng,socket={BACKEND}"))?;
    golden.plan("plan-consoles", "--console unix:/tmp/serial --virtio-console file:/tmp/log")
}

/// Statistics of a run that goes on, and of one that has ended.
fn statistics(golden: &mut Golden<'_>) -> Result<(), Failure> {
    let host = golden.host;
    let devices =
        format!("--vfio-platform {} --vfio-platform {UART} --vfio-pci {DISK}", PLATFORM_DMA[0]);
    let mut run = host.strait(&format!("run --kernel /k/wait --stats /tmp/stats {devices}"))?;
    host.until("grep -q vfio-irq /proc/interrupts")?;
    golden.both("list-in-use", "device list")?;
    // Until the guest has begun.
    let asked = format!("kill -USR1 {}; sleep 0.1", run.pid()?);
    host.until(&format!("{{ {asked}; grep -q '\"first_instruction\": {{' /tmp/stats; }}"))?;
    run.wait_for("never turned it on")?;
    golden.compare("stats-running.json", &host.sh("cat /tmp/stats")?);
    run.signal(9)?;
    run.exit_status()?;
    host.sh("strait run --kernel /k/off --stats /tmp/stats")?;
    golden.compare("stats.json", &host.sh("cat /tmp/stats")?);
    Ok(())
}

#[test]
fn commands_print_what_is_in_the_golden_files() -> TestResult {
    let host = board().boot()?;
    host.until(&format!("[ -e /sys/bus/pci/devices/{DISK}/driver ]"))?;
    let mut golden = Golden::on(&host);
    unbound(&mut golden)?;
    bound(&mut golden)?;
    plans(&mut golden)?;
    served(&mut golden)?;
    virtio(&mut golden)?;
    statistics(&mut golden)?;
    golden.text("unbind", &format!("device unbind {} {DISK}", AMBA_DMA[0]))?;
    golden.both("unbind-again", &format!("device unbind {} {EDU}", AMBA_DMA[0]))?;
    golden.end();
    Ok(())
}
