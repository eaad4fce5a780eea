//! While the guest runs: hands signals on, writes statistics, and waits for the end.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use devices::poll;

use super::{Child, Resources, aftermath};
use crate::cli::RunOptions;
use crate::control::Acceptor;
use crate::programs::ChildProgram;
use crate::reconnection::Connector;
use crate::signals::{Arrived, Signals};
use crate::stats;
use crate::vhost_user;

/// The signals that a terminal sends to all of its foreground job, the child among them.
const OF_TERMINAL: [libc::c_int; 3] = [libc::SIGINT, libc::SIGQUIT, libc::SIGWINCH];

/// When a client of the control socket is accepted that couldn't be.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Watches over `child` until it ends, puts right what it has left, and answers the exit status.
pub(super) fn run(
    mut resources: Resources,
    child: &Child,
    options: &RunOptions,
    signals: &mut Signals,
) -> u8 {
    let mut written = 0;
    // What came before there was a child came here alone, also from a terminal.
    while let Some(signal) = signals.next_signal() {
        send(child, signal.number);
    }
    loop {
        wait(&resources, [signals.as_raw_fd(), child.ended.as_raw_fd()]);
        while let Some(signal) = signals.next_signal() {
            hand_on(child, signal);
        }
        let status = child.status();
        // What it has left before its end is there by now.
        resources.write_statistics(options, &mut written);
        if let Some(status) = status {
            return aftermath::settle(resources, status, options, written);
        }
        for (index, program) in resources.programs.iter_mut().enumerate() {
            program.tell();
            if let Err(error) = program.serve_restart(|| vhost_user::start(options, index)) {
                program.log().error(format_args!("{}", error.log_text()));
            }
        }
        resources.connectors.iter().for_each(Connector::serve);
        resources.acceptor.iter_mut().for_each(Acceptor::serve);
    }
}

/// Waits until something has happened, to these or to what is in `resources`.
fn wait(resources: &Resources, [signals, ended]: [RawFd; 2]) {
    let statistics = resources.statistics.as_ref().map_or(-1, |statistics| statistics.as_raw_fd());
    let fds = [signals, ended, statistics].into_iter();
    let programs = resources.programs.iter().flat_map(ChildProgram::descriptors);
    // What is negative is ignored (poll(2)).
    let connectors = resources.connectors.iter().map(AsRawFd::as_raw_fd);
    let is_short = resources.acceptor.as_ref().is_some_and(Acceptor::is_short);
    let acceptor = resources.acceptor.iter().filter(|_| !is_short).map(AsRawFd::as_raw_fd);
    let fds = fds.chain(programs).chain(connectors).chain(acceptor);
    let mut entries: Vec<_> = fds.map(poll::readable).collect();
    // One that has failed has found nothing.
    let _ = poll::wait(&mut entries, is_short.then_some(RETRY_INTERVAL));
}

/// Sends the child a signal that came here alone.
fn hand_on(child: &Child, Arrived { number, by_kernel, .. }: Arrived) {
    if !(by_kernel && OF_TERMINAL.contains(&number)) {
        send(child, number);
    }
}

fn send(child: &Child, number: libc::c_int) {
    // SAFETY: takes numbers. The child isn't reaped, so the number is its own; the kernel refuses it
    // only where it has ended.
    unsafe { libc::kill(child.pid, number) };
}

impl Child {
    /// Its status, once it has ended.
    fn status(&self) -> Option<ExitStatus> {
        let mut status = MaybeUninit::uninit();
        // SAFETY: waitpid fills the status where it answers the child's number.
        let ended = unsafe { libc::waitpid(self.pid, status.as_mut_ptr(), libc::WNOHANG) };
        // SAFETY: it is filled.
        (ended == self.pid).then(|| ExitStatus::from_raw(unsafe { status.assume_init() }))
    }
}

impl Resources {
    /// Writes the statistics that the child has left since those with the number `written`.
    fn write_statistics(&mut self, options: &RunOptions, written: &mut u64) {
        let Some((statistics, path)) = self.statistics.as_ref().zip(options.stats.as_ref()) else {
            return;
        };
        let Some((number, text)) = statistics.newest(*written) else { return };
        self.spare = None;
        // The first are those before the guest runs.
        if number > aftermath::FIRST
            && let Err(error) = stats::write_file(path, &text)
        {
            // Why the guest ended matters more.
            log::error!("{}", error.log_text());
        }
        self.spare = super::spare();
        *written = number;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use vmm_sys_util::eventfd::EventFd;
    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::control;

    #[test]
    fn clients_whom_a_short_host_keeps_waiting_keep_no_processor_busy() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("control");
        let (mut acceptor, accepted) = control::listen(&path).unwrap();
        let nothing = EventFd::new(libc::EFD_CLOEXEC).unwrap();
        let quiet = [nothing.as_raw_fd(); 2];
        let _client = UnixStream::connect(&path).unwrap();
        acceptor.without_descriptors(Acceptor::serve);
        assert!(acceptor.is_short() && accepted.next().is_none());
        let mut resources = Resources { acceptor: Some(acceptor), ..Resources::default() };
        let begun = Instant::now();
        wait(&resources, quiet);
        assert!(begun.elapsed() >= RETRY_INTERVAL);
        // Then it is accepted, and the next one at once: the wait would last for ever.
        resources.acceptor.iter_mut().for_each(Acceptor::serve);
        assert!(accepted.next().is_some());
        let _next = UnixStream::connect(&path).unwrap();
        assert!(!resources.acceptor.as_ref().is_some_and(Acceptor::is_short));
        wait(&resources, quiet);
        resources.acceptor.iter_mut().for_each(Acceptor::serve);
        assert!(accepted.next().is_some());
    }
}
