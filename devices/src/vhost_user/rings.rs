//! What a device's rings tell without its backend (virtio 1.2, 2.7.6 and 2.7.8).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::{QueueAddresses, VirtQueue};

/// Where a queue is, at its driver and at its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Indices {
    /// The next entry of the available ring that the driver will fill.
    pub(super) available: u16,
    /// The next entry of the used ring that the device will fill.
    pub(super) used: u16,
}

impl Indices {
    /// Those of a queue whose rings are in guest RAM; `None` if they aren't.
    pub(super) fn of(queue: &VirtQueue) -> Option<Self> {
        let QueueAddresses { available, used, .. } = queue.addresses();
        let memory = queue.memory();
        Some(Self { available: index(memory, available)?, used: index(memory, used)? })
    }

    /// No request is under way.
    pub(super) fn is_idle(self) -> bool {
        self.available == self.used
    }
}

/// The index of a ring: behind its flags.
fn index(memory: &GuestMemoryMmap, ring: u64) -> Option<u16> {
    let address = GuestAddress(ring.checked_add(2)?);
    memory.read_obj::<u16>(address).ok().map(u16::from_le)
}
