//! The self-test of PCI functions: what VFIO offers works, and the function raises no interrupt by
//! itself.

use std::error::Error;
use std::io;

use boot::help::Help;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_ROM_REGION_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::super::fd_limit;
use super::super::uapi::{DeviceCalls, IrqAction, RegionInfo};
use super::general::{QUIET, check_dma};
use super::interrupts::{eventfd, wait_any};
use super::{SelfTest, TestReport};
use crate::vfio::region::RegisterAccess;

/// `PCI_COMMAND`, and its bits for memory and I/O: without them BARs don't answer.
const COMMAND: u64 = 0x04;
const DECODING: u16 = 0b11;

/// Runs it.
#[cold]
pub(super) fn run(test: &mut SelfTest) -> TestReport {
    let mut report = TestReport::new("PCI");
    let calls = test.calls().clone();
    let config = match calls.region_info(VFIO_PCI_CONFIG_REGION_INDEX) {
        Ok(config) => config,
        Err(error) => {
            report.add("configuration space", Err::<String, _>(error));
            return report;
        }
    };
    report.add("configuration space", identity(&*calls, &config));
    if calls.info().is_ok_and(|info| info.reset) {
        report.add("reset", calls.reset().map(|()| "done"));
    }
    match enable_decoding(&*calls, &config, true) {
        Ok(()) => check_bars(test, &mut report),
        Err(error) => report.add("memory and I/O turned on", Err::<String, _>(error)),
    }
    for (index, name) in [
        (VFIO_PCI_INTX_IRQ_INDEX, "INTx"),
        (VFIO_PCI_MSI_IRQ_INDEX, "MSI"),
        (VFIO_PCI_MSIX_IRQ_INDEX, "MSI-X"),
    ] {
        let count = calls.irq_info(index).map_or(0, |info| info.count);
        if count != 0 {
            report.add(name, check_vectors(&*calls, index, count));
        }
    }
    check_dma(test, &mut report);
    if let Err(error) = enable_decoding(&*calls, &config, false) {
        report.add("memory and I/O turned off", Err::<String, _>(error));
    }
    report
}

/// The function's IDs; all ones are those of none.
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

/// Turns the decoding of memory and I/O on or off.
fn enable_decoding(calls: &dyn DeviceCalls, config: &RegionInfo, on: bool) -> io::Result<()> {
    let mut command = [0; 2];
    calls.read(config, COMMAND, &mut command)?;
    let value = u16::from_le_bytes(command);
    let value = if on { value | DECODING } else { value & !DECODING };
    calls.write(config, COMMAND, &value.to_le_bytes())
}

/// Reads the first word of every BAR and of the ROM.
fn check_bars(test: &SelfTest, report: &mut TestReport) {
    let regions = test.regions().iter();
    for region in regions.filter(|region| region.index() <= VFIO_PCI_ROM_REGION_INDEX) {
        let (size, mapped) = (region.size(), region.areas().iter().map(|area| area.size()));
        let mapped: u64 = mapped.sum();
        let outcome = region.read32(0).map(|value| {
            format!("{size:#x} bytes, {mapped:#x} of them mapped, reads {value:#010x} at 0")
        });
        let name = match region.index() {
            VFIO_PCI_ROM_REGION_INDEX => "ROM".to_owned(),
            index => format!("BAR {index}"),
        };
        report.add(name, outcome);
    }
}

/// Arms all vectors of an index, waits for one that shouldn't come, and disarms them.
fn check_vectors(
    calls: &dyn DeviceCalls,
    index: u32,
    count: u32,
) -> Result<String, Box<dyn Error>> {
    fd_limit::reserve(count.into())
        .map_err(|error| format!("{error} ({})", error.help().unwrap_or_default()))?;
    let eventfds = (0..count).map(|_| eventfd()).collect::<io::Result<Vec<EventFd>>>()?;
    let triggers: Vec<_> = eventfds.iter().map(Some).collect();
    calls.set_vectors(index, 0, &triggers)?;
    let pending = wait_any(eventfds.iter(), QUIET);
    calls.set_irq(index, IrqAction::ClearTrigger)?;
    match pending? {
        None => Ok(format!("{count} armed, none within {} ms", QUIET.as_millis())),
        Some(vector) => Err(format!("vector {vector} is pending: the device is active").into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::testing::{Call, FakeFunction};
    use super::super::super::uapi::IrqInfo;
    use super::*;

    #[test]
    fn a_function_is_identified_or_gone() {
        let mut function = FakeFunction::new(256);
        function.put(0, &[0x36, 0x1b, 0x10, 0, 0, 0, 0, 0, 2, 0x02, 0x08, 0x01]);
        let calls = function.calls();
        let config = calls.region_info(VFIO_PCI_CONFIG_REGION_INDEX).unwrap();
        assert_eq!(identity(&*calls, &config).unwrap(), "256 bytes, 1b36:0010, class 010802");
        enable_decoding(&*calls, &config, true).unwrap();
        let mut command = [0; 2];
        function.config().read_exact_at(&mut command, 4).unwrap();
        assert_eq!(command, [3, 0]);
        function.put(0, &[0xff; 12]);
        assert!(identity(&*calls, &config).unwrap_err().to_string().contains("gone"));
    }

    #[test]
    fn vectors_are_armed_and_disarmed() {
        let mut function = FakeFunction::new(256);
        function.irqs[2] = IrqInfo { count: 3, eventfd: true, ..Default::default() };
        let calls = function.calls();
        check_vectors(&*calls, 2, 3).unwrap();
        let done = [Call::SetVectors(2, 0, vec![true; 3]), Call::ClearTrigger(2)];
        assert_eq!(calls.take_calls(), done);
        calls.limit_vectors(2);
        check_vectors(&*calls, 2, 3).unwrap_err();
    }

    #[test]
    fn an_unexpected_signal_is_found() {
        let eventfds: Vec<_> = (0..3).map(|_| eventfd().unwrap()).collect();
        assert_eq!(wait_any(eventfds.iter(), Duration::from_millis(5)).unwrap(), None);
        eventfds[2].write(1).unwrap();
        assert_eq!(wait_any(eventfds.iter(), QUIET).unwrap(), Some(2));
    }
}
