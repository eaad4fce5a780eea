//! The platform as a guest sees it: words in shared memory, and the doorbell.

use std::sync::atomic::{AtomicU32, Ordering};

use boot::fdt;

use super::*;

#[derive(Default)]
struct Device {
    resets: AtomicU32,
    broken: bool,
}

impl Reset for Device {
    fn reset(&self) -> Result<(), String> {
        self.resets.fetch_add(1, Ordering::Relaxed);
        if self.broken { Err("it is broken".into()) } else { Ok(()) }
    }
}

fn clock(name: &str, rate: u64, off: bool) -> Clock {
    Clock { name: name.into(), of: format!("the clock {name}"), rate, off }
}

fn resources() -> (Resources, [Arc<Device>; 2]) {
    let devices = [false, true].map(|broken| Arc::new(Device { broken, ..Device::default() }));
    let resets = devices.iter().map(|device| ResetDomain {
        name: "dma.0".into(),
        of: "a device".into(),
        device: device.clone(),
    });
    let resources = Resources {
        clocks: vec![clock("apb_pclk.0", 24_000_000, false), clock("tx.1", 5 << 32 | 7, true)],
        resets: resets.collect(),
        power_domains: vec![PowerDomain::new("gpu.0".into())],
    };
    (resources, devices)
}

const BASE: u32 = 0x10;
const POWER: u32 = 0x11;
const CLOCK: u32 = 0x14;
const RESET: u32 = 0x16;

fn write(scmi: &Scmi, offset: u64, value: u32) {
    assert_eq!(scmi.write(offset, &value.to_le_bytes()), Action::None);
}

fn read(scmi: &Scmi, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    scmi.read(offset, &mut data);
    u32::from_le_bytes(data)
}

/// Sends what Linux' `shmem_tx_prepare` writes, with any length, and answers status and words.
fn send(scmi: &Scmi, header: u32, length: u32, words: &[u32]) -> (i32, Vec<u32>) {
    write(scmi, 4, 0);
    write(scmi, 0x10, 0);
    write(scmi, 0x14, length);
    write(scmi, 0x18, header);
    for (offset, word) in (0x1c..).step_by(4).zip(words) {
        write(scmi, offset, *word);
    }
    assert!(scmi.ring());
    assert_eq!((read(scmi, 4), read(scmi, 0x18)), (1, header));
    let count = read(scmi, 0x14) / 4 - 2;
    let words = (0x20..).step_by(4).take(count as usize).map(|offset| read(scmi, offset));
    (read(scmi, 0x1c).cast_signed(), words.collect())
}

/// A command with a token.
fn call(scmi: &Scmi, protocol: u32, command: u32, words: &[u32]) -> (i32, Vec<u32>) {
    let length = 4 + 4 * u32::try_from(words.len()).unwrap();
    send(scmi, 0x155 << 18 | protocol << 10 | command, length, words)
}

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!((bytes.len(), bytes[15]), (16, 0));
    String::from_utf8(bytes).unwrap().trim_end_matches('\0').into()
}

#[test]
fn the_base_protocol_tells_who_is_there() {
    let scmi = Scmi::new(resources().0);
    assert_eq!(call(&scmi, BASE, 0, &[]), (0, vec![0x2_0000]));
    assert_eq!(call(&scmi, BASE, 1, &[]), (0, vec![0x103]));
    assert_eq!(text(&call(&scmi, BASE, 3, &[]).1), "strait");
    assert_eq!(text(&call(&scmi, BASE, 4, &[]).1), "KVM");
    assert_eq!(call(&scmi, BASE, 6, &[0]), (0, vec![3, 0x16_1411]));
    assert_eq!(call(&scmi, BASE, 6, &[2]), (0, vec![1, 0x16]));
    assert_eq!(call(&scmi, BASE, 6, &[3]), (0, vec![0]));
    assert_eq!(call(&scmi, BASE, 6, &[4]), (-2, vec![]));
    for (asked, agent, name) in [(0, 0, "strait"), (1, 1, "guest"), (u32::MAX, 1, "guest")] {
        let (status, words) = call(&scmi, BASE, 7, &[asked]);
        assert_eq!((status, words[0], &*text(&words[1..])), (0, agent, name));
    }
    assert_eq!(call(&scmi, BASE, 7, &[2]), (-4, vec![]));
    // What isn't there isn't offered.
    let clocks = Resources { clocks: vec![clock("a", 1, false)], ..Resources::default() };
    let scmi = Scmi::new(clocks);
    assert_eq!(call(&scmi, BASE, 6, &[0]), (0, vec![1, 0x14]));
    assert_eq!(call(&scmi, RESET, 0, &[]), (-1, vec![]));
}

#[test]
fn every_protocol_tells_its_version_and_its_commands() {
    let scmi = Scmi::new(resources().0);
    for (protocol, version, attributes, last) in [
        (BASE, 0x2_0000, vec![0x103], 7),
        (POWER, 0x2_0000, vec![1, 0, 0, 0], 5),
        (CLOCK, 0x2_0000, vec![2], 7),
        (RESET, 0x1_0000, vec![2], 4),
    ] {
        assert_eq!(call(&scmi, protocol, 0, &[]), (0, vec![version]));
        assert_eq!(call(&scmi, protocol, 1, &[]), (0, attributes));
        for command in 0..=last {
            assert_eq!(call(&scmi, protocol, 2, &[command]), (0, vec![0]), "{protocol} {command}");
        }
        for command in [last + 1, 0x10, 0x100, u32::MAX] {
            assert_eq!(call(&scmi, protocol, 2, &[command]), (-4, vec![]), "{protocol} {command}");
        }
        assert_eq!(call(&scmi, protocol, last + 1, &[0, 0, 0]), (-1, vec![]));
    }
}

#[test]
fn clocks_run_at_the_rates_of_the_host() {
    let scmi = Scmi::new(resources().0);
    let (status, words) = call(&scmi, CLOCK, 3, &[0]);
    assert_eq!((status, words[0], words.len()), (0, 1, 6));
    assert_eq!(text(&words[1..5]), "apb_pclk.0");
    assert_eq!(call(&scmi, CLOCK, 3, &[1]).1[0], 0, "off");
    assert_eq!(call(&scmi, CLOCK, 4, &[0, 0]), (0, vec![1, 24_000_000, 0]));
    assert_eq!(call(&scmi, CLOCK, 4, &[0, 1]), (0, vec![0]));
    assert_eq!(call(&scmi, CLOCK, 6, &[1]), (0, vec![7, 5]));
    assert_eq!(call(&scmi, CLOCK, 5, &[0, 0, 24_000_000, 0]), (0, vec![]));
    assert_eq!(call(&scmi, CLOCK, 5, &[0, 0, 48_000_000, 0]), (-3, vec![]));
    assert_eq!(call(&scmi, CLOCK, 5, &[0, 0, 24_000_000, 1]), (-3, vec![]));
    assert_eq!(call(&scmi, CLOCK, 7, &[0, 1]), (0, vec![]));
    assert_eq!(call(&scmi, CLOCK, 7, &[1, 1]), (-3, vec![]));
    assert_eq!(call(&scmi, CLOCK, 7, &[1, 0]), (0, vec![]));
}

#[test]
fn a_reset_begins_with_a_device_s_own() {
    let (resources, devices) = resources();
    let scmi = Scmi::new(resources);
    let (status, words) = call(&scmi, RESET, 3, &[0]);
    assert_eq!((status, &words[..2], &*text(&words[2..])), (0, &[0, u32::MAX][..], "dma.0"));
    for (flags, state, expected, resets) in
        [(0, 0, 0, 0), (1, 0, 0, 1), (2, 1, 0, 2), (0, 0, 0, 2), (4, 0, -2, 2), (1, 1 << 31, -2, 2)]
    {
        assert_eq!(call(&scmi, RESET, 4, &[0, flags, state]), (expected, vec![]), "{flags}");
        assert_eq!(devices[0].resets.load(Ordering::Relaxed), resets, "{flags}");
    }
    assert_eq!(call(&scmi, RESET, 4, &[1, 1, 0]), (-9, vec![]));
    assert_eq!(devices[1].resets.load(Ordering::Relaxed), 1);
}

#[test]
fn a_power_domain_reads_as_it_was_set() {
    let scmi = Scmi::new(resources().0);
    let (status, words) = call(&scmi, POWER, 3, &[0]);
    assert_eq!((status, words[0], &*text(&words[1..])), (0, 1 << 29, "gpu.0"));
    for state in [0, 1 << 30, 0] {
        assert_eq!(call(&scmi, POWER, 4, &[0, 0, state]), (0, vec![]));
        assert_eq!(call(&scmi, POWER, 5, &[0]), (0, vec![state]));
    }
    assert_eq!(call(&scmi, POWER, 4, &[0, 0, 1]), (-2, vec![]));
    // The machine's reset has all as at first, whatever the guest was about to send.
    assert_eq!(call(&scmi, POWER, 4, &[0, 0, 1 << 30]), (0, vec![]));
    write(&scmi, 4, 0);
    scmi.reset();
    assert_eq!(read(&scmi, 4), 1);
    assert_eq!(call(&scmi, POWER, 5, &[0]), (0, vec![0]));
}

#[test]
fn nothing_else_can_be_named() {
    let (resources, devices) = resources();
    let scmi = Scmi::new(resources);
    for number in [2, 3, 0xffff, 0x8000_0000, u32::MAX] {
        for (protocol, command, flags_first) in [
            (CLOCK, 3, false),
            (CLOCK, 4, false),
            (CLOCK, 5, true),
            (CLOCK, 6, false),
            (CLOCK, 7, false),
            (RESET, 3, false),
            (RESET, 4, false),
            (POWER, 3, false),
            (POWER, 4, true),
            (POWER, 5, false),
        ] {
            let words = if flags_first { [0, number, 1, 0] } else { [number, 1, 0, 0] };
            let answer = call(&scmi, protocol, command, &words);
            assert_eq!(answer, (-4, vec![]), "{protocol:#x} {command} {number:#x}");
        }
    }
    assert_eq!(devices[0].resets.load(Ordering::Relaxed), 0);
}

#[test]
fn a_malformed_message_has_an_answer_that_says_so() {
    let scmi = Scmi::new(resources().0);
    let header = CLOCK << 10 | 6;
    for length in [0, 1, 3, 5, 7, 9, 0x100, 0xe9, u32::MAX, u32::MAX - 3] {
        assert_eq!(send(&scmi, header, length, &[0]), (-10, vec![]), "{length:#x}");
    }
    // As long as there is room.
    assert_eq!(send(&scmi, header, 0xe8, &[0]).0, 0);
    // Without its argument, of another type, of a protocol that isn't there.
    assert_eq!(send(&scmi, header, 4, &[]), (-10, vec![]));
    assert_eq!(send(&scmi, header | 2 << 8, 8, &[0]), (-10, vec![]));
    for protocol in [0, 0x13, 0x15, 0xff] {
        assert_eq!(call(&scmi, protocol, 0, &[]), (-1, vec![]));
    }
    // There is no message while the channel is free.
    assert!(!scmi.ring());
}

#[test]
fn accesses_of_all_sizes_reach_the_shared_memory_alone() {
    let scmi = Scmi::new(Resources::default());
    write(&scmi, 0x1c, 0x0403_0201);
    let mut data = [0xff; 2];
    scmi.read(0x1d, &mut data);
    assert_eq!(data, [2, 3]);
    for offset in [SIZE, SIZE - 4, u64::MAX, u64::MAX - 3] {
        let mut data = [0xff; 8];
        assert_eq!(scmi.write(offset, &data), Action::None);
        scmi.read(offset, &mut data);
        assert_eq!(data, [0; 8], "{offset:#x}");
    }
}

#[test]
fn long_names_are_cut_off() {
    assert_eq!(text(&message::name_words("a-very-long-name-of-a-clock")), "a-very-long-nam");
    assert_eq!(numbered_name("a-very-long-name-of-a-clock", 10), "a-very-long-.10");
    assert_eq!(numbered_name("ä b\n", u32::MAX), "b.4294967295");
}

#[test]
fn nodes_name_the_protocols_that_there_are() {
    let root = |resources: &Resources| {
        let root = fdt::Node::new("").u32("#address-cells", 2).u32("#size-cells", 2);
        fdt::to_dts(&root.with_children(nodes(0x904_0000, 0x8200_0010, resources)))
    };
    let all = root(&resources().0);
    for wanted in [
        "sram@9040000 {",
        "ranges = <0x0 0x0 0x9040000 0x100>;",
        "scmi_shared_memory: scmi-sram-section@0 {",
        "arm,smc-id = <0x82000010>;",
        "scmi_power_domains: protocol@11 {",
        "scmi_clocks: protocol@14 {",
        "scmi_resets: protocol@16 {",
        "#reset-cells = <0x1>;",
    ] {
        assert!(all.contains(wanted), "no {wanted} in\n{all}");
    }
    assert!(!root(&Resources::default()).contains("protocol@"));
}

#[test]
fn who_asks_is_told_of_calls_that_name_something() {
    let (resources, _) = resources();
    let scmi = Scmi::new(resources);
    let noted = Mutex::new(Vec::new());
    let ring = |protocol: u32, command: u32, words: &[u32]| {
        write(&scmi, 4, 0);
        write(&scmi, 0x14, 4 + 4 * u32::try_from(words.len()).unwrap());
        write(&scmi, 0x18, protocol << 10 | command);
        for (offset, word) in (0x1c..).step_by(4).zip(words) {
            write(&scmi, offset, *word);
        }
        assert!(scmi.ring_noting(&|call| lock(&noted).push(call)));
        let call = lock(&noted).pop()?;
        let name = call.name_in(scmi.resources()).map(str::to_owned);
        Some((call.words(), name, call.argument, call.status))
    };
    let named = |name: &str| Some(name.to_owned());
    let config_set = ring(CLOCK, 7, &[1, 1]);
    assert_eq!(config_set, Some((("clock", "CLOCK_CONFIG_SET"), named("tx.1"), 1, -3)));
    let rate_set = ring(CLOCK, 5, &[0, 0, 24_000_000, 0]);
    assert_eq!(rate_set, Some((("clock", "CLOCK_RATE_SET"), named("apb_pclk.0"), 24_000_000, 0)));
    let state_set = ring(POWER, 4, &[0, 0, 1 << 30]);
    let power_off = (("power domain", "POWER_STATE_SET"), named("gpu.0"), 1 << 30, 0);
    assert_eq!(state_set, Some(power_off));
    assert_eq!(ring(RESET, 4, &[1, 1, 0]), Some((("reset", "RESET"), named("dma.0"), 1, -9)));
    // What isn't there has no name, and what all protocols have names nothing.
    assert_eq!(ring(RESET, 4, &[9, 1, 0]), Some((("reset", "RESET"), None, 1, -4)));
    for (protocol, command) in [(CLOCK, 0), (CLOCK, 1), (BASE, 6), (0x99, 7), (CLOCK, 0x40)] {
        assert_eq!(ring(protocol, command, &[0, 0]), None);
    }
    assert_eq!(ring(CLOCK, 7, &[]), None, "it is cut off");
    for (commands, names) in [
        (clock::COMMANDS, clock::NAMES),
        (power::COMMANDS, power::NAMES),
        (reset::COMMANDS, reset::NAMES),
    ] {
        assert_eq!(commands.len(), names.len());
    }
}
