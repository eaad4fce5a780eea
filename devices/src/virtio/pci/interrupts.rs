//! A function's interrupts: an eventfd for changes of the configuration and one for each queue, which
//! become MSI-X messages, or the ISR status and the interrupt pin (virtio 1.2, 4.1.5.1).

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::common::NO_VECTOR;
use super::layout::{BAR, MSIX_PENDING, MSIX_TABLE};
use crate::irq::{IrqLine, MsiRouter};
use crate::pci::{MsiState, MsiVectors, Msix};
use crate::poll;
use crate::ratelimit::LogLimit;
use crate::sync::lock;
use crate::task_thread::{Task, TaskThread};
use crate::thread_kind::ThreadKind;

/// Bits of the ISR status (virtio 1.2, 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// The capability's ID (PCI Code and ID Assignment, 2).
const MSIX_ID: u32 = 0x11;

/// The number of the configuration's eventfd; those of the queues follow.
pub(super) const CONFIG_SOURCE: u16 = 0;

/// The interrupts of a function.
pub(super) struct Interrupts {
    /// MSI-X with the routes of the eventfds, if the guest's interrupt controller takes messages.
    messages: Option<Messages>,
    calls: Vec<EventFd>,
    pin: Arc<Pin>,
    relay: Option<Relay>,
    /// The device works.
    active: bool,
    log: Arc<LogLimit>,
}

struct Messages {
    msix: Msix,
    /// The eventfds with their routes.
    routes: MsiVectors,
    /// The vector of each.
    vectors: Vec<u16>,
}

/// The interrupt pin with the ISR status.
struct Pin(Mutex<PinState>);

struct PinState {
    isr: u8,
    disabled: bool,
    line: Box<dyn IrqLine>,
}

impl Interrupts {
    /// Those of a device with so many queues, which aren't connected to the guest yet.
    pub(super) fn new(queues: u16, log: Arc<LogLimit>) -> io::Result<Self> {
        let call = |_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let calls = (0..=queues).map(call).collect::<Result<_, _>>()?;
        let line = Box::new(NoLine);
        let pin = Arc::new(Pin(Mutex::new(PinState { isr: 0, disabled: false, line })));
        Ok(Self { messages: None, calls, pin, relay: None, active: false, log })
    }

    /// Connects them: messages from `requester` to `router`, if there is one, and the pin to `line`.
    pub(super) fn attach(
        &mut self,
        router: Option<Arc<dyn MsiRouter>>,
        requester: u16,
        line: Box<dyn IrqLine>,
    ) -> io::Result<()> {
        lock(&self.pin.0).line = line;
        let Some(router) = router else { return Ok(()) };
        let last = u32::try_from(self.calls.len().saturating_sub(1)).unwrap_or_default();
        let bar = u32::from(BAR);
        let structure = [last << 16 | MSIX_ID, MSIX_TABLE | bar, MSIX_PENDING | bar];
        let triggers = self.calls.iter().map(EventFd::try_clone).collect::<Result<_, _>>()?;
        self.messages = Some(Messages {
            msix: Msix::new(structure, requester),
            routes: MsiVectors::with_triggers(router, triggers),
            vectors: vec![NO_VECTOR; self.calls.len()],
        });
        Ok(())
    }

    /// The number of MSI-X vectors; 0 without MSI-X.
    pub(super) fn vectors(&self) -> u16 {
        self.messages.as_ref().map_or(0, |messages| messages.msix.capacity())
    }

    /// The eventfd of a source: [`CONFIG_SOURCE`], or 1 and the number of a queue.
    pub(super) fn call(&self, source: u16) -> Option<&EventFd> {
        self.calls.get(usize::from(source))
    }

    /// The vectors of the sources, in their order, have changed.
    pub(super) fn set_vectors(&mut self, vectors: impl Iterator<Item = u16>) {
        let Some(messages) = &mut self.messages else { return };
        messages.vectors.iter_mut().zip(vectors).for_each(|(old, new)| *old = new);
        self.sync();
    }

    /// Makes the pin's thread, which waits until it is needed.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        self.relay = Some(Relay::new(&self.calls)?);
        Ok(())
    }

    /// The device works from here on, or no longer.
    pub(super) fn set_active(&mut self, active: bool) {
        self.active = active;
        self.sync();
    }

    /// The guest disables the pin, or enables it.
    pub(super) fn set_pin_disabled(&self, disabled: bool) {
        let mut pin = lock(&self.pin.0);
        pin.disabled = disabled;
        pin.update();
    }

    /// The guest reads the ISR status, which clears it and deasserts the pin.
    pub(super) fn take_isr(&self) -> u8 {
        let mut pin = lock(&self.pin.0);
        let isr = std::mem::take(&mut pin.isr);
        pin.update();
        isr
    }

    /// Whether the pin is asserted, or would be if it were enabled.
    pub(super) fn is_pending(&self) -> bool {
        lock(&self.pin.0).isr != 0
    }

    /// As a reset of the device does.
    pub(super) fn reset(&mut self) {
        self.active = false;
        if let Some(messages) = &mut self.messages {
            messages.vectors.fill(NO_VECTOR);
        }
        self.sync();
        self.take_isr();
    }

    /// As a reset of the function does, which has reset the device.
    pub(super) fn reset_msix(&mut self) {
        if let Some(messages) = &mut self.messages {
            messages.msix.reset();
        }
        self.sync();
        self.set_pin_disabled(false);
    }

    /// Forgets signals that nobody has heard.
    pub(super) fn forget(&self) {
        // Non-blocking: there may be none.
        self.calls.iter().for_each(|call| drop(call.read()));
        self.take_isr();
    }

    /// Reads at `offset` of the MSI-X capability's structure.
    pub(super) fn read_capability(&self, offset: u16, data: &mut [u8]) {
        if let Some(messages) = &self.messages {
            messages.msix.read(offset, data);
        }
    }

    /// Writes at `offset` of the MSI-X capability's structure.
    pub(super) fn write_capability(&mut self, offset: u16, data: &[u8]) {
        if self.messages.as_mut().is_some_and(|messages| messages.msix.write(offset, data)) {
            self.sync();
        }
    }

    /// Reads at `offset` of the BAR. Whether that is within the table or the pending bits.
    pub(super) fn read_bar(&self, offset: u64, data: &mut [u8]) -> bool {
        let Some(Messages { msix, routes, vectors }) = &self.messages else { return false };
        if let Some(within) = msix.table().find(BAR, offset, data.len()) {
            msix.read_table(within, data);
        } else if let Some(within) = msix.pending_bits().find(BAR, offset, data.len()) {
            msix.read_pending(within, data, |vector| {
                let mut sources = (0..).zip(vectors);
                sources.any(|(source, of)| *of == vector && routes.is_pending(source))
            });
        } else {
            return false;
        }
        true
    }

    /// Writes at `offset` of the BAR. Whether that is within the table.
    pub(super) fn write_bar(&mut self, offset: u64, data: &[u8]) -> bool {
        let Some(Messages { msix, .. }) = &mut self.messages else { return false };
        let Some(within) = msix.table().find(BAR, offset, data.len()) else { return false };
        if msix.write_table(within, data).is_some() {
            self.sync();
        }
        true
    }

    /// Makes the routes, and whether the pin's thread runs, what the registers say.
    fn sync(&mut self) {
        let by_message =
            self.messages.as_ref().is_some_and(|messages| messages.msix.enabled_vectors() != 0);
        if by_message {
            self.relay.iter_mut().for_each(Relay::stop);
        }
        if let Some(Messages { msix, routes, vectors }) = &mut self.messages {
            for (source, vector) in (0..).zip(vectors) {
                let message = msix.message(*vector).filter(|_| by_message);
                if let Err(error) = routes.set(source, message) {
                    let log = &self.log;
                    log.warn(format_args!("vector {vector} can't be routed to the guest: {error}"));
                }
            }
        }
        if by_message || !self.active {
            self.relay.iter_mut().for_each(Relay::stop);
        } else if let Err(error) = self.start_relay() {
            self.log.warn(format_args!("no thread for its interrupts: {error}"));
        }
    }

    fn start_relay(&mut self) -> io::Result<()> {
        if self.relay.is_none() {
            self.prepare()?;
        }
        let pin = &self.pin;
        self.relay.iter_mut().try_for_each(|relay| relay.start(pin.clone()))
    }
}

impl PinState {
    fn update(&self) {
        self.line.set(self.isr != 0 && !self.disabled);
    }
}

/// A pin that isn't wired yet.
struct NoLine;

impl IrqLine for NoLine {
    fn set(&self, _: bool) {}
}

/// The thread that makes signals of the eventfds bits of the ISR status: where the guest takes no
/// messages, or doesn't want them.
struct Relay {
    signals: Arc<Signals>,
    // Before the thread, whose task it stops.
    task: Option<Task<()>>,
    thread: TaskThread,
}

/// What its thread waits for.
struct Signals {
    stop: AtomicBool,
    wake: EventFd,
    calls: Vec<EventFd>,
}

impl Relay {
    fn new(calls: &[EventFd]) -> io::Result<Self> {
        let calls = calls.iter().map(EventFd::try_clone).collect::<Result<_, _>>()?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let signals = Arc::new(Signals { stop: AtomicBool::new(false), wake, calls });
        let thread = TaskThread::start(ThreadKind::Intx, "virtio-intx", None)?;
        Ok(Self { signals, task: None, thread })
    }

    /// Has it begin, if it hasn't.
    fn start(&mut self, pin: Arc<Pin>) -> io::Result<()> {
        if self.task.is_none() {
            self.signals.stop.store(false, Ordering::Release);
            let signals = self.signals.clone();
            self.task = Some(self.thread.run(move || signals.relay(&pin))?);
        }
        Ok(())
    }

    /// Has it end, and waits until it has.
    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            self.signals.stop.store(true, Ordering::Release);
            // Fails only while as many signals are pending as the counter holds.
            let _ = self.signals.wake.write(1);
            let _ = task.join();
        }
    }
}

impl Signals {
    /// Makes them bits of the ISR status, until it is to stop.
    fn relay(&self, pin: &Pin) {
        let Self { stop, wake, calls } = self;
        let fds: Vec<RawFd> = calls.iter().chain([wake]).map(AsRawFd::as_raw_fd).collect();
        while !stop.load(Ordering::Acquire) {
            wait(&fds);
            let bit = |source| if source == CONFIG_SOURCE { ISR_CONFIG } else { ISR_QUEUE };
            let signalled = (0..).zip(calls).filter(|(_, call)| call.read().is_ok());
            let bits = signalled.fold(0, |bits, (source, _)| bits | bit(source));
            if bits != 0 {
                let mut pin = lock(&pin.0);
                pin.isr |= bits;
                pin.update();
            }
        }
        // Only clears it.
        let _ = wake.read();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until one of them is readable.
fn wait(fds: &[RawFd]) {
    let mut entries: Vec<libc::pollfd> = fds.iter().copied().map(poll::readable).collect();
    // One that has failed finds nothing signalled.
    let _ = poll::wait(&mut entries, None);
}
