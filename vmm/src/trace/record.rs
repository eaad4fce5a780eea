//! What a trace has of an event: of one size, so that a vCPU does no more than put it down.

use std::fmt::{self, Display, Formatter};

/// The vCPU of an event that isn't one's.
pub const NO_CPU: u16 = u16::MAX;

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it had happened, in ns since strait's start.
    pub time: u64,
    /// Whose it is.
    pub cpu: u16,
    /// What it is.
    pub event: Event,
    /// The guest's program counter; 0 where it isn't known.
    pub pc: u64,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest has accessed a register.
    Access(Access),
    /// This interrupt, by its number among all of the device, has been signalled, so many times.
    Interrupt(usize, u64),
    /// The guest has ended it.
    Ended(usize),
    /// The guest has made a call of SCMI.
    Scmi(devices::scmi::Call),
    /// The guest begins anew.
    Reset,
}

/// The name of an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Of a PCI function's: `intx`, `msi` or `msix`.
    pub kind: &'static str,
    /// Of several, which.
    pub number: u32,
    /// It is a level, which the guest ends.
    pub ends: bool,
}

/// The interrupt as a person reads it.
impl Display for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.kind {
            "" => write!(f, "{}", self.number),
            "intx" => f.write_str(self.kind),
            kind => write!(f, "{kind} {}", self.number),
        }
    }
}

/// An access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// It writes.
    pub write: bool,
    /// How many bytes.
    pub width: u8,
    /// The region of the device.
    pub region: u32,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is read or written.
    pub value: u64,
}

impl Access {
    /// One of these bytes, which are little-endian.
    pub fn new(write: bool, region: u32, offset: u64, data: &[u8]) -> Self {
        let mut value = [0; 8];
        for (byte, there) in value.iter_mut().zip(data) {
            *byte = *there;
        }
        let width = u8::try_from(data.len()).unwrap_or_default();
        Self { write, width, region, offset, value: u64::from_le_bytes(value) }
    }
}
