//! QEMU's educational PCI device (docs/specs/edu.rst): it inverts, computes factorials, and copies
//! between its own memory and its host's, each told by an interrupt.

use crate::CommandError;
use crate::noiommu::{Event, MappedRegion, NoIommuDevice};

/// Registers, in bytes from the start of its only region.
const IDENTITY: usize = 0x00;
const INVERTED: usize = 0x04;
const FACTORIAL: usize = 0x08;
const STATUS: usize = 0x20;
const INTERRUPT: usize = 0x24;
const ACKNOWLEDGE: usize = 0x64;
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;

/// What the identity reads: version 1.0.
const IS: u32 = 0x0100_00ed;
/// In the status: an interrupt when a factorial is done.
const TELL_FACTORIAL: u32 = 0x80;
/// What an interrupt is for.
const FACTORIAL_DONE: u32 = 0x001;
const COPY_DONE: u32 = 0x100;
/// Commands: start, with an interrupt at the end; to the host.
const START: u32 = 0x01 | 0x04;
const TO_HOST: u32 = 0x02;

/// Its own memory.
const MEMORY: u32 = 0x4_0000;
const PAGE: u32 = 4096;

/// VFIO's indices: INTx and MSI.
const LINE: u32 = 0;
const MSI: u32 = 1;

struct Edu {
    registers: MappedRegion,
    driven: NoIommuDevice,
    event: Event,
    index: u32,
}

/// Has the device of this name invert, compute and copy `rounds` pages each way, told by messages,
/// or by its line.
pub(crate) fn run(name: &str, by: &str, rounds: u64) -> Result<(), CommandError> {
    let index = match by {
        "msi" => MSI,
        "line" => LINE,
        _ => return Err(format!("{by:?} is neither msi nor line").into()),
    };
    let driven = NoIommuDevice::open(name)?;
    let [event] = [Event::new()?];
    let events = [event];
    driven.signal(index, &events)?;
    let [event] = events;
    let edu = Edu { registers: driven.map(0)?, driven, event, index };
    edu.check_registers()?;
    edu.check_factorial()?;
    let pages = MappedRegion::pages(2)?;
    let addresses = pages.addresses()?;
    let [from, to] = addresses.as_slice() else { return Err("two pages were asked for".into()) };
    for round in 0..rounds {
        edu.check_copy(&pages, [u32::try_from(*from)?, u32::try_from(*to)?], round)?;
    }
    edu.driven.silence(index)?;
    println!("{rounds} pages each way, {} interrupts by {by}", 2 * rounds + 1);
    Ok(())
}

impl Edu {
    fn get(&self, register: usize) -> u32 {
        self.registers.read(register / 4)
    }

    fn set(&self, register: usize, value: u32) {
        self.registers.write(register / 4, value);
    }

    fn check_registers(&self) -> Result<(), CommandError> {
        let identity = self.get(IDENTITY);
        if identity != IS {
            return Err(format!("this isn't an edu: {identity:#x}").into());
        }
        for value in [0, 0x1234_5678, u32::MAX] {
            self.set(INVERTED, value);
            let found = self.get(INVERTED);
            if found != !value {
                return Err(format!("{value:#x} inverted is {found:#x}").into());
            }
        }
        Ok(())
    }

    fn check_factorial(&self) -> Result<(), CommandError> {
        self.set(STATUS, TELL_FACTORIAL);
        self.set(FACTORIAL, 10);
        self.wait(FACTORIAL_DONE)?;
        self.set(STATUS, 0);
        match self.get(FACTORIAL) {
            3_628_800 => Ok(()),
            other => Err(format!("10! is {other}").into()),
        }
    }

    /// Waits for an interrupt, exactly one, and its reason.
    fn wait(&self, reason: u32) -> Result<(), CommandError> {
        let count = self.event.wait()?;
        let found = self.get(INTERRUPT);
        self.set(ACKNOWLEDGE, found);
        if self.index == LINE {
            self.driven.unmask(LINE)?;
        }
        if (count, found) != (1, reason) {
            return Err(format!("{count} interrupts for {found:#x} instead of {reason:#x}").into());
        }
        Ok(())
    }

    fn copy(&self, from: u32, to: u32, command: u32) -> Result<(), CommandError> {
        for (register, value) in [(SOURCE, from), (DESTINATION, to), (COUNT, PAGE)] {
            self.set(register, value);
        }
        self.set(COMMAND, command);
        self.wait(COPY_DONE)
    }

    /// Copies a page to the device and back to another page.
    fn check_copy(
        &self,
        pages: &MappedRegion,
        [from, to]: [u32; 2],
        round: u64,
    ) -> Result<(), CommandError> {
        let words = usize::try_from(PAGE / 4)?;
        let seed = u32::try_from(round)?.wrapping_mul(0x9e37_79b9);
        for word in 0..words {
            pages.write(word, u32::try_from(word)?.wrapping_mul(0x0101_0101) ^ seed);
            pages.write(words + word, 0);
        }
        self.copy(from, MEMORY, START)?;
        self.copy(MEMORY, to, START | TO_HOST)?;
        match (0..words).find(|word| pages.read(*word) != pages.read(words + word)) {
            None => Ok(()),
            Some(word) => Err(format!("round {round}: word {word} came changed").into()),
        }
    }
}
