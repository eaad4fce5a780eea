//! The guest's host bridge: bus 0 with the functions on it, and with root ports, behind each of which a
//! function has a bus of its own.
//!
//! There are four kinds of lock, so that a slow function delays only its own users: each function
//! has one; a read-write lock on the forwarded BARs is held for a lookup only; one is held while
//! the guest moves BARs; and each port has one, for its registers. A function's lock is taken while the one for
//! moves is held, never the other way round, and no other while a port's is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use boot::order;

use super::address::Bdf;
use super::apertures::{Apertures, FunctionBar, arbitrate};
use super::bars::{AddressSpace, BarRange};
use super::config::{HEADER_TYPE, HEADER_TYPE_MFD, read};
use super::root_port::RootPort;
use crate::sync::lock;

/// The bridge's own bus.
const ROOT_BUS: u8 = 0;
/// The first device and function of a bus: what the bridge is on its own, and a function behind a port.
const FIRST_DEVFN: u8 = 0;

/// The bridge's configuration space as far as it isn't zero: the generic PCI Express host bridge
/// that Red Hat gave ids to (1b36:0008), of class 06 (bridge), subclass 00 (host).
const BRIDGE_HEADER: [u8; 12] = [0x36, 0x1b, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0x00, 0x06];

/// A PCI function behind the guest's host bridge.
///
/// It keeps its own configuration space and tells what its BARs decode, which the guest may place
/// anywhere. The bridge decides which of these ranges it forwards, and only those may the function
/// map into the guest: see [`forward`](Self::forward). Trapped accesses come through the bridge.
pub trait Function: Send {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// The guest reads 1, 2 or 4 bytes of configuration space at `offset` (below 4096), aligned to
    /// their number.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// The guest writes 1, 2 or 4 bytes of configuration space at `offset` (below 4096), aligned to
    /// their number. Afterwards the bridge asks for the [decoded ranges](Self::decoded), and if they
    /// have changed it [forwards](Self::forward) anew, before the guest's write is done.
    fn write_config(&mut self, offset: u16, data: &[u8]);

    /// The ranges that its BARs decode at present: none while the command register's decoding is
    /// disabled.
    fn decoded(&self) -> Vec<BarRange>;

    /// Whether a BAR decodes this range at present, which is checked at each trapped access.
    fn decodes(&self, range: &BarRange) -> bool {
        self.decoded().contains(range)
    }

    /// From here on the bridge forwards these ranges, some or all of the
    /// [decoded ones](Self::decoded). Their mappable parts are mapped into the guest when this
    /// returns, and nothing else is.
    ///
    /// Not forwarded is a range outside the bridge's apertures (on RAM, the interrupt controller,
    /// another device), or over another BAR.
    fn forward(&mut self, ranges: &[BarRange]);

    /// Unmaps everything from the guest, so that all accesses trap, until it is to
    /// [forward](Self::forward) other ranges: the host can't back the mapping. Whether anything was
    /// mapped.
    fn trap(&mut self) -> bool;

    /// The guest reads 1, 2, 4 or 8 bytes at `offset` of a BAR, by a trap. They lie within the BAR's
    /// size, at any alignment.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes 1, 2, 4 or 8 bytes at `offset` of a BAR, by a trap. They lie within the
    /// BAR's size, at any alignment.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// Behind a root port: it is on this bus, as functions learn by configuration writes (PCI Express Base
    /// 5.0, 2.2.6.2), and its requester ID has that number from here on.
    fn set_bus(&mut self, bus: u8) {
        let _ = bus;
    }

    /// Behind a root port: the guest resets its bus, and so the function. Afterwards the bridge asks for the
    /// [decoded ranges](Self::decoded).
    fn reset(&mut self) {}
}

/// A slot with its function.
struct OccupiedSlot {
    function: Arc<Mutex<dyn Function>>,
    /// What it is behind, if it isn't on bus 0.
    port: Option<Arc<RootPort>>,
    /// The ranges that it decoded when the bridge last arranged them; locked under the function's
    /// lock.
    known: Mutex<Vec<BarRange>>,
    /// That a BAR isn't forwarded has been logged.
    warned: AtomicBool,
}

/// The host bridge, as `pci-host-ecam-generic` describes it
/// (Documentation/devicetree/bindings/pci/host-generic-pci.yaml).
///
/// A function's BAR is forwarded to if it lies within the bridge's [`Apertures`] and overlaps no
/// other BAR that is: wherever a guest places it, it never covers RAM or another device.
pub struct HostBridge {
    apertures: Apertures,
    /// By their addresses; behind a port, with its number as that of the bus.
    slots: BTreeMap<Bdf, OccupiedSlot>,
    /// By device and function number.
    ports: BTreeMap<u8, Arc<RootPort>>,
    /// In order of space and address.
    forwarded: RwLock<Vec<FunctionBar>>,
    /// Held while BARs move.
    moving: Mutex<()>,
}

impl HostBridge {
    /// A bridge with functions at these addresses, all on bus 0, which decode nothing yet.
    #[cold]
    pub fn new(
        apertures: Apertures,
        functions: impl IntoIterator<Item = (Bdf, Arc<Mutex<dyn Function>>)>,
    ) -> Self {
        let occupied = |(bdf, function)| (bdf, OccupiedSlot::new(function, None));
        let slots = functions.into_iter().map(occupied).collect();
        let (ports, forwarded, moving) = Default::default();
        Self { apertures, slots, ports, forwarded, moving }
    }

    /// The same with root ports, each with function 0 of the device behind it.
    #[cold]
    #[must_use]
    pub fn with_ports(
        mut self,
        ports: impl IntoIterator<Item = (Arc<RootPort>, Arc<Mutex<dyn Function>>)>,
    ) -> Self {
        for (port, function) in ports {
            self.slots.insert(behind(&port), OccupiedSlot::new(function, Some(port.clone())));
            self.ports.insert(port.bdf().devfn(), port);
        }
        self
    }

    /// Its part of the guest's address space.
    pub fn apertures(&self) -> &Apertures {
        &self.apertures
    }

    /// The guest reads 1, 2 or 4 bytes of a function's configuration space, aligned; all ones where
    /// there is no function.
    pub(super) fn read_config(&self, at: Bdf, register: u16, data: &mut [u8]) {
        if at == Bdf::from_devfn(ROOT_BUS, FIRST_DEVFN) {
            read(&BRIDGE_HEADER, register.into(), data);
            return;
        }
        if let Some(port) = self.port(at) {
            port.read_config(register, data);
        } else if let Some(occupied) = self.slot(at) {
            occupied.lock().read_config(register, data);
        } else {
            data.fill(0xff);
            return;
        }
        // The device may have other functions here than on the host.
        for (byte, offset) in data.iter_mut().zip(register..) {
            if offset == HEADER_TYPE {
                let several = if self.has_siblings(at) { HEADER_TYPE_MFD } else { 0 };
                *byte = *byte & !HEADER_TYPE_MFD | several;
            }
        }
    }

    /// The guest writes 1, 2 or 4 bytes of a function's configuration space, aligned.
    pub(super) fn write_config(&self, at: Bdf, register: u16, data: &[u8]) {
        if let Some(port) = self.port(at) {
            self.write_port(port, register, data);
            return;
        }
        let Some(occupied) = self.slot(at) else { return };
        let mut function = occupied.lock();
        if occupied.port.is_some() {
            function.set_bus(at.bus());
        }
        function.write_config(register, data);
        drop(function);
        self.follow(occupied);
    }

    #[cold]
    fn write_port(&self, port: &RootPort, register: u16, data: &[u8]) {
        let change = port.write_config(register, data);
        let Some(occupied) = self.slots.get(&behind(port)) else { return };
        if change.reset {
            occupied.lock().reset();
        }
        if change.reset || change.forwarding {
            self.follow(occupied);
        }
    }

    /// The port at this address, if there is one.
    fn port(&self, at: Bdf) -> Option<&RootPort> {
        if at.bus() != ROOT_BUS {
            return None;
        }
        self.ports.get(&at.devfn()).map(|port| &**port)
    }

    /// The slot at this address, with the bus' number as the guest gave it.
    fn slot(&self, at: Bdf) -> Option<&OccupiedSlot> {
        if at.bus() == ROOT_BUS {
            return self.slots.get(&at);
        }
        let port = self.ports.values().find(|port| port.leads_to(at.bus()))?;
        self.slots.get(&behind(port)).filter(|_| at.devfn() == FIRST_DEVFN)
    }

    /// Forwards what a function decodes now, if that has changed.
    fn follow(&self, occupied: &OccupiedSlot) {
        let decoded = occupied.decoded();
        let moved = *lock(&occupied.known) != decoded;
        if moved {
            self.arrange(occupied);
        }
    }

    /// Unmaps all functions from the guest, so that its accesses trap, until BARs move: the host
    /// can't back a mapping. Whether anything was mapped.
    #[cold]
    pub fn trap(&self) -> bool {
        self.slots.values().filter(|occupied| occupied.lock().trap()).count() != 0
    }

    /// The machine is reset, and functions have been, behind the bridge's back: resets its ports and forwards
    /// what functions decode now.
    #[cold]
    pub fn reset(&self) {
        self.ports.values().for_each(|port| port.reset());
        self.slots.values().for_each(|occupied| self.follow(occupied));
    }

    /// The guest accesses `len` bytes at an address that the bridge forwards: does `access` with the
    /// function, its BAR and the offset in that. `false` where there is none.
    ///
    /// Whether the BAR is there is checked under the function's lock: another vCPU may have disabled
    /// or moved it since it was looked up.
    pub(super) fn access(
        &self,
        space: AddressSpace,
        address: u64,
        len: usize,
        access: impl FnOnce(&mut dyn Function, u8, u64),
    ) -> bool {
        let Some((FunctionBar { function: at, bar }, offset)) = self.find(space, address, len)
        else {
            return false;
        };
        let Some(occupied) = self.slots.get(&at) else { return false };
        let mut function = occupied.lock();
        let decodes = function.decodes(&bar) && occupied.passes(&bar);
        if decodes {
            access(&mut *function, bar.bar, offset);
        }
        decodes
    }

    /// The BAR that covers all of an access, and the offset in it.
    fn find(&self, space: AddressSpace, address: u64, len: usize) -> Option<(FunctionBar, u64)> {
        let forwarded = self.forwarded.read().unwrap_or_else(PoisonError::into_inner);
        let at = forwarded.partition_point(|FunctionBar { bar, .. }| {
            (bar.space, bar.range.end) <= (space, address)
        });
        let found = forwarded.get(at)?;
        let bar = &found.bar;
        let offset = address.checked_sub(bar.range.start)?;
        let end = address.checked_add(u64::try_from(len).ok()?)?;
        let within = bar.space == space && end <= bar.range.end;
        within.then(|| (found.clone(), offset))
    }

    /// Decides anew which BARs are forwarded, after those of one function have changed.
    #[cold]
    fn arrange(&self, changed: &OccupiedSlot) {
        let _moving = lock(&self.moving);
        {
            // As of now: another vCPU may have moved BARs since, and would then not come here.
            let function = changed.lock();
            *lock(&changed.known) = changed.reachable(&*function);
        }
        self.slots.values().for_each(OccupiedSlot::refresh);
        let bars = |(function, occupied): (&Bdf, &OccupiedSlot)| {
            let (function, known) = (*function, lock(&occupied.known).clone());
            known.into_iter().map(move |bar| FunctionBar { function, bar })
        };
        let decoded: Vec<FunctionBar> = self.slots.iter().flat_map(bars).collect();
        let before = self.forwarded.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut after = arbitrate(&self.apertures, &decoded, &before);
        order::sort_by_key(&mut after, |FunctionBar { bar, .. }| (bar.space, bar.range.start));

        // First only those that stay, so that addresses are given up before another takes them.
        let stay: Vec<FunctionBar> =
            after.iter().filter(|bar| before.contains(bar)).cloned().collect();
        self.forward(&before, &stay);
        after.clone_into(&mut self.forwarded.write().unwrap_or_else(PoisonError::into_inner));
        self.forward(&stay, &after);
        decoded.iter().filter(|bar| !after.contains(bar)).for_each(|bar| self.warn(bar));
    }

    /// Tells the functions for which it changes which of their BARs are forwarded.
    fn forward(&self, before: &[FunctionBar], after: &[FunctionBar]) {
        for (bdf, occupied) in &self.slots {
            let (before, after) = (bars_of(before, *bdf), bars_of(after, *bdf));
            if before != after {
                occupied.lock().forward(&after);
            }
        }
    }

    #[cold]
    fn warn(&self, FunctionBar { function, bar: BarRange { bar, space, range } }: &FunctionBar) {
        let Some(occupied) = self.slots.get(function) else { return };
        if !occupied.warned.swap(true, Ordering::Relaxed) {
            let space = match space {
                AddressSpace::Memory => "memory",
                AddressSpace::Io => "ports",
            };
            log::warn!(
                "{}: BAR {bar} at {:#x}-{:#x} ({space}) does not answer: that is not the host \
                 bridge's to forward, or another BAR is there",
                occupied.lock().name(),
                range.start,
                range.end.saturating_sub(1)
            );
        }
    }

    /// Whether the device has other functions.
    fn has_siblings(&self, at: Bdf) -> bool {
        if at.bus() != ROOT_BUS {
            return false;
        }
        let first = at.devfn() & !7;
        let [from, to] = [first, first | 7].map(|devfn| Bdf::from_devfn(ROOT_BUS, devfn));
        let ports = self.ports.range(first..=first | 7).count();
        self.slots.range(from..=to).count().saturating_add(ports) > 1
    }
}

/// Where the bridge has the function behind a port.
fn behind(port: &RootPort) -> Bdf {
    Bdf::from_devfn(port.number(), FIRST_DEVFN)
}

impl OccupiedSlot {
    #[cold]
    fn new(function: Arc<Mutex<dyn Function>>, port: Option<Arc<RootPort>>) -> Self {
        let (known, warned) = Default::default();
        Self { function, port, known, warned }
    }

    /// Whether accesses to this range get as far as the function.
    fn passes(&self, range: &BarRange) -> bool {
        self.port.as_ref().is_none_or(|port| port.forwards(range))
    }

    /// Of what the function decodes, what accesses get to.
    fn reachable(&self, function: &dyn Function) -> Vec<BarRange> {
        let mut decoded = function.decoded();
        decoded.retain(|range| self.passes(range));
        decoded
    }

    /// Notes what it decodes, unless somebody is at work with it, who does so then: it may have been taken back.
    fn refresh(&self) {
        if let Ok(function) = self.function.try_lock() {
            *lock(&self.known) = self.reachable(&*function);
        }
    }

    fn decoded(&self) -> Vec<BarRange> {
        self.reachable(&*self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, dyn Function + 'static> {
        lock(&*self.function)
    }
}

/// The BARs of one function.
fn bars_of(all: &[FunctionBar], bdf: Bdf) -> Vec<BarRange> {
    all.iter().filter(|one| one.function == bdf).map(|one| one.bar.clone()).collect()
}

#[cfg(test)]
mod tests;
