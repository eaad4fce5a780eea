//! The result of a device's self-test.

use std::error::Error;
use std::time::Duration;

use serde::Serialize;

use super::super::error_chain::chain;

/// One thing that was tested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was tested.
    pub what: String,
    /// What was found, or why it failed.
    pub detail: String,
    /// Whether it passed.
    pub passed: bool,
}

/// What one DMA channel did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChannelResult {
    /// Its number.
    pub channel: u8,
    /// Transfers that completed and whose every byte was verified.
    pub transfers: u32,
    /// Their bytes.
    pub bytes: u64,
    /// Interrupts that signalled their completion.
    pub interrupts: u32,
    /// The time from start to interrupt of all transfers together.
    #[serde(skip)]
    pub busy: Duration,
    /// Bytes transferred in a second of that time; 0 if nothing was.
    pub bytes_per_second: u64,
    /// Why the channel failed, if it did.
    pub failure: Option<String>,
}

impl ChannelResult {
    /// Counts a transfer of this many bytes that is verified, and took this long from start to
    /// interrupt.
    pub fn count(&mut self, bytes: u64, busy: Duration) {
        self.transfers = self.transfers.saturating_add(1);
        self.interrupts = self.interrupts.saturating_add(1);
        self.bytes = self.bytes.saturating_add(bytes);
        self.busy = self.busy.saturating_add(busy);
        let rate =
            u128::from(self.bytes).saturating_mul(1_000_000_000) / self.busy.as_nanos().max(1);
        self.bytes_per_second = u64::try_from(rate).unwrap_or(u64::MAX);
    }
}

/// What was found of a device's isolation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Isolation {
    /// Whether the device was kept from what isn't its.
    pub passed: bool,
    /// What the device was told to read and write, as its bus addresses it.
    pub address: String,
    /// What is there.
    pub target: &'static str,
    /// What was done.
    pub checks: Vec<Check>,
    /// What the host's log says of it.
    pub host_log: Vec<String>,
}

/// The result of a device's self-test.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TestReport {
    /// Which test it was: a binding's name, `general` or `PCI`.
    pub test: &'static str,
    /// The checks, in order.
    pub checks: Vec<Check>,
    /// The device's DMA channels, where its test drives any.
    pub channels: Vec<ChannelResult>,
    /// What the device is kept from; none where its test can't have it try.
    pub isolation: Option<Isolation>,
}

impl TestReport {
    /// An empty one.
    pub fn new(test: &'static str) -> Self {
        Self { test, ..Self::default() }
    }

    /// Adds a check: what was found, or why it failed.
    pub fn add<E>(&mut self, what: impl Into<String>, outcome: Result<impl Into<String>, E>)
    where
        E: Into<Box<dyn Error>>,
    {
        let passed = outcome.is_ok();
        let detail = match outcome {
            Ok(detail) => detail.into(),
            Err(error) => chain(&*error.into()),
        };
        self.checks.push(Check { what: what.into(), detail, passed });
    }

    /// Whether there was a check, and all of them, all channels and the isolation passed.
    pub fn passed(&self) -> bool {
        !self.checks.is_empty()
            && self.checks.iter().all(|check| check.passed)
            && self.channels.iter().all(|channel| channel.failure.is_none())
            && self.isolation.as_ref().is_none_or(|isolation| isolation.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_fails_the_device() {
        let mut report = TestReport::new("general");
        assert!(!report.passed(), "nothing was tested");
        report.add("a", Ok::<_, String>("fine"));
        assert!(report.passed());
        report.channels.push(ChannelResult::default());
        assert!(report.passed());
        report.channels.push(ChannelResult { failure: Some("x".into()), ..Default::default() });
        assert!(!report.passed());
        report.channels.clear();
        report.isolation = Some(Isolation::default());
        assert!(!report.passed());
        report.isolation = Some(Isolation { passed: true, ..Isolation::default() });
        assert!(report.passed());
        report.add("b", Err::<String, _>("broken"));
        assert!(!report.passed());
    }

    #[test]
    fn throughput_is_bytes_a_second() {
        let mut channel = ChannelResult::default();
        for (bytes, ms, rate) in [(1 << 20, 500, 2 << 20), (0, 500, 1 << 20), (1 << 20, 0, 2 << 20)]
        {
            channel.count(bytes, Duration::from_millis(ms));
            assert_eq!(channel.bytes_per_second, rate);
        }
        assert_eq!((channel.transfers, channel.bytes), (3, 2 << 20));
        let mut channel = ChannelResult::default();
        channel.count(u64::MAX, Duration::ZERO);
        assert_eq!(channel.bytes_per_second, u64::MAX);
    }
}
