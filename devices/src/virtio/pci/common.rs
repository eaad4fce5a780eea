//! The common configuration structure (virtio 1.2, 4.1.4.3): the registers that all devices have.

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1,
};

use super::super::queue::QueueAddresses;
use crate::pci::config::halves;

/// Bits of the device status (virtio 1.2, 2.1).
pub(super) const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK.to_le_bytes()[0];
pub(super) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK.to_le_bytes()[0];
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET.to_le_bytes()[0];

/// Queues can be reset.
pub(super) const RING_RESET: u64 = 1 << VIRTIO_F_RING_RESET;
/// The device reaches memory as the platform lets it: the driver maps what it hands over for DMA.
pub(super) const ACCESS_PLATFORM: u64 = 1 << VIRTIO_F_ACCESS_PLATFORM;
/// A modern device.
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// No MSI-X vector (virtio 1.2, 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Offsets of the registers.
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const DEVICE_STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;
const QUEUE_RESET: u64 = 0x3a;
/// The end of the registers; `queue_notify_data`, 0x38, is of a feature that isn't offered.
const END: usize = 0x3c;

/// A queue as its driver sets it up.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueRegisters {
    max_size: u16,
    pub(super) size: u16,
    pub(super) vector: u16,
    pub(super) enabled: bool,
    /// It is being reset.
    pub(super) resetting: bool,
    pub(super) addresses: QueueAddresses,
}

impl QueueRegisters {
    fn new(max_size: u16) -> Self {
        let (enabled, resetting, addresses) = Default::default();
        Self { max_size, size: max_size, vector: NO_VECTOR, enabled, resetting, addresses }
    }

    /// As after a reset of the queue, which keeps its vector (virtio 1.2, 2.6.1).
    pub(super) fn reset(&mut self) {
        *self = Self { vector: self.vector, ..Self::new(self.max_size) };
    }
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CommonWrite {
    /// Nothing more.
    Done,
    /// This was written to the device status.
    Status(u8),
    /// The vector of an interrupt has changed.
    Vector,
    /// This queue was enabled.
    QueueEnabled(u16),
    /// This queue is to be reset.
    QueueReset(u16),
}

/// The registers.
#[derive(Debug)]
pub(super) struct CommonConfig {
    device_features: u64,
    pub(super) driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    pub(super) status: u8,
    pub(super) config_vector: u16,
    queue_select: u16,
    pub(super) queues: Vec<QueueRegisters>,
    /// MSI-X vectors; 0 without MSI-X.
    vectors: u16,
}

impl CommonConfig {
    /// Those of a device with these features and queues, before its driver has come.
    pub(super) fn new(features: u64, queue_sizes: &[u16]) -> Self {
        let (driver_features, device_feature_select, driver_feature_select) = Default::default();
        let (status, queue_select, vectors) = Default::default();
        Self {
            device_features: features | VERSION_1,
            driver_features,
            device_feature_select,
            driver_feature_select,
            status,
            config_vector: NO_VECTOR,
            queue_select,
            queues: queue_sizes.iter().copied().map(QueueRegisters::new).collect(),
            vectors,
        }
    }

    /// The function has this many MSI-X vectors.
    pub(super) fn set_vectors(&mut self, vectors: u16) {
        self.vectors = vectors;
    }

    /// As after a reset of the device.
    pub(super) fn reset(&mut self) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max_size).collect();
        *self = Self { vectors: self.vectors, ..Self::new(self.device_features, &sizes) };
    }

    /// Reads at `offset`, while the device's configuration has this generation.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], generation: u8, needs_reset: bool) {
        let half = |features: u64, select: u32| {
            let index = usize::try_from(select).unwrap_or(usize::MAX);
            halves(features).get(index).copied().unwrap_or_default()
        };
        let queue = self.queues.get(usize::from(self.queue_select));
        let QueueRegisters { size, vector, enabled, resetting, addresses, .. } =
            queue.copied().unwrap_or(QueueRegisters::new(0));
        let needs_reset = if needs_reset { NEEDS_RESET } else { 0 };
        let mut bytes = [0u8; 0x40];
        let mut rest = bytes.as_mut_slice();
        let device_features = half(self.device_features, self.device_feature_select);
        let driver_features = half(self.driver_features, self.driver_feature_select);
        let queues = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        for field in [
            &self.device_feature_select.to_le_bytes()[..],
            &device_features.to_le_bytes(),
            &self.driver_feature_select.to_le_bytes(),
            &driver_features.to_le_bytes(),
            &self.config_vector.to_le_bytes(),
            &queues.to_le_bytes(),
            &[self.status | needs_reset, generation],
            &self.queue_select.to_le_bytes(),
            &size.to_le_bytes(),
            &vector.to_le_bytes(),
            &u16::from(enabled).to_le_bytes(),
            // `queue_notify_off`.
            &self.queue_select.to_le_bytes(),
            &addresses.descriptors.to_le_bytes(),
            &addresses.available.to_le_bytes(),
            &addresses.used.to_le_bytes(),
            &[0; 2],
            &u16::from(resetting).to_le_bytes(),
        ] {
            let Some((to, behind)) = rest.split_at_mut_checked(field.len()) else { break };
            to.copy_from_slice(field);
            rest = behind;
        }
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let from = bytes.get(..END).and_then(|bytes| bytes.get(from..)).unwrap_or_default();
        data.fill(0);
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    /// Writes a register, in its size; a 64-bit one also by halves. Others are ignored
    /// (4.1.3.1).
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> CommonWrite {
        match *data {
            [byte] if offset == DEVICE_STATUS => return CommonWrite::Status(byte),
            [low, high] => return self.write_u16(offset, u16::from_le_bytes([low, high])),
            [a, b, c, d] => self.write_u32(offset, u32::from_le_bytes([a, b, c, d])),
            [a, b, c, d, e, f, g, h] if offset >= QUEUE_DESC => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_u32(offset.saturating_add(4), u32::from_le_bytes([e, f, g, h]));
            }
            _ => {}
        }
        CommonWrite::Done
    }

    fn write_u16(&mut self, offset: u64, value: u16) -> CommonWrite {
        let vector = if value < self.vectors { value } else { NO_VECTOR };
        match offset {
            CONFIG_VECTOR => {
                self.config_vector = vector;
                return CommonWrite::Vector;
            }
            QUEUE_SELECT => self.queue_select = value,
            QUEUE_VECTOR => {
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.vector = vector;
                    return CommonWrite::Vector;
                }
            }
            QUEUE_SIZE => {
                if let Some(queue) = self.idle_queue()
                    && value.is_power_of_two()
                    && value <= queue.max_size
                {
                    queue.size = value;
                }
            }
            QUEUE_ENABLE if value == 1 => {
                if let Some(queue) = self.idle_queue() {
                    queue.enabled = true;
                    return CommonWrite::QueueEnabled(self.queue_select);
                }
            }
            QUEUE_RESET if value == 1 && self.driver_features & RING_RESET != 0 => {
                let queue = self.queues.get_mut(usize::from(self.queue_select));
                if let Some(queue) = queue.filter(|queue| queue.enabled && !queue.resetting) {
                    queue.resetting = true;
                    return CommonWrite::QueueReset(self.queue_select);
                }
            }
            _ => {}
        }
        CommonWrite::Done
    }

    fn write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE if self.status & FEATURES_OK == 0 => {
                let shift = self.driver_feature_select.saturating_mul(32);
                if shift < u64::BITS {
                    let mask = u64::from(u32::MAX) << shift;
                    self.driver_features = self.driver_features & !mask | u64::from(value) << shift;
                }
            }
            _ => {
                let Some(queue) = self.idle_queue() else { return };
                let QueueAddresses { descriptors, available, used } = &mut queue.addresses;
                let address = match offset & !0b111 {
                    QUEUE_DESC => descriptors,
                    QUEUE_DRIVER => available,
                    QUEUE_DEVICE => used,
                    _ => return,
                };
                match offset & 0b111 {
                    0 => *address = *address & !u64::from(u32::MAX) | u64::from(value),
                    4 => *address = *address & u64::from(u32::MAX) | u64::from(value) << 32,
                    _ => {}
                }
            }
        }
    }

    /// The selected queue, if its driver may set it up.
    fn idle_queue(&mut self) -> Option<&mut QueueRegisters> {
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled).then_some(queue)
    }

    /// Whether the device takes the features that the driver has accepted: those that it offers, of a
    /// modern device (2.2).
    pub(super) fn are_features_ok(&self) -> bool {
        self.driver_features & !self.device_features == 0 && self.driver_features & VERSION_1 != 0
    }
}
