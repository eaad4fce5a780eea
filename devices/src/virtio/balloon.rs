//! The memory balloon (virtio 1.2, 5.5), for free page reporting: the guest tells of memory that it
//! doesn't use, which goes back to the host until the guest touches it again.
//!
//! The balloon's size is 0 and stays so; what a driver puts into it all the same goes back, too.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};
use vmm_sys_util::eventfd::EventFd;

use super::device::{Activation, Device, DeviceType, read_config};
use super::device_events::DeviceEvents;
use super::queue::{Chain, QueueError, VirtQueue};
use super::thread::{QueueHandler, QueueThreads};
use crate::ratelimit::LogLimit;
use crate::thread_kind::ThreadKind;
use crate::vfio::region::host_page_size;

/// Traditional memory balloon (virtio 1.2, 5.5.1); no class of PCI is right (0x00, 0xff: none of the
/// others).
const TYPE: DeviceType = DeviceType { id: 5, class: 0x00_ff00 };

/// Feature bits (5.5.3): the driver takes pages back when it runs out of memory; it tells what it
/// fills free pages with; it reports free pages.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_POISON: u64 = 1 << 4;
const F_PAGE_REPORTING: u64 = 1 << 5;

/// The size of its queues: Linux reports up to 32 pieces of memory at a time.
const QUEUE_SIZE: u16 = 128;

/// Its queues (5.5.2): inflate, deflate, statistics, free page hints, reporting. The last is number 4,
/// but Linux doesn't count those that it hasn't negotiated, so that it is 2 there.
const QUEUES: usize = 5;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;

/// The configuration (5.5.4): num_pages, actual, free_page_hint_cmd_id and poison_val, of 4 bytes
/// each. The driver writes actual and poison_val.
const CONFIG_SIZE: usize = 16;
const ACTUAL: std::ops::Range<usize> = 4..8;
const POISON: std::ops::Range<usize> = 12..16;

/// The unit in which pages are numbered (5.5.6): 4096 bytes.
const PAGE_SHIFT: u32 = 12;

/// The most pages of one request to inflate; Linux puts 256 into one.
const MAX_PAGES: usize = 64 << 10;

/// The device.
#[derive(Debug)]
pub struct Balloon {
    name: String,
    config: [u8; CONFIG_SIZE],
    /// What the driver fills free pages with, and expects to find in them.
    poison: Arc<AtomicU32>,
    /// While it works: with what its driver fills free pages, if it tells, and what it is told by.
    active: Option<(Option<Arc<AtomicU32>>, Arc<DeviceEvents>)>,
    threads: QueueThreads,
    log: Arc<LogLimit>,
}

impl Balloon {
    /// A device called `name`.
    pub fn new(name: &str) -> Self {
        let log = Arc::new(LogLimit::named(name));
        let (config, poison, active) = Default::default();
        let threads = QueueThreads::new(ThreadKind::Balloon);
        Self { name: name.to_owned(), config, poison, active, threads, log }
    }

    /// Whether this kernel takes back memory that isn't a file's. One without `CONFIG_ADVISE_SYSCALLS`
    /// doesn't. Nothing else is done in madvise's place: a new mapping over the old one leaves guest RAM
    /// with a hole when it fails, where the next mapping of this process would become the guest's.
    pub fn can_discard() -> bool {
        // SAFETY: no memory at all is advised of (madvise(2): a length of 0 is allowed).
        unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_DONTNEED) == 0 }
    }

    /// What works on its queues, with these features of the driver's and without a thread.
    #[cfg(feature = "fuzzing")]
    pub fn handler(&self, features: u64) -> Box<dyn QueueHandler> {
        let poison = (features & F_PAGE_POISON != 0).then(|| self.poison.clone());
        Box::new(BalloonQueue { poison, log: self.log.clone(), chain: Chain::default() })
    }
}

impl Device for Balloon {
    fn device_type(&self) -> DeviceType {
        TYPE
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_PAGE_POISON | F_PAGE_REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        read_config(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter().enumerate() {
            let at = begin.saturating_add(index);
            if (ACTUAL.contains(&at) || POISON.contains(&at))
                && let Some(field) = self.config.get_mut(at)
            {
                *field = *byte;
            }
        }
        let [.., a, b, c, d] = self.config;
        self.poison.store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
    }

    fn prepare(&mut self, kicks: &[&EventFd]) -> io::Result<()> {
        (0..).zip(kicks).try_for_each(|(queue, _)| self.threads.prepare(queue, &self.name))
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        let Activation { features, queues, events, .. } = activation;
        let poison = (features & F_PAGE_POISON != 0).then(|| self.poison.clone());
        self.active = Some((poison, events));
        queues.into_iter().try_for_each(|queue| self.activate_queue(queue))
    }

    fn threads(&mut self) -> Option<&mut QueueThreads> {
        Some(&mut self.threads)
    }

    fn is_stopped(&mut self) -> bool {
        if !self.threads.is_stopped() {
            return false;
        }
        // What the driver has written is as it was before (2.1.2).
        self.config = Default::default();
        self.poison.store(0, Ordering::Relaxed);
        true
    }

    fn has_queue_reset(&self) -> bool {
        true
    }

    fn activate_queue(&mut self, queue: VirtQueue) -> io::Result<()> {
        let (poison, events) = self.active.clone().ok_or(io::ErrorKind::InvalidInput)?;
        let log = self.log.clone();
        let handler = BalloonQueue { poison, log: log.clone(), chain: Chain::default() };
        self.threads.start(&self.name, queue, handler, events, log)
    }
}

/// The half that works on a queue.
#[derive(Debug)]
struct BalloonQueue {
    /// With what the driver fills free pages, if it tells.
    poison: Option<Arc<AtomicU32>>,
    log: Arc<LogLimit>,
    chain: Chain,
}

impl QueueHandler for BalloonQueue {
    fn handle(&mut self, queue: &mut VirtQueue) -> Result<(), QueueError> {
        while queue.pop(&mut self.chain)? {
            let given = match queue.index() {
                INFLATE => self.inflate(queue.memory()),
                DEFLATE => Ok(()),
                _ => self.report(queue.memory()),
            };
            if let Err(error) = given {
                self.log.warn(format_args!("free memory can't be given back to the host: {error}"));
            }
            queue.push(self.chain.head(), 0)?;
            queue.notify()?;
        }
        Ok(())
    }
}

impl BalloonQueue {
    /// Gives back memory that is free (5.5.6.7). A driver that fills it with a value other than 0
    /// would find zeros.
    fn report(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        if self.poison.as_ref().is_some_and(|poison| poison.load(Ordering::Relaxed) != 0) {
            return Ok(());
        }
        let mut buffers = self.chain.writable().iter();
        buffers.try_for_each(|buffer| discard(memory, buffer.addr.0, buffer.len.into()))
    }

    /// Gives back the pages whose numbers the buffers hold (5.5.6).
    fn inflate(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        let mut run = 0..0;
        for page in pages(memory, &self.chain) {
            if page != run.end {
                discard_pages(memory, &run)?;
                run = page..page;
            }
            run.end = page.saturating_add(1);
        }
        discard_pages(memory, &run)
    }
}

/// The numbers of pages in a request; those beyond the bound are left out.
fn pages(memory: &GuestMemoryMmap, chain: &Chain) -> impl Iterator<Item = u64> {
    let numbers = chain.readable().iter().flat_map(|buffer| {
        let numbers = (0..u64::from(buffer.len) / 4).take(MAX_PAGES);
        numbers.map(|index| buffer.addr.0.saturating_add(4 * index))
    });
    numbers.take(MAX_PAGES).map_while(|address| {
        let number: u32 = memory.read_obj(GuestAddress(address)).ok()?;
        Some(u32::from_le(number).into())
    })
}

fn discard_pages(memory: &GuestMemoryMmap, run: &std::ops::Range<u64>) -> io::Result<()> {
    let length = run.end.saturating_sub(run.start) << PAGE_SHIFT;
    if length == 0 { Ok(()) } else { discard(memory, run.start << PAGE_SHIFT, length) }
}

/// Gives the host pages that lie within these bytes of RAM (GPA) back; they read as zeros from here on.
fn discard(memory: &GuestMemoryMmap, start: u64, length: u64) -> io::Result<()> {
    let outside = || io::Error::other(format!("{start:#x} isn't RAM"));
    let region = memory.find_region(GuestAddress(start)).ok_or_else(outside)?;
    let offset = start.saturating_sub(region.start_addr().0);
    let page = host_page_size();
    let end = offset.saturating_add(length).min(region.len());
    let (Some(begin), end) = (offset.checked_next_multiple_of(page), end - end % page) else {
        return Ok(());
    };
    let Some(length) = end.checked_sub(begin).filter(|length| *length > 0) else { return Ok(()) };
    let invalid = |_| io::ErrorKind::InvalidInput;
    if let Some(file) = region.file_offset() {
        let flags = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let at = libc::off_t::try_from(file.start().saturating_add(begin)).map_err(invalid)?;
        let length = libc::off_t::try_from(length).map_err(invalid)?;
        // SAFETY: fallocate takes no pointer; the memory stays mapped.
        let done = unsafe { libc::fallocate(file.file().as_raw_fd(), flags, at, length) } == 0;
        return if done { Ok(()) } else { Err(io::Error::last_os_error()) };
    }
    let host = region
        .get_host_address(MemoryRegionAddress(begin))
        .map_err(|error| io::Error::other(error.to_string()))?;
    let length = usize::try_from(length).map_err(invalid)?;
    // SAFETY: whole pages of private anonymous memory, as the lines above have it, which stays mapped:
    // what is in guest RAM matters to nothing but the guest.
    let done = unsafe { libc::madvise(host.cast(), length, libc::MADV_DONTNEED) } == 0;
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::MetadataExt;

    use vm_memory::FileOffset;

    use super::super::testing::{DriverQueue, RAM, RAM_SIZE, ram, wait_signal};
    use super::*;

    fn handler(poison: Option<u32>) -> BalloonQueue {
        let poison = poison.map(|value| Arc::new(AtomicU32::new(value)));
        BalloonQueue { poison, log: Arc::new(LogLimit::named("balloon")), chain: Chain::default() }
    }

    fn filled() -> GuestMemoryMmap {
        let memory = ram();
        memory.write_slice(&vec![0xa5; RAM_SIZE - 0x1000], GuestAddress(RAM + 0x1000)).unwrap();
        memory
    }

    /// The 4 KiB pages of RAM, counted from its start, that were given back.
    fn zeros(memory: &GuestMemoryMmap) -> Vec<u64> {
        let first_and_last = |page: &u64| {
            let at = |offset| memory.read_obj::<u8>(GuestAddress(RAM + (page << 12) + offset));
            [at(0).unwrap(), at(4095).unwrap()] == [0, 0]
        };
        (1..RAM_SIZE as u64 >> 12).filter(first_and_last).collect()
    }

    #[test]
    fn whole_pages_that_are_reported_are_given_back() {
        let memory = filled();
        let mut driver = DriverQueue::new(&memory, RAM, 8);
        let head = driver.add(&[
            (RAM + 0x1_0000, 0x1_0000, true),
            (RAM + 0x3_0800, 0x2000, true),
            (RAM + 0x5_0800, 0x800, true),
        ]);
        let unread = driver.add(&[(RAM + 0x6_0000, 0x1000, false)]);
        let (mut queue, _kick, call) = driver.device(2, 0);
        handler(Some(0)).handle(&mut queue).unwrap();
        assert_eq!(driver.used(), Some((head.into(), 0)));
        assert_eq!(driver.used(), Some((unread.into(), 0)));
        assert!(wait_signal(&call));
        let expected: Vec<u64> = (0x10..0x20).chain([0x31]).collect();
        assert_eq!(zeros(&memory), expected);
    }

    #[test]
    fn a_driver_finds_what_it_has_filled_pages_with() {
        let memory = filled();
        let mut driver = DriverQueue::new(&memory, RAM, 8);
        driver.add(&[(RAM + 0x1_0000, 0x1_0000, true)]);
        let (mut queue, ..) = driver.device(4, 0);
        handler(Some(0xaaaa_aaaa)).handle(&mut queue).unwrap();
        assert!(driver.used().is_some());
        assert!(zeros(&memory).is_empty());
    }

    #[test]
    fn pages_in_the_balloon_are_given_back() {
        let memory = filled();
        let numbers: Vec<u8> = [0x4_0010_u32, 0x4_0011, 0x4_0020, 0, u32::MAX]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        memory.write_slice(&numbers, GuestAddress(RAM + 0x1000)).unwrap();
        let mut driver = DriverQueue::new(&memory, RAM, 8);
        driver.add(&[(RAM + 0x1000, 12, false), (RAM + 0x2000, 16, true)]);
        driver.add(&[(RAM + 0x1000, 20, false)]);
        driver.add(&[(RAM + 0x1000, 3, false)]);
        let (mut queue, ..) = driver.device(INFLATE, 0);
        handler(None).handle(&mut queue).unwrap();
        assert_eq!(zeros(&memory), [0x10, 0x11, 0x20]);
        let (mut deflate, ..) = driver.device(DEFLATE, 0);
        handler(None).handle(&mut deflate).unwrap();
        assert_eq!(zeros(&memory), [0x10, 0x11, 0x20]);
    }

    #[test]
    fn a_file_in_memory_has_a_hole_then() {
        // SAFETY: the name is a C string; the descriptor is nobody else's.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
        file.set_len(RAM_SIZE as u64).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let ranges = [(GuestAddress(RAM), RAM_SIZE, Some(offset))];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).unwrap();
        memory.write_slice(&vec![1; RAM_SIZE], GuestAddress(RAM)).unwrap();
        let blocks = file.metadata().unwrap().blocks();
        discard(&memory, RAM + 0x1_0000, 0x2_0000).unwrap();
        // Blocks of 512 bytes.
        assert_eq!(file.metadata().unwrap().blocks(), blocks - (0x2_0000 / 512));
        assert_eq!(zeros(&memory), (0x10..0x30).collect::<Vec<_>>());
        assert_eq!(file.metadata().unwrap().len(), RAM_SIZE as u64);
    }

    #[test]
    fn what_is_not_ram_is_refused_and_what_exceeds_it_left() {
        let memory = filled();
        discard(&memory, 0, 0x1000).unwrap_err();
        discard(&memory, RAM + RAM_SIZE as u64, 0x1000).unwrap_err();
        discard(&memory, RAM + RAM_SIZE as u64 - 0x1000, u64::MAX).unwrap();
        discard(&memory, RAM + 0x8_0001, 1).unwrap();
        discard(&memory, RAM + 0x8_0001, 0xffe).unwrap();
        assert_eq!(zeros(&memory), [0xff]);
    }

    #[test]
    fn the_driver_writes_its_two_fields_and_no_others() {
        let mut balloon = Balloon::new("balloon");
        let read = |balloon: &mut Balloon| {
            let mut bytes = [0xff; 18];
            balloon.read_config(0, &mut bytes);
            bytes
        };
        assert_eq!(read(&mut balloon), [0; 18]);
        balloon.write_config(0, &[0x11; 20]);
        balloon.write_config(u64::MAX, &[1, 2]);
        let mut expected = [0; 18];
        expected[ACTUAL].fill(0x11);
        expected[POISON].fill(0x11);
        assert_eq!(read(&mut balloon), expected);
        assert_eq!(balloon.poison.load(Ordering::Relaxed), 0x1111_1111);
        assert!(balloon.is_stopped());
        assert_eq!(read(&mut balloon), [0; 18]);
    }
}
