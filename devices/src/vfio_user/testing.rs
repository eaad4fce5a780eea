//! A small server for tests, written from the specification and not from the client.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::budget::TimeBudget;
use super::connection::Connection;
use super::device::VfioUserDevice;
use super::error::VfioUserError;

/// How long the client waits for a server that is to answer, on a busy machine too.
pub(super) const LONG_TIMEOUT: Duration = Duration::from_secs(120);

/// How long it waits for one that isn't.
pub(super) const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// A request as it came.
pub(super) struct Request {
    pub(super) id: u16,
    pub(super) command: u16,
    pub(super) flags: u32,
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<File>,
}

impl Request {
    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.payload[at..at + 8].try_into().unwrap())
    }

    /// An answer to it.
    pub(super) fn answer(&self, payload: &[u8]) -> Vec<u8> {
        message(self.id, self.command, 1, 0, payload)
    }

    /// A refusal of it.
    pub(super) fn refuse(&self, errno: u32) -> Vec<u8> {
        message(self.id, self.command, 0x21, errno, &[])
    }
}

/// A message's bytes.
pub(super) fn message(id: u16, command: u16, flags: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).unwrap();
    let mut bytes = [id, command].map(u16::to_ne_bytes).concat();
    bytes.extend([size, flags, error].map(u32::to_ne_bytes).concat());
    bytes.extend(payload);
    bytes
}

pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// What the server does with a request.
pub(super) enum Action {
    /// What the device below does.
    Default,
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these bytes with a file.
    SendWithFile(Vec<u8>, File),
    /// Says nothing.
    Ignore,
    /// Closes the connection.
    Close,
}

/// Command, IOVA, size, and the file with the offset.
type Lent = (u16, u64, u64, Option<(File, u64)>);

/// A device with 16 registers that keep what is written, in BAR 0, and the record of its requests.
pub(super) struct DeviceState {
    pub(super) registers: [u8; 64],
    pub(super) config: [u8; 256],
    /// Of each request to a region: command, offset, count.
    pub(super) accesses: Vec<(u16, u64, u32)>,
    /// Of each `SET_IRQS`: the header's flags; flags, index, start, count; and the eventfds.
    pub(super) irqs: Vec<(u32, [u32; 4], Vec<File>)>,
    /// Of each `DMA_MAP` and `DMA_UNMAP`.
    pub(super) dma: Vec<Lent>,
    pub(super) resets: u32,
}

impl DeviceState {
    fn new() -> Self {
        let (accesses, irqs, dma, resets) = Default::default();
        Self { registers: [0; 64], config: [0; 256], accesses, irqs, dma, resets }
    }
}

/// What a server does with each request.
pub(super) type Handler = Box<dyn FnMut(&Request) -> Action + Send>;

/// A server in a thread, and its end of the connection.
pub(super) struct Server {
    pub(super) device_state: Arc<Mutex<DeviceState>>,
    pub(super) stream: UnixStream,
    client: Option<UnixStream>,
    /// Whether the client is to wait no more.
    pub(super) is_stop_requested: fn() -> bool,
}

/// The version data of a server that takes 3 descriptors and 16 bytes at once.
pub(super) const SMALL: &[u8] =
    b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":3,\"max_data_xfer_size\":16}}\0";

impl Server {
    /// A server that does as usual.
    pub(super) fn new() -> Self {
        Self::with(|_| Action::Default)
    }

    /// A server that does this.
    pub(super) fn with(handler: impl FnMut(&Request) -> Action + Send + 'static) -> Self {
        let (stream, client) = UnixStream::pair().unwrap();
        let device_state = Arc::new(Mutex::new(DeviceState::new()));
        let (served, shared) = (stream.try_clone().unwrap(), device_state.clone());
        thread::spawn(move || serve(&served, &shared, Box::new(handler)));
        Self { device_state, stream, client: Some(client), is_stop_requested: || false }
    }

    /// Connects a client to it.
    pub(super) fn connect(&mut self) -> Result<VfioUserDevice, VfioUserError> {
        self.connect_for(LONG_TIMEOUT)
    }

    /// Connects a client that waits no longer than this.
    pub(super) fn connect_for(
        &mut self,
        deadline: Duration,
    ) -> Result<VfioUserDevice, VfioUserError> {
        let socket = Connection::over(self.client.take().unwrap()).unwrap();
        let budget = TimeBudget::new(deadline, self.is_stop_requested);
        VfioUserDevice::over(Path::new("/run/test.sock"), socket, budget)
    }
}

fn serve(stream: &UnixStream, device_state: &Mutex<DeviceState>, mut handler: Handler) {
    while let Some(request) = receive(stream) {
        let act = match handler(&request) {
            Action::Default => default_action(&mut device_state.lock().unwrap(), request),
            act => act,
        };
        let sent = match act {
            Action::Send(bytes) => (&mut &*stream).write_all(&bytes).is_ok(),
            Action::SendWithFile(bytes, file) => send_with_file(stream, &bytes, file),
            Action::Ignore | Action::Default => true,
            Action::Close => false,
        };
        if !sent {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

/// Sends a message with a file, which is the client's alone before it has all of the message: the last close of
/// a file that takes its time is the client's.
fn send_with_file(mut stream: &UnixStream, message: &[u8], file: File) -> bool {
    let (header, payload) = message.split_at(message.len().min(16));
    let sent = stream.send_with_fd(header, file.as_raw_fd()).is_ok();
    drop(file);
    sent && stream.write_all(payload).is_ok()
}

pub(super) fn receive(stream: &UnixStream) -> Option<Request> {
    let mut header = [0; 16];
    let mut files = Vec::new();
    fill(stream, &mut header, &mut files)?;
    let number = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; usize::try_from(word(4)).unwrap() - 16];
    fill(stream, &mut payload, &mut files)?;
    Some(Request { id: number(0), command: number(2), flags: word(8), payload, files })
}

fn fill(stream: &UnixStream, buffer: &mut [u8], files: &mut Vec<File>) -> Option<()> {
    let mut at = 0;
    while at < buffer.len() {
        let mut fds: [RawFd; 16] = [0; 16];
        let part = &mut buffer[at..];
        let mut part = [libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }];
        // SAFETY: the vector names `part`, which may hold any bytes.
        let (received, count) = unsafe { stream.recv_with_fds(&mut part, &mut fds) }.ok()?;
        // SAFETY: the kernel has just made these descriptors for us.
        files.extend(fds[..count].iter().map(|fd| unsafe { File::from_raw_fd(*fd) }));
        at += Some(received).filter(|received| *received != 0)?;
    }
    Some(())
}

fn default_action(device_state: &mut DeviceState, mut request: Request) -> Action {
    let files = std::mem::take(&mut request.files);
    Action::Send(match request.command {
        1 => request.answer(SMALL),
        // RESET 1, PCI 2; 9 regions, 5 interrupts.
        4 => request.answer(&words(&[16, 3, 9, 5])),
        // READ 1, WRITE 2.
        5 => request.answer(&words(&[32, 3, request.u32(8), 0, 64, 0, 0, 0])),
        // EVENTFD 1.
        7 => request.answer(&words(&[16, 1, request.u32(8), 8])),
        2 => {
            let file = files.into_iter().next().map(|file| (file, request.u64(8)));
            device_state.dma.push((2, request.u64(16), request.u64(24), file));
            request.answer(&[])
        }
        3 => {
            device_state.dma.push((3, request.u64(8), request.u64(16), None));
            request.answer(&request.payload)
        }
        8 => {
            let set = [4, 8, 12, 16].map(|at| request.u32(at));
            device_state.irqs.push((request.flags, set, files));
            if request.flags & 0x10 != 0 {
                return Action::Ignore;
            }
            request.answer(&[])
        }
        9 | 10 => {
            let (offset, count) = (request.u64(0), request.u32(12));
            device_state.accesses.push((request.command, offset, count));
            let start = usize::try_from(offset).unwrap();
            let end = start + usize::try_from(count).unwrap();
            let region: &mut [u8] = match request.u32(8) {
                7 => &mut device_state.config,
                _ => &mut device_state.registers,
            };
            let Some(registers) = region.get_mut(start..end) else {
                return Action::Send(request.refuse(22));
            };
            let (head, data) = request.payload.split_at(16);
            if request.command == 10 {
                registers.copy_from_slice(data);
                request.answer(head)
            } else {
                request.answer(&[head, registers].concat())
            }
        }
        13 => {
            device_state.resets += 1;
            request.answer(&[])
        }
        _ => request.refuse(95),
    })
}
