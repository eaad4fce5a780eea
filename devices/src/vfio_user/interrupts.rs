//! The interrupts of a server's device: eventfds by message, and what a server isn't told by them.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_MSI_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

use super::budget::Wait;
use super::client::CallError;
use super::device::VfioUserDevice;
use super::enable;
use super::message::{Command, Payload};
use crate::sync::lock;
use crate::vfio::uapi::IrqAction;

impl VfioUserDevice {
    /// Sends a `VFIO_USER_DEVICE_SET_IRQS` whose data are these eventfds.
    fn set_irqs(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        fds: &[RawFd],
    ) -> Result<(), CallError> {
        let payload = Payload::default().u32(20).u32(flags).u32(index).u32(start).u32(count);
        self.client.call(wait, Command::SetIrqs, &payload, fds, 0).map(drop)
    }

    /// Masks or unmasks INTx by message, which not all servers know.
    fn mask(&self, wait: &mut Wait<'_>, index: u32, action: u32) -> Result<(), CallError> {
        match self.set_irqs(wait, index, action | VFIO_IRQ_SET_DATA_NONE, 0, 1, &[]) {
            Err(CallError::Refused(_)) => Ok(()),
            result => result,
        }
    }

    /// Does to an interrupt what [`DeviceCalls::set_irq`](crate::vfio::uapi::DeviceCalls::set_irq)
    /// asks for.
    pub(super) fn try_set_irq(&self, index: u32, action: IrqAction<'_>) -> Result<(), CallError> {
        let wait = &mut self.client.budget.begin();
        let host = |error: io::Error| CallError::Refused(error.raw_os_error().unwrap_or(libc::EIO));
        let trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
        match action {
            IrqAction::SetTrigger(eventfd) => {
                let flags = trigger | VFIO_IRQ_SET_DATA_EVENTFD;
                self.set_irqs(wait, index, flags, 0, 1, &[eventfd.as_raw_fd()])
            }
            IrqAction::ClearTrigger => {
                self.set_irqs(wait, index, trigger | VFIO_IRQ_SET_DATA_NONE, 0, 0, &[])?;
                self.enable(wait, index, None)
            }
            IrqAction::SetUnmask(eventfd) => self.client.set_unmask(Some(eventfd)).map_err(host),
            IrqAction::ClearUnmask => self.client.set_unmask(None).map_err(host),
            IrqAction::Mask => self.mask(wait, index, VFIO_IRQ_SET_ACTION_MASK),
            IrqAction::Unmask => self.mask(wait, index, VFIO_IRQ_SET_ACTION_UNMASK),
        }
    }

    /// Sets vectors in as few messages as the server takes: neighbours with an eventfd go together,
    /// and so do neighbours without.
    pub(super) fn try_set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> Result<(), CallError> {
        let wait = &mut self.client.budget.begin();
        let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
        let mut first = start;
        for alike in triggers.chunk_by(|a, b| a.is_some() == b.is_some()) {
            for part in alike.chunks(self.agreement.most_fds) {
                let fds: Vec<RawFd> = part.iter().flatten().map(|fd| fd.as_raw_fd()).collect();
                let too_many = |_| CallError::Refused(libc::EINVAL);
                let count = u32::try_from(part.len()).map_err(too_many)?;
                self.set_irqs(wait, index, flags, first, count, &fds)?;
                first = first.saturating_add(count);
            }
        }
        self.enable(wait, index, Some(triggers.len()))
    }

    /// Has the device's own registers say that messages are on, with so many vectors, or off.
    fn enable(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
        vectors: Option<usize>,
    ) -> Result<(), CallError> {
        let mut enabled = lock(&self.enabled);
        let message = index == VFIO_PCI_MSI_IRQ_INDEX || index == VFIO_PCI_MSIX_IRQ_INDEX;
        if !message || (*enabled == Some(index)) == vectors.is_some() {
            return Ok(());
        }
        enable::set(&mut Asked { device: self, wait }, index, vectors)?;
        *enabled = vectors.map(|_| index);
        Ok(())
    }
}

/// The device, while it is waited for.
struct Asked<'a, 'b> {
    device: &'a VfioUserDevice,
    wait: &'a mut Wait<'b>,
}

impl enable::Config for Asked<'_, '_> {
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), CallError> {
        self.device.try_read(self.wait, region, offset, data)
    }

    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), CallError> {
        self.device.try_write(self.wait, region, offset, data)
    }
}
