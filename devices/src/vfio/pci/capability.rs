//! The capabilities of a PCI function: which there are, which a guest can have, and the list without
//! the others.
//!
//! Layouts and numbers: PCI Local Bus 3.0, 6.7 and appendix H; PCI Express Base 5.0, 7.5 to 7.9;
//! `include/uapi/linux/pci_regs.h`.

use std::collections::BTreeSet;

use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::pci::ConfigSnapshot;
use crate::pci::config::{
    CAPABILITY_LIST, CFG_SPACE_SIZE as EXTENDED, STATUS, STATUS_CAP_LIST, STD_HEADER_SIZEOF,
};

mod length;

/// What a capability is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CapabilityId {
    /// One of the first 256 bytes.
    Standard(u8),
    /// One of extended configuration space.
    Extended(u16),
}

/// Message-signalled interrupts.
pub const MSI: CapabilityId = CapabilityId::Standard(0x05);
/// Message-signalled interrupts by a table in a BAR.
pub const MSIX: CapabilityId = CapabilityId::Standard(0x11);
/// Power management.
pub const PM: CapabilityId = CapabilityId::Standard(0x01);
/// PCI Express.
pub const EXPRESS: CapabilityId = CapabilityId::Standard(0x10);

/// Resets of conventional functions.
pub const ADVANCED_FEATURES: CapabilityId = CapabilityId::Standard(0x13);

/// Of the PCI Express capability (PCI Express Base 5.0, 7.5.3.2): the register of its version and the
/// port's type, and an endpoint that is integrated in the root complex.
pub(super) const EXPRESS_FLAGS: u16 = 0x02;
pub(super) const ROOT_COMPLEX_ENDPOINT: u8 = 0x9;

/// A capability of a function.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Capability {
    /// What it is.
    #[serde(flatten)]
    pub id: CapabilityId,
    /// Its offset in configuration space, in bytes.
    pub offset: u16,
    /// Why the guest doesn't have it, if it doesn't.
    pub hidden: Option<&'static str>,
}

impl Capability {
    fn new(id: CapabilityId, offset: u16) -> Self {
        Self { id, offset, hidden: id.hidden() }
    }
}

/// A kind of capability.
struct Kind {
    id: CapabilityId,
    name: &'static str,
    /// Why a guest can't have it.
    hidden: Option<&'static str>,
}

const fn kept(id: CapabilityId, name: &'static str) -> Kind {
    Kind { id, name, hidden: None }
}

const fn hidden(id: CapabilityId, name: &'static str, why: &'static str) -> Kind {
    Kind { id, name, hidden: Some(why) }
}

const BRIDGES: &str = "only bridges and slots have a use for it";
const LINK: &str = "the link and what is at its other end are the host's";
const TRANSLATION: &str = "the guest has no IOMMU whose translations it could ask for";

use CapabilityId::{Extended, Standard};

/// All that have a name.
const KINDS: &[Kind] = &[
    kept(PM, "power management"),
    hidden(Standard(0x02), "AGP", BRIDGES),
    kept(Standard(0x03), "vital product data"),
    hidden(Standard(0x04), "slot identification", BRIDGES),
    kept(MSI, "MSI"),
    hidden(Standard(0x06), "CompactPCI hot swap", BRIDGES),
    kept(Standard(0x07), "PCI-X"),
    hidden(Standard(0x08), "HyperTransport", BRIDGES),
    kept(Standard(0x09), "vendor-specific"),
    kept(Standard(0x0a), "debug port"),
    hidden(Standard(0x0b), "CompactPCI resource control", BRIDGES),
    hidden(Standard(0x0c), "hot-plug", BRIDGES),
    hidden(Standard(0x0d), "bridge subsystem", BRIDGES),
    hidden(Standard(0x0e), "AGP 8x", BRIDGES),
    hidden(Standard(0x0f), "secure device", "it is an IOMMU's"),
    kept(EXPRESS, "PCI Express"),
    kept(MSIX, "MSI-X"),
    kept(Standard(0x12), "SATA"),
    kept(ADVANCED_FEATURES, "advanced features"),
    hidden(
        Standard(0x14),
        "enhanced allocation",
        "it fixes the function's memory at addresses of the host",
    ),
    kept(Extended(0x01), "advanced error reporting"),
    kept(Extended(0x02), "virtual channel"),
    kept(Extended(0x03), "device serial number"),
    kept(Extended(0x04), "power budgeting"),
    kept(Extended(0x08), "multi-function virtual channel"),
    kept(Extended(0x09), "virtual channel"),
    kept(Extended(0x0b), "vendor-specific"),
    hidden(
        Extended(0x0d),
        "access control services",
        "the host keeps the function apart from others by it",
    ),
    hidden(
        Extended(0x0e),
        "alternative routing-ID",
        "its next function is one of the host's numbers",
    ),
    hidden(Extended(0x0f), "address translation services", TRANSLATION),
    hidden(Extended(0x10), "SR-IOV", "its virtual functions would be devices of the host"),
    hidden(Extended(0x12), "multicast", "its addresses would be the host's, past the IOMMU"),
    hidden(Extended(0x13), "page request interface", TRANSLATION),
    hidden(Extended(0x15), "resizable BAR", "VFIO has mapped the BARs in the sizes that they have"),
    kept(Extended(0x16), "dynamic power allocation"),
    hidden(Extended(0x17), "TPH requester", "its steering tags name the host's processors"),
    hidden(Extended(0x18), "latency tolerance reporting", LINK),
    hidden(Extended(0x19), "secondary PCI Express", LINK),
    hidden(Extended(0x1b), "process address space ID", TRANSLATION),
    hidden(Extended(0x1d), "downstream port containment", BRIDGES),
    hidden(Extended(0x1e), "L1 PM substates", LINK),
    hidden(Extended(0x1f), "precision time measurement", LINK),
    kept(Extended(0x23), "designated vendor-specific"),
    hidden(
        Extended(0x24),
        "VF resizable BAR",
        "its virtual functions would be devices of the host",
    ),
    hidden(Extended(0x25), "data link feature", LINK),
    hidden(Extended(0x26), "physical layer 16 GT/s", LINK),
    hidden(Extended(0x27), "lane margining", LINK),
    hidden(Extended(0x2a), "physical layer 32 GT/s", LINK),
    hidden(
        Extended(0x2e),
        "data object exchange",
        "its mailbox is the host's to attest and encrypt with",
    ),
];

impl CapabilityId {
    fn kind(self) -> Option<&'static Kind> {
        KINDS.iter().find(|kind| kind.id == self)
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Self::Standard(id) => id.into(),
            Self::Extended(id) => id,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.kind().map_or("unknown", |kind| kind.name)
    }

    /// Why no guest can have it, if none can.
    fn hidden(self) -> Option<&'static str> {
        match self.kind() {
            Some(kind) => kind.hidden,
            // An unknown one may name addresses or devices of the host.
            None => Some("what it does isn't known"),
        }
    }
}

/// Its number with its name.
impl Serialize for CapabilityId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("CapabilityId", 3)?;
        fields.serialize_field("id", &self.number())?;
        fields.serialize_field("extended", &matches!(self, Self::Extended(_)))?;
        fields.serialize_field("name", self.name())?;
        fields.end()
    }
}

/// The standard capabilities of this configuration space, in the list's order. A list ends where it
/// leaves configuration space or comes back to an earlier capability.
fn standard(config: &ConfigSnapshot) -> Vec<Capability> {
    if config.u16(STATUS) & STATUS_CAP_LIST == 0 {
        return Vec::new();
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    // The lowest two bits are reserved (PCI 3.0, 6.7).
    let mut offset = u16::from(config.u8(CAPABILITY_LIST) & !3);
    while (STD_HEADER_SIZEOF..EXTENDED).contains(&offset) && seen.insert(offset) {
        let id = config.u8(offset);
        if id == 0xff {
            break;
        }
        found.push(Capability::new(Standard(id), offset));
        offset = u16::from(config.u8(offset + 1) & !3);
    }
    found
}

/// The extended capabilities, likewise.
fn extended(config: &ConfigSnapshot) -> Vec<Capability> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let mut offset = EXTENDED;
    while offset >= EXTENDED && config.contains(offset, 4) && seen.insert(offset) {
        let header = config.u32(offset);
        if header == 0 || header == u32::MAX {
            break;
        }
        let [low, high, _, _] = header.to_le_bytes();
        let id = u16::from_le_bytes([low, high]);
        // One without a number holds the first one's place (PCI Express 5.0, 7.9.28).
        if id != 0 && id != 0xffff {
            found.push(Capability::new(Extended(id), offset));
        }
        offset = next_of(header);
    }
    found
}

/// Where the next extended capability is, by this one's header.
fn next_of(header: u32) -> u16 {
    let [_, _, low, high] = header.to_le_bytes();
    (u16::from_le_bytes([low, high]) >> 4) & 0xffc
}

/// All capabilities of this configuration space.
pub fn all(config: &ConfigSnapshot) -> Vec<Capability> {
    [standard(config), extended(config)].concat()
}

/// The bytes of a configuration space that a guest can't write, with the values that it reads.
#[derive(Debug)]
pub struct FixedBytes(Vec<Option<u8>>);

impl FixedBytes {
    /// The value of the byte at `offset`; `None` for one of the function itself.
    pub fn get(&self, offset: u16) -> Option<u8> {
        self.0.get(usize::from(offset)).copied().flatten()
    }

    /// Fixes the byte at `offset`.
    pub fn fix(&mut self, offset: u16, value: u8) {
        if let Some(byte) = self.0.get_mut(usize::from(offset)) {
            *byte = Some(value);
        }
    }

    /// Fixes the header of an extended capability: `header` with another next capability. Where the
    /// first is hidden `header` is 0, a capability without a number.
    fn fix_header(&mut self, offset: u16, header: u32, next: u16) {
        let header = header & 0x000f_ffff | u32::from(next) << 20;
        for (offset, byte) in (offset..).zip(header.to_le_bytes()) {
            self.fix(offset, byte);
        }
    }
}

/// Fixes what isn't in the header nor in a capability that the guest has, and removes the hidden ones
/// of these capabilities from their lists.
///
/// Outside the capabilities all reads as zero: it is undocumented what is there, and VFIO leaves the
/// registers of capabilities that it hides itself (PASID, DPC, DOE …) accessible.
pub fn fixed_bytes(config: &ConfigSnapshot, capabilities: &[Capability]) -> FixedBytes {
    let size = usize::from(config.size());
    let mut fixed = FixedBytes(vec![None; size.min(STD_HEADER_SIZEOF.into())]);
    fixed.0.resize(size, Some(0));
    let kept = || capabilities.iter().filter(|capability| capability.hidden.is_none());
    for Capability { id, offset, .. } in kept() {
        let end = offset.saturating_add(length::length(*id, config, *offset));
        // Not the capability behind it, which may be a hidden one, should this one claim to be longer.
        let next =
            capabilities.iter().map(|other| other.offset).filter(|other| other > offset).min();
        let end = next.map_or(end, |next| end.min(next));
        let space = if matches!(id, Standard(_)) { EXTENDED } else { config.size() };
        let bytes = usize::from(*offset)..usize::from(end.min(space));
        fixed.0.get_mut(bytes).into_iter().flatten().for_each(|byte| *byte = None);
    }

    let mut link = CAPABILITY_LIST;
    for capability in kept().filter(|capability| matches!(capability.id, Standard(_))) {
        let [place, _] = capability.offset.to_le_bytes();
        fixed.fix(link, place);
        fixed.fix(capability.offset, config.u8(capability.offset));
        link = capability.offset + 1;
    }
    // Also where the list had no proper end.
    fixed.fix(link, 0);

    if config.contains(EXTENDED, 4) {
        let (mut holder, mut header) = (EXTENDED, 0);
        for capability in kept().filter(|capability| matches!(capability.id, Extended(_))) {
            if capability.offset != EXTENDED {
                fixed.fix_header(holder, header, capability.offset);
            }
            (holder, header) = (capability.offset, config.u32(capability.offset));
        }
        fixed.fix_header(holder, header, 0);
    }
    fixed
}

#[cfg(test)]
mod tests;
