//! The options for the guest's node.

use std::path::PathBuf;

use boot::fdt::host::SYSTEM_CLOCKS;

/// The options for the guest's node; the default leaves it as the host has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Its name without the address.
    pub name: Option<String>,
    /// Its `compatible`, the most specific first; empty for the host's.
    pub compatible: Vec<String>,
    /// Rates in Hz of clocks, by the clock's name or number, with the node's path before it where
    /// the clock is of a node below the device's (`phy/ref`).
    pub clock_rates: Vec<(String, u32)>,
    /// Its aliases; empty for the host's.
    pub aliases: Vec<String>,
    /// Properties and nodes below that are dropped, by their paths.
    pub drop: Vec<String>,
    /// The directory with the rates of the host's clocks, which debugfs has.
    pub clk_debugfs: PathBuf,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            name: None,
            compatible: Vec::new(),
            clock_rates: Vec::new(),
            aliases: Vec::new(),
            drop: Vec::new(),
            clk_debugfs: PathBuf::from(SYSTEM_CLOCKS),
        }
    }
}

/// Why a guest's node can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The rates of these clocks, by their names in the option, aren't known.
    #[error(
        "the host's device tree and debugfs don't tell the rate of its {clocks}",
        clocks = clocks_named(.0)
    )]
    UnknownRates(Vec<String>),
    /// A rate is given for a clock that isn't there.
    #[error("it has no clock {wanted}")]
    NoClock {
        /// The name that was given.
        wanted: String,
        /// The names of its clocks.
        clocks: Vec<String>,
    },
    /// There is no such property or node to drop.
    #[error("its node has no {0} to drop")]
    NothingToDrop(String),
    /// A node can't have this name.
    #[error("a device tree node can't be named {0:?}")]
    Name(String),
    /// An alias can't have this name.
    #[error("an alias can't be {0:?}")]
    Alias(String),
}

impl NodeError {
    /// What mends it, for the device called `device`.
    pub fn help(&self, device: &str) -> String {
        match self {
            Self::UnknownRates(clocks) => {
                let rates: Vec<String> =
                    clocks.iter().map(|clock| format!(",clock-rate={clock}:HZ")).collect();
                format!(
                    "--vfio-platform {device}{} (its driver's documentation, or \
                     /sys/kernel/debug/clk/clk_summary while that runs, has them)",
                    rates.concat()
                )
            }
            Self::NoClock { clocks, .. } if clocks.is_empty() => "it has no clocks".to_owned(),
            Self::NoClock { clocks, .. } => format!("it has these: {}", clocks.join(" ")),
            Self::NothingToDrop(_) => {
                format!("strait run --dry-run --vfio-platform {device} shows what it has")
            }
            Self::Alias(_) => {
                "aliases consist of at most 31 of the characters a-z 0-9 -, such as serial1"
                    .to_owned()
            }
            Self::Name(_) => {
                "names consist of the characters a-z A-Z 0-9 , . _ + -, without an address"
                    .to_owned()
            }
        }
    }
}

fn clocks_named(clocks: &[String]) -> String {
    match clocks {
        [one] => format!("clock {one}"),
        many => format!("clocks {}", many.join(", ")),
    }
}
