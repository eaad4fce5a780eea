//! General-purpose inputs and outputs: Arm's PL061 (PrimeCell General Purpose Input/Output Technical
//! Reference Manual, DDI 0190B), and the power button that is on one of its inputs.

use boot::fdt::{Cell, Label, Node};

use crate::bus::{Action, MmioDevice};
use crate::irq::{IrqLine, Spi, Trigger};

// Registers, by their offsets (DDI 0190B, table 3-1).
/// The end of the data register's 256 addresses: bits 9 to 2 of the address select the pins that are
/// read or written.
const DATA_END: u64 = 0x400;
/// Direction: a 1 makes a pin an output.
const DIR: u64 = 0x400;
/// Interrupt sense: a 1 for levels, a 0 for edges.
const IS: u64 = 0x404;
/// Interrupt both edges.
const IBE: u64 = 0x408;
/// Interrupt event: a 1 for rising edges or high levels.
const IEV: u64 = 0x40c;
/// Interrupt mask: a 1 lets a pin's interrupt through.
const IE: u64 = 0x410;
/// Raw interrupt status.
const RIS: u64 = 0x414;
/// Masked interrupt status.
const MIS: u64 = 0x418;
/// Interrupt clear: a 1 clears the edge that was seen.
const IC: u64 = 0x41c;
/// Mode control select, which has no effect here.
const AFSEL: u64 = 0x420;
/// Where the identification registers begin, each a byte in a word.
const ID: u64 = 0xfe0;

/// Part 0x061 of designer 0x41, then the PrimeCell's identification (DDI 0190B, 3.3.11 and 3.3.12).
const IDS: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// The pin on which QEMU's `virt` has the power button.
const POWER_PIN: u32 = 3;

/// The pin as a bit of the registers.
const POWER: u8 = 1 << POWER_PIN;

/// `KEY_POWER` (`dt-bindings/input/linux-event-codes.h`).
const KEY_POWER: u32 = 116;

/// `GPIO_ACTIVE_HIGH` (`dt-bindings/gpio/gpio.h`).
const ACTIVE_HIGH: u32 = 0;

/// A PL061.
pub struct Gpio {
    line: Box<dyn IrqLine>,
    /// The levels that come from outside.
    inputs: u8,
    /// What the guest has written for outputs.
    outputs: u8,
    direction: u8,
    sense: u8,
    both_edges: u8,
    event: u8,
    unmasked: u8,
    mode: u8,
    /// The edges that were seen and not cleared since.
    edges: u8,
    /// The pins that the guest has read as high since they became high.
    seen: u8,
    /// The line is high.
    high: bool,
}

impl Gpio {
    /// One whose pins are all inputs, and low, with its interrupt on `line`.
    pub fn new(line: Box<dyn IrqLine>) -> Self {
        Self {
            line,
            inputs: 0,
            outputs: 0,
            direction: 0,
            sense: 0,
            both_edges: 0,
            event: 0,
            unmasked: 0,
            mode: 0,
            edges: 0,
            seen: 0,
            high: false,
        }
    }

    /// Presses or releases the power button.
    pub fn set_power_button(&mut self, pressed: bool) {
        let inputs = if pressed { self.inputs | POWER } else { self.inputs & !POWER };
        let changed = (inputs ^ self.inputs) & !self.direction;
        let rising = changed & inputs;
        self.seen &= !rising;
        // DDI 0190B, 2.3.2 "Interrupt operation".
        let wanted = self.both_edges | !(self.event ^ inputs);
        self.edges |= changed & wanted & !self.sense;
        self.inputs = inputs;
        self.update();
    }

    /// Whether the guest has read that the power button is pressed since it was.
    pub fn has_seen_power_button(&self) -> bool {
        self.seen & POWER != 0
    }

    /// The levels of all pins.
    fn levels(&self) -> u8 {
        (self.outputs & self.direction) | (self.inputs & !self.direction)
    }

    /// The raw interrupt status.
    fn raw(&self) -> u8 {
        (self.edges & !self.sense) | (!(self.levels() ^ self.event) & self.sense)
    }

    fn update(&mut self) {
        let high = self.raw() & self.unmasked != 0;
        if high != self.high {
            self.high = high;
            self.line.set(high);
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            0..DATA_END => {
                let read = self.levels() & pins(offset);
                self.seen |= read & self.inputs;
                read
            }
            DIR => self.direction,
            IS => self.sense,
            IBE => self.both_edges,
            IEV => self.event,
            IE => self.unmasked,
            RIS => self.raw(),
            MIS => self.raw() & self.unmasked,
            AFSEL => self.mode,
            _ => {
                let id = offset.checked_sub(ID).map(|from| from / 4);
                let id = id.and_then(|index| IDS.get(usize::try_from(index).ok()?));
                id.copied().unwrap_or_default()
            }
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            0..DATA_END => {
                let written = pins(offset) & self.direction;
                self.outputs = (self.outputs & !written) | (value & written);
            }
            DIR => self.direction = value,
            IS => self.sense = value,
            IBE => self.both_edges = value,
            IEV => self.event = value,
            IE => self.unmasked = value,
            IC => self.edges &= !value,
            AFSEL => self.mode = value,
            // The others can't be written.
            _ => {}
        }
        self.update();
    }
}

/// The pins that an address of the data register selects.
fn pins(offset: u64) -> u8 {
    u8::try_from(offset >> 2 & 0xff).unwrap_or_default()
}

impl MmioDevice for Gpio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Its registers are bytes, each in a word (DDI 0190B, 3.2).
        if let Some(first) = data.first_mut().filter(|_| offset.is_multiple_of(4)) {
            *first = self.read_register(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let Some(first) = data.first().filter(|_| offset.is_multiple_of(4)) {
            self.write_register(offset, *first);
        }
        Action::None
    }

    /// The button stays as it is.
    fn reset(&mut self) {
        (self.outputs, self.direction, self.sense, self.both_edges) = (0, 0, 0, 0);
        (self.event, self.unmasked, self.mode, self.edges) = (0, 0, 0, 0);
        self.update();
    }
}

/// Its label in the tree.
const LABEL: &str = "gpio";

/// Its node at `base` (Documentation/devicetree/bindings/gpio/pl061-gpio.yaml); `clock` is the label of
/// the bus clock's node.
pub fn node(base: u64, size: u64, spi: Spi, clock: impl Into<Label>) -> Node {
    Node::at("gpio", base)
        .label(LABEL)
        .strings("compatible", ["arm,pl061", "arm,primecell"])
        .reg([(base, size)])
        .cells("interrupts", [0, spi.0, Trigger::Level.dt_flags()])
        .flag("gpio-controller")
        .u32("#gpio-cells", 2)
        .flag("interrupt-controller")
        .u32("#interrupt-cells", 2)
        .refs("clocks", [clock])
        .string("clock-names", "apb_pclk")
}

/// The power button's node (Documentation/devicetree/bindings/input/gpio-keys.yaml).
pub fn power_button_node() -> Node {
    let pin = [Cell::from(Label::new(LABEL)), POWER_PIN.into(), ACTIVE_HIGH.into()];
    let button = Node::new("poweroff").string("label", "Power Button");
    Node::new("gpio-keys")
        .string("compatible", "gpio-keys")
        .child(button.u32("linux,code", KEY_POWER).cells("gpios", pin))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The levels of the line so far.
    #[derive(Clone, Default)]
    struct Recorded(Arc<Mutex<Vec<bool>>>);

    impl IrqLine for Recorded {
        fn set(&self, high: bool) {
            self.0.lock().unwrap().push(high);
        }
    }

    impl Recorded {
        fn take(&self) -> Vec<bool> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    fn gpio() -> (Gpio, Recorded) {
        let recorded = Recorded::default();
        (Gpio::new(Box::new(recorded.clone())), recorded)
    }

    fn read(gpio: &mut Gpio, offset: u64) -> u8 {
        let mut data = [0xff];
        gpio.read(offset, &mut data);
        data[0]
    }

    fn write(gpio: &mut Gpio, offset: u64, value: u8) {
        assert_eq!(gpio.write(offset, &[value]), Action::None);
    }

    /// The address of the data register for these pins.
    fn data(pins: u8) -> u64 {
        u64::from(pins) << 2
    }

    #[test]
    fn registers_have_a_pl061_s_reset_values() {
        let (mut gpio, recorded) = gpio();
        for offset in (0..0xfe0).step_by(4) {
            assert_eq!(read(&mut gpio, offset), 0, "{offset:#x}");
        }
        let ids: Vec<u8> = (ID..0x1000).step_by(4).map(|offset| read(&mut gpio, offset)).collect();
        assert_eq!(ids, IDS);
        assert!(recorded.take().is_empty());
    }

    #[test]
    fn an_address_of_the_data_register_selects_pins() {
        let (mut gpio, _) = gpio();
        write(&mut gpio, DIR, 0xf0);
        write(&mut gpio, data(0x3f), 0xff);
        assert_eq!(read(&mut gpio, data(0xff)), 0x30, "outputs that were selected");
        write(&mut gpio, data(0x10), 0);
        assert_eq!(read(&mut gpio, data(0xff)), 0x20);
        gpio.set_power_button(true);
        assert_eq!((read(&mut gpio, data(0xff)), read(&mut gpio, data(0x20))), (0x28, 0x20));
        // A pin that is an output is what the guest makes it.
        write(&mut gpio, DIR, 0xf8);
        assert_eq!(read(&mut gpio, data(0xff)), 0x20);
    }

    #[test]
    fn the_button_raises_the_line_by_both_edges_until_each_is_cleared() {
        let (mut gpio, recorded) = gpio();
        write(&mut gpio, IBE, POWER);
        write(&mut gpio, IE, POWER);
        for pressed in [true, false] {
            gpio.set_power_button(pressed);
            gpio.set_power_button(pressed);
            assert_eq!(recorded.take(), [true]);
            assert_eq!((read(&mut gpio, RIS), read(&mut gpio, MIS)), (POWER, POWER));
            write(&mut gpio, IC, !POWER);
            assert!(recorded.take().is_empty());
            write(&mut gpio, IC, POWER);
            assert_eq!(recorded.take(), [false]);
            assert_eq!(read(&mut gpio, RIS), 0);
        }
    }

    #[test]
    fn one_edge_or_a_level_interrupts_where_that_is_asked_for() {
        for (sense, event, expected) in [
            (0, POWER, vec![true]),
            (0, 0, vec![]),
            (POWER, POWER, vec![true]),
            // Low at first.
            (POWER, 0, vec![true, false]),
        ] {
            let (mut gpio, recorded) = gpio();
            write(&mut gpio, IS, sense);
            write(&mut gpio, IEV, event);
            write(&mut gpio, IE, POWER);
            gpio.set_power_button(true);
            assert_eq!(recorded.take(), expected, "{sense} {event}");
        }
    }

    #[test]
    fn a_masked_edge_is_kept() {
        let (mut gpio, recorded) = gpio();
        write(&mut gpio, IBE, POWER);
        gpio.set_power_button(true);
        assert_eq!((read(&mut gpio, RIS), read(&mut gpio, MIS)), (POWER, 0));
        assert!(recorded.take().is_empty());
        write(&mut gpio, IE, POWER);
        assert_eq!(recorded.take(), [true]);
    }

    #[test]
    fn that_a_guest_has_seen_the_button_is_known() {
        let (mut gpio, _) = gpio();
        for _ in 0..2 {
            read(&mut gpio, data(POWER));
            gpio.set_power_button(true);
            assert!(!gpio.has_seen_power_button());
            read(&mut gpio, data(!POWER));
            assert!(!gpio.has_seen_power_button(), "another pin");
            read(&mut gpio, data(POWER));
            assert!(gpio.has_seen_power_button());
            gpio.set_power_button(false);
        }
    }

    #[test]
    fn words_are_taken_and_what_is_between_them_is_not() {
        let (mut gpio, _) = gpio();
        assert_eq!(gpio.write(DIR, &0xffff_ff05_u32.to_le_bytes()), Action::None);
        let mut word = [0xff; 4];
        gpio.read(DIR, &mut word);
        assert_eq!(word, [5, 0, 0, 0]);
        gpio.read(DIR + 1, &mut word);
        assert_eq!(word, [0; 4]);
        assert_eq!(gpio.write(DIR + 1, &[7]), Action::None);
        assert_eq!(read(&mut gpio, DIR), 5);
        gpio.read(DIR, &mut []);
    }
}
