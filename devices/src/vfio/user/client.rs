//! The conversation: requests of this side, answers and requests of the server's.
//!
//! One thread of ours listens to the server for as long as the connection lives: it hands answers to
//! whoever waits for them, serves the server's own requests, and notices when the server is gone. It
//! also tells the server when the guest has ended an INTx interrupt.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_INTX_IRQ_INDEX,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::super::sys::Lender;
use super::message::{Command, HEADER_SIZE, Header, Kind, MOST_PAYLOAD, Payload};
use super::ram::Ram;
use super::socket::{Socket, WireError};

/// Set in the identities of messages that want no reply.
const NOTICE_ID: u16 = 0x8000;

/// In how many steps the deadline is waited for: the time during which strait itself is stopped
/// (Ctrl-Z) counts as one.
const STEPS: u32 = 50;

/// In how many of these steps, at most, once this side is in a hurry.
const HURRIED_STEPS: u32 = 5;

const SOCKET: u64 = 0;
const UNMASK: u64 = 1;

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

    fn nonsense(what: impl std::fmt::Display) -> Self {
        Self::new(Cause::Nonsense, format!("the server sent {what}"))
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        let cause = match error {
            WireError::Closed => Cause::Closed,
            WireError::Late => Cause::Silent,
            WireError::Descriptors => Cause::Nonsense,
            WireError::Io(_) => Cause::Kernel,
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
    pub(super) files: Vec<File>,
}

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    id: u16,
    command: Command,
    /// The largest payload that its answer may have, in bytes.
    most: usize,
}

/// What the threads tell each other.
#[derive(Debug, Default)]
struct Exchange {
    awaited: Option<Awaited>,
    answer: Option<Result<Answer, i32>>,
    failure: Option<Failure>,
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Client {
    name: String,
    socket: Socket,
    /// Held while a message is sent, so that messages don't mix.
    sending: Mutex<()>,
    /// Held from a request to its answer; the identity of the last request.
    turn: Mutex<u16>,
    exchange: Mutex<Exchange>,
    changed: Condvar,
    epoll: Epoll,
    /// Signalled at the guest's end of an INTx interrupt.
    unmask: Mutex<Option<EventFd>>,
    pub(super) ram: Mutex<Ram>,
    pub(super) lender: Arc<Lender>,
    /// A guest has the device: its failure is told in the log, and to nobody else.
    serving: AtomicBool,
    hurried: AtomicBool,
    deadline: Duration,
}

impl Client {
    pub(super) fn new(name: &str, socket: Socket, deadline: Duration) -> std::io::Result<Self> {
        let epoll = Epoll::new()?;
        let interest = EpollEvent::new(EventSet::IN, SOCKET);
        epoll.ctl(ControlOperation::Add, socket.as_raw_fd(), interest)?;
        let (sending, turn, exchange, changed, unmask, ram, lender, serving, hurried) =
            Default::default();
        let name = name.to_owned();
        Ok(Self {
            name,
            socket,
            sending,
            turn,
            exchange,
            changed,
            epoll,
            unmask,
            ram,
            lender,
            serving,
            hurried,
            deadline,
        })
    }

    /// Sends a request and waits for its answer, whose payload has at most `most` bytes. A server
    /// that doesn't answer in time is given up.
    pub(super) fn call(
        &self,
        command: Command,
        payload: &Payload,
        fds: &[RawFd],
        most: usize,
    ) -> Result<Answer, CallError> {
        let mut turn = lock(&self.turn);
        *turn = turn.wrapping_add(1) & !NOTICE_ID;
        {
            let mut exchange = lock(&self.exchange);
            exchange.awaited = Some(Awaited { id: *turn, command, most });
            exchange.answer = None;
        }
        if let Err(failure) = self.send(*turn, command, Kind::Command, payload, fds) {
            self.fail(failure);
        }
        self.wait(command)
    }

    fn wait(&self, command: Command) -> Result<Answer, CallError> {
        let mut exchange = lock(&self.exchange);
        let mut steps = STEPS;
        loop {
            if let Some(answer) = exchange.answer.take() {
                return answer.map_err(CallError::Refused);
            }
            if let Some(failure) = &exchange.failure {
                return Err(CallError::Over(failure.clone()));
            }
            if self.hurried.load(Ordering::Relaxed) {
                steps = steps.min(HURRIED_STEPS);
            }
            if steps == 0 {
                drop(exchange);
                let why = format!("the server doesn't answer {}", command.name());
                self.fail(Failure::new(Cause::Silent, why));
                exchange = lock(&self.exchange);
                continue;
            }
            let step = self.deadline / STEPS;
            let (guard, waited) =
                self.changed.wait_timeout(exchange, step).unwrap_or_else(PoisonError::into_inner);
            exchange = guard;
            steps = steps.saturating_sub(u32::from(waited.timed_out()));
        }
    }

    fn send(
        &self,
        id: u16,
        command: Command,
        kind: Kind,
        payload: &Payload,
        fds: &[RawFd],
    ) -> Result<(), Failure> {
        let header = Header { id, command: command.number(), payload: payload.0.len(), kind };
        self.send_message(header, payload, fds)
    }

    fn send_message(
        &self,
        header: Header,
        payload: &Payload,
        fds: &[RawFd],
    ) -> Result<(), Failure> {
        let head = header.to_bytes().ok_or_else(|| Failure::new(Cause::Kernel, "too much data"))?;
        let bytes = [head.as_slice(), &payload.0].concat();
        let _sending = lock(&self.sending);
        Ok(self.socket.send(&bytes, fds, Instant::now() + self.deadline)?)
    }

    /// Ends the conversation: whoever waits for an answer is told so.
    pub(super) fn fail(&self, failure: Failure) {
        let told = failure.cause != Cause::Over && self.serving();
        {
            let mut exchange = lock(&self.exchange);
            if exchange.failure.is_some() {
                return;
            }
            exchange.answer = None;
            exchange.failure = Some(failure.clone());
            // Before the guest goes on: all of the device fails at once.
            if told {
                self.lender.withdraw();
            }
        }
        self.socket.shut_down();
        // Told before the guest has it to tell.
        if told {
            log::error!(
                "{}: the device has failed: {}; the guest reads ones from it from here on",
                self.name,
                failure.why
            );
        }
        self.changed.notify_all();
    }

    /// From here on a server that doesn't answer is given up soon.
    pub(super) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
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
        self.serving.store(true, Ordering::Relaxed);
    }

    /// Has the server told each time this is signalled; `None` for no more.
    pub(super) fn set_unmask(&self, unmask: Option<&EventFd>) -> std::io::Result<()> {
        let mut current = lock(&self.unmask);
        if let Some(before) = current.take() {
            let nothing = EpollEvent::default();
            self.epoll.ctl(ControlOperation::Delete, before.as_raw_fd(), nothing)?;
        }
        if let Some(unmask) = unmask {
            let unmask = unmask.try_clone()?;
            let interest = EpollEvent::new(EventSet::IN, UNMASK);
            self.epoll.ctl(ControlOperation::Add, unmask.as_raw_fd(), interest)?;
            *current = Some(unmask);
        }
        Ok(())
    }

    /// Listens until the conversation is over.
    pub(super) fn listen(&self) {
        let mut notices = 0u16;
        while self.failure().is_none() {
            if let Err(failure) = self.attend(&mut notices) {
                self.fail(failure);
            }
        }
    }

    /// Waits for something to happen, and takes care of it.
    fn attend(&self, notices: &mut u16) -> Result<(), Failure> {
        let mut events = [EpollEvent::default(); 2];
        let count = match self.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(WireError::from(error).into()),
        };
        for event in events.iter().take(count) {
            if event.data() == SOCKET {
                self.receive()?;
            } else {
                self.tell_unmasked(notices)?;
            }
        }
        Ok(())
    }

    /// Tells the server that the guest has ended an INTx interrupt.
    fn tell_unmasked(&self, notices: &mut u16) -> Result<(), Failure> {
        match &*lock(&self.unmask) {
            // Nothing is there to be read if it was another's wake-up.
            Some(unmask) if unmask.read().is_ok() => {}
            _ => return Ok(()),
        }
        *notices = notices.wrapping_add(1);
        let flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;
        let payload =
            Payload::default().u32(20).u32(flags).u32(VFIO_PCI_INTX_IRQ_INDEX).u32(0).u32(1);
        self.send(*notices | NOTICE_ID, Command::SetIrqs, Kind::Notice, &payload, &[])
    }

    /// Receives a message and does what it asks for.
    fn receive(&self) -> Result<(), Failure> {
        let mut head = [0; HEADER_SIZE];
        let mut files = Vec::new();
        self.fill(&mut head, &mut files)?;
        let header = Header::parse(&head).map_err(Failure::nonsense)?;
        match header.kind {
            Kind::Reply => self.take_answer(header, files),
            Kind::Refusal(errno) => self.take_refusal(header, errno, files),
            Kind::Command | Kind::Notice => self.serve_request(header, files),
        }
    }

    fn fill(&self, buffer: &mut [u8], files: &mut Vec<File>) -> Result<(), Failure> {
        Ok(self.socket.receive(buffer, files, Instant::now() + self.deadline)?)
    }

    fn take_answer(&self, header: Header, mut files: Vec<File>) -> Result<(), Failure> {
        let awaited = self.awaited(header)?;
        let (name, most, size) = (awaited.command.name(), awaited.most, header.payload);
        if size > most {
            let what = format!("{size} bytes in answer to {name}, which takes at most {most}");
            return Err(Failure::nonsense(what));
        }
        let mut payload = vec![0; size];
        self.fill(&mut payload, &mut files)?;
        self.hand_over(Ok(Answer { payload, files }));
        Ok(())
    }

    /// Takes a refusal. What follows its header says nothing: libvfio-user has the request's
    /// structure there, which the specification leaves open.
    fn take_refusal(
        &self,
        header: Header,
        errno: u32,
        mut files: Vec<File>,
    ) -> Result<(), Failure> {
        let size = header.payload;
        if size > MOST_PAYLOAD {
            return Err(Failure::nonsense(format_args!("a refusal of {size} bytes")));
        }
        self.fill(&mut vec![0; size], &mut files)?;
        // Some servers answer even what wants no answer when they refuse it.
        if header.id & NOTICE_ID != 0 && header.command == Command::SetIrqs.number() {
            return Ok(());
        }
        self.awaited(header)?;
        // Some servers refuse without saying why.
        let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno));
        self.hand_over(Err(errno.unwrap_or(libc::EIO)));
        Ok(())
    }

    /// What this is the answer to.
    fn awaited(&self, header: Header) -> Result<Awaited, Failure> {
        let awaited = lock(&self.exchange).awaited.take();
        awaited
            .filter(|awaited| awaited.id == header.id)
            .filter(|awaited| awaited.command.number() == header.command)
            .ok_or_else(|| {
                let (id, command) = (header.id, header.command);
                Failure::nonsense(format_args!(
                    "an answer that nobody waits for (message {id:#x}, command {command:#x})"
                ))
            })
    }

    fn hand_over(&self, answer: Result<Answer, i32>) {
        lock(&self.exchange).answer = Some(answer);
        self.changed.notify_all();
    }

    /// Serves a request of the server's: it reads or writes the guest's RAM by messages where it
    /// can't map it.
    fn serve_request(&self, header: Header, mut files: Vec<File>) -> Result<(), Failure> {
        let size = header.payload;
        if size > MOST_PAYLOAD {
            return Err(Failure::nonsense(format_args!("a request of {size} bytes")));
        }
        let mut payload = vec![0; size];
        self.fill(&mut payload, &mut files)?;
        let answer = lock(&self.ram).serve(header.command, &payload);
        if header.kind == Kind::Notice {
            return Ok(());
        }
        let (kind, payload) = match answer {
            Ok(payload) => (Kind::Reply, payload),
            Err(errno) => (Kind::Refusal(errno.unsigned_abs()), Payload::default()),
        };
        self.send_message(Header { payload: payload.0.len(), kind, ..header }, &payload, &[])
    }
}

/// What a thread that panicked has left is as good as it was.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
