//! A table of registers that a person gives, in TOML: a table for each register.
//!
//! ```toml
//! [CTRL]
//! offset = 0x00
//! fields = { ENABLE = 0, MODE = "6:4" }
//!
//! [FIFO]
//! offset = 0x20
//! bits = 8
//! count = 4
//! stride = 0x10
//! ```

use std::path::Path;

use devices::vfio::register_table::{Register, RegisterTable, field};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Error;
use crate::toml_file;

/// The most names of registers, and the most registers, of which several may have one.
const MAX_NAMES: usize = 4096;
const MAX_REGISTERS: u32 = 1 << 16;

/// Reads the file at `path`.
///
/// # Errors
///
/// It can't be read, or isn't such a table.
pub fn read(path: &Path) -> Result<RegisterTable, Error> {
    let failed = |why: String| {
        Error::new(format!("--trace …,table={}: {why}", path.display()))
            .help("[NAME] and below it offset = 0x… for each register: resources/docs/tracing.md")
    };
    let text = toml_file::read(path).map_err(failed)?;
    parse(&text).map_err(failed)
}

fn parse(text: &str) -> Result<RegisterTable, String> {
    let table = DeTable::parse(text).map_err(|e| e.message().to_owned())?;
    let table = table.get_ref();
    if table.len() > MAX_NAMES {
        return Err(format!("it has more than {MAX_NAMES} names of registers"));
    }
    let registers = table.iter().map(|(name, value)| {
        register(name.get_ref(), value).map_err(|why| format!("{}: {why}", name.get_ref()))
    });
    let registers = registers.collect::<Result<Vec<_>, _>>()?;
    let count = registers.iter().fold(0, |sum: u32, one| sum.saturating_add(one.count));
    if count > MAX_REGISTERS {
        return Err(format!("it has more than {MAX_REGISTERS} registers"));
    }
    Ok(RegisterTable::new(registers))
}

fn register(name: &str, value: &Spanned<DeValue<'_>>) -> Result<Register, String> {
    let DeValue::Table(keys) = value.get_ref() else {
        return Err("it is no table, which begins by [NAME]".into());
    };
    let (mut register, mut offset) = (Register::new(name, 0), None);
    for (key, value) in keys {
        let value = value.get_ref();
        let small = || u32::try_from(number(value)?).ok();
        let wrong = || format!("{} is no number that it can have", key.get_ref());
        match &**key.get_ref() {
            "offset" => offset = Some(number(value).ok_or_else(wrong)?),
            "bits" => {
                register.bytes = small().filter(|n| n % 8 == 0).ok_or_else(wrong)? / 8;
            }
            "count" => register.count = small().ok_or_else(wrong)?,
            "stride" => register.stride = number(value).ok_or_else(wrong)?,
            "region" | "bar" => register.region = small().ok_or_else(wrong)?,
            "fields" => register.fields = fields(value)?,
            other => {
                return Err(format!(
                    "`{other}` is none of offset, bits, count, stride, bar, region and fields"
                ));
            }
        }
    }
    register.offset = offset.ok_or("it has no offset")?;
    if register.count > 1 && register.stride == 0 {
        register.stride = register.bytes.into();
    }
    register.check()?;
    Ok(register)
}

/// A number that isn't negative.
fn number(value: &DeValue<'_>) -> Option<u64> {
    let DeValue::Integer(integer) = value else { return None };
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn fields(value: &DeValue<'_>) -> Result<Vec<devices::vfio::register_table::Field>, String> {
    let DeValue::Table(fields) = value else { return Err("its fields are no table".into()) };
    let of = |(name, bits): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = name.get_ref();
        let read = match bits.get_ref() {
            DeValue::String(bits) => field(name, bits),
            bit => field(name, &number(bit).map(|bit| bit.to_string()).unwrap_or_default()),
        };
        read.ok_or_else(|| format!("{name} is a bit, or bits such as \"6:4\""))
    };
    let mut fields: Vec<_> = fields.iter().map(of).collect::<Result<_, _>>()?;
    boot::order::sort_by_key(&mut fields, |field| field.low);
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read() {
        let table = parse(
            "[FIFO]\noffset = 0x20\nbits = 8\ncount = 4\nstride = 0x10\n\
             [CTRL]\noffset = 0x1_0\nfields = { MODE = \"6:4\", ENABLE = 0 }\n\
             [ROW]\noffset = 0x40\nbits = 16\ncount = 2\n",
        );
        let expected = "010 CTRL ENABLE=0 MODE=6:4\n020*4+10/8 FIFO\n040*2+2/16 ROW\n";
        assert_eq!(table.unwrap().to_string(), expected);
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, why) in [
            ("x", "key"),
            ("x = 1", "no table"),
            ("[x]\n", "no offset"),
            ("[x]\noffset = -1", "offset"),
            ("[x]\noffset = \"0\"", "offset"),
            ("[x]\noffset = 0\nbits = 24", "64 bits"),
            ("[x]\noffset = 0\ncount = 5000", "1024"),
            ("[x]\noffset = 0\nwidth = 1", "`width`"),
            ("[x]\noffset = 0\nfields = { a = \"x\" }", "a is a bit"),
            ("[x]\noffset = 0\nfields = { a = 32 }", "bits that"),
            ("[\"a b\"]\noffset = 0", "letters"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn there_are_so_many_registers_at_most() {
        let several = |n: u32| format!("[r{n}]\noffset = 0\ncount = 1024\n");
        let table = |count: u32| parse(&(0..count).map(several).collect::<String>());
        assert!(table(64).is_ok());
        assert!(table(65).unwrap_err().contains("65536 registers"));
    }
}
