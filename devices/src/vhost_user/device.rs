//! A device of another process as the transport has it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::backend::Offer;
use super::error::{Failure, VhostUserError};
use super::options::Options;
use super::worker::{PATIENCE, Shared, Target, Worker};
use crate::answer::{self, NoAnswer};
use crate::sync::lock;
use crate::thread_kind::ThreadKind;
use crate::virtio::{self, Activation, Device, DeviceType};

/// Feature bits of virtio itself: all but those of a kind of device (virtio 1.2, 6).
const NOT_OF_DEVICES: u64 = ((1 << 26) - 1) << 24;

/// How long the end of a device waits for its thread.
const END: Duration = Duration::from_secs(1);

/// A virtio device whose queues another process works on.
pub struct VhostUserDevice {
    options: Arc<Options>,
    offer: Offer,
    shared: Arc<Shared>,
    /// Until the thread has it.
    worker: Option<Worker>,
    thread: Option<JoinHandle<()>>,
    /// When it was asked to stop.
    stopping: Option<Instant>,
}

impl VhostUserDevice {
    /// Connects to the backend and asks what it offers. Nothing is waited for once
    /// [strait is to end](crate::stop::is_requested).
    ///
    /// # Errors
    ///
    /// There is no backend, it is another user's, it doesn't answer in time, or it doesn't offer what
    /// such a device needs.
    #[cold]
    pub fn connect(target: Target, options: Options) -> Result<Self, VhostUserError> {
        let options = Arc::new(options);
        Self::open(target, options.clone()).map_err(|failure| VhostUserError {
            name: options.name.clone(),
            option: options.option.clone(),
            failure,
        })
    }

    fn open(target: Target, options: Arc<Options>) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::new()?);
        let (tell, told) = answer::expected();
        let theirs = (options.clone(), shared.clone());
        thread::Builder::new().name("vhost-user".into()).spawn(move || {
            let (options, shared) = theirs;
            tell.answer(Worker::connect(options, target, shared));
        })?;
        // The thread answers in time by itself, unless the host keeps it: it closes what the backend
        // sent, which may be files of any kind.
        let (worker, offer) = match told.wait(PATIENCE) {
            Ok(answer) => answer?,
            Err(NoAnswer::Late) => return Err(Failure::TimedOut("the first request")),
            Err(NoAnswer::Never) => return Err(Failure::Closed("")),
        };
        Ok(Self { options, offer, shared, worker: Some(worker), thread: None, stopping: None })
    }

    /// Starts the thread that has the connection from here on, unless it is.
    fn start_thread(&mut self) -> io::Result<()> {
        let Some(worker) = self.worker.take() else { return Ok(()) };
        worker.prepare()?;
        let thread = thread::Builder::new().name("vhost-user".into());
        self.thread = Some(thread.spawn(move || {
            ThreadKind::VhostUser.enter();
            worker.run();
        })?);
        Ok(())
    }

    /// Ends the connection, as if the backend had.
    #[cfg(test)]
    pub(super) fn end_backend(&self) {
        self.shared.end_backend();
    }

    /// What was known of it before.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

impl Device for VhostUserDevice {
    fn device_type(&self) -> DeviceType {
        self.options.kind.device
    }

    fn features(&self) -> u64 {
        self.offer.features & !NOT_OF_DEVICES & !self.options.kind.withheld()
    }

    fn ring_features(&self) -> u64 {
        self.offer.features & virtio::QUEUE_FEATURES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.options.kind.queue_sizes()
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.shared.config).read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if !self.offer.is_backends {
            return;
        }
        let is_for_backend = lock(&self.shared.config).write(offset, data);
        if let (true, Ok(offset)) = (is_for_backend, u32::try_from(offset)) {
            self.shared.write_config(offset, data);
        }
    }

    fn prepare(&mut self, _: &[&EventFd]) -> io::Result<()> {
        self.start_thread()
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.start_thread()?;
        self.stopping = None;
        self.shared.start(activation);
        Ok(())
    }

    fn stop(&mut self) {
        self.stopping.get_or_insert_with(Instant::now);
        self.shared.stop();
    }

    fn is_stopped(&mut self) -> bool {
        let is_late = self.stopping.is_some_and(|since| since.elapsed() > PATIENCE);
        is_late || !self.shared.is_active.load(Ordering::Acquire)
    }
}

impl Drop for VhostUserDevice {
    fn drop(&mut self) {
        self.shared.end();
        let Some(thread) = self.thread.take() else { return };
        // A backend that keeps it waiting doesn't keep the end of a run waiting: it ends with the
        // process.
        let since = Instant::now();
        while !thread.is_finished() && since.elapsed() < END {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}
