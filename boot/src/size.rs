//! Sizes: as options have them, and as a person reads them.

use std::fmt;
use std::str::FromStr;

/// 2^10 bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// A number of bytes. Prints as an option has it (`512M`), and with `{:#}` in the largest unit that
/// fits it: `64 bytes`, `2 MiB`, `10.1 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed =
            || "a size is a whole number with K, M, G or T behind it, such as 512M".to_owned();
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, suffix) = text.split_at(split);
        let shift = match suffix {
            "K" | "k" | "KiB" => 10,
            "M" | "m" | "MiB" => 20,
            "G" | "g" | "GiB" => 30,
            "T" | "t" | "TiB" => 40,
            // A bare number could be meant as bytes or as mebibytes: nobody should have to guess.
            _ => return Err(malformed()),
        };
        if digits.is_empty() {
            return Err(malformed());
        }
        // Digits only, so what fails here is too large.
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| "that is more than 64 bits can count".to_owned())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
        if !f.alternate() {
            let exact = |(unit, _): &(u64, &str)| self.0 != 0 && self.0.is_multiple_of(*unit);
            return match UNITS.into_iter().find(exact) {
                Some((unit, name)) => write!(f, "{}{}", self.0 / unit, name.trim_end_matches("iB")),
                None => write!(f, "{} bytes", self.0),
            };
        }
        let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| self.0 >= *unit) else {
            return write!(f, "{} byte{}", self.0, if self.0 == 1 { "" } else { "s" });
        };
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        if rest == 0 {
            write!(f, "{whole} {name}")
        } else {
            // The rest is below 2^30, so ten times it can't overflow.
            write!(f, "{whole}.{} {name}", rest * 10 / unit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_in_the_largest_unit_that_fits() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (KIB, "1 KiB"),
            (KIB + 512, "1.5 KiB"),
            (2 * MIB, "2 MiB"),
            (10_676_232, "10.1 MiB"),
            (3 * GIB, "3 GiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(format!("{:#}", Size(bytes)), text);
        }
    }

    #[test]
    fn sizes_with_a_suffix_are_understood() {
        for (text, bytes) in [
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("65536K", 64 << 20),
            ("5G", 5 << 30),
            ("1T", 1 << 40),
            ("2GiB", 2 << 30),
            ("0M", 0),
        ] {
            assert_eq!(text.parse::<Size>().map(Size::bytes), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "M", "64", "64X", "64MB", "-1M", "1.5G", " 64M", "99999999999999T", "٣M"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_print_as_they_are_typed() {
        for text in ["64M", "5G", "100K", "1025M"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }
}
