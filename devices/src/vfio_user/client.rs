//! The conversation: requests of this side and their answers.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::budget::{TimeBudget, Wait};
use super::channel::{Channel, Events};
use super::dma::Ram;
use super::fds::{FdCloser, ReceivedFd};
use super::message::{Command, Header, Kind, NOTICE_ID, Payload};
use super::socket::{Socket, WireError};
use crate::sync::lock;
use crate::vfio::uapi::RevocableMappings;

/// Why the conversation is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The server closed the connection.
    Closed,
    /// It doesn't answer.
    Silent,
    /// What it says makes no sense.
    Nonsense,
    /// The kernel refused something.
    Kernel,
    /// This side has hung up.
    Over,
}

/// The end of the conversation.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) cause: Cause,
    pub(super) why: Arc<str>,
}

impl Failure {
    pub(super) fn new(cause: Cause, why: impl Into<Arc<str>>) -> Self {
        Self { cause, why: why.into() }
    }

    pub(super) fn nonsense(what: impl std::fmt::Display) -> Self {
        Self::new(Cause::Nonsense, format!("the server sent {what}"))
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        let cause = match error {
            WireError::Closed => Cause::Closed,
            WireError::Late => Cause::Silent,
            WireError::Descriptors => Cause::Nonsense,
            WireError::Exhausted | WireError::Io(_) => Cause::Kernel,
        };
        Self::new(cause, error.to_string())
    }
}

/// A request that got no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// The server refused it, with this error number (`errno`).
    Refused(i32),
    /// The conversation is over.
    Over(Failure),
}

/// An answer.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<ReceivedFd>,
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Awaited {
    pub(super) id: u16,
    pub(super) command: Command,
    /// The largest payload that its answer may have, in bytes.
    pub(super) most: usize,
}

/// What the threads tell each other.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// A request is under way, or a notice: nothing else is sent of this side's own accord. A server
    /// may ask for memory while it serves one, and wait for that answer at the same connection: it
    /// takes nothing else for it (libvfio-user's `tran_sock_recv_fds`).
    busy: bool,
    /// The server is to be told of an interrupt's end as soon as that can be.
    owed: bool,
    last_id: u16,
    pub(super) awaited: Option<Awaited>,
    answer: Option<Result<Answer, i32>>,
    failure: Option<Failure>,
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Client {
    name: String,
    pub(super) channel: Channel,
    /// The connection for the server's own requests, if it has one.
    pub(super) twin: OnceLock<Channel>,
    pub(super) exchange: Mutex<Exchange>,
    changed: Condvar,
    pub(super) events: Events,
    pub(super) bin: FdCloser,
    pub(super) ram: Mutex<Ram>,
    pub(super) mappings: Arc<RevocableMappings>,
    /// A guest has the device: its failure is told in the log, and to nobody else.
    serving: AtomicBool,
    pub(super) budget: TimeBudget,
}

impl Client {
    pub(super) fn new(name: &str, socket: Socket, budget: TimeBudget) -> std::io::Result<Self> {
        let channel = Channel::new(socket);
        let events = Events::new(&channel)?;
        let (twin, exchange, changed, bin, ram, mappings, serving) = Default::default();
        let name = name.to_owned();
        Ok(Self {
            name,
            channel,
            twin,
            exchange,
            changed,
            events,
            bin,
            ram,
            mappings,
            serving,
            budget,
        })
    }

    /// Takes a connection of the server's making for its own requests.
    pub(super) fn take_twin(&self, file: ReceivedFd) -> std::io::Result<()> {
        let twin = Channel::new(Socket::received(file)?);
        let twin = self.twin.get_or_init(|| twin);
        self.events.add_twin(twin)
    }

    /// Sends a request and waits for its answer, whose payload has at most `most` bytes. A server
    /// that doesn't answer in time is given up.
    pub(super) fn call(
        &self,
        wait: &mut Wait<'_>,
        command: Command,
        payload: &Payload,
        fds: &[RawFd],
        most: usize,
    ) -> Result<Answer, CallError> {
        let id = self.take_turn(command, most)?;
        let header =
            Header { id, command: command.number(), payload: payload.0.len(), kind: Kind::Command };
        if let Err(error) = self.channel.send(header, payload, fds, wait) {
            self.fail(self.wire_failure(error));
        }
        let answer = self.wait(wait, command);
        self.end_turn(wait);
        answer
    }

    /// Waits until no other request is under way, which that one's budget limits.
    fn take_turn(&self, command: Command, most: usize) -> Result<u16, CallError> {
        let exchange = lock(&self.exchange);
        let waits = |exchange: &mut Exchange| exchange.busy && exchange.failure.is_none();
        let exchange = self.changed.wait_while(exchange, waits);
        let mut exchange = exchange.unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &exchange.failure {
            return Err(CallError::Over(failure.clone()));
        }
        let id = exchange.last_id.wrapping_add(1) & !NOTICE_ID;
        (exchange.last_id, exchange.busy) = (id, true);
        exchange.awaited = Some(Awaited { id, command, most });
        exchange.answer = None;
        Ok(id)
    }

    /// Lets others have their turn, after what is owed to the server.
    fn end_turn(&self, wait: &mut Wait<'_>) {
        loop {
            {
                let mut exchange = lock(&self.exchange);
                if !std::mem::take(&mut exchange.owed) {
                    exchange.busy = false;
                    break;
                }
            }
            self.send_unmasked(wait);
        }
        self.changed.notify_all();
    }

    /// Tells the server that the guest has ended an INTx interrupt, now or after the request that is
    /// under way.
    pub(super) fn tell_unmasked(&self) {
        {
            let mut exchange = lock(&self.exchange);
            if exchange.busy {
                exchange.owed = true;
                return;
            }
            exchange.busy = true;
        }
        let mut wait = self.budget.alone();
        self.send_unmasked(&mut wait);
        self.end_turn(&mut wait);
    }

    fn wait(&self, wait: &mut Wait<'_>, command: Command) -> Result<Answer, CallError> {
        let mut exchange = lock(&self.exchange);
        loop {
            if let Some(answer) = exchange.answer.take() {
                return answer.map_err(CallError::Refused);
            }
            if let Some(failure) = &exchange.failure {
                return Err(CallError::Over(failure.clone()));
            }
            let Some(step) = wait.next() else {
                drop(exchange);
                self.fail(self.late(format!("the server doesn't answer {}", command.name())));
                exchange = lock(&self.exchange);
                continue;
            };
            let started = Instant::now();
            let waited = self.changed.wait_timeout(exchange, step);
            exchange = waited.unwrap_or_else(PoisonError::into_inner).0;
            wait.waited(started.elapsed());
        }
    }

    /// What has come of waiting for as long as was allowed.
    pub(super) fn late(&self, why: String) -> Failure {
        if self.budget.is_stopped() {
            return Failure::new(Cause::Over, "strait was told to end");
        }
        Failure::new(Cause::Silent, why)
    }

    pub(super) fn wire_failure(&self, error: WireError) -> Failure {
        match error {
            WireError::Late => self.late(error.to_string()),
            error => error.into(),
        }
    }

    /// Ends the conversation: whoever waits for an answer is told so.
    pub(super) fn fail(&self, failure: Failure) {
        let told = failure.cause != Cause::Over && self.serving();
        let mut revoked = Ok(());
        {
            let mut exchange = lock(&self.exchange);
            if exchange.failure.is_some() {
                return;
            }
            exchange.answer = None;
            exchange.failure = Some(failure.clone());
            // Before the guest goes on: all of the device fails at once.
            if told {
                revoked = self.mappings.revoke();
            }
        }
        self.channel.shut_down();
        if let Some(twin) = self.twin.get() {
            twin.shut_down();
        }
        // Told before the guest has it to tell.
        if told {
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

    /// From here on a server that doesn't answer is given up soon.
    pub(super) fn shorten_deadline(&self) {
        self.budget.shorten_deadline();
    }

    /// Ends the conversation from this side.
    pub(super) fn hang_up(&self) {
        self.fail(Failure::new(Cause::Over, "strait has closed the connection"));
    }

    /// What the server is called in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Why the conversation is over, if it is.
    pub(super) fn failure(&self) -> Option<Failure> {
        lock(&self.exchange).failure.clone()
    }

    pub(super) fn serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    /// From here on a guest has the device.
    pub(super) fn serve(&self) {
        self.budget.serve();
        self.serving.store(true, Ordering::Relaxed);
    }

    /// Has the server told each time this is signalled; `None` for no more.
    pub(super) fn set_unmask(&self, unmask: Option<&EventFd>) -> std::io::Result<()> {
        self.events.set_unmask(unmask)
    }

    pub(super) fn hand_over(&self, answer: Result<Answer, i32>) {
        lock(&self.exchange).answer = Some(answer);
        self.changed.notify_all();
    }
}
