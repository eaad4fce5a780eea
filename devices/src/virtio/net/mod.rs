//! The network device (virtio 1.2, 5.1), with a tap interface of the host.
//!
//! Packets go between the tap and guest RAM without a copy in between: by the kernel (vhost-net), or
//! by two threads, one for each direction. Either way the tap's header is the driver's, so that what
//! a driver leaves to do, checksums and cutting up large packets, is the host's network stack's.

mod iovecs;
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
use super::queue;
use super::thread::QueueThread;
use super::vhost::{Vhost, VhostError, Watch};
use crate::ratelimit::LogLimit;

pub use mac::MacAddress;
pub use tap::{Tap, TapError, TapRef};

use port::Port;
use receive::Receiver;
use transmit::Transmitter;

const VHOST_NET: &str = "/dev/vhost-net";

/// The size of the header before each packet, in bytes (virtio 1.2, 5.1.6).
const HEADER_SIZE: u64 = 12;

/// What is before the payload of an Ethernet packet, with a VLAN's tag.
const ETHERNET_HEADER_SIZE: u64 = 14 + 4;

/// The size of the largest payload: of a packet that the driver, or a network card, cuts up.
const LARGEST_PAYLOAD: u64 = 65536;

/// Its queues: received packets, and sent ones.
const QUEUE_SIZES: [u16; 2] = [256, 256];

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
    /// The kernel's device, and what it can do, if it works on the queues.
    vhost: Option<(Vhost, u64)>,
    running: Option<Running>,
    log: Arc<LogLimit>,
}

/// What works on the queues.
enum Running {
    Threads { receive: QueueThread<Receiver>, transmit: QueueThread<Transmitter> },
    Kernel(Watch),
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
        let vhost = match choice {
            VhostChoice::Off => None,
            VhostChoice::On => Some(open_vhost()?),
            VhostChoice::Auto => open_vhost()
                .inspect_err(|error| log::info!("{name}: threads in the kernel's place: {error}"))
                .ok(),
        };
        let mac = mac.unwrap_or_else(|| MacAddress::of_tap(tap.name()));
        let log = Arc::new(LogLimit::named(name));
        let port = Arc::new(Port::new(tap.file().clone(), tap.name().to_owned(), log.clone()));
        Ok(Self { tap, port, mac, vhost, running: None, log })
    }

    /// Its address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Whether the kernel works on its queues.
    pub fn has_vhost(&self) -> bool {
        self.vhost.is_some()
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

    /// Starts the threads.
    fn start_threads(&self, activation: Activation) -> io::Result<Running> {
        let Activation { features, queues, memory, events } = activation;
        let [receiving, sending] = <[_; 2]>::try_from(queues).map_err(|_| not_enabled())?;
        let shape = (features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0, self.largest(features));
        let receiver = Receiver::new(self.port.clone(), events.clone(), memory.clone(), shape);
        let transmitter = Transmitter::new(self.port.clone(), events.clone(), memory);
        let log = || self.log.clone();
        let receive =
            QueueThread::start_with_file("net-rx", receiving, receiver, events.clone(), log())?;
        let transmit = QueueThread::start_with_file("net-tx", sending, transmitter, events, log())?;
        Ok(Running::Threads { receive, transmit })
    }
}

/// Opens vhost-net, and asks what it can do.
fn open_vhost() -> Result<(Vhost, u64), VhostError> {
    let vhost = Vhost::open(VHOST_NET)?;
    let features = vhost.features()?;
    Ok((vhost, features))
}

/// Has the kernel work on the queues.
fn start_kernel(
    (vhost, can): &mut (Vhost, u64),
    tap: &Tap,
    activation: &Activation,
    log: Arc<LogLimit>,
) -> io::Result<Running> {
    let count = QUEUE_SIZES.len();
    let failed = io::Error::other::<VhostError>;
    let errors = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
    vhost.set_up(activation.features & *can, activation, count, &errors).map_err(failed)?;
    let watch = Watch::start("net-watch", errors, activation.events.clone(), log)?;
    for queue in 0..2 {
        vhost
            .set_tap(queue, Some(tap.file()))
            .inspect_err(|_| stop_kernel(vhost))
            .map_err(failed)?;
    }
    Ok(Running::Kernel(watch))
}

/// Has the kernel stop; it has when this returns.
fn stop_kernel(vhost: &Vhost) {
    for queue in 0..2 {
        // It can't fail for a device that was set up.
        let _ = vhost.set_tap(queue, None);
    }
}

fn not_enabled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "a queue isn't enabled")
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
        let merges = self.vhost.as_ref().map_or(u64::MAX, |(_, features)| *features);
        features | 1 << VIRTIO_NET_F_MRG_RXBUF & merges
    }

    fn ring_features(&self) -> u64 {
        let can = self.vhost.as_ref().map_or(u64::MAX, |(_, features)| *features);
        queue::FEATURES & can
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

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.tap.set_offloads(activation.features).map_err(io::Error::other)?;
        self.running = Some(match &mut self.vhost {
            Some(vhost) => start_kernel(vhost, &self.tap, &activation, self.log.clone())?,
            None => self.start_threads(activation)?,
        });
        Ok(())
    }

    fn stop(&mut self) {
        match &self.running {
            Some(Running::Threads { receive, transmit }) => {
                receive.stop();
                transmit.stop();
            }
            Some(Running::Kernel(watch)) => {
                self.vhost.iter().for_each(|(vhost, _)| stop_kernel(vhost));
                watch.stop();
            }
            None => {}
        }
    }

    fn is_stopped(&mut self) -> bool {
        let stopped = match &self.running {
            Some(Running::Threads { receive, transmit }) => {
                receive.is_finished() && transmit.is_finished()
            }
            Some(Running::Kernel(watch)) => watch.is_finished(),
            None => true,
        };
        if stopped {
            self.running = None;
        }
        stopped
    }
}
