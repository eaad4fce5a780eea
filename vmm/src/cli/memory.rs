//! `--memory SIZE[,hugepages=…][,base=…]`.

use std::fmt;
use std::str::FromStr;

use arch::RamPages;
use arch::layout::RAM_START;

use super::Size;
use super::values::{address, split, take_each};

/// A guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// How much.
    pub size: Size,
    /// The host's pages that it is made of.
    pub pages: RamPages,
    /// Where it begins (GPA).
    pub base: u64,
}

impl MemoryOptions {
    /// So many bytes in pages as they come, at the usual address.
    pub fn new(bytes: u64) -> Self {
        Self { size: Size::from(bytes), pages: RamPages::Any, base: RAM_START }
    }

    /// Takes one `KEY=VALUE`.
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "hugepages" => self.pages = pages(value)?,
            _ => self.base = address("base", value)?,
        }
        Ok(())
    }
}

impl FromStr for MemoryOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (size, given) = split(text)?;
        let size: Size = size.parse()?;
        let mut options = Self::new(size.bytes());
        let once = ["hugepages", "base"];
        take_each(given, "RAM", &once, &[], |key, value| options.take(key, value))?;
        Ok(options)
    }
}

/// As the value of the option is typed.
impl fmt::Display for MemoryOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.size)?;
        match self.pages {
            RamPages::Any => {}
            RamPages::Transparent => f.write_str(",hugepages=thp")?,
            RamPages::Reserved(page) => write!(f, ",hugepages={}", Size(page))?,
        }
        if self.base == RAM_START { Ok(()) } else { write!(f, ",base={:#x}", self.base) }
    }
}

fn pages(text: &str) -> Result<RamPages, String> {
    if text == "thp" {
        return Ok(RamPages::Transparent);
    }
    let size = text.parse::<Size>().map(Size::bytes).ok().filter(|size| size.is_power_of_two());
    size.map(RamPages::Reserved).ok_or_else(|| {
        format!("hugepages is thp or the size of reserved ones, such as 2M or 1G, and not `{text}`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_prints_as_it_is_typed() {
        for text in [
            "256M",
            "4G,hugepages=2M",
            "4G,hugepages=thp",
            "64G,hugepages=1G,base=0x100000000",
            "1G,base=0x0",
        ] {
            assert_eq!(text.parse::<MemoryOptions>().unwrap().to_string(), text);
        }
        let all = "64M,base=0x1_0000_0000,hugepages=64K".parse();
        let pages = RamPages::Reserved(64 << 10);
        let expected = MemoryOptions { size: Size(64 << 20), pages, base: 1 << 32 };
        assert_eq!(all, Ok(expected));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "64",
            "64M,",
            "64M,hugepages",
            "64M,hugepages=",
            "64M,hugepages=on",
            "64M,hugepages=3M",
            "64M,hugepages=2M,hugepages=2M",
            "64M,base=",
            "64M,base=4G",
            "64M,base=0x",
            "64M,base=0x10000000000000000",
            "64M,base=0x+1",
            "64M,numa=on",
            "hugepages=2M",
        ] {
            assert!(text.parse::<MemoryOptions>().is_err(), "{text}");
        }
    }
}
