//! The test for PCI functions: what VFIO offers works, and the function keeps quiet.

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::error_chain::chain;
use super::super::fd_limit;
use super::super::uapi::{DeviceCalls, IrqAction, RegionInfo};
use super::general::{self, QUIET};
use super::{SelfTest, SelfTestError, TestReport};
use crate::vfio::region::RegisterAccess;

/// VFIO's region of the configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
const CONFIG: u32 = 7;

/// `PCI_COMMAND`, and its bits for memory and I/O: without them BARs don't answer.
const COMMAND: u64 = 0x04;
const DECODING: u16 = 0b11;

/// VFIO's indices of interrupts, and what they are (`VFIO_PCI_INTX_IRQ_INDEX` and so on).
const KINDS: [(u32, &str); 3] = [(0, "INTx"), (1, "MSI"), (2, "MSI-X")];

/// Runs it.
///
/// # Errors
///
/// None: whatever fails is in the report.
#[cold]
pub fn test(test: &mut SelfTest) -> Result<TestReport, SelfTestError> {
    let mut report = TestReport::new("PCI");
    let calls = test.calls().clone();
    let config = match calls.region_info(CONFIG) {
        Ok(config) => config,
        Err(error) => {
            report.add("configuration space", Err(chain(&error)));
            return Ok(report);
        }
    };
    report.add("configuration space", identity(&*calls, &config).map_err(|e| chain(&e)));
    reset(&*calls, &mut report);
    match decode(&*calls, &config, true) {
        Ok(()) => regions(test, &mut report),
        Err(error) => report.add("memory and I/O turned on", Err(chain(&error))),
    }
    for (index, name) in KINDS {
        interrupts(&*calls, index, name, &mut report);
    }
    general::dma(test, &mut report);
    if let Err(error) = decode(&*calls, &config, false) {
        report.add("memory and I/O turned off", Err(chain(&error)));
    }
    Ok(report)
}

/// Who the function says it is; all ones are nobody.
fn identity(calls: &dyn DeviceCalls, config: &RegionInfo) -> io::Result<String> {
    let mut bytes = [0; 12];
    calls.read(config, 0, &mut bytes)?;
    let [v0, v1, d0, d1, .., interface, sub, base] = bytes;
    let vendor = u16::from_le_bytes([v0, v1]);
    if vendor == u16::MAX {
        return Err(io::Error::other("it reads all ones: the function is gone"));
    }
    let device = u16::from_le_bytes([d0, d1]);
    let size = config.size;
    Ok(format!("{size} bytes, {vendor:04x}:{device:04x}, class {base:02x}{sub:02x}{interface:02x}"))
}

fn reset(calls: &dyn DeviceCalls, report: &mut TestReport) {
    if calls.info().is_ok_and(|info| info.reset) {
        let done = calls.reset().map(|()| "done".to_owned());
        report.add("reset", done.map_err(|e| chain(&e)));
    }
}

/// Turns memory and I/O on or off.
fn decode(calls: &dyn DeviceCalls, config: &RegionInfo, on: bool) -> io::Result<()> {
    let mut command = [0; 2];
    calls.read(config, COMMAND, &mut command)?;
    let value = u16::from_le_bytes(command);
    let value = if on { value | DECODING } else { value & !DECODING };
    calls.write(config, COMMAND, &value.to_le_bytes())
}

/// Reads the first word of every BAR and of the ROM.
fn regions(test: &SelfTest, report: &mut TestReport) {
    for region in test.regions().iter().filter(|region| region.index() < CONFIG) {
        let mapped: u64 = region.areas().iter().map(|area| area.size()).sum();
        let read = region.read32(0);
        let outcome = read.map(|value| {
            format!(
                "{:#x} bytes, {mapped:#x} of them mapped, reads {value:#010x} at 0",
                region.size()
            )
        });
        let name = match region.index() {
            6 => "ROM".to_owned(),
            index => format!("BAR {index}"),
        };
        report.add(name, outcome.map_err(|e| chain(&e)));
    }
}

/// Arms all vectors of a kind, listens, and disarms them.
fn interrupts(calls: &dyn DeviceCalls, index: u32, name: &str, report: &mut TestReport) {
    let count = calls.irq_info(index).map_or(0, |info| info.count);
    if count == 0 {
        return;
    }
    if let Err(error) = fd_limit::reserve(count.into()) {
        return report.add(name, Err(format!("{error} ({})", error.help().unwrap_or_default())));
    }
    let eventfd = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
    let eventfds: Vec<EventFd> = match (0..count).map(|_| eventfd()).collect() {
        Ok(eventfds) => eventfds,
        Err(error) => return report.add(name, Err(chain(&error))),
    };
    let triggers: Vec<_> = eventfds.iter().map(Some).collect();
    if let Err(error) = calls.set_vectors(index, 0, &triggers) {
        return report.add(name, Err(chain(&error)));
    }
    let quiet = quiet(&eventfds);
    if let Err(error) = calls.set_irq(index, IrqAction::ClearTrigger) {
        return report.add(name, Err(chain(&error)));
    }
    report
        .add(name, quiet.map(|()| format!("{count} armed, none within {} ms", QUIET.as_millis())));
}

/// Listens for a signal that nobody asked for.
fn quiet(eventfds: &[EventFd]) -> Result<(), String> {
    let watch = |eventfd: &EventFd| libc::pollfd {
        fd: eventfd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut watched: Vec<libc::pollfd> = eventfds.iter().map(watch).collect();
    let count = libc::nfds_t::try_from(watched.len()).unwrap_or(0);
    let deadline = Instant::now() + QUIET;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let milliseconds = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        // SAFETY: the array is writable for the duration of the call, and `count` its length.
        let ready = unsafe { libc::poll(watched.as_mut_ptr(), count, milliseconds) };
        if ready > 0 {
            let vector = watched.iter().position(|poll| poll.revents != 0).unwrap_or_default();
            return Err(format!("vector {vector} is pending: the device is at work"));
        }
        if left == Duration::ZERO {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{Call, FakeFunction};
    use super::super::super::uapi::IrqInfo;
    use super::*;

    #[test]
    fn a_function_is_told_by_its_numbers_or_gone() {
        let mut function = FakeFunction::new(256);
        function.put(0, &[0x36, 0x1b, 0x10, 0, 0, 0, 0, 0, 2, 0x02, 0x08, 0x01]);
        let calls = function.calls();
        let config = calls.region_info(CONFIG).unwrap();
        assert_eq!(identity(&*calls, &config).unwrap(), "256 bytes, 1b36:0010, class 010802");
        decode(&*calls, &config, true).unwrap();
        let mut command = [0; 2];
        function.config().read_exact_at(&mut command, 4).unwrap();
        assert_eq!(command, [3, 0]);
        function.put(0, &[0xff; 12]);
        assert!(identity(&*calls, &config).unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn vectors_are_armed_listened_to_and_disarmed() {
        let mut function = FakeFunction::new(256);
        function.irqs[2] = IrqInfo { count: 3, eventfd: true, ..Default::default() };
        let calls = function.calls();
        let mut report = TestReport::new("PCI");
        interrupts(&*calls, 2, "MSI-X", &mut report);
        let done = [Call::SetVectors(2, 0, vec![true; 3]), Call::ClearTrigger(2)];
        assert_eq!(calls.take_calls(), done);
        assert!(report.passed());
        interrupts(&*calls, 1, "MSI", &mut report);
        assert_eq!(calls.take_calls(), [], "it has none");
        calls.limit_vectors(2);
        interrupts(&*calls, 2, "MSI-X", &mut report);
        assert!(!report.passed());
    }

    #[test]
    fn a_signal_that_nobody_asked_for_is_told() {
        let eventfds: Vec<_> = (0..3).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        quiet(&eventfds).unwrap();
        eventfds[2].write(1).unwrap();
        assert!(quiet(&eventfds).unwrap_err().contains("vector 2"));
    }
}
