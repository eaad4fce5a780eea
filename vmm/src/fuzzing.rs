//! What fuzz targets reach of this crate.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use devices::console::Input;
use devices::sync;
use event_manager::{EventManager, SubscriberOps};
use lexopt::Parser;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::{self, Clients};
use crate::control::{self, Answer, Control, Request};
use crate::output::ClientBuffer;
use crate::{cli, error, gdb};

/// Parses a command line, the program's name first, and answers what it was taken for.
///
/// # Errors
///
/// It makes no sense; what strait says of it.
pub fn command_line(arguments: Vec<OsString>) -> Result<String, String> {
    let parsed = cli::parse(Parser::from_iter(arguments));
    parsed.map(|command| format!("{command:?}")).map_err(|error| error.report())
}

/// A debugger's session with vCPUs that are only registers: hands it what the debugger sends, and then goes.
///
/// # Errors
///
/// The host has no more threads or descriptors.
///
/// # Panics
///
/// Something is left of the debugger, or its session has panicked.
pub fn debug(sent: &[u8]) -> io::Result<()> {
    let (session, mut debugger) = gdb::testing::Session::begin()?;
    let mut reader = debugger.try_clone()?;
    let reading = thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
    // It may be gone for what came before.
    let _ = debugger.write_all(sent);
    let _ = debugger.shutdown(Shutdown::Write);
    let (_, ram) = session.end();
    assert!(!ram.is_empty(), "the session has panicked");
    reading.join().map(drop).map_err(|_| io::Error::other("a reader has panicked"))
}

/// A guest's console with clients at a socket, and the event loop that serves them.
pub struct ConsoleClients {
    manager: EventManager<Clients>,
    buffer: Arc<ClientBuffer>,
    console: Arc<Console>,
}

/// The guest's console, with room for so many bytes of input.
struct Console {
    room: Mutex<usize>,
    drained: EventFd,
}

impl Input for Console {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut room = sync::lock(&self.room);
        let taken = bytes.len().min(*room);
        *room = room.saturating_sub(taken);
        taken
    }
}

impl ConsoleClients {
    /// One that listens at this path, and has no room for input.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors, or there is something at the path.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let [backlog, drained] = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
        let buffer = Arc::new(ClientBuffer::new(backlog.try_clone()?));
        let console = Arc::new(Console { room: Mutex::new(0), drained: drained.try_clone()? });
        let output = (buffer.clone(), backlog);
        let clients = console::clients_at(path, output, (console.clone(), drained));
        let failed = |error: error::Error| io::Error::other(error.report());
        let mut manager =
            EventManager::new().map_err(|error| io::Error::other(format!("{error:?}")))?;
        manager.add_subscriber(clients.map_err(failed)?);
        Ok(Self { manager, buffer, console })
    }

    /// The guest writes.
    pub fn write(&self, bytes: &[u8]) {
        self.buffer.put(bytes);
    }

    /// The guest reads, so that there is room for so many bytes more.
    pub fn make_room(&self, bytes: usize) {
        let mut room = sync::lock(&self.console.room);
        *room = room.saturating_add(bytes);
        // Fails only while as many signals are pending as the counter holds.
        let _ = self.console.drained.write(1);
    }

    /// Serves what there is to be served, at most so many times; whether there may be more.
    pub fn serve(&mut self, most: usize) -> bool {
        (0..most).all(|_| self.manager.run_with_timeout(0).is_ok_and(|events| events != 0))
    }
}

/// The clients that control a machine, which does nothing.
pub struct ControlClients(Control);

impl ControlClients {
    /// Nobody yet.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn new() -> io::Result<Self> {
        control::unreachable().map(Control::new).map(Self)
    }

    /// A client comes: its end, non-blocking.
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn connect(&mut self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.0.admit(File::from(OwnedFd::from(ours)));
        Ok(theirs)
    }

    /// Something has happened; carries out what clients ask for, and tells of it.
    pub fn serve(&mut self) {
        for pending in self.0.serve_all() {
            let answer = match pending.request {
                Request::Status => Answer::Parameters(control::status(true)),
                Request::Stats => {
                    Answer::Parameters(format!("{{\"x\":[{}]}}", "0,".repeat(5000) + "0"))
                }
                Request::PowerOff => Answer::NotSupported,
                _ => Answer::Done,
            };
            self.0.answer(&pending, answer);
            self.0.tell(control::event::STOP);
        }
    }

    /// How many bytes wait for clients or for the rest of their messages.
    pub fn held(&self) -> usize {
        self.0.held()
    }
}
