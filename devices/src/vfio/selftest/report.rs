//! What came of a test.

use std::time::Duration;

/// Something that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub what: String,
    /// What was seen, or why it failed.
    pub detail: String,
    /// It is as it should be.
    pub passed: bool,
}

/// What a DMA channel did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelResult {
    /// Its number.
    pub channel: u8,
    /// Transfers done and verified.
    pub transfers: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Interrupts that told their end.
    pub interrupts: u32,
    /// From start to interrupt, all transfers.
    pub busy: Duration,
    /// Why the channel fails.
    pub failure: Option<String>,
}

impl ChannelResult {
    /// Bytes per second; 0 if nothing was done.
    pub fn throughput(&self) -> u64 {
        let nanoseconds = self.busy.as_nanos().max(1);
        let rate = u128::from(self.bytes).saturating_mul(1_000_000_000) / nanoseconds;
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

/// What came of a device's test.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TestReport {
    /// Whose test it was: the binding's name, or `general`.
    pub test: &'static str,
    /// What was tried, in order.
    pub checks: Vec<Check>,
    /// What DMA channels did, where the device has any.
    pub channels: Vec<ChannelResult>,
}

impl TestReport {
    /// Nothing was tried yet.
    pub fn new(test: &'static str) -> Self {
        Self { test, ..Self::default() }
    }

    /// Adds what was tried: what was seen, or why it failed.
    pub fn add(&mut self, what: impl Into<String>, outcome: Result<String, String>) {
        let passed = outcome.is_ok();
        let (Ok(detail) | Err(detail)) = outcome;
        self.checks.push(Check { what: what.into(), detail, passed });
    }

    /// Whether something was tried and all of it is as it should be.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty()
            && self.checks.iter().all(|check| check.passed)
            && self.channels.iter().all(|channel| channel.failure.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_fails_the_device() {
        let mut report = TestReport::new("general");
        assert!(!report.passed(), "nothing was tried");
        report.add("a", Ok("fine".into()));
        assert!(report.passed());
        report.channels.push(ChannelResult::default());
        assert!(report.passed());
        report.channels.push(ChannelResult { failure: Some("x".into()), ..Default::default() });
        assert!(!report.passed());
        report.channels.clear();
        report.add("b", Err("broken".into()));
        assert!(!report.passed());
    }

    #[test]
    fn throughput_is_bytes_a_second() {
        let row = |bytes, busy| ChannelResult { bytes, busy, ..Default::default() };
        assert_eq!(row(1 << 20, Duration::from_millis(500)).throughput(), 2 << 20);
        assert_eq!(row(0, Duration::ZERO).throughput(), 0);
        assert_eq!(row(u64::MAX, Duration::ZERO).throughput(), u64::MAX);
    }
}
