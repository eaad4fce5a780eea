//! What `--stats` writes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arch::KvmStats;
use boot::file::shell_word;
use boot::order;
use devices::bus::{Accesses, Bus};
use devices::vfio::iommu::Backend;
use serde::Serialize;

use crate::device_monitor::DeviceMonitor;
use crate::double_buffer::DoubleBuffer;
use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::functions::FunctionInterrupts;
use crate::interrupts::LineStats;
use crate::{outfile, output};

/// A vCPU's exits to the VMM, by reason.
#[derive(Debug, Default, Serialize)]
pub struct Exits {
    /// Reads of guest physical addresses that no memory slot covers.
    pub mmio_read: AtomicU64,
    /// Writes to such addresses.
    pub mmio_write: AtomicU64,
    /// Accesses that KVM could not decode, answered by an abort.
    pub undecodable: AtomicU64,
    /// Calls of SCMI.
    pub call: AtomicU64,
    /// System events: power-off, reset, crash.
    pub system_event: AtomicU64,
    /// Signals.
    pub interrupted: AtomicU64,
}

impl Exits {
    /// Counts one exit; each counter has one writer, its vCPU's thread.
    #[inline]
    pub fn count(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// Those of all vCPUs together.
    fn sum(all: &[Arc<Self>]) -> Self {
        let sum = |counter: fn(&Self) -> &AtomicU64| {
            AtomicU64::new(all.iter().map(|exits| counter(exits).load(Ordering::Relaxed)).sum())
        };
        Self {
            mmio_read: sum(|exits| &exits.mmio_read),
            mmio_write: sum(|exits| &exits.mmio_write),
            undecodable: sum(|exits| &exits.undecodable),
            call: sum(|exits| &exits.call),
            system_event: sum(|exits| &exits.system_event),
            interrupted: sum(|exits| &exits.interrupted),
        }
    }
}

/// Wall-clock and CPU time since strait started.
#[derive(Clone, Copy, Debug, Serialize)]
struct Elapsed {
    wall_ns: u64,
    cpu_ns: u64,
}

/// How often the guest began anew, and for how long it stood still for that in all.
#[derive(Debug, Serialize)]
struct Restarts {
    count: u64,
    wall_ns: u64,
}

/// Gathers the counters of a run and leaves them for the parent, which writes them to a file.
pub struct Recorder {
    texts: Option<Arc<DoubleBuffer>>,
    started: Instant,
    first_instruction: OnceLock<Elapsed>,
    exits: Vec<Arc<Exits>>,
    bus: Arc<Bus>,
    event_loop_wakeups: AtomicU64,
    restarts: AtomicU64,
    restart_ns: AtomicU64,
    monitor: Arc<DeviceMonitor>,
    iommu: Option<Backend>,
    kvm: KvmCounters,
}

#[derive(Default)]
struct KvmCounters {
    vm: Option<KvmStats>,
    vcpus: Vec<KvmStats>,
}

#[derive(Serialize)]
struct Statistics<'a> {
    ending: Option<&'a str>,
    exit_status: Option<u8>,
    elapsed: Elapsed,
    /// Just before the guest's first instruction.
    first_instruction: Option<Elapsed>,
    exits: Exits,
    devices: BTreeMap<String, Accesses>,
    event_loop_wakeups: u64,
    restarts: Restarts,
    /// What nobody read.
    output_dropped: output::Dropped,
    /// The way to the IOMMU, where there are assigned devices.
    iommu: Option<Backend>,
    /// The lines of assigned devices.
    interrupts: Vec<LineStats>,
    /// The interrupts of assigned PCI functions.
    pci_interrupts: Vec<FunctionInterrupts>,
    kvm: KvmReport<'a>,
}

#[derive(Serialize)]
struct KvmReport<'a> {
    vm: BTreeMap<&'a str, u64>,
    vcpus: Vec<BTreeMap<&'a str, u64>>,
}

impl Recorder {
    /// Prepares to leave them in `texts`, where they are to be written to a file; `started` is when strait did, `iommu` how assigned devices reach
    /// memory.
    pub fn new(
        texts: Option<Arc<DoubleBuffer>>,
        started: Instant,
        vm: &impl AsRawFd,
        vcpus: &[impl AsRawFd],
        bus: Arc<Bus>,
        monitor: Arc<DeviceMonitor>,
        iommu: Option<Backend>,
    ) -> Self {
        Self {
            texts,
            started,
            first_instruction: OnceLock::new(),
            exits: vcpus.iter().map(|_| Arc::default()).collect(),
            bus,
            event_loop_wakeups: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            restart_ns: AtomicU64::new(0),
            monitor,
            iommu,
            kvm: KvmCounters::open(vm, vcpus),
        }
    }

    /// Where vCPU `index` counts its exits.
    pub fn exits(&self, index: usize) -> Option<Arc<Exits>> {
        self.exits.get(index).cloned()
    }

    /// Notes that the guest is about to execute its first instruction.
    pub fn note_first_instruction(&self) {
        let _ = self.first_instruction.set(self.elapsed());
    }

    /// Counts a wake-up of the event loop.
    pub fn count_wakeup(&self) {
        self.event_loop_wakeups.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that the guest began anew, for which it stood still for so long.
    #[cold]
    pub fn count_restart(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.restart_ns.fetch_add(took, Ordering::Relaxed);
    }

    /// Leaves the counters as they stand for the parent; `ending` where the run is over.
    ///
    /// # Errors
    ///
    /// There are more than it takes.
    #[cold]
    pub fn write(&self, ending: Option<&ExitReason>) -> Result<(), Error> {
        let statistics = self.statistics(ending);
        if ending.is_none() {
            let lines = statistics.interrupts.iter().map(LineStats::enabled);
            let enabled = order::map(lines);
            let is_enabled = |spi| enabled.get(&spi).copied().flatten();
            self.monitor.warn_of_unused(&self.bus, is_enabled);
        }
        self.leave(&statistics)
    }

    /// Leaves the counters as they are before the guest runs: what there is if it ends with this process.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write).
    #[cold]
    pub fn begin(&self) -> Result<(), Error> {
        self.leave(&self.statistics(None))
    }

    /// The counters as they stand, as JSON.
    #[cold]
    pub fn text(&self) -> String {
        serde_json::to_string_pretty(&self.statistics(None)).unwrap_or_default()
    }

    fn leave(&self, statistics: &Statistics<'_>) -> Result<(), Error> {
        let Some(texts) = &self.texts else { return Ok(()) };
        let text = serde_json::to_string_pretty(statistics).map_err(io::Error::other);
        let left = text.and_then(|text| texts.put(&(text + "\n")));
        left.map_err(|e| Error::new(format!("there are too many statistics: {e}")))
    }

    fn statistics(&self, ending: Option<&ExitReason>) -> Statistics<'_> {
        let accesses = self.bus.accesses().into_iter();
        Statistics {
            ending: ending.map(ExitReason::name),
            exit_status: ending.map(ExitReason::exit_status),
            elapsed: self.elapsed(),
            first_instruction: self.first_instruction.get().copied(),
            exits: Exits::sum(&self.exits),
            devices: order::map(accesses.map(|accesses| (accesses.name.clone(), accesses))),
            event_loop_wakeups: self.event_loop_wakeups.load(Ordering::Relaxed),
            restarts: Restarts {
                count: self.restarts.load(Ordering::Relaxed),
                wall_ns: self.restart_ns.load(Ordering::Relaxed),
            },
            output_dropped: output::dropped(),
            iommu: self.iommu,
            interrupts: self.monitor.lines.report(),
            pci_interrupts: self.monitor.functions.interrupts(),
            kvm: self.kvm.report(),
        }
    }

    fn elapsed(&self) -> Elapsed {
        let nanoseconds = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        Elapsed { wall_ns: nanoseconds(self.started.elapsed()), cpu_ns: nanoseconds(cpu_time()) }
    }
}

/// Writes what a [`Recorder`] has left: whoever reads the file finds the old or the new one, whole.
///
/// # Errors
///
/// The file can't be written.
#[cold]
pub fn write_file(path: &Path, text: &str) -> Result<(), Error> {
    outfile::write(path, MODE, text.as_bytes()).map_err(|e| unwritable(path, &e))
}

/// What a [`Recorder`] has left as the last, with how strait ended after that.
#[cold]
pub fn with_ending(text: &str, ending: &str, exit_status: u8) -> String {
    let text = text.replacen(r#""ending": null"#, &format!(r#""ending": "{ending}""#), 1);
    text.replacen(r#""exit_status": null"#, &format!(r#""exit_status": {exit_status}"#), 1)
}

/// Checks that [`write_file`] will be able to write to `path`: better before a long run than after it.
///
/// # Errors
///
/// It won't.
pub fn check_path(path: &Path) -> Result<(), Error> {
    outfile::check(path, MODE).map_err(|e| unwritable(path, &e))
}

/// Who may read them: everybody, as far as the umask goes.
const MODE: u32 = 0o644;

fn unwritable(path: &Path, e: &io::Error) -> Error {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = shell_word(directory.unwrap_or(Path::new(".")));
    let path = path.display();
    let help = match e.kind() {
        io::ErrorKind::StorageFull => {
            format!("df {directory} tells how full it is; --stats FILE elsewhere")
        }
        _ => "--stats FILE in a directory you can write to".to_owned(),
    };
    Error::new(format!("statistics can't be written to {path}: {e}")).help(help)
}

impl KvmCounters {
    fn open(vm: &impl AsRawFd, vcpus: &[impl AsRawFd]) -> Self {
        let open = || -> io::Result<Self> {
            let vcpus = vcpus.iter().map(KvmStats::open).collect::<io::Result<_>>()?;
            Ok(Self { vm: Some(KvmStats::open(vm)?), vcpus })
        };
        open().unwrap_or_else(|e| {
            log::info!("this host's KVM has no counters for statistics: {e}");
            Self::default()
        })
    }

    fn report(&self) -> KvmReport<'_> {
        KvmReport {
            vm: self.vm.as_ref().map(named).unwrap_or_default(),
            vcpus: self.vcpus.iter().map(named).collect(),
        }
    }
}

fn named(counters: &KvmStats) -> BTreeMap<&str, u64> {
    let counters = counters.read();
    let counters = counters.inspect_err(|e| log::warn!("KVM's counters can't be read: {e}"));
    order::map(counters.unwrap_or_default())
}

/// CPU time of the process so far, all threads, user and kernel.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists in every process and `time` is a valid timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_names_a_directory_that_is_there_as_a_shell_takes_it() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        for (path, command) in
            [("/my stats/a b", "df '/my stats' tells"), ("-x", "df . tells"), ("a/b", "df a tells")]
        {
            let report = unwritable(Path::new(path), &full).report();
            assert!(report.contains(command), "{report}");
        }
    }

    #[test]
    fn the_ending_is_put_into_what_was_left() {
        let text = "{\n  \"ending\": null,\n  \"exit_status\": null,\n  \"iommu\": null\n}\n";
        let ended = "{\n  \"ending\": \"killed\",\n  \"exit_status\": 137,\n  \"iommu\": null\n}\n";
        assert_eq!(with_ending(text, "killed", 137), ended);
        assert_eq!(with_ending(ended, "other", 1), ended);
    }
}
