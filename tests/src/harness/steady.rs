//! A guest's DMA in steady state, watched from the host: what does it cost the VMM?

use super::costs::Costs;
use super::dmatest::{DmaTest, Summary};
use super::failure::Failure;
use super::guest::Guest;
use super::host::Host;

/// What the host counted while a guest tested its DMA controllers and was silent otherwise.
#[derive(Clone, Debug)]
pub struct SteadyState {
    /// What each channel did.
    pub summaries: Vec<Summary>,
    /// Bytes copied.
    pub bytes: u64,
    /// How often the guest handled each of the controllers' lines.
    pub lines: Vec<u64>,
    /// What it cost, and how often the host handled the lines that VFIO has.
    pub costs: Costs,
}

impl SteadyState {
    /// Runs `test` in `guest`, the only one on `host` with assigned devices.
    ///
    /// # Errors
    ///
    /// The test doesn't pass, or the host was too slow to look at its counters in time, again and
    /// again.
    pub fn measure(host: &Host, guest: &mut Guest, test: DmaTest) -> Result<Self, Failure> {
        let (costs, text) = Costs::of(host, guest, &test.command(), "vfio-irq")?;
        let summaries = test.check(&text).map_err(|why| guest.failure(why))?;
        let [before, after] = &costs.guest_interrupts;
        test.check_lines(before, after).map_err(|why| guest.failure(why))?;
        let lines = after.since(before, ".dma");
        let bytes = copied(&text).ok_or_else(|| guest.failure("dmatest counts no bytes"))?;
        Ok(Self { summaries, bytes, lines, costs })
    }
}

/// The bytes that the guest's `dmatest` command counted.
fn copied(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("bytes copied: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::copied;

    #[test]
    fn bytes_are_found_in_what_dmatest_printed() {
        assert_eq!(copied("dmatest: x\nbytes copied: 4096\n"), Some(4096));
        assert_eq!(copied("bytes copied: many\n"), None);
        assert_eq!(copied(""), None);
    }
}
