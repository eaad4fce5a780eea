//! What a kind of device is to the transport.

use std::io;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::device_events::DeviceEvents;
use super::queue::VirtQueue;
use super::thread::QueueThreads;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceType {
    /// Its number (virtio 1.2, 5).
    pub id: u16,
    /// The PCI class code that its function has: class, subclass, programming interface.
    pub class: u32,
}

/// The half of a device that its driver configures it by. The transport calls it with the function
/// locked, on the thread of the vCPU that accesses a register: no call waits for a file, a peer or
/// another thread.
pub trait Device: Send {
    /// Its kind.
    fn device_type(&self) -> DeviceType;

    /// The feature bits that it offers, beside those of the transport and of split rings
    /// (`VIRTIO_F_VERSION_1`, `VIRTIO_F_INDIRECT_DESC`, `VIRTIO_F_EVENT_IDX`).
    fn features(&self) -> u64;

    /// The feature bits that the rings have: those that [`VirtQueue`] implements, unless another
    /// process or the kernel works on them and has fewer.
    fn ring_features(&self) -> u64 {
        super::queue::FEATURES
    }

    /// The largest size of each of its queues, powers of two up to 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads at `offset` of its configuration (virtio 1.2, 5); beyond its end is zero.
    fn read_config(&mut self, offset: u64, data: &mut [u8]);

    /// Writes at `offset` of its configuration; what can't be written ignores it.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Makes what may not be made any more once the guest runs: threads, above all, which wait for the
    /// [activation](Self::activate). `kicks` are what the notifications of its queues will signal, in
    /// order of their number. Called once, before the guest runs, and never where it doesn't.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    fn prepare(&mut self, kicks: &[&EventFd]) -> io::Result<()> {
        let _ = kicks;
        Ok(())
    }

    /// The driver has set `DRIVER_OK`: the device begins to work on its queues.
    ///
    /// # Errors
    ///
    /// It can't: the guest is told that the device needs a reset.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// The threads of this process that work on its queues, a thread for each; `None` if it is others
    /// that do. What is asked of them below is done here.
    fn threads(&mut self) -> Option<&mut QueueThreads> {
        None
    }

    /// Asks what works on its queues to stop: the driver resets the device, or the run ends.
    fn stop(&mut self) {
        self.threads().into_iter().for_each(|threads| threads.stop());
    }

    /// Whether nothing works on its queues any more, so that it may be [activated](Self::activate)
    /// anew. Asked after [`stop`](Self::stop) until it is so.
    fn is_stopped(&mut self) -> bool {
        self.threads().is_none_or(QueueThreads::is_stopped)
    }

    /// Whether its queues can be reset one by one (`VIRTIO_F_RING_RESET`): by the methods below.
    fn has_queue_reset(&self) -> bool {
        false
    }

    /// Asks what works on this queue to stop: the driver resets it.
    fn stop_queue(&mut self, queue: u16) {
        self.threads().into_iter().for_each(|threads| threads.stop_queue(queue));
    }

    /// Whether nothing works on this queue any more.
    fn is_queue_stopped(&mut self, queue: u16) -> bool {
        self.threads().is_none_or(|threads| threads.is_queue_stopped(queue))
    }

    /// The driver has enabled a queue while the device works: after it has reset it.
    ///
    /// # Errors
    ///
    /// It can't work on it: the guest is told that the device needs a reset.
    fn activate_queue(&mut self, queue: VirtQueue) -> io::Result<()> {
        let _ = queue;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What a device gets to work with from its driver.
pub struct Activation {
    /// The features that the driver has accepted.
    pub features: u64,
    /// The queues that it has enabled, in order of their number.
    pub queues: Vec<VirtQueue>,
    /// Guest RAM.
    pub memory: GuestMemoryMmap,
    /// What the device tells its driver by.
    pub events: Arc<DeviceEvents>,
}

/// Reads at `offset` of a device's configuration, which is `config`; beyond its end is zero.
pub(super) fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let begin = usize::try_from(offset).unwrap_or(usize::MAX);
    let from = config.get(begin..).unwrap_or_default().iter().copied().chain(std::iter::repeat(0));
    data.iter_mut().zip(from).for_each(|(to, from)| *to = from);
}
