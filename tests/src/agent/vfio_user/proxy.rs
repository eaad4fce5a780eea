//! A proxy before the crate's server that makes it behave as libvfio-user does, in what the crate
//! doesn't have.
//!
//! Memory is read and written by messages, on a connection of its own where the client takes one
//! (`twin_socket`), whatever the client requests meanwhile. Error replies have the request's structure
//! behind the header. (`lib/tran.c`, `lib/tran_sock.c`, `lib/libvfio-user.c`.)

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const VERSION: u16 = 1;
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const REGION_WRITE: u16 = 10;
const DMA_READ: u16 = 11;
const DMA_WRITE: u16 = 12;

const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// Region 7 at 4: the command register; its bit for SERR#.
const COMMAND: [u8; 12] = [4, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0];
const SERR: u8 = 1;

/// The most that one message moves, in bytes.
const MAX_DATA: u64 = 4096;

/// Reads and writes a client's memory by messages.
pub(super) struct DmaRequester {
    /// The connection, once there is one; and the number of the last message.
    connection: Mutex<(Option<UnixStream>, u16)>,
    /// Whether the connection is the client's own.
    single: bool,
}

/// A message.
struct Message {
    id: u16,
    command: u16,
    flags: u32,
    error: u32,
    payload: Vec<u8>,
    files: Vec<File>,
}

impl Message {
    fn receive(stream: &UnixStream) -> io::Result<Self> {
        let mut head = [0; 16];
        let mut fds: [RawFd; 16] = [0; 16];
        let mut part = [libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() }];
        // SAFETY: the vector names `head`, which may hold any bytes.
        let (count, fd_count) = unsafe { stream.recv_with_fds(&mut part, &mut fds) }?;
        // SAFETY: the kernel has just made these descriptors for us.
        let files = fds[..fd_count].iter().map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
        let mut stream = stream;
        stream.read_exact(head.get_mut(count..).filter(|_| count != 0).ok_or_else(gone)?)?;
        let number = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let word = |at: usize| u32::from(number(at)) | u32::from(number(at + 2)) << 16;
        let mut payload = vec![0; usize::try_from(word(4)).unwrap_or(0).saturating_sub(16)];
        stream.read_exact(&mut payload)?;
        let (id, command, flags, error) = (number(0), number(2), word(8), word(12));
        Ok(Self { id, command, flags, error, payload, files })
    }

    fn send(&self, stream: &UnixStream) -> io::Result<()> {
        let size = u32::try_from(16 + self.payload.len()).map_err(io::Error::other)?;
        let mut bytes = [self.id, self.command].map(u16::to_ne_bytes).concat();
        bytes.extend([size, self.flags, self.error].map(u32::to_ne_bytes).concat());
        bytes.extend(&self.payload);
        let fds: Vec<RawFd> = self.files.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = stream.send_with_fds(&[&bytes[..]], &fds)?;
        let mut stream = stream;
        stream.write_all(&bytes[sent..])
    }

    /// The answer to it with this payload and these files.
    fn answer(&self, payload: Vec<u8>, files: Vec<File>) -> Self {
        let (id, command) = (self.id, self.command);
        Self { id, command, flags: REPLY, error: 0, payload, files }
    }

    /// The refusal of it, as libvfio-user has it.
    fn refuse(&self) -> Self {
        let structure = self.payload.get(..16).unwrap_or(&self.payload).to_vec();
        let error = libc::EINVAL.unsigned_abs();
        Self { flags: REPLY | ERROR, error, ..self.answer(structure, Vec::new()) }
    }
}

fn gone() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl DmaRequester {
    pub(super) fn new(single: bool) -> Arc<Self> {
        Arc::new(Self { connection: Mutex::default(), single })
    }

    /// Sends a request and takes what comes next for its answer; what follows the address and the
    /// size in there.
    fn request(&self, command: u16, address: u64, size: u64, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, id) = &mut *connection;
        let stream = stream.as_ref().ok_or_else(gone)?;
        *id = id.wrapping_add(1);
        let head = [address, size].map(u64::to_ne_bytes).concat();
        let payload = [&head, data].concat();
        let request = Message { id: *id, command, flags: 0, error: 0, payload, files: Vec::new() };
        request.send(stream)?;
        let answer = Message::receive(stream)?;
        if (answer.id, answer.flags & !ERROR) != (*id, REPLY) {
            // libvfio-user says EPROTO, and is lost from here on.
            eprintln!("message {:#x} is no answer to {:#x}", answer.id, *id);
            std::process::abort();
        }
        match answer.payload.strip_prefix(&head[..]) {
            Some(data) if answer.flags & ERROR == 0 => Ok(data.to_vec()),
            _ => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }

    /// Copies within the client's memory, if all of it is there.
    pub(super) fn copy(&self, source: u64, destination: u64, length: u32) -> Option<()> {
        let length = u64::from(length);
        let mut at = 0;
        while at < length {
            let size = MAX_DATA.min(length - at);
            let data = self.request(DMA_READ, source.checked_add(at)?, size, &[]).ok()?;
            self.request(DMA_WRITE, destination.checked_add(at)?, size, &data).ok()?;
            at += size;
        }
        Some(())
    }

    fn connect(&self, stream: Option<UnixStream>) {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        connection.0 = stream;
    }

    /// Reads memory at this address again and again, whatever the client requests meanwhile.
    fn read_continuously(&self, address: u64) {
        while self.request(DMA_READ, address, 8, &[]).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Takes clients at `path`, one after the other, for the server at `inner`.
pub(super) fn start(path: &Path, inner: &Path, requester: &Arc<DmaRequester>) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let (inner, requester) = (inner.to_owned(), requester.clone());
    thread::spawn(move || {
        for client in listener.incoming() {
            if let Err(error) = client.and_then(|client| forward(&client, &inner, &requester)) {
                eprintln!("the client is lost: {error}");
            }
            requester.connect(None);
        }
    });
    Ok(())
}

/// Passes a client's requests on and the server's answers back.
fn forward(client: &UnixStream, inner: &Path, requester: &Arc<DmaRequester>) -> io::Result<()> {
    let server = UnixStream::connect(inner)?;
    loop {
        let request = Message::receive(client)?;
        let answer = match request.command {
            DMA_MAP => {
                if let Some(address) = request.payload.get(16..24).filter(|_| !requester.single) {
                    let address = u64::from_ne_bytes(address.try_into().map_err(io::Error::other)?);
                    let requester = requester.clone();
                    thread::spawn(move || requester.read_continuously(address));
                }
                request.answer(Vec::new(), Vec::new())
            }
            DMA_UNMAP => request.answer(request.payload.clone(), Vec::new()),
            REGION_WRITE if is_refused(&request.payload) => request.refuse(),
            _ => {
                request.send(&server)?;
                if request.flags & NO_REPLY != 0 {
                    continue;
                }
                let mut answer = Message::receive(&server)?;
                while answer.id != request.id {
                    answer = Message::receive(&server)?;
                }
                match request.command {
                    VERSION => negotiate(&request, client, requester)?,
                    _ if answer.flags & ERROR != 0 => request.refuse(),
                    _ => answer,
                }
            }
        };
        answer.send(client)?;
    }
}

/// Whether this is a write of SERR# to the command register, which libvfio-user refuses.
fn is_refused(payload: &[u8]) -> bool {
    payload.starts_with(&COMMAND) && payload.get(17).is_some_and(|high| high & SERR != 0)
}

/// The reply to a client's version request, as libvfio-user has it.
fn negotiate(
    request: &Message,
    client: &UnixStream,
    requester: &DmaRequester,
) -> io::Result<Message> {
    let offers = request.payload.windows(13).any(|part| part == b"\"twin_socket\"");
    let mut json =
        r#"{ "capabilities": { "max_msg_fds": 8, "max_data_xfer_size": 1048576"#.to_owned();
    let mut files = Vec::new();
    if offers && !requester.single {
        let (ours, theirs) = UnixStream::pair()?;
        requester.connect(Some(ours));
        files.push(File::from(OwnedFd::from(theirs)));
        json += r#", "twin_socket": { "supported": true, "fd_index": 0 }"#;
    } else {
        requester.connect(Some(client.try_clone()?));
    }
    json += " } }\0";
    Ok(request.answer([&[0, 0, 1, 0], json.as_bytes()].concat(), files))
}
