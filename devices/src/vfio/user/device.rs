//! The device of a server, in VFIO's terms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE, VFIO_PCI_INTX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::super::sys::{
    DeviceCalls, DeviceInfo, IoctlError, IrqAction, IrqInfo, Mapping, RegionInfo,
};
use super::DEADLINE;
use super::client::{Answer, CallError, Cause, Client, Failure, lock};
use super::error::{UserError, refusal};
use super::message::{Command, Payload, Reader};
use super::socket::Socket;
use super::version::{self, Agreement, OURS, Version};

/// The most that a region's description may take, in bytes: hundreds of areas.
const MOST_REGION_INFO: u32 = 8192;

/// The listening thread's stack in bytes: it keeps payloads on the heap.
const STACK: usize = 64 << 10;

/// A PCI device that another process serves; the connection ends when this is dropped.
#[derive(Debug)]
pub struct UserDevice {
    pub(super) client: Arc<Client>,
    listener: Option<JoinHandle<()>>,
    pub(super) agreement: Agreement,
    info: DeviceInfo,
    /// The files of regions that can be mapped, by index.
    files: Mutex<BTreeMap<u32, File>>,
    /// The messages that its own registers say are on, by index.
    pub(super) enabled: Mutex<Option<u32>>,
}

impl UserDevice {
    /// Connects to the server whose socket is at `path`, agrees on a version with it and asks what
    /// its device is.
    ///
    /// # Errors
    ///
    /// There is no server, it is none of a PCI device, or it doesn't answer in time.
    #[cold]
    pub fn connect(path: &Path) -> Result<Self, UserError> {
        let socket = Socket::connect(path).map_err(|error| UserError::connecting(path, error))?;
        Self::over(path, socket, DEADLINE)
    }

    pub(super) fn over(path: &Path, socket: Socket, deadline: Duration) -> Result<Self, UserError> {
        let host = |source| UserError::Host { path: path.to_owned(), source };
        let name = path.display().to_string();
        let client = Arc::new(Client::new(&name, socket, deadline).map_err(host)?);
        let listening = client.clone();
        let listener = thread::Builder::new()
            .name("vfio-user".to_owned())
            .stack_size(STACK)
            .spawn(move || listening.listen())
            .map_err(host)?;
        let (agreement, listener) = (Agreement::NONE, Some(listener));
        let (info, files, enabled) = Default::default();
        let mut device = Self { client, listener, agreement, info, files, enabled };
        device.agreement = device.agree(path)?;
        let (command, asked) = (Command::GetInfo, device.ask_info());
        device.info = asked.map_err(|error| UserError::asking(path, command, error))?;
        if device.info.pci { Ok(device) } else { Err(UserError::NotPci { path: path.to_owned() }) }
    }

    fn agree(&self, path: &Path) -> Result<Agreement, UserError> {
        let command = Command::Version;
        let answer = self
            .client
            .call(command, &version::proposal(), &[], version::MOST)
            .map_err(|error| UserError::asking(path, command, error))?;
        let agreement = version::answer(&answer.payload).map_err(|what| UserError::NoServer {
            path: path.to_owned(),
            why: format!("the server sent {what}"),
        })?;
        let version = agreement.version;
        if version.major != OURS.major || version.minor > OURS.minor {
            return Err(UserError::Version { path: path.to_owned(), version });
        }
        Ok(agreement)
    }

    fn ask_info(&self) -> Result<DeviceInfo, CallError> {
        let request = Payload::default().u32(16).u32(0).u32(0).u32(0);
        let answer = self.call(Command::GetInfo, &request, 64)?;
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
    pub fn back_ram(&self, file: File, host: NonNull<u8>, size: u64) {
        lock(&self.client.ram).back(file, host, size);
    }

    /// From here on a guest has the device: its failure is told in the log rather than by errors.
    ///
    /// # Errors
    ///
    /// Why it has failed already.
    pub fn serve_guest(&self) -> Result<(), String> {
        self.client.serve();
        self.failure().map_or(Ok(()), Err)
    }

    /// From here on a server that doesn't answer is given up after a tenth of the
    /// [deadline](DEADLINE), whoever waits for it: the run is ending.
    pub fn hurry(&self) {
        self.client.hurry();
    }

    fn call(&self, command: Command, payload: &Payload, most: usize) -> Result<Answer, CallError> {
        self.client.call(command, payload, &[], most)
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
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), CallError> {
        let mut at = offset;
        for part in data.chunks_mut(self.agreement.most_data) {
            let size = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let request = Payload::default().u64(at).u32(index).u32(size);
            let most = part.len().saturating_add(16);
            let answer = self.call(Command::RegionRead, &request, most)?;
            let bytes = answer.payload.strip_prefix(request.0.as_slice());
            let bytes = bytes.filter(|bytes| bytes.len() == part.len());
            part.copy_from_slice(self.sense(Command::RegionRead, bytes)?);
            at = at.saturating_add(u64::from(size));
        }
        Ok(())
    }

    pub(super) fn try_write(&self, index: u32, offset: u64, data: &[u8]) -> Result<(), CallError> {
        let mut at = offset;
        for part in data.chunks(self.agreement.most_data) {
            let size = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let head = Payload::default().u64(at).u32(index).u32(size);
            let answer = self.call(Command::RegionWrite, &head.clone().bytes(part), 16)?;
            self.sense(Command::RegionWrite, (answer.payload == head.0).then_some(()))?;
            at = at.saturating_add(u64::from(size));
        }
        Ok(())
    }

    fn ask_region(&self, index: u32) -> Result<(RegionInfo, Option<File>), CallError> {
        let command = Command::GetRegionInfo;
        let mut request = Payload::default().u32(MOST_REGION_INFO).u32(0).u32(index).u32(0);
        request = request.u64(0).u64(0);
        let most = usize::try_from(MOST_REGION_INFO).unwrap_or(usize::MAX);
        let answer = self.call(command, &request, most)?;
        let info = RegionInfo::parse(&answer.payload);
        let within = |area: &Range<u64>| area.start < area.end && area.end <= info.size;
        let sound = answer.payload.len() >= 32
            && info.index == index
            && info.offset.checked_add(info.size).is_some()
            && info.areas.iter().flatten().all(within);
        let info = self.sense(command, sound.then_some(info))?;
        Ok((info, answer.files.into_iter().next()))
    }
}

impl Agreement {
    /// Before anything was agreed upon.
    const NONE: Self = Self { version: OURS, most_fds: 1, most_data: 8 };
}

impl DeviceCalls for UserDevice {
    fn info(&self) -> Result<DeviceInfo, IoctlError> {
        Ok(self.info)
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        let asked = self.ask_region(index);
        let (mut info, file) = asked.map_err(|error| refusal(Command::GetRegionInfo, error))?;
        if let Some(file) = file.filter(|_| info.mappable) {
            let areas = info.areas.as_deref().unwrap_or_default();
            let end = areas.iter().map(|area| area.end).max().unwrap_or(info.size);
            match stays(&file, info.offset.saturating_add(end)) {
                Ok(()) => {
                    lock(&self.files).insert(index, file);
                    return Ok(info);
                }
                Err(why) => {
                    log::info!("{}: region {index} traps: its file {why}", self.client.name());
                }
            }
        }
        info.mappable = false;
        Ok(info)
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError> {
        let command = Command::GetIrqInfo;
        let request = Payload::default().u32(16).u32(0).u32(index).u32(0);
        let answer = self.call(command, &request, 64).and_then(|answer| {
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
        let done = self.call(Command::Reset, &Payload::default(), 0).map(drop);
        self.forgive(done, ()).map_err(|error| refusal(Command::Reset, error))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let read = self.try_read(region.index, offset, data).map(|()| true);
        let read = self.forgive(read, false);
        if !read.map_err(|error| refusal(Command::RegionRead, error).source)? {
            data.fill(0xff);
        }
        Ok(())
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        self.forgive(self.try_write(region.index, offset, data), ())
            .map_err(|error| refusal(Command::RegionWrite, error).source)
    }

    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        let files = lock(&self.files);
        let file = files.get(&region.index).filter(|_| region.mappable);
        let file = file.ok_or(io::ErrorKind::Unsupported)?;
        let end = region.offset.checked_add(range.end).ok_or(io::ErrorKind::InvalidInput)?;
        stays(file, end).map_err(io::Error::other)?;
        Mapping::lent(file, region, range, &self.client.lender)
    }
}

/// DMA, by messages instead of an IOMMU.
impl UserDevice {
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
        let mapped = self.client.call(Command::DmaMap, &payload, fds.as_slice(), 0).map(drop);
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
        let unmapped = self.call(Command::DmaUnmap, &payload, 24).map(drop);
        lock(&self.client.ram).take_back(iova, size);
        self.forgive(unmapped, ()).map_err(|error| refusal(Command::DmaUnmap, error))
    }
}

impl Drop for UserDevice {
    fn drop(&mut self) {
        self.client.hang_up();
        if let Some(listener) = self.listener.take() {
            // A panic in the thread has ended the process already.
            let _ = listener.join();
        }
    }
}

/// Whether a file has so many bytes that can be written, and will: an access to a mapping beyond its file's end would
/// end this process.
fn stays(file: &File, end: u64) -> Result<(), String> {
    // SAFETY: F_ADD_SEALS and F_GET_SEALS take no pointer. A file that can't be sealed by us may be
    // so already.
    let seals = unsafe {
        libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK);
        libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS)
    };
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Err("can be shortened under the guest, for it has no F_SEAL_SHRINK".to_owned());
    }
    // Only what the guest can both read and write is mapped.
    if seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 {
        return Err("is sealed against writing".to_owned());
    }
    let size = file.metadata().map_err(|error| error.to_string())?.size();
    if size < end {
        return Err(format!("has {size:#x} bytes, and the region is to end at {end:#x}"));
    }
    Ok(())
}
