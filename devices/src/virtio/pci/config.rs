//! Configuration space of a virtio function, without its BARs and MSI-X
//! (PCI Local Bus 3.0, 6.1 and 6.7; virtio 1.2, 4.1.2 and 4.1.4).

use super::super::device::DeviceType;
use super::layout::{BAR, COMMON, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER};
use crate::pci::config::{
    CAPABILITY_LIST, CFG_SPACE_SIZE, COMMAND, COMMAND_MASTER, COMMAND_MEMORY, INTERRUPT_PIN,
    STATUS, STATUS_CAP_LIST,
};

/// The vendor of all virtio devices, and the device ID of type 0 (virtio 1.2, 4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// A modern device has revision 1, and a subsystem ID of 0x40 or above (4.1.2.1).
const REVISION: u8 = 1;
const SUBSYSTEM: u16 = 0x40;

/// Command: no interrupts by the pin (PCI Local Bus 3.0, 6.2.2).
pub(super) const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status: the pin is asserted (6.2.3).
const STATUS_INTERRUPT: u16 = 1 << 3;

/// Registers of the header that software keeps values in, and what it can set of the command.
const CACHE_LINE_SIZE: u16 = 0x0c;
const INTERRUPT_LINE: u16 = 0x3c;
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE;

/// Capability IDs (PCI Code and ID Assignment, 2).
const VENDOR_SPECIFIC: u8 = 0x09;
const MSIX: u8 = 0x11;
const ADVANCED_FEATURES: u8 = 0x13;

/// Structures that a vendor's capability locates (virtio 1.2, 4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Where the capabilities are, in this order.
const FIRST_CAPABILITY: u8 = 0x40;
const CAPABILITY_SIZE: u8 = 0x10;
const NOTIFY_SIZE: u8 = 0x14;

/// Of the PCI configuration access capability (4.1.4.9): the BAR, the offset in it and the length of
/// an access, and the data, which is the access itself.
const ACCESS_BAR: u16 = 4;
const ACCESS_OFFSET: u16 = 8;
const ACCESS_LENGTH: u16 = 12;
const ACCESS_DATA: u16 = 16;

/// Of the Advanced Features capability (PCI ECN "Advanced Capabilities for Conventional PCI", 2): what
/// it has (transactions pending, function-level reset), and the control register that starts a reset.
const AF_CAPABILITIES: u8 = 0b11;
const AF_CONTROL: u16 = 4;
const AF_FLR: u8 = 1;

/// What a write to configuration space asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConfigWrite {
    /// Nothing more.
    Done,
    /// The command register has changed to this.
    Command(u16),
    /// A function-level reset.
    Reset,
    /// A write of the data to this offset of the BAR.
    Bar(u64),
}

/// The bytes of configuration space.
pub(super) struct ConfigSpace {
    bytes: [u8; CFG_SPACE_SIZE as usize],
    /// Where the capabilities are that do something.
    pci_cfg: u16,
    af: u16,
    /// Where MSI-X is, if the function has it.
    msix: Option<u16>,
}

impl ConfigSpace {
    /// That of a device of this type, with MSI-X or without.
    pub(super) fn new(kind: DeviceType, with_msix: bool) -> Self {
        let (pci_cfg, af) = Default::default();
        let mut space = Self { bytes: [0; CFG_SPACE_SIZE as usize], pci_cfg, af, msix: None };
        let [interface, subclass, class, _] = kind.class.to_le_bytes();
        space.put(0x00, &VENDOR.to_le_bytes());
        space.put(0x02, &FIRST_DEVICE.saturating_add(kind.id).to_le_bytes());
        space.put(STATUS, &STATUS_CAP_LIST.to_le_bytes());
        space.put(0x08, &[REVISION, interface, subclass, class]);
        space.put(0x2c, &VENDOR.to_le_bytes());
        space.put(0x2e, &SUBSYSTEM.saturating_add(kind.id).to_le_bytes());
        // INTA.
        space.put(INTERRUPT_PIN, &[1]);
        space.add_capabilities(with_msix);
        space
    }

    fn add_capabilities(&mut self, with_msix: bool) {
        let mut at = FIRST_CAPABILITY;
        let mut link = CAPABILITY_LIST;
        for (structure, range, size) in [
            (COMMON_CFG, COMMON, CAPABILITY_SIZE),
            (ISR_CFG, ISR, CAPABILITY_SIZE),
            (DEVICE_CFG, DEVICE, CAPABILITY_SIZE),
            (NOTIFY_CFG, NOTIFY, NOTIFY_SIZE),
            (PCI_CFG, 0..0, NOTIFY_SIZE),
        ] {
            link = self.link(link, at);
            self.put(u16::from(at), &[VENDOR_SPECIFIC, 0, size, structure, BAR]);
            let length = range.end.saturating_sub(range.start);
            for (offset, value) in [(8, range.start), (12, length)] {
                let value = u32::try_from(value).unwrap_or_default();
                self.put(u16::from(at) + offset, &value.to_le_bytes());
            }
            match structure {
                NOTIFY_CFG => self.put(u16::from(at) + 16, &NOTIFY_MULTIPLIER.to_le_bytes()),
                PCI_CFG => self.pci_cfg = at.into(),
                _ => {}
            }
            at = at.saturating_add(size);
        }
        link = self.link(link, at);
        self.put(at.into(), &[ADVANCED_FEATURES, 0, 6, AF_CAPABILITIES]);
        self.af = at.into();
        at = at.saturating_add(8);
        if with_msix {
            self.link(link, at);
            self.put(at.into(), &[MSIX]);
            self.msix = Some(at.into());
        }
    }

    /// Makes the register at `link` lead to the capability at `at`; answers where that has its link.
    fn link(&mut self, link: u16, at: u8) -> u16 {
        self.put(link, &[at]);
        u16::from(at) + 1
    }

    fn put(&mut self, offset: u16, data: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(offset.into()).zip(data) {
            *to = *from;
        }
    }

    fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.read(offset, &mut data);
        data
    }

    /// Where MSI-X is.
    pub(super) fn msix(&self) -> Option<u16> {
        self.msix
    }

    /// The command register.
    pub(super) fn command(&self) -> u16 {
        u16::from_le_bytes(self.get(COMMAND))
    }

    /// Vendor, device and class, for messages.
    pub(super) fn ids(&self) -> (u16, u16, u32) {
        let [vendor, device] = [0, 2].map(|at| u16::from_le_bytes(self.get(at)));
        (vendor, device, u32::from_le_bytes(self.get(8)) >> 8)
    }

    /// Tells whether the pin is asserted.
    pub(super) fn set_interrupt_status(&mut self, asserted: bool) {
        let bit = if asserted { STATUS_INTERRUPT } else { 0 };
        self.put(STATUS, &(STATUS_CAP_LIST | bit).to_le_bytes());
    }

    /// Reads; beyond the end is zero.
    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset.into())) {
            *to = *from;
        }
    }

    /// If the guest accesses `len` bytes at `offset`, and these are the data of the access capability:
    /// the offset in the BAR that it accesses so. A length that isn't the access' is none, nor is what
    /// isn't aligned to it.
    pub(super) fn access(&self, offset: u16, len: usize) -> Option<u64> {
        if offset != self.pci_cfg.saturating_add(ACCESS_DATA) {
            return None;
        }
        let register = |at| self.pci_cfg.saturating_add(at);
        let [bar] = self.get(register(ACCESS_BAR));
        let at = u32::from_le_bytes(self.get(register(ACCESS_OFFSET)));
        let length = u32::from_le_bytes(self.get(register(ACCESS_LENGTH)));
        let right = bar == BAR && usize::try_from(length) == Ok(len) && at.is_multiple_of(length);
        right.then_some(at.into())
    }

    /// Writes what can be written, and tells what that asks for.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> ConfigWrite {
        if let Some(at) = self.access(offset, data.len()) {
            return ConfigWrite::Bar(at);
        }
        let before = self.command();
        let mut reset = false;
        for (at, byte) in (offset..).zip(data) {
            let writable = self.writable(at);
            if let Some(old) = self.bytes.get_mut(usize::from(at)) {
                *old = *old & !writable | byte & writable;
            }
            reset |= at == self.af.saturating_add(AF_CONTROL) && byte & AF_FLR != 0;
        }
        match self.command() {
            _ if reset => ConfigWrite::Reset,
            command if command != before => ConfigWrite::Command(command),
            _ => ConfigWrite::Done,
        }
    }

    /// The bits of a byte that the guest can write.
    fn writable(&self, at: u16) -> u8 {
        let [command_low, command_high] = COMMAND_WRITABLE.to_le_bytes();
        let access = |from, to| {
            (self.pci_cfg.saturating_add(from)..self.pci_cfg.saturating_add(to)).contains(&at)
        };
        match at {
            COMMAND => command_low,
            0x05 => command_high,
            CACHE_LINE_SIZE | INTERRUPT_LINE => 0xff,
            _ if at == self.pci_cfg.saturating_add(ACCESS_BAR) => 0xff,
            _ if access(ACCESS_OFFSET, ACCESS_DATA) => 0xff,
            _ => 0,
        }
    }

    /// As a function-level reset does: the command is zero, the access capability's registers too.
    pub(super) fn reset(&mut self) {
        self.put(COMMAND, &[0; 2]);
        self.put(CACHE_LINE_SIZE, &[0]);
        self.put(self.pci_cfg.saturating_add(ACCESS_BAR), &[BAR]);
        self.put(self.pci_cfg.saturating_add(ACCESS_OFFSET), &[0; 8]);
    }
}
