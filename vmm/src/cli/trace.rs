//! `--trace NAME[,OPTION…]`.

use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use devices::vfio::pci::CONFIG_REGION;

use super::values::{split, switch, take_each};

/// The most events that are kept.
const MAX_LAST: usize = 1 << 20;

/// What is traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceOptions {
    /// Of which device.
    pub device: String,
    /// Where it goes; standard error without.
    pub out: Option<PathBuf>,
    /// In which form.
    pub format: TraceFormat,
    /// What is recorded; all if nothing is said.
    pub registers: Vec<TraceRegister>,
    /// Only the newest of so many events are written, at the end or when they are asked for.
    pub last: Option<usize>,
    /// Which value in which register asks for them.
    pub trigger: Option<(TraceRegister, u64)>,
    /// The file with the names of its registers.
    pub table: Option<PathBuf>,
    /// With the guest's program counter.
    pub pc: bool,
    /// It begins with the guest, or when it is turned on from outside.
    pub start: bool,
}

/// The form of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceFormat {
    /// Lines for persons.
    Text,
    /// Lines of JSON.
    Json,
    /// A value change dump.
    Vcd,
}

impl TraceFormat {
    /// As the option has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Vcd => "vcd",
        }
    }
}

/// A register, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceRegister {
    /// That of this name.
    Name(String),
    /// Those at these offsets in bytes, in this region.
    Offsets(u32, Range<u64>),
}

impl TraceOptions {
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            _ if value.is_empty() => return Err(format!("{key} has no value")),
            "out" => self.out = Some(value.into()),
            "table" => self.table = Some(value.into()),
            "format" => self.format = format(value)?,
            "pc" => self.pc = switch(key, value)?,
            "start" => self.start = switch(key, value)?,
            "last" => {
                let count = value.parse().ok().filter(|count| (1..=MAX_LAST).contains(count));
                self.last = Some(count.ok_or("last is a number of events up to 1048576")?);
            }
            "trigger" => {
                let pair = value
                    .rsplit_once('=')
                    .and_then(|(name, value)| Some((register(name)?, number(value)?)));
                self.trigger = Some(pair.ok_or("trigger is REGISTER=VALUE, such as CR=0x1")?);
            }
            _ => {
                let all = value.split(',').map(register).collect::<Option<_>>();
                self.registers =
                    all.ok_or("registers are names or offsets, such as CR,SR,0x100-0x1ff")?;
            }
        }
        Ok(())
    }
}

impl FromStr for TraceOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (device, given) = split(text)?;
        if device.is_empty() {
            return Err("a device's name comes first, such as 2c0a0000.dma or 0000:00:05.0".into());
        }
        let (out, table, last, trigger, registers) = Default::default();
        let format = TraceFormat::Text;
        let device = device.to_owned();
        let (pc, start) = (true, true);
        let mut options = Self { device, out, format, registers, last, trigger, table, pc, start };
        let once = ["out", "format", "registers", "last", "trigger", "table", "pc", "start"];
        take_each(given, "a trace", &once, &[], |key, value| options.take(key, value))?;
        if options.out.is_none() && options.format != TraceFormat::Text {
            return Err(format!("format={} needs out=FILE", options.format.name()));
        }
        if options.trigger.is_some() && options.last.is_none() {
            return Err("trigger= has the newest events written, which last=N keeps".into());
        }
        Ok(options)
    }
}

fn format(text: &str) -> Result<TraceFormat, String> {
    let all = [TraceFormat::Text, TraceFormat::Json, TraceFormat::Vcd];
    let format = all.into_iter().find(|format| format.name() == text);
    format.ok_or_else(|| format!("format is text, json or vcd, and not `{text}`"))
}

/// A register by its name, or those from an offset to another, which is included, of the first region or that
/// before a colon.
fn register(text: &str) -> Option<TraceRegister> {
    let (region, text) = match text.split_once(':') {
        Some(("config", offsets)) => (CONFIG_REGION, offsets),
        Some((region, offsets)) => (region.parse().ok()?, offsets),
        None if text.starts_with("0x") => (0, text),
        None => return (!text.is_empty()).then(|| TraceRegister::Name(text.to_owned())),
    };
    if !text.starts_with("0x") {
        return None;
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then(|| TraceRegister::Offsets(region, first..last.saturating_add(1)))
}

/// A number, hexadecimal behind 0x.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16).ok(),
        Some(_) => None,
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let plain: TraceOptions = "2c0a0000.qcom,dma".parse().unwrap();
        assert_eq!((plain.device.as_str(), plain.pc), ("2c0a0000.qcom,dma", true));
        let all = "x,out=/tmp/t,format=json,registers=CR,SR0,0x100-0x1ff,0x20,last=64,\
                   trigger=CR=0x10,table=t.toml,pc=off";
        let options: TraceOptions = all.parse().unwrap();
        let name = |name: &str| TraceRegister::Name(name.into());
        let offsets = |range| TraceRegister::Offsets(0, range);
        assert_eq!(
            options.registers,
            [name("CR"), name("SR0"), offsets(0x100..0x200), offsets(0x20..0x21)]
        );
        assert_eq!(options.trigger, Some((name("CR"), 16)));
        assert_eq!((options.last, options.pc, options.start), (Some(64), false, true));
        assert_eq!(options.format, TraceFormat::Json);
        let elsewhere: TraceOptions =
            "0000:00:05.0,registers=2:0x4,config:0x4-0x7".parse().unwrap();
        assert_eq!(elsewhere.device, "0000:00:05.0");
        let places = [(2, 4..5), (CONFIG_REGION, 4..8)];
        assert_eq!(
            elsewhere.registers,
            places.map(|(region, range)| TraceRegister::Offsets(region, range))
        );
        let by_offset: TraceOptions = "x,last=1,trigger=0x4=7".parse().unwrap();
        assert_eq!(by_offset.trigger, Some((offsets(4..5), 7)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            ",out=x",
            "x,out=",
            "x,format=json",
            "x,format=xml,out=y",
            "x,last=0",
            "x,last=9999999",
            "x,trigger=CR=1",
            "x,last=1,trigger=CR",
            "x,last=1,trigger==1",
            "x,last=1,trigger=CR=x",
            "x,registers=0x10-0x1",
            "x,registers=0x",
            "x,registers=1:CR",
            "x,registers=bar:0x1",
            "x,pc=no",
            "x,mmap=off",
            "x,pc=on,pc=off",
            "x,start=0",
        ] {
            assert!(text.parse::<TraceOptions>().is_err(), "{text}");
        }
    }
}
