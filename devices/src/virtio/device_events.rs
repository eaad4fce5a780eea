//! What a device tells its driver beside used buffers.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// What a device tells its driver beside used buffers (virtio 1.2, 2.1.2 and 2.5).
#[derive(Debug)]
pub struct DeviceEvents {
    needs_reset: AtomicBool,
    generation: AtomicU8,
    changed: EventFd,
}

impl DeviceEvents {
    /// Nothing to tell yet. `changed` is the interrupt for changes of the configuration.
    pub fn new(changed: EventFd) -> Self {
        let (needs_reset, generation) = Default::default();
        Self { needs_reset, generation, changed }
    }

    /// The configuration has changed: call it after the change can be read.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.signal();
    }

    /// The device can't go on until its driver resets it (`DEVICE_NEEDS_RESET`).
    pub fn fail(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.signal();
    }

    /// The number of changes, modulo 256.
    pub fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether the device has [failed](Self::fail).
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The driver resets the device.
    pub fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
    }

    fn signal(&self) {
        // Fails only while as many signals are pending as the counter holds.
        let _ = self.changed.write(1);
    }
}
