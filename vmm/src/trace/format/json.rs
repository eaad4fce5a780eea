//! A JSON object on a line for each event. What may exceed 2^53 is a hexadecimal string.

use std::fmt::Write;

use super::Names;
use crate::trace::record::{Access, Event, Line, NO_CPU, Record};

/// Adds a record.
pub(super) fn record(names: &Names, record: &Record, text: &mut String) {
    // Writing to a string can't fail.
    let _ = object(names, record, text);
    text.push_str("}\n");
}

/// All but its end.
fn object(names: &Names, record: &Record, text: &mut String) -> std::fmt::Result {
    let Record { time, cpu, event, pc } = record;
    // A text can't fail.
    let device = serde_json::to_string(&names.device).unwrap_or_default();
    let (seconds, rest) = (time / 1_000_000_000, time % 1_000_000_000);
    write!(text, r#"{{"time":{seconds}.{rest:09},"device":{device}"#)?;
    if *cpu != NO_CPU {
        write!(text, r#","cpu":{cpu}"#)?;
    }
    if *pc != 0 {
        write!(text, r#","pc":"{pc:#x}""#)?;
    }
    match event {
        Event::Access(access) => accessed(names, access, text),
        Event::Interrupt(number, count) => {
            interrupt("interrupt", names.of_interrupt(*number), text)?;
            write!(text, r#","count":{count}"#)
        }
        Event::Ended(number) => interrupt("ended", names.of_interrupt(*number), text),
        Event::Scmi(call) => {
            let ((kind, command), name) = (call.words(), names.of_call(call));
            write!(
                text,
                r#","event":"scmi","kind":"{kind}","command":"{command}","name":{},"argument":{},"status":{}"#,
                serde_json::to_string(name).unwrap_or_default(),
                call.argument,
                call.status
            )
        }
        Event::Reset => write!(text, r#","event":"reset""#),
    }
}

fn interrupt(event: &str, line: Line, text: &mut String) -> std::fmt::Result {
    write!(text, r#","event":"{event}","index":{}"#, line.number)?;
    if line.kind.is_empty() { Ok(()) } else { write!(text, r#","kind":"{}""#, line.kind) }
}

fn accessed(names: &Names, access: &Access, text: &mut String) -> std::fmt::Result {
    let Access { write, width, region, offset, value } = *access;
    let event = if write { "write" } else { "read" };
    write!(text, r#","event":"{event}","region":"#)?;
    if names.is_config(region) {
        text.push_str(r#""config""#);
    } else {
        write!(text, "{region}")?;
    }
    write!(text, r#","offset":{offset},"width":{width},"value":"{value:#x}","registers":["#)?;
    let parts = names.table.parts(region, offset, width.into(), value);
    for (index, part) in parts.enumerate() {
        let comma = if index > 0 { "," } else { "" };
        write!(text, r#"{comma}{{"name":"{part}","value":"{:#x}","fields":{{"#, part.value)?;
        for (index, (field, value)) in part.fields().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(text, r#"{comma}"{}":"#, field.name)?;
            if field.high.saturating_sub(field.low) < 53 {
                write!(text, "{value}")?;
            } else {
                write!(text, r#""{value:#x}""#)?;
            }
        }
        text.push_str("}}");
    }
    text.push(']');
    Ok(())
}
