//! A network's queues on which the kernel works: vhost-net.

use std::io;
use std::sync::Arc;

use super::super::device::Activation;
use super::super::device_events::DeviceEvents;
use super::super::queue::VirtQueue;
use super::super::vhost::{Notice, Vhost, VhostError, Watch};
use super::QUEUE_SIZES;
use super::link::{LinkChanges, LinkWatch};
use super::port::Port;
use crate::ratelimit::LogLimit;

const VHOST_NET: &str = "/dev/vhost-net";

/// The kernel's device, and the tap that it is to work with.
pub(super) struct Kernel {
    vhost: Vhost,
    features: u64,
    port: Arc<Port>,
    /// What tells that the tap is deleted, which vhost-net doesn't.
    changes: Option<Arc<LinkChanges>>,
    /// Where the kernel signals broken rings, and what waits for that.
    watch: Watch,
    /// What the driver is told by, while the kernel works.
    events: Option<Arc<DeviceEvents>>,
}

impl Kernel {
    /// Opens vhost-net for this tap, and asks what it can do.
    pub(super) fn open(port: Arc<Port>) -> Result<Self, VhostError> {
        let vhost = Vhost::open(VHOST_NET)?;
        let features = vhost.features()?;
        let changes = LinkChanges::open()
            .inspect_err(|error| log::info!("interfaces that are deleted go unnoticed: {error}"));
        let watch = Watch::new("net-watch");
        Ok(Self { vhost, features, port, changes: changes.ok().map(Arc::new), watch, events: None })
    }

    /// The features that it has, those of rings among them.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// Makes what waits for the kernel's word.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        self.watch.prepare()
    }

    /// Has the kernel work on the queues.
    pub(super) fn activate(
        &mut self,
        activation: &Activation,
        log: Arc<LogLimit>,
    ) -> io::Result<()> {
        let errors = self.watch.errors()?;
        let features = activation.features & self.features;
        let failed = io::Error::other::<VhostError>;
        let count = QUEUE_SIZES.len();
        self.vhost.set_up(features, activation, count, errors).map_err(failed)?;
        let events = activation.events.clone();
        let link = |changes: &Arc<LinkChanges>| -> Box<dyn Notice> {
            Box::new(LinkWatch::new(changes.clone(), self.port.clone(), events.clone()))
        };
        let notice = self.changes.as_ref().map(link);
        self.watch.start(events.clone(), log, notice)?;
        let events = self.events.insert(events);
        let mut queues = activation.queues.iter();
        queues
            .try_for_each(|queue| work_on(queue.index(), events, &self.vhost, &self.port))
            .inspect_err(|_| self.stop())
    }

    /// Has the kernel work on a queue that was reset.
    pub(super) fn activate_queue(&mut self, queue: &VirtQueue) -> io::Result<()> {
        let events = self.events.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
        let (index, errors) = (usize::from(queue.index()), self.watch.errors()?);
        self.vhost.set_up_ring(index, queue, errors).map_err(io::Error::other)?;
        work_on(queue.index(), events, &self.vhost, &self.port)
    }

    /// Has the kernel stop working on a queue; it has when this returns.
    pub(super) fn stop_queue(&self, queue: u16) {
        if self.events.is_some() {
            // It can't fail for a device that was set up.
            let _ = self.vhost.set_tap(queue.into(), None);
        }
    }

    /// Has the kernel stop; it has when this returns.
    pub(super) fn stop(&self) {
        (0..).zip(QUEUE_SIZES).for_each(|(queue, _)| self.stop_queue(queue));
        self.watch.stop();
    }

    /// Whether nothing waits for what it tells any more.
    pub(super) fn is_stopped(&mut self) -> bool {
        if self.watch.is_stopped() {
            self.events = None;
        }
        self.events.is_none()
    }
}

/// Has the kernel work on a queue; on none whose tap has been deleted.
fn work_on(queue: u16, events: &DeviceEvents, vhost: &Vhost, port: &Port) -> io::Result<()> {
    if port.look(events) {
        vhost.set_tap(queue.into(), Some(port.file())).map_err(io::Error::other)?;
    }
    Ok(())
}
