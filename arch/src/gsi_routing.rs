//! GSI routing: which interrupt of the guest the GSI of an irqfd is.
//!
//! KVM's own table takes GSI n to SPI n. Message-signalled interrupts need entries of their own, and
//! setting a table replaces the whole of it, so the SPIs are put in again
//! (Documentation/virt/kvm/api.rst, 4.52 KVM_SET_GSI_ROUTING).

use std::collections::BTreeSet;
use std::io;
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
    /// No routes yet, in a VM whose GIC has `spis` SPIs.
    pub fn new(vm: Arc<Vm>, spis: u32) -> Self {
        Self { vm, table: Mutex::new(Table { spis, ..Table::default() }) }
    }

    /// Makes every signal of `trigger` the message `msi`, and those that came before one (KVM polls
    /// the eventfd when it is registered); answers the GSI.
    ///
    /// # Errors
    ///
    /// `StorageFull` when KVM takes no more routes, which says how many there are, or what KVM
    /// refused.
    pub fn connect(&self, trigger: &EventFd, msi: Msi) -> io::Result<u32> {
        let mut table = self.lock();
        if table.limit == 0 {
            table.limit = self.vm.max_gsi_routes();
        }
        let Allocated { gsi, replaced } = table.allocate(msi)?;
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
    pub fn redirect(&self, gsi: u32, msi: Msi) -> io::Result<()> {
        let mut table = self.lock();
        let before = table.replace(gsi, msi).ok_or(io::ErrorKind::NotFound)?;
        if before == msi {
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

/// The table as it was set last.
#[derive(Debug, Default)]
struct Table {
    /// GSIs 0 to `spis` - 1 are SPIs; messages follow.
    spis: u32,
    /// [`Vm::max_gsi_routes`], once it was asked for.
    limit: u32,
    /// In order of GSI from `spis` on.
    messages: Vec<Msi>,
    /// GSIs of messages whose routes were given back.
    free: BTreeSet<u32>,
}

/// A GSI that was allocated.
#[derive(Debug, PartialEq, Eq)]
struct Allocated {
    gsi: u32,
    /// The table has changed: what the entry was, if there was one.
    replaced: Option<Option<Msi>>,
}

impl Table {
    /// Allocates a GSI for `msi`: a free one that is routed to it already, if there is.
    fn allocate(&mut self, msi: Msi) -> io::Result<Allocated> {
        let same = self.free.iter().find(|gsi| self.get(**gsi) == Some(msi)).copied();
        if let Some(gsi) = same {
            self.free.remove(&gsi);
            return Ok(Allocated { gsi, replaced: None });
        }
        let next = u32::try_from(self.messages.len()).ok().and_then(|n| self.spis.checked_add(n));
        if let Some(gsi) = next.filter(|gsi| *gsi < self.limit) {
            // Rather a new one than one whose message may come again.
            self.messages.push(msi);
            return Ok(Allocated { gsi, replaced: Some(None) });
        }
        let Some(gsi) = self.free.pop_first() else {
            let most = self.limit.saturating_sub(self.spis);
            let full =
                format!("KVM has {most} routes for message-signalled interrupts, all in use");
            return Err(io::Error::new(io::ErrorKind::StorageFull, full));
        };
        Ok(Allocated { gsi, replaced: Some(self.replace(gsi, msi)) })
    }

    /// Undoes an allocation whose table KVM didn't take: the entry is what it was.
    fn restore(&mut self, gsi: u32, before: Option<Msi>) {
        match before {
            Some(before) => {
                self.replace(gsi, before);
                self.release(gsi);
            }
            None => {
                // New ones are the last.
                self.messages.pop();
            }
        }
    }

    fn release(&mut self, gsi: u32) {
        if self.get(gsi).is_some() {
            self.free.insert(gsi);
        }
    }

    fn get(&self, gsi: u32) -> Option<Msi> {
        self.messages.get(self.index(gsi)?).copied()
    }

    /// Changes a message, and answers what it was.
    fn replace(&mut self, gsi: u32, msi: Msi) -> Option<Msi> {
        let index = self.index(gsi)?;
        self.messages.get_mut(index).map(|message| std::mem::replace(message, msi))
    }

    fn index(&self, gsi: u32) -> Option<usize> {
        usize::try_from(gsi.checked_sub(self.spis)?).ok()
    }

    fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let messages = (self.spis..).zip(&self.messages).map(|(gsi, msi)| message_entry(gsi, *msi));
        (0..self.spis).map(spi_entry).chain(messages).collect()
    }
}

fn spi_entry(spi: u32) -> kvm_irq_routing_entry {
    let irqchip = kvm_irq_routing_irqchip { irqchip: 0, pin: spi };
    kvm_irq_routing_entry {
        gsi: spi,
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

    fn msi(data: u32) -> Msi {
        Msi { address: 0x1_0808_0040, data, device_id: 0x10 }
    }

    fn table() -> Table {
        Table { spis: 96, limit: 100, ..Table::default() }
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
        assert!(table.messages.is_empty() && table.free.is_empty());
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
}
