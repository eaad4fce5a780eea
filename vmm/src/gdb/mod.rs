//! `--gdb`: a debugger connects by GDB's remote protocol, and has the guest's vCPUs as threads.
//!
//! A thread of its own serves one GDB after the other. While one is connected it stops the vCPUs at a
//! [gate](Gate), reads and writes their registers by a descriptor of its own, and RAM by the mapping that
//! strait has. However its client goes, the guest then has no breakpoints any more, and runs.

mod client;
mod gate;
mod guest;
mod listener;
mod session;
#[cfg(any(test, feature = "fuzzing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod wait;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::ratelimit::LogLimit;

use self::client::Client;
use self::session::End;
use crate::error::Error;
use crate::sandbox::seccomp;

pub use self::gate::{Gate, Passage};
pub use self::guest::{Guest, Topic};
pub use self::listener::Listener;

/// How long the run has to end before it is told again to.
const KILL_INTERVAL: Duration = Duration::from_millis(100);

/// When a debugger is accepted that couldn't be.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The debugger's thread.
pub struct Debugger {
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

impl Debugger {
    /// Starts the thread. `kill` ends the run.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn start(
        listener: Listener,
        guest: Guest,
        kill: impl Fn() + Send + 'static,
    ) -> Result<Self, Error> {
        let gate = guest.gate().clone();
        let thread = thread::Builder::new().name("gdb".into()).spawn(move || {
            seccomp::Kind::Gdb.enter();
            serve(&listener, guest, &kill);
        });
        let thread =
            thread.map_err(|e| Error::new(format!("--gdb: no thread can be started: {e}")))?;
        Ok(Self { gate, thread: Some(thread) })
    }

    /// Ends it, and tells its client this exit status of the run. Before vCPUs' threads are waited for.
    pub fn end(mut self, exit_status: u8) {
        self.stop(exit_status);
    }

    fn stop(&mut self, exit_status: u8) {
        self.gate.end(exit_status);
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has ended the process already.
            let _ = thread.join();
        }
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        self.stop(1);
    }
}

/// Serves one client after the other until the run is over.
fn serve(listener: &Listener, mut guest: Guest, kill: &impl Fn()) {
    let gate = guest.gate().clone();
    let log = LogLimit::new("--gdb");
    while gate.exit_status().is_none() {
        let fds = [listener.as_raw_fd(), gate.event().as_raw_fd()];
        let [comes, _] = wait::until_readable(fds, None);
        if !comes {
            // Of a vCPU that had stopped for a client that is gone, if there is one.
            let _ = gate.event().read();
            continue;
        }
        let client = match listener.accept() {
            Ok(Some(client)) => client,
            Ok(None) => continue,
            // The host is short of something, or the network has an error of this connection (accept(2)).
            Err(e) => {
                log.warn(format_args!("a debugger can't connect, it is tried again: {e}"));
                wait::until_readable([gate.event().as_raw_fd()], Some(RETRY_INTERVAL));
                // Only clears it, if there is one.
                let _ = gate.event().read();
                continue;
            }
        };
        log::info!("a debugger has connected");
        match session::run(&mut guest, Client::new(client, gate.clone())) {
            Ok(End::Killed) => {
                // A guest that is reset at that moment begins anew all the same.
                while gate.exit_status().is_none() {
                    kill();
                    wait::until_readable([gate.event().as_raw_fd()], Some(KILL_INTERVAL));
                }
                continue;
            }
            Ok(End::Detached | End::Over) => log::info!("the debugger is gone"),
            Err(why) => log::info!("the debugger is gone: {why}"),
        }
        if let Err(e) = guest.release() {
            log::error!("--gdb: the guest stays as its debugger has left it: {e}");
        }
    }
}
