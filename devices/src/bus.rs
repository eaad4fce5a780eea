//! The guest's physical address space: what traps goes to a device, memory slots don't trap.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use boot::help::Help;
use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::ratelimit::LogLimit;
use crate::sync::lock;

/// What a device's write handler asks of the VMM.
///
/// Devices never call the VMM: the dispatcher of the access carries out the action.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// The guest reported a crash.
    Crash,
    /// The guest writes output faster than it is read: the vCPU waits, with no lock held, until there
    /// is room for more.
    AwaitOutput,
}

/// A device with memory-mapped registers.
pub trait MmioDevice: Send {
    /// The guest reads `data.len()` (1, 2, 4 or 8) bytes at `offset` of the device.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data.len()` (1, 2, 4 or 8) bytes at `offset` of the device.
    fn write(&mut self, offset: u64, data: &[u8]) -> Action;

    /// The machine is reset, while no vCPU runs: registers are as after power-up.
    fn reset(&mut self) {}
}

/// A device that several vCPUs may access at a time. It does its own locking, so that a slow register
/// doesn't block the others.
pub trait SharedDevice: Send + Sync {
    /// As [`MmioDevice::read`].
    fn read(&self, offset: u64, data: &mut [u8]);

    /// As [`MmioDevice::write`].
    fn write(&self, offset: u64, data: &[u8]) -> Action;

    /// As [`MmioDevice::reset`].
    fn reset(&self) {}
}

impl<D: MmioDevice> SharedDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        lock(self).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        lock(self).write(offset, data)
    }

    fn reset(&self) {
        lock(self).reset();
    }
}

/// Signals eventfds when the guest writes to an address, without a trap. The guest changes them while
/// it runs, so vCPU threads call this.
pub trait IoEvents: Send + Sync {
    /// Makes each write of the guest to `gpa`, of 1, 2, 4 or 8 bytes, a signal of `event`.
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    fn add(&self, gpa: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`add`](Self::add).
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    fn remove(&self, gpa: u64, event: &EventFd) -> io::Result<()>;
}

/// The address range of a device overlaps that of another.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} at {range:#x?} would overlap {other} at {other_range:#x?}")]
pub struct Overlap {
    /// The device to be added.
    pub name: String,
    /// Its addresses (GPA).
    pub range: Range<u64>,
    /// The device that is there.
    pub other: String,
    /// Its addresses (GPA).
    pub other_range: Range<u64>,
}

impl Help for Overlap {}

/// The number of trapped accesses to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Accesses {
    /// The device.
    #[serde(skip)]
    pub name: String,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

struct MappedDevice {
    name: String,
    range: Range<u64>,
    device: Arc<dyn SharedDevice>,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// Maps guest physical addresses to devices.
///
/// Unassigned addresses read as zero and ignore writes. Such accesses are counted, and logged once
/// per 4 KiB page for the first pages; they never end the guest.
pub struct Bus {
    /// In order of address.
    devices: Vec<MappedDevice>,
    /// The index of the device that was accessed last: most accesses are to the same one again.
    recent: AtomicUsize,
    unassigned_reads: AtomicU64,
    unassigned_writes: AtomicU64,
    unassigned_pages: Mutex<HashSet<u64>>,
    log: LogLimit,
}

/// The number of unassigned pages that are remembered: a guest that walks its whole address space
/// must not make the VMM grow.
const MAX_UNASSIGNED_PAGES: usize = 64;

impl Default for Bus {
    fn default() -> Self {
        let (devices, recent, unassigned_pages) = Default::default();
        let (unassigned_reads, unassigned_writes) = Default::default();
        let log = LogLimit::new("bus");
        Self { devices, recent, unassigned_reads, unassigned_writes, unassigned_pages, log }
    }
}

impl Bus {
    /// Adds a device at `range` (GPA).
    ///
    /// # Errors
    ///
    /// Something is there already.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        range: Range<u64>,
        device: Arc<dyn SharedDevice>,
    ) -> Result<(), Overlap> {
        let name = name.into();
        let at = self.devices.partition_point(|device| device.range.end <= range.start);
        if let Some(there) = self.devices.get(at).filter(|device| device.range.start < range.end) {
            let (other, other_range) = (there.name.clone(), there.range.clone());
            return Err(Overlap { name, range, other, other_range });
        }
        let (reads, writes) = Default::default();
        self.devices.insert(at, MappedDevice { name, range, device, reads, writes });
        Ok(())
    }

    /// The guest reads at `gpa`.
    pub fn read(&self, gpa: u64, data: &mut [u8]) {
        let Some((mapped, offset)) = self.find(gpa, data.len()) else {
            data.fill(0);
            self.unassigned_reads.fetch_add(1, Ordering::Relaxed);
            self.log_unassigned("read from", gpa);
            return;
        };
        mapped.reads.fetch_add(1, Ordering::Relaxed);
        mapped.device.read(offset, data);
    }

    /// The guest writes at `gpa`.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Action {
        let Some((mapped, offset)) = self.find(gpa, data.len()) else {
            self.unassigned_writes.fetch_add(1, Ordering::Relaxed);
            self.log_unassigned("write to", gpa);
            return Action::None;
        };
        mapped.writes.fetch_add(1, Ordering::Relaxed);
        mapped.device.write(offset, data)
    }

    /// Resets the devices that are registers here and nothing else; the others are reset by who has them.
    #[cold]
    pub fn reset(&self) {
        self.devices.iter().for_each(|mapped| mapped.device.reset());
    }

    /// The access counts of each device, in order of address, and last those of unassigned addresses
    /// (`unassigned`).
    pub fn accesses(&self) -> Vec<Accesses> {
        let count = |name: &str, reads: &AtomicU64, writes: &AtomicU64| Accesses {
            name: name.to_owned(),
            reads: reads.load(Ordering::Relaxed),
            writes: writes.load(Ordering::Relaxed),
        };
        self.devices
            .iter()
            .map(|device| count(&device.name, &device.reads, &device.writes))
            .chain([count("unassigned", &self.unassigned_reads, &self.unassigned_writes)])
            .collect()
    }

    /// The device that covers all of `len` bytes at `gpa`, and the offset in it.
    fn find(&self, gpa: u64, len: usize) -> Option<(&MappedDevice, u64)> {
        let recent = self.devices.get(self.recent.load(Ordering::Relaxed));
        let mapped = match recent.filter(|device| device.range.contains(&gpa)) {
            Some(mapped) => mapped,
            None => {
                let at = self.devices.partition_point(|device| device.range.end <= gpa);
                let mapped = self.devices.get(at).filter(|device| device.range.start <= gpa)?;
                self.recent.store(at, Ordering::Relaxed);
                mapped
            }
        };
        let end = gpa.checked_add(u64::try_from(len).ok()?)?;
        (end <= mapped.range.end).then(|| (mapped, gpa - mapped.range.start))
    }

    #[cold]
    fn log_unassigned(&self, what: &str, gpa: u64) {
        let mut pages = lock(&self.unassigned_pages);
        if pages.len() < MAX_UNASSIGNED_PAGES && pages.insert(gpa >> 12) {
            self.log.warn(format_args!("guest {what} {gpa:#x}, where there is nothing"));
        }
    }
}

/// Memory slots of the guest: host memory that it accesses without exits.
pub trait MemorySlots: Send + Sync {
    /// Maps `size` bytes at the host address `host` to guest physical address `gpa`.
    ///
    /// # Safety
    ///
    /// The memory must stay mapped in this process for as long as the guest can run, or until it is
    /// [unmapped](Self::unmap).
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    unsafe fn map(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()>;

    /// As [`map`](Self::map), for reading and executing alone: the guest's writes trap.
    ///
    /// # Safety
    ///
    /// As for [`map`](Self::map).
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    unsafe fn map_read_only(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()>;

    /// Undoes a [`map`](Self::map) of exactly this range: accesses trap from here on.
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal; `NotFound` if nothing was mapped there.
    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as the offset's low byte; crashes when written.
    #[derive(Default)]
    struct Probe {
        written: Vec<(u64, Vec<u8>)>,
    }

    impl MmioDevice for Probe {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset.to_le_bytes()[0]);
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> Action {
            self.written.push((offset, data.to_vec()));
            Action::Crash
        }
    }

    fn bus() -> (Bus, Arc<Mutex<Probe>>) {
        let probe = Arc::new(Mutex::new(Probe::default()));
        let mut bus = Bus::default();
        bus.add("high", 0x3000..0x4000, probe.clone()).unwrap();
        bus.add("low", 0x1000..0x2000, probe.clone()).unwrap();
        (bus, probe)
    }

    #[test]
    fn an_access_reaches_the_device_at_its_offset() {
        let (bus, probe) = bus();
        let mut data = [0xff; 4];
        bus.read(0x3010, &mut data);
        assert_eq!(data, [0x10; 4]);
        assert_eq!(bus.write(0x1008, &[1, 2]), Action::Crash);
        assert_eq!(probe.lock().unwrap().written, [(8, vec![1, 2])]);
    }

    #[test]
    fn an_unassigned_address_reads_zero_and_is_counted() {
        let (bus, probe) = bus();
        for gpa in [0, 0xfff, 0x2000, 0x2fff, 0x4000, u64::MAX] {
            let mut data = [0xff; 4];
            bus.read(gpa, &mut data);
            assert_eq!(data, [0; 4], "{gpa:#x}");
            assert_eq!(bus.write(gpa, &[1]), Action::None);
        }
        assert!(probe.lock().unwrap().written.is_empty());
        let unassigned = bus.accesses().pop().unwrap();
        assert_eq!(unassigned, Accesses { name: "unassigned".into(), reads: 6, writes: 6 });
    }

    #[test]
    fn an_access_across_the_end_reaches_no_device() {
        let (bus, _) = bus();
        let mut data = [0xff; 8];
        bus.read(0x1ffc, &mut data);
        assert_eq!(data, [0; 8]);
    }

    #[test]
    fn accesses_are_counted_by_device_in_order_of_address() {
        let (bus, _) = bus();
        bus.read(0x3000, &mut [0]);
        bus.read(0x3001, &mut [0]);
        let _ = bus.write(0x1000, &[0]);
        let counts: Vec<_> =
            bus.accesses().into_iter().map(|a| (a.name, a.reads, a.writes)).collect();
        let expected = [("low", 0, 1), ("high", 2, 0), ("unassigned", 0, 0)];
        assert_eq!(counts, expected.map(|(name, r, w)| (name.to_owned(), r, w)));
    }

    #[test]
    fn overlapping_devices_are_refused_by_name() {
        let (mut bus, probe) = bus();
        for range in [0x1fff..0x2001, 0x0..0x1001, 0x1800..0x1900, 0x0..0x8000] {
            let error = bus.add("new", range.clone(), probe.clone()).unwrap_err();
            assert_eq!((error.name.as_str(), error.other.as_str()), ("new", "low"), "{range:x?}");
        }
        bus.add("between", 0x2000..0x3000, probe.clone()).unwrap();
    }
}
