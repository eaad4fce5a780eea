use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::AddressSpace;
use super::registers::{
    HOT_PLUG_INTERRUPT_ENABLE as HPIE, LINK_CHANGED_ENABLE as DLLSCE,
    PRESENCE_CHANGED_ENABLE as PDCE,
};
use super::*;

/// Where registers are.
const COMMAND: u16 = 4;
const BUSES: u16 = 0x18;
const MEMORY: u16 = 0x20;
const PREFETCHABLE: u16 = 0x24;
const BRIDGE_CONTROL: u16 = 0x3e;
const CAPABILITY: u16 = 0x40;

/// A line, and how often it was set.
#[derive(Clone, Default)]
struct Line(Arc<(AtomicUsize, AtomicUsize)>);

impl Line {
    fn is_high(&self) -> bool {
        self.0.0.load(Ordering::Relaxed) != 0
    }

    fn sets(&self) -> usize {
        self.0.1.swap(0, Ordering::Relaxed)
    }
}

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.0.store(high.into(), Ordering::Relaxed);
        self.0.1.fetch_add(1, Ordering::Relaxed);
    }
}

fn port() -> (RootPort, Line) {
    let at = "02.0".parse().unwrap();
    let (port, line) = (RootPort::new(at, 3, Some(InterruptPin::INTA)).unwrap(), Line::default());
    port.connect(Box::new(line.clone()));
    (port, line)
}

fn read(port: &RootPort, register: u16) -> u32 {
    let mut data = [0; 4];
    port.read_config(register, &mut data);
    u32::from_le_bytes(data)
}

fn read16(port: &RootPort, register: u16) -> u16 {
    let mut data = [0; 2];
    port.read_config(register, &mut data);
    u16::from_le_bytes(data)
}

fn write16(port: &RootPort, register: u16, value: u16) -> PortChange {
    port.write_config(register, &value.to_le_bytes())
}

#[test]
fn a_guest_finds_a_root_port_with_an_occupied_hot_plug_slot() {
    let (port, line) = port();
    assert_eq!(read(&port, 0), 0x000c_1b36);
    assert_eq!(read(&port, 8), 0x0604_0000);
    assert_eq!(read(&port, 0xc), 0x0001_0000, "a bridge's header");
    assert_eq!(read16(&port, 6) & 0x18, 0x10, "capabilities, and no interrupt");
    assert_eq!(read(&port, 0x34), u32::from(CAPABILITY));
    assert_eq!(read(&port, 0x3c) >> 8, 2, "its pin isn't the function's");
    // PCI Express, the last capability; version 2, root port, slot.
    assert_eq!(read(&port, CAPABILITY), 0x0142_0010);
    // Slot 3: power controller, surprise removal, hot-plug, no notification of commands.
    assert_eq!(read(&port, CAPABILITY + 0x14), 3 << 19 | 0x4_0062);
    assert_eq!(read(&port, CAPABILITY + 0x18), 0x0040_0000, "something is there, with power");
    assert_eq!(read(&port, CAPABILITY + 0x10) >> 29, 1, "the link is active");
    assert_eq!(read(&port, 0x80), 0, "beyond its registers");
    assert!(!line.is_high() && port.ejected().read().is_err());
    let none = RootPort::new(port.bdf(), 1, None).unwrap();
    assert_eq!((none.pin(), none.number()), (InterruptPin::INTA, 1));
}

#[test]
fn a_guest_writes_what_it_may() {
    let (port, _) = port();
    for register in (0..0x100).step_by(4) {
        port.write_config(register, &[0xff; 4]);
    }
    for (register, value) in [
        (0x00, 0x000c_1b36),
        (0x04, 0x0018_0547),
        (0x0c, 0x0001_00ff),
        (0x18, 0x00ff_ffff),
        (0x1c, 0x0000_f0f0),
        (0x20, 0xfff0_fff0),
        (0x24, 0xfff1_fff1),
        (0x28, 0xffff_ffff),
        (0x2c, 0xffff_ffff),
        (0x30, 0),
        (0x38, 0),
        (0x3c, 0x005f_02ff),
        (0x7c, 0),
        (0xfc, 0),
    ] {
        assert_eq!(read(&port, register), value, "{register:#x}");
    }
}

#[test]
fn the_bus_behind_it_is_the_one_that_the_guest_gave() {
    let (port, _) = port();
    assert!((0..=255).all(|bus| !port.leads_to(bus)));
    port.write_config(BUSES, &[0, 9, 9]);
    assert!(port.leads_to(9) && !port.leads_to(0) && !port.leads_to(3));
}

#[test]
fn it_forwards_what_is_in_its_windows() {
    let (port, _) = port();
    let memory = |range| BarRange { bar: 0, space: AddressSpace::Memory, range };
    let io = |range| BarRange { bar: 0, space: AddressSpace::Io, range };
    let (low, high) = (memory(0x2010_0000..0x2020_0000), memory(1 << 39..(1 << 39) + (2 << 20)));
    let ports = io(0x1000..0x2000);
    write16(&port, MEMORY, 0x2010);
    write16(&port, MEMORY + 2, 0x2010);
    assert!(!port.forwards(&low), "not enabled");
    assert!(write16(&port, COMMAND, 2).forwarding);
    assert!(port.forwards(&low));
    for outside in [0x200f_f000..0x2010_1000, 0x201f_f000..0x2020_1000] {
        assert!(!port.forwards(&memory(outside.clone())), "{outside:x?}");
    }
    assert!(!port.forwards(&high));
    write16(&port, PREFETCHABLE + 2, 0x0010);
    port.write_config(PREFETCHABLE + 4, &0x80_u32.to_le_bytes());
    port.write_config(PREFETCHABLE + 8, &0x80_u32.to_le_bytes());
    assert!(port.forwards(&high) && port.forwards(&low));
    assert!(!port.forwards(&ports), "no ports yet");
    port.write_config(0x1c, &[0x10, 0x10]);
    write16(&port, COMMAND, 3);
    assert!(port.forwards(&ports) && !port.forwards(&io(0x1fff..0x2001)));
    // A limit below the base closes a window.
    write16(&port, MEMORY + 2, 0x2000);
    assert!(!port.forwards(&low));
}

#[test]
fn a_guest_that_turns_the_power_off_ejects_what_is_there_once() {
    let (port, line) = port();
    port.write_config(BUSES, &[0, 1, 1]);
    write16(&port, CAPABILITY + 0x18, HPIE | PDCE | DLLSCE);
    assert!(!line.is_high());
    let change = write16(&port, CAPABILITY + 0x18, HPIE | PDCE | DLLSCE | POWER_OFF);
    assert_eq!(change, PortChange { forwarding: true, reset: false });
    assert_eq!(port.ejected().read().unwrap(), 1);
    assert!(!port.leads_to(1) && line.is_high());
    // Nothing is there; presence and link have changed.
    assert_eq!(read16(&port, CAPABILITY + 0x1a), 0x108);
    assert_eq!(read16(&port, CAPABILITY + 0x12) & LINK_ACTIVE, 0);
    assert_eq!(read16(&port, 6) & 8, 8, "it interrupts");
    // Cleared by ones, one after the other.
    write16(&port, CAPABILITY + 0x1a, 0x8);
    assert!(line.is_high());
    write16(&port, CAPABILITY + 0x1a, 0x100);
    assert!(!line.is_high() && read16(&port, CAPABILITY + 0x1a) == 0);
    // The power comes back to an empty slot, and nobody ejects it again.
    write16(&port, CAPABILITY + 0x18, 0);
    write16(&port, CAPABILITY + 0x18, POWER_OFF);
    assert!(!port.leads_to(1) && port.ejected().read().is_err());
    port.reset();
    assert_eq!(read16(&port, CAPABILITY + 0x1a), 0, "nor does a reset bring it back");
}

#[test]
fn what_is_taken_away_leaves_the_link_down() {
    let (port, line) = port();
    port.write_config(BUSES, &[0, 1, 1]);
    write16(&port, CAPABILITY + 0x18, HPIE | DLLSCE);
    line.sets();
    port.vacate();
    assert!(line.is_high() && !port.leads_to(1) && port.ejected().read().is_err());
    assert_eq!(read16(&port, CAPABILITY + 0x1a), 0x108);
    port.vacate();
    write16(&port, COMMAND, 1 << 10);
    assert!(!line.is_high(), "the guest wants no interrupt");
    write16(&port, COMMAND, 0);
    write16(&port, COMMAND, 6);
    assert_eq!(line.sets(), 3, "a line is set when it changes");
}

#[test]
fn a_disabled_link_and_a_reset_of_the_bus_reset_what_is_there() {
    let (port, _) = port();
    port.write_config(BUSES, &[0, 1, 1]);
    let change = write16(&port, CAPABILITY + 0x10, LINK_DISABLE);
    assert_eq!(change, PortChange { forwarding: true, reset: true });
    assert!(!port.leads_to(1));
    let change = write16(&port, CAPABILITY + 0x10, 0);
    assert_eq!(change, PortChange { forwarding: true, reset: false });
    assert!(port.leads_to(1));
    assert_eq!(read16(&port, CAPABILITY + 0x1a), 0x140, "the link has changed, it is there");
    assert!(write16(&port, BRIDGE_CONTROL, 1 << 6).reset);
    assert!(!write16(&port, BRIDGE_CONTROL, 1 << 6).reset, "it is being reset already");
    assert!(!write16(&port, BRIDGE_CONTROL, 0).reset);
}

#[test]
fn a_machine_s_reset_is_as_after_power_up() {
    let (port, line) = port();
    port.write_config(BUSES, &[0, 1, 1]);
    write16(&port, CAPABILITY + 0x18, HPIE | DLLSCE);
    write16(&port, CAPABILITY + 0x10, LINK_DISABLE);
    assert!(line.is_high());
    port.reset();
    assert!(!line.is_high() && !port.leads_to(1));
    assert_eq!(read(&port, CAPABILITY + 0x18), 0x0040_0000);
    assert_eq!(read(&port, CAPABILITY + 0x10) >> 29, 1);
}
