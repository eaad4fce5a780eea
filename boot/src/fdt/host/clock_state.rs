//! Whether the host's clocks are on, as far as it tells.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The largest summary that is read, in bytes: a line has about 150, and large SoCs some thousand clocks.
const MAX_SIZE: u64 = 4 << 20;

/// The host's clocks with their states, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClockStates(BTreeMap<String, bool>);

impl ClockStates {
    /// What `clk_summary` in the directory `clocks` ([`SYSTEM_CLOCKS`](super::SYSTEM_CLOCKS)) has; none
    /// where it can't be read.
    pub fn read(clocks: &Path) -> Self {
        let mut text = String::new();
        let file = File::open(clocks.join("clk_summary"));
        let read = file.and_then(|file| file.take(MAX_SIZE).read_to_string(&mut text));
        match read {
            Ok(_) => Self::parse(&text),
            Err(_) => Self::default(),
        }
    }

    /// A line for each clock: its name, how often it is enabled, prepared and protected, its rate,
    /// accuracy, phase and duty cycle, and whether the hardware has it on, then who uses it
    /// (drivers/clk/clk.c, `clk_summary_show_one`).
    fn parse(text: &str) -> Self {
        let states = text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (name, enabled) = (words.next()?, words.next()?.parse::<u32>().ok()?);
            let on = match (enabled, words.nth(6)) {
                (1.., _) | (0, Some("Y")) => true,
                (0, Some("N")) => false,
                // Neither the driver nor, before Linux 5.11, the file tells.
                (0, _) => return None,
            };
            Some((name.to_owned(), on))
        });
        Self(states.collect())
    }

    /// Whether the clock of this name is on, where that is known.
    pub fn is_on(&self, name: &str) -> Option<bool> {
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_on_where_somebody_uses_it_or_the_hardware_has_it_on() {
        let states = ClockStates::parse(
            "                                 enable  prepare  protect              duty  hardware
   clock                          count    count    count        rate   accuracy phase  cycle    enable
----------------------------------------------------------------------------------------------
 apb-pclk                            2       2        0        24000000    0     0     50000      Y   \
             2c0b0000.dma                    apb_pclk
                                                                              9000000.pl011   apb_pclk
 pll                                 1       1        0        1000000000  0     0     50000      ?   x
    boot                             0       0        0        100         0     0     50000      Y   x
    gate                             0       0        0        100         0     0     50000      N   x
    quiet                            0       0        0        100         0     0     50000      ?   x
 old                                 0       0        0        100         0     0  50000\n",
        );
        let expected = [
            ("apb-pclk", Some(true)),
            ("pll", Some(true)),
            ("boot", Some(true)),
            ("gate", Some(false)),
            ("quiet", None),
            ("old", None),
            ("2c0b0000.dma", None),
            ("clock", None),
        ];
        for (name, on) in expected {
            assert_eq!(states.is_on(name), on, "{name}");
        }
        assert_eq!(ClockStates::read("/nonexistent".as_ref()), ClockStates::default());
    }
}
