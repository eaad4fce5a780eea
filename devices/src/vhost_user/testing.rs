//! A backend for tests, which shares nothing with the `vhost` crate: messages as the specification has
//! them, and ways to go wrong.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmm_sys_util::tempfile::TempFile;

use crate::virtio::{Activation, DeviceEvents, QueueAddresses, VirtQueue};

/// How long a test waits for what has to come.
pub(super) const SOON: Duration = Duration::from_secs(60);

pub(super) const GET_FEATURES: u32 = 1;
pub(super) const SET_FEATURES: u32 = 2;
pub(super) const SET_MEM_TABLE: u32 = 5;
pub(super) const SET_VRING_ADDR: u32 = 9;
pub(super) const SET_VRING_BASE: u32 = 10;
pub(super) const GET_VRING_BASE: u32 = 11;
pub(super) const SET_VRING_KICK: u32 = 12;
pub(super) const SET_VRING_CALL: u32 = 13;
pub(super) const GET_PROTOCOL_FEATURES: u32 = 15;
pub(super) const GET_QUEUE_NUM: u32 = 17;
pub(super) const SET_VRING_ENABLE: u32 = 18;
pub(super) const SET_BACKEND_REQ_FD: u32 = 21;
pub(super) const GET_CONFIG: u32 = 24;
pub(super) const SET_CONFIG: u32 = 25;
pub(super) const GET_INFLIGHT_FD: u32 = 31;
pub(super) const SET_INFLIGHT_FD: u32 = 32;
pub(super) const RESET_DEVICE: u32 = 34;
pub(super) const SET_STATUS: u32 = 39;
pub(super) const GET_STATUS: u32 = 40;

/// VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC, and one of the device's.
pub(super) const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 3;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, RESET_DEVICE.
pub(super) const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13;
pub(super) const INFLIGHT: u64 = 1 << 12;
pub(super) const STATUS: u64 = 1 << 16;

/// A request as it came.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) code: u32,
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<File>,
}

impl Request {
    pub(super) fn u64(&self) -> u64 {
        u64::from_le_bytes(self.payload[..8].try_into().unwrap())
    }
}

/// What it does instead of answering a request of this code.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wrong {
    Hang,
    Die,
    Refuse,
    /// Random bytes.
    Nonsense,
    /// A byte now and then.
    Dribble,
    /// An answer with as many descriptors as the kernel takes.
    Descriptors,
}

/// How a backend is.
#[derive(Clone, Debug)]
pub(super) struct Fake {
    pub(super) features: u64,
    pub(super) protocol: u64,
    pub(super) queues: u64,
    pub(super) config: Vec<u8>,
    /// The status that it tells, beside what it was told.
    pub(super) status: (u64, Arc<AtomicU64>),
    pub(super) wrong: Option<(u32, Wrong)>,
}

impl Default for Fake {
    fn default() -> Self {
        let config = vec![1, 2, 3, 4, 5, 6, 7, 8];
        let (status, wrong) = Default::default();
        Self { features: FEATURES, protocol: PROTOCOL, queues: 4, config, status, wrong }
    }
}

impl Fake {
    /// Serves a connection in a thread; answers what is requested.
    pub(super) fn serve(self, stream: UnixStream) -> Receiver<Request> {
        let (tell, told) = mpsc::channel();
        thread::spawn(move || self.run(&stream, &tell));
        told
    }

    /// The same with the first connection that comes to this path.
    pub(super) fn listen(self, path: &Path) -> Receiver<Request> {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let _ = self.run(&stream, &tell);
        });
        told
    }

    fn run(mut self, stream: &UnixStream, tell: &Sender<Request>) -> io::Result<()> {
        loop {
            let (request, needs_reply) = receive(stream)?;
            let code = request.code;
            if let Some((_, wrong)) = self.wrong.filter(|(at, _)| *at == code) {
                go_wrong(stream, code, wrong)?;
                continue;
            }
            let answer = self.answer(&request);
            let wants_files = code == GET_INFLIGHT_FD;
            let answer = answer.or_else(|| (needs_reply && !wants_files).then(|| vec![0; 8]));
            if tell.send(request).is_err() {
                return Ok(());
            }
            if let Some(payload) = answer {
                send(stream, code, &payload, &[])?;
            } else if wants_files {
                let file = TempFile::new().unwrap().into_file();
                let layout = [4096u64.to_le_bytes(), [0; 8], [1, 0, 16, 0, 0, 0, 0, 0]].concat();
                send(stream, code, &layout, &[file.as_raw_fd()])?;
            }
        }
    }

    fn answer(&mut self, request: &Request) -> Option<Vec<u8>> {
        let number = |number: u64| Some(number.to_le_bytes().to_vec());
        match request.code {
            GET_FEATURES => number(self.features),
            GET_PROTOCOL_FEATURES => number(self.protocol),
            GET_QUEUE_NUM => number(self.queues),
            GET_VRING_BASE => Some(request.payload.clone()),
            GET_CONFIG => {
                let wanted = request.payload.len() - 12;
                let mut answer = request.payload[..12].to_vec();
                answer.extend(self.config.iter().chain(std::iter::repeat(&0)).take(wanted));
                Some(answer)
            }
            SET_CONFIG => {
                let at = usize::from(request.payload[0]);
                let data = &request.payload[12..];
                self.config[at..at + data.len()].copy_from_slice(data);
                None
            }
            SET_STATUS => {
                self.status.0 = request.u64();
                None
            }
            GET_STATUS => {
                let (told, changed) = &self.status;
                number(told ^ changed.load(Ordering::SeqCst))
            }
            _ => None,
        }
    }
}

fn go_wrong(stream: &UnixStream, code: u32, wrong: Wrong) -> io::Result<()> {
    let mut out = stream;
    match wrong {
        Wrong::Hang => {
            // Until the other side ends.
            let _ = out.read(&mut [0; 4096]);
            Err(io::ErrorKind::ConnectionAborted.into())
        }
        Wrong::Die => Err(io::ErrorKind::ConnectionAborted.into()),
        Wrong::Refuse => send(stream, code, &1u64.to_le_bytes(), &[]),
        Wrong::Nonsense => out.write_all(&[0xa5; 100]),
        Wrong::Dribble => loop {
            out.write_all(&[1])?;
            thread::sleep(Duration::from_millis(20));
        },
        Wrong::Descriptors => {
            let file = TempFile::new().unwrap().into_file();
            send(stream, code, &[0; 8], &[file.as_raw_fd(); 250])
        }
    }
}

/// Sends a reply.
pub(super) fn send(
    mut to: &UnixStream,
    code: u32,
    payload: &[u8],
    fds: &[RawFd],
) -> io::Result<()> {
    let size = u32::try_from(payload.len()).unwrap();
    let header = [code, 0x1 | 0x4, size].map(u32::to_le_bytes).concat();
    to.send_with_fds(&[header.as_slice()], fds).map_err(io::Error::from)?;
    to.write_all(payload)
}

/// A request, and whether an answer is wanted in any case.
fn receive(mut from: &UnixStream) -> io::Result<(Request, bool)> {
    let (mut header, mut fds) = ([0u8; 12], [0; 32]);
    let mut part = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 12 }];
    // SAFETY: the vector names the header.
    let (read, count) = unsafe { from.recv_with_fds(&mut part, &mut fds) }?;
    if read != 12 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; usize::try_from(word(8)).unwrap()];
    from.read_exact(&mut payload)?;
    let files = fds[..count].iter().map(|fd| {
        // SAFETY: just received; nobody else owns it.
        unsafe { std::os::fd::FromRawFd::from_raw_fd(*fd) }
    });
    let request = Request { code: word(0), payload, files: files.collect() };
    Ok((request, word(4) & 8 != 0))
}

/// Where guest RAM begins.
pub(super) const RAM: u64 = 0x4000_0000;
const RAM_SIZE: usize = 0x10_0000;

/// A driver: RAM with a file, and a queue at its start.
pub(super) struct Driver {
    pub(super) memory: GuestMemoryMmap,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
    pub(super) changed: EventFd,
    pub(super) events: Arc<DeviceEvents>,
}

impl Driver {
    pub(super) fn new() -> Self {
        let file = TempFile::new().unwrap().into_file();
        file.set_len(RAM_SIZE as u64).unwrap();
        let range = (GuestAddress(RAM), RAM_SIZE, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let [kick, call, changed] =
            [(); 3].map(|()| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap());
        let events = DeviceEvents::new(changed.try_clone().unwrap()).into();
        Self { memory, kick, call, changed, events }
    }

    /// Sets the indices of the rings.
    pub(super) fn set_indices(&self, available: u16, used: u16) {
        self.memory.write_obj(available, GuestAddress(RAM + 0x1002)).unwrap();
        self.memory.write_obj(used, GuestAddress(RAM + 0x2002)).unwrap();
    }

    pub(super) fn activation(&self, features: u64) -> Activation {
        let addresses =
            QueueAddresses { descriptors: RAM, available: RAM + 0x1000, used: RAM + 0x2000 };
        let eventfds = (self.kick.try_clone().unwrap(), self.call.try_clone().unwrap());
        let memory = self.memory.clone();
        let queue = VirtQueue::new(0, (16, addresses), features, memory.clone(), eventfds).unwrap();
        Activation { features, queues: vec![queue], memory, events: self.events.clone() }
    }
}
