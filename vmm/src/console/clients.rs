//! A console whose clients come and go, one at a time: the event loop's part.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use devices::console::Input;
use devices::ratelimit::LogLimit;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::pty::Pty;
use crate::error::Error;
use crate::output::{self, ClientBuffer};
use crate::terminal;
use crate::unix_listener::UnixSocket;

/// How much is read of a client at once, in bytes.
const READ_SIZE: usize = 512;

/// How long nobody is accepted after the host was short of something.
const PAUSE: Duration = Duration::from_millis(500);

/// What event data names the source by.
mod token {
    /// A client comes.
    pub(super) const LISTENER: u32 = 0;
    pub(super) const CLIENT: u32 = 1;
    /// Output begins to wait for the client.
    pub(super) const BACKLOG: u32 = 2;
    /// The console has room for input again.
    pub(super) const DRAINED: u32 = 3;
    /// The pause is over.
    pub(super) const RETRY: u32 = 4;
}

/// Where clients come from.
pub(super) struct Listener {
    source: Source,
    /// Runs out when it is listened to again: made before the guest runs, as the host may be short of
    /// descriptors then.
    retry: TimerFd,
}

enum Source {
    Pty(Pty),
    Socket(UnixSocket),
    /// The same, of a host that has no descriptors while this is so.
    #[cfg(test)]
    Short(UnixSocket, Arc<std::sync::atomic::AtomicBool>),
}

impl Listener {
    /// A new pseudo-terminal, of which is told on standard error.
    pub(super) fn pty(name: &str) -> Result<Self, Error> {
        let (pty, path) = Pty::open()?;
        let listener = Self::new(Source::Pty(pty))?;
        output::say(&format!("strait: {name} console: {path}\n"));
        Ok(listener)
    }

    /// A listening socket at this path.
    pub(super) fn socket(path: &Path) -> Result<Self, Error> {
        Self::new(Source::Socket(UnixSocket::listen("--console", path)?))
    }

    fn new(source: Source) -> Result<Self, Error> {
        let retry = TimerFd::new()
            .map_err(|e| Error::new(format!("no timer for a console's clients: {e}")))?;
        Ok(Self { source, retry })
    }

    fn is_pty(&self) -> bool {
        matches!(self.source, Source::Pty(_))
    }

    /// The client that has come, if one has.
    fn accept(&mut self) -> io::Result<Option<Arc<File>>> {
        match &mut self.source {
            Source::Pty(pty) => Ok(pty.accept()),
            Source::Socket(socket) => Ok(socket.accept()?.map(Arc::new)),
            #[cfg(test)]
            Source::Short(_, is_short) if is_short.load(std::sync::atomic::Ordering::Relaxed) => {
                Err(io::Error::from_raw_os_error(libc::ENFILE))
            }
            #[cfg(test)]
            Source::Short(socket, _) => Ok(socket.accept()?.map(Arc::new)),
        }
    }

    /// Has the event loop listen to it, or not, once it polls it.
    fn listen(&self, ops: &mut EventOps, listens: bool) {
        let wanted = if listens { EventSet::IN } else { EventSet::empty() };
        // Fails for one that the event loop couldn't poll from the beginning.
        let _ = ops.modify(Events::with_data(self, token::LISTENER, wanted));
    }

    /// Has nobody accepted for a while: one who waits would wake the event loop again and again.
    fn pause(&mut self, ops: &mut EventOps) {
        match self.retry.reset(PAUSE, None) {
            Ok(()) => self.listen(ops, false),
            Err(e) => log::error!("a console's clients have no timer: {e}"),
        }
    }

    /// The pause is over.
    fn resume(&mut self, ops: &mut EventOps) {
        // It has run out, and is forgotten.
        let _ = self.retry.clear();
        self.listen(ops, true);
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match &self.source {
            Source::Pty(pty) => pty.as_raw_fd(),
            Source::Socket(socket) => socket.as_raw_fd(),
            #[cfg(test)]
            Source::Short(socket, _) => socket.as_raw_fd(),
        }
    }
}

/// The client that is there.
struct Client {
    file: Arc<File>,
    /// What it is polled for; `None`: it isn't.
    polled: Option<EventSet>,
    /// It sends no more input.
    ended: bool,
    /// It has hung up; there may be input that it has left.
    hung_up: bool,
}

/// A console's clients.
///
/// A socket's client is replaced by the next one that comes, so that one that is stuck keeps nobody
/// out; on a pseudo-terminal, those who have it open share it. Their input waits while the guest takes
/// none.
pub struct Clients {
    listener: Listener,
    buffer: Arc<ClientBuffer>,
    backlog: EventFd,
    device: Arc<dyn Input>,
    drained: EventFd,
    client: Option<Client>,
    /// Read, but not yet taken by the guest's console.
    pending: Vec<u8>,
    log: LogLimit,
}

impl Clients {
    /// Those who come from `listener`, for this device, which signals `drained` when it has room
    /// again. Its output is in `buffer`, which signals `backlog`.
    pub(super) fn new(
        listener: Listener,
        buffer: Arc<ClientBuffer>,
        backlog: EventFd,
        device: Arc<dyn Input>,
        drained: EventFd,
    ) -> Self {
        Self {
            listener,
            buffer,
            backlog,
            device,
            drained,
            client: None,
            pending: Vec::new(),
            log: LogLimit::new("console"),
        }
    }

    /// A client may have come.
    fn accept(&mut self, ops: &mut EventOps) {
        let accepted = self.listener.accept();
        let is_pty = self.listener.is_pty();
        let is_there = self.client.as_ref().is_some_and(|client| !client.hung_up);
        match accepted {
            // One more that shares it, or takes the place of one whose end wasn't seen: output may have
            // been refused in between.
            Ok(Some(file)) if is_pty && is_there => self.buffer.attach(file),
            Ok(Some(file)) => {
                self.unpoll(ops);
                self.buffer.attach(file.clone());
                resize(&*self.device, &file);
                self.client = Some(Client { file, polled: None, ended: false, hung_up: false });
            }
            Ok(None) => {}
            Err(e) => {
                self.log.warn(format_args!("a client can't be accepted, it is tried again: {e}"));
                self.listener.pause(ops);
            }
        }
        self.poll(ops);
    }

    /// The client has sent something, takes more, or is gone.
    fn serve(&mut self, events: EventSet, ops: &mut EventOps) {
        if events.contains(EventSet::OUT) {
            self.buffer.flush();
        }
        if let Some(client) = &mut self.client
            && events.intersects(EventSet::HANG_UP | EventSet::ERROR)
        {
            client.hung_up = true;
            self.buffer.detach();
        }
        if self.pending.is_empty() && events != EventSet::OUT {
            self.read(ops);
        }
        self.poll(ops);
    }

    /// Moves what the client has sent to the guest; reads once.
    fn read(&mut self, ops: &mut EventOps) {
        let Some(client) = &mut self.client else { return };
        let mut buffer = [0; READ_SIZE];
        match (&*client.file).read(&mut buffer) {
            // Half-closed: it may still read.
            Ok(0) if !client.hung_up => client.ended = true,
            Ok(count @ 1..) => {
                // Nothing else tells of a change.
                resize(&*self.device, &client.file);
                self.pending.extend_from_slice(buffer.get(..count).unwrap_or_default());
                self.hand_over();
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && !client.hung_up => {}
            Ok(0) | Err(_) => {
                self.unpoll(ops);
                self.client = None;
                self.buffer.detach();
                // What told of another one may have been taken for one that shares a terminal; and
                // the next one has to be looked out for.
                if self.listener.is_pty() {
                    self.accept(ops);
                }
            }
        }
    }

    /// Has the guest's console take what it has room for.
    fn hand_over(&mut self) {
        let taken = self.device.enqueue(&self.pending);
        self.pending.drain(..taken.min(self.pending.len()));
    }

    /// The guest's console has room again.
    fn resume(&mut self, ops: &mut EventOps) {
        // Only clears the event; there is nothing else to know.
        let _ = self.drained.read();
        self.hand_over();
        self.poll(ops);
    }

    /// Polls the client for what it is waited for now.
    fn poll(&mut self, ops: &mut EventOps) {
        let Some(client) = &mut self.client else { return };
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !client.ended && self.pending.is_empty());
        wanted.set(EventSet::OUT, self.buffer.has_backlog());
        // That it has hung up is always told: what it has sent waits without being polled.
        let wanted = (!client.hung_up || wanted.contains(EventSet::IN)).then_some(wanted);
        if wanted == client.polled {
            return;
        }
        let events =
            Events::with_data(&*client.file, token::CLIENT, wanted.unwrap_or(EventSet::empty()));
        let result = match (client.polled, wanted) {
            (None, _) => ops.add(events),
            (Some(_), Some(_)) => ops.modify(events),
            (Some(_), None) => ops.remove(events),
        };
        match result {
            Ok(()) => client.polled = wanted,
            Err(e) => {
                self.log.warn(format_args!("a client is turned away, it can't be polled: {e}"));
                self.client = None;
                self.buffer.detach();
                // One of a terminal doesn't know, and comes no second time.
                if self.listener.is_pty() {
                    self.listener.pause(ops);
                }
            }
        }
    }

    fn unpoll(&mut self, ops: &mut EventOps) {
        if let Some(client) = &mut self.client
            && client.polled.take().is_some()
        {
            let _ = ops.remove(Events::empty(&*client.file));
        }
    }
}

/// Tells the guest the size of a client's terminal, if it is one.
fn resize(device: &dyn Input, client: &File) {
    if let Some((columns, rows)) = terminal::size(client) {
        device.resize(columns, rows);
    }
}

impl MutEventSubscriber for Clients {
    fn init(&mut self, ops: &mut EventOps) {
        for (fd, token) in [
            (self.listener.as_raw_fd(), token::LISTENER),
            (self.listener.retry.as_raw_fd(), token::RETRY),
            (self.backlog.as_raw_fd(), token::BACKLOG),
            (self.drained.as_raw_fd(), token::DRAINED),
        ] {
            if let Err(e) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                log::error!("a console has no clients, the event loop can't poll it: {e}");
            }
        }
        // One may have come before.
        self.accept(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::LISTENER => self.accept(ops),
            token::CLIENT => self.serve(events.event_set(), ops),
            token::DRAINED => self.resume(ops),
            token::RETRY => {
                self.listener.resume(ops);
                self.accept(ops);
            }
            _ => {
                let _ = self.backlog.read();
                self.poll(ops);
            }
        }
    }
}

#[cfg(test)]
mod tests;
