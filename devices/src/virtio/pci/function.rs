//! The function as the host bridge and the VMM see it.

use std::io;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Instant;

use vm_memory::GuestMemoryMmap;

use super::super::device::{Activation, Device};
use super::super::device_events::DeviceEvents;
use super::super::queue::{QueueError, VirtQueue};
use super::common::{
    ACCESS_PLATFORM, CommonConfig, CommonWrite, DRIVER_OK, FEATURES_OK, RING_RESET,
};
use super::config::{COMMAND_INTX_DISABLE, ConfigSpace, ConfigWrite};
use super::interrupts::{CONFIG_SOURCE, Interrupts};
use super::layout::{BAR, BAR_SIZE, COMMON, DEVICE, ISR, MAX_QUEUES, NOTIFY};
use super::notify::Notifications;
use crate::bus::IoEvents;
use crate::irq::{IrqLine, MsiRouter};
use crate::pci::config::COMMAND;
use crate::pci::{AddressSpace, Bar, BarRange, Bars, Bdf, Function, InterruptPin, Msix};
use crate::ratelimit::LogLimit;

mod stopping;

pub use stopping::STOP_TIMEOUT;

/// Where a function is attached to the guest.
pub struct VirtioAttachment {
    /// Its address.
    pub bdf: Bdf,
    /// Guest RAM.
    pub memory: GuestMemoryMmap,
    /// Routes its messages, if the guest's interrupt controller takes any.
    pub router: Option<Arc<dyn MsiRouter>>,
    /// Signals its queues' notifications.
    pub ioevents: Arc<dyn IoEvents>,
    /// What its interrupt pin is wired to.
    pub line: Box<dyn IrqLine>,
}

/// Whether the device works on its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No.
    Idle,
    /// Yes.
    Active,
    /// It was asked to stop: the driver reads a status that isn't zero until it has
    /// (virtio 1.2, 4.1.4.3.1).
    Stopping,
}

/// A virtio device behind the host bridge.
pub struct VirtioFunction {
    name: String,
    /// Dropped only once nothing works on its queues: the drop would wait for that.
    device: ManuallyDrop<Box<dyn Device>>,
    bars: Bars,
    config: ConfigSpace,
    common: CommonConfig,
    notifications: Notifications,
    interrupts: Interrupts,
    events: Arc<DeviceEvents>,
    memory: Option<GuestMemoryMmap>,
    state: State,
    /// It didn't stop within the time for that.
    is_given_up: bool,
    /// Its driver has been seen.
    driven: bool,
    log: Arc<LogLimit>,
}

impl VirtioFunction {
    /// The function of a device called `name`. With `access_platform` its driver is to map for DMA what
    /// it hands over (`VIRTIO_F_ACCESS_PLATFORM`); without, it hands over guest physical addresses.
    ///
    /// # Errors
    ///
    /// The process has no more descriptors, or the device more queues than a function can have
    /// (`InvalidInput`).
    pub fn new(name: &str, device: Box<dyn Device>, access_platform: bool) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let count = u16::try_from(sizes.len()).unwrap_or(u16::MAX);
        if count > MAX_QUEUES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let log = Arc::new(LogLimit::named(name));
        let queue_reset = if device.has_queue_reset() { RING_RESET } else { 0 };
        let platform = if access_platform { ACCESS_PLATFORM } else { 0 };
        let features = device.features() | device.ring_features() | queue_reset | platform;
        let interrupts = Interrupts::new(count, log.clone())?;
        let changed = interrupts.call(CONFIG_SOURCE).ok_or(io::ErrorKind::InvalidInput)?;
        let events = Arc::new(DeviceEvents::new(changed.try_clone()?));
        let bar = Bar::Memory { size: BAR_SIZE, is_64: false, prefetchable: false };
        let bars =
            Bars::new([Some(bar), None, None, None, None, None], None).map_err(io::Error::other)?;
        Ok(Self {
            name: name.to_owned(),
            bars,
            config: ConfigSpace::new(device.device_type(), false),
            common: CommonConfig::new(features, &sizes),
            notifications: Notifications::new(count)?,
            interrupts,
            events,
            memory: None,
            state: State::Idle,
            is_given_up: false,
            driven: false,
            device: ManuallyDrop::new(device),
            log,
        })
    }

    /// Its interrupt pin.
    pub fn pin(&self) -> InterruptPin {
        InterruptPin::INTA
    }

    /// The number of its queues.
    pub fn queues(&self) -> usize {
        self.common.queues.len()
    }

    /// Its vendor, device and class, by which a guest's driver finds it.
    pub fn ids(&self) -> (u16, u16, u32) {
        self.config.ids()
    }

    /// Whether a driver of the guest has ever made it work.
    pub fn has_been_driven(&self) -> bool {
        self.driven
    }

    /// Attaches it to the guest, whose interrupt controller is complete.
    ///
    /// # Errors
    ///
    /// The process has no more descriptors.
    pub fn attach(&mut self, attachment: VirtioAttachment) -> io::Result<()> {
        let VirtioAttachment { bdf, memory, router, ioevents, line } = attachment;
        self.config = ConfigSpace::new(self.device.device_type(), router.is_some());
        self.interrupts.attach(router, bdf.requester_id(), line)?;
        self.common.set_vectors(self.interrupts.vectors());
        self.notifications.attach(ioevents);
        self.memory = Some(memory);
        Ok(())
    }

    /// Makes what may not be made any more once the guest runs.
    ///
    /// # Errors
    ///
    /// The host has no more threads or descriptors.
    pub fn prepare(&mut self) -> io::Result<()> {
        self.interrupts.prepare()?;
        self.device.prepare(&self.notifications.kicks())
    }

    /// The driver writes to the device status.
    fn write_status(&mut self, value: u8) {
        if value == 0 {
            self.reset_device();
            return;
        }
        if self.state == State::Stopping {
            return;
        }
        let new = value & !self.common.status;
        let mut accepted = new & !(FEATURES_OK | DRIVER_OK);
        if new & FEATURES_OK != 0 && self.common.are_features_ok() {
            accepted |= FEATURES_OK;
        }
        self.common.status |= accepted;
        if new & DRIVER_OK != 0 && self.common.status & FEATURES_OK != 0 {
            self.common.status |= DRIVER_OK;
            self.activate();
        }
    }

    /// The driver is ready: the device begins to work.
    fn activate(&mut self) {
        self.driven = true;
        self.interrupts.set_active(true);
        self.state = State::Active;
        let activated = self.activation().and_then(|activation| {
            self.device.activate(activation).map_err(|error| error.to_string())
        });
        if let Err(error) = activated {
            self.fail(&error);
        }
    }

    /// What the device works with.
    fn activation(&self) -> Result<Activation, String> {
        let memory = self.memory.clone().ok_or("it has no memory")?;
        // How the driver came by its addresses is between it and the platform. To vhost and vhost-user the
        // bit says that they are translated for each access (an IOTLB), which they aren't.
        let features = self.common.driver_features & !ACCESS_PLATFORM;
        let events = self.events.clone();
        let enabled = (0..).zip(&self.common.queues).filter(|(_, queue)| queue.enabled);
        let queues = enabled.map(|(index, _)| self.queue(index, &memory));
        let queues = queues.collect::<Result<_, _>>()?;
        Ok(Activation { features, queues, memory, events })
    }

    /// A queue as the driver has set it up.
    fn queue(&self, index: u16, memory: &GuestMemoryMmap) -> Result<VirtQueue, String> {
        let registers = self.common.queues.get(usize::from(index));
        let kick = self.notifications.kick(index);
        let call = self.interrupts.call(index.saturating_add(1));
        let (Some(registers), Some(kick), Some(call)) = (registers, kick, call) else {
            return Err(format!("there is no queue {index}"));
        };
        let clone = || Ok::<_, io::Error>((kick.try_clone()?, call.try_clone()?));
        let events = clone().map_err(|error| error.to_string())?;
        let rings = (registers.size, registers.addresses);
        let features = self.common.driver_features;
        VirtQueue::new(index, rings, features, memory.clone(), events)
            .map_err(|error: QueueError| error.to_string())
    }

    /// The driver has enabled a queue: one that it has reset, if the device works.
    fn enable_queue(&mut self, index: u16) {
        if self.state != State::Active {
            return;
        }
        let memory = self.memory.clone().ok_or_else(|| "it has no memory".to_owned());
        let activated = memory
            .and_then(|memory| self.queue(index, &memory))
            .and_then(|queue| self.device.activate_queue(queue).map_err(|error| error.to_string()));
        if let Err(error) = activated {
            self.fail(&format!("queue {index}: {error}"));
        }
    }

    /// The driver resets a queue.
    fn reset_queue(&mut self, index: u16) {
        if self.state == State::Active {
            self.device.stop_queue(index);
        }
        self.poll_queues();
    }

    /// Completes the resets of queues on which nothing works any more.
    fn poll_queues(&mut self) {
        for (index, queue) in (0..).zip(&mut self.common.queues) {
            if queue.resetting
                && (self.state != State::Active || self.device.is_queue_stopped(index))
            {
                queue.reset();
            }
        }
    }

    /// The device can't work until its driver resets it.
    #[cold]
    fn fail(&self, why: &str) {
        self.log.warn(format_args!("it can't work, and the guest has to reset it: {why}"));
        self.events.fail();
    }

    /// The driver resets the device.
    fn reset_device(&mut self) {
        match self.state {
            State::Idle => self.finish_reset(),
            State::Active => {
                self.device.stop();
                self.state = State::Stopping;
                self.poll_reset();
            }
            State::Stopping => self.poll_reset(),
        }
    }

    /// Completes a reset, if the device has stopped.
    fn poll_reset(&mut self) {
        if self.state == State::Stopping && self.device.is_stopped() {
            self.finish_reset();
        }
    }

    fn finish_reset(&mut self) {
        self.state = State::Idle;
        self.common.reset();
        self.events.reset();
        self.interrupts.reset();
    }

    /// A function-level reset.
    fn reset_function(&mut self) {
        self.reset_device();
        self.interrupts.reset_msix();
        self.bars.reset();
        self.config.reset();
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        self.poll_reset();
        match self.common.write(offset, data) {
            CommonWrite::Done => {}
            CommonWrite::QueueEnabled(queue) => self.enable_queue(queue),
            CommonWrite::QueueReset(queue) => self.reset_queue(queue),
            CommonWrite::Status(value) => self.write_status(value),
            CommonWrite::Vector => {
                let queues = self.common.queues.iter().map(|queue| queue.vector);
                self.interrupts.set_vectors([self.common.config_vector].into_iter().chain(queues));
            }
        }
    }

    /// The offset in the MSI-X capability, the last one, of an access at `offset` of configuration
    /// space.
    fn within_msix(&self, offset: u16) -> Option<u16> {
        let within = offset.checked_sub(self.config.msix()?)?;
        (within < Msix::SIZE).then_some(within)
    }
}

impl Function for VirtioFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if Bars::covers(offset) {
            self.bars.read(offset, data);
            return;
        }
        if let Some(at) = self.config.access(offset, data.len()) {
            self.read_bar(BAR, at, data);
            return;
        }
        if offset & !3 == COMMAND {
            self.config.set_interrupt_status(self.interrupts.is_pending());
        }
        match self.within_msix(offset) {
            Some(within) => self.interrupts.read_capability(within, data),
            None => self.config.read(offset, data),
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if Bars::covers(offset) {
            self.bars.write(offset, data);
            return;
        }
        if let Some(within) = self.within_msix(offset) {
            self.interrupts.write_capability(within, data);
            return;
        }
        match self.config.write(offset, data) {
            ConfigWrite::Done => {}
            ConfigWrite::Command(command) => {
                self.bars.set_command(command);
                self.interrupts.set_pin_disabled(command & COMMAND_INTX_DISABLE != 0);
            }
            ConfigWrite::Reset => self.reset_function(),
            ConfigWrite::Bar(at) => self.write_bar(BAR, at, data),
        }
    }

    fn decoded(&self) -> Vec<BarRange> {
        self.bars.decoded()
    }

    fn decodes(&self, range: &BarRange) -> bool {
        self.bars.decodes(range)
    }

    fn forward(&mut self, ranges: &[BarRange]) {
        // As of now: another vCPU may have moved it since the bridge asked.
        let mut ranges = ranges.iter().filter(|range| self.bars.decodes(range));
        let bar = ranges.find(|range| range.bar == BAR && range.space == AddressSpace::Memory);
        self.notifications.forward(bar.map(|range| range.range.start), &self.log);
    }

    fn trap(&mut self) -> bool {
        // Nothing is ever mapped.
        false
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != BAR || self.interrupts.read_bar(offset, data) {
            return;
        }
        let at = |start: u64| offset.saturating_sub(start);
        if COMMON.contains(&offset) {
            self.poll_reset();
            self.poll_queues();
            let needs_reset = self.events.needs_reset();
            self.common.read(offset, data, self.events.generation(), needs_reset);
        } else if ISR.contains(&offset) {
            if let [isr, ..] = data {
                *isr = self.interrupts.take_isr();
            }
        } else if DEVICE.contains(&offset) {
            self.device.read_config(at(DEVICE.start), data);
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR || self.interrupts.write_bar(offset, data) {
            return;
        }
        if COMMON.contains(&offset) {
            self.write_common(offset, data);
        } else if NOTIFY.contains(&offset) {
            self.notifications.write(offset);
        } else if DEVICE.contains(&offset) {
            self.device.write_config(offset.saturating_sub(DEVICE.start), data);
        }
    }
}

impl Drop for VirtioFunction {
    fn drop(&mut self) {
        if self.stop(Instant::now() + STOP_TIMEOUT) {
            // SAFETY: nothing uses the device after this: the function is gone.
            unsafe { ManuallyDrop::drop(&mut self.device) };
        }
    }
}

#[cfg(test)]
mod tests;
