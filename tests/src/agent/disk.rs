//! Disks as a program uses them: by O_DIRECT, several accesses at a time (io_submit(2)).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::Instant;

use crate::CommandError;

/// `IOCB_CMD_…` of Linux' include/uapi/linux/aio_abi.h.
const PREAD: u16 = 0;
const PWRITE: u16 = 1;

/// `struct iocb` of the same, little-endian.
#[repr(C)]
#[derive(Clone, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event` of the same.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// Accesses under way.
struct Aio(u64);

impl Aio {
    fn new(depth: usize) -> io::Result<Self> {
        let mut context = 0u64;
        // SAFETY: the call writes the context.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        if result == 0 { Ok(Self(context)) } else { Err(io::Error::last_os_error()) }
    }

    /// Begins these accesses.
    fn submit(&self, accesses: &mut [Iocb]) -> io::Result<()> {
        let mut all: Vec<*mut Iocb> = accesses.iter_mut().map(|access| access as *mut _).collect();
        // SAFETY: each is an iocb whose buffer lives until it is over, as `run` sees to.
        let count =
            unsafe { libc::syscall(libc::SYS_io_submit, self.0, all.len(), all.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(count) if count == all.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until at least one access is over.
    fn wait<'a>(&self, events: &'a mut [Event]) -> io::Result<&'a [Event]> {
        let null = std::ptr::null_mut::<libc::timespec>();
        // SAFETY: the kernel fills as many events as there are.
        let count = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.0,
                1,
                events.len(),
                events.as_mut_ptr(),
                null,
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        Ok(&events[..count])
    }
}

/// Memory for O_DIRECT: `count` buffers of `bytes`.
struct Buffers {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
}

impl Buffers {
    fn new(count: usize, bytes: usize) -> Self {
        let memory = vec![0xa5; count * bytes + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Self { memory, start, bytes }
    }

    fn get(&mut self, index: usize) -> &mut [u8] {
        let start = self.start + index * self.bytes;
        &mut self.memory[start..start + self.bytes]
    }
}

/// A generator of numbers (Marsaglia, Xorshift RNGs).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn open(path: &str, write: bool) -> io::Result<(File, u64)> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(write).custom_flags(libc::O_DIRECT).open(path)?;
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
    Ok((file, size))
}

/// Reads `count` times `bytes`, so many at a time, anywhere or in order; prints the time that each
/// took, in ns.
pub(crate) fn read(
    path: &str,
    bytes: u64,
    depth: u64,
    count: u64,
    in_order: bool,
) -> Result<(), CommandError> {
    let (file, size) = open(path, false)?;
    let (bytes, depth) = (usize::try_from(bytes)?, usize::try_from(depth)?);
    let places = size / bytes as u64;
    let mut random = Random(88_172_645_463_325_252);
    let mut next = 0;
    let mut place = || {
        next = if in_order { (next + 1) % places } else { random.below(places) };
        next * bytes as u64
    };
    let mut buffers = Buffers::new(depth, bytes);
    let start = Instant::now();
    if depth == 1 {
        for _ in 0..count {
            file.read_exact_at(buffers.get(0), place())?;
        }
    } else {
        let aio = Aio::new(depth)?;
        let mut events = vec![Event::default(); depth];
        for _ in 0..count.div_ceil(depth as u64) {
            let mut accesses = Vec::new();
            for index in 0..depth {
                accesses.push(access(&file, PREAD, place(), buffers.get(index), 0)?);
            }
            aio.submit(&mut accesses)?;
            let mut left = depth;
            while left > 0 {
                for event in aio.wait(&mut events)? {
                    check(event, bytes)?;
                    left -= 1;
                }
            }
        }
    }
    let count = count.div_ceil(depth as u64) * depth as u64;
    println!("{}", start.elapsed().as_nanos() / u128::from(count));
    Ok(())
}

fn access(
    file: &File,
    opcode: u16,
    offset: u64,
    buffer: &mut [u8],
    data: u64,
) -> Result<Iocb, CommandError> {
    Ok(Iocb {
        data,
        opcode,
        fd: u32::try_from(file.as_raw_fd())?,
        buffer: buffer.as_mut_ptr().addr() as u64,
        bytes: buffer.len() as u64,
        offset: i64::try_from(offset)?,
        ..Iocb::default()
    })
}

fn check(event: &Event, bytes: usize) -> io::Result<()> {
    match usize::try_from(event.result) {
        Ok(done) if done == bytes => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::from_raw_os_error(i32::try_from(-event.result).unwrap_or(0))),
    }
}

/// What block `number` holds after it was written in `round`.
fn fill(buffer: &mut [u8], number: u64, round: u64) {
    let word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round;
    for (index, bytes) in buffer.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word.wrapping_add(index as u64).to_le_bytes());
    }
}

/// What is done to blocks of a disk.
#[derive(Clone, Copy)]
struct Work<'a> {
    path: &'a str,
    opcode: u16,
    /// How many are under way at a time.
    depth: usize,
    round: u64,
}

/// How many bytes a block of those has.
const BLOCK: usize = 4096;

/// Writes every block of 4 KiB of the first `size` bytes in random order, so many at a time, `rounds`
/// times, reads all of them back each time, and fails unless each has what was written last. Each of
/// so many threads does a part of them, on a CPU of its own.
pub(crate) fn verify(
    path: &str,
    size: u64,
    depth: u64,
    rounds: u64,
    jobs: u64,
) -> Result<(), CommandError> {
    let depth = usize::try_from(depth)?;
    for round in 0..rounds {
        in_parallel(Work { path, opcode: PWRITE, depth, round }, size, jobs)?;
        in_parallel(Work { path, opcode: PREAD, depth, round }, size, jobs)?;
    }
    println!("{} blocks, {rounds} rounds: verified", size / BLOCK as u64);
    Ok(())
}

/// Fails unless all is there that as many rounds of [`verify`] wrote, at whatever time.
pub(crate) fn verified(
    path: &str,
    size: u64,
    depth: u64,
    rounds: u64,
    jobs: u64,
) -> Result<(), CommandError> {
    let round = rounds.checked_sub(1).ok_or("no round")?;
    let depth = usize::try_from(depth)?;
    in_parallel(Work { path, opcode: PREAD, depth, round }, size, jobs)?;
    println!("{} blocks: still there", size / BLOCK as u64);
    Ok(())
}

/// Does this with all blocks of the first `size` bytes, by threads each of which has a part of them.
fn in_parallel(work: Work<'_>, size: u64, jobs: u64) -> Result<(), CommandError> {
    let blocks = size / BLOCK as u64;
    let results: Vec<Result<(), String>> = thread::scope(|scope| {
        let start = |job: u64| {
            let part = blocks * job / jobs..blocks * (job + 1) / jobs;
            scope.spawn(move || {
                stay_on_cpu(job).map_err(|error| error.to_string())?;
                work.run(part).map_err(|error| error.to_string())
            })
        };
        let threads: Vec<_> = (0..jobs).map(start).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|result| result.unwrap_or_else(|_| Err("panicked".to_owned()))).collect()
    });
    Ok(results.into_iter().collect::<Result<(), String>>()?)
}

/// Keeps this thread on one CPU: that of this number, counted around.
fn stay_on_cpu(number: u64) -> Result<(), CommandError> {
    let cpus = thread::available_parallelism()?.get();
    // SAFETY: all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: a set has room for more CPUs than there are here.
    unsafe { libc::CPU_SET(usize::try_from(number)? % cpus, &mut set) };
    // SAFETY: the set is of the size given, and 0 is this thread.
    if unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}

impl Work<'_> {
    /// Does it with these blocks, in random order.
    fn run(self, blocks: Range<u64>) -> Result<(), CommandError> {
        let Self { path, opcode, depth, round } = self;
        let (file, _) = open(path, opcode == PWRITE)?;
        let mut random = Random(0x1234_5678_9abc_def1 ^ blocks.end << 20 ^ round << 8 ^ 1);
        let mut buffers = Buffers::new(depth, BLOCK);
        let aio = Aio::new(depth)?;
        let mut events = vec![Event::default(); depth];
        let mut order: Vec<u64> = blocks.collect();
        for index in (1..order.len()).rev() {
            order.swap(index, usize::try_from(random.below(index as u64 + 1))?);
        }
        let mut next = order.iter();
        let mut free: Vec<usize> = (0..depth).collect();
        loop {
            let mut accesses = Vec::new();
            while let Some(index) = free.pop() {
                let Some(number) = next.next() else {
                    free.push(index);
                    break;
                };
                let buffer = buffers.get(index);
                if opcode == PWRITE {
                    fill(buffer, *number, round);
                }
                let data = *number << 16 | index as u64;
                accesses.push(access(&file, opcode, number * BLOCK as u64, buffer, data)?);
            }
            if !accesses.is_empty() {
                aio.submit(&mut accesses)?;
            }
            if free.len() == depth {
                break;
            }
            for event in aio.wait(&mut events)? {
                check(event, BLOCK)?;
                let (number, index) = (event.data >> 16, usize::try_from(event.data & 0xffff)?);
                let mut expected = [0; BLOCK];
                fill(&mut expected, number, round);
                if opcode == PREAD && buffers.get(index) != expected {
                    return Err(format!("block {number} isn't what round {round} wrote").into());
                }
                free.push(index);
            }
        }
        if opcode == PWRITE {
            file.sync_all()?;
        }
        Ok(())
    }
}

/// Writes block after block, from the first on, with a number from `from` on, makes each durable and
/// says so. Ends with the process.
pub(crate) fn record(path: &str, from: u64) -> Result<(), CommandError> {
    let (file, size) = open(path, true)?;
    let blocks = size / 4096;
    let mut buffers = Buffers::new(1, 4096);
    for number in from.. {
        fill(buffers.get(0), number, 0);
        file.write_all_at(buffers.get(0), number % blocks * 4096)?;
        file.sync_data()?;
        println!("durable {number}");
        io::stdout().flush()?;
    }
    Ok(())
}

/// Fails unless the blocks up to number `last`, as many as there are, hold what `record` wrote.
pub(crate) fn recorded(path: &str, last: u64) -> Result<(), CommandError> {
    let (file, size) = open(path, false)?;
    let blocks = size / 4096;
    let mut buffers = Buffers::new(1, 4096);
    // The first is number 1, and the one behind the last may be half written.
    for number in last.saturating_sub(blocks.saturating_sub(2)).max(1)..=last {
        file.read_exact_at(buffers.get(0), number % blocks * 4096)?;
        let mut expected = [0; 4096];
        fill(&mut expected, number, 0);
        if buffers.get(0) != expected {
            return Err(format!("what was written and durable is lost: {number}").into());
        }
    }
    println!("all is there up to {last}");
    Ok(())
}
