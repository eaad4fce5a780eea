//! The half of a disk that works on a queue.
//!
//! What is in the host's page cache is read at once, by the queue's own thread: no other way takes fewer
//! instructions. What isn't, and what has to reach the disk, is left to io_uring, so that requests behind
//! it don't wait.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock};

use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::buffers::Buffers;
use super::options::Aio;
use super::request::{Limits, Operation, Request, Segment};
use super::ring::{Access, Job, Ring};
use super::storage::{Direction, Storage, StorageError, transfer};
use crate::ratelimit::LogLimit;
use crate::sync::lock;
use crate::virtio::{Chain, QueueError, QueueHandler, VirtQueue};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

/// The driver is told of requests that are done once they had this many bytes: it can use the first
/// ones while the others are worked on.
const NOTIFY_AFTER: u64 = 256 << 10;

/// What a disk's queues share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The file.
    pub(super) storage: Storage,
    /// What a driver may ask for.
    pub(super) limits: Limits,
    /// What GET_ID answers.
    pub(super) id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    /// How accesses are made.
    pub(super) aio: Aio,
    /// Rings of the queues that nothing uses at the moment, once they are made.
    pub(super) rings: OnceLock<Vec<Mutex<Option<Box<Ring>>>>>,
    /// For failures.
    pub(super) log: Arc<LogLimit>,
}

impl Shared {
    /// Whether accesses may be left to io_uring.
    fn uses_rings(&self) -> bool {
        match self.aio {
            Aio::Threads => false,
            _ if !self.storage.is_plain() => false,
            // Nothing takes time there.
            Aio::Auto => !self.storage.image().is_in_memory(),
            Aio::IoUring => true,
        }
    }

    /// Makes the rings of queues with these notifications.
    pub(super) fn make_rings(&self, kicks: &[&EventFd]) {
        if self.uses_rings() {
            let ring = |kick: &&EventFd| Mutex::new(self.make_ring(kick).map(Box::new));
            let _ = self.rings.set(kicks.iter().map(ring).collect());
        }
    }

    fn make_ring(&self, kick: &EventFd) -> Option<Ring> {
        let image = self.storage.image();
        let made = Ring::new(kick.as_raw_fd(), image.fd());
        made.inspect_err(|e| log::info!("{}: no io_uring ({e})", image.path().display())).ok()
    }

    /// The ring of a queue, if it is made, and nothing has it.
    fn take_ring(&self, queue: u16) -> Option<Box<Ring>> {
        let ring = self.rings.get()?.get(usize::from(queue))?;
        lock(ring).take()
    }
}

/// Works on the requests of a queue.
pub(super) struct RequestHandler {
    shared: Arc<Shared>,
    /// The queue's number.
    queue: u16,
    /// The driver knows no flush: what it is told to be written is durable.
    through: bool,
    /// Reading only what is cached is possible.
    cached_reads: bool,
    ring: RingState,
    chain: Chain,
    buffers: Buffers,
    /// Bytes of requests that the driver wasn't told of.
    untold: u64,
}

enum RingState {
    /// All is done by this thread.
    Never,
    /// It is made when it is needed: the queues' weren't.
    Unmade,
    Made(Box<Ring>),
}

/// What became of a request.
enum Outcome {
    /// It is done, with so many bytes written into its buffers before the status.
    Done(u32),
    /// It is under way.
    Started,
    /// It failed.
    Failed,
    /// It is nothing that a disk does.
    Unsupported,
}

impl RequestHandler {
    /// For one of a disk's queues.
    pub(super) fn new(shared: Arc<Shared>, queue: u16, through: bool) -> Self {
        let image = shared.storage.image();
        let ring = match shared.take_ring(queue) {
            Some(ring) => RingState::Made(ring),
            None if shared.uses_rings() && shared.rings.get().is_none() => RingState::Unmade,
            None => RingState::Never,
        };
        let cached_reads = shared.aio == Aio::Auto && !image.access().direct;
        let (chain, buffers, untold) = Default::default();
        Self { shared, queue, through, cached_reads, ring, chain, buffers, untold }
    }

    /// What it shares with the disk's other queues.
    #[cfg(test)]
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether it has a ring.
    #[cfg(test)]
    pub(super) fn has_ring(&self) -> bool {
        matches!(self.ring, RingState::Made(_))
    }

    fn take_one(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        let limits = self.shared.limits;
        let request = Request::parse(&self.chain, queue.ram(), &mut self.buffers, limits);
        let request = request.map_err(|why| queue.broken(self.chain.head(), why))?;
        let bytes = self.buffers.left();
        match self.serve(&request, queue) {
            Outcome::Started => Ok(()),
            outcome => {
                self.untold = self.untold.saturating_add(bytes.max(1));
                self.answer(queue, &request, &outcome)
            }
        }
    }

    /// Does what a request asks for, or begins to.
    fn serve(&mut self, request: &Request, queue: &VirtQueue) -> Outcome {
        match &request.operation {
            Operation::Read { offset, len } => self.read(request, (*offset, *len), queue),
            Operation::Write { offset } => self.write(request, *offset, queue),
            Operation::Flush => self.flush(request, queue),
            Operation::GetId => {
                let id = &self.shared.id;
                let len = self.buffers.left().min(id.len() as u64);
                // SAFETY: the queue has guest RAM mapped.
                unsafe { self.buffers.write(id) };
                Outcome::Done(u32::try_from(len).unwrap_or_default())
            }
            Operation::Discard(segments) => self.each("discarding", segments, Storage::discard),
            Operation::WriteZeroes(segments) => self.each("zeroing", segments, Storage::zero),
            Operation::Unsupported => Outcome::Unsupported,
            Operation::Invalid => Outcome::Failed,
        }
    }

    fn read(&mut self, request: &Request, (offset, len): (u64, u32), queue: &VirtQueue) -> Outcome {
        let mut at = offset;
        if self.may_wait() {
            match self.read_cached(&mut at) {
                Ok(true) => return Outcome::Done(len),
                Ok(false) => (),
                Err(e) => return self.failed("reading", at, &e),
            }
            if self.start(request, Access::Read(at), queue) {
                return Outcome::Started;
            }
        }
        match self.shared.storage.read(at, &mut self.buffers) {
            Ok(()) => Outcome::Done(len),
            Err(e) => self.failed("reading", at, &e),
        }
    }

    /// Reads what of it the host has in its page cache; whether that was all.
    fn read_cached(&mut self, at: &mut u64) -> Result<bool, StorageError> {
        let fd = self.shared.storage.image().fd();
        while self.cached_reads && self.buffers.left() > 0 {
            let parts = self.buffers.parts();
            match transfer(Direction::Read, fd, *at, parts, libc::RWF_NOWAIT) {
                Ok(0) => return Err(StorageError::Shrunk),
                Ok(count) => {
                    self.buffers.advance(count);
                    *at = at.saturating_add(count as u64);
                }
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => return Ok(false),
                // The kernel or the file system doesn't know: never again.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    self.cached_reads = false;
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(self.buffers.left() == 0)
    }

    fn write(&mut self, request: &Request, offset: u64, queue: &VirtQueue) -> Outcome {
        let image = self.shared.storage.image();
        // What goes to the page cache has to wait for nothing, as a rule.
        let waits = image.access().direct || self.through || self.shared.aio == Aio::IoUring;
        if waits
            && self.may_wait()
            && self.start(request, Access::Write(offset, self.through), queue)
        {
            return Outcome::Started;
        }
        match self.shared.storage.write(offset, &mut self.buffers, self.through) {
            Ok(()) => Outcome::Done(0),
            Err(e) => self.failed("writing", offset, &e),
        }
    }

    fn flush(&mut self, request: &Request, queue: &VirtQueue) -> Outcome {
        if self.may_wait() {
            if let Err(e) = self.shared.storage.check_size() {
                return self.failed("flushing", 0, &e);
            }
            self.buffers.clear();
            if self.start(request, Access::Flush, queue) {
                return Outcome::Started;
            }
        }
        match self.shared.storage.flush() {
            Ok(()) => Outcome::Done(0),
            Err(e) => self.failed("flushing", 0, &e),
        }
    }

    fn each(
        &self,
        what: &str,
        segments: &[Segment],
        act: fn(&Storage, Segment) -> Result<(), StorageError>,
    ) -> Outcome {
        for segment in segments {
            if let Err(e) = act(&self.shared.storage, *segment) {
                return self.failed(what, segment.offset, &e);
            }
        }
        if self.through
            && let Err(e) = self.shared.storage.flush()
        {
            return self.failed(what, 0, &e);
        }
        Outcome::Done(0)
    }

    /// Whether an access may be left to io_uring.
    fn may_wait(&self) -> bool {
        !matches!(self.ring, RingState::Never)
    }

    /// Begins an access by io_uring, with the buffers; `false` if this thread has to make it.
    fn start(&mut self, request: &Request, access: Access, queue: &VirtQueue) -> bool {
        if let RingState::Unmade = self.ring {
            let made = self.shared.make_ring(queue.kick());
            self.ring = made.map_or(RingState::Never, |ring| RingState::Made(Box::new(ring)));
        }
        let RingState::Made(ring) = &mut self.ring else { return false };
        let request = request.clone();
        let buffers = std::mem::take(&mut self.buffers);
        match ring.start(Job { request, buffers, access }) {
            Ok(()) => true,
            Err(job) => {
                self.buffers = job.buffers;
                false
            }
        }
    }

    /// Answers what io_uring has done.
    fn complete(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        loop {
            let RingState::Made(ring) = &mut self.ring else { return Ok(()) };
            let Some((mut job, result)) = ring.complete() else { return Ok(()) };
            let bytes = job.buffers.left().max(1);
            let outcome = match self.finish(&mut job, result) {
                Ok(written) => Outcome::Done(written),
                Err((what, offset, e)) => self.failed(what, offset, &e),
            };
            self.untold = self.untold.saturating_add(bytes);
            self.answer(queue, &job.request, &outcome)?;
            // Its memory is used again.
            if self.buffers.is_unused() {
                self.buffers = job.buffers;
            }
        }
    }

    /// Ends an access: the rest, if the kernel did only a part of it, is done here.
    pub(super) fn finish(
        &self,
        job: &mut Job,
        result: io::Result<usize>,
    ) -> Result<u32, (&'static str, u64, StorageError)> {
        let storage = &self.shared.storage;
        let (done, is_made) = match result {
            Ok(done) => (done, true),
            // Once more, here.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => (0, false),
            Err(e) if storage.is_misaligned(&e, &job.buffers) => (0, false),
            Err(e) => {
                let (what, offset) = job.access.describe();
                return Err((what, offset, e.into()));
            }
        };
        job.buffers.advance(done);
        let rest = |offset: u64| offset.saturating_add(done as u64);
        let (what, offset) = job.access.describe();
        let result = match job.access {
            Access::Read(offset) => storage.read(rest(offset), &mut job.buffers),
            Access::Write(offset, through) => {
                storage.write(rest(offset), &mut job.buffers, through)
            }
            Access::Flush if is_made => Ok(()),
            Access::Flush => storage.flush(),
        };
        result.map_err(|e| (what, offset, e))?;
        Ok(match job.request.operation {
            Operation::Read { len, .. } => len,
            _ => 0,
        })
    }

    /// Gives a request back.
    fn answer(
        &mut self,
        queue: &mut VirtQueue,
        request: &Request,
        outcome: &Outcome,
    ) -> Result<(), QueueError> {
        let (status, written) = match outcome {
            Outcome::Done(written) => (VIRTIO_BLK_S_OK, *written),
            Outcome::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
            Outcome::Failed | Outcome::Started => (VIRTIO_BLK_S_IOERR, 0),
        };
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        if !queue.ram().write_byte(request.status, status) {
            let stored = queue.ram().write_obj(status, request.status);
            stored.map_err(|_| queue.broken(request.head, "outside guest RAM"))?;
        }
        queue.push(request.head, written.saturating_add(1))?;
        if self.untold >= NOTIFY_AFTER {
            self.tell(queue)?;
        }
        Ok(())
    }

    fn tell(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        if self.untold > 0 {
            self.untold = 0;
            queue.notify()?;
        }
        Ok(())
    }

    /// Tells the log of a failure; the driver gets an I/O error.
    #[cold]
    fn failed(&self, what: &str, offset: u64, error: &StorageError) -> Outcome {
        let path = self.shared.storage.image().path().display();
        self.shared.log.warn(format_args!("{what} {path} at byte {offset} failed: {error}"));
        Outcome::Failed
    }
}

impl QueueHandler for RequestHandler {
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        self.complete(queue)?;
        while queue.pop(&mut self.chain)? {
            self.take_one(queue)?;
        }
        self.tell(queue)?;
        if let RingState::Made(ring) = &mut self.ring {
            let submitted = ring.submit();
            submitted.map_err(|source| QueueError::Io { queue: queue.index(), source })?;
        }
        Ok(())
    }

    fn stop(&mut self) {
        // Waits for what is under way.
        if let RingState::Made(mut ring) = std::mem::replace(&mut self.ring, RingState::Never) {
            ring.drain();
            let rings = self.shared.rings.get();
            if let Some(place) = rings.and_then(|rings| rings.get(usize::from(self.queue))) {
                *lock(place) = Some(ring);
            }
        }
    }
}
