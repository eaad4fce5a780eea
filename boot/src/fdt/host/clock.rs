//! Rates of the host's clocks, as far as they can be known.

use std::fs;
use std::path::Path;

use super::HostTree;
use super::error::HostError;
use super::node::HostNode;
use super::reference::Reference;

/// Where Linux shows its clocks (drivers/clk/clk.c, `clk_debug_create_one`); root alone sees it.
pub const SYSTEM_CLOCKS: &str = "/sys/kernel/debug/clk";

/// Clocks are made of one another over at most this many steps.
const MAX_CLOCK_PARENTS: usize = 16;

impl HostTree {
    /// The rate in Hz of the clock that `reference` is to, where the tree fixes it: a `fixed-clock`
    /// (bindings/clock/fixed-clock.yaml), or one made of such by a `fixed-factor-clock`
    /// (bindings/clock/fixed-factor-clock.yaml); else where the directory `clocks`
    /// ([`SYSTEM_CLOCKS`]) has it. The tree names only some clocks, and `clocks` is there only with
    /// debugfs and for those who may read it.
    ///
    /// # Errors
    ///
    /// A node on the way is malformed.
    pub fn clock_rate(
        &self,
        reference: &Reference,
        clocks: &Path,
    ) -> Result<Option<u32>, HostError> {
        let fixed = self.fixed_rate(&reference.provider, MAX_CLOCK_PARENTS)?;
        if fixed.is_some() {
            return Ok(fixed);
        }
        let name = reference.clock_name()?;
        Ok(name.and_then(|name| live_rate(clocks, &name)))
    }

    /// The rate that the tree fixes.
    fn fixed_rate(&self, clock: &HostNode, steps: usize) -> Result<Option<u32>, HostError> {
        if clock.is_compatible("fixed-clock")? {
            return clock.u32("clock-frequency");
        }
        if !clock.is_compatible("fixed-factor-clock")? || steps == 0 {
            return Ok(None);
        }
        let (multiply, divide) = (clock.u32("clock-mult")?, clock.u32("clock-div")?);
        let parents = self.references(clock, "clocks", Some("#clock-cells"))?;
        let Some(Some(parent)) = parents.into_iter().next() else { return Ok(None) };
        let rate = self.fixed_rate(&parent.provider, steps.saturating_sub(1))?;
        Ok(rate.zip(multiply.zip(divide)).and_then(|(rate, (multiply, divide))| {
            let rate = u64::from(rate).checked_mul(u64::from(multiply))?;
            u32::try_from(rate.checked_div(u64::from(divide))?).ok()
        }))
    }
}

impl Reference {
    /// What the host calls the clock it refers to, where the tree says: the entry of the provider's
    /// `clock-output-names` (bindings/clock/clock.txt of the dt-schema), or the name of a provider
    /// that has but one clock.
    ///
    /// # Errors
    ///
    /// The provider is malformed.
    pub fn clock_name(&self) -> Result<Option<String>, HostError> {
        let provider = &self.provider;
        let index = match self.arguments.as_slice() {
            [] => 0,
            [argument] => match provider.cells("clock-indices")? {
                Some(indices) => match indices.iter().position(|index| index == argument) {
                    Some(index) => index,
                    None => return Ok(None),
                },
                None => usize::try_from(*argument).unwrap_or(usize::MAX),
            },
            _ => return Ok(None),
        };
        if let Some(names) = provider.strings("clock-output-names")? {
            return Ok(names.get(index).map(|name| (*name).to_owned()));
        }
        let only = self.arguments.is_empty();
        Ok(only.then(|| provider.name().split('@').next().unwrap_or_default().to_owned()))
    }
}

/// The rate in Hz at which a clock runs now.
fn live_rate(clocks: &Path, name: &str) -> Option<u32> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return None;
    }
    let text = fs::read_to_string(clocks.join(name).join("clk_rate")).ok()?;
    // 0 is what a clock says whose rate isn't known, or that is off.
    text.trim().parse().ok().filter(|rate| *rate != 0)
}
