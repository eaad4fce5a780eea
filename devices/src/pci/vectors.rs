//! A function's vectors on their way to the guest: eventfds and routes.
//!
//! # Why no interrupt is lost while a vector is masked
//!
//! The device signals a vector's eventfd whatever the guest has masked. While the vector is masked
//! the eventfd has no route: what is signalled stays in the eventfd's count, which is the vector's
//! pending bit. Being unmasked connects it, and the count, if there is one, becomes one message:
//! several signals are one, as with a pending bit. A signal that comes while the route is made or
//! taken away is either counted or delivered, for the kernel takes the count and lets go of the
//! eventfd in one step (`eventfd_ctx_remove_wait_queue`), and looks at the count when it takes hold
//! of it (`kvm_irqfd_assign` polls).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::message::Delivery;
use crate::irq::{Gsi, MsiMessage, MsiRouter};

/// The vectors of a function that has [`Msi`](super::Msi) or [`Msix`](super::Msix).
///
/// Their eventfds are made when they are first asked for: a function may have 2048 vectors and use
/// one.
pub struct Vectors {
    router: Arc<dyn MsiRouter>,
    vectors: Vec<Vector>,
}

#[derive(Default)]
struct Vector {
    trigger: Option<EventFd>,
    connected: Option<(Gsi, MsiMessage)>,
}

impl Vectors {
    /// As many vectors, all masked, whose messages go to `router`.
    pub fn new(router: Arc<dyn MsiRouter>, count: u16) -> Self {
        Self { router, vectors: (0..count).map(|_| Vector::default()).collect() }
    }

    /// What the device is to signal for a vector.
    ///
    /// # Errors
    ///
    /// There is no such vector (`InvalidInput`), or no eventfd could be made.
    pub fn trigger(&mut self, vector: u16) -> io::Result<&EventFd> {
        self.get(vector)?.trigger()
    }

    /// The vectors that the device has something to signal for, and that.
    pub fn triggers(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        let all = (0u16..).zip(&self.vectors);
        all.filter_map(|(number, vector)| Some((number, vector.trigger.as_ref()?)))
    }

    /// Makes the signals of a vector this from here on.
    ///
    /// # Errors
    ///
    /// There is no such vector, no eventfd could be made, or the route was refused: it is as it was,
    /// a masked one still masked.
    pub fn deliver(&mut self, vector: u16, delivery: Delivery) -> io::Result<()> {
        let router = self.router.clone();
        let vector = self.get(vector)?;
        let message = match delivery {
            Delivery::Masked => {
                vector.disconnect(&*router);
                return Ok(());
            }
            Delivery::To(message) => message,
        };
        let route = match vector.connected {
            Some((_, connected)) if connected == message => return Ok(()),
            Some((route, _)) => {
                router.redirect(route, message)?;
                route
            }
            None => router.connect(vector.trigger()?, message)?,
        };
        vector.connected = Some((route, message));
        Ok(())
    }

    /// Whether a masked vector has been signalled.
    pub fn is_pending(&self, vector: u16) -> bool {
        let vector = self.vectors.get(usize::from(vector));
        let trigger = vector.filter(|vector| vector.connected.is_none());
        trigger.and_then(|vector| vector.trigger.as_ref()).is_some_and(is_signalled)
    }

    /// Disconnects all vectors and forgets what is pending. The eventfds stay, and must not be
    /// signalled any more for this to have a lasting effect.
    pub fn disable(&mut self) {
        for vector in &mut self.vectors {
            vector.disconnect(&*self.router);
            // Fails if there was nothing.
            let _ = vector.trigger.as_ref().map(EventFd::read);
        }
    }

    fn get(&mut self, vector: u16) -> io::Result<&mut Vector> {
        self.vectors.get_mut(usize::from(vector)).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        self.disable();
    }
}

impl Vector {
    fn trigger(&mut self) -> io::Result<&EventFd> {
        match &mut self.trigger {
            Some(trigger) => Ok(trigger),
            empty => Ok(empty.insert(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)),
        }
    }

    fn disconnect(&mut self, router: &dyn MsiRouter) {
        if let (Some((route, _)), Some(trigger)) = (self.connected.take(), &self.trigger) {
            router.disconnect(route, trigger);
        }
    }
}

/// Whether an eventfd has a count, which stays.
fn is_signalled(eventfd: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one pollfd; with a timeout of 0 nothing blocks.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}

#[cfg(test)]
mod tests;
