//! A served device in VFIO's terms.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_DMA_MAP_FLAG_READ,
    VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_INFO_MASKABLE, VFIO_PCI_INTX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::REPLY_TIMEOUT;
use super::budget::{TimeBudget, Wait};
use super::client::{Client, Reply};
use super::connection::Connection;
use super::error::{Failure, FailureKind, Reason, RequestError, VfioUserError};
use super::fds::ReceivedFd;
use super::listener::Listener;
use super::message::{Command, Payload, Reader};
use super::version::{self, Negotiated, SUPPORTED, Version};
use crate::peer::Peer;
use crate::stop;
use crate::sync::lock;
use crate::vfio::uapi::{
    DeviceCalls, DeviceInfo, IoctlError, IrqAction, IrqInfo, Mapping, RegionInfo,
};

/// A PCI device that another process serves; the connection ends when this is dropped.
#[derive(Debug)]
pub struct VfioUserDevice {
    pub(super) client: Listener,
    pub(super) negotiated: Negotiated,
    info: DeviceInfo,
    /// The files of regions that can be mapped, by index.
    pub(super) files: Mutex<BTreeMap<u32, Arc<ReceivedFd>>>,
    /// The index of the interrupts that are enabled in the device's MSI or MSI-X capability.
    pub(super) enabled: Mutex<Option<u32>>,
}

impl VfioUserDevice {
    /// Connects to the server whose socket is at `path`, which may be `peer`'s, negotiates a version
    /// with it and asks for its device. Nothing is waited for once
    /// [strait is to end](stop::is_requested), until a guest has the device.
    ///
    /// # Errors
    ///
    /// There is no server, it is another user's, it serves no PCI device, it doesn't answer in time, or
    /// strait is to end.
    #[cold]
    pub fn connect(path: &Path, peer: Peer) -> Result<Self, VfioUserError> {
        let connection =
            Connection::open(path).map_err(|error| Reason::connecting(path, error).at(path))?;
        peer.check(path, &connection).map_err(|error| Reason::from(error).at(path))?;
        Self::over(path, connection, TimeBudget::new(REPLY_TIMEOUT, stop::is_requested))
    }

    pub(super) fn over(
        path: &Path,
        connection: Connection,
        budget: TimeBudget,
    ) -> Result<Self, VfioUserError> {
        Self::open(path.display().to_string(), connection, budget).map_err(|reason| reason.at(path))
    }

    fn open(name: String, connection: Connection, budget: TimeBudget) -> Result<Self, Reason> {
        let client = Listener::start(Client::new(name, connection, budget))?;
        let (negotiated, info) = {
            let mut wait = client.budget.begin();
            let negotiated = negotiate(&client, &mut wait)?;
            let info = device_info(&client, &mut wait)
                .map_err(|error| Reason::requesting(Command::GET_INFO, error))?;
            (negotiated, info)
        };
        if !info.pci {
            return Err(Reason::NotPci);
        }
        Ok(Self { client, negotiated, info, files: Mutex::default(), enabled: Mutex::default() })
    }

    /// The version that was negotiated.
    pub fn version(&self) -> Version {
        self.negotiated.version
    }

    /// Why the device has failed, if it has.
    pub fn failure(&self) -> Option<String> {
        self.client.failure().map(|failure| failure.why)
    }

    /// Tells that `size` bytes of this process at `host` are those of a file, from its start: a server
    /// to which memory in there is mapped gets the file, and needs no messages.
    pub fn set_ram_file(&self, file: File, host: NonNull<u8>, size: u64) {
        lock(&self.client.memory).set_file(file, host, size);
    }

    /// From here on a guest has the device: its failure is told in the log rather than by errors. Nothing for a
    /// guest that begins anew, which finds a failed device gone.
    ///
    /// # Errors
    ///
    /// Why it has failed already.
    pub fn start_guest(&self) -> Result<(), String> {
        if self.client.has_guest() {
            return Ok(());
        }
        self.client.start_guest();
        self.failure().map_or(Ok(()), Err)
    }

    /// Ends the threads that the connection has, while nothing is asked of the device: the process is to
    /// have one thread. What the server sends waits until they [resume](Self::resume).
    ///
    /// # Errors
    ///
    /// The host has no more descriptors.
    pub fn pause(&self) -> io::Result<()> {
        self.client.pause()
    }

    /// Starts the threads again.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn resume(&self) -> io::Result<()> {
        self.client.resume()
    }

    /// Leaves a tenth of the [time](super::REPLY_TIMEOUT) for all requests from here on: the run is
    /// ending.
    pub fn shorten_deadline(&self) {
        self.client.budget.shorten();
    }

    /// The result of a guest's access: one to a failed device does `nothing`.
    pub(super) fn ignore_failure<T>(
        &self,
        result: Result<T, RequestError>,
        nothing: T,
    ) -> Result<T, RequestError> {
        match result {
            Err(RequestError::Failed(_)) if self.client.has_guest() => Ok(nothing),
            result => result,
        }
    }

    pub(super) fn read_region(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        mut offset: u64,
        data: &mut [u8],
    ) -> Result<(), RequestError> {
        let command = Command::REGION_READ;
        for part in data.chunks_mut(self.negotiated.max_data) {
            let size = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let head = Payload::default().u64(offset).u32s(&[index, size]);
            let max_reply = part.len().saturating_add(head.0.len());
            let reply = self.client.request(wait, command, &head, &[], max_reply)?;
            let bytes = reply.payload.strip_prefix(head.0.as_slice());
            let bytes = bytes.filter(|bytes| bytes.len() == part.len());
            part.copy_from_slice(self.client.valid(command, bytes)?);
            offset = offset.saturating_add(u64::from(size));
        }
        Ok(())
    }

    pub(super) fn write_region(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        mut offset: u64,
        data: &[u8],
    ) -> Result<(), RequestError> {
        let command = Command::REGION_WRITE;
        for part in data.chunks(self.negotiated.max_data) {
            let size = u32::try_from(part.len()).unwrap_or(u32::MAX);
            let head = Payload::default().u64(offset).u32s(&[index, size]);
            let request = head.clone().bytes(part);
            let reply = self.client.request(wait, command, &request, &[], head.0.len())?;
            self.client.valid(command, (reply.payload == head.0).then_some(()))?;
            offset = offset.saturating_add(u64::from(size));
        }
        Ok(())
    }
}

impl Client {
    /// What a reply contains, if it is valid; else the connection is over.
    pub(super) fn valid<T>(&self, command: Command, content: Option<T>) -> Result<T, RequestError> {
        content.ok_or_else(|| {
            let why = format!("the server's reply to {} is invalid", command.name);
            let failure = Failure::new(FailureKind::Protocol, why);
            self.fail(failure.clone());
            RequestError::Failed(failure)
        })
    }

    /// Requests a structure of four numbers, of which the third is `index`; the first is its size.
    fn request_info(
        &self,
        wait: &mut Wait<'_>,
        command: Command,
        index: u32,
    ) -> Result<[u32; 4], RequestError> {
        let payload = Payload::default().u32s(&[16, 0, index, 0]);
        let reply = self.request(wait, command, &payload, &[], 64)?;
        self.valid(command, Reader(&reply.payload).u32s())
    }
}

/// Agrees on a version with the server.
fn negotiate(client: &Listener, wait: &mut Wait<'_>) -> Result<Negotiated, Reason> {
    let command = Command::VERSION;
    let Reply { payload, files } = client
        .request(wait, command, &version::request(), &[], version::MAX_REPLY)
        .map_err(|error| Reason::requesting(command, error))?;
    let invalid = |what| Reason::from(Failure::protocol(what));
    let negotiated = version::parse_reply(&payload).map_err(invalid)?;
    let version = negotiated.version;
    if version.major != SUPPORTED.major || version.minor > SUPPORTED.minor {
        return Err(Reason::Version(version));
    }
    if let Some(index) = negotiated.twin {
        let none = || invalid("a twin_socket without its descriptor".to_owned());
        let twin = files.into_iter().nth(index).ok_or_else(none)?;
        client
            .add_twin(twin)
            .map_err(|error| invalid(format!("a twin_socket that is none: {error}")))?;
    }
    Ok(negotiated)
}

fn device_info(client: &Client, wait: &mut Wait<'_>) -> Result<DeviceInfo, RequestError> {
    let [_, flags, regions, irqs] = client.request_info(wait, Command::GET_INFO, 0)?;
    Ok(DeviceInfo {
        pci: flags & VFIO_DEVICE_FLAGS_PCI != 0,
        reset: flags & VFIO_DEVICE_FLAGS_RESET != 0,
        regions,
        irqs,
        ..DeviceInfo::default()
    })
}

impl DeviceCalls for VfioUserDevice {
    fn info(&self) -> Result<DeviceInfo, IoctlError> {
        Ok(self.info)
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo, IoctlError> {
        self.inspect_region(index).map_err(|error| error.of(Command::GET_REGION_INFO))
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo, IoctlError> {
        let (command, wait) = (Command::GET_IRQ_INFO, &mut self.client.budget.begin());
        let info = self.client.request_info(wait, command, index).and_then(|info| {
            self.client.valid(command, Some(info).filter(|[_, _, found, _]| *found == index))
        });
        let [_, flags, _, count] = info.map_err(|error| error.of(command))?;
        Ok(IrqInfo {
            count,
            eventfd: flags & VFIO_IRQ_INFO_EVENTFD != 0,
            maskable: flags & VFIO_IRQ_INFO_MASKABLE != 0,
            // INTx is level-triggered, whether or not a server says so: each of its signals lasts until
            // the guest has ended the interrupt, of which the server is told.
            automasked: flags & VFIO_IRQ_INFO_AUTOMASKED != 0 || index == VFIO_PCI_INTX_IRQ_INDEX,
        })
    }

    fn set_irq(&self, index: u32, action: IrqAction<'_>) -> Result<(), IoctlError> {
        self.ignore_failure(self.try_set_irq(index, action), ())
            .map_err(|error| error.of(Command::SET_IRQS))
    }

    fn set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> Result<(), IoctlError> {
        self.ignore_failure(self.try_set_vectors(index, start, triggers), ())
            .map_err(|error| error.of(Command::SET_IRQS))
    }

    fn reset(&self) -> Result<(), IoctlError> {
        *lock(&self.enabled) = None;
        let wait = &mut self.client.budget.begin();
        let done = self.client.request(wait, Command::RESET, &Payload::default(), &[], 0).map(drop);
        self.ignore_failure(done, ()).map_err(|error| error.of(Command::RESET))
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let wait = &mut self.client.budget.begin();
        let read = self.read_region(wait, region.index, offset, data).map(|()| true);
        if !self.ignore_failure(read, false)? {
            data.fill(0xff);
        }
        Ok(())
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let wait = &mut self.client.budget.begin();
        Ok(self.ignore_failure(self.write_region(wait, region.index, offset, data), ())?)
    }

    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        self.map_region(region, range)
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
    /// The server refuses it, or has failed.
    pub unsafe fn map_dma(
        &self,
        iova: u64,
        host: NonNull<u8>,
        size: u64,
    ) -> Result<(), IoctlError> {
        let mut memory = lock(&self.client.memory);
        let file = memory.file_of(host, size);
        // SAFETY: passed on.
        unsafe { memory.map(iova, host, size) };
        drop(memory);
        let flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
        let offset = file.as_ref().map_or(0, |(_, offset)| *offset);
        let fds = file.as_ref().map(|(file, _)| file.as_raw_fd());
        let payload = Payload::default().u32s(&[32, flags]).u64(offset).u64(iova).u64(size);
        let (command, wait) = (Command::DMA_MAP, &mut self.client.budget.begin());
        let mapped = self.client.request(wait, command, &payload, fds.as_slice(), 0).map(drop);
        mapped.map_err(|error| {
            lock(&self.client.memory).unmap(iova, size);
            error.of(command)
        })
    }

    /// Undoes the mapping of `size` bytes at `iova`.
    ///
    /// # Errors
    ///
    /// The server refuses it, or has failed.
    pub fn unmap_dma(&self, iova: u64, size: u64) -> Result<(), IoctlError> {
        let payload = Payload::default().u32s(&[24, 0]).u64(iova).u64(size);
        let (command, wait) = (Command::DMA_UNMAP, &mut self.client.budget.begin());
        let unmapped = self.client.request(wait, command, &payload, &[], 24).map(drop);
        lock(&self.client.memory).unmap(iova, size);
        self.ignore_failure(unmapped, ()).map_err(|error| error.of(command))
    }
}
