//! The verdict on isolation: what a device reads and writes where nothing is mapped for it faults in the
//! IOMMU, memory that isn't its keeps what it has, and the host's log says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::report::{Isolation, TestReport};
use super::{DmaBuffer, SelfTest, SelfTestError, StepError};

/// How much of a canary there is, in bytes: a page of the smallest size.
const CANARY_SIZE: usize = 4096;

/// Bits of a page's entry in `/proc/self/pagemap`: its frame, and that it is in RAM
/// (Documentation/admin-guide/mm/pagemap.rst).
const PAGEMAP_FRAME: u64 = (1 << 55) - 1;
const PAGEMAP_PRESENT: u64 = 1 << 63;

/// The end of what a 32-bit device addresses.
const MAX_ADDRESS: u64 = 1 << 32;

/// How long the host's log may take to say something, how often it is looked at, and how much is read
/// and kept of it.
const LOG_TIMEOUT: Duration = Duration::from_secs(2);
const LOG_INTERVAL: Duration = Duration::from_millis(20);
const MAX_RECORDS: usize = 4096;
const MAX_OLD_RECORDS: usize = 1 << 20;
const MAX_LINES: usize = 12;

/// The host's log has at most ten events in such a time (Linux include/linux/ratelimit_types.h,
/// `DEFAULT_RATELIMIT_INTERVAL`).
const LOG_SILENCE: Duration = Duration::from_secs(5);

/// Memory of this process that isn't mapped for the device.
pub struct Canary {
    memory: Arc<DmaBuffer>,
    content: Vec<u8>,
    /// The address that the device is to try.
    pub address: u64,
    target: &'static str,
    log: HostLog,
    /// Keeps its physical address what it is.
    _pin: Option<Pin>,
}

impl SelfTest {
    /// Memory that the device may not reach: a page of this process at its physical address, where that
    /// is known and the device could address it, else no more than an address with nothing mapped. It
    /// begins with the bytes of `head`: what a device would do that reads them as a descriptor or a command
    /// must be harmless, and tell that it has read them.
    ///
    /// # Errors
    ///
    /// The host has no memory, or there is no address left.
    pub fn canary(&mut self, head: &[u8]) -> Result<Canary, SelfTestError> {
        let memory = Arc::new(DmaBuffer::new(CANARY_SIZE)?);
        let rest = (0..=u8::MAX).rev().cycle();
        let content: Vec<u8> = head.iter().copied().chain(rest).take(CANARY_SIZE).collect();
        memory.write(0, &content);
        let pin = Pin::new(&memory).ok();
        let page = memory.address().filter(|_| pin.is_some());
        let physical = page.and_then(|address| physical(address.as_ptr().addr()));
        let usable =
            |address: &u64| *address < MAX_ADDRESS - CANARY_SIZE as u64 && !self.has_iova(*address);
        let (address, target) = match physical.filter(usable) {
            Some(address) => (address, "a page of strait's memory, at its physical address"),
            None => (self.free_iova(memory.size())?, "an address with nothing mapped"),
        };
        Ok(Canary { memory, content, address, target, log: HostLog::from_now(), _pin: pin })
    }
}

impl Canary {
    /// Whether the canary begins with these bytes.
    pub fn begins_with(&self, bytes: &[u8]) -> bool {
        self.content.starts_with(bytes)
    }

    /// The verdict on a read and a write, each of which says how the device noticed that it failed, or
    /// why it didn't fail. `device_tells` says whether the device notices at all.
    ///
    /// # Errors
    ///
    /// The host couldn't go on in the middle of an access.
    pub fn judge(
        mut self,
        read: Result<String, StepError>,
        write: Result<String, StepError>,
        device_tells: bool,
    ) -> Result<Isolation, SelfTestError> {
        let mut report = TestReport::new("isolation");
        report.add_step("wild read", read)?;
        report.add_step("wild write", write)?;
        let intact = self.memory.read(0, CANARY_SIZE) == self.content;
        let canary = if intact { Ok("unchanged") } else { Err("the device has written it") };
        report.add("canary", canary.map_err(str::to_owned));
        let host_log = self.log.lines();
        let said = match (&self.log.0, host_log.len()) {
            (None, _) if device_tells => Ok("/dev/kmsg can't be read by this user".to_owned()),
            (Some(_), 0) if device_tells => Ok("nothing: the device itself has told".to_owned()),
            (_, 0) => Err("the host's log says nothing of a fault".to_owned()),
            (_, count) => Ok(format!("{count} lines of the IOMMU")),
        };
        report.add("host's log", said);
        Ok(Isolation {
            passed: report.passed(),
            address: format!("{:#x}", self.address),
            target: self.target,
            checks: report.checks,
            host_log,
        })
    }

    /// The address to try, of a device that has 32 bits for it.
    ///
    /// # Errors
    ///
    /// It has more.
    pub fn address32(&self) -> Result<u32, SelfTestError> {
        u32::try_from(self.address).map_err(|_| SelfTestError::NoIova(self.address))
    }
}

/// A reference of the kernel's to a page, which isn't migrated while it has one (vmsplice(2)).
struct Pin {
    _reader: PipeReader,
    _writer: PipeWriter,
}

impl Pin {
    /// One to the page that this is in.
    fn new(memory: &DmaBuffer) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let address = memory.address().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let bytes = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: CANARY_SIZE };
        // SAFETY: `bytes` lies in `memory`, which is mapped for the duration of the call, and the kernel only
        // takes a reference to what is there; nobody reads it from the pipe.
        let count = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const bytes, 1, 0) };
        if usize::try_from(count) == Ok(CANARY_SIZE) {
            return Ok(Self { _reader: reader, _writer: writer });
        }
        Err(io::Error::last_os_error())
    }
}

/// The physical address of a page of this process; only root is told.
fn physical(address: usize) -> Option<u64> {
    let page = crate::vfio::region::host_page_size();
    let address = u64::try_from(address).ok()?;
    let mut entry = [0; 8];
    let offset = (address / page).checked_mul(8)?;
    File::open("/proc/self/pagemap").ok()?.read_exact_at(&mut entry, offset).ok()?;
    let entry = u64::from_ne_bytes(entry);
    let frame = Some(entry & PAGEMAP_FRAME).filter(|frame| *frame != 0)?;
    let frame = (entry & PAGEMAP_PRESENT != 0).then_some(frame)?;
    frame.checked_mul(page)?.checked_add(address % page)
}

/// The kernel's log from some moment on (Documentation/ABI/testing/dev-kmsg).
struct HostLog(Option<File>);

impl HostLog {
    /// From now on. Where it has just had so many events that the next are left out, that time is
    /// waited for first.
    fn from_now() -> Self {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        let mut log = Self(file.ok());
        let mut last = None;
        // What is behind so many records is as good as new.
        for _ in 0..MAX_OLD_RECORDS {
            match log.record() {
                Ok(Some(record)) => last = of_iommu(&record).and_then(|_| when(&record)).or(last),
                // Some were overwritten, and it goes on behind them.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if let (Some(last), Some(now)) = (last, uptime()) {
            thread::sleep(LOG_SILENCE.saturating_sub(now.saturating_sub(last)));
        }
        log
    }

    /// The next record; none without a log.
    fn record(&mut self) -> io::Result<Option<String>> {
        let Some(file) = &mut self.0 else { return Ok(None) };
        // A read gives one record.
        let mut record = [0; 8192];
        let length = file.read(&mut record)?;
        Ok(Some(String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned()))
    }

    /// What it says of IOMMUs; the wait for that is bounded.
    fn lines(&mut self) -> Vec<String> {
        let deadline = Instant::now() + LOG_TIMEOUT;
        let mut found = Vec::new();
        for _ in 0..MAX_RECORDS {
            match self.record() {
                Ok(None) => break,
                Ok(Some(record)) => found.extend(of_iommu(&record).map(str::to_owned)),
                // Some were lost, and it goes on behind them.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) if !found.is_empty() || Instant::now() >= deadline => break,
                Err(_) => thread::sleep(LOG_INTERVAL),
            }
            if found.len() >= MAX_LINES {
                break;
            }
        }
        found
    }
}

/// The text of a record, if it is an IOMMU's.
fn of_iommu(record: &str) -> Option<&str> {
    let text = record.split_once(';')?.1.lines().next()?;
    ["smmu", "iommu"].iter().any(|word| text.contains(word)).then_some(text)
}

/// When a record was written, since the host's start.
fn when(record: &str) -> Option<Duration> {
    record.split(',').nth(2)?.parse().ok().map(Duration::from_micros)
}

/// How long the host runs.
fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    Duration::try_from_secs_f64(text.split(' ').next()?.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_an_iommu_are_found() {
        let record =
            "4,1,2,-;arm-smmu-v3 9050000.smmuv3: event 0x10 received:\n SUBSYSTEM=platform\n";
        assert_eq!(of_iommu(record), Some("arm-smmu-v3 9050000.smmuv3: event 0x10 received:"));
        assert_eq!(of_iommu("4,1,2,-;usb 1-1: new device\n SUBSYSTEM=iommu\n"), None);
        assert_eq!(of_iommu("nonsense"), None);
        let record = "4,1,2000003,-;arm-smmu-v3 9050000.smmuv3: event";
        assert_eq!(when(record), Some(Duration::from_micros(2_000_003)));
        assert_eq!((when("4,1"), when("nonsense")), (None, None));
    }

    fn canary() -> Canary {
        let memory = Arc::new(DmaBuffer::new(CANARY_SIZE).unwrap());
        let content = vec![7; CANARY_SIZE];
        memory.write(0, &content);
        Canary {
            memory,
            content,
            address: 0x5000_0000,
            target: "a page",
            log: HostLog(None),
            _pin: None,
        }
    }

    #[test]
    fn a_pin_refers_to_the_page_itself() {
        let memory = DmaBuffer::new(CANARY_SIZE).unwrap();
        memory.write(0, &[1; CANARY_SIZE]);
        let mut pin = Pin::new(&memory).unwrap();
        memory.write(0, &[2; CANARY_SIZE]);
        let mut bytes = [0; CANARY_SIZE];
        pin._reader.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, [2; CANARY_SIZE]);
    }

    #[test]
    fn each_of_the_accesses_and_the_canary_decides() {
        let good = || Ok("it faulted".to_owned());
        let bad = || Err(StepError::from("it went on"));
        let judge = |read, write, tells| canary().judge(read, write, tells).unwrap();
        let verdict = judge(good(), good(), true);
        assert!(verdict.passed && verdict.address == "0x50000000", "{verdict:?}");
        assert_eq!(verdict.checks.len(), 4);
        assert!(!judge(bad(), good(), true).passed);
        assert!(!judge(good(), bad(), true).passed);
        // A device that notices nothing needs the host's log.
        assert!(!judge(good(), good(), false).passed);
        let written = canary();
        written.memory.write(100, &[8]);
        let verdict = written.judge(good(), good(), true).unwrap();
        assert!(!verdict.passed && verdict.checks[2].detail.contains("written"), "{verdict:?}");
    }
}
