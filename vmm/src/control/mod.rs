//! Control from outside: a socket on which the machine is a service of varlink (varlink.org), with systemd's
//! interface for machines and one of its own.
//!
//! The event loop serves it. Nothing that a client sends or doesn't read blocks: messages are bounded, one of each
//! client is taken at a time, and a client that lets too much wait is turned away. Only root and the user who has
//! started strait are accepted.

mod accept;
mod client;
mod message;

use std::fs::File;
use std::os::fd::AsRawFd;

use devices::ratelimit::LogLimit;
use event_manager::{EventOps, EventSet, Events};

use self::client::Client;
use self::message::Call;

#[cfg(feature = "fuzzing")]
pub use self::accept::unreachable;
pub use self::accept::{Accepted, Acceptor, listen};
pub use self::message::{Answer, Request, status};

/// How many clients there may be at a time.
const MAX_CLIENTS: usize = 16;

/// What is told to who wants to know: what has happened to the machine.
pub mod event {
    /// Told first.
    pub(super) const READY: &str = "READY";
    /// It stands still.
    pub const STOP: &str = "STOP";
    /// It runs again.
    pub const RESUME: &str = "RESUME";
    /// It begins anew.
    pub const RESET: &str = "RESET";
    /// Its power button was pressed.
    pub const POWERDOWN: &str = "POWERDOWN";
    /// It has ended.
    pub const SHUTDOWN: &str = "SHUTDOWN";
}

/// The clients of the control socket.
pub struct Control {
    accepted: Accepted,
    clients: Vec<Option<Client>>,
    log: LogLimit,
}

/// A request, whose it is, and whether it is to be answered.
pub struct Pending {
    /// What is asked for.
    pub request: Request,
    client: usize,
    is_answered: bool,
}

impl Control {
    /// Those who are accepted there.
    #[cold]
    pub fn new(accepted: Accepted) -> Self {
        let clients = std::iter::repeat_with(|| None).take(MAX_CLIENTS).collect();
        Self { accepted, clients, log: LogLimit::new("control") }
    }

    /// Has the event loop poll it, with event data from `first` on, of which it takes as many as it has clients
    /// and one.
    ///
    /// # Errors
    ///
    /// It can't be polled.
    pub fn poll(&self, first: u32, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        ops.add(Events::with_data(&self.accepted, first, EventSet::IN))
    }

    /// Something has happened at the socket, 0, or the client with this number: takes what has come, and a
    /// message. What isn't for the machine is answered here; what is, is to be answered. The client's next message
    /// comes with another event, as many as it may have sent at once: others are served between them.
    #[cold]
    pub fn serve(&mut self, number: u32, events: EventSet) -> Option<Pending> {
        let Some(index) = usize::try_from(number).ok().and_then(|number| number.checked_sub(1))
        else {
            self.accept();
            return None;
        };
        let client = self.clients.get_mut(index)?.as_mut()?;
        client.serve(events);
        match message::parse(&client.next_message()?) {
            Some(Call::Answered(reply)) => reply.iter().for_each(|reply| client.send(reply)),
            Some(Call::Subscribe(filter)) => {
                client.subscribe(filter);
                client.send(&message::event(event::READY));
            }
            Some(Call::Request(request, is_answered)) => {
                return Some(Pending { request, client: index, is_answered });
            }
            None => client.turn_away(),
        }
        None
    }

    /// Takes the clients that have come.
    fn accept(&mut self) {
        for _ in 0..MAX_CLIENTS {
            match self.accepted.next() {
                Some(client) => self.admit(client),
                None => return,
            }
        }
    }

    /// Takes a client, which is open non-blocking.
    pub fn admit(&mut self, client: File) {
        match self.clients.iter_mut().find(|place| place.is_none()) {
            Some(free) => *free = Some(Client::new(client)),
            None => {
                self.log.warn(format_args!("{MAX_CLIENTS} clients are there, and one more goes"))
            }
        }
    }

    /// Answers a request.
    #[cold]
    pub fn answer(&mut self, pending: &Pending, answer: Answer) {
        if let Some(Some(client)) = self.clients.get_mut(pending.client)
            && pending.is_answered
        {
            client.send(&message::answered(answer));
        }
    }

    /// Tells those who want to know of an event.
    #[cold]
    pub fn tell(&mut self, event: &str) {
        let clients = self.clients.iter_mut().flatten();
        for client in clients.filter(|client| client.wants(event)) {
            client.send(&message::event(event));
        }
    }

    /// Polls each client for what it is waited for now, with event data from `first` on, and lets go of those
    /// that are gone.
    #[cold]
    pub fn update(&mut self, first: u32, ops: &mut EventOps) {
        for (token, place) in (first.saturating_add(1)..).zip(&mut self.clients) {
            let Some(client) = place else { continue };
            let wanted = client.wanted();
            let events = Events::with_data_raw(client.as_raw_fd(), token, wanted);
            if client.is_gone() {
                // Fails for one that was never polled.
                let _ = ops.remove(events);
                *place = None;
                continue;
            }
            let polled = match client.polled {
                Some(polled) if polled == wanted => continue,
                Some(_) => ops.modify(events),
                None => ops.add(events),
            };
            match polled {
                Ok(()) => client.polled = Some(wanted),
                Err(e) => {
                    self.log.warn(format_args!("a client is turned away, it can't be polled: {e}"));
                    *place = None;
                }
            }
        }
    }
}

#[cfg(feature = "fuzzing")]
impl Control {
    /// Serves each client once for what it is waited for, and lets go of those that are gone; the requests.
    pub fn serve_all(&mut self) -> Vec<Pending> {
        let mut requests = Vec::new();
        for (number, index) in (1..).zip(0..self.clients.len()) {
            let client = self.clients.get(index).and_then(Option::as_ref);
            let wanted = client.map(Client::wanted);
            requests.extend(wanted.and_then(|wanted| self.serve(number, wanted)));
        }
        for place in &mut self.clients {
            *place = place.take().filter(|client| !client.is_gone());
        }
        requests
    }

    /// How many bytes there are of all clients.
    pub fn held(&self) -> usize {
        self.clients.iter().flatten().map(Client::held).sum()
    }
}

#[cfg(test)]
mod tests;
