//! Consoles on the host: where a console's output goes and its input comes from, whatever the
//! device is that the guest sees.

mod clients;
mod file;
mod lines;
mod log;
mod monitor;
mod pty;
mod stdio;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::console::{Input, Output, Room};
use vmm_sys_util::eventfd::EventFd;

use crate::cli::ConsoleKind;
use crate::error::Error;
use crate::output::{self, ClientBuffer, FileBuffer};

use self::clients::Listener;

pub use self::clients::Clients;
pub use self::monitor::Monitor;
pub use self::stdio::{Progress, StandardInput};

/// A console's end on the host, before there is a device for it.
pub struct ConsoleBackend {
    kind: Kind,
    name: &'static str,
    monitor: Option<Arc<Monitor>>,
}

enum Kind {
    Stdio,
    File(Arc<FileBuffer>),
    Clients { listener: Listener, buffer: Arc<ClientBuffer>, backlog: EventFd },
}

/// What a console's input comes from, for the event loop.
pub enum InputSource {
    /// Nothing.
    None,
    /// Standard input, and what tells that the console has room again.
    Stdio(StandardInput, EventFd),
    /// Clients that come and go.
    Clients(Clients),
}

impl InputSource {
    /// Standard input, which one of them has at most, and the clients.
    pub fn by_kind(
        sources: impl IntoIterator<Item = Self>,
    ) -> (Option<(StandardInput, EventFd)>, Vec<Clients>) {
        let (mut stdio, mut all) = (None, Vec::new());
        for source in sources {
            match source {
                Self::None => {}
                Self::Stdio(input, drained) => stdio = Some((input, drained)),
                Self::Clients(clients) => all.push(clients),
            }
        }
        (stdio, all)
    }
}

impl ConsoleBackend {
    /// Opens the backend of the console with this name; `None` if it is off. The monitor, if there is one,
    /// sees its output.
    ///
    /// # Errors
    ///
    /// The file, socket or pseudo-terminal can't be opened.
    pub fn open(
        kind: &ConsoleKind,
        name: &'static str,
        monitor: Option<&Arc<Monitor>>,
    ) -> Result<Option<Self>, Error> {
        let of = |kind| Ok(Some(Self { kind, name, monitor: monitor.cloned() }));
        let listener = match kind {
            ConsoleKind::Off => return Ok(None),
            ConsoleKind::Stdio => return of(Kind::Stdio),
            ConsoleKind::File(path) => {
                return of(Kind::File(output::to_file(file::open(path, "--console file:")?, name)));
            }
            ConsoleKind::Pty => Listener::pty(name)?,
            ConsoleKind::Unix(path) => Listener::socket(path)?,
        };
        let backlog = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let buffer = output::for_clients(backlog.try_clone()?);
        of(Kind::Clients { listener, buffer, backlog })
    }

    /// Where the device's output goes; `spoke` becomes true with the first.
    pub fn output(&self, spoke: &Arc<AtomicBool>) -> Box<dyn Output> {
        let spoke = spoke.clone();
        let output: Box<dyn Output> = match &self.kind {
            Kind::Stdio => Box::new(StandardOutput { spoke }),
            Kind::File(buffer) => Box::new(FileOutput { spoke, buffer: buffer.clone() }),
            Kind::Clients { buffer, .. } => {
                Box::new(ClientOutput { spoke, buffer: buffer.clone() })
            }
        };
        match &self.monitor {
            Some(monitor) => monitor.watch(self.name, output),
            None => output,
        }
    }

    /// What the device's input comes from. `drained` is what it signals when it has room again.
    pub fn into_input(self, device: Arc<dyn Input>, drained: EventFd) -> InputSource {
        match self.kind {
            Kind::Stdio => InputSource::Stdio(StandardInput::open(device), drained),
            Kind::File(_) => InputSource::None,
            Kind::Clients { listener, buffer, backlog } => {
                InputSource::Clients(Clients::new(listener, buffer, backlog, device, drained))
            }
        }
    }
}

/// The clients of a socket at this path, without a machine: the fuzz target's.
#[cfg(feature = "fuzzing")]
pub fn clients_at(
    path: &std::path::Path,
    (buffer, backlog): (Arc<ClientBuffer>, EventFd),
    (device, drained): (Arc<dyn Input>, EventFd),
) -> Result<Clients, Error> {
    Ok(Clients::new(Listener::socket(path)?, buffer, backlog, device, drained))
}

/// Standard output, byte by byte as the guest writes.
struct StandardOutput {
    spoke: Arc<AtomicBool>,
}

impl Output for StandardOutput {
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room> {
        self.spoke.store(true, Ordering::Relaxed);
        Ok(if output::console(bytes)? { Room::Full } else { Room::Left })
    }

    fn wait_for_room(&mut self, stop: &dyn Fn() -> bool) {
        output::wait_for_room(stop);
    }
}

struct FileOutput {
    spoke: Arc<AtomicBool>,
    buffer: Arc<FileBuffer>,
}

impl Output for FileOutput {
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room> {
        self.spoke.store(true, Ordering::Relaxed);
        Ok(if self.buffer.put(bytes) { Room::Full } else { Room::Left })
    }

    fn wait_for_room(&mut self, stop: &dyn Fn() -> bool) {
        self.buffer.wait_for_room(stop);
    }
}

/// The client that is there, or what is kept for the next.
struct ClientOutput {
    spoke: Arc<AtomicBool>,
    buffer: Arc<ClientBuffer>,
}

impl Output for ClientOutput {
    fn put(&mut self, bytes: &[u8]) -> io::Result<Room> {
        self.spoke.store(true, Ordering::Relaxed);
        self.buffer.put(bytes);
        Ok(Room::Left)
    }
}
