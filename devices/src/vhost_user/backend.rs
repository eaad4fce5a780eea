//! What is asked of a backend: the `vhost` crate's frontend, its requests bounded and in their order.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{
    Error as ProtocolError, Frontend, FrontendReqHandler, VhostUserFrontend,
    VhostUserFrontendReqHandler, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::REPLY_TIMEOUT;
use super::config::{Config, INPUT_SIZE};
use super::deadline::Watch;
use super::error::Failure;
use super::options::{ConfigSource, Options};
use super::status;
use crate::stop;
use crate::virtio::Activation;

/// The protocol's features that strait makes use of, where a backend has them.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::STATUS);

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What a backend offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Feature bits of its device, with those of an own configuration.
    pub(super) features: u64,
    /// The configuration.
    pub(super) config: Config,
    /// The backend tells it, and takes what is written.
    pub(super) is_backends: bool,
}

/// Whether the backend has told that its configuration changed.
#[derive(Debug, Default)]
struct Changes(AtomicBool);

impl VhostUserFrontendReqHandler for Changes {
    fn handle_config_change(&self) -> io::Result<u64> {
        self.0.store(true, Ordering::Release);
        Ok(0)
    }
}

/// Where a backend notes the requests that are under way, so that another can go on with them.
pub(super) struct Inflight {
    layout: VhostUserInflight,
    file: File,
}

/// A connection to a backend.
pub(super) struct Backend {
    frontend: Frontend,
    /// The same connection, to be shut down.
    socket: UnixStream,
    watch: Arc<Watch>,
    /// What the backend asks of strait.
    channel: Option<FrontendReqHandler<Changes>>,
    changes: Arc<Changes>,
    /// The features that it offers.
    features: u64,
    protocol: VhostUserProtocolFeatures,
}

/// Something to send as a descriptor.
struct Fd(RawFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

/// The result of a request, with its name.
type Asked<T> = Result<T, (&'static str, vhost::Error)>;

/// Names the request in its error.
fn ask<T>(request: &'static str, result: vhost::Result<T>) -> Asked<T> {
    result.map_err(|error| (request, error))
}

impl Backend {
    /// Asks what a backend offers at `socket`, whose calls block.
    pub(super) fn open(
        socket: UnixStream,
        watch: &Arc<Watch>,
        options: &Options,
    ) -> Result<(Self, Offer), Failure> {
        let queues = options.kind.queues;
        let frontend = Frontend::from_stream(socket.try_clone()?, queues.into());
        let (features, protocol) = (0, VhostUserProtocolFeatures::empty());
        let (channel, changes) = Default::default();
        let watch = watch.clone();
        let mut backend = Self { frontend, socket, watch, channel, changes, features, protocol };
        let wants_config = !matches!(options.config, ConfigSource::Own(_));
        let offered_queues = backend.bounded(|backend| backend.negotiate(wants_config))?;
        if backend.features & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(Failure::Legacy);
        }
        if let Some(number) = offered_queues.filter(|number| *number < queues.into()) {
            return Err(Failure::Queues(number));
        }
        let offer = backend.offer(options)?;
        Ok((backend, offer))
    }

    /// Agrees on features of the protocol; the number of queues, where the backend tells it.
    fn negotiate(&mut self, wants_config: bool) -> Asked<Option<u64>> {
        ask("SET_OWNER", self.frontend.set_owner())?;
        self.features = ask("GET_FEATURES", self.frontend.get_features())?;
        if self.features & PROTOCOL_FEATURES == 0 {
            return Ok(None);
        }
        let offered = ask("GET_PROTOCOL_FEATURES", self.frontend.get_protocol_features())?;
        self.protocol = offered & PROTOCOL;
        if !wants_config || !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            let of_config =
                VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::BACKEND_REQ;
            self.protocol.remove(of_config);
        }
        let set = self.frontend.set_protocol_features(self.protocol);
        ask("SET_PROTOCOL_FEATURES", set)?;
        if self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        if self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            self.open_channel()?;
        }
        if !self.protocol.contains(VhostUserProtocolFeatures::MQ) {
            return Ok(None);
        }
        ask("GET_QUEUE_NUM", self.frontend.get_queue_num()).map(Some)
    }

    /// Gives the backend a connection on which it tells of changes.
    fn open_channel(&mut self) -> Asked<()> {
        let channel = FrontendReqHandler::new(self.changes.clone());
        let mut channel =
            ask("SET_BACKEND_REQ_FD", channel.map_err(vhost::Error::VhostUserProtocol))?;
        channel.set_reply_ack_flag(self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        let theirs = Fd(channel.get_tx_raw_fd());
        ask("SET_BACKEND_REQ_FD", self.frontend.set_backend_request_fd(&theirs))?;
        self.channel = Some(channel);
        Ok(())
    }

    fn offer(&mut self, options: &Options) -> Result<Offer, Failure> {
        let tells = self.protocol.contains(VhostUserProtocolFeatures::CONFIG);
        let (size, own) = match &options.config {
            ConfigSource::Own(own) => (0, Some(own)),
            ConfigSource::Either(size, own) => ((*size).into(), (!tells).then_some(own)),
            ConfigSource::Backend(size) => ((*size).into(), None),
            ConfigSource::Input => (INPUT_SIZE, None),
        };
        let (told, more) = match own {
            Some(own) => (own.bytes.clone().into(), own.features),
            None if size == 0 => (Config::default(), 0),
            None if !tells => return Err(Failure::NoConfig),
            None => (self.read_config(options, size)?, 0),
        };
        let is_backends = own.is_none() && tells && size != 0;
        Ok(Offer { features: self.features | more, config: told, is_backends })
    }

    /// Reads the configuration's first `size` bytes, or all that an input device's may be.
    pub(super) fn read_config(
        &mut self,
        options: &Options,
        size: usize,
    ) -> Result<Config, Failure> {
        self.bounded(|backend| match options.config {
            ConfigSource::Input => Config::of_input(|selection| backend.select(selection)),
            _ => backend.get_config(size).map(|mut config| {
                options.kind.limit_queues(&mut config);
                Config::from(config)
            }),
        })
    }

    fn get_config(&mut self, size: usize) -> Asked<Vec<u8>> {
        let (empty, flags) = (vec![0; size], VhostUserConfigFlags::empty());
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let read = self.frontend.get_config(0, size, flags, &empty);
        ask("GET_CONFIG", read).map(|(_, config)| config)
    }

    /// Writes into the configuration. (No flags: fields that the driver writes. The crate's `WRITABLE`
    /// is what the specification has for live migration.)
    fn set_config(&mut self, offset: u32, data: &[u8]) -> Asked<()> {
        let written = self.frontend.set_config(offset, VhostUserConfigFlags::empty(), data);
        ask("SET_CONFIG", written)
    }

    /// An input device's configuration with this selection. All of it is written, as backends expect.
    fn select(&mut self, selection: [u8; 2]) -> Asked<Vec<u8>> {
        let mut config = selection.to_vec();
        config.resize(INPUT_SIZE, 0);
        self.set_config(0, &config)?;
        self.get_config(INPUT_SIZE)
    }

    /// Writes into the configuration.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) -> Result<(), Failure> {
        self.bounded(|backend| backend.set_config(offset, data))
    }

    /// Has it work on the queues, each from the index in `bases` on. What is under way is noted in
    /// `inflight`, if the backend does that.
    pub(super) fn start(
        &mut self,
        activation: &Activation,
        bases: &[u16],
        inflight: &mut Option<Inflight>,
    ) -> Result<(), Failure> {
        let regions = regions(&activation.memory)?;
        self.bounded(|backend| {
            let frontend = &mut backend.frontend;
            let features = (activation.features | PROTOCOL_FEATURES) & backend.features;
            ask("SET_FEATURES", frontend.set_features(features))?;
            backend.accept_features()?;
            let frontend = &mut backend.frontend;
            ask("SET_MEM_TABLE", frontend.set_mem_table(&regions))?;
            if backend.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
                backend.share_inflight(activation, inflight)?;
            }
            for (queue, base) in activation.queues.iter().zip(bases) {
                let (index, addresses) = (queue.index().into(), queue.addresses());
                let ring = VringConfigData {
                    queue_max_size: queue.size(),
                    queue_size: queue.size(),
                    desc_table_addr: addresses.descriptors,
                    used_ring_addr: addresses.used,
                    avail_ring_addr: addresses.available,
                    ..VringConfigData::default()
                };
                let frontend = &backend.frontend;
                ask("SET_VRING_NUM", frontend.set_vring_num(index, queue.size()))?;
                ask("SET_VRING_ADDR", frontend.set_vring_addr(index, &ring))?;
                ask("SET_VRING_BASE", frontend.set_vring_base(index, *base))?;
                ask("SET_VRING_CALL", frontend.set_vring_call(index, queue.call()))?;
                ask("SET_VRING_KICK", frontend.set_vring_kick(index, queue.kick()))?;
            }
            backend.enable(activation, true)?;
            backend.set_status(status::DRIVER_OK)
        })
    }

    /// Tells it that the features are chosen, and asks whether it takes them.
    fn accept_features(&self) -> Asked<()> {
        self.set_status(status::FEATURES_OK)?;
        match self.status()? {
            Some(told) if told & status::FEATURES_OK != status::FEATURES_OK => {
                let refused = ProtocolError::BackendInternalError;
                Err(("the features", vhost::Error::VhostUserProtocol(refused)))
            }
            _ => Ok(()),
        }
    }

    /// Tells it the device's status, if it is interested.
    fn set_status(&self, status: u64) -> Asked<()> {
        if !self.protocol.contains(VhostUserProtocolFeatures::STATUS) {
            return Ok(());
        }
        let replies = self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        ask("SET_STATUS", status::set(&self.socket, status, replies))
    }

    /// The device's status, if it tells it.
    fn status(&self) -> Asked<Option<u64>> {
        let tells = self.protocol.contains(VhostUserProtocolFeatures::STATUS);
        ask("GET_STATUS", tells.then(|| status::get(&self.socket)).transpose())
    }

    /// Whether it tells that its device needs a reset.
    pub(super) fn needs_reset(&mut self) -> Result<bool, Failure> {
        let status = self.bounded(|backend| backend.status())?;
        Ok(status.is_some_and(|status| status & status::NEEDS_RESET != 0))
    }

    fn enable(&mut self, activation: &Activation, enable: bool) -> Asked<()> {
        if self.features & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        activation.queues.iter().try_for_each(|queue| {
            let enabled = self.frontend.set_vring_enable(queue.index().into(), enable);
            ask("SET_VRING_ENABLE", enabled)
        })
    }

    /// Gives it the place in which the last one noted what is under way, or one of its own.
    fn share_inflight(
        &mut self,
        activation: &Activation,
        inflight: &mut Option<Inflight>,
    ) -> Asked<()> {
        let shared = match inflight {
            Some(shared) => shared,
            None => {
                let queues = u16::try_from(activation.queues.len()).unwrap_or(u16::MAX);
                let size = activation.queues.iter().map(|queue| queue.size()).max();
                let wanted = VhostUserInflight::new(0, 0, queues, size.unwrap_or_default());
                let made = self.frontend.get_inflight_fd(&wanted);
                let (layout, file) = ask("GET_INFLIGHT_FD", made)?;
                inflight.insert(Inflight { layout, file })
            }
        };
        let fd = shared.file.as_raw_fd();
        ask("SET_INFLIGHT_FD", self.frontend.set_inflight_fd(&shared.layout, fd))
    }

    /// Has it end its work on the queues; it doesn't reach guest RAM for them after that.
    pub(super) fn stop(&mut self, activation: &Activation) -> Result<(), Failure> {
        self.bounded(|backend| {
            backend.enable(activation, false)?;
            for queue in &activation.queues {
                let base = backend.frontend.get_vring_base(queue.index().into());
                ask("GET_VRING_BASE", base)?;
            }
            backend.set_status(status::RESET)?;
            if backend.protocol.contains(VhostUserProtocolFeatures::RESET_DEVICE) {
                ask("RESET_DEVICE", backend.frontend.reset_device())?;
            }
            Ok(())
        })
    }

    /// What tells, by being readable, that the backend has ended, and what that it asks something.
    pub(super) fn descriptors(&self) -> (RawFd, Option<RawFd>) {
        (self.socket.as_raw_fd(), self.channel.as_ref().map(AsRawFd::as_raw_fd))
    }

    /// Serves what the backend has asked; whether its configuration has changed.
    pub(super) fn serve_channel(&mut self) -> bool {
        let Some(mut channel) = self.channel.take() else { return false };
        // SAFETY: the channel keeps its descriptor open; it is duplicated at once.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(channel.as_raw_fd()) };
        let served = fd.try_clone_to_owned().map(UnixStream::from).and_then(|socket| {
            self.watch.within(REPLY_TIMEOUT, || false, &socket, || channel.handle_request())
        });
        // A request that isn't understood is refused, which is an error here, too.
        if served.is_ok_and(|(_, ended)| !ended) {
            self.channel = Some(channel);
        }
        self.changes.0.swap(false, Ordering::AcqRel)
    }

    #[cfg(test)]
    pub(super) fn shut_down(&self) {
        self.socket.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Makes requests, all of them within the time.
    fn bounded<T>(&mut self, requests: impl FnOnce(&mut Self) -> Asked<T>) -> Result<T, Failure> {
        let socket = self.socket.try_clone()?;
        let watch = self.watch.clone();
        let (result, ended) =
            watch.within(REPLY_TIMEOUT, stop::is_requested, &socket, || requests(self))?;
        result.map_err(|(request, error)| Failure::of(request, error, ended))
    }
}

/// Guest RAM as the backend is to map it. What it translates addresses of rings by is a GPA, too: those
/// of this process are none of its business.
fn regions(memory: &GuestMemoryMmap) -> Result<Vec<VhostUserMemoryRegionInfo>, Failure> {
    let region = |region: &vm_memory::GuestRegionMmap| {
        let file = region.file_offset().ok_or(Failure::NoRamFile)?;
        let start = region.start_addr().raw_value();
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: start,
            memory_size: region.len(),
            userspace_addr: start,
            mmap_offset: file.start(),
            mmap_handle: file.file().as_raw_fd(),
        })
    };
    memory.iter().map(region).collect()
}
