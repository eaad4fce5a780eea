//! Addresses of registers: a node's `reg` on its bus, and what the CPU calls them (Devicetree
//! Specification, 2.3.6 "reg" and 2.3.8 "ranges").

use std::ops::Range;

use super::error::HostError;
use super::node::HostNode;
use super::{BusCells, HostTree};
use crate::fdt::node::MAX_DEPTH;

/// One entry of a bus's `ranges`: where `size` bytes of the bus are on the bus above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// The address on the bus itself.
    pub child: u64,
    /// The address on the bus above.
    pub parent: u64,
    /// How many bytes.
    pub size: u64,
}

/// How a bus's addresses become those of the bus above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// They don't: the bus has no `ranges`.
    None,
    /// They are the same: its `ranges` is empty.
    Same,
    /// By these entries.
    Entries(Vec<BusRange>),
}

impl HostNode {
    /// The cells of addresses and sizes that its children have; 2 and 1 where it doesn't say
    /// (Devicetree Specification, 2.3.5).
    ///
    /// # Errors
    ///
    /// They are malformed.
    pub fn child_cells(&self) -> Result<BusCells, HostError> {
        Ok(BusCells {
            address: self.u32("#address-cells")?.unwrap_or(2),
            size: self.u32("#size-cells")?.unwrap_or(1),
        })
    }

    /// The entries of `reg`, in addresses of a bus with these cells.
    ///
    /// # Errors
    ///
    /// It is malformed, or its numbers have more than 64 bits.
    pub fn reg(&self, cells: BusCells) -> Result<Vec<Range<u64>>, HostError> {
        let all = self.cells("reg")?.unwrap_or_default();
        let mut numbers = self.numbers("reg", &all, [cells.address, cells.size, 0])?;
        let mut reg = Vec::new();
        while !numbers.is_empty() {
            let (start, size) = (numbers.take(cells.address)?, numbers.take(cells.size)?);
            reg.push(start..start.saturating_add(size));
        }
        Ok(reg)
    }

    /// Its `ranges`, to a bus whose addresses have `above` cells.
    ///
    /// # Errors
    ///
    /// It is malformed, or its numbers have more than 64 bits.
    pub fn ranges(&self, above: u32) -> Result<Ranges, HostError> {
        self.bus_ranges("ranges", above)
    }

    /// A property of entries like `ranges`.
    pub(super) fn bus_ranges(&self, property: &str, above: u32) -> Result<Ranges, HostError> {
        let Some(all) = self.cells(property)? else { return Ok(Ranges::None) };
        if all.is_empty() {
            return Ok(Ranges::Same);
        }
        let cells = self.child_cells()?;
        let mut numbers = self.numbers(property, &all, [cells.address, above, cells.size])?;
        let mut entries = Vec::new();
        while !numbers.is_empty() {
            let child = numbers.take(cells.address)?;
            let parent = numbers.take(above)?;
            entries.push(BusRange { child, parent, size: numbers.take(cells.size)? });
        }
        Ok(Ranges::Entries(entries))
    }

    /// The numbers in the cells of a property, of which each entry takes those of `entry`, in cells.
    ///
    /// # Errors
    ///
    /// There are some, but an entry takes none: there would be no end of entries.
    pub(super) fn numbers<'a>(
        &'a self,
        property: &'a str,
        all: &'a [u32],
        entry: [u32; 3],
    ) -> Result<Numbers<'a>, HostError> {
        if !all.is_empty() && entry == [0; 3] {
            return Err(HostError::NoEntry { path: self.file(property) });
        }
        Ok(Numbers { node: self, property, rest: all })
    }
}

impl Ranges {
    /// What the bus above calls this address; `None` if it can't reach it.
    pub fn translate(&self, address: u64) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Same => Some(address),
            Self::Entries(entries) => entries.iter().find_map(|entry| {
                let offset = address.checked_sub(entry.child)?;
                (offset < entry.size).then(|| entry.parent.checked_add(offset))?
            }),
        }
    }
}

impl HostTree {
    /// What the CPU calls `address` of the bus that `node` is on: the host's physical address.
    ///
    /// # Errors
    ///
    /// A bus on the way is malformed, or doesn't let the CPU reach the address.
    pub fn translate(&self, node: &HostNode, address: u64) -> Result<u64, HostError> {
        let mut address = address;
        let Some(mut bus) = self.parent(node)? else { return Ok(address) };
        for _ in 0..MAX_DEPTH {
            let Some(above) = self.parent(&bus)? else { return Ok(address) };
            let ranges = bus.ranges(above.child_cells()?.address)?;
            address = ranges.translate(address).ok_or_else(|| HostError::NoTranslation {
                path: bus.directory().to_owned(),
                address,
            })?;
            bus = above;
        }
        Err(HostError::TooDeep { path: node.directory().to_owned(), limit: MAX_DEPTH })
    }

    /// Whether DMA of this node's device sees the CPU's caches: its own `dma-coherent` or
    /// `dma-noncoherent`, else that of the bus its memory accesses go by (Linux
    /// `of_dma_is_coherent`): its interconnect named `dma-mem`, else the bus it is on.
    ///
    /// # Errors
    ///
    /// A node on the way is malformed.
    pub fn is_dma_coherent(&self, node: &HostNode) -> Result<bool, HostError> {
        let mut next = Some(node.clone());
        for _ in 0..MAX_DEPTH {
            let Some(node) = next else { return Ok(false) };
            if node.has("dma-coherent") || node.has("dma-noncoherent") {
                return Ok(node.has("dma-coherent"));
            }
            next = self.dma_parent(&node)?;
        }
        Ok(false)
    }

    /// The bus that a node's memory accesses go by (Linux `__of_get_dma_parent`).
    pub(super) fn dma_parent(&self, node: &HostNode) -> Result<Option<HostNode>, HostError> {
        match self.dma_interconnect(node) {
            Some(bus) => Ok(Some(bus)),
            None => self.parent(node),
        }
    }

    /// The interconnect named `dma-mem`. One that can't be made out is as good as none.
    fn dma_interconnect(&self, node: &HostNode) -> Option<HostNode> {
        let names = node.strings("interconnect-names").ok()??;
        let index = names.iter().position(|name| *name == "dma-mem")?;
        let all = self.references(node, "interconnects", Some("#interconnect-cells")).ok()?;
        all.into_iter().nth(index)?.map(|reference| reference.provider)
    }
}

/// Numbers of some cells each, one after another.
pub(super) struct Numbers<'a> {
    node: &'a HostNode,
    property: &'a str,
    rest: &'a [u32],
}

impl Numbers<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next number, of this many cells.
    pub(super) fn take(&mut self, cells: u32) -> Result<u64, HostError> {
        let wrong = || HostError::Cells { path: self.node.file(self.property), cells };
        let length = usize::try_from(cells).map_err(|_| wrong())?;
        let (number, rest) = self.rest.split_at_checked(length).ok_or_else(wrong)?;
        let number = match number {
            [] => 0,
            [low] => u64::from(*low),
            [high, low] => u64::from(*high) << 32 | u64::from(*low),
            // An address of PCI and the like: 64 bits behind cells that say which space.
            _ => return Err(wrong()),
        };
        self.rest = rest;
        Ok(number)
    }
}
