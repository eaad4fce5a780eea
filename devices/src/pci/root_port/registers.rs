//! A root port's configuration space: which bits are there, and which of them a guest may write.

use super::super::config;
use super::super::{AddressSpace, BarRange, InterruptPin};

/// Bytes that aren't zero beyond.
const SIZE: usize = 0x80;

/// Registers of a type 1 header (PCI-to-PCI Bridge Architecture 1.2, 3.2).
pub(super) const SECONDARY_BUS: u16 = 0x19;
const PRIMARY_BUS: u16 = 0x18;
const SUBORDINATE_BUS: u16 = 0x1a;
const IO_BASE: u16 = 0x1c;
const IO_LIMIT: u16 = 0x1d;
const MEMORY_BASE: u16 = 0x20;
const MEMORY_LIMIT: u16 = 0x22;
const PREFETCHABLE_BASE: u16 = 0x24;
const PREFETCHABLE_LIMIT: u16 = 0x26;
const PREFETCHABLE_BASE_UPPER: u16 = 0x28;
const PREFETCHABLE_LIMIT_UPPER: u16 = 0x2c;
const INTERRUPT_LINE: u16 = 0x3c;
const BRIDGE_CONTROL: u16 = 0x3e;

/// Bits of the registers.
pub(super) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
pub(super) const STATUS_INTERRUPT: u16 = 1 << 3;
const HEADER_TYPE_BRIDGE: u8 = 1;
/// The prefetchable window has 64 address bits.
const PREFETCHABLE_64: u16 = 1;
/// Parity and SERR# forwarding, ISA and VGA, and the secondary bus' reset.
pub(super) const BRIDGE_CONTROL_BUS_RESET: u16 = 1 << 6;
const BRIDGE_CONTROL_WRITABLE: u16 = 0b0101_1111;

/// Where the PCI Express capability is, the only one.
const EXPRESS: u16 = 0x40;
/// Its registers (PCI Express Base 5.0, 7.5.3).
const EXPRESS_FLAGS: u16 = EXPRESS + 2;
const DEVICE_CAPABILITIES: u16 = EXPRESS + 4;
const DEVICE_CONTROL: u16 = EXPRESS + 8;
const LINK_CAPABILITIES: u16 = EXPRESS + 0xc;
pub(super) const LINK_CONTROL: u16 = EXPRESS + 0x10;
pub(super) const LINK_STATUS: u16 = EXPRESS + 0x12;
const SLOT_CAPABILITIES: u16 = EXPRESS + 0x14;
pub(super) const SLOT_CONTROL: u16 = EXPRESS + 0x18;
pub(super) const SLOT_STATUS: u16 = EXPRESS + 0x1a;
const ROOT_CONTROL: u16 = EXPRESS + 0x1c;
const DEVICE_CONTROL_2: u16 = EXPRESS + 0x28;
const LINK_CAPABILITIES_2: u16 = EXPRESS + 0x2c;
const LINK_CONTROL_2: u16 = EXPRESS + 0x30;

/// Version 2, a root port, whose slot is implemented.
const FLAGS: u16 = 2 | 4 << 4 | 1 << 8;
/// Role-based error reporting.
const DEVICE_ERRORS: u32 = 1 << 15;
/// Link: 16 GT/s, 16 lanes; capable of reporting that it is active.
const LINK_SPEED: u16 = 4;
const LINK_WIDTH: u16 = 16 << 4;
const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
const LINK_SPEEDS: u32 = 0b1111 << 1;
pub(super) const LINK_DISABLE: u16 = 1 << 4;
pub(super) const LINK_ACTIVE: u16 = 1 << 13;
/// But for the bit that retrains the link, which reads as zero.
const LINK_CONTROL_WRITABLE: u16 = 0x0fdf;
/// Slot: a power controller, surprise removal, hot-plug, and no notification of completed commands.
const SLOT: u32 = 1 << 1 | 1 << 5 | 1 << 6 | 1 << 18;
const SLOT_NUMBER: u32 = 19;
/// Enables: of presence changes, of hot-plug interrupts, of changes of the link's state.
pub(super) const PRESENCE_CHANGED_ENABLE: u16 = 1 << 3;
pub(super) const HOT_PLUG_INTERRUPT_ENABLE: u16 = 1 << 5;
pub(super) const LINK_CHANGED_ENABLE: u16 = 1 << 12;
/// Set: the slot has no power.
pub(super) const POWER_OFF: u16 = 1 << 10;
const SLOT_CONTROL_WRITABLE: u16 = 0x17ff;
/// Status: what has changed, which a guest clears by writing ones, and that something is there.
pub(super) const PRESENCE_CHANGED: u16 = 1 << 3;
pub(super) const PRESENT: u16 = 1 << 6;
pub(super) const LINK_CHANGED: u16 = 1 << 8;

/// The root port that Red Hat gave ids to (1b36:000c), of class 06 (bridge), subclass 04 (PCI-to-PCI).
const IDS: [u16; 2] = [0x1b36, 0x000c];
const CLASS: u32 = 0x06_0400;

/// Where bits are of one kind, by byte of the registers.
type Bits = [u8; SIZE];

/// The registers of a port.
pub(super) struct Registers {
    values: Bits,
    /// What a guest may write.
    writable: Bits,
    /// What a guest clears by writing ones.
    clearable: Bits,
}

impl Registers {
    /// As after power-up, of a port with this number and interrupt pin.
    #[cold]
    pub(super) fn new(number: u8, pin: InterruptPin) -> Self {
        let mut values = [0; SIZE];
        for (at, value) in [
            (0, IDS[0]),
            (2, IDS[1]),
            (config::STATUS, config::STATUS_CAP_LIST),
            (config::HEADER_TYPE, u16::from(HEADER_TYPE_BRIDGE)),
            (config::CAPABILITY_LIST, EXPRESS),
            (INTERRUPT_LINE, u16::from(pin.number()) << 8),
            (PREFETCHABLE_BASE, PREFETCHABLE_64),
            (PREFETCHABLE_LIMIT, PREFETCHABLE_64),
            (EXPRESS, u16::from(EXPRESS_ID)),
            (EXPRESS_FLAGS, FLAGS),
            (LINK_STATUS, LINK_SPEED | LINK_WIDTH),
            (LINK_CONTROL_2, LINK_SPEED),
        ] {
            put(&mut values, at, value);
        }
        for (at, value) in [
            (8, CLASS << 8),
            (DEVICE_CAPABILITIES, DEVICE_ERRORS),
            (
                LINK_CAPABILITIES,
                u32::from(LINK_SPEED | LINK_WIDTH)
                    | LINK_ACTIVE_REPORTING
                    | u32::from(number) << 24,
            ),
            (SLOT_CAPABILITIES, SLOT | u32::from(number) << SLOT_NUMBER),
            (LINK_CAPABILITIES_2, LINK_SPEEDS),
        ] {
            put_u32(&mut values, at, value);
        }
        let [mut writable, mut clearable] = [[0; SIZE]; 2];
        for (at, bits) in [
            (
                config::COMMAND,
                config::COMMAND_IO
                    | config::COMMAND_MEMORY
                    | config::COMMAND_MASTER
                    | COMMAND_PARITY
                    | COMMAND_SERR
                    | COMMAND_INTX_DISABLE,
            ),
            (CACHE_LINE_SIZE, 0x00ff),
            (PRIMARY_BUS, 0xffff),
            (SUBORDINATE_BUS, 0x00ff),
            (IO_BASE, 0xf0f0),
            (MEMORY_BASE, 0xfff0),
            (MEMORY_LIMIT, 0xfff0),
            (PREFETCHABLE_BASE, 0xfff0),
            (PREFETCHABLE_LIMIT, 0xfff0),
            (INTERRUPT_LINE, 0x00ff),
            (BRIDGE_CONTROL, BRIDGE_CONTROL_WRITABLE),
            (DEVICE_CONTROL, 0x70ff),
            (LINK_CONTROL, LINK_CONTROL_WRITABLE),
            (SLOT_CONTROL, SLOT_CONTROL_WRITABLE),
            (ROOT_CONTROL, 0x000f),
            (DEVICE_CONTROL_2, 0x001f),
            (LINK_CONTROL_2, 0x000f),
        ] {
            put(&mut writable, at, bits);
        }
        put_u32(&mut writable, PREFETCHABLE_BASE_UPPER, u32::MAX);
        put_u32(&mut writable, PREFETCHABLE_LIMIT_UPPER, u32::MAX);
        put(&mut clearable, SLOT_STATUS, PRESENCE_CHANGED | LINK_CHANGED);
        Self { values, writable, clearable }
    }

    /// Reads at `offset`; beyond the registers is zero.
    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        config::read(&self.values, offset.into(), data);
    }

    /// The guest writes at `offset`.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) {
        let Self { values, writable, clearable } = self;
        let bytes = values.iter_mut().zip(writable.iter().zip(clearable.iter()));
        for ((value, (writable, clearable)), new) in bytes.skip(usize::from(offset)).zip(data) {
            *value = (*value & !writable | new & writable) & !(new & clearable);
        }
    }

    /// The byte at `offset`.
    pub(super) fn u8(&self, offset: u16) -> u8 {
        self.values.get(usize::from(offset)).copied().unwrap_or_default()
    }

    /// The register at `offset`.
    pub(super) fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.u8(offset), self.u8(offset.saturating_add(1))])
    }

    fn u32(&self, offset: u16) -> u32 {
        let (low, high) = (self.u16(offset), self.u16(offset.saturating_add(2)));
        u32::from(high) << 16 | u32::from(low)
    }

    /// Sets the `bits` of the register at `offset`, or clears them.
    pub(super) fn set(&mut self, offset: u16, bits: u16, on: bool) {
        let value = self.u16(offset);
        put(&mut self.values, offset, if on { value | bits } else { value & !bits });
    }

    /// Whether any of the `bits` of the register at `offset` is set.
    pub(super) fn has(&self, offset: u16, bits: u16) -> bool {
        self.u16(offset) & bits != 0
    }

    /// Whether the secondary bus is being reset.
    pub(super) fn resets_bus(&self) -> bool {
        self.has(BRIDGE_CONTROL, BRIDGE_CONTROL_BUS_RESET)
    }

    /// Whether the port forwards accesses to this range from its primary bus: within one of its windows
    /// (PCI-to-PCI Bridge Architecture 1.2, 4.2 to 4.5).
    pub(super) fn forwards(&self, BarRange { space, range, .. }: &BarRange) -> bool {
        let enable = match space {
            AddressSpace::Memory => config::COMMAND_MEMORY,
            AddressSpace::Io => config::COMMAND_IO,
        };
        let windows: &[(u64, u64)] = match space {
            AddressSpace::Memory => &[self.memory_window(), self.prefetchable_window()],
            AddressSpace::Io => &[self.io_window()],
        };
        let last = range.end.saturating_sub(1);
        let within = windows.iter().any(|(base, limit)| *base <= range.start && last <= *limit);
        self.has(config::COMMAND, enable) && within
    }

    /// First and last address of windows: none where the first is above the last.
    fn io_window(&self) -> (u64, u64) {
        let page = |at| u64::from(self.u8(at) & 0xf0) << 8;
        (page(IO_BASE), page(IO_LIMIT) | 0xfff)
    }

    fn memory_window(&self) -> (u64, u64) {
        (self.megabyte(MEMORY_BASE), self.megabyte(MEMORY_LIMIT) | 0xf_ffff)
    }

    fn prefetchable_window(&self) -> (u64, u64) {
        let whole = |at, upper| u64::from(self.u32(upper)) << 32 | self.megabyte(at);
        let limit = whole(PREFETCHABLE_LIMIT, PREFETCHABLE_LIMIT_UPPER) | 0xf_ffff;
        (whole(PREFETCHABLE_BASE, PREFETCHABLE_BASE_UPPER), limit)
    }

    fn megabyte(&self, at: u16) -> u64 {
        u64::from(self.u16(at) & 0xfff0) << 16
    }
}

/// The PCI Express capability's id (Code and ID Assignment 1.11, 2).
const EXPRESS_ID: u8 = 0x10;
const CACHE_LINE_SIZE: u16 = 0x0c;

fn put(bits: &mut Bits, at: u16, value: u16) {
    for (to, from) in bits.iter_mut().skip(usize::from(at)).zip(value.to_le_bytes()) {
        *to = from;
    }
}

fn put_u32(bits: &mut Bits, at: u16, value: u32) {
    let [low, high] = [value & 0xffff, value >> 16].map(|half| u16::try_from(half).unwrap_or(0));
    put(bits, at, low);
    put(bits, at.saturating_add(2), high);
}
