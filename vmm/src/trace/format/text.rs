//! A line for each event.

use std::fmt::Write;

use devices::vfio::register_table::Part;

use super::{Names, hexadecimal};
use crate::trace::record::{Access, Event, NO_CPU, Record};

/// Adds a record.
pub(super) fn record(names: &Names, record: &Record, text: &mut String) {
    // Writing to a string can't fail.
    let _ = line(names, record, text);
    text.push('\n');
}

fn line(names: &Names, record: &Record, text: &mut String) -> std::fmt::Result {
    let Record { time, cpu, event, pc } = record;
    let (seconds, rest) = (time / 1_000_000_000, time % 1_000_000_000);
    write!(text, "{seconds:5}.{rest:09} ")?;
    match *cpu {
        NO_CPU => text.push_str("-    "),
        cpu => write!(text, "cpu{cpu} ")?,
    }
    if *pc != 0 {
        hexadecimal(text, *pc, 16);
        text.push(' ');
    }
    match event {
        Event::Access(access) => accessed(names, access, text),
        Event::Interrupt(number, count) => {
            write!(text, "interrupt {}", names.of_interrupt(*number))?;
            if *count > 1 { write!(text, ", {count} times") } else { Ok(()) }
        }
        Event::Ended(number) => write!(text, "interrupt {} ended", names.of_interrupt(*number)),
        Event::Scmi(call) => {
            let ((_, command), name) = (call.words(), names.of_call(call));
            write!(text, "scmi {command} {name} {:#x}: {}", call.argument, call.status)
        }
        Event::Reset => write!(text, "the guest begins anew"),
    }
}

fn accessed(names: &Names, access: &Access, text: &mut String) -> std::fmt::Result {
    let Access { write, width, region, offset, value } = *access;
    text.push_str(if write { "write " } else { "read  " });
    if names.is_config(region) {
        text.push_str("config:");
    } else if region > 0 {
        write!(text, "{region}:")?;
    }
    text.push_str("0x");
    hexadecimal(text, offset, 3);
    text.push_str(" 0x");
    hexadecimal(text, value, u32::from(width).saturating_mul(2));
    let parts: Vec<Part<'_>> = names.table.parts(region, offset, width.into(), value).collect();
    for (index, part) in parts.iter().enumerate() {
        write!(text, "{}{part}", if index > 0 { "; " } else { " " })?;
        if parts.len() > 1 {
            write!(text, " {:#x}", part.value)?;
        }
        // Those that are zero tell nothing, and the value of a bit is its name.
        for (field, value) in part.fields().filter(|(_, value)| *value != 0) {
            write!(text, " {}", field.name)?;
            if field.high > field.low {
                write!(text, "={value:#x}")?;
            }
        }
    }
    Ok(())
}
