//! Accesses to the file that the queue's thread doesn't wait for (io_uring(7)).
//!
//! A completion signals the eventfd that the driver's notifications signal, too: the thread waits for
//! both by one read of it.

use std::io;
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};

use super::buffers::Buffers;
use super::request::Request;

/// How many accesses may be under way.
const ENTRIES: u32 = 128;

/// The only file of a ring.
const FILE: Fixed = Fixed(0);

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
    /// One whose completions signal this eventfd, and which reaches this file alone, by reading, writing
    /// and flushing: what it is asked passes by all filters of system calls.
    ///
    /// # Errors
    ///
    /// The kernel has no io_uring, or doesn't let this process have one, or it can't be restricted
    /// (before Linux 5.10).
    pub(super) fn new(eventfd: RawFd, file: RawFd) -> io::Result<Self> {
        let ring = restricted(ENTRIES, file, Some(eventfd))?;
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
    pub(super) fn probe(file: RawFd) -> io::Result<()> {
        restricted(1, file, None).map(|_| ())
    }

    /// Takes a job on, to be [submitted](Self::submit). It comes back if as many are under way as can
    /// be.
    pub(super) fn start(&mut self, job: Job) -> Result<(), Job> {
        let Some(index) = self.free.pop() else { return Err(job) };
        let (fd, parts) = (FILE, job.buffers.parts());
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

    /// Waits for all that is under way, and forgets it: it accesses guest RAM.
    pub(super) fn drain(&mut self) {
        while !self.is_idle() {
            if self.complete().is_none() && self.ring.submit_and_wait(1).is_err() {
                thread::sleep(PAUSE);
            }
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Makes a ring that can do no more than is needed (io_uring_register(2), `IORING_REGISTER_RESTRICTIONS`).
#[cold]
fn restricted(entries: u32, file: RawFd, eventfd: Option<RawFd>) -> io::Result<IoUring> {
    let ring: IoUring = IoUring::builder().setup_r_disabled().build(entries)?;
    let submitter = ring.submitter();
    submitter.register_files(&[file])?;
    if let Some(eventfd) = eventfd {
        submitter.register_eventfd(eventfd)?;
    }
    // Nothing else may be registered. A file is one of those that are, of which there is one.
    submitter.register_restrictions(&mut [
        Restriction::sqe_op(opcode::Readv::CODE),
        Restriction::sqe_op(opcode::Writev::CODE),
        Restriction::sqe_op(opcode::Fsync::CODE),
        Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
    ])?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

/// Whether the kernel may take later what it refused now (io_uring_enter(2)).
fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use io_uring::types::Fd;

    use super::*;

    /// What the kernel says of an entry.
    fn result(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
        // SAFETY: no entry of this test accesses memory.
        unsafe { ring.submission().push(entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        ring.completion().next().unwrap().result()
    }

    #[test]
    fn a_ring_reaches_one_file_by_what_a_disk_needs() {
        let file = File::open("/dev/null").unwrap();
        let Ok(mut ring) = restricted(4, file.as_raw_fd(), None) else { return };
        let flush = |fd| opcode::Fsync::new(fd).build();
        // /dev/null can't be flushed.
        assert_eq!(result(&mut ring, &flush(FILE)), -libc::EINVAL);
        assert_eq!(result(&mut ring, &flush(Fixed(1))), -libc::EBADF);
        let others = opcode::Fsync::new(Fd(file.as_raw_fd())).build();
        assert_eq!(result(&mut ring, &others), -libc::EACCES);
        let path = c"/etc/passwd".as_ptr();
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build();
        assert_eq!(result(&mut ring, &open), -libc::EACCES);
        let nothing = opcode::Nop::new().build().flags(squeue::Flags::FIXED_FILE);
        assert_eq!(result(&mut ring, &nothing), -libc::EACCES);
        let more = ring.submitter().register_files(&[file.as_raw_fd()]).unwrap_err();
        assert_eq!(more.raw_os_error(), Some(libc::EACCES));
    }
}
