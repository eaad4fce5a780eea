use std::os::fd::AsRawFd;
use std::sync::Mutex;

use super::super::testing::{Call, FakeDevice};
use super::super::uapi::IrqInfo;
use super::*;

const EDGE: IrqInfo = IrqInfo { count: 1, eventfd: true, maskable: false, automasked: false };
const LEVEL: IrqInfo = IrqInfo { maskable: true, automasked: true, ..EDGE };

/// Notes what was connected; refuses everything at `refuse`.
#[derive(Default)]
struct Gic {
    /// SPI, trigger eventfd, resample eventfd.
    connected: Mutex<Vec<(u32, i32, Option<i32>)>>,
    refuse: Option<Spi>,
}

impl Gic {
    fn note(&self, spi: Spi, trigger: i32, resample: Option<i32>) -> io::Result<()> {
        if self.refuse == Some(spi) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.connected.lock().unwrap().push((spi.0, trigger, resample));
        Ok(())
    }
}

impl InterruptController for Gic {
    fn connect_edge(&self, spi: Spi, trigger: &EventFd) -> io::Result<()> {
        self.note(spi, trigger.as_raw_fd(), None)
    }

    fn connect_level(&self, spi: Spi, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        self.note(spi, trigger.as_raw_fd(), Some(resample.as_raw_fd()))
    }

    fn disconnect(&self, spi: Spi, trigger: &EventFd) -> io::Result<()> {
        self.connected
            .lock()
            .unwrap()
            .retain(|(to, by, _)| (*to, *by) != (spi.0, trigger.as_raw_fd()));
        Ok(())
    }
}

/// A device with an edge (0) and a level interrupt (1).
fn device() -> Arc<FakeDevice> {
    Arc::new(FakeDevice::new(Vec::new(), vec![EDGE, LEVEL]))
}

fn open(device: &Arc<FakeDevice>, index: u32) -> AssignedIrq {
    AssignedIrq::open(device.clone(), index).unwrap()
}

fn eventfds(irq: &AssignedIrq) -> (i32, i32) {
    (irq.trigger.as_raw_fd(), irq.resample.as_ref().map_or(-1, AsRawFd::as_raw_fd))
}

#[test]
fn automasked_lines_are_levels_and_others_edges() {
    let device = device();
    assert_eq!(open(&device, 0).trigger(), Trigger::Edge);
    assert_eq!(open(&device, 1).trigger(), Trigger::Level);
}

#[test]
fn interrupts_that_cannot_signal_are_refused() {
    let silent = IrqInfo { eventfd: false, ..LEVEL };
    let device = Arc::new(FakeDevice::new(Vec::new(), vec![silent, IrqInfo { count: 0, ..EDGE }]));
    for index in [0, 1] {
        let error = AssignedIrq::open(device.clone(), index).unwrap_err();
        assert!(matches!(error, IrqError::NoEventFd(_)), "{error}");
    }
    let error = AssignedIrq::open(device, 2).unwrap_err();
    assert!(matches!(error, IrqError::Info(2, _)), "{error}");
}

#[test]
fn both_kinds_are_connected_with_their_eventfds() {
    let (device, gic) = (device(), Gic { refuse: Some(Spi(9)), ..Default::default() });
    let (edge, level) = (open(&device, 0), open(&device, 1));
    edge.connect(&gic, Spi(7)).unwrap();
    level.connect(&gic, Spi(8)).unwrap();
    let (trigger, resample) = eventfds(&level);
    let expected = [(7, eventfds(&edge).0, None), (8, trigger, Some(resample))];
    assert_eq!(*gic.connected.lock().unwrap(), expected);
    assert_ne!(trigger, resample);
    let error = level.connect(&gic, Spi(9)).unwrap_err();
    assert_eq!(error.to_string(), "interrupt 1 can't be connected to the guest's SPI 9");
    assert_eq!(device.take_calls(), [], "connecting leaves the host's line alone");
}

#[test]
fn what_was_signalled_is_forgotten_when_it_is_connected_anew() {
    let (device, gic) = (device(), Gic::default());
    for index in [0, 1] {
        let irq = open(&device, index);
        irq.connect(&gic, Spi(40)).unwrap();
        let before = gic.connected.lock().unwrap().clone();
        irq.trigger.write(1).unwrap();
        irq.resample.iter().for_each(|resample| resample.write(1).unwrap());
        irq.reconnect(&gic, Spi(40)).unwrap();
        assert_eq!(*gic.connected.lock().unwrap(), before);
        assert!(irq.trigger.read().is_err());
        assert!(irq.resample.as_ref().is_none_or(|resample| resample.read().is_err()));
        gic.disconnect(Spi(40), &irq.trigger).unwrap();
    }
}

#[test]
fn an_edge_is_armed_by_its_eventfd_and_disarmed_by_taking_it_away() {
    let device = device();
    let mut irq = open(&device, 0);
    let (trigger, _) = eventfds(&irq);
    irq.arm().unwrap();
    assert_eq!(device.take_calls(), [Call::SetTrigger(0, trigger)]);
    irq.disarm();
    assert_eq!(device.take_calls(), [Call::ClearTrigger(0)]);
    irq.disarm();
    drop(irq);
    assert_eq!(device.take_calls(), [], "once is enough");
}

#[test]
fn a_level_is_unmasked_only_once_both_eventfds_are_set() {
    let device = device();
    let mut irq = open(&device, 1);
    let (trigger, resample) = eventfds(&irq);
    let arming = [
        Call::Mask(1),
        Call::SetUnmask(1, resample),
        Call::SetTrigger(1, trigger),
        Call::Unmask(1),
    ];
    irq.arm().unwrap();
    assert_eq!(device.take_calls(), arming);
    irq.disarm();
    assert_eq!(device.take_calls(), [Call::ClearTrigger(1), Call::ClearUnmask(1)]);
    irq.arm().unwrap();
    assert_eq!(device.take_calls(), arming, "and again");
}

#[test]
fn signals_of_one_that_is_tapped_are_passed_on_and_none_is_lost() {
    let (device, gic) = (device(), Gic::default());
    for index in [0, 1] {
        let mut irq = open(&device, index);
        let tap = irq.tap().unwrap();
        let pass_fired = || {
            let mut fired = 0;
            tap.pass_fired(|count| fired = count);
            fired
        };
        let pass_ended = || {
            let mut ended = false;
            tap.pass_ended(|| ended = true);
            ended
        };
        irq.connect(&gic, Spi(50)).unwrap();
        assert_eq!(gic.connected.lock().unwrap().last().unwrap().1, irq.trigger.as_raw_fd());
        irq.arm().unwrap();
        // The host's side has others than the guest's.
        let (fired, ended) = tap.polled();
        assert!(device.take_calls().contains(&Call::SetTrigger(index, fired.as_raw_fd())));
        assert_eq!(pass_fired(), 0);
        assert!(irq.trigger.read().is_err());
        fired.write(1).unwrap();
        fired.write(1).unwrap();
        assert_eq!((pass_fired(), pass_fired()), (2, 0));
        assert_eq!(irq.trigger.read().unwrap(), 1);
        assert_eq!(ended.is_some(), index == 1);
        assert!(!pass_ended());
        if let Some(ended) = ended {
            ended.write(1).unwrap();
            assert!(pass_ended() && !pass_ended());
            assert_eq!(irq.of_host().1.unwrap().read().unwrap(), 1);
        }
        // What was on its way is forgotten, on either side.
        fired.write(1).unwrap();
        irq.of_host().1.iter().for_each(|unmask| unmask.write(1).unwrap());
        irq.disarm();
        irq.reconnect(&gic, Spi(50)).unwrap();
        assert_eq!(pass_fired(), 0);
        assert!(irq.of_host().1.is_none_or(|unmask| unmask.read().is_err()));
        gic.disconnect(Spi(50), &irq.trigger).unwrap();
        drop(irq);
        device.take_calls();
    }
}

#[test]
fn a_step_that_fails_undoes_those_before_it() {
    let undone: [&[Call]; 4] = [
        &[],
        &[Call::Unmask(1)],
        &[Call::ClearUnmask(1), Call::Unmask(1)],
        &[Call::ClearTrigger(1), Call::ClearUnmask(1), Call::Unmask(1)],
    ];
    for (step, undone) in undone.into_iter().enumerate() {
        let device = device();
        let mut irq = open(&device, 1);
        device.fail_at(step);
        let error = irq.arm().unwrap_err();
        assert!(error.help().unwrap().contains("/proc/interrupts"), "EBUSY: {error}");
        let calls = device.take_calls();
        assert_eq!(calls.get(step + 1..).unwrap(), undone, "step {step}");
        drop(irq);
        assert_eq!(device.take_calls(), [], "it isn't armed");
    }
}

#[test]
fn dropping_an_armed_interrupt_disarms_it() {
    let device = device();
    let mut irq = open(&device, 1);
    irq.arm().unwrap();
    device.take_calls();
    drop(irq);
    assert_eq!(device.take_calls(), [Call::ClearTrigger(1), Call::ClearUnmask(1)]);
}

#[test]
fn an_intx_line_gets_its_unmask_eventfd_after_its_trigger() {
    let device = Arc::new(FakeDevice::new(Vec::new(), vec![LEVEL]));
    let mut irq = AssignedIrq::open_intx(device.clone()).unwrap();
    assert_eq!(irq.trigger(), Trigger::Level);
    let (trigger, resample) = eventfds(&irq);
    irq.arm().unwrap();
    assert_eq!(device.take_calls(), [Call::SetTrigger(0, trigger), Call::SetUnmask(0, resample)]);
    // Without its eventfd VFIO knows nothing of it, and takes no call about it.
    irq.disarm();
    assert_eq!(device.take_calls(), [Call::ClearTrigger(0)]);
    device.fail_at(1);
    irq.arm().unwrap_err();
    assert_eq!(device.take_calls().last(), Some(&Call::ClearTrigger(0)));
    drop(irq);
    assert_eq!(device.take_calls(), [], "it isn't armed");
}
