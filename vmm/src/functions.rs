//! The PCI functions a guest is given, whatever is behind them: opened while planning, attached
//! while building, taken back at the end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use arch::gic::Gic;
use devices::irq::MsiRouter;
use devices::pci::{Bdf, Function, Newcomer, Seat};
use devices::stop;
use devices::vfio::host::{Host, InterruptEntry, InterruptTable};
use devices::vfio::pci::{Attachment, InUse, PciFunction};
use devices::vfio::quiesce::Quiesced;
use serde::Serialize;

use crate::error::Error;
use crate::irqfds::Irqfds;

/// How many times, a millisecond apart, statistics look whether a vCPU has done with a function.
const LOOKS: u32 = 100;

/// The functions, in the order given.
#[derive(Default)]
pub struct Functions(Vec<Given>);

/// A function, and where it is wanted on the guest's bus.
struct Given {
    name: String,
    function: Arc<Mutex<PciFunction>>,
    address: Option<Bdf>,
}

impl Functions {
    /// Adds a function, wanted at this address if at any.
    pub fn add(&mut self, name: &str, function: PciFunction, address: Option<Bdf>) {
        let function = Arc::new(Mutex::new(function));
        self.0.push(Given { name: name.to_owned(), function, address });
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many descriptors they can take while the guest runs: one for each vector.
    pub fn most_descriptors(&self) -> u64 {
        self.iter().map(|function| u64::from(function.interrupts().most_eventfds())).sum()
    }

    /// What they need of the guest's PCI host.
    pub fn newcomers(&self) -> Vec<Newcomer> {
        let newcomer = |given: &Given| Newcomer {
            name: given.name.clone(),
            address: given.address,
            pin: given.lock().pin(),
        };
        self.0.iter().map(newcomer).collect()
    }

    /// Each of them, to be looked at.
    pub fn iter(&self) -> impl Iterator<Item = MutexGuard<'_, PciFunction>> {
        self.0.iter().map(Given::lock)
    }

    /// As the PCI host has them, in order.
    pub fn shared(&self) -> Vec<Arc<Mutex<dyn Function>>> {
        self.0.iter().map(|given| given.function.clone() as Arc<Mutex<dyn Function>>).collect()
    }

    /// Stops what they were doing. Before guest RAM is mapped for DMA.
    ///
    /// # Errors
    ///
    /// One does not stop.
    pub fn quiesce(&self) -> Result<(), Error> {
        self.0.iter().try_for_each(|given| {
            stop::check()?;
            let quiesced = given.lock().quiesce()?;
            given.tell(quiesced);
            Ok(())
        })
    }

    /// Attaches them in these seats, which are in the same order. The GIC must be complete.
    ///
    /// # Errors
    ///
    /// An interrupt of one can't reach the guest.
    ///
    /// # Safety
    ///
    /// No vCPU runs after `self` is dropped.
    pub unsafe fn attach(
        &self,
        seats: impl IntoIterator<Item = Seat>,
        gic: &Gic,
        irqfds: &Arc<Irqfds>,
    ) -> Result<(), Error> {
        for (given, seat) in self.0.iter().zip(seats) {
            let router = gic.has_its().then(|| irqfds.clone() as Arc<dyn MsiRouter>);
            let attachment = Attachment { seat, slots: irqfds.clone(), router };
            // SAFETY: the caller lets no vCPU outlive the function.
            unsafe { given.lock().attach(attachment, &**irqfds)? };
        }
        Ok(())
    }

    /// Lets their lines through: the last step before the guest runs.
    pub fn arm(&self) {
        self.0.iter().for_each(|given| given.lock().arm());
    }

    /// Takes them back; no vCPU runs any more.
    pub fn release(&self) {
        for given in &self.0 {
            let released = given.lock().release();
            match released {
                Ok(quiesced) => given.tell(quiesced),
                // The IOMMU keeps it from all memory from here on, so the run's result stands.
                Err(error) => log::error!("{}", Error::from(error).told()),
            }
        }
    }

    /// What a guest's driver knows each by, with its name.
    pub fn idents(&self) -> Vec<(String, String)> {
        let ident = |given: &Given| {
            let function = given.lock();
            let image = function.image();
            let (vendor, device, class) = (image.u16(0), image.u16(2), image.u32(8) >> 8);
            (given.name.clone(), format!("{vendor:04x}:{device:04x}, class {class:06x}"))
        };
        self.0.iter().map(ident).collect()
    }

    /// Watches their interrupts.
    pub fn watch(&self) -> Watch {
        let watched = self.0.iter().map(|given| (given.name.clone(), given.function.clone()));
        Watch(watched.collect())
    }
}

impl Given {
    fn lock(&self) -> MutexGuard<'_, PciFunction> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, quiesced: Quiesced) {
        log::info!("{}: {quiesced}", self.name);
    }
}

/// The functions' interrupts as statistics tell of them.
#[derive(Default)]
pub struct Watch(Vec<(String, Arc<Mutex<PciFunction>>)>);

/// What is told of a function.
#[derive(Debug, Serialize)]
pub struct Report {
    function: String,
    /// What interrupts the guest: `none`, `intx`, `msi` or `msix`; `busy` if a vCPU has been at the
    /// function for long, as it is while a server doesn't answer.
    interrupts: &'static str,
    /// How many vectors of it.
    vectors: usize,
    /// How often the host has handled each since the guest turned it on, by vector.
    fired: Vec<u64>,
}

impl Watch {
    /// Whether the guest has ever turned this function on.
    pub fn has_been_enabled(&self, name: &str) -> bool {
        let mut all = self.0.iter().filter(|(watched, _)| watched == name);
        all.any(|(_, function)| {
            function.lock().unwrap_or_else(PoisonError::into_inner).has_been_enabled()
        })
    }

    /// Looks at all of them.
    #[cold]
    pub fn report(&self) -> Vec<Report> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let table = Host::default().interrupts();
        let reports = self.0.iter().map(|(name, function)| {
            let (interrupts, vectors) = match look(function) {
                None => ("busy", 0),
                Some(InUse::None) => ("none", 0),
                Some(InUse::Intx) => ("intx", 1),
                Some(InUse::Msi(vectors)) => ("msi", vectors),
                Some(InUse::Msix(vectors)) => ("msix", vectors),
            };
            Report { function: name.clone(), interrupts, vectors, fired: fired(&table, name) }
        });
        reports.collect()
    }
}

/// What interrupts the guest, unless a vCPU keeps the function: the event loop, which looks here,
/// waits for no server.
fn look(function: &Mutex<PciFunction>) -> Option<InUse> {
    for _ in 0..LOOKS {
        match function.try_lock() {
            Ok(function) => return Some(function.in_use()),
            Err(TryLockError::Poisoned(function)) => return Some(function.into_inner().in_use()),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
        }
    }
    None
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
    counts.sort_unstable();
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
