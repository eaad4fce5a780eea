//! A vhost-user backend that answers anything (QEMU `docs/interop/vhost-user.rst`).

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use devices::vhost_user::{ConfigSource, Kind, Options, Program, Target, VhostUserDevice};
use devices::virtio::{Activation, Device, DeviceEvents, QueueAddresses, VirtQueue};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::driver::{RAM, RAM_SIZE};
use crate::file::MemoryFile;

/// VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28;
/// MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE.
const PROTOCOL: u64 = 1 << 0 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 13;

/// Requests that are answered (QEMU `docs/interop/vhost-user.rst`, "Front-end message types").
const GET_FEATURES: u8 = 1;
const GET_VRING_BASE: u8 = 11;
const GET_PROTOCOL_FEATURES: u8 = 15;
const GET_QUEUE_NUM: u8 = 17;
const GET_CONFIG: u8 = 24;
const GET_INFLIGHT_FD: u8 = 31;
/// The flag of a request that wants an answer, whatever it is.
const NEED_REPLY: u8 = 1 << 3;

/// The most requests that are answered.
const MAX_REQUESTS: usize = 100;

/// How long the device is waited for: longer than it waits for the backend.
const LIMIT: Duration = Duration::from_secs(15);

/// A program that runs on.
struct Endless;

impl Program for Endless {
    fn ending(&mut self) -> Option<String> {
        None
    }

    fn restart(&mut self) -> io::Result<UnixStream> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = serve(&theirs, &mut Unstructured::new(rest));
            // The other side waits no more.
            let _ = theirs.shutdown(std::net::Shutdown::Both);
        });
        let name = ["net", "block", "console", "rng", "scsi", "gpu"];
        let mut kind = Kind::parse(name[usize::from(*kind) % name.len()]).unwrap();
        kind.queues = kind.queues.min(2);
        let options = Options {
            name: "/run/backend.sock".to_owned(),
            option: "--vhost-user TYPE,socket=/run/backend.sock".to_owned(),
            config: ConfigSource::Backend(kind.config_size),
            kind,
        };
        match VhostUserDevice::connect(Target::Started(Some(ours), Box::new(Endless)), options) {
            Ok(device) => exercise(device),
            Err(error) => drop(error.to_string()),
        }
    });
}

/// The life of a device.
fn exercise(mut device: VhostUserDevice) {
    let (features, sizes) = (device.features(), device.queue_sizes());
    device.read_config(0, &mut [0; 64]);
    device.write_config(0, &[1, 2, 3, 4]);
    let memory = ram();
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let queue = |index: u16| {
        let page = RAM + u64::from(index) * 0x1000;
        let addresses =
            QueueAddresses { descriptors: page, available: page + 0x800, used: page + 0xc00 };
        VirtQueue::new(index, (16, addresses), 0, memory.clone(), (event(), event())).unwrap()
    };
    let queues = (0..).zip(sizes).map(|(index, _)| queue(index)).collect();
    let events = Arc::new(DeviceEvents::new(event()));
    let activation = Activation { features, queues, memory: memory.clone(), events };
    let _ = device.activate(activation);
    device.stop();
    let started = Instant::now();
    while !device.is_stopped() {
        assert!(started.elapsed() < LIMIT, "it doesn't stop");
        thread::sleep(Duration::from_micros(100));
    }
    device.read_config(4, &mut [0; 8]);
}

/// Guest RAM that can be shared.
fn ram() -> GuestMemoryMmap {
    let file = MemoryFile::new(&[]).into_file();
    file.set_len(RAM_SIZE).unwrap();
    let size = usize::try_from(RAM_SIZE).unwrap();
    let range = (GuestAddress(RAM), size, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

fn serve(stream: &UnixStream, u: &mut Unstructured<'_>) -> Result<()> {
    let mut stream = stream;
    for _ in 0..MAX_REQUESTS {
        let mut header = [0; 12];
        if receive(stream, &mut header).is_none() {
            break;
        }
        let [request, .., flags, _, _, _, s0, s1, _, _] = header;
        let mut payload = vec![0; usize::from(u16::from_le_bytes([s0, s1]))];
        if stream.read_exact(&mut payload).is_err() {
            break;
        }
        let Some(mut answer) = usual(request, flags, &payload) else { continue };
        let mut files: Vec<File> = Vec::new();
        if request == GET_INFLIGHT_FD {
            files.push(MemoryFile::new(&[0; 4096]).into_file());
        }
        let kind = u.arbitrary::<u8>()?;
        let mut number = request;
        match kind & 7 {
            0..=2 => {}
            3 => {
                for _ in 0..=kind >> 6 {
                    let (at, byte) = (u.arbitrary::<u8>()?, u.arbitrary()?);
                    if let Some(place) = answer.get_mut(usize::from(at) % 64) {
                        *place = byte;
                    }
                }
            }
            4 => {
                let size = usize::from(u.arbitrary::<u8>()?).min(u.len());
                answer = u.bytes(size)?.to_vec();
            }
            5 => answer.resize(usize::from(u.arbitrary::<u8>()?), 0),
            6 => number = u.arbitrary()?,
            _ => {
                let size = usize::from(u.arbitrary::<u8>()?).min(u.len());
                let _ = stream.write_all(u.bytes(size)?);
                return Ok(());
            }
        }
        if kind & 0x38 == 0x38 {
            files.extend((0..kind >> 6).map(|_| MemoryFile::new(&[0; 64]).into_file()));
        }
        let is_whole = matches!(kind & 7, 0..=3);
        let size = u32::try_from(answer.len()).unwrap_or_default();
        let numbers = [number.into(), 0b101, size].map(u32::to_le_bytes).concat();
        let bytes = [&numbers[..], &answer].concat();
        let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        if stream.send_with_fds(&[bytes.as_slice()], &fds).is_err() || !is_whole {
            break;
        }
    }
    Ok(())
}

/// Reads a header, with the files that come with it.
fn receive(stream: &UnixStream, header: &mut [u8; 12]) -> Option<()> {
    let mut fds = [-1; 32];
    let mut part = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 12 }];
    // SAFETY: the buffer is as large as the vector says, and lives on.
    let (size, count) = unsafe { stream.recv_with_fds(&mut part, &mut fds) }.ok()?;
    for fd in &fds[..count] {
        // SAFETY: just received, and nobody else's.
        unsafe { libc::close(*fd) };
    }
    (size == 12).then_some(())
}

/// What a backend answers as it should; nothing to most requests.
fn usual(request: u8, flags: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let number = |number: u64| Some(number.to_le_bytes().to_vec());
    match request {
        GET_FEATURES => number(FEATURES),
        GET_PROTOCOL_FEATURES => number(PROTOCOL),
        GET_QUEUE_NUM => number(4),
        GET_VRING_BASE | GET_CONFIG => Some(payload.to_vec()),
        GET_INFLIGHT_FD => {
            Some([4096_u64.to_le_bytes(), [0; 8], [1, 0, 16, 0, 0, 0, 0, 0]].concat())
        }
        _ if flags & NEED_REPLY != 0 => number(0),
        _ => None,
    }
}
