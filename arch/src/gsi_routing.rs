//! GSI routing: which interrupt of the guest the GSI of an irqfd is.
//!
//! KVM's own table takes GSI n to SPI n. Messages to an ITS need entries of their own, and setting a
//! table replaces the whole of it, so the SPIs are put in again
//! (Documentation/virt/kvm/api.rst, 4.52 KVM_SET_GSI_ROUTING).
//!
//! Messages to a GICv2m frame are SPIs: their routes are in KVM's own table. Only where one is changed,
//! or two triggers signal the same SPI, a table is set.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_irq_routing_msi__bindgen_ty_1,
};
use vmm_sys_util::eventfd::EventFd;

use crate::Vm;

/// A message-signalled interrupt to the guest's ITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// The doorbell, GITS_TRANSLATER (GPA).
    pub address: u64,
    /// The EventID.
    pub data: u32,
    /// The DeviceID.
    pub device_id: u32,
}

/// What the signals of a route are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A message to the guest's ITS.
    Its(Msi),
    /// An edge on an SPI, of those that are there for messages.
    Spi(u32),
}

/// The routes of a VM's message-signalled interrupts.
///
/// KVM copies its table and waits for its users (SRCU) each time an entry changes, so as few do as
/// can: a route that was given back keeps its entry, and who comes with the same message (a vector
/// that was masked and is unmasked) gets it without the table being set.
#[derive(Debug)]
pub struct GsiRoutes {
    vm: Arc<Vm>,
    table: Mutex<Table>,
}

impl GsiRoutes {
    /// No routes yet, in a VM whose GIC has `spis` SPIs, the last of which are there for messages, and
    /// for nothing else: `messages`, which may be empty.
    pub fn new(vm: Arc<Vm>, spis: u32, messages: Range<u32>) -> Self {
        Self { vm, table: Mutex::new(Table::new(spis, messages)) }
    }

    /// Makes every signal of `trigger` one to `target`, and those that came before one (KVM polls the
    /// eventfd when it is registered); answers the GSI.
    ///
    /// # Errors
    ///
    /// `StorageFull` when KVM takes no more routes, which says how many there are, or what KVM
    /// refused.
    pub fn connect(&self, trigger: &EventFd, target: Target) -> io::Result<u32> {
        let mut table = self.lock();
        if table.limit == 0 {
            table.limit = self.vm.max_gsi_routes();
        }
        let Allocated { gsi, replaced } = table.allocate(target)?;
        if let Some(before) = replaced {
            self.set(&table).inspect_err(|_| table.restore(gsi, before))?;
        }
        // The entry can't change before the irqfd looks it up: the GSI is this caller's.
        self.vm.register_irqfd(gsi, trigger).inspect_err(|_| table.release(gsi))?;
        Ok(gsi)
    }

    /// Changes what the signals of a connected trigger are.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such route, or what KVM refused: it is as it was.
    pub fn redirect(&self, gsi: u32, target: Target) -> io::Result<()> {
        let mut table = self.lock();
        let before = table.replace(gsi, target).ok_or(io::ErrorKind::NotFound)?;
        if before == target {
            return Ok(());
        }
        self.set(&table).inspect_err(|_| {
            table.replace(gsi, before);
        })
    }

    /// Undoes [`connect`](Self::connect): signals are counted from here on, each that isn't a message
    /// yet.
    ///
    /// # Errors
    ///
    /// What KVM refused.
    pub fn disconnect(&self, gsi: u32, trigger: &EventFd) -> io::Result<()> {
        self.vm.unregister_irqfd(gsi, trigger)?;
        self.lock().release(gsi);
        Ok(())
    }

    fn set(&self, table: &Table) -> io::Result<()> {
        self.vm.set_gsi_routing(&table.entries())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The table as it was set last, or KVM's own.
#[derive(Debug, Default)]
struct Table {
    /// GSIs below this are SPIs for good; routes follow.
    fixed: u32,
    /// [`Vm::max_gsi_routes`], once it was asked for.
    limit: u32,
    /// In order of GSI from `fixed` on.
    routes: Vec<Target>,
    /// GSIs of routes that nobody has.
    free: BTreeSet<u32>,
}

/// A GSI that was allocated.
#[derive(Debug, PartialEq, Eq)]
struct Allocated {
    gsi: u32,
    /// The table has changed: what the entry was, if there was one.
    replaced: Option<Option<Target>>,
}

impl Table {
    /// KVM's own, of so many SPIs, in which `messages` and what is behind them can be routed.
    fn new(spis: u32, messages: Range<u32>) -> Self {
        let fixed = if messages.is_empty() { spis } else { messages.start.min(spis) };
        let free = fixed..spis;
        Self {
            fixed,
            routes: free.clone().map(Target::Spi).collect(),
            free: free.collect(),
            limit: 0,
        }
    }

    /// Allocates a GSI for `target`: a free one that is routed to it already, if there is.
    fn allocate(&mut self, target: Target) -> io::Result<Allocated> {
        let same = self.free.iter().find(|gsi| self.get(**gsi) == Some(target)).copied();
        if let Some(gsi) = same {
            self.free.remove(&gsi);
            return Ok(Allocated { gsi, replaced: None });
        }
        let next = u32::try_from(self.routes.len()).ok().and_then(|n| self.fixed.checked_add(n));
        if let Some(gsi) = next.filter(|gsi| *gsi < self.limit) {
            // Rather a new one than one whose target may come again.
            self.routes.push(target);
            return Ok(Allocated { gsi, replaced: Some(None) });
        }
        let Some(gsi) = self.free.pop_first() else {
            let most = self.limit.saturating_sub(self.fixed);
            let full =
                format!("KVM has {most} routes for message-signalled interrupts, all in use");
            return Err(io::Error::new(io::ErrorKind::StorageFull, full));
        };
        Ok(Allocated { gsi, replaced: Some(self.replace(gsi, target)) })
    }

    /// Undoes an allocation whose table KVM didn't take: the entry is what it was.
    fn restore(&mut self, gsi: u32, before: Option<Target>) {
        match before {
            Some(before) => {
                self.replace(gsi, before);
                self.release(gsi);
            }
            None => {
                // New ones are the last.
                self.routes.pop();
            }
        }
    }

    fn release(&mut self, gsi: u32) {
        if self.get(gsi).is_some() {
            self.free.insert(gsi);
        }
    }

    fn get(&self, gsi: u32) -> Option<Target> {
        self.routes.get(self.index(gsi)?).copied()
    }

    /// Changes a route, and answers what it was.
    fn replace(&mut self, gsi: u32, target: Target) -> Option<Target> {
        let index = self.index(gsi)?;
        self.routes.get_mut(index).map(|route| std::mem::replace(route, target))
    }

    fn index(&self, gsi: u32) -> Option<usize> {
        usize::try_from(gsi.checked_sub(self.fixed)?).ok()
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let fixed = (0..self.fixed).map(|spi| spi_entry(spi, spi));
        let routes = (self.fixed..).zip(&self.routes).map(|(gsi, target)| match target {
            Target::Its(msi) => message_entry(gsi, *msi),
            Target::Spi(spi) => spi_entry(gsi, *spi),
        });
        fixed.chain(routes).collect()
    }
}

fn spi_entry(gsi: u32, spi: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip: 0, pin: spi };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 { irqchip },
        ..Default::default()
    }
}

fn message_entry(gsi: u32, Msi { address, data, device_id }: Msi) -> kvm_irq_routing_entry {
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is wanted")]
    let msi = kvm_irq_routing_msi {
        address_lo: address as u32,
        address_hi: (address >> 32) as u32,
        data,
        __bindgen_anon_1: kvm_irq_routing_msi__bindgen_ty_1 { devid: device_id },
    };
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        flags: KVM_MSI_VALID_DEVID,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn msi(data: u32) -> Target {
        Target::Its(Msi { address: 0x1_0808_0040, data, device_id: 0x10 })
    }

    /// With an ITS.
    fn table() -> Table {
        Table { limit: 100, ..Table::new(96, 0..0) }
    }

    /// With a GICv2m frame of SPIs 64 to 95.
    fn table_of_frame() -> Table {
        Table { limit: 98, ..Table::new(96, 64..96) }
    }

    #[test]
    fn messages_have_the_gsis_behind_the_spis() {
        let mut table = table();
        for n in 0..4 {
            assert_eq!(
                table.allocate(msi(n)).unwrap(),
                Allocated { gsi: 96 + n, replaced: Some(None) }
            );
        }
        let error = table.allocate(msi(4)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("4 routes"), "{error}");
    }

    #[test]
    fn a_message_that_comes_again_leaves_the_table_as_it_is() {
        let mut table = table();
        let first = table.allocate(msi(0)).unwrap().gsi;
        let second = table.allocate(msi(1)).unwrap().gsi;
        table.release(first);
        table.release(second);
        assert_eq!(table.allocate(msi(1)).unwrap(), Allocated { gsi: second, replaced: None });
        // Another has a new one while there are.
        assert_eq!(table.allocate(msi(2)).unwrap().gsi, 98);
        assert_eq!(table.allocate(msi(3)).unwrap().gsi, 99);
        let taken = table.allocate(msi(4)).unwrap();
        assert_eq!(taken, Allocated { gsi: first, replaced: Some(Some(msi(0))) });
        assert!(table.allocate(msi(5)).is_err());
        // The same message twice is two routes.
        table.release(98);
        assert_eq!(table.allocate(msi(4)).unwrap().gsi, 98);
    }

    #[test]
    fn a_table_that_was_not_set_is_as_it_was() {
        let mut table = table();
        let Allocated { gsi, replaced } = table.allocate(msi(0)).unwrap();
        table.restore(gsi, replaced.unwrap());
        assert!(table.routes.is_empty() && table.free.is_empty());
        (0..4).for_each(|n| assert!(table.allocate(msi(n)).is_ok()));
        table.release(97);
        let Allocated { gsi, replaced } = table.allocate(msi(9)).unwrap();
        assert_eq!(gsi, 97);
        table.restore(gsi, replaced.unwrap());
        assert_eq!(table.allocate(msi(1)).unwrap(), Allocated { gsi: 97, replaced: None });
    }

    #[test]
    fn only_messages_can_be_freed_and_replaced() {
        let mut table = table();
        table.release(3);
        table.release(200);
        assert!(table.free.is_empty());
        assert_eq!((table.replace(3, msi(0)), table.replace(96, msi(0))), (None, None));
        table.allocate(msi(0)).unwrap();
        assert_eq!(table.replace(96, msi(1)), Some(msi(0)));
        assert_eq!(table.get(96), Some(msi(1)));
    }

    #[test]
    fn the_table_has_the_spis_and_the_messages() {
        let mut table = table();
        table.allocate(msi(7)).unwrap();
        let entries = table.entries();
        assert_eq!(entries.len(), 97);
        for (spi, entry) in (0..96).zip(&entries) {
            assert_eq!((entry.gsi, entry.type_, entry.flags), (spi, KVM_IRQ_ROUTING_IRQCHIP, 0));
            // SAFETY: an entry of this type has this part.
            assert_eq!(unsafe { entry.u.irqchip.pin }, spi);
        }
        let entry = entries.last().unwrap();
        assert_eq!(
            (entry.gsi, entry.type_, entry.flags),
            (96, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID)
        );
        // SAFETY: an entry of this type has this part.
        let parts = unsafe { (entry.u.msi.address_hi, entry.u.msi.address_lo, entry.u.msi.data) };
        assert_eq!(parts, (1, 0x0808_0040, 7));
        // SAFETY: with this flag this is the DeviceID.
        assert_eq!(unsafe { entry.u.msi.__bindgen_anon_1.devid }, 0x10);
    }

    #[test]
    fn messages_of_a_frame_are_in_kvm_s_own_table() {
        let mut table = table_of_frame();
        for spi in (64..96).rev() {
            let allocated = table.allocate(Target::Spi(spi)).unwrap();
            assert_eq!(allocated, Allocated { gsi: spi, replaced: None });
        }
        table.release(70);
        let again = table.allocate(Target::Spi(70)).unwrap();
        assert_eq!(again, Allocated { gsi: 70, replaced: None });
    }

    #[test]
    fn two_triggers_of_one_spi_have_a_route_each() {
        let mut table = table_of_frame();
        let spi = Target::Spi(64);
        for (gsi, replaced) in [(64, None), (96, Some(None)), (97, Some(None))] {
            assert_eq!(table.allocate(spi).unwrap(), Allocated { gsi, replaced });
        }
        // Then one that nobody has is taken for it.
        let taken = table.allocate(spi).unwrap();
        assert_eq!(taken, Allocated { gsi: 65, replaced: Some(Some(Target::Spi(65))) });
        // The others stay.
        table.release(64);
        assert_eq!(table.get(96), Some(spi));
        let pins: Vec<_> = table.entries().iter().map(pin).collect();
        let expected = (0..64).map(|spi| (spi, spi)).chain([(64, 64), (65, 64)]);
        let expected = expected.chain((66..96).map(|spi| (spi, spi))).chain([(96, 64), (97, 64)]);
        assert_eq!(pins, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_route_that_was_redirected_leaves_its_spi_to_others() {
        let mut table = table_of_frame();
        let gsi = table.allocate(Target::Spi(64)).unwrap().gsi;
        assert_eq!(table.replace(gsi, Target::Spi(80)), Some(Target::Spi(64)));
        let other = table.allocate(Target::Spi(64)).unwrap();
        assert_eq!(other, Allocated { gsi: 96, replaced: Some(None) });
        table.release(gsi);
        let again = table.allocate(Target::Spi(80)).unwrap();
        assert_eq!(again.replaced, None);
        // Devices' own interrupts are no routes.
        assert_eq!(table.replace(63, Target::Spi(64)), None);
    }

    /// The GSI and the SPI of an entry.
    fn pin(entry: &kvm_irq_routing_entry) -> (u32, u32) {
        assert_eq!((entry.type_, entry.flags), (KVM_IRQ_ROUTING_IRQCHIP, 0));
        // SAFETY: an entry of this type has this part.
        (entry.gsi, unsafe { entry.u.irqchip.pin })
    }
}
