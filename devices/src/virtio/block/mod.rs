//! Disks (virtio 1.2, 5.2), made of raw images and of block devices of the host.

mod buffers;
mod config;
mod error;
mod handler;
mod image;
mod options;
mod request;
mod ring;
mod snapshot;
mod storage;
#[cfg(test)]
mod tests;
mod topology;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vmm_sys_util::eventfd::EventFd;

pub use error::{ImageError, ImageFault};
pub use image::Image;
pub use options::{Access, Aio, BlockOptions, MAX_QUEUES};

use self::handler::{RequestHandler, Shared};
use self::request::{Limits, id};
use self::ring::Ring;
use self::storage::Storage;
use super::{Activation, Device, DeviceEvents, DeviceType, QueueThreads, VirtQueue};
use crate::ratelimit::LogLimit;
use crate::thread_kind::ThreadKind;

/// A mass storage controller of no other subclass (PCI Code and ID Assignment Specification, 1.2).
const CLASS: u32 = 0x01_80_00;

/// A disk.
pub struct Block {
    name: String,
    queues: u16,
    features: u64,
    config: Vec<u8>,
    shared: Arc<Shared>,
    /// The driver knows no flush.
    through: bool,
    events: Option<Arc<DeviceEvents>>,
    threads: QueueThreads,
}

impl Block {
    /// A disk of an image, called `name` in the log and, up to 8 bytes of it, among the threads.
    ///
    /// # Errors
    ///
    /// The host has no place for a snapshot, or no io_uring and all is to be done by it.
    pub fn new(
        name: String,
        image: Arc<Image>,
        options: &BlockOptions,
        queues: u16,
    ) -> Result<Self, ImageError> {
        let failed =
            |fault| ImageError { path: image.path().into(), access: image.access(), fault };
        if options.aio == Aio::IoUring {
            Ring::probe(image.fd()).map_err(|e| failed(ImageFault::IoUring(e)))?;
        }
        let features = config::features(&image);
        let config = config::config(&image, queues).to_vec();
        let limits = Limits {
            size: image.size(),
            block: u64::from(image.topology().block),
            read_only: image.access().read_only,
        };
        let storage = Storage::new(image.clone()).map_err(|e| failed(ImageFault::Snapshot(e)))?;
        let id = id(options.serial.as_deref().unwrap_or_default());
        let log = Arc::new(LogLimit::named(name.clone()));
        let (aio, rings) = (options.aio, Default::default());
        let shared = Arc::new(Shared { storage, limits, id, aio, rings, log });
        let (through, events) = Default::default();
        let threads = QueueThreads::new(ThreadKind::Block);
        Ok(Self { name, queues, features, config, shared, through, events, threads })
    }

    /// What works on a queue, without a thread.
    #[cfg(feature = "fuzzing")]
    pub fn handler(&self) -> Box<dyn super::QueueHandler> {
        Box::new(RequestHandler::new(self.shared.clone(), 0, self.through))
    }

    /// What the thread of a queue is called.
    fn thread_name(&self, queue: u16) -> String {
        format!("{:.8}-q{queue}", self.name)
    }
}

impl Device for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType { id: u16::try_from(VIRTIO_ID_BLOCK).unwrap_or_default(), class: CLASS }
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![config::QUEUE_SIZE; usize::from(self.queues)]
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config.iter().skip(from)) {
            *to = *from;
        }
    }

    fn prepare(&mut self, kicks: &[&EventFd]) -> io::Result<()> {
        self.shared.make_rings(kicks);
        let queues = 0..self.queues;
        queues.into_iter().try_for_each(|queue| {
            let name = self.thread_name(queue);
            self.threads.prepare(queue, &name)
        })
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.through = activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        self.events = Some(activation.events);
        activation.queues.into_iter().try_for_each(|queue| self.activate_queue(queue))
    }

    fn threads(&mut self) -> Option<&mut QueueThreads> {
        Some(&mut self.threads)
    }

    fn has_queue_reset(&self) -> bool {
        true
    }

    fn activate_queue(&mut self, queue: VirtQueue) -> io::Result<()> {
        let events = self.events.clone().ok_or(io::ErrorKind::InvalidInput)?;
        let (index, log) = (queue.index(), self.shared.log.clone());
        let name = self.thread_name(index);
        let handler = RequestHandler::new(self.shared.clone(), index, self.through);
        self.threads.start(&name, queue, handler, events, log)
    }
}
