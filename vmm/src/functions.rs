//! The PCI functions a guest is given: opened while planning, attached while building, taken back at
//! the end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread;
use std::time::Duration;

use boot::order;
use devices::bus::MemorySlots;
use devices::irq::{InterruptController, MsiRouter};
use devices::pci::{Bdf, Function, Slot, SlotAllocator};
use devices::stop;
use devices::sync;
use devices::vfio::host::{InterruptEntry, InterruptTable};
use devices::vfio::pci::{Attachment, InUse, Loss, PciFunction, RemovableFunction};
use devices::vfio::quiesce::Quiesced;
use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::allocator::Allocator;
use crate::error::Error;
use crate::interrupts::interrupt_table;
use crate::pci_slots::{PlacedPort, allocate, place_behind_port, reserve};

/// How many times, a millisecond apart, statistics try to lock a function that a vCPU holds.
const LOCK_ATTEMPTS: u32 = 100;

/// How many descriptors tell of the loss of a function: one for each kind.
const LOSS_EVENTS: u64 = 2;

/// How many descriptors tell that a guest has ejected a function: the port's, and the event loop's.
const EJECTION_EVENTS: u64 = 2;

/// A function that is open, before it has its slot.
pub struct OpenFunction {
    /// Its name.
    pub name: String,
    /// The function.
    pub function: PciFunction,
    /// The address that is asked for, if any.
    pub address: Option<Bdf>,
    /// It is the host's, and no server's.
    pub is_of_host: bool,
    /// It goes into a hot-plug slot.
    pub hotplug: bool,
}

/// A function in its slot of the guest's bus.
pub struct AssignedFunction {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: Slot,
    /// The root port whose hot-plug slot it is in, if it is in one.
    pub port: Option<PlacedPort>,
    function: Arc<Mutex<RemovableFunction>>,
    leaving: Arc<AtomicBool>,
    is_of_host: bool,
}

/// The functions, in the order given; a clone refers to the same functions.
#[derive(Clone, Default)]
pub struct Functions(Arc<[AssignedFunction]>);

impl Functions {
    /// Allocates slots, and an interrupt of its own to each function that has a pin.
    ///
    /// # Errors
    ///
    /// A function can't have the address that is asked for, or there are no more addresses or
    /// interrupts.
    pub fn place(
        open: Vec<OpenFunction>,
        slots: &mut SlotAllocator,
        allocator: &mut Allocator,
    ) -> Result<Self, Error> {
        for OpenFunction { name, address, .. } in &open {
            reserve(name, *address, slots)?;
        }
        let place = |OpenFunction { name, function, address, is_of_host, hotplug }| {
            let pin = function.pin();
            let (slot, port) = if hotplug {
                let (slot, port) = place_behind_port(&name, address, pin, slots, allocator)?;
                (slot, Some(port))
            } else {
                (allocate(&name, address, pin, slots, allocator)?, None)
            };
            let function = RemovableFunction::from(function);
            let leaving = function.leaving().clone();
            let function = Arc::new(Mutex::new(function));
            Ok(AssignedFunction { name, slot, port, function, leaving, is_of_host })
        };
        open.into_iter().map(place).collect::<Result<_, Error>>().map(Self)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of descriptors that they can take while the guest runs: one for each vector, and those that
    /// tell of the loss of a function of the host.
    pub fn max_descriptors(&self) -> u64 {
        let vectors = |function: &PciFunction| u64::from(function.interrupts().max_eventfds());
        let descriptors = |function: &AssignedFunction| {
            let losses = if function.is_of_host { LOSS_EVENTS } else { 0 };
            let ejections = if function.port.is_some() { EJECTION_EVENTS } else { 0 };
            let vectors = function.lock().get().map_or(0, vectors);
            vectors.saturating_add(losses).saturating_add(ejections)
        };
        self.iter().map(descriptors).sum()
    }

    /// How many root ports there are.
    pub fn ports(&self) -> u8 {
        let ports = self.iter().filter(|function| function.port.is_some());
        u8::try_from(ports.count()).unwrap_or(u8::MAX)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &AssignedFunction> {
        self.0.iter()
    }

    /// Stops what they were doing. Before guest RAM is mapped for DMA.
    ///
    /// # Errors
    ///
    /// One does not stop.
    pub fn quiesce(&self) -> Result<(), Error> {
        self.iter().try_for_each(|function| {
            stop::check()?;
            let quiesced = function.lock().get_mut().map(PciFunction::quiesce).transpose()?;
            quiesced.into_iter().for_each(|quiesced| function.log(quiesced));
            Ok(())
        })
    }

    /// Attaches them to the guest, whose interrupt controller takes messages or doesn't, and is
    /// complete.
    ///
    /// # Errors
    ///
    /// An interrupt of one can't reach the guest.
    ///
    /// # Safety
    ///
    /// No vCPU runs after `self` is dropped.
    pub unsafe fn attach<K>(&self, takes_messages: bool, irqfds: &Arc<K>) -> Result<(), Error>
    where
        K: InterruptController + MsiRouter + MemorySlots + 'static,
    {
        for function in self.iter() {
            let router = takes_messages.then(|| irqfds.clone() as Arc<dyn MsiRouter>);
            let attachment = Attachment { slot: function.slot, slots: irqfds.clone(), router };
            let mut function = function.lock();
            let Some(function) = function.get_mut() else { continue };
            // SAFETY: the caller lets no vCPU outlive the function, or it is taken back.
            unsafe { function.attach(attachment, &**irqfds)? };
        }
        Ok(())
    }

    /// Arms their interrupt lines: the last step before the guest runs.
    pub fn arm(&self) {
        self.iter().for_each(|function| {
            function.lock().get_mut().into_iter().for_each(PciFunction::arm);
        });
    }

    /// Makes them as they were when the guest got them; they are to be [armed](Self::arm) again.
    ///
    /// # Errors
    ///
    /// One does not stop.
    #[cold]
    pub fn restart(&self, gic: &dyn InterruptController) -> Result<(), Error> {
        self.iter().try_for_each(|function| match function.lock().get_mut() {
            Some(opened) => Ok(opened.restart(gic, function.slot.intx)?),
            None => Ok(()),
        })
    }

    /// Takes them back; no vCPU runs any more.
    pub fn release(&self) {
        for function in self.iter() {
            let released = function.lock().get_mut().map(PciFunction::release);
            match released.transpose() {
                Ok(None) => {}
                Ok(Some(quiesced)) => function.log(quiesced),
                // The IOMMU keeps it from all memory from here on, so the run's result stands.
                Err(error) => log::error!("{}", Error::from(error).log_text()),
            }
        }
    }

    /// The name of each, and the ids by which a guest's driver finds it.
    pub fn ids(&self) -> Vec<(String, String)> {
        let ids = |function: &AssignedFunction| {
            let opened = function.lock();
            let config = opened.get()?.snapshot();
            let (vendor, device, class) = (config.u16(0), config.u16(2), config.u32(8) >> 8);
            Some((function.name.clone(), format!("{vendor:04x}:{device:04x}, class {class:06x}")))
        };
        self.iter().filter_map(ids).collect()
    }

    /// Whether the guest has ever enabled the function of this name.
    pub fn has_been_enabled(&self, name: &str) -> bool {
        let enabled =
            |function: &RemovableFunction| function.get().is_none_or(PciFunction::has_been_enabled);
        self.iter().any(|function| function.name == name && enabled(&function.lock()))
    }

    /// Their interrupts, for statistics.
    #[cold]
    pub fn interrupts(&self) -> Vec<FunctionInterrupts> {
        if self.is_empty() {
            return Vec::new();
        }
        let table = interrupt_table();
        let interrupts = self.iter().map(|function| {
            let (interrupts, vectors) = match function.try_in_use() {
                None => ("busy", 0),
                Some(InUse::None) => ("none", 0),
                Some(InUse::Intx) => ("intx", 1),
                Some(InUse::Msi(vectors)) => ("msi", vectors),
                Some(InUse::Msix(vectors)) => ("msix", vectors),
            };
            let (function, fired) = (function.name.clone(), fired(&table, &function.name));
            FunctionInterrupts { function, interrupts, vectors, fired }
        });
        interrupts.collect()
    }
}

/// The interrupts of a function, as statistics have them.
#[derive(Debug, Serialize)]
pub struct FunctionInterrupts {
    function: String,
    /// The kind that the guest uses: `none`, `intx`, `msi` or `msix`; `busy` if a vCPU has held the
    /// function for long, as it does while a server doesn't answer.
    interrupts: &'static str,
    /// The number of unmasked vectors.
    vectors: usize,
    /// How often the host has handled each since the guest enabled it, by vector.
    fired: Vec<u64>,
}

impl AssignedFunction {
    /// The function itself.
    pub fn lock(&self) -> MutexGuard<'_, RemovableFunction> {
        sync::lock(&self.function)
    }

    /// The function as the PCI host has it.
    pub fn shared(&self) -> Arc<Mutex<dyn Function>> {
        self.function.clone()
    }

    /// It is about to be taken back: the guest changes nothing of it any more, and finds its slot empty if it is
    /// in one.
    #[cold]
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
        self.port.iter().for_each(|port| port.port.vacate());
    }

    /// What tells that the host takes it back; nothing for one of a server.
    pub fn watch_loss(&self) -> Vec<(Loss, EventFd)> {
        if !self.is_of_host {
            return Vec::new();
        }
        self.lock().get().map(PciFunction::watch_loss).unwrap_or_default()
    }

    /// The kind of interrupt that the guest uses; `None` if a vCPU holds the function: the event loop,
    /// which calls this, waits for no server.
    fn try_in_use(&self) -> Option<InUse> {
        let in_use =
            |function: &RemovableFunction| function.get().map_or(InUse::None, PciFunction::in_use);
        for _ in 0..LOCK_ATTEMPTS {
            match self.function.try_lock() {
                Ok(function) => return Some(in_use(&function)),
                Err(TryLockError::Poisoned(function)) => {
                    return Some(in_use(&function.into_inner()));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    fn log(&self, quiesced: Quiesced) {
        log::info!("{}: {quiesced}", self.name);
    }
}

/// The counts of a function's interrupts in `/proc/interrupts`, on all CPUs, in order of vector:
/// VFIO calls them `vfio-msix[3](0000:05:00.0)`, and a line `vfio-intx(0000:05:00.0)`.
fn fired(table: &InterruptTable, name: &str) -> Vec<u64> {
    let of_function = format!("({name})");
    let count = |entry: InterruptEntry<'_>| {
        let called = entry.handlers().find_map(|handler| handler.strip_suffix(&of_function))?;
        let vector = called.strip_prefix("vfio-")?.split_once('[');
        let vector = vector.and_then(|(_, number)| number.strip_suffix(']')?.parse().ok());
        Some((vector.unwrap_or(0_u32), entry.count))
    };
    let mut counts: Vec<_> = table.entries().filter_map(count).collect();
    order::sort(&mut counts);
    counts.into_iter().map(|(_, count)| count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_s_counts_are_found_by_vector() {
        let table = "\
           CPU0       CPU1
 44:         10          3     GICv3 208 Level     vfio-irq[44](2c0a0000.dma)
 51:          2          1  ITS-MSI 81921 Edge      vfio-msix[10](0000:00:05.0)
 50:          7          0  ITS-MSI 81920 Edge      vfio-msix[2](0000:00:05.0)
 52:          9          0  ITS-MSI 98304 Edge      vfio-msix[0](0000:00:06.0)
 53:          1          1     GICv3  36 Level     vfio-intx(0000:00:07.0)
Err:          0
";
        let table = InterruptTable::from(table.to_owned());
        assert_eq!(fired(&table, "0000:00:05.0"), [7, 3]);
        assert_eq!(fired(&table, "0000:00:07.0"), [2]);
        assert_eq!(fired(&table, "0000:00:08.0"), [0; 0]);
    }
}
