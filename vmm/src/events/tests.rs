//! The event loop with a machine that does nothing.

use std::fs::File;

use devices::console::Input;
use devices::irq::IrqLine;

use super::*;

/// A console whose guest reads as fast as anybody types.
struct Greedy;

impl Input for Greedy {
    fn enqueue(&self, bytes: &[u8]) -> usize {
        bytes.len()
    }
}

struct Nothing;

impl IrqLine for Nothing {
    fn set(&self, _: bool) {}
}

impl Steering for Nothing {
    fn vcpu_ended(&mut self, _: bool) -> Outcome {
        Outcome::Unchanged
    }

    fn restarts(&self) -> bool {
        false
    }

    fn restart(&mut self) -> Outcome {
        Outcome::Unchanged
    }

    fn pause(&mut self) -> bool {
        false
    }

    fn resume(&mut self) {}

    fn is_paused(&self) -> bool {
        false
    }
}

/// Nothing but this input, for so long.
fn sources(signals: &mut Signals, input: StandardInput, timeout: Duration) -> Sources<'_> {
    let waker = Arc::new(Waker::new().unwrap());
    let drained = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).unwrap();
    Sources {
        clock: AlarmClock::new(Box::new(Nothing), &waker),
        waker,
        signals,
        timeout: Some(timeout),
        monitor: None,
        input: Some((input, drained)),
        clients: Vec::new(),
        tracer: None,
        traced_lines: None,
        losses: None,
        power_button: None,
        control: None,
        description: None,
        notifier: None,
        console_timeout: None,
        memory: None,
    }
}

#[test]
fn input_without_an_end_keeps_no_other_event_waiting() {
    let mut signals = Signals::new().unwrap();
    let input = StandardInput::of(File::open("/dev/zero").unwrap(), Arc::new(Greedy));
    let sources = sources(&mut signals, input, Duration::from_millis(50));
    let reason = run(sources, None, &mut Nothing).unwrap();
    assert!(matches!(reason, ExitReason::Timeout(_)), "{reason:?}");
}
