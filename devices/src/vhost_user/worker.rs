//! The thread that has the connection to a backend.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_STATUS;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, Inflight, Offer};
use super::config::Config;
use super::deadline::Watch;
use super::error::Failure;
use super::kind::{NET, Resumption};
use super::options::Options;
use super::program::{Connector, Program};
use super::rings::Indices;
use crate::peer::{self, Peer};
use crate::poll;
use crate::ratelimit::LogLimit;
use crate::sync::lock;
use crate::virtio::{Activation, VirtQueue};

/// The pause between two attempts to reach a backend that was lost, in milliseconds.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Where a network's configuration has its link's state, 2 bytes (virtio 1.2, 5.1.4).
const NET_STATUS: u64 = 6;

/// How many writes into the configuration may wait.
const MAX_WRITES: usize = 16;

/// Where a backend is.
pub enum Target {
    /// It listens at this path, and may be this peer's. Whoever it is connects again if the connection is
    /// lost; without, it is done by path.
    Path(PathBuf, Peer, Option<Box<dyn Connector>>),
    /// It was started for this connection, and is started again for another.
    Started(Option<UnixStream>, Box<dyn Program>),
}

impl Target {
    /// Connects for the first time.
    fn connect(&mut self) -> Result<UnixStream, Failure> {
        match self {
            Self::Path(path, peer, _) => {
                let socket = peer::connect(path).map_err(Failure::Connect)?;
                peer.check(path, &socket).map_err(Failure::Peer)?;
                let socket = UnixStream::from(socket);
                // The `vhost` crate's calls block.
                socket.set_nonblocking(false)?;
                Ok(socket)
            }
            Self::Started(stream, program) => {
                stream.take().map_or_else(|| program.restart(), Ok).map_err(Failure::Restart)
            }
        }
    }

    /// Connects once more.
    fn reconnect(&mut self) -> Result<UnixStream, Failure> {
        match self {
            Self::Path(_, _, Some(connector)) => connector.connect().map_err(Failure::Connect),
            _ => self.connect(),
        }
    }

    /// A failure, or how the program has ended, which tells more.
    fn ending(&mut self, failure: Failure) -> Failure {
        match (self, failure) {
            (Self::Path(..), failure) | (_, failure @ Failure::Restart(_)) => failure,
            (Self::Started(_, program), failure) => {
                program.ending().map_or(failure, Failure::Ended)
            }
        }
    }
}

/// What the thread is asked to do.
#[derive(Default)]
struct Requests {
    /// To stop, before anything else.
    stop: bool,
    start: Option<Activation>,
    writes: Vec<(u32, Vec<u8>)>,
    end: bool,
    #[cfg(test)]
    end_backend: bool,
}

/// What the thread and the device share.
pub(super) struct Shared {
    requests: Mutex<Requests>,
    wake: EventFd,
    /// The configuration as it was read last.
    pub(super) config: Mutex<Config>,
    /// The queues are being worked on, or the backend is asked to end that.
    pub(super) is_active: AtomicBool,
}

impl Shared {
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        let (requests, config, is_active) = Default::default();
        Ok(Self { requests, wake, config, is_active })
    }

    fn request(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut lock(&self.requests));
        // Fails only while as many signals are pending as the counter holds.
        let _ = self.wake.write(1);
    }

    /// Asks to begin.
    pub(super) fn start(&self, activation: Activation) {
        self.request(|requests| {
            self.is_active.store(true, Ordering::Release);
            requests.start = Some(activation);
        });
    }

    /// Nothing works on the queues, and nobody has asked for that meanwhile.
    fn has_stopped(&self) {
        let requests = lock(&self.requests);
        if requests.start.is_none() {
            self.is_active.store(false, Ordering::Release);
        }
    }

    /// Asks to end; what was asked before is no longer asked.
    pub(super) fn stop(&self) {
        self.request(|requests| (requests.stop, requests.start) = (true, None));
    }

    /// Asks to write into the configuration; what is too much is left out.
    pub(super) fn write_config(&self, offset: u32, data: &[u8]) {
        self.request(|requests| {
            if requests.writes.len() < MAX_WRITES {
                requests.writes.push((offset, data.to_owned()));
            }
        });
    }

    #[cfg(test)]
    pub(super) fn end_backend(&self) {
        self.request(|requests| requests.end_backend = true);
    }

    /// Asks the thread to end.
    pub(super) fn end(&self) {
        self.request(|requests| requests.end = true);
    }
}

/// The thread's state.
pub(super) struct Worker {
    options: Arc<Options>,
    // Before the program that it leads to.
    backend: Option<Backend>,
    target: Target,
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    log: LogLimit,
    /// What the backend offered first.
    offer: Offer,
    /// What the driver has set up, while it has.
    active: Option<Activation>,
    /// A backend was told to work on that.
    has_begun: bool,
    inflight: Option<Inflight>,
}

impl Worker {
    /// Connects to the backend.
    pub(super) fn connect(
        options: Arc<Options>,
        mut target: Target,
        shared: Arc<Shared>,
    ) -> Result<(Self, Offer), Failure> {
        let socket = target.connect()?;
        let watch = Arc::default();
        let opened = Backend::open(socket, &watch, &options);
        let (backend, offer) = opened.map_err(|failure| target.ending(failure))?;
        lock(&shared.config).clone_from(&offer.config);
        let log = LogLimit::named(options.name.clone());
        let (backend, active, has_begun, inflight) = (Some(backend), None, false, None);
        watch.end();
        let told = offer.clone();
        let worker = Self {
            options,
            target,
            shared,
            watch,
            log,
            offer,
            backend,
            active,
            has_begun,
            inflight,
        };
        Ok((worker, told))
    }

    /// Makes the other thread that it needs to [run](Self::run).
    pub(super) fn prepare(&self) -> io::Result<()> {
        self.watch.start()
    }

    /// Does what it is asked, and looks after the backend, until it is to end.
    pub(super) fn run(mut self) {
        loop {
            let (closed, asks) = self.wait();
            let requests = std::mem::take(&mut *lock(&self.shared.requests));
            if requests.end {
                return;
            }
            #[cfg(test)]
            if let Some(backend) = self.backend.as_ref().filter(|_| requests.end_backend) {
                backend.shut_down();
            }
            if closed {
                self.look();
            }
            for (offset, data) in requests.writes {
                self.write_config(offset, &data);
            }
            if requests.stop {
                self.stop();
                if requests.start.is_none() {
                    self.shared.has_stopped();
                }
            }
            if let Some(activation) = requests.start {
                self.start(activation);
            }
            if asks {
                self.serve();
            }
            if self.backend.is_none() && self.active.is_some() {
                self.resume();
            }
        }
    }

    /// Waits until there is something to do; whether the backend's connection is readable, and whether
    /// its own is.
    fn wait(&self) -> (bool, bool) {
        let descriptors = self.backend.as_ref().map(Backend::descriptors);
        let (socket, channel) = descriptors.map_or((-1, -1), |(s, c)| (s, c.unwrap_or(-1)));
        // Negative descriptors are ignored (poll(2)).
        let mut polled = [self.shared.wake.as_raw_fd(), socket, channel].map(poll::readable);
        let is_lost = self.backend.is_none() && self.active.is_some();
        // One that has failed has found nothing.
        let _ = poll::wait(&mut polled, is_lost.then_some(RETRY_INTERVAL));
        // Only clears it.
        let _ = self.shared.wake.read();
        let [_, closed, asks] = polled.map(|polled| polled.revents != 0);
        (closed, asks)
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let Some(backend) = &mut self.backend else { return };
        match backend.write_config(offset, data) {
            Ok(()) => self.read_config(false),
            Err(failure) if failure.is_refusal() => self.log.debug(format_args!("{failure}")),
            Err(failure) => self.lose(failure),
        }
    }

    /// Reads the backend's configuration, which `has_changed` if it says so.
    fn read_config(&mut self, has_changed: bool) {
        if !self.offer.is_backends {
            return;
        }
        let Some(backend) = &mut self.backend else { return };
        match backend.read_config(&self.options, self.offer.config.bytes.len()) {
            Ok(config) => self.take_config(config, self.active.as_ref(), has_changed),
            Err(failure) => self.lose(failure),
        }
    }

    /// Has the driver read this configuration from here on, and tells it if that is another or
    /// `has_changed`.
    fn take_config(&self, told: Config, active: Option<&Activation>, has_changed: bool) {
        // Its generation changes before it can be read (virtio 1.2, 4.1.4.3.1): a driver that has read a
        // part of the last one would take both for one.
        let mut config = lock(&self.shared.config);
        if let (true, Some(active)) = (config.update(told) || has_changed, active) {
            active.events.config_changed();
        }
    }

    /// Looks whether the backend wants its device reset.
    fn read_status(&mut self) {
        let (Some(backend), Some(active)) = (&mut self.backend, &self.active) else { return };
        match backend.needs_reset() {
            Ok(false) => {}
            Ok(true) if active.events.needs_reset() => {}
            Ok(true) => {
                self.log.warn(format_args!("the backend asks for a reset of the device"));
                active.events.fail();
            }
            Err(failure) => self.lose(failure),
        }
    }

    fn start(&mut self, activation: Activation) {
        (self.has_begun, self.inflight) = (false, None);
        match self.begin(&activation, &vec![0; activation.queues.len()]) {
            Ok(()) => {
                // A kick that came before the queues were enabled may have been taken for nothing.
                activation.queues.iter().for_each(kick);
                self.active = Some(activation);
            }
            // Nothing has been done with what the driver has set up: any kind may begin later.
            Err(failure @ Failure::Connect(_)) if matches!(self.target, Target::Path(..)) => {
                self.log.warn(format_args!("the backend {failure}; strait waits for it"));
                self.take_link_down(&activation);
                self.active = Some(activation);
            }
            Err(failure) => {
                self.log.warn(format_args!("the backend {failure}: the device does nothing"));
                activation.events.fail();
            }
        }
    }

    fn stop(&mut self) {
        let Some(activation) = self.active.take() else { return };
        let Some(backend) = &mut self.backend else { return };
        if let Err(failure) = backend.stop(&activation) {
            // It may still work on the queues; without a connection, it ends.
            self.backend = None;
            self.log.warn(format_args!("the backend {failure} while the guest reset its device"));
        }
    }

    /// The backend's own connection tells something that nobody asked for: its end.
    fn look(&mut self) {
        let Some(backend) = &self.backend else { return };
        let mut byte = 0u8;
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: there is room for one byte.
        let read = unsafe { libc::recv(backend.descriptors().0, (&raw mut byte).cast(), 1, flags) };
        match read {
            1.. => self.lose(Failure::Unasked),
            0 => self.lose(Failure::Closed("")),
            _ => match io::Error::last_os_error().kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => self.lose(Failure::Closed("")),
            },
        }
    }

    fn serve(&mut self) {
        if self.backend.as_mut().is_some_and(Backend::serve_channel) {
            self.read_config(true);
            self.read_status();
        }
    }

    /// The connection is over.
    fn lose(&mut self, why: Failure) {
        self.backend = None;
        let why = self.target.ending(why);
        let Some(active) = &self.active else {
            self.log.warn(format_args!("the backend {why}"));
            return;
        };
        if self.may_resume(active) {
            let next = match self.target {
                Target::Path(..) => "waits for",
                Target::Started(..) => "starts",
            };
            self.log.warn(format_args!("the backend {why}; strait {next} another"));
            self.take_link_down(active);
        } else {
            self.log.warn(format_args!("the backend {why}: the guest has to reset the device"));
            active.events.fail();
            self.active = None;
        }
    }

    /// Whether the driver of a network knows its link's state.
    fn has_link(&self) -> bool {
        let has_status = self.offer.features & 1 << VIRTIO_NET_F_STATUS != 0;
        self.options.kind.device.id == NET && has_status
    }

    /// Tells the driver of a network that its link is down.
    fn take_link_down(&self, active: &Activation) {
        if self.has_link() {
            lock(&self.shared.config).write(NET_STATUS, &[0; 2]);
            active.events.config_changed();
        }
    }

    /// Whether another backend can go on where this one ended.
    fn may_resume(&self, active: &Activation) -> bool {
        let is_idle = |queue: &VirtQueue| Indices::of(queue).is_some_and(Indices::is_idle);
        match self.options.kind.resumption {
            _ if self.inflight.is_some() => true,
            Resumption::InOrder => true,
            Resumption::BetweenRequests(events) => {
                let mut queues = active.queues.iter();
                queues.all(|queue| events == Some(queue.index()) || is_idle(queue))
            }
            Resumption::Never => false,
        }
    }

    /// Goes on with another backend, if there is one.
    fn resume(&mut self) {
        let Some(active) = self.active.take() else { return };
        let bases = active.queues.iter().map(|queue| match self.has_begun {
            true => Indices::of(queue).map(|index| index.used),
            false => Some(0),
        });
        let bases: Option<Vec<u16>> = bases.collect();
        let bases = bases.ok_or(Failure::Closed(""));
        match bases.and_then(|bases| self.begin(&active, &bases)) {
            Ok(()) => {
                self.log.warn(format_args!("there is a backend again"));
                for queue in &active.queues {
                    // What came meanwhile, and what the last one did without a word.
                    kick(queue);
                    // Fails only while as many signals are pending as the counter holds.
                    let _ = queue.call().write(1);
                }
            }
            Err(failure) if matches!(self.target, Target::Started(..)) => {
                let failure = self.target.ending(failure);
                self.log.warn(format_args!(
                    "another backend {failure}: the guest has to reset the device"
                ));
                active.events.fail();
                return;
            }
            Err(Failure::Connect(_)) => {}
            // It may have done requests before its end.
            Err(failure) if self.has_begun && !self.may_resume(&active) => {
                self.log.warn(format_args!(
                    "another backend {failure}: the guest has to reset the device"
                ));
                active.events.fail();
                return;
            }
            Err(failure) => self.log.warn(format_args!("another backend {failure}")),
        }
        self.active = Some(active);
    }

    /// Has the backend work on the queues, each from the index in `bases` on; another one if it was lost.
    /// There is none if that fails.
    fn begin(&mut self, active: &Activation, bases: &[u16]) -> Result<(), Failure> {
        let (mut backend, config) = match self.backend.take() {
            Some(backend) => (backend, None),
            None => self.reach().map(|(backend, config)| (backend, Some(config)))?,
        };
        self.has_begun = true;
        backend.start(active, bases, &mut self.inflight)?;
        self.backend = Some(backend);
        if let Some(config) = config {
            self.take_config(config, Some(active), false);
        }
        Ok(())
    }

    /// Another backend, which has to offer the same, and its configuration.
    fn reach(&mut self) -> Result<(Backend, Config), Failure> {
        let socket = self.target.reconnect()?;
        let (backend, offer) = Backend::open(socket, &self.watch, &self.options)?;
        if offer.features & self.offer.features != self.offer.features {
            return Err(Failure::Different("features"));
        }
        Ok((backend, offer.config))
    }
}

/// Has the backend look into a queue.
fn kick(queue: &VirtQueue) {
    // Fails only while as many signals are pending as the counter holds.
    let _ = queue.kick().write(1);
}

/// How long the thread may take to answer at most: for a backend, and then for the host itself.
pub(super) const PATIENCE: Duration = super::REPLY_TIMEOUT.saturating_mul(2);
