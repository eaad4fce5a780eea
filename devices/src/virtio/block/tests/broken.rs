//! What a hostile driver hands over.

use super::*;
use crate::virtio::testing::{INDIRECT, NEXT, RAM_SIZE, WRITE};

fn rig() -> (TempFile, Rig) {
    let file = TempFile::disk();
    let rig = Rig::new(&file, RW, Aio::Auto);
    rig.header(IN, 0);
    (file, rig)
}

#[test]
fn broken_chains_are_errors() {
    type Case<'a> = (&'a str, &'a [(u64, u32, u16, u16)]);
    let end = RAM + RAM_SIZE as u64;
    let cases: [Case<'_>; 15] = [
        ("in a circle of one", &[(BUFFERS, 16, NEXT, 0)]),
        ("in a circle", &[(BUFFERS, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 1)]),
        ("outside the table", &[(BUFFERS, 16, NEXT, 16)]),
        ("outside RAM", &[(BUFFERS, 16, NEXT, 1), (end - 1, 2, WRITE, 0)]),
        ("at the end of everything", &[(BUFFERS, 16, NEXT, 1), (u64::MAX, 1, WRITE, 0)]),
        ("header outside RAM", &[(0, 16, NEXT, 1), (STATUS, 1, WRITE, 0)]),
        ("empty", &[(BUFFERS, 0, NEXT, 1), (STATUS, 1, WRITE, 0)]),
        ("empty status", &[(BUFFERS, 16, NEXT, 1), (STATUS, 0, WRITE, 0)]),
        ("4 GiB", &[(BUFFERS, 16, NEXT, 1), (DATA, u32::MAX, WRITE, 0)]),
        ("without a status", &[(BUFFERS, 16, 0, 0)]),
        ("without a header", &[(STATUS, 1, WRITE, 0)]),
        ("with half a header", &[(BUFFERS, 15, NEXT, 1), (STATUS, 1, WRITE, 0)]),
        (
            "in the wrong order",
            &[(BUFFERS, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (STATUS, 1, 0, 0)],
        ),
        ("an indirect table of no whole entries", &[(DATA, 17, INDIRECT, 0)]),
        ("an indirect table outside RAM", &[(end, 16, INDIRECT, 0)]),
    ];
    for (name, descriptors) in cases {
        let (file, mut rig) = rig();
        let before = fs::read(&file.0).unwrap();
        for (index, (addr, len, flags, next)) in descriptors.iter().enumerate() {
            rig.driver.write_descriptor(index as u16, *addr, *len, *flags, *next);
        }
        rig.driver.make_available(0);
        assert!(rig.handle().is_err(), "{name}");
        assert!(rig.driver.used().is_none(), "{name}");
        assert!(fs::read(&file.0).unwrap() == before, "{name}");
    }
}

#[test]
fn indirect_tables_in_indirect_tables_are_an_error() {
    let (_file, mut rig) = rig();
    let mut entry = (DATA + 64).to_le_bytes().to_vec();
    entry.extend(16u32.to_le_bytes());
    entry.extend(INDIRECT.to_le_bytes());
    entry.extend([0; 2]);
    rig.put(DATA, &entry);
    rig.driver.write_descriptor(0, DATA, 16, INDIRECT, 0);
    rig.driver.make_available(0);
    assert!(rig.handle().is_err());
}

#[test]
fn an_index_that_jumps_and_a_head_outside_the_table_are_errors() {
    let (_file, mut rig) = rig();
    rig.driver.set_available_index(1000);
    assert!(rig.handle().is_err());
    let (_file, mut rig) = self::rig();
    rig.driver.make_available(16);
    assert!(rig.handle().is_err());
    let (_file, mut rig) = self::rig();
    rig.driver.make_available(u16::MAX);
    assert!(rig.handle().is_err());
}

#[test]
fn a_device_whose_queue_is_broken_needs_a_reset_and_works_after_it() {
    use std::time::{Duration, Instant};
    let file = TempFile::disk();
    let image = Arc::new(Image::open(&file.0, RW).unwrap());
    let mut block = Block::new("block0".into(), image, &BlockOptions::new(&file.0), 1).unwrap();
    let features = block.features();
    let wait = |done: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < end, "too late");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for round in 0..3 {
        let mut driver = DriverQueue::new(&ram(), RAM, 16);
        let (queue, kick, _call) = driver.device(0, 0);
        let changed = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
        let events = Arc::new(crate::virtio::DeviceEvents::new(changed));
        let memory = driver.memory.clone();
        let activation =
            Activation { features, queues: vec![queue], memory, events: events.clone() };
        block.activate(activation).unwrap();
        // A good request, then a bad one.
        driver.memory.write_slice(&[0; 16], GuestAddress(BUFFERS)).unwrap();
        driver.add(&[(BUFFERS, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        kick.write(1).unwrap();
        assert_eq!(driver.wait_used(), (0, 513), "{round}");
        let first: [u8; 4] = driver.memory.read_obj(GuestAddress(DATA)).unwrap();
        assert_eq!(first, [1; 4], "{round}");
        assert!(!events.needs_reset());
        driver.add(&[(BUFFERS, 16, false)]);
        kick.write(1).unwrap();
        wait(&mut || events.needs_reset());
        block.stop();
        wait(&mut || block.is_stopped());
    }
}

/// A generator of numbers (Marsaglia, Xorshift RNGs).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[test]
fn random_rings_and_requests_never_end_the_process() {
    for seed in 1..400 {
        let mut random = Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed));
        let file = TempFile::disk();
        let access = [RW, RO, SNAPSHOT][random.below(3) as usize];
        let aio = [Aio::Auto, Aio::Threads][random.below(2) as usize];
        let mut rig = Rig::new(&file, access, aio);
        for _ in 0..50 {
            let parts = random.below(4) + 1;
            for index in 0..parts {
                let addr = match random.below(8) {
                    0 => random.next(),
                    1 => RAM + random.below(RAM_SIZE as u64 + 0x1000),
                    _ => BUFFERS + random.below(0x1000),
                };
                let len = match random.below(6) {
                    0 => random.next() as u32,
                    1 => 0,
                    2 => 16,
                    3 => 1,
                    _ => 512 * random.below(4) as u32,
                };
                let write = if index == 0 { 0 } else { WRITE };
                let flags = match random.below(8) {
                    0 => random.next() as u16,
                    _ if index + 1 < parts => write | NEXT,
                    _ => write,
                };
                let next =
                    if random.below(10) == 0 { random.next() as u16 } else { index as u16 + 1 };
                rig.driver.write_descriptor(index as u16, addr, len, flags, next);
            }
            let kind =
                [IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES, 99][random.below(7) as usize];
            rig.header(kind, random.below(80));
            let words: Vec<u8> = (0..8).flat_map(|_| random.below(200).to_le_bytes()).collect();
            rig.put(DATA, &words);
            rig.driver.make_available(if random.below(10) == 0 { random.next() as u16 } else { 0 });
            if random.below(30) == 0 {
                rig.driver.set_available_index(random.next() as u16);
            }
            if rig.handle().is_err() {
                break;
            }
            while rig.driver.used().is_some() {}
        }
        assert_eq!(fs::metadata(&file.0).unwrap().len(), SECTORS * 512, "seed {seed}");
    }
}
