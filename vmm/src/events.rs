//! The event loop: everything but vCPUs that can happen while a guest runs.

mod control;

use std::cell::RefCell;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use crate::alarm::AlarmClock;
use crate::console::{Clients, Monitor, Progress, StandardInput};
use crate::console_timeout::ConsoleTimeout;
use crate::control::{Control, event};
use crate::error::Error;
use crate::exit_reason::ExitReason;
use crate::function_loss::FunctionLosses;
use crate::limits::UnpinnedMemory;
use crate::notify::Notifier;
use crate::output;
use crate::power_button::PowerButton;
use crate::sandbox::seccomp::Kind;
use crate::signals::{Request, Signals};
use crate::stats::Recorder;
use crate::steering::{Outcome, Steering};
use crate::trace::{TracedLines, Tracer};
use crate::waker::Waker;

/// What the loop polls.
pub struct Sources<'a> {
    /// Wakes the loop when a vCPU has ended the run, output waits to be written, or the guest asks for
    /// an alarm.
    pub waker: Arc<Waker>,
    /// Signals to this process.
    pub signals: &'a mut Signals,
    /// When the run is to end by itself.
    pub timeout: Option<Duration>,
    /// What the guest's consoles print is looked at by this.
    pub monitor: Option<Arc<Monitor>>,
    /// Standard input for a console, and what tells that the console has room again.
    pub input: Option<(StandardInput, EventFd)>,
    /// Consoles whose clients come and go.
    pub clients: Vec<Clients>,
    /// What records what guest and devices do.
    pub tracer: Option<Arc<Tracer>>,
    /// The interrupts of traced devices, which it passes on.
    pub traced_lines: Option<TracedLines>,
    /// What takes PCI functions from the guest that the host takes back.
    pub losses: Option<FunctionLosses>,
    /// The RTC, which may ask for alarms.
    pub clock: AlarmClock,
    /// What a first SIGTERM does instead of ending the run.
    pub power_button: Option<PowerButton>,
    /// Who controls the machine from outside.
    pub control: Option<Control>,
    /// What the machine is made of, for them.
    pub description: Option<String>,
    /// Who is told that the guest runs and ends, and that the loop lives.
    pub notifier: Option<Notifier>,
    /// What watches for a console that stays silent.
    pub console_timeout: Option<ConsoleTimeout>,
    /// What tells of too little memory for a guest whose RAM isn't pinned.
    pub memory: Option<UnpinnedMemory>,
}

/// What event data names the source by.
mod token {
    pub(super) const WAKER: u32 = 0;
    pub(super) const SIGNALS: u32 = 1;
    pub(super) const TIMEOUT: u32 = 2;
    pub(super) const INPUT: u32 = 3;
    pub(super) const DRAINED: u32 = 4;
    pub(super) const ALARM: u32 = 5;
    pub(super) const POWER_BUTTON: u32 = 6;
    pub(super) const WATCHDOG: u32 = 7;
    /// And the number of the output buffer.
    pub(super) const OUTPUT: u32 = 8;
    /// And the number of the client.
    pub(super) const CONTROL: u32 = 16;
}

/// The signal that presses the power button.
const SIGTERM: u8 = 15;

/// How often input that is always ready is read before other events are served.
const READS_AT_ONCE: u32 = 64;

/// No time limit, to epoll.
const NO_TIMEOUT: i32 = -1;

/// Runs until the guest, a signal, the time limit or the person ends it.
///
/// # Errors
///
/// The host is out of descriptors.
pub fn run<'a>(
    mut sources: Sources<'a>,
    recorder: Option<&'a Recorder>,
    steering: &'a mut dyn Steering,
) -> Result<ExitReason, Error> {
    let failed = |e: event_manager::Error| Error::new(format!("the event loop failed: {e}"));
    let timer = sources.timeout.map(start_timer).transpose()?;
    let stop = Rc::new(RefCell::new(None));
    let (mut console_timeout, mut memory) = (sources.console_timeout.take(), sources.memory.take());
    let mut manager = EventManager::<Box<dyn MutEventSubscriber + '_>>::new().map_err(failed)?;
    let clients = std::mem::take(&mut sources.clients);
    let losses = sources.losses.take();
    let traced_lines = sources.traced_lines.take();
    let handler = EventHandler { sources, timer, recorder, steering, stop: stop.clone() };
    manager.add_subscriber(Box::new(handler));
    if let Some(losses) = losses {
        manager.add_subscriber(Box::new(losses));
    }
    if let Some(lines) = traced_lines {
        manager.add_subscriber(Box::new(lines));
    }
    for clients in clients {
        manager.add_subscriber(Box::new(clients));
    }
    Kind::EventLoop.enter();
    loop {
        if let Some(reason) = stop.borrow_mut().take() {
            return Ok(reason);
        }
        let waits = [
            console_timeout.as_ref().map(ConsoleTimeout::wait_ms),
            memory.as_ref().map(UnpinnedMemory::wait_ms),
        ];
        let wait = waits.into_iter().flatten().min().unwrap_or(NO_TIMEOUT);
        let events = manager.run_with_timeout(wait).map_err(failed)?;
        console_timeout = console_timeout.and_then(ConsoleTimeout::check);
        memory = memory.and_then(UnpinnedMemory::look);
        // The end of each of these waits comes once in a run, and isn't the guest's doing.
        if let Some(recorder) = recorder.filter(|_| events > 0) {
            recorder.count_wakeup();
        }
    }
}

fn start_timer(after: Duration) -> Result<TimerFd, Error> {
    let failed = |e: vmm_sys_util::errno::Error| Error::new(format!("no timer for --timeout: {e}"));
    let mut timer = TimerFd::new().map_err(failed)?;
    timer.reset(after, None).map_err(failed)?;
    Ok(timer)
}

/// Handles the events of all sources but the clients of consoles, who do so themselves.
struct EventHandler<'a> {
    sources: Sources<'a>,
    timer: Option<TimerFd>,
    recorder: Option<&'a Recorder>,
    steering: &'a mut dyn Steering,
    /// Why the loop ends.
    stop: Rc<RefCell<Option<ExitReason>>>,
}

impl EventHandler<'_> {
    fn stop(&mut self, reason: ExitReason) {
        let mut first = self.stop.borrow_mut();
        // The first reason stands.
        if first.is_none() {
            *first = Some(reason);
            drop(first);
            self.sources.notifier.iter().for_each(Notifier::stopping);
            self.tell(event::SHUTDOWN);
        }
    }

    /// The machine was told to do something, with this outcome.
    fn conclude(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Unchanged => {}
            Outcome::BegunAnew => self.tell(event::RESET),
            // What a signal interrupts fails, or leaves the guest that asked for a reset as it is.
            Outcome::Over(reason @ (ExitReason::Failed(_) | ExitReason::Reset)) => {
                let signal = self.sources.signals.end().map(ExitReason::Signal);
                self.stop(signal.unwrap_or(reason));
            }
            Outcome::Over(reason) => self.stop(reason),
        }
    }

    /// Tells clients that control it of an event.
    fn tell(&mut self, event: &str) {
        if let Some(control) = &mut self.sources.control {
            control.tell(event);
        }
    }

    fn handle_waker(&mut self, ops: &mut EventOps) {
        if self.sources.waker.acknowledge() {
            // One that was asked to end ends, whatever it asks for then.
            let outcome = self.steering.vcpu_ended(!self.is_asked_to_end());
            self.conclude(outcome);
        }
        if let Some(reason) = self.sources.monitor.as_ref().and_then(|monitor| monitor.check()) {
            self.stop(reason);
        }
        if let Some(timer) = self.sources.clock.arm_timer()
            && let Err(e) = ops.add(Events::with_data_raw(timer, token::ALARM, EventSet::IN))
        {
            log::error!("the guest's RTC has no alarm: the event loop can't poll it: {e}");
        }
        Self::watch_output(ops);
    }

    /// Polls the descriptors for which output is buffered.
    fn watch_output(ops: &mut EventOps) {
        for (token, sink) in (token::OUTPUT..).zip(output::sinks()) {
            if let Some(fd) = sink.backlog() {
                // It may have been added already. What can't be polled takes everything.
                let _ = ops.add(Events::with_data_raw(fd, token, EventSet::OUT));
            }
        }
    }

    /// Writes what the buffer with this token has.
    fn write_output(token: u32, fd: RawFd, ops: &mut EventOps) {
        let sink = (token::OUTPUT..).zip(output::sinks()).find(|(number, _)| *number == token);
        if sink.is_none_or(|(_, sink)| sink.flush()) {
            let _ = ops.remove(Events::with_data_raw(fd, token, EventSet::OUT));
        }
    }

    fn handle_signals(&mut self, ops: &mut EventOps) {
        while let Some(request) = self.sources.signals.next() {
            match request {
                Request::End(SIGTERM) if self.press_power_button() => {}
                Request::End(number) => self.stop(ExitReason::Signal(number)),
                Request::Stats => self.write_stats(),
                Request::Resized => {
                    self.sources.input.iter().for_each(|(input, _)| input.resize());
                }
                Request::Continued => {
                    if let Some((input, _)) = &mut self.sources.input {
                        input.take_terminal();
                    }
                    self.unwatch_input(ops);
                    self.watch_input(ops);
                }
            }
        }
    }

    /// Whether the guest's power button was pressed.
    fn is_asked_to_end(&self) -> bool {
        self.sources.power_button.as_ref().is_some_and(PowerButton::is_pressed)
    }

    /// Has the guest end by itself, if it can be and wasn't asked to before.
    fn press_power_button(&mut self) -> bool {
        let button = self.sources.power_button.as_mut();
        let Some(button) = button.filter(|button| !button.is_pressed()) else { return false };
        button.press();
        let grace = button.grace();
        self.tell(event::POWERDOWN);
        if let Some(notifier) = &self.sources.notifier {
            notifier.stopping_within(grace);
        }
        true
    }

    fn write_stats(&self) {
        if let Some(Err(error)) = self.recorder.map(|recorder| recorder.write(None)) {
            log::warn!("{}", error.log_text());
        }
    }

    /// Moves the input that is ready to the guest.
    fn read_input(&mut self, ops: &mut EventOps) {
        let Some((input, _)) = &mut self.sources.input else { return };
        let progress = input.read();
        self.handle_progress(progress, ops);
    }

    /// The guest has room again: what was held back goes first.
    fn resume_input(&mut self, ops: &mut EventOps) {
        let Some((input, drained)) = &mut self.sources.input else { return };
        // Only clears the event; there is nothing else to know.
        let _ = drained.read();
        if input.flush() == Progress::Moved {
            self.watch_input(ops);
        }
    }

    fn watch_input(&mut self, ops: &mut EventOps) {
        let Some((input, _)) = &self.sources.input else { return };
        if !input.is_readable() {
            return;
        }
        let fd = input.as_raw_fd();
        match ops.add(Events::with_data_raw(fd, token::INPUT, EventSet::IN)) {
            Ok(()) | Err(event_manager::Error::FdAlreadyRegistered) => (),
            // A regular file or /dev/null can't be polled: it is always ready.
            Err(_) => self.read_all_input(ops),
        }
    }

    /// Moves input that is always ready until the guest's queue is full, and for no longer than others can wait.
    fn read_all_input(&mut self, ops: &mut EventOps) {
        for _ in 0..READS_AT_ONCE {
            let Some((input, _)) = &mut self.sources.input else { return };
            let progress = input.read();
            let more = progress == Progress::Moved;
            self.handle_progress(progress, ops);
            if !more {
                return;
            }
        }
        if let Some((_, drained)) = &self.sources.input {
            // The rest comes with an event, as if the guest had room again.
            let _ = drained.write(1);
        }
    }

    /// Polls input, or no longer, as the guest has room for it.
    fn handle_progress(&mut self, progress: Progress, ops: &mut EventOps) {
        match progress {
            Progress::Moved => (),
            // Until the guest has room, or this process is continued in the foreground.
            Progress::Full | Progress::Background => self.unwatch_input(ops),
            Progress::Closed => {
                self.unwatch_input(ops);
                if let Some((_, drained)) = self.sources.input.take() {
                    let _ = ops.remove(Events::with_data(&drained, token::DRAINED, EventSet::IN));
                }
            }
            Progress::Quit => self.stop(ExitReason::Quit),
        }
    }

    fn unwatch_input(&self, ops: &mut EventOps) {
        if let Some((input, _)) = &self.sources.input {
            // Fails for input that is always ready, which was never added.
            let fd = input.as_raw_fd();
            let _ = ops.remove(Events::with_data_raw(fd, token::INPUT, EventSet::IN));
        }
    }
}

impl MutEventSubscriber for EventHandler<'_> {
    fn init(&mut self, ops: &mut EventOps) {
        let mut fds: Vec<(RawFd, u32)> = vec![
            (self.sources.waker.as_raw_fd(), token::WAKER),
            (self.sources.signals.as_raw_fd(), token::SIGNALS),
        ];
        let button = self.sources.power_button.as_ref();
        fds.extend(button.map(|button| (button.as_raw_fd(), token::POWER_BUTTON)));
        let watchdog = self.sources.notifier.as_ref().and_then(Notifier::watchdog);
        fds.extend(watchdog.map(|fd| (fd, token::WATCHDOG)));
        fds.extend(self.timer.as_ref().map(|timer| (timer.as_raw_fd(), token::TIMEOUT)));
        let drained = self.sources.input.as_ref().map(|(_, drained)| drained.as_raw_fd());
        fds.extend(drained.map(|fd| (fd, token::DRAINED)));
        for (fd, token) in fds {
            if let Err(e) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                self.stop(ExitReason::Failed(Error::new(format!(
                    "the event loop can't poll it: {e}"
                ))));
            }
        }
        if let Some(Err(e)) = self.sources.control.as_ref().map(|c| c.poll(token::CONTROL, ops)) {
            log::error!("nobody can control the guest, the event loop can't poll it: {e}");
        }
        self.watch_input(ops);
        // What is buffered since before the loop.
        Self::watch_output(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::WAKER => self.handle_waker(ops),
            token::SIGNALS => self.handle_signals(ops),
            token::TIMEOUT => {
                let after = self.sources.timeout.unwrap_or_default();
                self.stop(ExitReason::Timeout(after));
            }
            token::WATCHDOG => self.sources.notifier.iter_mut().for_each(Notifier::handle_timer),
            token::POWER_BUTTON => {
                if self.sources.power_button.as_mut().is_some_and(PowerButton::handle_timer) {
                    self.stop(ExitReason::Signal(SIGTERM));
                }
            }
            token::INPUT => self.read_input(ops),
            token::DRAINED => self.resume_input(ops),
            token::ALARM => self.sources.clock.handle_timer(),
            number @ token::CONTROL.. => self.serve_control(number, events.event_set()),
            output => Self::write_output(output, events.fd(), ops),
        }
        // Clients may have been told of it.
        self.update_control(ops);
    }
}

#[cfg(test)]
mod tests;
