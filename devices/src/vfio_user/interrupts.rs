//! The interrupts of a served device: eventfds by message, and the enable bits of MSI and MSI-X.
//!
//! Of a host's function VFIO's kernel driver sets these bits when it is given eventfds
//! (`vfio_msi_enable`). A served device has them in its own configuration space only, and some servers
//! deliver no messages before they are set (PCI Local Bus 3.0, 6.8).

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::budget::Wait;
use super::device::VfioUserDevice;
use super::error::RequestError;
use super::message::{Command, Payload};
use crate::pci::ConfigSnapshot;
use crate::ratelimit::LogLimit;
use crate::sync::lock;
use crate::vfio::pci::capability::{self, MSI, MSIX};
use crate::vfio::uapi::IrqAction;

/// The size of the part of configuration space that has MSI and MSI-X, in bytes.
const CONFIG_SIZE: usize = 256;

/// The enable bits in the two capabilities' message control registers.
const MSI_ENABLE: u16 = 1 << 0;
const MSIX_ENABLE: u16 = 1 << 15;
/// Multiple Message Enable: how many vectors of MSI are enabled, as a power of two.
const MSI_VECTORS: u16 = 0b111 << 4;

/// A guest may turn messages on and off as often as it likes.
static LOG: LogLimit = LogLimit::new("vfio-user");

impl VfioUserDevice {
    /// Sends a `VFIO_USER_DEVICE_SET_IRQS` whose data are these eventfds.
    fn set_irqs(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        flags: u32,
        vectors: (u32, u32),
        fds: &[RawFd],
    ) -> Result<(), RequestError> {
        let (start, count) = vectors;
        let payload = Payload::default().u32s(&[20, flags, index, start, count]);
        self.client.request(wait, Command::SET_IRQS, &payload, fds, 0).map(drop)
    }

    /// Masks or unmasks INTx by message, which some servers refuse.
    fn mask(&self, wait: &mut Wait<'_>, index: u32, action: u32) -> Result<(), RequestError> {
        match self.set_irqs(wait, index, action | VFIO_IRQ_SET_DATA_NONE, (0, 1), &[]) {
            Err(RequestError::Refused(_)) => Ok(()),
            result => result,
        }
    }

    /// Does to an interrupt what [`DeviceCalls::set_irq`](crate::vfio::uapi::DeviceCalls::set_irq)
    /// is called for.
    pub(super) fn try_set_irq(
        &self,
        index: u32,
        action: IrqAction<'_>,
    ) -> Result<(), RequestError> {
        let wait = &mut self.client.budget.begin();
        let host =
            |error: io::Error| RequestError::Refused(error.raw_os_error().unwrap_or(libc::EIO));
        let trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
        match action {
            IrqAction::SetTrigger(eventfd) => {
                let flags = trigger | VFIO_IRQ_SET_DATA_EVENTFD;
                self.set_irqs(wait, index, flags, (0, 1), &[eventfd.as_raw_fd()])
            }
            IrqAction::ClearTrigger => {
                self.set_irqs(wait, index, trigger | VFIO_IRQ_SET_DATA_NONE, (0, 0), &[])?;
                self.enable(wait, index, None)
            }
            IrqAction::SetUnmask(eventfd) => self.client.set_unmask(Some(eventfd)).map_err(host),
            IrqAction::ClearUnmask => self.client.set_unmask(None).map_err(host),
            IrqAction::Mask => self.mask(wait, index, VFIO_IRQ_SET_ACTION_MASK),
            IrqAction::Unmask => self.mask(wait, index, VFIO_IRQ_SET_ACTION_UNMASK),
        }
    }

    /// Sets vectors in as few messages as the server takes: neighbours with an eventfd together, and
    /// neighbours without.
    pub(super) fn try_set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> Result<(), RequestError> {
        let wait = &mut self.client.budget.begin();
        let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
        let mut first = start;
        for alike in triggers.chunk_by(|a, b| a.is_some() == b.is_some()) {
            for part in alike.chunks(self.negotiated.max_fds) {
                let fds: Vec<RawFd> = part.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
                let too_many = |_| RequestError::Refused(libc::EINVAL);
                let count = u32::try_from(part.len()).map_err(too_many)?;
                self.set_irqs(wait, index, flags, (first, count), &fds)?;
                first = first.saturating_add(count);
            }
        }
        self.enable(wait, index, Some(triggers.len()))
    }

    /// Enables so many vectors of MSI or MSI-X, which have this index, in the device's capability, or
    /// disables them. A device without the capability, or whose server refuses, is left as it is.
    fn enable(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        vectors: Option<usize>,
    ) -> Result<(), RequestError> {
        let mut enabled = lock(&self.enabled);
        let message = index == VFIO_PCI_MSI_IRQ_INDEX || index == VFIO_PCI_MSIX_IRQ_INDEX;
        if !message || (*enabled == Some(index)) == vectors.is_some() {
            return Ok(());
        }
        match self.write_message_control(wait, index == VFIO_PCI_MSI_IRQ_INDEX, vectors) {
            Err(RequestError::Refused(errno)) => LOG.debug(format_args!(
                "messages {index}: the server refuses their control register: {errno}"
            )),
            result => result?,
        }
        *enabled = vectors.map(|_| index);
        Ok(())
    }

    fn write_message_control(
        &self,
        wait: &mut Wait<'_>,
        msi: bool,
        vectors: Option<usize>,
    ) -> Result<(), RequestError> {
        let region = VFIO_PCI_CONFIG_REGION_INDEX;
        let mut bytes = vec![0; CONFIG_SIZE];
        self.read_region(wait, region, 0, &mut bytes)?;
        let config = ConfigSnapshot::new(bytes);
        let (id, enable) = if msi { (MSI, MSI_ENABLE) } else { (MSIX, MSIX_ENABLE) };
        let capabilities = capability::all(&config);
        let Some(capability) = capabilities.iter().find(|found| found.id == id) else {
            return Ok(());
        };
        let offset = capability.offset.saturating_add(2);
        let before = config.u16(offset);
        let mut control = if vectors.is_some() { before | enable } else { before & !enable };
        if let Some(count) = vectors.filter(|_| msi) {
            let power = count.max(1).next_power_of_two().trailing_zeros().min(5);
            control = control & !MSI_VECTORS | u16::try_from(power).unwrap_or(0) << 4;
        }
        if control == before {
            return Ok(());
        }
        self.write_region(wait, region, u64::from(offset), &control.to_le_bytes())
    }
}
