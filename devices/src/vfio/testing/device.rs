//! A fake VFIO device: its regions are a file in memory, its calls are recorded.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempfile::TempFile;

use super::super::uapi::{
    AffectedFunction, DeviceCalls, DeviceInfo, IoctlError, IrqAction, IrqInfo, Mapping, RegionInfo,
};

/// A call that changed the device, with the index of the interrupt and the eventfd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    SetTrigger(u32, i32),
    ClearTrigger(u32),
    SetUnmask(u32, i32),
    ClearUnmask(u32),
    Mask(u32),
    Unmask(u32),
    /// The index, the first vector, and which of them have an eventfd.
    SetVectors(u32, u32, Vec<bool>),
    Reset,
    /// With so many groups.
    HotReset(usize),
}

#[derive(Debug)]
pub(crate) struct FakeDevice {
    pub(crate) regions: Vec<RegionInfo>,
    pub(crate) irqs: Vec<IrqInfo>,
    pub(crate) can_reset: bool,
    /// It is a PCI function, else on the platform bus.
    pub(crate) pci: bool,
    /// The functions that a reset of its bus resets; none if that can't be.
    pub(crate) bus: Vec<AffectedFunction>,
    /// With which error number that is asked for in vain.
    no_bus: Mutex<i32>,
    file: File,
    calls: Mutex<Vec<Call>>,
    /// What is signalled for vectors, by index and vector.
    vectors: Mutex<BTreeMap<(u32, u32), EventFd>>,
    /// The most vectors there can be.
    limit: Mutex<usize>,
    /// Which call fails, counted from 0.
    fail: Mutex<Option<usize>>,
    /// How many resets to come fail, and with which error number.
    held: Mutex<(usize, i32)>,
}

impl FakeDevice {
    pub(crate) fn new(regions: Vec<RegionInfo>, irqs: Vec<IrqInfo>) -> Self {
        let file = TempFile::new().unwrap().into_file();
        let end = regions.iter().map(|region| region.offset + region.size).max().unwrap_or(0);
        file.set_len(end).unwrap();
        let (calls, fail, vectors, held) = Default::default();
        let limit = Mutex::new(usize::MAX);
        Self {
            regions,
            irqs,
            can_reset: false,
            pci: false,
            bus: Vec::new(),
            no_bus: Mutex::new(libc::ENODEV),
            file,
            calls,
            vectors,
            limit,
            fail,
            held,
        }
    }

    /// A device without interrupts whose regions are in this file.
    pub(crate) fn over(file: File, regions: Vec<RegionInfo>) -> Self {
        Self { regions, file, ..Self::new(Vec::new(), Vec::new()) }
    }

    /// The file in which the regions are.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Makes the host have only so many vectors.
    pub(crate) fn limit_vectors(&self, limit: usize) {
        *self.limit.lock().unwrap() = limit;
    }

    /// The device signals a vector; nothing if nobody has asked for it.
    pub(crate) fn signal(&self, index: u32, vector: u32) {
        if let Some(eventfd) = self.vectors.lock().unwrap().get(&(index, vector)) {
            eventfd.write(1).unwrap();
        }
    }

    /// Makes so many resets fail.
    pub(crate) fn refuse_resets(&self, count: usize, errno: i32) {
        *self.held.lock().unwrap() = (count, errno);
    }

    /// Makes it be unknown for this reason what a reset of its bus resets.
    pub(crate) fn refuse_hot_reset_info(&self, errno: i32) {
        *self.no_bus.lock().unwrap() = errno;
    }

    pub(crate) fn fail_at(&self, call: usize) {
        *self.fail.lock().unwrap() = Some(call);
    }

    /// The calls since this was asked last; nothing fails any more.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        *self.fail.lock().unwrap() = None;
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    /// Fails if a reset is to.
    fn refusal(&self, request: &'static str) -> Result<(), IoctlError> {
        let (left, errno) = &mut *self.held.lock().unwrap();
        let Some(fewer) = left.checked_sub(1) else { return Ok(()) };
        *left = fewer;
        Err(IoctlError::new(request, *errno))
    }

    fn record(&self, call: Call) -> Result<(), IoctlError> {
        let mut calls = self.calls.lock().unwrap();
        calls.push(call);
        if *self.fail.lock().unwrap() == Some(calls.len() - 1) {
            return Err(IoctlError::new("VFIO_DEVICE_SET_IRQS", libc::EBUSY));
        }
        Ok(())
    }
}

impl DeviceCalls for FakeDevice {
    fn info(&self) -> Result<DeviceInfo, IoctlError> {
        Ok(DeviceInfo {
            platform: !self.pci,
            pci: self.pci,
            reset: self.can_reset,
            regions: u32::try_from(self.regions.len()).unwrap(),
            irqs: u32::try_from(self.irqs.len()).unwrap(),
            ..Default::default()
        })
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        let region = usize::try_from(index).ok().and_then(|index| self.regions.get(index));
        region.cloned().ok_or_else(|| IoctlError::new("VFIO_DEVICE_GET_REGION_INFO", libc::EINVAL))
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError> {
        let irq = usize::try_from(index).ok().and_then(|index| self.irqs.get(index));
        irq.copied().ok_or_else(|| IoctlError::new("VFIO_DEVICE_GET_IRQ_INFO", libc::EINVAL))
    }

    fn set_irq(&self, index: u32, action: IrqAction<'_>) -> Result<(), IoctlError> {
        if matches!(action, IrqAction::ClearTrigger) {
            self.vectors.lock().unwrap().retain(|(of, _), _| *of != index);
        }
        self.record(match action {
            IrqAction::SetTrigger(fd) => Call::SetTrigger(index, fd.as_raw_fd()),
            IrqAction::ClearTrigger => Call::ClearTrigger(index),
            IrqAction::SetUnmask(fd) => Call::SetUnmask(index, fd.as_raw_fd()),
            IrqAction::ClearUnmask => Call::ClearUnmask(index),
            IrqAction::Mask => Call::Mask(index),
            IrqAction::Unmask => Call::Unmask(index),
        })
    }

    fn reset(&self) -> Result<(), IoctlError> {
        self.refusal("VFIO_DEVICE_RESET")?;
        self.record(Call::Reset)
    }

    fn hot_reset_info(&self) -> Result<Vec<AffectedFunction>, IoctlError> {
        match self.bus.as_slice() {
            [] => {
                let errno = *self.no_bus.lock().unwrap();
                Err(IoctlError::new("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", errno))
            }
            all => Ok(all.to_vec()),
        }
    }

    fn hot_reset(&self, groups: &[BorrowedFd<'_>]) -> Result<(), IoctlError> {
        self.refusal("VFIO_DEVICE_PCI_HOT_RESET")?;
        self.record(Call::HotReset(groups.len()))
    }

    fn set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> Result<(), IoctlError> {
        if triggers.len() > *self.limit.lock().unwrap() {
            return Err(IoctlError::new("VFIO_DEVICE_SET_IRQS", libc::ENOSPC));
        }
        let mut vectors = self.vectors.lock().unwrap();
        for (vector, trigger) in (start..).zip(triggers) {
            vectors.remove(&(index, vector));
            if let Some(trigger) = trigger {
                vectors.insert((index, vector), trigger.try_clone().unwrap());
            }
        }
        drop(vectors);
        let enabled = triggers.iter().map(Option::is_some).collect();
        self.record(Call::SetVectors(index, start, enabled))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, region.offset + offset)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, region.offset + offset)
    }

    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        Mapping::new(&self.file, region, range)
    }
}
