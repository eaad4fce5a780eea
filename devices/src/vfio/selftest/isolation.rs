//! The verdict on isolation: what a device reads and writes where nothing is mapped for it faults in the
//! IOMMU, memory that isn't its keeps what it has, and the host's log says so.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::report::{Isolation, TestReport};
use super::{DmaBuffer, SelfTest, SelfTestError};

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
const MAX_LINES: usize = 12;

/// Memory of this process that isn't mapped for the device.
pub struct Canary {
    memory: Arc<DmaBuffer>,
    content: Vec<u8>,
    /// The address that the device is to try.
    pub address: u64,
    target: &'static str,
    log: HostLog,
}

impl SelfTest {
    /// Memory that the device may not reach: a page of this process at its physical address, where that
    /// is known and the device could address it, else no more than an address with nothing mapped.
    ///
    /// # Errors
    ///
    /// The host has no memory, or there is no address left.
    pub fn canary(&mut self) -> Result<Canary, SelfTestError> {
        let memory = Arc::new(DmaBuffer::new(CANARY_SIZE)?);
        let content: Vec<u8> = (0..=u8::MAX).rev().cycle().take(CANARY_SIZE).collect();
        memory.write(0, &content);
        let physical = memory.address().and_then(|address| physical(address.as_ptr().addr()));
        let usable =
            |address: &u64| *address < MAX_ADDRESS - CANARY_SIZE as u64 && !self.has_iova(*address);
        let (address, target) = match physical.filter(usable) {
            Some(address) => (address, "a page of strait's memory, at its physical address"),
            None => (self.free_iova(CANARY_SIZE as u64)?, "an address with nothing mapped"),
        };
        Ok(Canary { memory, content, address, target, log: HostLog::from_now() })
    }
}

impl Canary {
    /// Whether the canary begins with these bytes.
    pub fn begins_with(&self, bytes: &[u8]) -> bool {
        self.content.starts_with(bytes)
    }

    /// The verdict on a read and a write, each of which says how the device noticed that it failed, or
    /// why it didn't fail. `device_tells` says whether the device notices at all.
    pub fn judge(
        mut self,
        read: Result<String, String>,
        write: Result<String, String>,
        device_tells: bool,
    ) -> Isolation {
        let mut report = TestReport::new("isolation");
        report.add("wild read", read);
        report.add("wild write", write);
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
        Isolation {
            passed: report.passed(),
            address: format!("{:#x}", self.address),
            target: self.target,
            checks: report.checks,
            host_log,
        }
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
    fn from_now() -> Self {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
        Self(file.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file)).ok())
    }

    /// What it says of IOMMUs; the wait for that is bounded.
    fn lines(&mut self) -> Vec<String> {
        let Some(file) = &mut self.0 else { return Vec::new() };
        let deadline = Instant::now() + LOG_TIMEOUT;
        let mut found = Vec::new();
        for _ in 0..MAX_RECORDS {
            // A read gives one record.
            let mut record = [0; 8192];
            match file.read(&mut record) {
                Ok(length) => {
                    let record = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
                    found.extend(of_iommu(&record).map(str::to_owned));
                }
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
    }

    fn canary() -> Canary {
        let memory = Arc::new(DmaBuffer::new(CANARY_SIZE).unwrap());
        let content = vec![7; CANARY_SIZE];
        memory.write(0, &content);
        Canary { memory, content, address: 0x5000_0000, target: "a page", log: HostLog(None) }
    }

    #[test]
    fn each_of_the_accesses_and_the_canary_decides() {
        let good = || Ok("it faulted".to_owned());
        let bad = || Err("it went on".to_owned());
        let verdict = canary().judge(good(), good(), true);
        assert!(verdict.passed && verdict.address == "0x50000000", "{verdict:?}");
        assert_eq!(verdict.checks.len(), 4);
        assert!(!canary().judge(bad(), good(), true).passed);
        assert!(!canary().judge(good(), bad(), true).passed);
        // A device that notices nothing needs the host's log.
        assert!(!canary().judge(good(), good(), false).passed);
        let written = canary();
        written.memory.write(100, &[8]);
        let verdict = written.judge(good(), good(), true);
        assert!(!verdict.passed && verdict.checks[2].detail.contains("written"), "{verdict:?}");
    }
}
