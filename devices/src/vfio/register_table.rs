//! Tables of devices' registers, by which accesses are told in words.
//!
//! That of a binding is a text, a line for each register:
//!
//! ```text
//! OFFSET[*COUNT+STRIDE][/BITS] NAME [FIELD=HIGH[:LOW]]…
//! ```
//!
//! Offset and stride are hexadecimal and in bytes. Without a count there is one of it, and without bits it
//! has 32. As a text it takes a tenth of what structures with pointers do, and constants are read from it by
//! `offset_of` when strait is built: each fact has one place.

use std::fmt::{self, Display, Formatter, Write};
use std::ops::Range;

use boot::order;

/// The most registers of one name: what is told of each takes memory.
pub const MAX_COUNT: u32 = 1024;

/// A field of a register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its lowest bit, from 0 on.
    pub low: u32,
    /// Its highest bit.
    pub high: u32,
}

/// A register, or several of one kind in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Its name; several have their number behind it, from 0 on.
    pub name: String,
    /// Which region of the device it is in.
    pub region: u32,
    /// Where, in bytes; of several, the first.
    pub offset: u64,
    /// Its size in bytes: 1, 2, 4 or 8.
    pub bytes: u32,
    /// How many there are.
    pub count: u32,
    /// From one to the next, in bytes.
    pub stride: u64,
    /// Its fields.
    pub fields: Vec<Field>,
}

/// The registers of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterTable(Vec<Register>);

/// What of an access is one register's.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The register, and its number if there are several.
    pub register: &'a Register,
    number: Option<u32>,
    /// Which of its bytes are accessed.
    bytes: (u32, u32),
    /// What is accessed, in the register's bits.
    pub value: u64,
}

/// Where a register is: a region, and offsets in bytes.
pub type Place = (u32, Range<u64>);

impl Register {
    /// One of 32 bits in the first region.
    pub fn new(name: impl Into<String>, offset: u64) -> Self {
        let (name, fields) = (name.into(), Vec::new());
        Self { name, region: 0, offset, bytes: 4, count: 1, stride: 0, fields }
    }

    /// Checks that it can be.
    ///
    /// # Errors
    ///
    /// What it can't be.
    pub fn check(&self) -> Result<(), &'static str> {
        let bits = u64::from(self.bytes).saturating_mul(8);
        let last = u64::from(self.count.saturating_sub(1)).checked_mul(self.stride);
        let end = last.and_then(|last| self.offset.checked_add(last)?.checked_add(8));
        let field = |field: &Field| {
            is_name(&field.name) && field.low <= field.high && u64::from(field.high) < bits
        };
        match () {
            () if !is_name(&self.name) => Err("a name is of up to 64 letters, digits, _ and -"),
            () if !matches!(self.bytes, 1 | 2 | 4 | 8) => Err("it has 8, 16, 32 or 64 bits"),
            () if !(1..=MAX_COUNT).contains(&self.count) => Err("there are 1 to 1024 of it"),
            () if self.count > 1 && self.stride < u64::from(self.bytes) => {
                Err("its stride is shorter than itself")
            }
            () if end.is_none() => Err("it is behind the end of all addresses"),
            () if !self.fields.iter().all(field) => {
                Err("a field has a name, and bits that the register has")
            }
            () => Ok(()),
        }
    }

    /// The name of one of them.
    pub fn name_of(&self, number: u32) -> String {
        if self.count > 1 { format!("{}{number}", self.name) } else { self.name.clone() }
    }

    /// Behind the last of them.
    fn end(&self) -> u64 {
        let last = u64::from(self.count.saturating_sub(1)).saturating_mul(self.stride);
        self.offset.saturating_add(last).saturating_add(self.bytes.into())
    }

    /// Where one of them is.
    fn place(&self, number: u32) -> Place {
        let start = self.offset.saturating_add(u64::from(number).saturating_mul(self.stride));
        (self.region, start..start.saturating_add(self.bytes.into()))
    }

    /// What of an access with this value, to these offsets, is that of one of them.
    fn part(&self, number: u32, accessed: Range<u64>, value: u64) -> Option<Part<'_>> {
        let (_, at) = self.place(number);
        let (from, to) = (accessed.start.max(at.start), accessed.end.min(at.end));
        let length = to.checked_sub(from).filter(|length| *length > 0)?;
        let behind = value.checked_shr(bits(from - accessed.start)).unwrap_or_default();
        let skipped = from - at.start;
        let bytes = [skipped, skipped.saturating_add(length)].map(|n| bits(n) / 8);
        let value = (behind & mask(bits(length))) << bits(skipped);
        let number = (self.count > 1).then_some(number);
        Some(Part { register: self, number, bytes: bytes.into(), value })
    }
}

fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    !name.is_empty() && name.len() <= 64 && name.bytes().all(is_part)
}

impl RegisterTable {
    /// That of these registers.
    pub fn new(mut registers: Vec<Register>) -> Self {
        order::sort_by_key(&mut registers, |register| (register.region, register.offset));
        Self(registers)
    }

    /// That of a binding's text.
    pub fn parse(text: &str) -> Self {
        Self::new(text.lines().filter_map(parse_line).collect())
    }

    /// With those of another text, in this region.
    pub fn with(mut self, region: u32, text: &str) -> Self {
        let others = text.lines().filter_map(parse_line);
        self.0.extend(others.map(|register| Register { region, ..register }));
        Self::new(self.0)
    }

    /// Its registers, in order.
    pub fn registers(&self) -> &[Register] {
        &self.0
    }

    /// Where the registers of this name are: one, or all of several; nothing if there are none.
    pub fn find(&self, name: &str) -> Vec<Place> {
        let mut places = Vec::new();
        for register in &self.0 {
            let Some(rest) = name.strip_prefix(register.name.as_str()) else { continue };
            let all = (0..register.count).filter(|number| {
                rest.is_empty() || register.count > 1 && *rest == number.to_string()
            });
            places.extend(all.map(|number| register.place(number)));
        }
        places
    }

    /// What of an access of so many bytes, up to 8, at `offset` of a region is which register's, in their order.
    /// Nothing for what the table doesn't have.
    pub fn parts(
        &self,
        region: u32,
        offset: u64,
        width: u32,
        value: u64,
    ) -> impl Iterator<Item = Part<'_>> {
        let end = offset.saturating_add(width.into());
        let is_near = move |register: &&Register| {
            register.region == region && register.offset < end && offset < register.end()
        };
        self.0.iter().filter(is_near).flat_map(move |register| {
            // Of several, from the first that may be touched on: each byte touches at most one.
            let passed = offset.saturating_sub(register.offset);
            let first = passed.checked_div(register.stride).unwrap_or_default();
            let first = u32::try_from(first).unwrap_or(u32::MAX);
            let numbers = (first..register.count).take(usize::try_from(width).unwrap_or_default());
            numbers.filter_map(move |number| register.part(number, offset..end, value))
        })
    }
}

/// A number of bytes, up to 8, in bits.
fn bits(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_mul(8)
}

/// So many low bits.
fn mask(bits: u32) -> u64 {
    1_u64.checked_shl(bits).unwrap_or_default().wrapping_sub(1)
}

impl<'a> Part<'a> {
    /// Its number, if there are several; else 0.
    pub fn number(&self) -> u32 {
        self.number.unwrap_or_default()
    }

    /// The fields that are accessed as a whole, with their values.
    pub fn fields(&self) -> impl Iterator<Item = (&'a Field, u64)> + use<'a> {
        let ((from, to), value) = (self.bytes, self.value);
        let is_in = move |field: &&Field| field.low / 8 >= from && field.high / 8 < to;
        self.register.fields.iter().filter(is_in).map(move |field| {
            let bits = field.high.saturating_sub(field.low).saturating_add(1);
            (field, value >> (field.low & 63) & mask(bits))
        })
    }
}

/// The name of the register; of a part of it, with the first byte of that behind a dot.
impl Display for Part<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.register.name)?;
        if let Some(number) = self.number {
            write!(f, "{number}")?;
        }
        match self.bytes {
            (0, end) if end == self.register.bytes => Ok(()),
            (from, _) => write!(f, ".{from}"),
        }
    }
}

/// Reads a line.
fn parse_line(line: &str) -> Option<Register> {
    let mut words = line.split_ascii_whitespace();
    let (place, name) = (words.next()?, words.next()?);
    let (place, bits) = place.split_once('/').unwrap_or((place, "32"));
    let (offset, several) = place.split_once('*').unwrap_or((place, "1+0"));
    let (count, stride) = several.split_once('+')?;
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    let mut register = Register::new(name, hexadecimal(offset)?);
    register.bytes = bits.parse::<u32>().ok()? / 8;
    (register.count, register.stride) = (count.parse().ok()?, hexadecimal(stride)?);
    register.fields = words.map(parse_field).collect::<Option<_>>()?;
    Some(register)
}

fn parse_field(word: &str) -> Option<Field> {
    let (name, bits) = word.split_once('=')?;
    field(name, bits)
}

/// A field with its bits as `HIGH:LOW`, or as the only one.
pub fn field(name: &str, bits: &str) -> Option<Field> {
    let (high, low) = bits.split_once(':').unwrap_or((bits, bits));
    Some(Field { name: name.to_owned(), low: low.parse().ok()?, high: high.parse().ok()? })
}

/// The offset of the register of this name in a binding's text, for constants: a name that isn't there
/// fails the build.
pub(crate) const fn offset_of(table: &str, name: &str) -> u64 {
    let (mut rest, name) = (table.as_bytes(), name.as_bytes());
    loop {
        let mut offset = 0;
        while let [digit @ (b'0'..=b'9' | b'a'..=b'f'), tail @ ..] = rest {
            let value = if digit.is_ascii_digit() { *digit - b'0' } else { *digit - b'a' + 10 };
            offset = offset * 16 + value as u64;
            rest = tail;
        }
        while let [b'!'..=b'~', tail @ ..] = rest {
            rest = tail;
        }
        while let [b' ', tail @ ..] = rest {
            rest = tail;
        }
        if begins_with_word(rest, name) {
            return offset;
        }
        while let [b' '..=b'~', tail @ ..] = rest {
            rest = tail;
        }
        match rest {
            [b'\n', tail @ ..] => rest = tail,
            _ => {
                assert!(rest.len() == usize::MAX, "there is no such register");
                return 0;
            }
        }
    }
}

const fn begins_with_word(mut text: &[u8], mut word: &[u8]) -> bool {
    while let ([a, text_tail @ ..], [b, word_tail @ ..]) = (text, word) {
        if *a != *b {
            return false;
        }
        (text, word) = (text_tail, word_tail);
    }
    word.is_empty() && !matches!(text, [b'!'..=b'~', ..])
}

/// The table as a binding's text has it.
impl Display for RegisterTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for Register { name, offset, bytes, count, stride, fields, .. } in &self.0 {
            write!(f, "{offset:03x}")?;
            if *count > 1 {
                write!(f, "*{count}+{stride:x}")?;
            }
            if *bytes != 4 {
                write!(f, "/{}", bytes.saturating_mul(8))?;
            }
            write!(f, " {name}")?;
            for Field { name, low, high } in fields {
                write!(f, " {name}={high}")?;
                if low != high {
                    write!(f, ":{low}")?;
                }
            }
            f.write_char('\n')?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
000 CTRL ENABLE=0 MODE=6:4 TOP=31
004/16 LOW READY=0
006/8 BYTE
010*4+8 CHANNEL STATE=3:0
040/64 WIDE HIGH=63:60 LOW=3:0
050*4+4 ROW
060*8+1/8 BYTES
";

    /// What an access is said to be.
    fn said(offset: u64, width: u32, value: u64) -> String {
        let table = RegisterTable::parse(TABLE);
        let part = |part: Part<'_>| {
            let fields = part.fields().map(|(field, value)| format!(" {}={value:x}", field.name));
            format!("{part}:{:x}{}", part.value, fields.collect::<String>())
        };
        table.parts(0, offset, width, value).map(part).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn an_access_is_told_by_the_registers_and_fields_that_it_covers() {
        for (offset, width, value, expected) in [
            (0x00, 4, 0x8000_0031, "CTRL:80000031 ENABLE=1 MODE=3 TOP=1"),
            // A part of it.
            (0x00, 1, 0x31, "CTRL.0:31 ENABLE=1 MODE=3"),
            (0x02, 2, 0x8000, "CTRL.2:80000000 TOP=1"),
            // Several at once.
            (0x04, 4, 0x0055_0001, "LOW:1 READY=1, BYTE:55"),
            (0x00, 8, 0xff_0003_0000_0011, "CTRL:11 ENABLE=1 MODE=1 TOP=0, LOW:3 READY=1, BYTE:ff"),
            // One of several, and between them.
            (0x10, 4, 0xf, "CHANNEL0:f STATE=f"),
            (0x28, 4, 0x12, "CHANNEL3:12 STATE=2"),
            (0x14, 4, 1, ""),
            (0x30, 4, 1, ""),
            // Of 64 bits, at once and by halves.
            (0x40, 8, 0x9000_0000_0000_0001, "WIDE:9000000000000001 HIGH=9 LOW=1"),
            (0x44, 4, 0x9000_0000, "WIDE.4:9000000000000000 HIGH=9"),
            // Several of several, and from between them on.
            (0x50, 8, 0x2_0000_0001, "ROW0:1, ROW1:2"),
            (0x5c, 8, 0x0807_0605_0000_0003, "ROW3:3, BYTES0:5, BYTES1:6, BYTES2:7, BYTES3:8"),
            (0x62, 4, 0x4433_2211, "BYTES2:11, BYTES3:22, BYTES4:33, BYTES5:44"),
            (0x14, 8, 0x12_0000_0001, "CHANNEL1:12 STATE=2"),
            (0x1000, 4, 1, ""),
            (u64::MAX, 4, 1, ""),
        ] {
            assert_eq!(said(offset, width, value), expected, "{offset:#x}, {width}");
        }
        let table = RegisterTable::parse(TABLE);
        assert_eq!(table.parts(1, 0, 4, 1).count(), 0, "another region");
    }

    #[test]
    fn a_name_is_of_one_or_of_all_in_a_row() {
        let table = RegisterTable::parse(TABLE);
        assert_eq!(table.find("CTRL"), [(0, 0..4)]);
        assert_eq!(table.find("CHANNEL").len(), 4);
        assert_eq!(table.find("CHANNEL2"), [(0, 0x20..0x24)]);
        for none in ["", "ctrl", "CTRL0", "CHANNEL4", "CHANNEL02", "CHAN"] {
            assert_eq!(table.find(none), [], "{none}");
        }
    }

    #[test]
    fn a_text_says_all_of_a_table() {
        assert_eq!(RegisterTable::parse(TABLE).to_string(), TABLE);
        const OFFSETS: [u64; 3] =
            [offset_of(TABLE, "CTRL"), offset_of(TABLE, "CHANNEL"), offset_of(TABLE, "WIDE")];
        assert_eq!(OFFSETS, [0, 0x10, 0x40]);
    }

    #[test]
    #[should_panic(expected = "no such register")]
    fn an_offset_is_of_a_whole_name() {
        offset_of(TABLE, "CHAN");
    }

    #[test]
    fn what_can_t_be_is_told() {
        let good = Register { bytes: 2, count: 3, stride: 2, ..Register::new("A", 8) };
        assert_eq!(good.check(), Ok(()));
        for wrong in [
            Register { name: String::new(), ..good.clone() },
            Register { name: "a b".into(), ..good.clone() },
            Register { bytes: 3, ..good.clone() },
            Register { count: 0, ..good.clone() },
            Register { count: MAX_COUNT + 1, ..good.clone() },
            Register { stride: 1, ..good.clone() },
            Register { offset: u64::MAX - 8, ..good.clone() },
            Register { fields: field("x", "16").into_iter().collect(), ..good.clone() },
            Register { fields: field("x", "3:4").into_iter().collect(), ..good.clone() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
