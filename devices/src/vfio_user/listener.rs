//! The thread that receives what the server sends: replies, and requests of its own.
//!
//! It runs for as long as the connection lives, hands replies to whoever waits for them, serves the
//! server's requests, and notices when the server is gone. It also tells the server when the guest has
//! unmasked INTx.

use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::budget::Wait;
use super::client::{Client, Pending, Reply};
use super::connection::Connection;
use super::error::Failure;
use super::fds::{ReceivedFd, STACK_SIZE};
use super::message::{Command, HEADER_SIZE, Header, Kind, MAX_PAYLOAD, NO_REPLY_ID, Payload};
use crate::sync::lock;
use crate::thread_kind::ThreadKind;

/// The sources of events.
const SOCKET: u64 = 0;
const UNMASK: u64 = 1;
const TWIN: u64 = 2;
const PAUSE: u64 = 3;

/// A client and its listening thread, which end when this is dropped.
#[derive(Debug)]
pub(super) struct Listener {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    epoll: Epoll,
    /// The thread is to end, or has ended, though the connection lives.
    is_paused: AtomicBool,
    /// Signalled when the guest has unmasked INTx.
    unmask: Mutex<Option<EventFd>>,
}

impl Deref for Listener {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.shared.client
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.disconnect();
        self.join();
    }
}

impl Listener {
    /// Starts the thread.
    pub(super) fn start(client: Client) -> io::Result<Self> {
        let (epoll, is_paused, unmask) = (Epoll::new()?, AtomicBool::default(), Mutex::default());
        let shared = Shared { client, epoll, is_paused, unmask };
        shared.add(&shared.client.connection, SOCKET)?;
        let listener = Self { shared: Arc::new(shared), thread: Mutex::default() };
        listener.start_thread()?;
        Ok(listener)
    }

    fn start_thread(&self) -> io::Result<()> {
        let listening = self.shared.clone();
        // The thread keeps payloads on the heap.
        let thread = thread::Builder::new().name("vfio-user".to_owned()).stack_size(STACK_SIZE);
        *lock(&self.thread) = Some(thread.spawn(move || {
            ThreadKind::VfioUser.enter();
            listening.run();
        })?);
        Ok(())
    }

    /// Waits for the thread's end.
    fn join(&self) {
        if let Some(thread) = lock(&self.thread).take() {
            // A panic in the thread has ended the process already.
            let _ = thread.join();
        }
    }

    /// Ends the threads, while no request is under way; what the server sends waits.
    pub(super) fn pause(&self) -> io::Result<()> {
        let wake = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        self.shared.is_paused.store(true, Ordering::Release);
        wake.write(1)?;
        self.shared.add(&wake, PAUSE)?;
        self.join();
        self.shared.client.closer.pause();
        let nothing = EpollEvent::default();
        self.shared.epoll.ctl(ControlOperation::Delete, wake.as_raw_fd(), nothing)
    }

    /// Starts them again, if they have ended. Where there can be none the connection is over: nobody would
    /// hear the server's answers.
    pub(super) fn resume(&self) -> io::Result<()> {
        self.shared.is_paused.store(false, Ordering::Release);
        let mut started = self.closer.prepare();
        if lock(&self.thread).is_none() {
            started = started.and(self.start_thread());
        }
        started.inspect_err(|_| self.disconnect())
    }

    /// Listens also to a connection of the server's making for its own requests.
    pub(super) fn add_twin(&self, fd: ReceivedFd) -> io::Result<()> {
        let twin = Connection::received(fd)?;
        self.shared.add(self.twin.get_or_init(|| twin), TWIN)
    }

    /// Has the server told each time this is signalled; `None` for no more.
    pub(super) fn set_unmask(&self, unmask: Option<&EventFd>) -> io::Result<()> {
        let mut current = lock(&self.shared.unmask);
        if let Some(before) = current.take() {
            let (operation, nothing) = (ControlOperation::Delete, EpollEvent::default());
            self.shared.epoll.ctl(operation, before.as_raw_fd(), nothing)?;
        }
        if let Some(unmask) = unmask {
            let unmask = unmask.try_clone()?;
            self.shared.add(&unmask, UNMASK)?;
            *current = Some(unmask);
        }
        Ok(())
    }
}

impl Shared {
    fn add(&self, file: &impl AsRawFd, token: u64) -> io::Result<()> {
        let interest = EpollEvent::new(EventSet::IN, token);
        self.epoll.ctl(ControlOperation::Add, file.as_raw_fd(), interest)
    }

    /// Listens until the connection is over, or it is to pause.
    fn run(&self) {
        while !self.is_paused.load(Ordering::Acquire) && self.client.failure().is_none() {
            if let Err(failure) = self.handle_events() {
                self.client.fail(failure);
            }
        }
    }

    fn handle_events(&self) -> Result<(), Failure> {
        let mut events = [EpollEvent::default(); 4];
        let count = match self.epoll.wait(-1, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            count => count?,
        };
        for event in events.iter().take(count) {
            match (event.data(), self.client.twin.get()) {
                (SOCKET, _) => self.client.receive(&self.client.connection)?,
                (PAUSE, _) => {}
                (TWIN, Some(twin)) => self.client.receive(twin)?,
                // Nothing is there to be read if it was another eventfd's.
                _ if lock(&self.unmask).as_ref().is_some_and(|unmask| unmask.read().is_ok()) => {
                    self.client.notify_unmask();
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Client {
    /// Receives a message and handles it.
    fn receive(&self, connection: &Connection) -> Result<(), Failure> {
        let (wait, mut files) = (&mut self.budget.begin_separate(), Vec::new());
        let mut head = [0; HEADER_SIZE];
        connection.receive(&mut head, &mut files, &self.closer, wait)?;
        let header = Header::parse(&head).map_err(Failure::protocol)?;
        let mut payload = |max: usize, what: &str| {
            let size = header.payload;
            if size > max {
                return Err(Failure::protocol(format_args!("{what} of {size} bytes")));
            }
            let mut payload = vec![0; size];
            connection.receive(&mut payload, &mut files, &self.closer, wait)?;
            Ok(payload)
        };
        match header.kind {
            Kind::Reply | Kind::ErrorReply(_) if !std::ptr::eq(connection, &self.connection) => {
                return Err(Failure::protocol("a reply on its twin_socket"));
            }
            Kind::Reply => {
                let pending = self.pending(header)?;
                let what = format!("a reply to {}", pending.command.name);
                let payload = payload(pending.max_reply, &what)?;
                self.deliver(Ok(Reply { payload, files }));
            }
            // What follows the header has no meaning: libvfio-user has the request's structure there,
            // which the specification leaves open.
            Kind::ErrorReply(errno) => {
                payload(MAX_PAYLOAD, "an error reply")?;
                self.take_error(header, errno)?;
            }
            Kind::Command | Kind::CommandNoReply => {
                let request = payload(MAX_PAYLOAD, "a request")?;
                self.serve(connection, header, &request, wait)?;
            }
        }
        if self.closer.has_overflowed() {
            return Err(Failure::protocol("more descriptors than can be closed"));
        }
        Ok(())
    }

    fn take_error(&self, header: Header, errno: u32) -> Result<(), Failure> {
        // Some servers reply with an error even to a command without a reply.
        if header.id & NO_REPLY_ID != 0 && header.command == Command::SET_IRQS.number {
            return Ok(());
        }
        self.pending(header)?;
        // Some servers give no error number.
        let errno = i32::try_from(errno).ok().filter(|errno| (1..4096).contains(errno));
        self.deliver(Err(errno.unwrap_or(libc::EIO)));
        Ok(())
    }

    /// The request to which this is the reply.
    fn pending(&self, header: Header) -> Result<Pending, Failure> {
        let pending = self.take_pending();
        let (id, command) = (header.id, header.command);
        pending.filter(|pending| (pending.id, pending.command.number) == (id, command)).ok_or_else(
            || {
                Failure::protocol(format_args!(
                    "a reply to no request (message {id:#x}, command {command:#x})"
                ))
            },
        )
    }

    /// Serves a request of the server's: it reads or writes the guest's RAM by messages where it
    /// can't or doesn't want to map it.
    fn serve(
        &self,
        connection: &Connection,
        header: Header,
        request: &[u8],
        wait: &mut Wait<'_>,
    ) -> Result<(), Failure> {
        let served = lock(&self.memory).serve(header.command, request);
        if header.kind == Kind::CommandNoReply {
            return Ok(());
        }
        let (kind, payload) = match served {
            Ok(payload) => (Kind::Reply, payload),
            Err(errno) => (Kind::ErrorReply(errno.unsigned_abs()), Payload::default()),
        };
        let header = Header { payload: payload.0.len(), kind, ..header };
        connection.send(header, &payload, &[], wait)
    }
}
