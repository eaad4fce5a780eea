//! The vectors of MSI and MSI-X: an eventfd each, and its MSI route to the guest.
//!
//! # Why no interrupt is lost while a vector is masked
//!
//! The device signals a vector's eventfd whether or not the guest has masked the vector. A masked
//! vector's eventfd has no route: signals accumulate in its count, which is the vector's pending bit.
//! Unmasking makes the route, and a count that isn't zero becomes one message, as a pending bit does.
//! A signal while a route is made or removed is either counted or delivered: the kernel reads the
//! count and detaches from the eventfd in one step (`eventfd_ctx_remove_wait_queue`), and checks the
//! count when it attaches (`kvm_irqfd_assign` polls).

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::irq::{Gsi, MsiMessage, MsiRouter};

/// The state of an MSI or MSI-X capability ([`Msi`](super::Msi), [`Msix`](super::Msix)).
pub trait MsiState {
    /// The number of vectors in use, from 0 on; 0 while the capability is disabled.
    fn enabled_vectors(&self) -> u16;

    /// The message of a vector in use; `None` while it is masked.
    fn message(&self, vector: u16) -> Option<MsiMessage>;
}

/// The vectors of a function, each with its eventfd and its route.
///
/// Eventfds are made on demand: a function may have 2048 vectors and use one.
pub struct MsiVectors {
    router: Arc<dyn MsiRouter>,
    vectors: Vec<Vector>,
}

#[derive(Default)]
struct Vector {
    trigger: Option<EventFd>,
    route: Option<(Gsi, MsiMessage)>,
}

impl MsiVectors {
    /// `count` masked vectors, whose messages go to `router`.
    pub fn new(router: Arc<dyn MsiRouter>, count: u16) -> Self {
        Self { router, vectors: (0..count).map(|_| Vector::default()).collect() }
    }

    /// Masked vectors with these eventfds, whose messages go to `router`.
    pub fn with_triggers(router: Arc<dyn MsiRouter>, triggers: Vec<EventFd>) -> Self {
        let vector = |trigger| Vector { trigger: Some(trigger), route: None };
        Self { router, vectors: triggers.into_iter().map(vector).collect() }
    }

    /// The number of vectors.
    pub fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// The eventfds of the vectors that have one: those that have been unmasked at least once.
    pub fn triggers(&self) -> impl Iterator<Item = (u16, &EventFd)> {
        let all = (0u16..).zip(&self.vectors);
        all.filter_map(|(number, vector)| Some((number, vector.trigger.as_ref()?)))
    }

    /// Sets the message of a vector, or masks it.
    ///
    /// # Errors
    ///
    /// There is no such vector (`InvalidInput`), no eventfd could be made, or the route was refused:
    /// the vector is unchanged.
    pub fn set(&mut self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        let vector =
            self.vectors.get_mut(usize::from(vector)).ok_or(io::ErrorKind::InvalidInput)?;
        let Some(message) = message else {
            vector.disconnect(&*self.router);
            return Ok(());
        };
        let gsi = match vector.route {
            Some((_, current)) if current == message => return Ok(()),
            Some((gsi, _)) => {
                self.router.redirect(gsi, message)?;
                gsi
            }
            None => self.router.connect(vector.trigger()?, message)?,
        };
        vector.route = Some((gsi, message));
        Ok(())
    }

    /// Whether a masked vector was signalled.
    pub fn is_pending(&self, vector: u16) -> bool {
        let vector = self.vectors.get(usize::from(vector));
        let masked = vector.filter(|vector| vector.route.is_none());
        masked.and_then(|vector| vector.trigger.as_ref()).is_some_and(is_signalled)
    }
}

impl Drop for MsiVectors {
    fn drop(&mut self) {
        for vector in &mut self.vectors {
            vector.disconnect(&*self.router);
        }
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
        if let (Some((gsi, _)), Some(trigger)) = (self.route.take(), &self.trigger) {
            router.disconnect(gsi, trigger);
        }
    }
}

/// Whether an eventfd's count isn't zero; it stays.
fn is_signalled(eventfd: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: eventfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one pollfd; with a timeout of 0 nothing blocks.
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1 && poll.revents & libc::POLLIN != 0
}

#[cfg(test)]
mod tests;
