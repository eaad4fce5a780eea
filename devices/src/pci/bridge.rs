//! The guest's host bridge: bus 0 with the functions on it.
//!
//! Three kinds of lock, so that a function that is slow to answer keeps nobody waiting but those who
//! ask it: each function has its own; where windows lead is looked up under one that is held for no
//! longer than that; and one that is held while windows move, which is taken when a guest moves
//! some and not otherwise. A function's lock is taken under the last, never the other way.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::address::{Bdf, Seat};
use super::apertures::{Apertures, Decoded, arbitrate};
use super::ecam::Ecam;
use super::function::{Function, Space, Window};
use super::window::Forwarder;
use crate::bus::SharedDevice;

/// The bridge's own place on its bus.
const OWN_DEVFN: u8 = 0;

/// The header type register, and its bit for a device of several functions (PCI Local Bus 3.0,
/// 6.2.1).
const HEADER_TYPE: u16 = 0x0e;
const MULTI_FUNCTION: u8 = 0x80;

/// The bridge's configuration space as far as it isn't zero: the generic PCI Express host bridge
/// that Red Hat gave ids to (1b36:0008), of class 06 (bridge), subclass 00 (host).
const OWN_HEADER: [u8; 12] = [0x36, 0x1b, 0x08, 0x00, 0, 0, 0, 0, 0, 0, 0x00, 0x06];

/// A function behind the bridge.
struct Installed {
    function: Arc<Mutex<dyn Function>>,
    /// What it decoded when the bridge last arranged windows; taken under the function's lock.
    known: Mutex<Vec<Window>>,
    /// That a window isn't forwarded has been logged.
    warned: AtomicBool,
}

/// The host bridge: to be found by `pci-host-ecam-generic`
/// (Documentation/devicetree/bindings/pci/host-generic-pci.yaml).
///
/// What a function decodes is forwarded to it if it lies within the bridge's [`Apertures`] and
/// overlaps no other window that is forwarded: wherever a guest puts a BAR, it doesn't get over RAM
/// or another device.
pub struct HostBridge {
    apertures: Apertures,
    seats: Vec<Seat>,
    functions: BTreeMap<u8, Installed>,
    /// What is forwarded, in order of space and address.
    routes: RwLock<Vec<Decoded>>,
    /// Held while windows move.
    moving: Mutex<()>,
}

impl HostBridge {
    /// A bridge with room for functions in these seats, all on bus 0.
    #[cold]
    pub fn new(apertures: Apertures, seats: Vec<Seat>) -> Self {
        let (functions, routes, moving) = Default::default();
        Self { apertures, seats, functions, routes, moving }
    }

    /// Its part of the guest's address space.
    pub fn apertures(&self) -> &Apertures {
        &self.apertures
    }

    /// The functions' seats.
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    /// Puts a function in a seat, before the guest runs.
    #[cold]
    pub fn install(&mut self, bdf: Bdf, function: Arc<Mutex<dyn Function>>) {
        let (known, warned) = Default::default();
        self.functions.insert(bdf.devfn(), Installed { function, known, warned });
        self.arrange(bdf.devfn());
    }

    /// What the guest reaches it by: a name, the addresses (GPA) and the device for the bus.
    #[cold]
    pub fn devices(self: &Arc<Self>) -> Vec<(&'static str, Range<u64>, Arc<dyn SharedDevice>)> {
        let forwarder = |space, first| -> Arc<dyn SharedDevice> {
            Arc::new(Forwarder::new(self.clone(), space, first))
        };
        let Apertures { ecam, memory32, memory64, io } = &self.apertures;
        let memory = |range: &Range<u64>| forwarder(Space::Memory, range.start);
        let mut devices: Vec<(_, _, Arc<dyn SharedDevice>)> = vec![
            ("PCI configuration", ecam.clone(), Arc::new(Ecam::new(self.clone()))),
            ("PCI memory", memory32.clone(), memory(memory32)),
            ("PCI I/O", io.clone(), forwarder(Space::Io, 0)),
        ];
        devices.extend(
            memory64.iter().map(|range| ("PCI 64-bit memory", range.clone(), memory(range))),
        );
        devices
    }

    /// The guest reads 1, 2 or 4 bytes of a function's configuration space, aligned; all ones where
    /// there is no function.
    pub(super) fn read_config(&self, devfn: u8, register: u16, data: &mut [u8]) {
        if devfn == OWN_DEVFN {
            super::register::read(&OWN_HEADER, register.into(), data);
            return;
        }
        let Some(installed) = self.functions.get(&devfn) else {
            data.fill(0xff);
            return;
        };
        installed.lock().read_config(register, data);
        // Which functions a device has here may be another matter than on the host.
        for (byte, at) in data.iter_mut().zip(register..) {
            if at == HEADER_TYPE {
                let several = if self.has_siblings(devfn) { MULTI_FUNCTION } else { 0 };
                *byte = *byte & !MULTI_FUNCTION | several;
            }
        }
    }

    /// The guest writes 1, 2 or 4 bytes of a function's configuration space, aligned.
    pub(super) fn write_config(&self, devfn: u8, register: u16, data: &[u8]) {
        let Some(installed) = self.functions.get(&devfn) else { return };
        let mut function = installed.lock();
        function.write_config(register, data);
        let moved = *lock(&installed.known) != function.windows();
        drop(function);
        if moved {
            self.arrange(devfn);
        }
    }

    /// Lets all of the guest's accesses to functions trap, until windows move: the host can't give it
    /// something that is mapped. Answers whether anything was mapped.
    #[cold]
    pub fn trap(&self) -> bool {
        self.functions.values().filter(|installed| installed.lock().trap()).count() != 0
    }

    /// The guest accesses `len` bytes at an address that the bridge forwards: does `access` with the
    /// function, its BAR and the offset in that; `false` where there is none.
    ///
    /// Where the address leads is decided under the function's lock: another vCPU may have closed or
    /// moved the window since it was looked up.
    pub(super) fn access(
        &self,
        space: Space,
        address: u64,
        len: usize,
        access: impl FnOnce(&mut dyn Function, u8, u64),
    ) -> bool {
        let Some((decoded, offset)) = self.find(space, address, len) else { return false };
        let Some(installed) = self.functions.get(&decoded.devfn) else { return false };
        let mut function = installed.lock();
        let decodes = function.decodes(&decoded.window);
        if decodes {
            access(&mut *function, decoded.window.bar, offset);
        }
        decodes
    }

    /// The function with the window in which an access lies wholly, and the offset in that.
    fn find(&self, space: Space, address: u64, len: usize) -> Option<(Decoded, u64)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let at = routes.partition_point(|Decoded { window, .. }| {
            (window.space, window.range.end) <= (space, address)
        });
        let decoded = routes.get(at)?;
        let window = &decoded.window;
        let offset = address.checked_sub(window.range.start)?;
        let end = address.checked_add(u64::try_from(len).ok()?)?;
        let within = window.space == space && end <= window.range.end;
        within.then(|| (decoded.clone(), offset))
    }

    /// Forwards what is to be forwarded now that this function decodes something else.
    #[cold]
    fn arrange(&self, devfn: u8) {
        let _moving = lock(&self.moving);
        if let Some(installed) = self.functions.get(&devfn) {
            // As of now: another vCPU may have moved windows since, and would then not come here.
            let function = installed.lock();
            *lock(&installed.known) = function.windows();
        }
        let known = |(devfn, installed): (&u8, &Installed)| {
            let windows = lock(&installed.known).clone();
            let devfn = *devfn;
            windows.into_iter().map(move |window| Decoded { devfn, window })
        };
        let wanted: Vec<Decoded> = self.functions.iter().flat_map(known).collect();
        let before = self.routes.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut after = arbitrate(&self.apertures, &wanted, &before);
        after.sort_by_key(|Decoded { window, .. }| (window.space, window.range.start));

        // What stays: who gives something up does so before another takes it.
        let between: Vec<Decoded> =
            after.iter().filter(|decoded| before.contains(decoded)).cloned().collect();
        self.forward(&before, &between);
        after.clone_into(&mut self.routes.write().unwrap_or_else(PoisonError::into_inner));
        self.forward(&between, &after);
        wanted
            .iter()
            .filter(|decoded| !after.contains(decoded))
            .for_each(|decoded| self.warn(decoded));
    }

    /// Tells those functions for which something changes what is forwarded.
    fn forward(&self, before: &[Decoded], after: &[Decoded]) {
        for (devfn, installed) in &self.functions {
            let (before, after) = (of(before, *devfn), of(after, *devfn));
            if before != after {
                installed.lock().forward(&after);
            }
        }
    }

    #[cold]
    fn warn(&self, Decoded { devfn, window: Window { bar, space, range } }: &Decoded) {
        let Some(installed) = self.functions.get(devfn) else { return };
        if !installed.warned.swap(true, Ordering::Relaxed) {
            let space = match space {
                Space::Memory => "memory",
                Space::Io => "ports",
            };
            log::warn!(
                "{}: BAR {bar} at {:#x}-{:#x} ({space}) does not answer: that is not the host \
                 bridge's to forward, or another BAR is there",
                installed.lock().name(),
                range.start,
                range.end.saturating_sub(1)
            );
        }
    }

    /// Whether the device has other functions.
    fn has_siblings(&self, devfn: u8) -> bool {
        let first = devfn & !7;
        self.functions.range(first..=first | 7).count() > 1
    }
}

impl Installed {
    fn lock(&self) -> MutexGuard<'_, dyn Function + 'static> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The windows of one function.
fn of(all: &[Decoded], devfn: u8) -> Vec<Window> {
    all.iter().filter(|one| one.devfn == devfn).map(|one| one.window.clone()).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
