//! The reset of a function that has none of its own: with all others of its bus, or slot (VFIO's hot reset).

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use super::super::uapi::{DeviceCalls, Group, IoctlError};
use crate::sync;

/// How often a reset is tried that the host has no time for, and how long is waited in between.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// Tries a reset with patience: while the host does something else to a function, VFIO answers with `EAGAIN`
/// (`pci_try_reset_function`, `pci_reset_bus`) or, of a bus, `EBUSY` (`vfio_pci_dev_set_hot_reset`).
pub(super) fn with_patience(reset: impl Fn() -> Result<(), IoctlError>) -> Result<(), IoctlError> {
    for _ in 0..TRIES {
        match reset() {
            Err(error) if error.is(libc::EAGAIN) || error.is(libc::EBUSY) => thread::sleep(PAUSE),
            result => return result,
        }
    }
    reset()
}

/// The names of a guest's functions that the reset of another one's bus has stopped, and that haven't been asked
/// to stop since: all of a guest's functions are stopped together, one after the other.
#[derive(Clone, Debug, Default)]
pub struct StoppedByBus(Arc<Mutex<Vec<String>>>);

impl StoppedByBus {
    /// Whether this function is one of them, which it isn't from here on.
    fn take(&self, name: &str) -> bool {
        let mut names = sync::lock(&self.0);
        let before = names.len();
        names.retain(|other| other != name);
        names.len() != before
    }

    fn add(&self, others: &[String]) {
        let mut names = sync::lock(&self.0);
        names.retain(|name| !others.contains(name));
        names.extend_from_slice(others);
    }
}

/// What resets a function's bus, or its slot where that can be reset by itself.
#[derive(Debug)]
pub struct BusReset {
    /// The groups of all functions there, if they are attached to a container.
    ///
    /// One that has left the container isn't among them when the bus is reset, which VFIO refuses then.
    pub groups: Vec<Weak<Group>>,
    /// The names of the other functions there.
    pub others: Vec<String>,
    /// Shared by all functions of a guest.
    pub stopped: StoppedByBus,
}

impl BusReset {
    /// Resets the bus of the function `name` behind these calls, unless another function has just had that done.
    pub(super) fn reset(&self, name: &str, calls: &dyn DeviceCalls) -> Result<(), IoctlError> {
        if self.stopped.take(name) {
            return Ok(());
        }
        self.reset_all(calls)?;
        self.stopped.add(&self.others);
        Ok(())
    }

    /// Resets it in any case, while the guest runs.
    pub(super) fn reset_now(&self, name: &str, calls: &dyn DeviceCalls) -> Result<(), IoctlError> {
        self.reset_all(calls)?;
        self.stopped.take(name);
        Ok(())
    }

    fn reset_all(&self, calls: &dyn DeviceCalls) -> Result<(), IoctlError> {
        let groups: Vec<_> = self.groups.iter().filter_map(Weak::upgrade).collect();
        let groups: Vec<_> = groups.iter().map(|group| group.as_fd()).collect();
        with_patience(|| calls.hot_reset(&groups))
    }
}
