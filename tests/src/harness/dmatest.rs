//! The kernel's DMA test (Documentation/driver-api/dmaengine/dmatest.rst) in a guest.

use super::failure::Failure;
use super::guest::Guest;
use super::interrupts::Interrupts;

/// What to test: verified copies of random lengths at random offsets, on several channels at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaTest {
    /// Copies per channel.
    pub copies: u32,
    /// The longest copy, in bytes.
    pub size: u32,
    /// Channels, of all controllers together; a PL330 has eight here.
    pub channels: u32,
}

/// What one channel's thread summed up.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The thread, such as `dma0chan3-copy0`.
    pub thread: String,
    /// Copies done.
    pub copies: u32,
    /// Those that failed.
    pub failures: u32,
    /// Copies per second, with all that belongs to one.
    pub transfers_per_second: f64,
    /// Bytes per second, in thousands, as the kernel counts them.
    pub kilobytes_per_second: u64,
}

impl Default for DmaTest {
    fn default() -> Self {
        Self { copies: 20, size: 4096, channels: 8 }
    }
}

impl DmaTest {
    /// With longer copies, of which several are under way at a time. They take the model twice as
    /// long.
    pub const LONG: Self = Self { copies: 25, size: 16384, channels: 8 };

    /// The guest's command that runs it.
    pub fn command(&self) -> String {
        format!("dmatest {} {} {}", self.copies, self.size, self.channels)
    }

    /// Runs it in `guest` and checks that every channel did its copies without a failure, and that
    /// its line was raised for them.
    ///
    /// # Errors
    ///
    /// The test doesn't end in time, or something of that isn't so.
    pub fn pass(&self, guest: &mut Guest) -> Result<Vec<Summary>, Failure> {
        let before = guest.interrupts()?;
        let text = guest.sh(&self.command())?;
        let after = guest.interrupts()?;
        let summaries = self.check(&text).map_err(|why| guest.failure(why))?;
        self.check_lines(&before, &after).map_err(|why| guest.failure(why))?;
        Ok(summaries)
    }

    /// Checks what the kernel said of a test: one summary per channel, all copies, no failure.
    ///
    /// # Errors
    ///
    /// What isn't so, with what the kernel said.
    pub fn check(&self, text: &str) -> Result<Vec<Summary>, String> {
        let summaries = Summary::parse(text);
        if summaries.len() != usize::try_from(self.channels).unwrap_or(usize::MAX) {
            let (found, wanted) = (summaries.len(), self.channels);
            return Err(format!("dmatest summed up {found} channels instead of {wanted}:\n{text}"));
        }
        match summaries.iter().find(|s| s.failures != 0 || s.copies != self.copies) {
            Some(bad) => Err(format!(
                "{}: {} copies of {} with {} failures:\n{text}",
                bad.thread, bad.copies, self.copies, bad.failures
            )),
            None => Ok(summaries),
        }
    }

    /// Checks that between two looks at the guest's interrupts one line per channel was handled, no
    /// more often than once per copy, a tenth and 3, and no other line of a DMA controller was. Linux'
    /// driver looks at all events whichever line calls it, so that two that come together may be
    /// handled as one, and a line's own call may find nothing left to do.
    ///
    /// # Errors
    ///
    /// How often each line was handled instead.
    pub fn check_lines(&self, before: &Interrupts, after: &Interrupts) -> Result<(), String> {
        let lines = after.since(before, ".dma");
        let channels = usize::try_from(self.channels).unwrap_or(usize::MAX);
        let most = u64::from(self.copies + self.copies / 10 + 3);
        let busy: Vec<u64> = lines.iter().copied().filter(|&count| count != 0).collect();
        if busy.len() == channels && busy.iter().all(|&count| count <= most) {
            return Ok(());
        }
        let copies = self.copies;
        Err(format!(
            "{channels} lines should have been handled some {copies} times each, but they were: \
             {lines:?}"
        ))
    }
}

impl Summary {
    /// The summaries in the kernel's log.
    pub fn parse(text: &str) -> Vec<Self> {
        text.lines().filter_map(Self::parse_line).collect()
    }

    /// `dmatest: dma0chan0-copy0: summary 50 tests, 0 failures 1234.56 iops 9876 KB/s (0)`
    fn parse_line(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(": summary ")?;
        let thread = before.rsplit(' ').next()?.to_owned();
        let words: Vec<&str> = after.split_whitespace().collect();
        let [copies, "tests,", failures, "failures", rate, "iops", bytes, "KB/s", ..] = words[..]
        else {
            return None;
        };
        Some(Self {
            thread,
            copies: copies.parse().ok()?,
            failures: failures.parse().ok()?,
            transfers_per_second: rate.parse().ok()?,
            kilobytes_per_second: bytes.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{DmaTest, Summary};

    const LOG: &str = "\
dmatest: Added 2 threads using dma0chan0 dma0chan1
dmatest: Started 1 threads using dma0chan0
dmatest: dma0chan1-copy0: summary 50 tests, 0 failures 1234.56 iops 9876 KB/s (0)
[    3.1] dmatest: dma0chan0-copy0: summary 50 tests, 2 failures 1.0 iops 8 KB/s (0)
";

    #[test]
    fn summaries_are_found_with_and_without_time_stamps() {
        let summary = |thread: &str, failures, transfers, bytes| Summary {
            thread: thread.into(),
            copies: 50,
            failures,
            transfers_per_second: transfers,
            kilobytes_per_second: bytes,
        };
        assert_eq!(
            Summary::parse(LOG),
            [summary("dma0chan1-copy0", 0, 1234.56, 9876), summary("dma0chan0-copy0", 2, 1.0, 8)]
        );
    }

    #[test]
    fn a_failure_a_missing_copy_and_a_missing_channel_are_seen() {
        let test = DmaTest { copies: 50, channels: 2, ..DmaTest::default() };
        assert!(test.check(LOG).is_err_and(|why| why.contains("2 failures")));
        let good = LOG.replace("2 failures", "0 failures");
        assert_eq!(test.check(&good).map(|summaries| summaries.len()), Ok(2));
        assert!(test.check(&good.replace("summary 50", "summary 49")).is_err());
        assert!(DmaTest { channels: 3, ..test }.check(&good).is_err());
        assert!(test.check("").is_err());
    }

    #[test]
    fn lines_must_be_handled_about_once_per_copy() {
        use crate::harness::Interrupts;
        let test = DmaTest { copies: 50, channels: 1, ..DmaTest::default() };
        let table = |first: u32, second: u32| {
            Interrupts::parse(&format!("CPU0\n44: {first} GIC 1 c.dma\n45: {second} GIC 2 c.dma\n"))
        };
        let before = table(3, 4);
        for lines in [(53, 4), (52, 4), (61, 4)] {
            assert_eq!(test.check_lines(&before, &table(lines.0, lines.1)), Ok(()));
        }
        for (first, second) in [(62, 4), (3, 4), (53, 5), (53, 54)] {
            assert!(test.check_lines(&before, &table(first, second)).is_err(), "{first} {second}");
        }
    }
}
