use std::cell::RefCell;
use std::time::Instant;

use super::*;

const CHANNELS: usize = 8;
/// Eight channels, eight events.
const CONFIGURATION: u32 = 7 << 4 | 7 << 17;
/// For what comes, however busy the machine is.
const AMPLE: Duration = Duration::from_secs(60);
/// For what doesn't: long enough for whatever else is to come meanwhile.
const SHORT: Duration = Duration::from_millis(50);

/// A thread: its state, and those that it goes through, one a look, once killed.
#[derive(Clone, Debug, Default)]
struct FakeThread {
    state: u32,
    after_kill: Vec<u32>,
    /// DMAKILL does nothing.
    deaf: bool,
}

/// The registers as the TRM describes them.
#[derive(Debug)]
struct Fake {
    threads: Vec<FakeThread>,
    id: u32,
    inten: u32,
    /// Events that happened.
    ris: u32,
    /// Interrupts that are high.
    mis: u32,
    /// Reads of DBGSTATUS that say busy.
    busy: usize,
    /// What was written.
    writes: Vec<(u64, u32)>,
    instruction: (u32, u32),
}

impl Fake {
    fn new() -> RefCell<Self> {
        RefCell::new(Self {
            threads: vec![FakeThread::default(); 1 + CHANNELS],
            id: 0x0004_1330,
            inten: 0,
            ris: 0,
            mis: 0,
            busy: 0,
            writes: Vec::new(),
            instruction: (0, 0),
        })
    }

    fn look(&mut self, thread: usize) -> u32 {
        let thread = &mut self.threads[thread];
        let state = thread.state;
        // Only a thread that ends by itself moves on.
        if matches!(state, 8 | 9 | 0xe) && !thread.after_kill.is_empty() {
            thread.state = thread.after_kill.remove(0);
        }
        state
    }

    fn run(&mut self) {
        let (first, second) = self.instruction;
        assert_eq!((first >> 16, second), (1, 0), "DMAKILL and nothing else");
        let thread = if first & 1 == 0 { 0 } else { 1 + (first >> 8 & 7) as usize };
        let thread = &mut self.threads[thread];
        if thread.deaf {
            return;
        }
        thread.state = if thread.after_kill.is_empty() { 0 } else { thread.after_kill.remove(0) };
    }
}

impl RegisterAccess for RefCell<Fake> {
    fn read32(&self, offset: u64) -> Result<u32, AccessError> {
        let mut fake = self.borrow_mut();
        Ok(match offset {
            0x000 => fake.look(0),
            0x020 => fake.inten,
            0x024 => fake.ris,
            0x028 => fake.mis,
            0x100..0x140 if offset.is_multiple_of(8) => {
                fake.look(1 + usize::try_from((offset - 0x100) / 8).unwrap())
            }
            0xd00 => {
                let busy = fake.busy > 0;
                fake.busy = fake.busy.saturating_sub(1);
                busy.into()
            }
            0xe00 => CONFIGURATION,
            0xfe0..0xff0 => fake.id >> ((offset - 0xfe0) * 2) & 0xff,
            _ => panic!("read of {offset:#x}"),
        })
    }

    fn write32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        let mut fake = self.borrow_mut();
        fake.writes.push((offset, value));
        match offset {
            0x020 => fake.inten = value,
            0x02c => {
                let cleared = value & fake.inten;
                fake.ris &= !cleared;
                fake.mis &= !cleared;
            }
            0xd04 => {
                assert_eq!(value, 0);
                fake.run();
            }
            0xd08 => fake.instruction.0 = value,
            0xd0c => fake.instruction.1 = value,
            _ => panic!("write to {offset:#x}"),
        }
        Ok(())
    }
}

/// The kills in order: 0 the manager, 1 channel 0 …
fn kills(fake: &RefCell<Fake>) -> Vec<u32> {
    let writes = &fake.borrow().writes;
    let instructions = writes.iter().filter(|(offset, _)| *offset == DBGINST0);
    instructions.map(|(_, v)| if v & 1 == 0 { 0 } else { 1 + (v >> 8) % 8 }).collect()
}

#[test]
fn of_an_idle_controller_only_events_are_cleared() {
    let fake = Fake::new();
    stop(&fake, AMPLE).unwrap();
    assert_eq!(fake.borrow().writes, [(INTEN, 0), (INTCLR, 0xff), (INTEN, 0)]);
}

#[test]
fn every_running_thread_is_killed_the_manager_first() {
    // Each state that a channel can be found in and that DMAKILL ends, and two on their way.
    let states = [1, 2, 3, 4, 5, 6, 7, 0xf];
    let fake = Fake::new();
    for (thread, state) in fake.borrow_mut().threads.iter_mut().zip([4].into_iter().chain(states)) {
        thread.state = state;
    }
    stop(&fake, AMPLE).unwrap();
    assert_eq!(kills(&fake), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(fake.borrow().threads.iter().all(|thread| thread.state == 0));
}

#[test]
fn debug_registers_are_written_in_order() {
    let fake = Fake::new();
    fake.borrow_mut().threads[3].state = 1;
    fake.borrow_mut().busy = 5;
    stop(&fake, AMPLE).unwrap();
    let writes = &fake.borrow().writes;
    assert_eq!(writes[..3], [(DBGINST0, 0x0001_0201), (DBGINST1, 0), (DBGCMD, 0)]);
    assert_eq!(fake.borrow().busy, 0, "it was waited for");
}

#[test]
fn threads_that_end_by_themselves_are_waited_for() {
    let fake = Fake::new();
    let ending = |state, after: &[u32]| FakeThread { state, after_kill: after.into(), deaf: false };
    fake.borrow_mut().threads[1] = ending(9, &[9, 9, 0]);
    // Killed, killing for a while, stopped.
    fake.borrow_mut().threads[2] = ending(1, &[8, 8, 8, 0]);
    // Completing upon a fault, faulting: this one has to be killed.
    fake.borrow_mut().threads[3] = ending(0xe, &[0xf]);
    stop(&fake, AMPLE).unwrap();
    assert_eq!(kills(&fake), [2, 3]);
}

#[test]
fn a_channel_that_never_stops_is_named_and_the_others_are_stopped() {
    let fake = Fake::new();
    {
        let mut fake = fake.borrow_mut();
        fake.threads[3] = FakeThread { state: 7, deaf: true, ..Default::default() };
        fake.threads[6].state = 1;
        fake.inten = 0xff;
        fake.mis = 4;
    }
    let started = Instant::now();
    let error = stop(&fake, SHORT).unwrap_err();
    assert_eq!(error.to_string(), "channel 2 is still in state 0x7");
    assert!(started.elapsed() < AMPLE);
    assert_eq!(kills(&fake), [3, 6], "killed once, not over and over");
    let fake = fake.borrow();
    assert_eq!((fake.threads[6].state, fake.inten, fake.mis), (0, 0, 0));
}

#[test]
fn events_are_cleared_whether_or_not_their_interrupts_are_enabled() {
    // INTEN, events that happened, interrupts that are high.
    for (inten, ris, mis) in [(0xff, 0x12, 0x12), (0, 0x12, 0), (0x2, 0x3, 0x2), (0, 0x10, 0x10)] {
        let fake = Fake::new();
        {
            let mut fake = fake.borrow_mut();
            (fake.inten, fake.ris, fake.mis) = (inten, ris, mis);
        }
        stop(&fake, AMPLE).unwrap();
        let fake = fake.borrow();
        assert_eq!((fake.inten, fake.ris, fake.mis), (0, 0, 0), "{inten:#x} {ris:#x} {mis:#x}");
    }
}

#[test]
fn stuck_debug_registers_are_used_nevertheless() {
    let fake = Fake::new();
    fake.borrow_mut().threads[1].state = 1;
    fake.borrow_mut().busy = usize::MAX;
    stop(&fake, SHORT).unwrap();
}

#[test]
fn another_device_is_left_alone() {
    let fake = Fake::new();
    fake.borrow_mut().id = 0x0014_1011;
    let error = stop(&fake, AMPLE).unwrap_err();
    assert_eq!(error.to_string(), "its identification is 0x00141011, which is no PL330");
    assert!(fake.borrow().writes.is_empty());
}
