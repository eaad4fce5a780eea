//! The real-time clock: Arm's PL031 (PrimeCell Real Time Clock Technical Reference Manual,
//! DDI 0224C), whose counter is the host's time in seconds and whose alarm interrupts.
//!
//! vm-superio's isn't used: its match register has no effect, it has no interrupt and another revision's
//! identification, and it panics where the host's clock is before 1970.

use std::time::{SystemTime, UNIX_EPOCH};

use boot::fdt::{Label, Node};

use crate::bus::{Action, MmioDevice};
use crate::irq::{IrqLine, Spi, Trigger};

// Registers, by their offsets (DDI 0224C, table 3-1).
/// Data: the counter.
const DR: u64 = 0x00;
/// Match: the counter's value at which the interrupt is raised.
const MR: u64 = 0x04;
/// Load: sets the counter.
const LR: u64 = 0x08;
/// Control: bit 0 starts the counter, which can't be stopped then.
const CR: u64 = 0x0c;
/// Interrupt mask: bit 0 lets the interrupt through.
const IMSC: u64 = 0x10;
/// Raw interrupt status.
const RIS: u64 = 0x14;
/// Masked interrupt status.
const MIS: u64 = 0x18;
/// Interrupt clear: a 1 in bit 0.
const ICR: u64 = 0x1c;
/// Where the identification registers begin, each a byte in a word.
const ID: u64 = 0xfe0;

/// Part 0x031 of designer 0x41, revision 1, then the PrimeCell's identification (DDI 0224C, 3.3.9
/// and 3.3.10; the revision as in the silicon that Linux and other models know).
const IDS: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// A timer that calls [`Rtc::expire`].
pub trait Alarm: Send {
    /// Sets the timer to this time, in seconds since 1970, instead of an earlier setting. It may
    /// expire late, more than once, or too early if it is set again then.
    fn set(&mut self, at: u64);
}

/// A PL031 that keeps the host's time.
pub struct Rtc {
    line: Box<dyn IrqLine>,
    alarm: Box<dyn Alarm>,
    /// The host's time in seconds since 1970.
    now: fn() -> u64,
    /// The counter minus the host's time, modulo 2^32.
    offset: u32,
    load: u32,
    match_value: u32,
    /// The interrupt is unmasked.
    unmasked: bool,
    /// The interrupt was raised and not cleared since.
    raised: bool,
    /// The host's time at which the counter will reach the match register.
    due: Option<u64>,
    /// The time to which the alarm is set.
    alarm_at: Option<u64>,
    /// The line is high.
    high: bool,
}

impl Rtc {
    /// A clock that starts at the host's time, with its interrupt on `line`. `alarm` calls
    /// [`expire`](Self::expire).
    pub fn new(line: Box<dyn IrqLine>, alarm: Box<dyn Alarm>) -> Self {
        Self {
            line,
            alarm,
            now: host_time,
            offset: 0,
            load: 0,
            match_value: 0,
            unmasked: false,
            raised: false,
            due: None,
            alarm_at: None,
            high: false,
        }
    }

    /// The alarm has expired, or the host's time was changed.
    pub fn expire(&mut self) {
        self.alarm_at = None;
        self.update();
    }

    /// The counter.
    fn count(&self) -> u32 {
        low_half((self.now)()).wrapping_add(self.offset)
    }

    /// Computes when the counter reaches the match register: at once, or within 136 years.
    fn compare(&mut self) {
        let left = self.match_value.wrapping_sub(self.count());
        self.due = Some((self.now)().saturating_add(left.into()));
    }

    /// Raises the interrupt if it is due, updates the line, and sets the alarm if the interrupt is
    /// unmasked.
    fn update(&mut self) {
        if self.due.is_some_and(|due| (self.now)() >= due) {
            (self.raised, self.due) = (true, None);
        }
        let high = self.raised && self.unmasked;
        if high != self.high {
            self.high = high;
            self.line.set(high);
        }
        if let Some(due) = self.due.filter(|due| self.unmasked && self.alarm_at != Some(*due)) {
            self.alarm_at = Some(due);
            self.alarm.set(due);
        }
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        self.update();
        match offset {
            DR => self.count(),
            MR => self.match_value,
            LR => self.load,
            CR => 1,
            IMSC => self.unmasked.into(),
            RIS => self.raised.into(),
            MIS => self.high.into(),
            _ => {
                let id = offset.checked_sub(ID).map(|from| from / 4);
                let id = id.and_then(|index| IDS.get(usize::try_from(index).ok()?));
                id.map_or(0, |id| u32::from(*id))
            }
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        self.update();
        match offset {
            MR => {
                self.match_value = value;
                self.compare();
            }
            LR => {
                self.load = value;
                self.offset = value.wrapping_sub(low_half((self.now)()));
                self.compare();
            }
            IMSC => self.unmasked = value & 1 != 0,
            ICR => self.raised &= value & 1 == 0,
            // The counter runs already; the others can't be written.
            _ => {}
        }
        self.update();
    }
}

impl MmioDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if offset.is_multiple_of(4) => {
                *word = self.read_register(offset).to_le_bytes();
            }
            // Its registers are words (DDI 0224C, 3.2); other accesses read as zero.
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Ok(word) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(word));
        }
        Action::None
    }

    /// The counter runs on, by its battery.
    fn reset(&mut self) {
        (self.match_value, self.unmasked, self.raised, self.due) = (0, false, false, None);
        self.update();
    }
}

/// The host's time in seconds since 1970; 0 before.
fn host_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The low 32 bits of a time: the counter wraps in 2106, as a PL031's does.
fn low_half(time: u64) -> u32 {
    u32::try_from(time & u64::from(u32::MAX)).unwrap_or_default()
}

/// Its node at `base` (Documentation/devicetree/bindings/rtc/arm,pl031.yaml); `clock` is the
/// label of the bus clock's node.
pub fn node(base: u64, size: u64, spi: Spi, clock: impl Into<Label>) -> Node {
    Node::at("rtc", base)
        .strings("compatible", ["arm,pl031", "arm,primecell"])
        .reg([(base, size)])
        .cells("interrupts", [0, spi.0, Trigger::Level.dt_flags()])
        .refs("clocks", [clock])
        .string("clock-names", "apb_pclk")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::{Arc, Mutex};

    use super::*;

    thread_local! {
        static NOW: Cell<u64> = const { Cell::new(1_000_000) };
    }

    /// The levels of the line and the settings of the alarm so far.
    #[derive(Clone, Default)]
    struct Recorded(Arc<Mutex<(Vec<bool>, Vec<u64>)>>);

    impl IrqLine for Recorded {
        fn set(&self, high: bool) {
            self.0.lock().unwrap().0.push(high);
        }
    }

    impl Alarm for Recorded {
        fn set(&mut self, at: u64) {
            self.0.lock().unwrap().1.push(at);
        }
    }

    impl Recorded {
        fn take(&self) -> (Vec<bool>, Vec<u64>) {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    /// A clock at 1 000 000 s, on a host whose time only [`pass`] changes.
    fn clock() -> (Rtc, Recorded) {
        NOW.set(1_000_000);
        let recorded = Recorded::default();
        let mut rtc = Rtc::new(Box::new(recorded.clone()), Box::new(recorded.clone()));
        rtc.now = || NOW.get();
        (rtc, recorded)
    }

    fn pass(seconds: u64) {
        NOW.set(NOW.get() + seconds);
    }

    fn read(rtc: &mut Rtc, offset: u64) -> u32 {
        let mut data = [0; 4];
        rtc.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(rtc: &mut Rtc, offset: u64, value: u32) {
        assert_eq!(rtc.write(offset, &value.to_le_bytes()), Action::None);
    }

    #[test]
    fn the_data_register_reads_as_the_hosts_time() {
        let recorded = Recorded::default();
        let mut rtc = Rtc::new(Box::new(recorded.clone()), Box::new(recorded));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(u64::from(read(&mut rtc, DR)).abs_diff(now) <= 1);
    }

    #[test]
    fn other_accesses_than_words_read_zero() {
        for (offset, length) in [(DR, 1), (DR, 2), (DR, 8), (DR + 1, 4)] {
            let mut data = vec![0xff; length];
            clock().0.read(offset, &mut data);
            assert!(data.iter().all(|b| *b == 0), "{length} bytes at {offset}");
        }
    }

    #[test]
    fn registers_have_a_pl031_s_reset_values() {
        let (mut rtc, recorded) = clock();
        let reset = [0, 0, 1, 0, 0, 0, 0];
        for (offset, value) in (MR..).step_by(4).zip(reset) {
            assert_eq!(read(&mut rtc, offset), value, "{offset:#x}");
        }
        let ids: Vec<u32> = (ID..0x1000).step_by(4).map(|offset| read(&mut rtc, offset)).collect();
        assert_eq!(ids, [0x31, 0x10, 0x14, 0, 0x0d, 0xf0, 0x05, 0xb1]);
        assert_eq!(recorded.take(), Default::default());
    }

    #[test]
    fn a_guest_can_set_the_clock() {
        let (mut rtc, _) = clock();
        for value in [1000, u32::MAX, 0] {
            write(&mut rtc, LR, value);
            pass(2);
            assert_eq!(read(&mut rtc, DR), value.wrapping_add(2));
            assert_eq!(read(&mut rtc, LR), value);
        }
    }

    #[test]
    fn the_alarm_raises_the_line_until_it_is_cleared() {
        let (mut rtc, recorded) = clock();
        write(&mut rtc, IMSC, 1);
        let match_value = read(&mut rtc, DR) + 10;
        write(&mut rtc, MR, match_value);
        assert_eq!(recorded.take(), (vec![], vec![1_000_010]));
        pass(9);
        rtc.expire();
        // Early, as after a change of the host's time: it is set again.
        assert_eq!(recorded.take(), (vec![], vec![1_000_010]));
        pass(1);
        rtc.expire();
        assert_eq!(recorded.take(), (vec![true], vec![]));
        assert_eq!((read(&mut rtc, RIS), read(&mut rtc, MIS)), (1, 1));
        write(&mut rtc, ICR, 0);
        assert_eq!(read(&mut rtc, MIS), 1, "a 0 clears nothing");
        write(&mut rtc, ICR, 1);
        assert_eq!((read(&mut rtc, RIS), read(&mut rtc, MIS)), (0, 0));
        pass(100);
        rtc.expire();
        assert_eq!(recorded.take(), (vec![false], vec![]), "once");
    }

    #[test]
    fn a_reset_ends_the_alarm_and_keeps_the_time() {
        let (mut rtc, recorded) = clock();
        write(&mut rtc, LR, 5000);
        write(&mut rtc, IMSC, 1);
        write(&mut rtc, MR, 5001);
        pass(1);
        rtc.expire();
        recorded.take();
        rtc.reset();
        assert_eq!(recorded.take(), (vec![false], vec![]));
        assert_eq!([MR, IMSC, RIS].map(|offset| read(&mut rtc, offset)), [0; 3]);
        assert_eq!(read(&mut rtc, DR), 5001);
    }

    #[test]
    fn a_masked_alarm_is_seen_and_not_recorded() {
        let (mut rtc, recorded) = clock();
        write(&mut rtc, MR, 1_000_005);
        pass(6);
        assert_eq!((read(&mut rtc, RIS), read(&mut rtc, MIS)), (1, 0));
        assert_eq!(recorded.take(), Default::default());
        write(&mut rtc, IMSC, 1);
        write(&mut rtc, IMSC, 0);
        assert_eq!(recorded.take(), (vec![true, false], vec![]));
    }

    #[test]
    fn the_alarm_follows_the_counter() {
        let (mut rtc, recorded) = clock();
        write(&mut rtc, IMSC, 1);
        // The present time matches too, a past one when the counter has wrapped.
        write(&mut rtc, MR, 1_000_000);
        assert_eq!(recorded.take(), (vec![true], vec![]));
        write(&mut rtc, ICR, 1);
        write(&mut rtc, MR, 999_999);
        assert_eq!(recorded.take(), (vec![false], vec![1_000_000 + u64::from(u32::MAX)]));
        write(&mut rtc, LR, 999_990);
        assert_eq!(recorded.take(), (vec![], vec![1_000_009]));
        write(&mut rtc, LR, 999_999);
        assert_eq!(recorded.take(), (vec![true], vec![]));
    }
}
