//! The forms of a trace: lines for persons, JSON for programs, and a value change dump for waveform viewers.

mod json;
mod text;
mod vcd;

use std::sync::Arc;

use devices::scmi::{Call, Scmi};
use devices::vfio::pci::CONFIG_REGION;
use devices::vfio::register_table::RegisterTable;

use self::vcd::Signals;
use super::record::{Line, Record};
use crate::cli::TraceFormat;

/// What writes records in a form.
pub struct Format {
    names: Names,
    form: Form,
}

enum Form {
    Text,
    Json,
    Vcd(Signals),
}

/// What things are called.
pub struct Names {
    /// The device.
    pub device: String,
    /// It is a PCI function.
    pub is_function: bool,
    /// Its interrupts.
    pub interrupts: Vec<Line>,
    /// Its registers.
    pub table: RegisterTable,
    /// What it has by SCMI is named there.
    pub scmi: Option<Arc<Scmi>>,
}

impl Names {
    /// The interrupt of this number.
    fn of_interrupt(&self, number: usize) -> Line {
        let none = Line { kind: "", number: u32::MAX, ends: false };
        self.interrupts.get(number).copied().unwrap_or(none)
    }

    /// Whether a region of this number is a configuration space.
    fn is_config(&self, region: u32) -> bool {
        self.is_function && region == CONFIG_REGION
    }

    /// The name of what a call of SCMI names.
    fn of_call(&self, call: &Call) -> &str {
        self.scmi.as_ref().and_then(|scmi| call.name_in(scmi.resources())).unwrap_or_default()
    }
}

/// Adds a number in hexadecimal with at least so many digits: most of a trace is such numbers, and this takes
/// less than `format!`.
fn hexadecimal(text: &mut String, value: u64, digits: u32) {
    let used = u64::BITS.saturating_sub(value.leading_zeros()).div_ceil(4);
    for place in (0..used.max(digits).min(16)).rev() {
        let digit = value >> (place * 4) & 0xf;
        text.push(u32::try_from(digit).ok().and_then(|d| char::from_digit(d, 16)).unwrap_or('0'));
    }
}

impl Format {
    /// This form.
    pub fn new(format: TraceFormat, names: Names) -> Self {
        let form = match format {
            TraceFormat::Text => Form::Text,
            TraceFormat::Json => Form::Json,
            TraceFormat::Vcd => Form::Vcd(Signals::new(&names)),
        };
        Self { names, form }
    }

    /// What comes first, once.
    pub fn header(&mut self) -> String {
        match &mut self.form {
            Form::Text | Form::Json => String::new(),
            Form::Vcd(signals) => signals.header(),
        }
    }

    /// Adds a record to `text`.
    pub fn record(&mut self, record: &Record, text: &mut String) {
        match &mut self.form {
            Form::Text => text::record(&self.names, record, text),
            Form::Json => json::record(&self.names, record, text),
            Form::Vcd(signals) => signals.record(&self.names, record, text),
        }
    }

    /// Adds that so many events before the next weren't kept.
    pub fn left_out(&mut self, count: u64, text: &mut String) {
        self.gap("left-out", count, text);
    }

    /// Adds that so many events behind the one before were lost.
    pub fn lost(&mut self, count: u64, text: &mut String) {
        self.gap("lost", count, text);
    }

    fn gap(&mut self, what: &str, count: u64, text: &mut String) {
        let line = match &self.form {
            Form::Text => format!("# {count} events {}\n", what.replace('-', " ")),
            Form::Json => format!("{{\"event\":\"{what}\",\"count\":{count}}}\n"),
            Form::Vcd(_) => format!("$comment {count} events {what} $end\n"),
        };
        text.push_str(&line);
    }
}

#[cfg(test)]
mod tests;
