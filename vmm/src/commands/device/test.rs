//! `strait device test`.

use std::fmt::{self, Display, Formatter};

use devices::vfio::bindings;
use devices::vfio::host::Host;
use devices::vfio::iommu::{Backend, IommuOptions};
use devices::vfio::selftest::{SelfTest, TestReport};
use serde::Serialize;

use crate::commands::print::Table;
use crate::error::Error;

/// The result of a device's self-test.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// The device.
    pub name: String,
    /// How its DMA was mapped.
    pub iommu: Backend,
    passed: bool,
    /// What was found.
    #[serde(flatten)]
    pub report: TestReport,
}

/// Tests a device that is bound to VFIO.
///
/// # Errors
///
/// It can't be tested; one that fails its test is a verdict.
pub fn run(host: &Host, name: &str, options: IommuOptions) -> Result<Verdict, Error> {
    let mut test = SelfTest::open(host, name, options)?;
    let report = bindings::self_test(&mut test)?;
    Ok(Verdict::new(test.name().to_owned(), test.iommu().backend(), report))
}

impl Verdict {
    /// That on a device, with its DMA mapped in this way.
    pub fn new(name: String, iommu: Backend, report: TestReport) -> Self {
        Self { name, iommu, passed: report.passed(), report }
    }

    /// Whether the device passed.
    pub fn passed(&self) -> bool {
        self.passed
    }

    fn channel_table(&self) -> Table {
        let mut table =
            Table::new(["  CHANNEL", "TRANSFERS", "BYTES", "INTERRUPTS", "MB/S", "RESULT"]);
        for row in &self.report.channels {
            let rate = row.bytes_per_second / 100_000;
            table.row([
                format!("  {}", row.channel),
                row.transfers.to_string(),
                row.bytes.to_string(),
                row.interrupts.to_string(),
                format!("{}.{}", rate / 10, rate % 10),
                row.failure.clone().unwrap_or_else(|| "pass".to_owned()),
            ]);
        }
        table
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} test ({})", self.name, self.report.test, self.iommu.name())?;
        let word = |passed| if passed { "pass" } else { "FAIL" };
        let mut checks = Table::default();
        for check in &self.report.checks {
            let passed = format!("  {}", word(check.passed));
            checks.row([&passed, &check.what, &check.detail]);
        }
        for check in self.report.isolation.iter().flat_map(|isolation| &isolation.checks) {
            let (passed, what) = (format!("  {}", word(check.passed)), &check.what);
            checks.row([&passed, &format!("isolation: {what}"), &check.detail]);
        }
        write!(f, "{checks}")?;
        if !self.report.channels.is_empty() {
            write!(f, "\n{}", self.channel_table())?;
        }
        if let Some(isolation) = &self.report.isolation {
            writeln!(f, "\n  It tried {}, {}.", isolation.address, isolation.target)?;
            isolation.host_log.iter().try_for_each(|line| writeln!(f, "  host: {line}"))?;
        }
        writeln!(f, "\n{}: {}", self.name, if self.passed { "passed" } else { "FAILED" })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use devices::vfio::selftest::ChannelResult;

    use super::*;

    #[test]
    fn a_failure_is_reported_with_its_channel() {
        let mut report = TestReport::new("PL330");
        report.add("interrupts", Ok::<_, String>("8 of them"));
        let mut good = ChannelResult::default();
        (0..16).for_each(|_| good.count(312_500, Duration::from_millis(125)));
        let failure = Some("no interrupt".to_owned());
        report.channels = vec![good, ChannelResult { channel: 1, failure, ..Default::default() }];
        let verdict = Verdict::new("1.dma".to_owned(), Backend::Container, report);
        assert!(!verdict.passed());
        assert_eq!(
            verdict.to_string(),
            "1.dma: PL330 test (container)\n\
             \x20 pass  interrupts  8 of them\n\
             \n\
             \x20 CHANNEL  TRANSFERS  BYTES    INTERRUPTS  MB/S  RESULT\n\
             \x20 0        16         5000000  16          2.5   pass\n\
             \x20 1        0          0        0           0.0   no interrupt\n\
             \n\
             1.dma: FAILED\n"
        );
    }
}
