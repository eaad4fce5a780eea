//! Broken virtqueues, as a hostile guest makes them for a virtio device that no driver has
//! (virtio 1.2, 2.7 and 4.1.4.3): of strait's own, which have to notice, or of others, which may.

use std::thread;
use std::time::{Duration, Instant};

use crate::CommandError;
use crate::devmem::Window;

/// Where strait has a virtio function's registers in its BAR: the common configuration, and the
/// notifications, 4 bytes each.
const BAR_SIZE: u64 = 0x8000;
const NOTIFY: u64 = 0x3000;

/// Registers of the common configuration: offset and size.
const DEVICE_FEATURE_SELECT: (u64, u64) = (0x00, 4);
const DEVICE_FEATURE: (u64, u64) = (0x04, 4);
const DRIVER_FEATURE_SELECT: (u64, u64) = (0x08, 4);
const DRIVER_FEATURE: (u64, u64) = (0x0c, 4);
const NUM_QUEUES: (u64, u64) = (0x12, 2);
const STATUS: (u64, u64) = (0x14, 1);
const QUEUE_SELECT: (u64, u64) = (0x16, 2);
const QUEUE_SIZE: (u64, u64) = (0x18, 2);
const QUEUE_ENABLE: (u64, u64) = (0x1c, 2);
const QUEUE_ADDRESSES: [u64; 3] = [0x20, 0x28, 0x30];
const QUEUE_RESET: (u64, u64) = (0x3a, 2);

/// `VIRTIO_F_RING_RESET`, in the upper half of the features.
const RING_RESET: u64 = 1 << (40 - 32);

/// `DEVICE_NEEDS_RESET`.
const NEEDS_RESET: u64 = 0x40;

/// The size of each queue, and how far apart they are in memory, with their parts.
const SIZE: u16 = 8;
const STRIDE: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// The most queues that are used.
const MAX_QUEUES: u64 = 8;

/// Flags of a descriptor.
const NEXT: u64 = 1;
const WRITE: u64 = 2;
const INDIRECT: u64 = 4;

/// How long a device may take to notice, or to be reset.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long one that needn't notice is waited for.
const GRACE: Duration = Duration::from_millis(100);

/// A descriptor: address, length, flags, next.
type Descriptor = (u64, u64, u64, u64);

struct Device {
    bar: Window,
    memory: Window,
    /// The address of `memory`.
    base: u64,
    /// How long it may take to notice.
    patience: Duration,
}

/// Hands broken queues to the device whose BAR is at `bar`, in physical memory at `base` that the
/// kernel doesn't use: a queue for each fault, then `rounds` random ones. Says what its status was. A
/// device that isn't strait's own (`lenient`) may do nothing.
pub(crate) fn run(bar: u64, base: u64, rounds: u64, lenient: bool) -> Result<(), CommandError> {
    let device = Device {
        bar: Window::open(bar, BAR_SIZE)?,
        memory: Window::open(base, MAX_QUEUES * STRIDE + 0x1_0000)?,
        base,
        patience: if lenient { GRACE } else { TIMEOUT },
    };
    let buffer = base + MAX_QUEUES * STRIDE;
    device.memory.write_sized(MAX_QUEUES * STRIDE + 12, 4, INDIRECT)?;
    let cases: [(&str, &[Descriptor]); 11] = [
        ("a loop", &[(buffer, 16, NEXT, 1), (buffer, 16, NEXT, 0)]),
        ("itself", &[(buffer, 16, NEXT, 0)]),
        ("out of the table", &[(buffer, 16, NEXT, 0x7fff)]),
        ("no RAM", &[(0x1000, 16, 0, 0)]),
        ("behind RAM", &[(0x5000_0000 - 8, 16, 0, 0)]),
        ("the end of addresses", &[(u64::MAX - 8, 16, WRITE, 0)]),
        ("4 GiB", &[(buffer, 0xffff_ffff, WRITE, 0)]),
        ("nothing", &[(buffer, 0, WRITE, 0)]),
        ("the wrong way", &[(buffer, 16, WRITE | NEXT, 1), (buffer, 16, 0, 0)]),
        ("a broken table", &[(buffer, 17, INDIRECT, 0)]),
        ("a table outside RAM", &[(0x1000, 16, INDIRECT, 0)]),
    ];
    for (number, (what, descriptors)) in (0..).zip(cases) {
        device.start(number)?;
        for queue in 0..device.queues()? {
            device.fill(queue, descriptors)?;
            device.make_available(queue, &[0], 1)?;
        }
        println!("{what}: {:#04x}", device.kick_and_wait()?);
    }
    device.start(0)?;
    (0..device.queues()?).try_for_each(|queue| device.make_available(queue, &[], 1000))?;
    println!("an index that jumps: {:#04x}", device.kick_and_wait()?);
    for (what, place) in [("rings outside RAM", 0x1000), ("rings at odd places", base + 7)] {
        device.begin(0)?;
        for queue in 0..device.queues()? {
            device.enable(queue, [place; 3])?;
        }
        device.write(STATUS, 0xf)?;
        println!("{what}: {:#04x}", device.kick_and_wait()?);
    }
    (0..rounds).try_for_each(|round| device.random(round))?;
    device.reset()?;
    println!("{rounds} random queues: reset");
    Ok(())
}

impl Device {
    fn read(&self, (offset, size): (u64, u64)) -> Result<u64, CommandError> {
        self.bar.read_sized(offset, size)
    }

    fn write(&self, (offset, size): (u64, u64), value: u64) -> Result<(), CommandError> {
        self.bar.write_sized(offset, size, value)
    }

    fn queues(&self) -> Result<u64, CommandError> {
        Ok(self.read(NUM_QUEUES)?.min(MAX_QUEUES))
    }

    /// Resets the device, and waits for it.
    fn reset(&self) -> Result<(), CommandError> {
        self.write(STATUS, 0)?;
        let deadline = Instant::now() + TIMEOUT;
        while self.read(STATUS)? != 0 {
            if Instant::now() > deadline {
                return Err("the device isn't reset".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Resets it and accepts its features: all of them, or as few as there can be. Whether its queues
    /// can be reset.
    fn begin(&self, round: u64) -> Result<bool, CommandError> {
        self.reset()?;
        [1, 3].into_iter().try_for_each(|status| self.write(STATUS, status))?;
        let mut upper = 0;
        for (select, least) in [(0, 0), (1, 1)] {
            self.write(DEVICE_FEATURE_SELECT, select)?;
            upper = if round & 1 == 0 { self.read(DEVICE_FEATURE)? } else { least };
            self.write(DRIVER_FEATURE_SELECT, select)?;
            self.write(DRIVER_FEATURE, upper)?;
        }
        self.write(STATUS, 0xb)?;
        Ok(upper & RING_RESET != 0)
    }

    /// Has a queue's parts at these addresses.
    fn enable(&self, queue: u64, places: [u64; 3]) -> Result<(), CommandError> {
        self.write(QUEUE_SELECT, queue)?;
        self.write(QUEUE_SIZE, SIZE.into())?;
        for (register, place) in QUEUE_ADDRESSES.into_iter().zip(places) {
            self.write((register, 4), place & 0xffff_ffff)?;
            self.write((register + 4, 4), place >> 32)?;
        }
        self.write(QUEUE_ENABLE, 1)
    }

    /// The same with empty queues in memory of ours.
    fn enable_ours(&self, queue: u64) -> Result<(), CommandError> {
        (0..STRIDE / 4).try_for_each(|word| self.memory.write(queue * STRIDE + 4 * word, 0))?;
        let page = self.base + queue * STRIDE;
        self.enable(queue, [page, page + AVAILABLE, page + USED])
    }

    /// Resets it and makes it work on empty queues.
    fn start(&self, round: u64) -> Result<bool, CommandError> {
        let can_reset_queues = self.begin(round)?;
        (0..self.queues()?).try_for_each(|queue| self.enable_ours(queue))?;
        self.write(STATUS, 0xf)?;
        Ok(can_reset_queues)
    }

    /// Resets a queue, and enables it again.
    fn reset_queue(&self, queue: u64) -> Result<(), CommandError> {
        self.write(QUEUE_SELECT, queue)?;
        self.write(QUEUE_RESET, 1)?;
        let deadline = Instant::now() + TIMEOUT;
        while self.read(QUEUE_RESET)? != 0 {
            if Instant::now() > deadline {
                return Err("the queue isn't reset".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.enable_ours(queue)
    }

    /// Writes descriptors from 0 on.
    fn fill(&self, queue: u64, descriptors: &[Descriptor]) -> Result<(), CommandError> {
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            let at = queue * STRIDE + 16 * index;
            self.memory.write_sized(at, 8, *address)?;
            self.memory.write_sized(at + 8, 4, *length)?;
            self.memory.write_sized(at + 12, 2, *flags)?;
            self.memory.write_sized(at + 14, 2, *next)?;
        }
        Ok(())
    }

    /// Makes chains available, by an index of the ring.
    fn make_available(&self, queue: u64, heads: &[u64], index: u64) -> Result<(), CommandError> {
        let ring = queue * STRIDE + AVAILABLE;
        for (slot, head) in (0..u64::from(SIZE)).zip(heads) {
            self.memory.write_sized(ring + 4 + 2 * slot, 2, *head)?;
        }
        self.memory.write_sized(ring + 2, 2, index)
    }

    fn kick(&self) -> Result<(), CommandError> {
        (0..self.queues()?).try_for_each(|queue| self.bar.write_sized(NOTIFY + 4 * queue, 2, queue))
    }

    /// Notifies all queues; the status, once the device has noticed, or in the end.
    fn kick_and_wait(&self) -> Result<u64, CommandError> {
        self.kick()?;
        let deadline = Instant::now() + self.patience;
        loop {
            let status = self.read(STATUS)?;
            if status & NEEDS_RESET != 0 || Instant::now() > deadline {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Queues of random descriptors and indices.
    fn random(&self, seed: u64) -> Result<(), CommandError> {
        let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // xorshift64 (Marsaglia, "Xorshift RNGs").
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let buffers = self.base + MAX_QUEUES * STRIDE;
        let can_reset_queues = self.start(seed)?;
        for queue in 0..self.queues()? {
            let mut descriptors = Vec::new();
            for _ in 0..SIZE {
                let choice = next();
                let address =
                    if choice & 15 == 0 { next() } else { buffers + (choice >> 8) % 0xf000 };
                let length = if choice & 0xf0 == 0 { next() } else { (choice >> 32) % 0x1000 };
                descriptors.push((address, length, choice >> 56 & 7, choice >> 60 & 15));
            }
            self.fill(queue, &descriptors)?;
            let heads: Vec<u64> = (0..SIZE).map(|_| next() & 15).collect();
            self.make_available(queue, &heads, next() % 10)?;
        }
        self.kick()?;
        if can_reset_queues {
            self.reset_queue(seed / 2 % self.queues()?)?;
            self.kick()?;
        }
        thread::sleep(Duration::from_millis(2));
        Ok(())
    }
}
