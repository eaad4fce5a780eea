//! Sizes as a person reads them.

use std::fmt;

/// 2^10 bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// A number of bytes that prints in the largest unit that fits it: `64 bytes`, `2 MiB`, `10.1 MiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((unit, name)) = [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")]
            .into_iter()
            .find(|(unit, _)| self.0 >= *unit)
        else {
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
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
