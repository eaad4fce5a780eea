//! Accesses to the file that the queue's thread doesn't wait for (io_uring(7)).
//!
//! A completion signals the eventfd that the driver's notifications signal, too: the thread waits for
//! both by one read of it.

use std::io;
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::buffers::Buffers;
use super::request::Request;

/// How many accesses may be under way.
const ENTRIES: u32 = 128;

/// How often a submission is tried for which the kernel has no memory at the moment.
const TRIES: u32 = 100;

/// The pause between.
const PAUSE: Duration = Duration::from_millis(1);

/// An io_uring with what is under way in it.
pub(super) struct Ring {
    ring: IoUring,
    jobs: Vec<Option<Job>>,
    /// Indices of `jobs` that are free.
    free: Vec<usize>,
}

/// An access.
#[derive(Debug)]
pub(super) struct Job {
    /// The request that it is for.
    pub(super) request: Request,
    /// What of its buffers isn't done.
    pub(super) buffers: Buffers,
    /// What is done.
    pub(super) access: Access,
}

/// What is done with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read from this offset on.
    Read(u64),
    /// Write from this offset on, durably if so.
    Write(u64, bool),
    /// Make what was written durable.
    Flush,
}

impl Access {
    /// What it is and where, for a message.
    pub(super) fn describe(self) -> (&'static str, u64) {
        match self {
            Self::Read(offset) => ("reading", offset),
            Self::Write(offset, _) => ("writing", offset),
            Self::Flush => ("flushing", 0),
        }
    }
}

impl Ring {
    /// One whose completions signal this eventfd.
    ///
    /// # Errors
    ///
    /// The kernel has no io_uring, or doesn't let this process have one.
    pub(super) fn new(eventfd: RawFd) -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        ring.submitter().register_eventfd(eventfd)?;
        let entries = ENTRIES as usize;
        let jobs = (0..entries).map(|_| None).collect();
        Ok(Self { ring, jobs, free: (0..entries).collect() })
    }

    /// Whether there can be one.
    ///
    /// # Errors
    ///
    /// Why there can't.
    #[cold]
    pub(super) fn probe() -> io::Result<()> {
        IoUring::new(1).map(|_| ())
    }

    /// Takes a job on, to be [submitted](Self::submit). It comes back if as many are under way as can
    /// be.
    pub(super) fn start(&mut self, fd: RawFd, job: Job) -> Result<(), Job> {
        let Some(index) = self.free.pop() else { return Err(job) };
        let (fd, parts) = (Fd(fd), job.buffers.parts());
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let entry = match job.access {
            Access::Read(offset) => {
                opcode::Readv::new(fd, parts.as_ptr(), count).offset(offset).build()
            }
            Access::Write(offset, through) => opcode::Writev::new(fd, parts.as_ptr(), count)
                .offset(offset)
                .rw_flags(if through { libc::RWF_DSYNC } else { 0 })
                .build(),
            Access::Flush => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(index as u64);
        if let Err(job) = self.push(&entry, index, job) {
            self.free.push(index);
            return Err(job);
        }
        Ok(())
    }

    fn push(&mut self, entry: &squeue::Entry, index: usize, job: Job) -> Result<(), Job> {
        let Some(slot) = self.jobs.get_mut(index) else { return Err(job) };
        // SAFETY: the parts are guest RAM, which stays mapped until the access is over: `drop` waits for
        // it, and the thread drops this before the queue that has the RAM. Their array belongs to the
        // job, whose vector stays where it is until the completion takes the job out.
        match unsafe { self.ring.submission().push(entry) } {
            Ok(()) => {
                *slot = Some(job);
                Ok(())
            }
            Err(_) => Err(job),
        }
    }

    /// Hands all that was started to the kernel.
    ///
    /// # Errors
    ///
    /// It has no memory for it, for a while now.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        for _ in 0..TRIES {
            if self.ring.submission().is_empty() {
                return Ok(());
            }
            match self.ring.submit() {
                Ok(_) => (),
                Err(e) if is_temporary(&e) => thread::sleep(PAUSE),
                Err(e) => return Err(e),
            }
        }
        if self.ring.submission().is_empty() {
            Ok(())
        } else {
            Err(io::ErrorKind::OutOfMemory.into())
        }
    }

    /// The next access that is over, with what the kernel says of it.
    pub(super) fn complete(&mut self) -> Option<(Job, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let index = usize::try_from(entry.user_data()).ok()?;
        let job = self.jobs.get_mut(index)?.take()?;
        self.free.push(index);
        let result = entry.result();
        let result = usize::try_from(result)
            .map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()));
        Some((job, result))
    }

    /// Whether nothing is under way.
    fn is_idle(&self) -> bool {
        self.free.len() == self.jobs.len()
    }
}

impl Drop for Ring {
    /// Waits for all that is under way: it accesses guest RAM.
    fn drop(&mut self) {
        while !self.is_idle() {
            if self.complete().is_none() && self.ring.submit_and_wait(1).is_err() {
                thread::sleep(PAUSE);
            }
        }
    }
}

/// Whether the kernel may take later what it refused now (io_uring_enter(2)).
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR))
}
