//! Servers that send anything.

use std::fs::File;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::thread;
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::device::VfioUserDevice;
use super::super::testing::{Action, LONG_TIMEOUT, SHORT_TIMEOUT, Server, message, words};
use super::requests::with_twin;
use super::{BAR0, memory};
use crate::vfio::uapi::{DeviceCalls, IrqAction};

/// xorshift64*, for bytes that are the same each time.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_ne_bytes()[7]).collect()
    }
}

/// Calls everything once; what comes of it is the server's business.
fn exercise(device: &VfioUserDevice) {
    let eventfd = EventFd::new(EFD_NONBLOCK).unwrap();
    for index in 0..9 {
        if let Ok(info) = device.region_info(index) {
            let size = info.size.min(0x2000);
            drop(device.map(&info, 0..size));
        }
        let _ = device.irq_info(index);
    }
    let _ = device.set_irq(0, IrqAction::SetUnmask(&eventfd));
    let _ = eventfd.write(1);
    let _ = device.set_vectors(2, 0, &[Some(&eventfd), None]);
    let _ = device.read(&BAR0, 0, &mut [0; 8]);
    let _ = device.write(&BAR0, 0, &[0; 8]);
    let _ = device.reset();
}

/// A request of the server's own, as it should be: for memory in or beside what it may reach, or one
/// that nobody knows.
fn chaff(random: &mut Random) -> Vec<u8> {
    let (at, size) = (0xff0 + random.next() % 96, random.next() % 96);
    let mut payload = [at, size].map(u64::to_ne_bytes).concat();
    let command = match random.below(4) {
        0 => 11,
        1 => {
            payload.extend(random.bytes(usize::try_from(size).unwrap()));
            12
        }
        _ => {
            let count = random.below(64);
            payload = random.bytes(count);
            random.next().to_ne_bytes()[0].into()
        }
    };
    let id = u16::from_ne_bytes([random.bytes(1)[0], random.bytes(1)[0]]);
    message(id, command, [0, 0x10][random.below(2)], 0, &payload)
}

/// Sends bytes in two parts.
fn send(stream: &UnixStream, random: &mut Random, bytes: &[u8]) {
    let (first, second) = bytes.split_at(random.below(bytes.len() + 1));
    // The client may have hung up.
    let _ = (&mut &*stream).write_all(first);
    if random.below(8) == 0 {
        thread::yield_now();
    }
    let _ = (&mut &*stream).write_all(second);
}

#[test]
fn random_requests_of_a_server_leave_the_device_alive() {
    for seed in 1..=12u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (twin, theirs) = UnixStream::pair().unwrap();
        let theirs = File::from(OwnedFd::from(theirs));
        let (connection, slot) = std::sync::mpsc::channel::<UnixStream>();
        let (mut stream, mut between) = (None, random.clone());
        let mut server = Server::with(move |request| {
            let stream = stream.get_or_insert_with(|| slot.recv().unwrap());
            if request.flags & 1 != 0 {
                return Action::Ignore;
            }
            for _ in 0..between.below(4) {
                let bytes = chaff(&mut between);
                send(stream, &mut between, &bytes);
            }
            if request.command == 1 {
                return Action::SendWithFile(
                    request.answer(&with_twin(0)),
                    theirs.try_clone().unwrap(),
                );
            }
            Action::Default
        });
        connection.send(server.stream.try_clone().unwrap()).unwrap();
        let device = server.connect().unwrap();
        let mut bytes = [0x5au8; 192];
        let host = NonNull::from(&mut bytes[64..]).cast();
        // SAFETY: the array outlives the device, and nothing else looks at it meanwhile.
        unsafe { device.map_dma(0x1000, host, 64).unwrap() };
        // Its answers are read, so that it can go on.
        let mut reading = twin.try_clone().unwrap();
        let reader = thread::spawn(move || std::io::copy(&mut reading, &mut std::io::sink()));
        let asking = thread::spawn(move || {
            for _ in 0..100 {
                let bytes = chaff(&mut random);
                send(&twin, &mut random, &bytes);
            }
            twin
        });
        exercise(&device);
        let twin = asking.join().unwrap();
        exercise(&device);
        assert_eq!(device.failure(), None, "seed {seed}");
        drop(device);
        drop(twin);
        reader.join().unwrap().unwrap();
        let mut guards = bytes[..64].iter().chain(&bytes[128..]);
        assert!(guards.all(|byte| *byte == 0x5a), "seed {seed}");
    }
}

/// Any descriptor.
fn any_file(random: &mut Random) -> File {
    match random.below(6) {
        0 => File::open("/dev/null").unwrap(),
        1 => File::open("/proc/self/mem").unwrap(),
        2 => File::from(OwnedFd::from(UnixStream::pair().unwrap().0)),
        3 => File::from(OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap())),
        4 => memory(random.next() & 0xffff, 0),
        _ => memory(random.next() & 0xffff, libc::MFD_ALLOW_SEALING),
    }
}

#[test]
fn random_messages_of_a_server_never_panic_or_block() {
    for seed in 1..=120u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let spoiled = 1 + random.below(12);
        let mut request_number = 0;
        let mut server = Server::with(move |request| {
            request_number += 1;
            if request_number < spoiled {
                return Action::Default;
            }
            match random.below(7) {
                // Anything, with anything.
                4 => {
                    let count = 1 + random.below(200);
                    Action::SendWithFile(random.bytes(count), any_file(&mut random))
                }
                5 => {
                    let count = [32, 16, 0, request.payload.len()][random.below(4)];
                    let bytes = request.answer(&random.bytes(count));
                    Action::SendWithFile(bytes, any_file(&mut random))
                }
                // A part of an answer, with its rest in the next.
                6 => {
                    let bytes = request.answer(&request.payload);
                    Action::Send(bytes[..random.below(bytes.len() + 1)].to_vec())
                }
                // Anything.
                0 => {
                    let count = random.below(200);
                    Action::Send(random.bytes(count))
                }
                // The right header, and anything.
                1 => {
                    let count = random.below(100);
                    Action::Send(request.answer(&random.bytes(count)))
                }
                // The right size too, with a descriptor.
                2 => {
                    let count = [32, 16, 0, request.payload.len()][random.below(4)];
                    let file = memory(random.next() & 0xffff, libc::MFD_ALLOW_SEALING);
                    Action::SendWithFile(request.answer(&random.bytes(count)), file)
                }
                // A region full of flags and sizes.
                _ => {
                    let mut payload = words(&[32, 7, 0, 0, 0, 0, 0, 0]);
                    let at = random.below(payload.len());
                    payload[at] = random.bytes(1)[0];
                    Action::Send(request.answer(&payload))
                }
            }
        });
        let started = Instant::now();
        if let Ok(device) = server.connect_for(SHORT_TIMEOUT / 4) {
            if seed % 2 == 0 {
                let _ = device.start_guest();
            }
            exercise(&device);
        }
        assert!(started.elapsed() < LONG_TIMEOUT, "seed {seed}: {:?}", started.elapsed());
    }
}
