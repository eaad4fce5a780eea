//! The PCI host that a guest gets with its PCI devices: what it finds there, and what becomes of the
//! devices' registers wherever it puts them.

use tests::harness::{Board, Failure, Guest, Host, Launch, PLATFORM_DMA, TestResult, overlay};

/// Where the devices are on the host.
const EDU: &str = "0000:00:05.0";
const NVME: &str = "0000:00:06.0";
const SECOND_NVME: &str = "0000:00:07.0";

/// Where the host bridge's windows and other things are in the guest.
const MEMORY32: u64 = 0x2000_0000;
const MEMORY64: u64 = 1 << 39;
const GIC: u64 = 0x0800_0000;
const CONFIGURATION: u64 = 0x3f80_0000;

/// RAM that a guest of 256 MiB doesn't use if it is told `mem=192M`.
const SPARE: u64 = 0x4c00_0000;

/// A register of the `edu` device that reads as the complement of what was written last
/// (QEMU, docs/specs/edu.rst, "MMIO area spec").
const COMPLEMENT: u64 = 4;

/// A board with an `edu` and two disks, all of them VFIO's.
fn board() -> Board {
    Board::new()
        .device("edu,addr=5")
        .disk("one", 64 << 20)
        .device("nvme,drive=one,serial=one,addr=6")
        .disk("two", 64 << 20)
        .device("nvme,drive=two,serial=two,addr=7")
}

fn boot(board: Board) -> Result<Host, Failure> {
    let host = board.boot()?;
    [EDU, NVME, SECOND_NVME].iter().try_for_each(|name| host.bind(name))?;
    Ok(host)
}

/// A guest's function, by its name there.
struct Function<'a>(&'a str);

impl Function<'_> {
    fn path(&self) -> String {
        format!("/sys/bus/pci/devices/0000:00:{}", self.0)
    }

    /// Writes a dword of configuration space.
    fn configure(&self, guest: &mut Guest, register: u64, value: u32) -> Result<(), Failure> {
        let bytes: String = value.to_le_bytes().iter().map(|b| format!("\\x{b:02x}")).collect();
        let (path, seek) = (self.path(), register / 4);
        let to = format!("of={path}/config bs=4 seek={seek} count=1 conv=notrunc");
        guest.sh(&format!("printf '{bytes}' | dd {to} 2>/dev/null")).map(|_| ())
    }

    /// Its base addresses, sizes and flags, as Linux gave them.
    fn resources(&self, guest: &mut Guest) -> Result<Vec<[u64; 3]>, Failure> {
        let text = guest.sh(&format!("cat {}/resource", self.path()))?;
        let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
        let lines = text.lines().map(|line| {
            let mut words = line.split_whitespace().map(number);
            std::array::from_fn(|_| words.next().unwrap())
        });
        Ok(lines.filter(|[start, ..]: &[u64; 3]| *start != 0).collect())
    }
}

/// Whether an `edu` answers with its registers at this address in the guest.
fn edu_answers(guest: &mut Guest, at: u64) -> Result<bool, Failure> {
    let register = at + COMPLEMENT;
    let command = format!(
        "agent memory fill {register:#x} 4 0x5a && agent memory check {register:#x} 4 0xa5"
    );
    guest.run(&command).map(|(status, _)| status == 0)
}

/// Checks that nobody answers there.
fn nobody_answers(guest: &mut Guest, at: u64) -> TestResult {
    guest.sh(&format!("agent memory check {at:#x} 16 0xff")).map(|_| ())
}

#[test]
fn functions_are_found_at_the_requested_slots() -> TestResult {
    let host = boot(board())?;
    let devices =
        format!("--vfio-pci {NVME} --vfio-pci {EDU},addr=1f.1 --vfio-pci {SECOND_NVME},addr=1f.0");
    let plan = host.sh(&format!("strait run --kernel /k/model {devices} --dry-run"))?;
    for wanted in [
        "0x020000000-0x03effffff  PCI memory",
        "0x03f800000-0x03f8fffff  PCI configuration",
        "0x8000000000-0xffffffffff  PCI 64-bit memory",
        "GIC ITS",
        "SPI 64   0000:00:06.0 INTA, level, resampled",
        "00:1f.1  0000:00:05.0",
        "msi-map = <0x0 &its 0x0 0x100>;",
    ] {
        assert!(plan.contains(wanted), "no {wanted} in:\n{plan}");
    }
    let mut guest = host.guest(&devices)?;
    let found = guest.sh("cd /sys/bus/pci/devices && for d in *; do echo $d $(cat $d/vendor $d/device $d/class); done")?;
    let expected = "0000:00:00.0 0x1b36 0x0008 0x060000\n\
                    0000:00:01.0 0x1b36 0x0010 0x010802\n\
                    0000:00:02.0 0x1af4 0x1044 0x00ff00\n\
                    0000:00:1f.0 0x1b36 0x0010 0x010802\n\
                    0000:00:1f.1 0x1234 0x11e8 0x00ff00";
    assert_eq!(found.trim(), expected);
    guest.sh("test -b /dev/nvme0n1 && test -b /dev/nvme1n1")?;
    // Registers of 32 bits below RAM, those of 64 above.
    let [edu, ..] = Function("1f.1").resources(&mut guest)?[..] else { panic!("edu has no BAR") };
    assert!((MEMORY32..0x3f00_0000).contains(&edu[0]), "{edu:x?}");
    guest.sh(&format!("echo 1 > {}/enable", Function("1f.1").path()))?;
    assert!(edu_answers(&mut guest, edu[0])?);
    for name in ["01.0", "1f.0"] {
        let [nvme, ..] = Function(name).resources(&mut guest)?[..] else { panic!("no BAR") };
        assert!((MEMORY64..1 << 40).contains(&nvme[0]), "{nvme:x?}");
    }
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn a_bar_can_be_moved_but_not_over_other_regions() -> TestResult {
    let host = boot(board())?;
    let devices = format!("--vfio-pci {EDU} --vfio-pci {NVME}");
    let mut guest = host.launch(&Launch::model().cmdline("mem=192M").with(&devices))?;
    let edu = Function("01.0");
    guest.sh(&format!("echo 1 > {}/enable", edu.path()))?;
    let at = edu.resources(&mut guest)?[0][0];
    assert!(edu_answers(&mut guest, at)?);
    // While it decodes: there it is, and here no more.
    for (from, to) in [(at, 0x3000_0000), (0x3000_0000, 0x3ef0_0000), (0x3ef0_0000, at)] {
        edu.configure(&mut guest, 0x10, u32::try_from(to).unwrap())?;
        assert!(edu_answers(&mut guest, to)?, "{to:#x}");
        nobody_answers(&mut guest, from)?;
    }
    // Over the guest's memory, its interrupt controller, configuration space: what is there stays.
    for place in [SPARE, GIC, CONFIGURATION] {
        edu.configure(&mut guest, 0x10, u32::try_from(place).unwrap())?;
        nobody_answers(&mut guest, at)?;
        assert!(!edu_answers(&mut guest, place)?, "{place:#x}");
    }
    assert_eq!(guest.sh("cat /sys/bus/pci/devices/0000:00:02.0/vendor")?.trim(), "0x1b36");
    guest.sh("dd if=/dev/nvme0n1 of=/dev/null bs=64k count=16 2>/dev/null")?;
    edu.configure(&mut guest, 0x10, u32::try_from(at).unwrap())?;
    assert!(edu_answers(&mut guest, at)?);
    // Not decoding, it is nowhere.
    guest.sh(&format!("echo 0 > {}/enable", edu.path()))?;
    edu.configure(&mut guest, 4, 0)?;
    nobody_answers(&mut guest, at)?;
    let said = guest.process().output();
    let told = said.matches("does not answer").count();
    assert_eq!(told, 1, "{said}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn removed_functions_are_found_by_a_rescan() -> TestResult {
    let host = boot(board())?;
    let mut guest = host.guest(&format!("--vfio-pci {NVME} --vfio-pci {SECOND_NVME}"))?;
    let first = Function("01.0").resources(&mut guest)?[0][0];
    // The second alone comes back first, and gets what was the first's.
    guest.sh(
        "cd /sys/bus/pci/devices && echo 1 > 0000:00:01.0/remove && echo 1 > 0000:00:02.0/remove \
         && echo 1 > ../rescan",
    )?;
    let again = Function("01.0").resources(&mut guest)?[0][0];
    assert!(again >= MEMORY64, "{first:#x} {again:#x}");
    for disk in ["nvme0n1", "nvme1n1"] {
        guest.sh(&format!(
            "dd if=/dev/urandom of=/tmp/{disk} bs=1M count=4 2>/dev/null && \
             dd if=/tmp/{disk} of=/dev/{disk} bs=1M conv=fsync 2>/dev/null && \
             dd if=/dev/{disk} bs=1M count=4 iflag=direct 2>/dev/null | cmp - /tmp/{disk}"
        ))?;
    }
    assert!(guest.interrupts()?.sum("nvme") > 0);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

/// Where the GICv2m frame takes messages, and the messages it has in a guest with two interrupt pins:
/// INTIDs from 32 times 4 on.
const DOORBELL: u32 = 0x0802_0040;
const FIRST_MESSAGE: u32 = 128;
/// That of the first disk: the entropy device's driver has taken two before.
const DISK_MESSAGE: u32 = FIRST_MESSAGE + 2;

/// Of the MSI capability's first dword, and of the command register (PCI 3.0, 6.8.1.3 and 6.2.2).
const MSI_ENABLE: u32 = 1 << 16;
const MEMORY_AND_MASTER: u32 = 0b110;

#[test]
fn messages_reach_only_their_own_interrupts_on_gicv2() -> TestResult {
    let one = overlay("&v2m { arm,msi-num-spis = <1>; };");
    let host = boot(board().gic(2).file("tmp/one.dtbo", one))?;
    let devices = format!("--vfio-pci {NVME} --vfio-pci {EDU}");
    let plan = host.sh(&format!("strait run --kernel /k/model {devices} --dry-run 2>&1"))?;
    for wanted in [
        "0x008020000-0x008020fff  GICv2m frame",
        "128 vectors of MSI and MSI-X in all, SPI 96 to 223, edge",
        "v2m: v2m@8020000 {",
        "arm,msi-base-spi = <0x80>;",
        "msi-parent = <&v2m>;",
    ] {
        assert!(plan.contains(wanted), "no {wanted} in:\n{plan}");
    }
    assert!(!plan.contains("msi-map") && !plan.contains("message-signalled"), "{plan}");
    let mut guest = host.guest(&devices)?;
    guest.sh("dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 2>/dev/null")?;
    let lines = guest.sh("grep nvme /proc/interrupts")?;
    assert!(lines.contains("MSI") && lines.contains("Edge"), "{lines}");
    // A CPU may send a message, of those that there are.
    let first = guest.interrupts()?.sum("nvme0q0");
    for message in [DISK_MESSAGE, 33, FIRST_MESSAGE - 1, FIRST_MESSAGE + 128, 1 << 31 | 128] {
        guest.sh(&format!("devmem {DOORBELL:#x} 32 {message:#x}"))?;
    }
    assert_eq!(guest.interrupts()?.sum("nvme0q0"), first + 1);
    // A function may be told to send others, which get nowhere: of the RTC, and to RAM.
    let edu = Function("02.0");
    let message = |guest: &mut Guest, address, data| -> TestResult {
        let registers = [(0x44, address), (0x48, 0), (0x4c, data), (0x40, MSI_ENABLE)];
        registers.iter().try_for_each(|(at, value)| edu.configure(guest, *at, *value))
    };
    for (address, data) in [(DOORBELL, 33), (0x4000_0000, FIRST_MESSAGE)] {
        message(&mut guest, address, data)?;
        edu.configure(&mut guest, 0x40, 0)?;
    }
    // That of another function is the guest's own affair; it may be changed at any time.
    message(&mut guest, DOORBELL, DISK_MESSAGE)?;
    edu.configure(&mut guest, 4, MEMORY_AND_MASTER)?;
    let [[registers, ..], ..] = edu.resources(&mut guest)?[..] else { panic!("edu has no BAR") };
    for (number, queue) in ["nvme0q0", "nvme0q1", "nvme0q0"].iter().enumerate() {
        edu.configure(&mut guest, 0x4c, DISK_MESSAGE + u32::try_from(number % 2).unwrap())?;
        let wanted = guest.interrupts()?.sum(queue) + 1;
        let (raise, acknowledge) = (registers + 0x60, registers + 0x64);
        guest.sh(&format!(
            "devmem {raise:#x} 32 1; devmem {acknowledge:#x} 32 1; until \
             [ $(awk '/{queue}/ {{ print $2 }}' /proc/interrupts) = {wanted} ]; do sleep 0.1; done"
        ))?;
    }
    let said = guest.process().output();
    for wanted in [
        "GICv2m frame: no message: its data is 0x21, and messages are interrupts 128 to 255",
        "vector 0 can't reach the guest: its data is 0x21, and messages are",
        "vector 0 can't reach the guest: its address is 0x40000000, and messages are written to",
    ] {
        assert_eq!(said.matches(wanted).count(), 1, "{wanted}: {said}");
    }
    assert_eq!(guest.power_off()?, 0);
    check_shortage(&host)
}

/// Checks that a driver whose function gets no message uses its pin: there is one for two.
fn check_shortage(host: &Host) -> TestResult {
    let devices = format!("--vfio-pci {NVME} --vfio-pci {SECOND_NVME}");
    let mut guest = host.guest(&format!("{devices} --dtb-overlay /tmp/one.dtbo"))?;
    let mut kinds = Vec::new();
    for disk in ["nvme0", "nvme1"] {
        guest.sh(&format!("dd if=/dev/{disk}n1 of=/dev/null bs=64k count=64 2>/dev/null"))?;
        let line = guest.sh(&format!("grep {disk} /proc/interrupts"))?;
        assert!(guest.interrupts()?.sum(disk) > 0, "{line}");
        kinds.push(if line.contains("MSI") { "message" } else { "line" });
    }
    // Their drivers start at the same time.
    kinds.sort_unstable();
    assert_eq!(kinds, ["line", "message"]);
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn unavailable_slots_and_addresses_are_refused() -> TestResult {
    let host = boot(board())?;
    host.bind(PLATFORM_DMA[0])?;
    for (devices, said, help) in [
        (
            format!("--vfio-pci {EDU},addr=00.0"),
            "0000:00:05.0 can't be a function of the guest: 00:00.0 belongs to the guest's host bridge",
            "addr=01.0",
        ),
        (
            format!("--vfio-pci {EDU},addr=03.0 --vfio-pci {NVME},addr=3.0"),
            "0000:00:06.0 can't be a function of the guest: 00:03.0 is taken",
            "another addr=",
        ),
        (
            format!("--vfio-pci {EDU},addr=3.2"),
            "00:03.2 can't be found by a guest: its device has no function 0",
            "addr=03.0",
        ),
        (
            format!("--vfio-pci {EDU} --vfio-platform {},addr=host", PLATFORM_DMA[0]),
            "where the PCI host's memory window is, at 0x20000000-0x3effffff",
            "addr=auto",
        ),
    ] {
        let answer = host.run(&format!("strait run --kernel /k/model {devices} --dry-run"))?;
        assert_eq!(answer.status, 1, "{devices}");
        assert!(answer.errors.contains(said), "{devices}:\n{}", answer.errors);
        assert!(answer.errors.contains(help), "{devices}:\n{}", answer.errors);
    }
    Ok(())
}
