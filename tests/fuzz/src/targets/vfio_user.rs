//! A vfio-user server that answers anything (QEMU `docs/interop/vfio-user.rst`).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::ptr::NonNull;
use std::thread;

use arbitrary::{Result, Unstructured};
use devices::peer::Peer;
use devices::vfio::pci::{PciFunction, PciOptions};
use devices::vfio::uapi::{DeviceCalls, IrqAction};
use devices::vfio_user::VfioUserDevice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::file::MemoryFile;
use crate::scratch::Scratch;

/// The version data of a server as libvfio-user's.
const VERSION: &[u8] =
    b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":4096}}\0";

/// The most requests that are answered.
const MAX_REQUESTS: usize = 200;

pub fn run(data: &[u8]) {
    let scratch = Scratch::new();
    let path = scratch.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, _) = listener.accept().unwrap();
            let _ = serve(&stream, &mut Unstructured::new(data));
        });
        match VfioUserDevice::connect(&path, Peer::Any) {
            Ok(device) => exercise(device),
            Err(error) => drop(error.to_string()),
        }
    });
}

/// Calls everything once, as a function of PCI too.
fn exercise(device: VfioUserDevice) {
    let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut memory = [0x5a_u8; 128];
    let host = NonNull::from(&mut memory).cast();
    // SAFETY: the array outlives the device, and nothing else looks at it meanwhile.
    let _ = unsafe { device.map_dma(0x1000, host, 128) };
    let device = std::sync::Arc::new(device);
    for index in 0..9 {
        if let Ok(info) = device.region_info(index) {
            let _ = device.read(&info, 0, &mut [0; 4]);
            let _ = device.map(&info, 0..info.size.min(0x2000));
        }
        let _ = device.irq_info(index);
    }
    let _ = device.set_irq(0, IrqAction::SetUnmask(&eventfd));
    let _ = device.set_vectors(2, 0, &[Some(&eventfd), None]);
    let _ = device.reset();
    if let Ok(function) = PciFunction::open(device.clone(), "fuzz", PciOptions::default(), 4096) {
        function.bars();
    }
    let _ = device.start_guest();
    let _ = device.failure();
}

/// Answers requests; ends the connection after anything that isn't an answer, and at the input's end.
fn serve(stream: &UnixStream, u: &mut Unstructured<'_>) -> Result<()> {
    let mut stream = stream;
    for _ in 0..MAX_REQUESTS {
        let mut header = [0; 16];
        if stream.read_exact(&mut header).is_err() {
            break;
        }
        let [id0, id1, command, _, s0, s1, s2, _, flags, ..] = header;
        let size = u32::from_ne_bytes([s0, s1, s2, 0]) as usize;
        let mut payload = vec![0; size.saturating_sub(16)];
        if stream.read_exact(&mut payload).is_err() {
            break;
        }
        // One without an answer.
        if flags & 0x10 != 0 {
            continue;
        }
        let mut answer = usual(command, &payload);
        let (kind, mut error, mut files) = (u.arbitrary::<u8>()?, 0_u32, Vec::new());
        let mut kind_of_message = 1_u32;
        match kind & 7 {
            0 | 1 => {}
            2 => {
                for _ in 0..=kind >> 6 {
                    let (at, byte) = (u.arbitrary::<u8>()?, u.arbitrary()?);
                    if let Some(place) = answer.get_mut(usize::from(at)) {
                        *place = byte;
                    }
                }
            }
            3 => {
                let size = usize::from(u.arbitrary::<u8>()?).min(u.len());
                answer = u.bytes(size)?.to_vec();
            }
            4 => answer.resize(usize::from(u.arbitrary::<u8>()?), 0),
            5 => (kind_of_message, error) = (0x21, u.arbitrary::<u8>()?.into()),
            // A request of its own before the answer.
            6 => {
                let (command, address, size) = (11 + (kind >> 7), u.arbitrary::<u16>()?, 8_u64);
                let mut request = [u64::from(address), size].map(u64::to_ne_bytes).concat();
                request.extend(if command == 12 { &[1; 8][..] } else { &[] });
                let bytes = message([7, 0], command, 0x10, 0, &request);
                let _ = stream.write_all(&bytes);
            }
            _ => {
                let size = usize::from(u.arbitrary::<u8>()?).min(u.len());
                let _ = stream.write_all(u.bytes(size)?);
                break;
            }
        }
        if kind & 0x18 == 0x18 {
            let content = vec![0; usize::from(kind >> 5) << 12];
            files.push(MemoryFile::sealable(&content).into_file());
        }
        let bytes = message([id0, id1], command, kind_of_message, error, &answer);
        if send(stream, &bytes, &files).is_none() {
            break;
        }
    }
    // The other side waits no more.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    Ok(())
}

fn send(stream: &UnixStream, bytes: &[u8], files: &[File]) -> Option<()> {
    let fds: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let sent = stream.send_with_fds(&[bytes], &fds).ok()?;
    (sent == bytes.len()).then_some(())
}

fn message(id: [u8; 2], command: u8, flags: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).unwrap_or_default();
    let numbers = [size, flags, error].map(u32::to_ne_bytes).concat();
    [&id[..], &[command, 0], &numbers, payload].concat()
}

/// What a device with configuration space and two BARs answers.
fn usual(command: u8, payload: &[u8]) -> Vec<u8> {
    let word = |at: usize| {
        let bytes = payload.get(at..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    match command {
        1 => VERSION.to_vec(),
        // A PCI device that can be reset.
        4 => words(&[16, 0b11, 9, 5]),
        5 => {
            let size = match word(8) {
                7 => 256,
                0 | 2 => 4096,
                _ => 0,
            };
            words(&[32, 0b111, word(8), 0, size, 0, 0, 0])
        }
        7 => words(&[16, 1, word(8), 4]),
        9 => {
            let count = usize::try_from(word(12)).unwrap_or_default().min(4096);
            let mut answer = payload.get(..16).unwrap_or_default().to_vec();
            let offset = usize::try_from(word(0)).unwrap_or_default();
            answer.extend(CONFIG.iter().skip(offset).chain(std::iter::repeat(&0)).take(count));
            answer
        }
        10 => payload.get(..16).unwrap_or_default().to_vec(),
        _ => Vec::new(),
    }
}

/// Configuration space: ids, status, class, BARs, a list with MSI-X and power management.
const CONFIG: [u8; 0x60] = {
    let mut config = [0; 0x60];
    (config[0], config[1], config[2], config[3]) = (0x36, 0x1b, 0x05, 0x00);
    (config[6], config[0x0b], config[0x34], config[0x3d]) = (0x10, 0x05, 0x40, 1);
    config[0x18] = 0x0c;
    (config[0x40], config[0x41], config[0x42], config[0x44]) = (0x11, 0x50, 3, 0);
    config[0x49] = 0x08;
    (config[0x50], config[0x51]) = (0x01, 0);
    config
};
