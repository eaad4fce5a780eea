//! The process that outlives an accident: it keeps what needs privileges or has to be put right, while
//! its child, the virtual machine monitor, has the guest and gives everything up.
//!
//! It binds devices to VFIO and gives them back, has the programs that serve devices, the terminal as it
//! was, the files of the statistics and of a report, and those of consoles' sockets; it accepts who controls
//! the machine. It takes one request
//! from its child, to connect again to a backend that was given; it reads statistics, and waits. There is one
//! only for a run that has any of these.

mod aftermath;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::stop;
use devices::vfio::fd_limit;

use crate::cli::{ConsoleKind, GdbAddress, RunOptions, SandboxMode};
use crate::commands::device::BindGuard;
use crate::control::{self, Accepted, Acceptor};
use crate::double_buffer::DoubleBuffer;
use crate::error::Error;
use crate::inherited_files;
use crate::junit::RunReport;
use crate::limits;
use crate::programs::{self, ChildProgram};
use crate::reconnection::Connector;
use crate::signals::Signals;
use crate::terminal::{Attributes, Terminal};
use crate::vhost_user::{self, Backends};

/// Descriptors that the supervisor has at most, and at most for each program, with those by which it binds
/// and gives back.
const DESCRIPTORS: u64 = 24;
const PER_PROGRAM: u64 = 6;

/// What a run leaves to its supervisor.
#[derive(Default)]
pub struct Resources {
    // Dropped in this order: programs end before devices are given back.
    programs: Vec<ChildProgram>,
    bound: Option<BindGuard>,
    terminal: Option<Attributes>,
    statistics: Option<Arc<DoubleBuffer>>,
    connectors: Vec<Connector>,
    acceptor: Option<Acceptor>,
    report: Option<Arc<RunReport>>,
    /// Given up when the file of statistics is opened: there may be no other descriptor left then.
    spare: Option<File>,
}

/// What the virtual machine monitor has of it.
#[derive(Default)]
pub struct VmmResources {
    /// What serves devices, or leads there.
    pub backends: Backends,
    /// Where statistics are left.
    pub statistics: Option<Arc<DoubleBuffer>>,
    /// Where output and the ending are left for a report.
    pub report: Option<Arc<RunReport>>,
    /// Who controls the machine from outside.
    pub control: Option<Accepted>,
}

/// Which of the two processes this is.
pub enum Process {
    /// The supervisor, whose child has ended, with its exit status.
    Supervisor(u8),
    /// The one that has the guest; the only one where no supervisor is needed.
    Vmm(VmmResources),
}

impl Resources {
    /// Acquires what these options ask for: binds devices, starts programs.
    ///
    /// # Errors
    ///
    /// A device can't be bound, or a program can't be started.
    pub fn acquire(options: &RunOptions) -> Result<(Self, VmmResources), Error> {
        inherited_files::close_on_exec(options);
        let (mut resources, mut for_vmm) = (Self::default(), VmmResources::default());
        if options.dry_run {
            return Ok((resources, for_vmm));
        }
        let programs = options.share.len().saturating_add(options.passt.len()) as u64;
        if options.bind || programs > 0 || options.stats.is_some() {
            // Giving back takes some, too.
            fd_limit::reserve(DESCRIPTORS.saturating_add(programs.saturating_mul(PER_PROGRAM)))?;
        }
        if let Some(path) = &options.junit {
            let report = RunReport::new(path)?;
            (resources.report, for_vmm.report) = (Some(report.clone()), Some(report));
        }
        if options.bind {
            resources.bound = Some(BindGuard::bind(&options.device_names(), options.force)?);
        }
        if !options.share.is_empty() || !options.passt.is_empty() {
            (for_vmm.backends.started, resources.programs) =
                vhost_user::start_all(options)?.into_iter().unzip();
        }
        if options.sandbox != SandboxMode::Off {
            (resources.connectors, for_vmm.backends.askers) =
                vhost_user::connectors(options)?.into_iter().unzip();
        }
        if let Some(path) = &options.control {
            let (acceptor, accepted) = control::listen(path)?;
            (resources.acceptor, for_vmm.control) = (Some(acceptor), Some(accepted));
        }
        let mut consoles = [&options.console, &options.virtio_console].into_iter();
        if consoles.any(|console| *console == ConsoleKind::Stdio) && Terminal::is_stdin() {
            resources.terminal = Attributes::of_stdin();
        }
        if options.stats.is_some() {
            let statistics = DoubleBuffer::new().map_err(|e| {
                Error::new(format!("there is no memory for statistics (--stats): {e}"))
            })?;
            let statistics = Arc::new(statistics);
            resources.spare = spare();
            (resources.statistics, for_vmm.statistics) =
                (Some(statistics.clone()), Some(statistics));
        }
        Ok((resources, for_vmm))
    }

    /// Whether there is anything that needs a process of its own.
    fn is_needed(&self, options: &RunOptions) -> bool {
        let mut consoles = [&options.console, &options.virtio_console].into_iter();
        let sockets = consoles.any(|console| matches!(console, ConsoleKind::Unix(_)));
        let gdb = options.gdb.as_ref().map(|gdb| &gdb.address);
        let sockets = sockets || matches!(gdb, Some(GdbAddress::Unix(_)));
        let bound = self.bound.as_ref().is_some_and(|bound| !bound.is_empty());
        let serves = !self.programs.is_empty() || !self.connectors.is_empty();
        let left = self.statistics.is_some() || self.report.is_some();
        let owns = bound || left || self.terminal.is_some() || self.acceptor.is_some();
        !options.dry_run && (serves || owns || sockets)
    }

    /// Splits the process where that is needed: the supervisor waits here for the end of its child, and puts
    /// right what that has left.
    ///
    /// # Errors
    ///
    /// The host has no more processes, or a signal asks for the end: the child wouldn't get it.
    pub fn supervise(
        self,
        options: &RunOptions,
        for_vmm: VmmResources,
        signals: &mut Signals,
    ) -> Result<Process, Error> {
        if !self.is_needed(options) {
            return Ok(Process::Vmm(for_vmm));
        }
        stop::check().map_err(|e| Error::chain(&e))?;
        // SAFETY: takes nothing, and can't fail.
        let parent = unsafe { libc::getpid() };
        // SAFETY: no other thread of this process exists that could have locked anything.
        match unsafe { libc::fork() } {
            0 => {
                end_with(parent);
                signals.supervised_by(parent.unsigned_abs());
                self.leave();
                Ok(Process::Vmm(for_vmm))
            }
            pid @ 1.. => {
                // The programs' connections are the child's.
                drop(for_vmm);
                inherited_files::close(options);
                self.terminal.iter().for_each(Attributes::restore_on_fatal_signals);
                let ended = programs::open_process(pid.cast_unsigned()).map_err(|e| {
                    // Before its devices are given back.
                    kill(pid);
                    no_process(options, &e)
                })?;
                let child = Child { pid, ended };
                Ok(Process::Supervisor(watch::run(self, &child, options, signals)))
            }
            _ => Err(no_process(options, &io::Error::last_os_error())),
        }
    }

    /// Leaves everything to the parent.
    fn leave(self) {
        let Self { programs, bound, .. } = self;
        programs.into_iter().for_each(ChildProgram::leave);
        bound.into_iter().for_each(BindGuard::leave);
    }
}

/// The process with the guest.
struct Child {
    pid: libc::pid_t,
    /// What is readable once it has ended.
    ended: OwnedFd,
}

/// A descriptor to be given up when another one is needed.
fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cold]
fn no_process(options: &RunOptions, e: &io::Error) -> Error {
    limits::check_process(options.cpus).err().unwrap_or_else(|| {
        Error::new(format!("the guest can't have a process of its own: {e}"))
            .help("ulimit -u, or pids.max of the control group")
    })
}

/// Kills a child, and waits for its end.
#[cold]
fn kill(child: libc::pid_t) {
    // SAFETY: takes numbers. The child isn't reaped, so the number is its own.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
}

/// Has this process killed when its parent ends.
fn end_with(parent: libc::pid_t) {
    let signal = libc::c_ulong::from(libc::SIGKILL.unsigned_abs());
    // SAFETY: takes numbers; a valid signal can't be refused.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) };
    // SAFETY: takes nothing. It may have ended before, and then there is nobody to tell.
    if unsafe { libc::getppid() } != parent {
        // SAFETY: ends this process.
        unsafe { libc::_exit(1) };
    }
}
