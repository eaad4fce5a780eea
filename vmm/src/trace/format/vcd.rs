//! A value change dump (IEEE 1364-2005, 18.2 "Format of the four state VCD file"), as GTKWave and others show
//! it: a vector for each register, with what was read or written last; an event for each read,
//! write and edge; a wire for each level, which is high until the guest has ended it, or begins anew.

use std::fmt::Write;

use devices::vfio::register_table::{Register, RegisterTable};

use super::Names;
use crate::trace::record::{Access, Event, Record};

/// The first signals.
const CPU: usize = 0;
const PC: usize = 1;
const READ: usize = 2;
const WRITE: usize = 3;
const RESET: usize = 4;
/// Where, and what, for a place that has no name.
const OFFSET: usize = 5;
const VALUE: usize = 6;
const REGION: usize = 7;
const FIRST_INTERRUPT: usize = 8;

/// The signals of a device: by their numbers, the first ones, interrupts, registers.
pub(super) struct Signals {
    header: String,
    /// Whether each interrupt is a level.
    levels: Vec<bool>,
    first_register: usize,
    /// When the last event was.
    time: Option<u64>,
}

impl Signals {
    pub(super) fn new(names: &Names) -> Self {
        let levels: Vec<_> = names.interrupts.iter().map(|line| line.ends).collect();
        let mut signals = Self {
            header: String::new(),
            first_register: FIRST_INTERRUPT.saturating_add(levels.len()),
            levels,
            time: None,
        };
        // Writing to a string can't fail.
        let _ = signals.declare(names);
        signals
    }

    fn declare(&mut self, names: &Names) -> std::fmt::Result {
        let printable = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let device: String = names.device.chars().map(printable).collect();
        let text = &mut self.header;
        write!(text, "$version strait $end\n$timescale 1ns $end\n$scope module {device} $end\n")?;
        let own = [
            ("wire 16", "cpu"),
            ("wire 64", "pc"),
            ("event 1", "read"),
            ("event 1", "write"),
            ("event 1", "reset"),
            ("wire 64", "offset"),
            ("wire 64", "value"),
            ("wire 32", "region"),
        ];
        for (number, (kind, name)) in own.into_iter().enumerate() {
            writeln!(text, "$var {kind} {} {name} $end", identifier(number))?;
        }
        for (number, line) in (FIRST_INTERRUPT..).zip(&names.interrupts) {
            let signal = if line.ends { "wire" } else { "event" };
            let kind = if line.kind.is_empty() { "interrupt" } else { line.kind };
            writeln!(text, "$var {signal} 1 {} {kind}{} $end", identifier(number), line.number)?;
        }
        let mut number = self.first_register;
        for register in names.table.registers() {
            let bits = register.bytes.saturating_mul(8);
            for index in 0..register.count {
                let (id, name) = (identifier(number), register.name_of(index));
                writeln!(text, "$var wire {bits} {id} {name} $end")?;
                number = number.saturating_add(1);
            }
        }
        text.push_str("$upscope $end\n$enddefinitions $end\n");
        Ok(())
    }

    pub(super) fn header(&mut self) -> String {
        std::mem::take(&mut self.header)
    }

    pub(super) fn record(&mut self, names: &Names, record: &Record, text: &mut String) {
        let _ = self.changes(&names.table, record, text);
    }

    fn changes(
        &mut self,
        table: &RegisterTable,
        record: &Record,
        text: &mut String,
    ) -> std::fmt::Result {
        if self.time != Some(record.time) {
            self.time = Some(record.time);
            writeln!(text, "#{}", record.time)?;
        }
        match record.event {
            Event::Access(access) => {
                writeln!(text, "b{:b} {}", record.cpu, identifier(CPU))?;
                writeln!(text, "b{:b} {}", record.pc, identifier(PC))?;
                self.accessed(table, &access, text)
            }
            Event::Interrupt(number, _) => self.interrupt(number, 1, text),
            Event::Ended(number) => self.interrupt(number, 0, text),
            Event::Scmi(call) => {
                let (_, command) = call.words();
                writeln!(text, "$comment {command} {:#x} $end", call.argument)
            }
            Event::Reset => {
                writeln!(text, "1{}", identifier(RESET))?;
                // What was signalled before is forgotten.
                let mut levels = (0..).zip(&self.levels).filter(|(_, is_level)| **is_level);
                levels.try_for_each(|(index, _)| self.interrupt(index, 0, text))
            }
        }
    }

    fn interrupt(&self, number: usize, level: u8, text: &mut String) -> std::fmt::Result {
        writeln!(text, "{level}{}", identifier(FIRST_INTERRUPT.saturating_add(number)))
    }

    fn accessed(
        &self,
        table: &RegisterTable,
        access: &Access,
        text: &mut String,
    ) -> std::fmt::Result {
        let Access { write, width, region, offset, value } = *access;
        let mut is_named = false;
        for part in table.parts(region, offset, width.into(), value) {
            is_named = true;
            let number = self.number_of(table, part.register, part.number());
            writeln!(text, "b{:b} {}", part.value, identifier(number))?;
        }
        if !is_named {
            writeln!(text, "b{offset:b} {}", identifier(OFFSET))?;
            writeln!(text, "b{value:b} {}", identifier(VALUE))?;
            writeln!(text, "b{region:b} {}", identifier(REGION))?;
        }
        writeln!(text, "1{}", identifier(if write { WRITE } else { READ }))
    }

    /// The number of a register's signal.
    fn number_of(&self, table: &RegisterTable, register: &Register, index: u32) -> usize {
        let before = table.registers().iter().take_while(|other| !std::ptr::eq(*other, register));
        let count = |register: &Register| usize::try_from(register.count).unwrap_or_default();
        let before = before.map(count).fold(self.first_register, usize::saturating_add);
        before.saturating_add(usize::try_from(index).unwrap_or_default())
    }
}

/// The identifier of the signal with this number: printable characters, `!` to `~`.
fn identifier(mut number: usize) -> String {
    const CHARACTERS: usize = 94;
    let mut text = String::new();
    loop {
        let digit = u8::try_from(number % CHARACTERS).unwrap_or_default();
        text.push(char::from(b'!'.saturating_add(digit)));
        number /= CHARACTERS;
        if number == 0 {
            return text;
        }
        number = number.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_signal_has_an_identifier_of_its_own() {
        let all: HashSet<String> = (0..20_000).map(identifier).collect();
        assert_eq!(all.len(), 20_000);
        assert!(all.iter().all(|id| id.len() <= 3 && id.bytes().all(|b| b.is_ascii_graphic())));
        assert_eq!([0, 93, 94].map(identifier), ["!", "~", "!!"]);
    }
}
