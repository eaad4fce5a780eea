//! What comes from a server: answers, and requests of its own.
//!
//! One thread of ours listens to the server for as long as the connection lives: it hands answers to
//! whoever waits for them, serves the server's own requests, and notices when the server is gone. It
//! also tells the server when the guest has ended an INTx interrupt.

use std::io;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_INTX_IRQ_INDEX,
};
use vmm_sys_util::epoll::EpollEvent;

use super::budget::Wait;
use super::channel::{Channel, SOCKET, TWIN};
use super::client::{Answer, Awaited, Client, Failure};
use super::message::{Command, Header, Kind, MOST_PAYLOAD, NOTICE_ID, Payload};
use super::socket::WireError;
use crate::sync::lock;

impl Client {
    /// Listens until the conversation is over.
    pub(super) fn listen(&self) {
        while self.failure().is_none() {
            if let Err(failure) = self.attend() {
                self.fail(failure);
            }
        }
    }

    /// Waits for something to happen, and takes care of it.
    fn attend(&self) -> Result<(), Failure> {
        let mut events = [EpollEvent::default(); 3];
        let count = match self.events.wait(&mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(WireError::from(error).into()),
        };
        for event in events.iter().take(count) {
            match (event.data(), self.twin.get()) {
                (SOCKET, _) => self.receive(&self.channel)?,
                (TWIN, Some(twin)) => self.receive(twin)?,
                _ if self.events.is_unmasked() => self.tell_unmasked(),
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells the server that the guest has ended an INTx interrupt.
    pub(super) fn send_unmasked(&self, wait: &mut Wait<'_>) {
        let flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;
        let payload =
            Payload::default().u32(20).u32(flags).u32(VFIO_PCI_INTX_IRQ_INDEX).u32(0).u32(1);
        let (command, kind) = (Command::SetIrqs.number(), Kind::Notice);
        let header = Header { id: NOTICE_ID, command, payload: payload.0.len(), kind };
        let sent = self.channel.send(header, &payload, &[], wait);
        if let Err(error) = sent {
            self.fail(self.wire_failure(error));
        }
    }

    /// Receives a message and does what it asks for.
    fn receive(&self, channel: &Channel) -> Result<(), Failure> {
        let (wait, mut files) = (&mut self.budget.alone(), Vec::new());
        let head = channel
            .receive_header(&mut files, &self.bin, wait)
            .map_err(|error| self.wire_failure(error))?;
        let header = Header::parse(&head).map_err(Failure::nonsense)?;
        let mut rest = |most: usize, what: &str| {
            let size = header.payload;
            if size > most {
                return Err(Failure::nonsense(format_args!("{what} of {size} bytes")));
            }
            let payload = channel.receive_payload(size, &mut files, &self.bin, wait);
            payload.map_err(|error| self.wire_failure(error))
        };
        match header.kind {
            Kind::Reply | Kind::Refusal(_) if !std::ptr::eq(channel, &self.channel) => {
                return Err(Failure::nonsense("an answer where it asks"));
            }
            Kind::Reply => {
                let awaited = self.awaited(header)?;
                let what = format!("an answer to {}", awaited.command.name());
                let payload = rest(awaited.most, &what)?;
                self.hand_over(Ok(Answer { payload, files }));
            }
            // What follows its header says nothing: libvfio-user has the request's structure there,
            // which the specification leaves open.
            Kind::Refusal(errno) => {
                rest(MOST_PAYLOAD, "a refusal")?;
                self.take_refusal(header, errno)?;
            }
            Kind::Command | Kind::Notice => {
                let request = rest(MOST_PAYLOAD, "a request")?;
                self.serve_request(channel, header, &request, wait)?;
            }
        }
        if self.bin.is_full() {
            return Err(Failure::nonsense("more descriptors than can be closed"));
        }
        Ok(())
    }

    fn take_refusal(&self, header: Header, errno: u32) -> Result<(), Failure> {
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

    /// Serves a request of the server's: it reads or writes the guest's RAM by messages where it
    /// can't or doesn't want to map it.
    fn serve_request(
        &self,
        channel: &Channel,
        header: Header,
        request: &[u8],
        wait: &mut Wait<'_>,
    ) -> Result<(), Failure> {
        let answer = lock(&self.ram).serve(header.command, request);
        if header.kind == Kind::Notice {
            return Ok(());
        }
        let (kind, payload) = match answer {
            Ok(payload) => (Kind::Reply, payload),
            Err(errno) => (Kind::Refusal(errno.unsigned_abs()), Payload::default()),
        };
        let header = Header { payload: payload.0.len(), kind, ..header };
        channel.send(header, &payload, &[], wait).map_err(|error| self.wire_failure(error))
    }
}
