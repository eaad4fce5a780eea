//! A connection on which several threads send, one message after the other.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use super::budget::Wait;
use super::fds::{FdCloser, ReceivedFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::message::{HEADER_SIZE, Header, Payload};
use super::socket::{Socket, WireError};
use crate::sync::lock;

/// A connection.
#[derive(Debug)]
pub(super) struct Channel {
    socket: Socket,
    /// A message is being sent.
    sending: Mutex<bool>,
    sent: Condvar,
}

impl Channel {
    pub(super) fn new(socket: Socket) -> Self {
        let (sending, sent) = Default::default();
        Self { socket, sending, sent }
    }

    /// Sends a message, its descriptors with its first byte.
    pub(super) fn send(
        &self,
        header: Header,
        payload: &Payload,
        fds: &[RawFd],
        wait: &mut Wait<'_>,
    ) -> Result<(), WireError> {
        let head =
            header.to_bytes().ok_or_else(|| std::io::Error::from_raw_os_error(libc::EMSGSIZE))?;
        let bytes = [head.as_slice(), &payload.0].concat();
        self.begin(wait)?;
        let result = self.socket.send(&bytes, fds, wait);
        *lock(&self.sending) = false;
        self.sent.notify_one();
        result
    }

    /// Waits until nobody else sends: the other may be stuck.
    fn begin(&self, wait: &mut Wait<'_>) -> Result<(), WireError> {
        let mut sending = lock(&self.sending);
        while *sending {
            let step = wait.next().ok_or(WireError::Late)?;
            let started = Instant::now();
            let waited = self.sent.wait_timeout(sending, step);
            sending = waited.unwrap_or_else(PoisonError::into_inner).0;
            wait.waited(started.elapsed());
        }
        *sending = true;
        Ok(())
    }

    /// Receives a message's header, and the descriptors that come along.
    pub(super) fn receive_header(
        &self,
        files: &mut Vec<ReceivedFd>,
        bin: &FdCloser,
        wait: &mut Wait<'_>,
    ) -> Result<[u8; HEADER_SIZE], WireError> {
        let mut head = [0; HEADER_SIZE];
        self.socket.receive(&mut head, files, bin, wait)?;
        Ok(head)
    }

    /// Receives what follows a header, of which there are `size` bytes.
    pub(super) fn receive_payload(
        &self,
        size: usize,
        files: &mut Vec<ReceivedFd>,
        bin: &FdCloser,
        wait: &mut Wait<'_>,
    ) -> Result<Vec<u8>, WireError> {
        let mut payload = vec![0; size];
        self.socket.receive(&mut payload, files, bin, wait)?;
        Ok(payload)
    }

    /// Ends the connection for both sides: whoever waits on it is woken.
    pub(super) fn shut_down(&self) {
        self.socket.shut_down();
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

pub(super) const SOCKET: u64 = 0;
const UNMASK: u64 = 1;
pub(super) const TWIN: u64 = 2;

/// What the listening thread waits for.
#[derive(Debug)]
pub(super) struct Events {
    epoll: Epoll,
    /// Signalled at the guest's end of an INTx interrupt.
    unmask: Mutex<Option<EventFd>>,
}

impl Events {
    pub(super) fn new(channel: &Channel) -> io::Result<Self> {
        let events = Self { epoll: Epoll::new()?, unmask: Mutex::default() };
        events.add(channel, SOCKET)?;
        Ok(events)
    }

    pub(super) fn add_twin(&self, channel: &Channel) -> io::Result<()> {
        self.add(channel, TWIN)
    }

    fn add(&self, file: &impl AsRawFd, token: u64) -> io::Result<()> {
        let interest = EpollEvent::new(EventSet::IN, token);
        self.epoll.ctl(ControlOperation::Add, file.as_raw_fd(), interest)
    }

    /// Waits for this, too; `None` for no more.
    pub(super) fn set_unmask(&self, unmask: Option<&EventFd>) -> io::Result<()> {
        let mut current = lock(&self.unmask);
        if let Some(before) = current.take() {
            let nothing = EpollEvent::default();
            self.epoll.ctl(ControlOperation::Delete, before.as_raw_fd(), nothing)?;
        }
        if let Some(unmask) = unmask {
            let unmask = unmask.try_clone()?;
            self.add(&unmask, UNMASK)?;
            *current = Some(unmask);
        }
        Ok(())
    }

    /// Waits until something happens.
    pub(super) fn wait(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        self.epoll.wait(-1, events)
    }

    /// Whether it was signalled. Nothing is there to be read if it was another's wake-up.
    pub(super) fn is_unmasked(&self) -> bool {
        lock(&self.unmask).as_ref().is_some_and(|unmask| unmask.read().is_ok())
    }
}
