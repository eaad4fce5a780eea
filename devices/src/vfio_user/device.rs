//! The device of a server, in VFIO's terms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE, VFIO_PCI_INTX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::budget::Wait;
use super::client::{Answer, CallError, Cause, Client, Failure};
use super::error::refusal;
use super::fds::{ReceivedFd, run_with_deadline};
use super::message::{Command, Payload, Reader};
use super::region_file;
use super::version::{Agreement, OURS, Version};
use crate::sync::lock;
use crate::vfio::uapi::{
    DeviceCalls, DeviceInfo, IoctlError, IrqAction, IrqInfo, Mapping, RegionInfo,
};

/// The most that a region's description may take, in bytes: hundreds of areas.
const MOST_REGION_INFO: u32 = 8192;

/// A PCI device that another process serves; the connection ends when this is dropped.
#[derive(Debug)]
pub struct VfioUserDevice {
    pub(super) client: Arc<Client>,
    listener: Option<JoinHandle<()>>,
    pub(super) agreement: Agreement,
    pub(super) info: DeviceInfo,
    /// The files of regions that can be mapped, by index.
    files: Mutex<BTreeMap<u32, Arc<ReceivedFd>>>,
    /// The messages that its own registers say are on, by index.
    pub(super) enabled: Mutex<Option<u32>>,
}

impl VfioUserDevice {
    /// The device at the other end, of which nothing is known yet.
    pub(super) fn new(client: Arc<Client>, listener: JoinHandle<()>) -> Self {
        let (agreement, listener) = (Agreement::NONE, Some(listener));
        let (info, files, enabled) = Default::default();
        Self { client, listener, agreement, info, files, enabled }
    }

    pub(super) fn ask_info(&self, wait: &mut Wait<'_>) -> Result<DeviceInfo, CallError> {
        let request = Payload::default().u32(16).u32(0).u32(0).u32(0);
        let answer = self.call(wait, Command::GetInfo, &request, 64)?;
        let mut reader = Reader(&answer.payload);
        let mut fields = || Some((reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?));
        let (_, flags, regions, irqs) = self.sense(Command::GetInfo, fields())?;
        Ok(DeviceInfo {
            pci: flags & VFIO_DEVICE_FLAGS_PCI != 0,
            reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
            regions,
            irqs,
            ..DeviceInfo::default()
        })
    }

    /// The version that was agreed upon.
    pub fn version(&self) -> Version {
        self.agreement.version
    }

    /// Why the device has failed, if it has.
    pub fn failure(&self) -> Option<String> {
        self.client.failure().map(|failure| failure.why.as_ref().to_owned())
    }

    /// Makes known that `size` bytes of this process at `host` are those of a file, from its start:
    /// a server that is lent memory in there gets the file to map, and needs no messages.
    pub fn set_ram_file(&self, file: File, host: NonNull<u8>, size: u64) {
        lock(&self.client.ram).back(file, host, size);
    }

    /// From here on a guest has the device: its failure is told in the log rather than by errors.
    ///
    /// # Errors
    ///
    /// Why it has failed already.
    pub fn start_guest(&self) -> Result<(), String> {
        self.client.serve();
        self.failure().map_or(Ok(()), Err)
    }

    /// From here on a tenth of the [deadline](super::REPLY_TIMEOUT) is left for all that is asked, whoever
    /// waits: the run is ending.
    pub fn shorten_deadline(&self) {
        self.client.shorten_deadline();
    }

    fn call(
        &self,
        wait: &mut Wait<'_>,
        command: Command,
        payload: &Payload,
        most: usize,
    ) -> Result<Answer, CallError> {
        self.client.call(wait, command, payload, &[], most)
    }

    /// What an answer says, if that makes sense; else the conversation is over.
    fn sense<T>(&self, command: Command, answer: Option<T>) -> Result<T, CallError> {
        answer.ok_or_else(|| {
            let why = format!("the server's answer to {} makes no sense", command.name());
            let failure = Failure::new(Cause::Nonsense, why);
            self.client.fail(failure.clone());
            CallError::Over(failure)
        })
    }

    /// What a guest's access to a failed device comes to: nothing.
    fn forgive<T>(&self, result: Result<T, CallError>, nothing: T) -> Result<T, CallError> {
        match result {
            Err(CallError::Over(_)) if self.client.serving() => Ok(nothing),
            result => result,
        }
    }

    pub(super) fn try_read(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), CallError> {
        let mut at = offset;
        for part in data.chunks_mut(self.agreement.most_data) {
            let size = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let request = Payload::default().u64(at).u32(index).u32(size);
            let most = part.len().saturating_add(16);
            let answer = self.call(wait, Command::RegionRead, &request, most)?;
            let bytes = answer.payload.strip_prefix(request.0.as_slice());
            let bytes = bytes.filter(|bytes| bytes.len() == part.len());
            part.copy_from_slice(self.sense(Command::RegionRead, bytes)?);
            at = at.saturating_add(u64::from(size));
        }
        Ok(())
    }

    pub(super) fn try_write(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<(), CallError> {
        let mut at = offset;
        for part in data.chunks(self.agreement.most_data) {
            let size = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let head = Payload::default().u64(at).u32(index).u32(size);
            let request = head.clone().bytes(part);
            let answer = self.call(wait, Command::RegionWrite, &request, 16)?;
            self.sense(Command::RegionWrite, (answer.payload == head.0).then_some(()))?;
            at = at.saturating_add(u64::from(size));
        }
        Ok(())
    }

    fn ask_region(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
    ) -> Result<(RegionInfo, Option<ReceivedFd>), CallError> {
        let command = Command::GetRegionInfo;
        let mut request = Payload::default().u32(MOST_REGION_INFO).u32(0).u32(index).u32(0);
        request = request.u64(0).u64(0);
        let most = usize::try_from(MOST_REGION_INFO).unwrap_or(usize::MAX);
        let answer = self.call(wait, command, &request, most)?;
        let info = RegionInfo::parse(&answer.payload);
        let within = |area: &Range<u64>| area.start < area.end && area.end <= info.size;
        let sound = answer.payload.len() >= 32
            && info.index == index
            && info.offset.checked_add(info.size).is_some()
            && info.areas.iter().flatten().all(within);
        let info = self.sense(command, sound.then_some(info))?;
        Ok((info, answer.files.into_iter().next()))
    }

    /// Does this to a file of the server's where nobody waits, and waits for it; a server that keeps
    /// that from ending is given up.
    fn look<T: Send + 'static>(
        &self,
        wait: &mut Wait<'_>,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let failure = match run_with_deadline(wait, look) {
            Ok(Some(seen)) => return Ok(seen),
            Ok(None) => self.client.late("the server's file can't be looked at in time".to_owned()),
            Err(error) => Failure::new(Cause::Kernel, format!("strait has no thread: {error}")),
        };
        self.client.fail(failure.clone());
        Err(CallError::Over(failure))
    }

    /// What the server says of a region; it is mappable only if its file can be mapped so that the
    /// guest's accesses to it always end well.
    fn try_region_info(&self, index: u32) -> Result<RegionInfo, CallError> {
        let mut wait = self.client.budget.begin();
        let (mut info, file) = self.ask_region(&mut wait, index)?;
        let Some(file) = file.filter(|_| info.mappable) else {
            info.mappable = false;
            return Ok(info);
        };
        let areas = info.areas.as_deref().unwrap_or_default();
        let end = areas.iter().map(|area| area.end).max().unwrap_or(info.size);
        let (file, end) = (Arc::new(file), info.offset.saturating_add(end));
        let looked = file.clone();
        let checked = if !info.readable || !info.writable {
            Err("is of a region that can't be both read and written".to_owned())
        } else {
            self.look(&mut wait, move || region_file::check(&*looked, end))?
        };
        match checked {
            Ok(()) => drop(lock(&self.files).insert(index, file)),
            Err(why) => {
                log::info!("{}: region {index} traps: its file {why}", self.client.name());
                info.mappable = false;
            }
        }
        Ok(info)
    }

    fn try_map(&self, region: &RegionInfo, range: Range<u64>) -> Result<Lent, CallError> {
        let file = lock(&self.files).get(&region.index).filter(|_| region.mappable).cloned();
        let (Some(file), Some(end)) = (file, region.offset.checked_add(range.end)) else {
            return Ok(Err(io::ErrorKind::Unsupported.into()));
        };
        let (region, mappings) = (region.clone(), self.client.mappings.clone());
        self.look(&mut self.client.budget.begin(), move || {
            region_file::check(&*file, end).map_err(io::Error::other)?;
            Mapping::revocable(&*file, &region, range, &mappings)
        })
    }
}

/// A mapping, or why there is none.
type Lent = io::Result<Mapping>;

impl Agreement {
    /// Before anything was agreed upon.
    const NONE: Self = Self { version: OURS, most_fds: 1, most_data: 8, twin: None };
}

impl DeviceCalls for VfioUserDevice {
    fn info(&self) -> Result<DeviceInfo, IoctlError> {
        Ok(self.info)
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        self.try_region_info(index).map_err(|error| refusal(Command::GetRegionInfo, error))
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError> {
        let command = Command::GetIrqInfo;
        let request = Payload::default().u32(16).u32(0).u32(index).u32(0);
        let wait = &mut self.client.budget.begin();
        let answer = self.call(wait, command, &request, 64).and_then(|answer| {
            let mut reader = Reader(&answer.payload);
            let mut fields = || Some((reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?));
            self.sense(command, fields().filter(|(_, _, found, _)| *found == index))
        });
        let (_, flags, _, count) = answer.map_err(|error| refusal(command, error))?;
        Ok(IrqInfo {
            count,
            eventfd: flags & VFIO_IRQ_INFO_EVENTFD != 0,
            maskable: flags & VFIO_IRQ_INFO_MASKABLE != 0,
            // INTx is a level, whether or not a server calls it so: each of its signals lasts until
            // the guest has ended the interrupt, of which the server is told.
            automasked: flags & VFIO_IRQ_INFO_AUTOMASKED != 0 || index == VFIO_PCI_INTX_IRQ_INDEX,
        })
    }

    fn set_irq(&self, index: u32, action: IrqAction<'_>) -> Result<(), IoctlError> {
        self.forgive(self.try_set_irq(index, action), ())
            .map_err(|error| refusal(Command::SetIrqs, error))
    }

    fn set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> Result<(), IoctlError> {
        self.forgive(self.try_set_vectors(index, start, triggers), ())
            .map_err(|error| refusal(Command::SetIrqs, error))
    }

    fn reset(&self) -> Result<(), IoctlError> {
        *lock(&self.enabled) = None;
        let wait = &mut self.client.budget.begin();
        let done = self.call(wait, Command::Reset, &Payload::default(), 0).map(drop);
        self.forgive(done, ()).map_err(|error| refusal(Command::Reset, error))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let wait = &mut self.client.budget.begin();
        let read = self.try_read(wait, region.index, offset, data).map(|()| true);
        let read = self.forgive(read, false);
        if !read.map_err(|error| refusal(Command::RegionRead, error).source)? {
            data.fill(0xff);
        }
        Ok(())
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let wait = &mut self.client.budget.begin();
        self.forgive(self.try_write(wait, region.index, offset, data), ())
            .map_err(|error| refusal(Command::RegionWrite, error).source)
    }

    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        let mapped = self.try_map(region, range);
        mapped.map_err(|error| refusal(Command::GetRegionInfo, error).source)?
    }
}

/// DMA, by messages instead of an IOMMU.
impl VfioUserDevice {
    /// Lets the server reach the `size` bytes at the host address `host` as IOVA `iova`, for reading
    /// and writing.
    ///
    /// # Safety
    ///
    /// The memory must be mapped in this process and must be such that it may change at any time,
    /// until [`unmap_dma`](Self::unmap_dma).
    ///
    /// # Errors
    ///
    /// The server refuses it, or is gone.
    pub unsafe fn map_dma(
        &self,
        iova: u64,
        host: NonNull<u8>,
        size: u64,
    ) -> Result<(), IoctlError> {
        let mut ram = lock(&self.client.ram);
        let file = ram.file_of(host, size);
        // SAFETY: passed on.
        unsafe { ram.lend(iova, host, size) };
        drop(ram);
        let flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
        let offset = file.as_ref().map_or(0, |(_, offset)| *offset);
        let fds = file.as_ref().map(|(file, _)| file.as_raw_fd());
        let payload = Payload::default().u32(32).u32(flags).u64(offset).u64(iova).u64(size);
        let wait = &mut self.client.budget.begin();
        let mapped = self.client.call(wait, Command::DmaMap, &payload, fds.as_slice(), 0).map(drop);
        mapped.map_err(|error| {
            lock(&self.client.ram).take_back(iova, size);
            refusal(Command::DmaMap, error)
        })
    }

    /// Undoes the mapping of `size` bytes at `iova`.
    ///
    /// # Errors
    ///
    /// The server refuses it, or is gone.
    pub fn unmap_dma(&self, iova: u64, size: u64) -> Result<(), IoctlError> {
        let payload = Payload::default().u32(24).u32(0).u64(iova).u64(size);
        let wait = &mut self.client.budget.begin();
        let unmapped = self.call(wait, Command::DmaUnmap, &payload, 24).map(drop);
        lock(&self.client.ram).take_back(iova, size);
        self.forgive(unmapped, ()).map_err(|error| refusal(Command::DmaUnmap, error))
    }
}

impl Drop for VfioUserDevice {
    fn drop(&mut self) {
        self.client.hang_up();
        if let Some(listener) = self.listener.take() {
            // A panic in the thread has ended the process already.
            let _ = listener.join();
        }
    }
}
