//! A hostile driver of a queue.

use arbitrary::{Result, Unstructured};
use devices::virtio::{QueueAddresses, QueueError, VirtQueue};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Guest RAM (GPA), and its size in bytes.
pub const RAM: u64 = 0x4000_0000;
pub const RAM_SIZE: u64 = 256 << 10;

/// Where buffers are: beyond the page with the rings.
const BUFFERS: u64 = RAM + 0x1000;

/// The most times that a device works on at a time: a handler comes back for what it left.
const MAX_ROUNDS: u32 = 64;

/// Guest RAM.
pub fn ram() -> GuestMemoryMmap {
    let size = usize::try_from(RAM_SIZE).unwrap();
    GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), size)]).unwrap()
}

/// A queue with its driver.
pub struct Driver {
    memory: GuestMemoryMmap,
    queue: VirtQueue,
    kick: EventFd,
    addresses: QueueAddresses,
    size: u16,
    available: u16,
}

impl Driver {
    /// Of queue `index`, whose features and whose place are among the bytes; none if it has no valid
    /// rings.
    pub fn new(u: &mut Unstructured<'_>, index: u16, memory: &GuestMemoryMmap) -> Result<Self> {
        let (features, place) = (u.arbitrary::<u8>()?, u.arbitrary::<u8>()?);
        let size = 1 << (place & 7).min(6);
        let (mut available, mut used) = (RAM + 0x800, RAM + 0xa00);
        // Rings that overlap, or that end where RAM ends.
        match place >> 5 {
            5 => available = RAM + u64::from(u.arbitrary::<u8>()?) * 2,
            6 => used = RAM + 0x800 + u64::from(u.arbitrary::<u8>()?) * 4,
            7 => used = RAM + RAM_SIZE - u64::from(u.arbitrary::<u8>()?) * 4,
            _ => {}
        }
        let addresses = QueueAddresses { descriptors: RAM, available, used };
        let kick = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        let call = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).unwrap();
        let events = (kick.try_clone().unwrap(), call);
        let features = u64::from(features) << 24 & devices::virtio::QUEUE_FEATURES;
        let queue = VirtQueue::new(index, (size, addresses), features, memory.clone(), events)
            .map_err(|_| arbitrary::Error::IncorrectFormat)?;
        Ok(Self { memory: memory.clone(), queue, kick, addresses, size, available: 0 })
    }

    /// Does as the bytes tell, to their end or until the queue is broken. `handle` is the device's
    /// part, `other` what comes from elsewhere.
    pub fn run(
        &mut self,
        u: &mut Unstructured<'_>,
        handle: &mut dyn FnMut(&mut VirtQueue) -> std::result::Result<(), QueueError>,
        other: &mut dyn FnMut(&mut Unstructured<'_>) -> Result<()>,
    ) -> Result<()> {
        while !u.is_empty() {
            match u.arbitrary::<u8>()? & 7 {
                0..=2 => {
                    self.chain(u)?;
                    if !self.work(handle) {
                        return Ok(());
                    }
                }
                3 => {
                    let index = u.arbitrary::<u8>()?.into();
                    let (addr, len) = (address(u)?, u.arbitrary()?);
                    let (flags, next) = (u.arbitrary()?, u.arbitrary()?);
                    self.describe(index, addr, len, flags, next);
                }
                4 => {
                    let at = RAM + u64::from(u.arbitrary::<u16>()?) * 4;
                    let len = usize::from(u.arbitrary::<u8>()? & 31).min(u.len());
                    let _ = self.memory.write_slice(u.bytes(len)?, GuestAddress(at));
                }
                5 => {
                    let head = u.arbitrary()?;
                    self.make_available(head);
                }
                6 => {
                    let index = u.arbitrary()?;
                    self.set_available(index);
                    if !self.work(handle) {
                        return Ok(());
                    }
                }
                _ => {
                    other(u)?;
                    if !self.work(handle) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Has the device work until it waits; `false` if the queue is broken.
    fn work(
        &mut self,
        handle: &mut dyn FnMut(&mut VirtQueue) -> std::result::Result<(), QueueError>,
    ) -> bool {
        for _ in 0..MAX_ROUNDS {
            if let Err(error) = handle(&mut self.queue) {
                let _ = error.to_string();
                return false;
            }
            if self.kick.read().is_err() {
                break;
            }
        }
        true
    }

    /// Makes a chain that is mostly as it should be, and makes it available.
    fn chain(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        /// Flags of a descriptor (virtio 1.2, 2.7.5).
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let shape = u.arbitrary::<u8>()?;
        let (count, readable) = (u16::from(shape & 7) + 1, u16::from(shape >> 3 & 7));
        for index in 0..count {
            let (addr, len) = (address(u)?, length(u)?);
            let write = if index < readable { 0 } else { WRITE };
            let next = if index + 1 < count { NEXT } else { 0 };
            self.describe(index, addr, len, write | next, index + 1);
        }
        // What the first buffer holds.
        let first = usize::from(u.arbitrary::<u8>()? & 31).min(u.len());
        let addr: u64 = self.memory.read_obj(GuestAddress(self.addresses.descriptors)).unwrap();
        let _ = self.memory.write_slice(u.bytes(first)?, GuestAddress(u64::from_le(addr)));
        self.make_available(0);
        Ok(())
    }

    fn describe(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.addresses.descriptors + 16 * u64::from(index);
        let bytes = [
            &addr.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        let _ = self.memory.write_slice(&bytes.concat(), GuestAddress(at));
    }

    fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        let at = GuestAddress(self.addresses.available + 4 + 2 * slot);
        let _ = self.memory.write_obj(head.to_le(), at);
        self.set_available(self.available.wrapping_add(1));
    }

    fn set_available(&mut self, index: u16) {
        self.available = index;
        let at = GuestAddress(self.addresses.available + 2);
        let _ = self.memory.write_obj(index.to_le(), at);
    }
}

/// An address, mostly in RAM.
fn address(u: &mut Unstructured<'_>) -> Result<u64> {
    let byte = u.arbitrary::<u8>()?;
    Ok(match byte {
        0..=199 => BUFFERS + u64::from(byte) * 64,
        200..=229 => RAM + u64::from(u.arbitrary::<u16>()?) * 4,
        230..=239 => RAM + RAM_SIZE - u64::from(byte - 230),
        _ => u.arbitrary()?,
    })
}

/// A size of a buffer, mostly a small one.
fn length(u: &mut Unstructured<'_>) -> Result<u32> {
    let byte = u.arbitrary::<u8>()?;
    Ok(match byte {
        0..=63 => byte.into(),
        64..=199 => u32::from(byte - 63) * 512,
        200..=249 => u32::from(u.arbitrary::<u16>()?),
        _ => u.arbitrary()?,
    })
}
