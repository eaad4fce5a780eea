use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::super::InterruptPin;
use super::super::bars::{Bar, Bars};
use super::super::config as register;
use super::*;
use crate::bus::Bus;

const ECAM: u64 = 0x3f80_0000;
const MEMORY32: u64 = 0x2000_0000;
const MEMORY64: u64 = 1 << 39;
const IO: u64 = 0x3f00_0000;

/// What all functions have mapped into the guest: whoever maps something over another fails.
#[derive(Default)]
struct Guest(Mutex<Vec<(String, BarRange)>>);

impl Guest {
    fn mapped(&self) -> Vec<(String, BarRange)> {
        let mut mapped = lock(&self.0).clone();
        mapped.sort_by_key(|(_, window)| (window.space, window.range.start));
        mapped
    }
}

/// A function with a 32-bit BAR of 4 KiB, a 64-bit one of 64 KiB and one of 32 ports; its registers
/// read as the low byte of their offset, with the BAR's number in the high nibble.
struct Fake {
    name: String,
    bars: Bars,
    command: u16,
    guest: Arc<Guest>,
    forwarded: Vec<BarRange>,
    written: Vec<(u8, u64, Vec<u8>)>,
    bus: Option<u8>,
    resets: usize,
    forwards: Arc<AtomicUsize>,
}

impl Fake {
    fn new(name: &str, guest: &Arc<Guest>) -> Self {
        let memory = |size, wide| Some(Bar::Memory { size, is_64: wide, prefetchable: false });
        let bars = [
            memory(0x1000, false),
            Some(Bar::Io { size: 32 }),
            memory(1 << 16, true),
            None,
            None,
            None,
        ];
        Self {
            name: name.into(),
            bars: Bars::new(bars, None).unwrap(),
            command: 0,
            guest: guest.clone(),
            forwarded: Vec::new(),
            written: Vec::new(),
            bus: None,
            resets: 0,
            forwards: Arc::default(),
        }
    }
}

impl Function for Fake {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if Bars::covers(offset) {
            return self.bars.read(offset, data);
        }
        let mut header = [0; 16];
        header[..4].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
        header[4..6].copy_from_slice(&self.command.to_le_bytes());
        // On the host it is one of several.
        header[14] = 0x80;
        register::read(&header, offset.into(), data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if offset & !3 == 4 {
            let [low, high, ..] =
                register::merge(self.command.into(), offset as usize % 4, data).to_le_bytes();
            self.command = u16::from_le_bytes([low, high]);
            self.bars.set_command(self.command);
        }
        self.bars.write(offset, data);
    }

    fn decoded(&self) -> Vec<BarRange> {
        self.bars.decoded()
    }

    fn forward(&mut self, windows: &[BarRange]) {
        self.forwards.fetch_add(1, Ordering::Relaxed);
        let mut mapped = self.guest.0.lock().unwrap();
        mapped.retain(|(name, _)| *name != self.name);
        for window in windows {
            let over = mapped.iter().find(|(_, other)| {
                let (a, b) = (&window.range, &other.range);
                other.space == window.space && a.start < b.end && b.start < a.end
            });
            assert_eq!(over, None, "{} maps {window:x?}", self.name);
            mapped.push((self.name.clone(), window.clone()));
        }
        self.forwarded = windows.to_vec();
    }

    fn trap(&mut self) -> bool {
        self.guest.0.lock().unwrap().retain(|(name, _)| *name != self.name);
        !std::mem::take(&mut self.forwarded).is_empty()
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        for (byte, offset) in data.iter_mut().zip(offset..) {
            *byte = bar << 4 | offset.to_le_bytes()[0];
        }
    }

    fn set_bus(&mut self, bus: u8) {
        self.bus = Some(bus);
    }

    fn reset(&mut self) {
        self.resets += 1;
        self.command = 0;
        self.bars.set_command(0);
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.written.push((bar, offset, data.to_vec()));
    }
}

/// A machine with these functions, and what they have mapped.
struct Machine {
    bus: Arc<Bus>,
    bridge: Arc<HostBridge>,
    guest: Arc<Guest>,
    functions: Vec<Arc<Mutex<Fake>>>,
}

impl Machine {
    fn new(addresses: &[&str]) -> Self {
        let apertures = Apertures {
            ecam: ECAM..ECAM + (1 << 20),
            memory32: MEMORY32..IO,
            memory64: Some(MEMORY64..1 << 40),
            io: IO..IO + (1 << 16),
        };
        let guest = Arc::default();
        let fake = |address: &&str| Arc::new(Mutex::new(Fake::new(address, &guest)));
        let functions: Vec<_> = addresses.iter().map(fake).collect();
        let slots = addresses.iter().zip(&functions).map(|(address, function)| {
            let function: Arc<Mutex<dyn Function>> = function.clone();
            (address.parse::<Bdf>().unwrap(), function)
        });
        Self::of(HostBridge::new(apertures, slots), guest, functions)
    }

    fn of(bridge: HostBridge, guest: Arc<Guest>, functions: Vec<Arc<Mutex<Fake>>>) -> Self {
        let (mut bus, bridge) = (Bus::default(), Arc::new(bridge));
        for (name, range, device) in bridge.devices() {
            bus.add(name, range, device).unwrap();
        }
        Self { bus: Arc::new(bus), bridge, guest, functions }
    }

    fn read(&self, gpa: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.bus.read(gpa, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&self, gpa: u64, len: usize, value: u64) {
        let _ = self.bus.write(gpa, &value.to_le_bytes()[..len]);
    }

    /// Who maps which BAR where.
    fn mapped(&self) -> Vec<(String, u8, u64)> {
        let mapped = self.guest.mapped().into_iter();
        mapped.map(|(name, window)| (name, window.bar, window.range.start)).collect()
    }
}

/// The configuration space of the function with this number.
fn config(devfn: u64) -> u64 {
    ECAM + (devfn << 12)
}

fn names(expected: &[(&str, u8, u64)]) -> Vec<(String, u8, u64)> {
    expected.iter().map(|(name, bar, start)| ((*name).to_owned(), *bar, *start)).collect()
}

#[test]
fn a_guest_finds_the_bridge_the_functions_and_nothing_else() {
    let machine = Machine::new(&["01.0", "02.0", "02.3"]);
    assert_eq!(machine.read(config(0), 4), 0x0008_1b36);
    assert_eq!(machine.read(config(0) + 8, 4), 0x0600_0000);
    assert_eq!(machine.read(config(0) + 0x100, 4), 0);
    machine.write(config(0) + 4, 4, 0xffff_ffff);
    assert_eq!(machine.read(config(0) + 4, 4), 0);
    let found: Vec<u64> =
        (1..256).filter(|devfn| machine.read(config(*devfn), 2) != 0xffff).collect();
    assert_eq!(found, [0x08, 0x10, 0x13]);
    assert_eq!(machine.read(config(0x08), 8), 0x5678_1234);
    assert_eq!(machine.read(config(0x09) + 1, 2), 0xffff, "misaligned");
    machine.write(config(0x09), 8, 0);
}

#[test]
fn a_device_is_multi_function_if_it_is_on_this_bus() {
    let machine = Machine::new(&["01.0", "02.0", "02.3"]);
    for (devfn, several) in [(0x08, 0x00), (0x10, 0x80), (0x13, 0x80)] {
        assert_eq!(machine.read(config(devfn) + 0xe, 1), several);
        assert_eq!(machine.read(config(devfn) + 0xe, 2), several);
        assert_eq!(machine.read(config(devfn) + 0xc, 4), several << 16);
        assert_eq!(machine.read(config(devfn) + 0x8, 8), several << 48);
    }
}

#[test]
fn bars_are_sized_placed_enabled_and_moved() {
    let machine = Machine::new(&["01.0"]);
    let at = config(8);
    machine.write(at + 0x10, 4, u64::MAX);
    assert_eq!(machine.read(at + 0x10, 4), 0xffff_f000);
    machine.write(at + 0x10, 4, MEMORY32);
    machine.write(at + 0x14, 4, 0x1000);
    // Both halves at once.
    machine.write(at + 0x18, 8, MEMORY64);
    assert_eq!(machine.read(MEMORY32 + 0x10, 4), 0xffff_ffff, "not decoded yet");
    machine.write(at + 4, 2, 0b11);
    let placed = [("01.0", 0, MEMORY32), ("01.0", 2, MEMORY64), ("01.0", 1, 0x1000)];
    assert_eq!(machine.mapped(), names(&placed));
    assert_eq!(machine.read(MEMORY32 + 0x10, 4), 0x1312_1110);
    assert_eq!(machine.read(MEMORY64 + 0x45, 1), 0x65);
    assert_eq!(machine.read(IO + 0x1004, 2), 0x1514);
    machine.write(IO + 0x101f, 1, 0xab);
    machine.write(MEMORY64 + 0xfff8, 8, 0x0102_0304_0506_0708);
    let written = std::mem::take(&mut machine.functions[0].lock().unwrap().written);
    assert_eq!(written, [(1, 0x1f, vec![0xab]), (2, 0xfff8, vec![8, 7, 6, 5, 4, 3, 2, 1])]);
    // Across the end, and where nothing is.
    assert_eq!(machine.read(MEMORY32 + 0xffe, 4), 0xffff_ffff);
    assert_eq!(machine.read(MEMORY32 + 0x1000, 4), 0xffff_ffff);
    assert_eq!(machine.read(IO, 1), 0xff);
    machine.write(MEMORY32 + 0x1000, 4, 0);
    // Moved while it decodes.
    machine.write(at + 0x10, 4, MEMORY32 + 0x7000);
    assert_eq!(machine.read(MEMORY32, 4), 0xffff_ffff);
    assert_eq!(machine.read(MEMORY32 + 0x7002, 1), 2);
    machine.write(at + 4, 2, 0b01);
    assert_eq!(machine.mapped(), names(&[("01.0", 1, 0x1000)]));
    machine.write(at + 4, 2, 0);
    assert_eq!(machine.mapped(), []);
}

#[test]
fn a_bar_over_anything_else_is_not_forwarded_until_it_is_moved() {
    let machine = Machine::new(&["01.0", "02.0"]);
    let (one, two) = (config(0x08), config(0x10));
    machine.write(one + 0x10, 4, MEMORY32);
    machine.write(one + 4, 2, 0b10);
    machine.write(two + 4, 2, 0b10);
    for gpa in [0x4000_0000, 0x0800_0000, 0x0900_0000, ECAM, IO, 0, MEMORY32] {
        machine.write(two + 0x10, 4, gpa);
        assert_eq!(machine.mapped(), names(&[("01.0", 0, MEMORY32)]), "{gpa:#x}");
    }
    // Over its own other BAR.
    machine.write(two + 0x10, 4, MEMORY32 + 0x1_1000);
    machine.write(two + 0x18, 8, MEMORY32 + 0x1_0000);
    let mapped = names(&[("01.0", 0, MEMORY32), ("02.0", 0, MEMORY32 + 0x1_1000)]);
    assert_eq!(machine.mapped(), mapped);
    // A BAR that is moved away makes room for one that waits: over two of its own, of the other function.
    machine.write(two + 0x10, 4, MEMORY32);
    let mapped = names(&[("01.0", 0, MEMORY32), ("02.0", 2, MEMORY32 + 0x1_0000)]);
    assert_eq!(machine.mapped(), mapped);
    machine.write(one + 4, 2, 0);
    let mapped = names(&[("02.0", 0, MEMORY32), ("02.0", 2, MEMORY32 + 0x1_0000)]);
    assert_eq!(machine.mapped(), mapped);
}

#[test]
fn a_function_that_was_taken_back_leaves_its_place_to_others() {
    let machine = Machine::new(&["01.0", "02.0"]);
    machine.write(config(0x08) + 0x10, 4, MEMORY32);
    machine.write(config(0x08) + 4, 2, 0b10);
    {
        // Behind the bridge's back.
        let mut function = lock(&*machine.functions[0]);
        function.bars.set_command(0);
        function.forward(&[]);
    }
    machine.write(config(0x10) + 0x10, 4, MEMORY32);
    machine.write(config(0x10) + 4, 2, 0b10);
    assert_eq!(machine.mapped(), names(&[("02.0", 0, MEMORY32)]));
}

#[test]
fn functions_are_called_only_when_their_bars_move() {
    let machine = Machine::new(&["01.0", "02.0"]);
    let forwards = |index: usize| {
        let forwards = machine.functions[index].lock().unwrap().forwards.clone();
        forwards.swap(0, Ordering::Relaxed)
    };
    machine.write(config(0x08) + 0x10, 4, MEMORY32);
    machine.write(config(0x08) + 4, 2, 0b10);
    assert_eq!((forwards(0), forwards(1)), (1, 0));
    machine.write(config(0x08) + 0x3c, 1, 7);
    machine.write(config(0x08) + 4, 2, 0b110);
    machine.write(config(0x10) + 0x10, 4, MEMORY32 + 0x4000);
    assert_eq!((forwards(0), forwards(1)), (0, 0));
}

#[test]
fn a_slow_function_delays_no_other() {
    let machine = Machine::new(&["01.0", "02.0"]);
    for (devfn, gpa) in [(0x08, MEMORY32), (0x10, MEMORY32 + 0x1000)] {
        machine.write(config(devfn) + 0x10, 4, gpa);
        machine.write(config(devfn) + 4, 2, 0b10);
    }
    // The first is busy for as long as this is held.
    let busy = machine.functions[0].lock().unwrap();
    let (done, finished) = mpsc::channel();
    let other = thread::scope(|scope| {
        scope.spawn(|| {
            let read = machine.read(MEMORY32 + 0x1004, 1);
            machine.write(config(0x10) + 0x10, 4, MEMORY32 + 0x8000);
            let moved = machine.read(MEMORY32 + 0x8004, 1);
            done.send((read, moved, machine.read(config(0x10), 2))).unwrap();
        });
        let other = finished.recv_timeout(Duration::from_secs(60));
        drop(busy);
        other
    });
    assert_eq!(other, Ok((4, 4, 0x1234)));
}

#[test]
fn after_concurrent_moves_forwarded_ranges_are_those_of_the_registers() {
    let machine = Machine::new(&["01.0", "02.0"]);
    let moves = |devfn: u64, seed: u64| {
        let mut random = seed;
        for _ in 0..3000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Five places for both, and on and off.
            machine.write(config(devfn) + 0x10, 4, MEMORY32 + (random >> 33) % 5 * 0x800);
            machine.write(config(devfn) + 4, 2, (random >> 40) % 4);
            machine.read(MEMORY32 + (random >> 20) % 0x4000, 1);
        }
    };
    // Two vCPUs a function.
    thread::scope(|scope| {
        for (devfn, seed) in [(0x08, 1), (0x08, 2), (0x10, 3), (0x10, 4)] {
            scope.spawn(move || moves(devfn, seed));
        }
    });
    for (devfn, function) in [(0x08, &machine.functions[0]), (0x10, &machine.functions[1])] {
        machine.write(config(devfn) + 0x10, 4, MEMORY32 + (devfn << 16));
        machine.write(config(devfn) + 4, 2, 0b10);
        let function = function.lock().unwrap();
        let windows: Vec<BarRange> = function.decoded();
        let expected: Vec<&BarRange> = windows.iter().filter(|window| window.bar == 0).collect();
        assert_eq!(function.forwarded.iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn an_access_reaches_no_bar_that_was_disabled_meanwhile() {
    let machine = Machine::new(&["01.0"]);
    let at = config(8);
    machine.write(at + 0x10, 4, MEMORY32);
    machine.write(at + 4, 2, 0b10);
    assert_eq!(machine.read(MEMORY32 + 4, 1), 4);
    // Another vCPU's write has reached the function, and the bridge doesn't know yet.
    let without_the_bridge = |register: u16, value: u64| {
        let bytes = value.to_le_bytes();
        machine.functions[0].lock().unwrap().write_config(register, &bytes[..4]);
    };
    for (register, off, on) in [(0x10, MEMORY32 + 0x8000, MEMORY32), (4, 0, 0b10)] {
        without_the_bridge(register, off);
        assert_eq!(machine.read(MEMORY32 + 4, 1), 0xff, "{register:#x}");
        machine.write(MEMORY32 + 4, 1, 7);
        without_the_bridge(register, on);
        assert_eq!(machine.read(MEMORY32 + 4, 1), 4, "{register:#x}");
    }
    assert_eq!(machine.functions[0].lock().unwrap().written, []);
}

#[test]
fn everything_traps_when_the_host_cant_back_a_mapping() {
    let machine = Machine::new(&["01.0", "02.0"]);
    let bridge = machine.bridge.clone();
    machine.write(config(0x10) + 0x10, 4, MEMORY32);
    machine.write(config(0x10) + 4, 2, 0b10);
    assert_eq!(machine.mapped(), names(&[("02.0", 0, MEMORY32)]));
    assert!(bridge.trap());
    assert_eq!(machine.mapped(), []);
    assert_eq!(machine.read(MEMORY32 + 4, 1), 4, "by a trap");
    assert!(!bridge.trap(), "once is enough");
    machine.write(config(0x10) + 4, 2, 0);
    machine.write(config(0x10) + 4, 2, 0b10);
    assert_eq!(machine.mapped(), names(&[("02.0", 0, MEMORY32)]));
}

mod ports;
