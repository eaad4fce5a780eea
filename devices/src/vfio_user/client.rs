//! A connection's requests to the server and their replies.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_INTX_IRQ_INDEX,
};

use super::budget::{TimeBudget, Wait};
use super::connection::Connection;
use super::dma::DmaMemory;
use super::error::{Failure, FailureKind, RequestError};
use super::fds::{FdCloser, ReceivedFd};
use super::message::{Command, Header, Kind, NO_REPLY_ID, Payload};
use crate::sync::lock;
use crate::vfio::uapi::RevocableMappings;

/// A reply.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<ReceivedFd>,
}

/// A request without its reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) id: u16,
    pub(super) command: Command,
    /// The largest payload that the reply may have, in bytes.
    pub(super) max_reply: usize,
}

/// What the threads that send requests and the one that listens share.
#[derive(Debug, Default)]
struct State {
    /// A command of this side's is under way: none else is sent. A server may ask for memory while it
    /// serves one, and wait for that reply at the same connection: it takes nothing else for it
    /// (libvfio-user's `tran_sock_recv_fds`).
    busy: bool,
    /// The server is to be told of INTx' unmasking after the command that is under way.
    unmask_pending: bool,
    last_id: u16,
    pending: Option<Pending>,
    reply: Option<Result<Reply, i32>>,
    failure: Option<Failure>,
}

/// The client of a server.
#[derive(Debug)]
pub(super) struct Client {
    /// The server's name in messages: its socket's path.
    pub(super) name: String,
    pub(super) connection: Connection,
    /// The connection for the server's own requests, if it has one (`twin_socket`).
    pub(super) twin: OnceLock<Connection>,
    pub(super) closer: FdCloser,
    pub(super) memory: Mutex<DmaMemory>,
    pub(super) mappings: Arc<RevocableMappings>,
    pub(super) budget: TimeBudget,
    state: Mutex<State>,
    changed: Condvar,
    /// A guest has the device: its failure is told in the log, and to nobody else.
    has_guest: AtomicBool,
}

impl Client {
    pub(super) fn new(name: String, connection: Connection, budget: TimeBudget) -> Self {
        let (twin, memory, mappings, state, changed, has_guest) = Default::default();
        // One thread closes all: once the guest runs no other can be started.
        let closer = connection.closer().clone();
        Self { name, connection, twin, closer, memory, mappings, budget, state, changed, has_guest }
    }

    /// Sends a request and waits for its reply, whose payload has at most `max_reply` bytes. A server
    /// that doesn't reply in time is given up.
    pub(super) fn request(
        &self,
        wait: &mut Wait<'_>,
        command: Command,
        payload: &Payload,
        fds: &[RawFd],
        max_reply: usize,
    ) -> Result<Reply, RequestError> {
        let id = self.acquire(command, max_reply)?;
        let header =
            Header { id, command: command.number, payload: payload.0.len(), kind: Kind::Command };
        if let Err(failure) = self.connection.send(header, payload, fds, wait) {
            self.fail(failure);
        }
        let reply = self.wait_for_reply(wait, command);
        self.release(wait);
        reply
    }

    /// Waits until no other command is under way, which that one's time limits.
    fn acquire(&self, command: Command, max_reply: usize) -> Result<u16, RequestError> {
        let is_busy = |state: &mut State| state.busy && state.failure.is_none();
        let state = self.changed.wait_while(lock(&self.state), is_busy);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &state.failure {
            return Err(RequestError::Failed(failure.clone()));
        }
        let id = state.last_id.wrapping_add(1) & !NO_REPLY_ID;
        (state.last_id, state.busy, state.reply) = (id, true, None);
        state.pending = Some(Pending { id, command, max_reply });
        Ok(id)
    }

    /// Lets other commands follow, after one that is pending for the server.
    fn release(&self, wait: &mut Wait<'_>) {
        loop {
            {
                let mut state = lock(&self.state);
                if !std::mem::take(&mut state.unmask_pending) {
                    state.busy = false;
                    break;
                }
            }
            self.send_unmask(wait);
        }
        self.changed.notify_all();
    }

    /// Tells the server that the guest has unmasked INTx, now or after the command that is under way.
    pub(super) fn notify_unmask(&self) {
        {
            let mut state = lock(&self.state);
            if state.busy {
                state.unmask_pending = true;
                return;
            }
            state.busy = true;
        }
        let mut wait = self.budget.begin_separate();
        self.send_unmask(&mut wait);
        self.release(&mut wait);
    }

    fn send_unmask(&self, wait: &mut Wait<'_>) {
        let flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;
        let payload = Payload::default().u32s(&[20, flags, VFIO_PCI_INTX_IRQ_INDEX, 0, 1]);
        let (command, kind) = (Command::SET_IRQS.number, Kind::CommandNoReply);
        let header = Header { id: NO_REPLY_ID, command, payload: payload.0.len(), kind };
        if let Err(failure) = self.connection.send(header, &payload, &[], wait) {
            self.fail(failure);
        }
    }

    fn wait_for_reply(&self, wait: &mut Wait<'_>, command: Command) -> Result<Reply, RequestError> {
        let late = || format!("the server doesn't answer {}", command.name);
        loop {
            let mut state = lock(&self.state);
            if let Some(reply) = state.reply.take() {
                return reply.map_err(RequestError::Refused);
            }
            if let Some(failure) = &state.failure {
                return Err(RequestError::Failed(failure.clone()));
            }
            let waited = wait.step(late, |longest| drop(self.changed.wait_timeout(state, longest)));
            if let Err(failure) = waited {
                self.fail(failure);
            }
        }
    }

    /// Ends the connection: whoever waits for a reply is told so.
    pub(super) fn fail(&self, failure: Failure) {
        let log = failure.kind != FailureKind::Disconnected && self.has_guest();
        let mut revoked = Ok(());
        {
            let mut state = lock(&self.state);
            if state.failure.is_some() {
                return;
            }
            state.reply = None;
            state.failure = Some(failure.clone());
            // Before the guest goes on: all of the device fails at once.
            if log {
                revoked = self.mappings.revoke();
            }
        }
        self.connection.shut_down();
        if let Some(twin) = self.twin.get() {
            twin.shut_down();
        }
        // Before the guest can tell of it.
        if log {
            let (name, why) = (&self.name, &failure.why);
            log::error!(
                "{name}: the device has failed: {why}; the guest reads ones from it from here on"
            );
        }
        if let Err(error) = revoked {
            log::error!(
                "{}: memory that the server lent can't be taken from the guest, which may still \
                 reach it: {error}",
                self.name
            );
        }
        self.changed.notify_all();
    }

    /// Ends the connection from this side.
    pub(super) fn disconnect(&self) {
        self.fail(Failure::new(FailureKind::Disconnected, "strait has closed the connection"));
    }

    /// Why the connection is over, if it is.
    pub(super) fn failure(&self) -> Option<Failure> {
        lock(&self.state).failure.clone()
    }

    pub(super) fn has_guest(&self) -> bool {
        self.has_guest.load(Ordering::Relaxed)
    }

    /// From here on a guest has the device.
    pub(super) fn start_guest(&self) {
        self.budget.start_guest();
        self.has_guest.store(true, Ordering::Relaxed);
    }

    /// Takes the request that is without a reply.
    pub(super) fn take_pending(&self) -> Option<Pending> {
        lock(&self.state).pending.take()
    }

    /// Hands the reply, or the error number of an error reply, to whoever waits for it.
    pub(super) fn deliver(&self, reply: Result<Reply, i32>) {
        lock(&self.state).reply = Some(reply);
        self.changed.notify_all();
    }
}
