//! A backend of vhost-user: an entropy device whose randomness is a counter, so that a guest can tell.
//!
//! It shares nothing with strait's frontend: messages and rings are as their specifications have them. It
//! can go wrong on a request.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::CommandError;

const GET_FEATURES: u32 = 1;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const GET_QUEUE_NUM: u32 = 17;

/// VERSION_1 and PROTOCOL_FEATURES; MQ and REPLY_ACK.
const FEATURES: u64 = 1 << 32 | 1 << 30;
const PROTOCOL: u64 = 1 << 0 | 1 << 3;

/// The device's state.
#[derive(Default)]
struct Device {
    /// Where RAM begins (GPA), and its file.
    memory: Option<(u64, File)>,
    size: u16,
    descriptors: u64,
    used: u64,
    available: u64,
    next: u16,
    kick: Option<File>,
    call: Option<File>,
    count: u8,
}

/// Serves one frontend after the other at `path`; on the request of number `at` goes wrong in a way:
/// `hang`, `die`, `nonsense`, or `descriptors`.
pub(crate) fn serve(path: &str, wrong: Option<(u32, &str)>) -> Result<(), CommandError> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    println!("serving {path}");
    for stream in listener.incoming() {
        if let Err(error) = Device::default().serve(&stream?, wrong) {
            eprintln!("the frontend is lost: {error}");
        }
    }
    Ok(())
}

impl Device {
    fn serve(&mut self, stream: &UnixStream, wrong: Option<(u32, &str)>) -> io::Result<()> {
        loop {
            let kick = self.kick.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            let mut polled = [stream.as_raw_fd(), kick].map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            });
            // SAFETY: two structures, as the count says.
            unsafe { libc::poll(polled.as_mut_ptr(), 2, -1) };
            if polled[1].revents != 0 {
                if let Some(mut kick) = self.kick.as_ref() {
                    kick.read_exact(&mut [0; 8])?;
                }
                self.fill().ok_or(io::ErrorKind::InvalidData)?;
            }
            if polled[0].revents != 0 {
                let (code, needs_reply, payload, files) = receive(stream)?;
                if let Some((_, way)) = wrong.filter(|(at, _)| *at == code) {
                    go_wrong(stream, code, way)?;
                    continue;
                }
                let answer =
                    self.answer(code, &payload, files).ok_or(io::ErrorKind::InvalidData)?;
                match answer {
                    Some(payload) => send(stream, code, &payload, &[])?,
                    None if needs_reply => send(stream, code, &[0; 8], &[])?,
                    None => {}
                }
            }
        }
    }

    /// Does what is requested; what is answered, if anything beside that it is done.
    fn answer(&mut self, code: u32, payload: &[u8], files: Vec<File>) -> Option<Option<Vec<u8>>> {
        let word = |at: usize| Some(u64::from_le_bytes(payload.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u16::from_le_bytes(payload.get(at..at + 2)?.try_into().ok()?));
        let number = |number: u64| Some(Some(number.to_le_bytes().to_vec()));
        match code {
            GET_FEATURES => return number(FEATURES),
            GET_PROTOCOL_FEATURES => return number(PROTOCOL),
            GET_QUEUE_NUM => return number(1),
            SET_MEM_TABLE => self.memory = Some((word(8)?, files.into_iter().next()?)),
            SET_VRING_NUM => self.size = half(4)?,
            SET_VRING_ADDR => {
                (self.descriptors, self.used, self.available) = (word(8)?, word(16)?, word(24)?);
            }
            SET_VRING_BASE => self.next = half(4)?,
            GET_VRING_BASE => {
                self.kick = None;
                return Some(Some([0u32, self.next.into()].map(u32::to_le_bytes).concat()));
            }
            SET_VRING_KICK => self.kick = files.into_iter().next(),
            SET_VRING_CALL => self.call = files.into_iter().next(),
            _ => {}
        }
        Some(None)
    }

    /// Fills the buffers that are available (virtio 1.2, 2.7).
    fn fill(&mut self) -> Option<()> {
        while self.number(self.available + 2)? != self.next {
            let entry = self.available + 4 + 2 * u64::from(self.next % self.size);
            let head = self.number(entry)?;
            let descriptor = self.read(self.descriptors + 16 * u64::from(head), 12)?;
            let address = u64::from_le_bytes(descriptor.get(..8)?.try_into().ok()?);
            let length = u32::from_le_bytes(descriptor.get(8..)?.try_into().ok()?);
            self.count = self.count.wrapping_add(1);
            self.write(address, &vec![self.count; usize::try_from(length).ok()?])?;
            let used = self.used + 4 + 8 * u64::from(self.next % self.size);
            self.write(used, &[u32::from(head), length].map(u32::to_le_bytes).concat())?;
            self.next = self.next.wrapping_add(1);
            self.write(self.used + 2, &self.next.to_le_bytes())?;
            self.call.as_ref()?.write_all(&1u64.to_ne_bytes()).ok()?;
        }
        Some(())
    }

    fn number(&self, address: u64) -> Option<u16> {
        self.read(address, 2).and_then(|bytes| Some(u16::from_le_bytes(bytes.try_into().ok()?)))
    }

    fn read(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let (start, file) = self.memory.as_ref()?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, address.checked_sub(*start)?).ok()?;
        Some(bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Option<()> {
        let (start, file) = self.memory.as_ref()?;
        file.write_all_at(bytes, address.checked_sub(*start)?).ok()
    }
}

fn go_wrong(stream: &UnixStream, code: u32, way: &str) -> io::Result<()> {
    match way {
        "hang" => loop {
            thread::sleep(Duration::from_secs(1000));
        },
        "die" => std::process::abort(),
        "nonsense" => (&*stream).write_all(&[0xa5; 64]),
        _ => {
            let files: Vec<File> =
                (0..200).map(|_| File::open("/dev/null")).collect::<io::Result<_>>()?;
            let fds: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
            send(stream, code, &[0; 8], &fds)
        }
    }
}

fn send(mut to: &UnixStream, code: u32, payload: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let size = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let header = [code, 0x1 | 0x4, size].map(u32::to_le_bytes).concat();
    to.send_with_fds(&[header.as_slice()], fds).map_err(io::Error::from)?;
    to.write_all(payload)
}

/// A request: its number, whether an answer is wanted in any case, its payload and its files.
fn receive(mut from: &UnixStream) -> io::Result<(u32, bool, Vec<u8>, Vec<File>)> {
    let (mut header, mut fds) = ([[0u8; 4]; 3], [0; 8]);
    let mut part = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 12 }];
    // SAFETY: the vector names the header, which may be any bytes.
    let (read, count) = unsafe { from.recv_with_fds(&mut part, &mut fds) }?;
    if read != 12 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let [code, flags, size] = header.map(u32::from_le_bytes);
    let mut payload = vec![0; usize::try_from(size).map_err(io::Error::other)?];
    from.read_exact(&mut payload)?;
    // SAFETY: just received; nobody else owns them.
    let files = fds.iter().take(count).map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
    Ok((code, flags & 8 != 0, payload, files))
}
