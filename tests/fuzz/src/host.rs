//! What stands in for the hypervisor, and holds that it is used as it has to be.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Mutex;

use devices::bus::{IoEvents, MemorySlots};
use devices::irq::{EdgeInterrupts, Gsi, InterruptController, IrqLine, MsiMessage, MsiRouter, Spi};
use vmm_sys_util::eventfd::EventFd;

/// Interrupts that reach nobody.
pub struct NoInterrupts;

impl IrqLine for NoInterrupts {
    fn set(&self, _: bool) {}
}

impl EdgeInterrupts for NoInterrupts {
    fn pulse(&self, _: Spi) {}
}

impl InterruptController for NoInterrupts {
    fn connect_edge(&self, _: Spi, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn connect_level(&self, _: Spi, _: &EventFd, _: &EventFd) -> io::Result<()> {
        Ok(())
    }

    fn disconnect(&self, _: Spi, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}

/// A few routes for messages.
#[derive(Default)]
pub struct Routes(Mutex<BTreeMap<u32, i32>>);

impl Routes {
    const MAX: u32 = 24;
}

impl MsiRouter for Routes {
    fn connect(&self, trigger: &EventFd, message: MsiMessage) -> io::Result<Gsi> {
        if message.address & 0xff0 == 0xbd0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut routes = self.0.lock().unwrap();
        let free = (0..Self::MAX).find(|route| !routes.contains_key(route));
        let free = free.ok_or(io::ErrorKind::StorageFull)?;
        routes.insert(free, trigger.as_raw_fd());
        Ok(Gsi(free))
    }

    fn redirect(&self, gsi: Gsi, _: MsiMessage) -> io::Result<()> {
        assert!(self.0.lock().unwrap().contains_key(&gsi.0), "a route that isn't there");
        Ok(())
    }

    fn disconnect(&self, gsi: Gsi, trigger: &EventFd) {
        let connected = self.0.lock().unwrap().remove(&gsi.0);
        assert_eq!(connected, Some(trigger.as_raw_fd()), "another's route");
    }
}

/// Addresses with an eventfd: one each.
#[derive(Default)]
pub struct Events(Mutex<BTreeMap<u64, i32>>);

impl IoEvents for Events {
    fn add(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        let mut events = self.0.lock().unwrap();
        if events.contains_key(&gpa) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        events.insert(gpa, event.as_raw_fd());
        Ok(())
    }

    fn remove(&self, gpa: u64, event: &EventFd) -> io::Result<()> {
        let removed = self.0.lock().unwrap().remove(&gpa);
        assert_eq!(removed, Some(event.as_raw_fd()), "another's notification");
        Ok(())
    }
}

/// Slots of memory: none overlaps another.
#[derive(Default)]
pub struct Slots(Mutex<BTreeMap<u64, u64>>);

impl MemorySlots for Slots {
    unsafe fn map(&self, gpa: u64, _: NonNull<u8>, size: u64) -> io::Result<()> {
        let mut slots = self.0.lock().unwrap();
        let end = gpa.checked_add(size).expect("a slot has an end");
        let overlaps = slots.range(..end).next_back().is_some_and(|(at, size)| at + size > gpa);
        assert!(!overlaps, "{gpa:#x} is mapped already");
        slots.insert(gpa, size);
        Ok(())
    }

    unsafe fn map_read_only(&self, gpa: u64, host: NonNull<u8>, size: u64) -> io::Result<()> {
        // SAFETY: the caller guarantees the same.
        unsafe { self.map(gpa, host, size) }
    }

    fn unmap(&self, gpa: u64, size: u64) -> io::Result<()> {
        assert_eq!(self.0.lock().unwrap().remove(&gpa), Some(size), "{gpa:#x} isn't mapped");
        Ok(())
    }
}
