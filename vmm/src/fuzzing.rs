//! What fuzz targets reach of this crate.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use devices::console::Input;
use devices::sync;
use event_manager::{EventManager, SubscriberOps};
use lexopt::Parser;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::console::{self, Clients};
use crate::output::ClientBuffer;
use crate::{cli, error};

/// Parses a command line, the program's name first, and answers what it was taken for.
///
/// # Errors
///
/// It makes no sense; what strait says of it.
pub fn command_line(arguments: Vec<OsString>) -> Result<String, String> {
    let parsed = cli::parse(Parser::from_iter(arguments));
    parsed.map(|command| format!("{command:?}")).map_err(|error| error.report())
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
