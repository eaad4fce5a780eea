//! The network device (virtio 1.2, 5.1), with a tap interface of the host.
//!
//! Packets go between the tap and guest RAM without a copy in between: by the kernel (vhost-net), or
//! by two threads, one for each direction. Either way the tap's header is the driver's, so that what
//! a driver leaves to do, checksums and cutting up large packets, is the host's network stack's.

mod iovecs;
mod kernel;
mod link;
mod mac;
mod port;
mod receive;
mod tap;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transmit;

use std::io;
use std::sync::Arc;

use boot::help::Help;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

use vmm_sys_util::eventfd::EventFd;

use super::device::{self, Activation, Device, DeviceType};
use super::device_events::DeviceEvents;
use super::queue::{self, VirtQueue};
use super::thread::QueueThreads;
use super::vhost::VhostError;
use crate::ratelimit::LogLimit;
use crate::thread_kind::ThreadKind;

pub use mac::MacAddress;
pub use tap::{Tap, TapError, TapRef};

use kernel::Kernel;
use port::Port;
use receive::Receiver;
use transmit::Transmitter;

/// The size of the header before each packet, in bytes (virtio 1.2, 5.1.6).
const HEADER_SIZE: u64 = 12;

/// What is before the payload of an Ethernet packet, with a VLAN's tag.
const ETHERNET_HEADER_SIZE: u64 = 14 + 4;

/// The size of the largest payload: of a packet that the driver, or a network card, cuts up.
const LARGEST_PAYLOAD: u64 = 65536;

/// Its queues: received packets, and sent ones.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The queue of received packets, and that of sent ones (virtio 1.2, 5.1.2).
const RECEIVE_QUEUE: u16 = 0;
const TRANSMIT_QUEUE: u16 = 1;

/// The names of their threads.
const RECEIVER: &str = "net-rx";
const TRANSMITTER: &str = "net-tx";

/// Who works on the queues.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostChoice {
    /// The kernel, where it can.
    #[default]
    Auto,
    /// The kernel.
    On,
    /// Threads of this process.
    Off,
}

/// Why a guest can't have a network device.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It can't have the tap.
    #[error("--net")]
    Tap(#[from] TapError),
    /// It can't have vhost-net.
    #[error("--net vhost=on")]
    Vhost(#[from] VhostError),
}

impl Help for NetError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Tap(error) => error.help(),
            Self::Vhost(error) => {
                let help = error.help().map(|help| format!("{help}\n")).unwrap_or_default();
                Some(format!("{help}or without: vhost=off"))
            }
        }
    }
}

/// A network device.
pub struct Net {
    tap: Tap,
    port: Arc<Port>,
    mac: MacAddress,
    /// What its driver has accepted, and what it is told by, while the device works.
    active: Option<(u64, Arc<DeviceEvents>)>,
    /// What works on the queues, unless it is the kernel.
    threads: QueueThreads,
    kernel: Option<Kernel>,
    log: Arc<LogLimit>,
}

impl Net {
    /// One called `name` with this tap, and this address or one that is [derived](MacAddress::of_tap).
    ///
    /// # Errors
    ///
    /// vhost-net was asked for and can't be used.
    pub fn new(
        name: &str,
        tap: Tap,
        mac: Option<MacAddress>,
        choice: VhostChoice,
    ) -> Result<Self, NetError> {
        let log = Arc::new(LogLimit::named(name));
        let port = Arc::new(Port::new(tap.file().clone(), tap.name().to_owned(), log.clone()));
        let open = || Kernel::open(port.clone());
        let kernel = match choice {
            VhostChoice::Off => None,
            VhostChoice::On => Some(open()?),
            VhostChoice::Auto => open()
                .inspect_err(|error| log::info!("{name}: threads in the kernel's place: {error}"))
                .ok(),
        };
        let mac = mac.unwrap_or_else(|| MacAddress::of_tap(tap.name()));
        let threads = QueueThreads::new(ThreadKind::Net);
        Ok(Self { tap, port, mac, active: None, threads, kernel, log })
    }

    /// Its address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Whether the kernel works on its queues.
    pub fn has_vhost(&self) -> bool {
        self.kernel.is_some()
    }

    /// The size of the largest packet that the tap hands over to a driver with these features, with
    /// its header, in bytes.
    fn largest(&self, features: u64) -> u64 {
        let cut_up = 1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6;
        let payload = match self.tap.mtu() {
            Some(mtu) if features & cut_up == 0 => u64::from(mtu).max(1500),
            _ => LARGEST_PAYLOAD,
        };
        payload.saturating_add(HEADER_SIZE).saturating_add(ETHERNET_HEADER_SIZE)
    }

    /// Starts the thread of a queue.
    fn start_thread(
        &mut self,
        queue: VirtQueue,
        (features, events): (u64, Arc<DeviceEvents>),
    ) -> io::Result<()> {
        let memory = queue.memory().clone();
        let (port, log) = (self.port.clone(), self.log.clone());
        if queue.index() == RECEIVE_QUEUE {
            let shape = (features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0, self.largest(features));
            let receiver = Receiver::new(port, events.clone(), memory, shape);
            self.threads.start_with_file(RECEIVER, queue, receiver, events, log)
        } else {
            let transmitter = Transmitter::new(port, events.clone(), memory);
            self.threads.start_with_file(TRANSMITTER, queue, transmitter, events, log)
        }
    }
}

/// What works on a queue, without a thread and with this file in the tap's place, whose reads and
/// writes don't block.
#[cfg(feature = "fuzzing")]
pub fn handler(
    file: std::fs::File,
    queue: u16,
    memory: vm_memory::GuestMemoryMmap,
    features: u64,
) -> io::Result<Box<dyn super::FileHandler>> {
    let log = Arc::new(LogLimit::new("net"));
    let port = Arc::new(Port::new(Arc::new(file), "tap".to_owned(), log));
    let changed = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK)?;
    let events = Arc::new(DeviceEvents::new(changed));
    let merged = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
    let largest = 1500 + HEADER_SIZE + ETHERNET_HEADER_SIZE;
    Ok(match queue {
        0 => Box::new(Receiver::new(port, events, memory, (merged, largest))),
        _ => Box::new(Transmitter::new(port, events, memory)),
    })
}

impl Device for Net {
    fn device_type(&self) -> DeviceType {
        // virtio 1.2, 5; PCI Code and ID Assignment: Ethernet controller.
        DeviceType { id: 1, class: 0x02_00_00 }
    }

    fn features(&self) -> u64 {
        let mut features = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_STATUS,
        ]
        .iter()
        .fold(0, |features, bit| features | 1 << bit);
        if self.tap.mtu().is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        // vhost-net merges buffers, or doesn't; all else is the tap's.
        let merges = self.kernel.as_ref().map_or(u64::MAX, Kernel::features);
        features | 1 << VIRTIO_NET_F_MRG_RXBUF & merges
    }

    fn ring_features(&self) -> u64 {
        queue::FEATURES & self.kernel.as_ref().map_or(u64::MAX, Kernel::features)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        QUEUE_SIZES.to_vec()
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config (virtio 1.2, 5.1.4): mac, status, max_virtqueue_pairs, mtu.
        let status = if self.port.is_gone() { 0 } else { VIRTIO_NET_S_LINK_UP };
        let [low, high, ..] = status.to_le_bytes();
        let [mtu_low, mtu_high] = self.tap.mtu().unwrap_or_default().to_le_bytes();
        let rest = [low, high, 1, 0, mtu_low, mtu_high];
        device::read_config(&[self.mac.bytes(), rest].concat(), offset, data);
    }

    fn prepare(&mut self, _: &[&EventFd]) -> io::Result<()> {
        if let Some(kernel) = &mut self.kernel {
            return kernel.prepare();
        }
        self.threads.prepare(RECEIVE_QUEUE, RECEIVER)?;
        self.threads.prepare(TRANSMIT_QUEUE, TRANSMITTER)
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        // A tap that was deleted while no driver looked after it refuses, and is no reason to fail: the
        // device's link is down.
        let offloads = self.tap.set_offloads(activation.features);
        if self.port.look(&activation.events) {
            offloads.map_err(io::Error::other)?;
        }
        self.active = Some((activation.features, activation.events.clone()));
        match &mut self.kernel {
            Some(kernel) => kernel.activate(&activation, self.log.clone()),
            None => activation.queues.into_iter().try_for_each(|queue| self.activate_queue(queue)),
        }
    }

    fn threads(&mut self) -> Option<&mut QueueThreads> {
        Some(&mut self.threads)
    }

    fn stop(&mut self) {
        self.threads.stop();
        self.kernel.iter().for_each(Kernel::stop);
    }

    fn is_stopped(&mut self) -> bool {
        self.threads.is_stopped() && self.kernel.as_mut().is_none_or(Kernel::is_stopped)
    }

    fn has_queue_reset(&self) -> bool {
        true
    }

    fn stop_queue(&mut self, queue: u16) {
        self.threads.stop_queue(queue);
        self.kernel.iter().for_each(|kernel| kernel.stop_queue(queue));
    }

    fn activate_queue(&mut self, queue: VirtQueue) -> io::Result<()> {
        if let Some(kernel) = &mut self.kernel {
            return kernel.activate_queue(&queue);
        }
        let active = self.active.clone().ok_or(io::ErrorKind::InvalidInput)?;
        self.start_thread(queue, active)
    }
}
