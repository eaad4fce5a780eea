//! Where the registers of a function are: one BAR, and the capabilities that say so.

use std::ops::Range;

/// The BAR that has all registers.
pub(super) const BAR: u8 = 0;
/// Its size in bytes.
pub(super) const BAR_SIZE: u64 = 0x8000;

/// The common configuration (virtio 1.2, 4.1.4.3).
pub(super) const COMMON: Range<u64> = 0x0000..0x0040;
/// The ISR status (4.1.4.5).
pub(super) const ISR: Range<u64> = 0x1000..0x1004;
/// The device's configuration (4.1.4.6).
pub(super) const DEVICE: Range<u64> = 0x2000..0x3000;
/// The notifications (4.1.4.4): 4 bytes each, in order of queue.
pub(super) const NOTIFY: Range<u64> = 0x3000..0x4000;
/// The bytes between two queues' notifications (`notify_off_multiplier`).
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
/// The MSI-X table, and its pending bits.
pub(super) const MSIX_TABLE: u32 = 0x4000;
pub(super) const MSIX_PENDING: u32 = 0x7000;

/// The most queues that a device can have: their notifications, and their MSI-X vectors with that
/// of the configuration, have room.
pub(super) const MAX_QUEUES: u16 = 512;

/// The GPA of a queue's notification, in a BAR at `bar` (GPA).
pub(super) fn notification(bar: u64, queue: u16) -> u64 {
    let offset = NOTIFY.start + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER);
    bar.saturating_add(offset)
}
