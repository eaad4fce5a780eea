//! Functions behind root ports.

use super::*;

/// Registers of a port: bus numbers, its memory window, bridge control, slot control.
const BUSES: u64 = 0x18;
const MEMORY: u64 = 0x20;
const BRIDGE_CONTROL: u64 = 0x3e;
const SLOT_CONTROL: u64 = 0x58;
const POWER_OFF: u64 = 1 << 10;

/// A machine with a function on bus 0, and one behind each of two ports.
fn machine() -> (Machine, [Arc<RootPort>; 2]) {
    let apertures = Apertures {
        ecam: ECAM..ECAM + (4 << 20),
        memory32: MEMORY32..IO,
        memory64: Some(MEMORY64..1 << 40),
        io: IO..IO + (1 << 16),
    };
    let guest = Arc::default();
    let functions: Vec<_> = ["00:03.0", "one", "two"]
        .map(|name| Arc::new(Mutex::new(Fake::new(name, &guest))))
        .into_iter()
        .collect();
    let shared = |index: usize| -> Arc<Mutex<dyn Function>> { functions[index].clone() };
    let port = |at: &str, number| {
        Arc::new(RootPort::new(at.parse().unwrap(), number, Some(InterruptPin::INTA)).unwrap())
    };
    let ports = [port("01.0", 1), port("01.1", 2)];
    let behind = [(ports[0].clone(), shared(1)), (ports[1].clone(), shared(2))];
    let bridge =
        HostBridge::new(apertures, [("03.0".parse().unwrap(), shared(0))]).with_ports(behind);
    (Machine::of(bridge, guest, functions), ports)
}

/// The configuration space of function 0 of the first device of a bus.
fn on_bus(bus: u64) -> u64 {
    ECAM + (bus << 20)
}

/// Has both ports lead to buses, the first to 2, with a MiB of memory each.
fn number_buses(machine: &Machine) {
    for (devfn, bus) in [(0x08, 2), (0x09, 1)] {
        let at = config(devfn);
        machine.write(at + BUSES, 4, bus << 16 | bus << 8);
        machine.write(at + MEMORY, 4, window(bus));
        machine.write(at + 4, 2, 0b110);
    }
}

/// The window of the port before a bus.
fn window(bus: u64) -> u64 {
    let megabyte = (MEMORY32 + (bus << 20)) >> 16;
    megabyte << 16 | megabyte
}

#[test]
fn a_function_is_on_the_bus_that_the_guest_gave_its_port() {
    let (machine, _) = machine();
    assert_eq!(machine.read(config(0x08), 4), 0x000c_1b36);
    // Both ports are of one device.
    assert_eq!(machine.read(config(0x08) + 0xe, 1), 0x81);
    assert!((1..3).all(|bus| machine.read(on_bus(bus), 4) == 0xffff_ffff));
    number_buses(&machine);
    assert!((1..3).all(|bus| machine.read(on_bus(bus), 4) == 0x5678_1234));
    // Alone there.
    assert_eq!(machine.read(on_bus(2) + 0xe, 1), 0);
    assert_eq!(machine.read(on_bus(2) + (1 << 12), 4), 0xffff_ffff);
    assert_eq!(machine.read(on_bus(2) + (8 << 12), 4), 0xffff_ffff);
    assert_eq!(machine.read(on_bus(3), 4), 0xffff_ffff, "no port leads there");
    machine.write(on_bus(2) + 0x3c, 1, 7);
    machine.write(on_bus(1) + 0x3c, 1, 7);
    machine.write(config(0x18) + 0x3c, 1, 7);
    let buses: Vec<_> = machine.functions.iter().map(|one| lock(&**one).bus).collect();
    assert_eq!(buses, [None, Some(2), Some(1)]);
}

#[test]
fn a_bar_is_forwarded_while_it_is_in_its_port_s_window() {
    let (machine, _) = machine();
    number_buses(&machine);
    machine.write(on_bus(2) + 0x10, 4, MEMORY32 + (2 << 20));
    machine.write(on_bus(2) + 4, 2, 2);
    let there = names(&[("one", 0, MEMORY32 + (2 << 20))]);
    assert_eq!(machine.mapped(), there);
    assert_eq!(machine.read(MEMORY32 + (2 << 20) + 5, 1), 5);
    // The window moves away and comes back; memory is disabled and enabled.
    for (register, len, away, back) in
        [(MEMORY, 4, window(9), window(2)), (4, 2, 0, 0b110), (BUSES, 4, 0, 0x0002_0200)]
    {
        machine.write(config(0x08) + register, len, away);
        let goes = register != BUSES;
        assert_eq!(machine.mapped().is_empty(), goes, "{register:#x}");
        assert_eq!(machine.read(MEMORY32 + (2 << 20) + 5, 1) == 0xff, goes, "{register:#x}");
        machine.write(config(0x08) + register, len, back);
        assert_eq!(machine.mapped(), there, "{register:#x}");
    }
    // Into the other port's window.
    machine.write(on_bus(2) + 0x10, 4, MEMORY32 + (1 << 20));
    assert_eq!(machine.mapped(), []);
}

#[test]
fn an_ejected_function_is_no_more() {
    let (machine, ports) = machine();
    number_buses(&machine);
    for bus in [1, 2] {
        machine.write(on_bus(bus) + 0x10, 4, MEMORY32 + (bus << 20));
        machine.write(on_bus(bus) + 4, 2, 2);
    }
    machine.write(config(0x08) + SLOT_CONTROL, 2, POWER_OFF);
    assert_eq!(ports[0].ejected().read().unwrap(), 1);
    assert_eq!(machine.mapped(), names(&[("two", 0, MEMORY32 + (1 << 20))]));
    assert_eq!(machine.read(on_bus(2), 4), 0xffff_ffff);
    assert_eq!(machine.read(MEMORY32 + (2 << 20), 4), 0xffff_ffff);
    machine.write(on_bus(2) + 4, 2, 2);
    machine.write(MEMORY32 + (2 << 20), 4, 1);
    assert!(lock(&*machine.functions[1]).written.is_empty());
    assert_eq!(machine.read(on_bus(1), 4), 0x5678_1234);
}

#[test]
fn a_reset_of_its_bus_and_of_the_machine_reach_a_function() {
    let (machine, _) = machine();
    number_buses(&machine);
    machine.write(on_bus(1) + 0x10, 4, MEMORY32 + (1 << 20));
    machine.write(on_bus(1) + 4, 2, 2);
    machine.write(config(0x09) + BRIDGE_CONTROL, 2, 1 << 6);
    let resets: Vec<_> = machine.functions.iter().map(|one| lock(&**one).resets).collect();
    assert_eq!((resets, machine.mapped()), (vec![0, 0, 1], vec![]));
    machine.write(config(0x09) + BRIDGE_CONTROL, 2, 0);
    machine.write(on_bus(1) + 4, 2, 2);
    assert_eq!(machine.mapped().len(), 1);
    machine.bridge.reset();
    assert_eq!(machine.mapped(), [], "its port leads nowhere");
    assert_eq!(machine.read(on_bus(1), 4), 0xffff_ffff);
}
