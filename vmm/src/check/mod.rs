//! `strait check`: what this host has and lacks for device assignment. Nothing is changed.

mod backends;
mod finding;
mod kernel;
mod kvm;
mod limits;
mod vfio;

use std::path::PathBuf;

use devices::vfio::host::Host;
use log::LevelFilter;
use serde::Serialize;

use self::finding::{Finding, Level};
use crate::cli::CheckOptions;
use crate::device::print;
use crate::error::Error;
use crate::logger;
use crate::table::Table;

/// The host, as far as it is looked at; the roots can be moved, for tests.
struct Premises {
    host: Host,
    proc: PathBuf,
    modules: PathBuf,
}

impl Default for Premises {
    fn default() -> Self {
        Self { host: Host::default(), proc: "/proc".into(), modules: "/lib/modules".into() }
    }
}

/// All findings.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// Nothing blocks.
    assignable: bool,
    findings: Vec<Finding>,
}

/// Looks at the host, prints the findings, and returns the exit status.
///
/// # Errors
///
/// The host can't be looked at.
#[cold]
pub fn run(options: &CheckOptions) -> Result<u8, Error> {
    logger::init(LevelFilter::Warn);
    let premises = Premises::default();
    let mut findings = kvm::findings(options.memory.bytes());
    findings.extend(vfio::findings(&premises)?);
    findings.extend(limits::findings(&premises, options.memory));
    let diagnosis = Diagnosis::of(findings);
    print(options.json, &diagnosis, || diagnosis.to_text())?;
    Ok(u8::from(!diagnosis.assignable))
}

impl Diagnosis {
    fn of(findings: Vec<Finding>) -> Self {
        let assignable = findings.iter().all(|finding| finding.level != Level::Blocks);
        Self { assignable, findings }
    }

    fn to_text(&self) -> String {
        let mut table = Table::default();
        for finding in &self.findings {
            table.row([finding.level.name(), finding.subject, &finding.text]);
            if let Some(help) = &finding.help {
                table.row(["", "", &format!("  help: {help}")]);
            }
        }
        let count = self.findings.iter().filter(|f| f.level == Level::Blocks).count();
        let verdict = match count {
            0 => "a device can be assigned on this host".to_owned(),
            1 => "1 finding blocks the assignment of devices".to_owned(),
            _ => format!("{count} findings block the assignment of devices"),
        };
        format!("{}\n{verdict}\n", table.to_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_finding_that_blocks_is_enough() {
        let fine = || Finding::fine("KVM", "there");
        let degraded = || Finding::degraded("pages", "large", "smaller ones");
        assert!(Diagnosis::of(vec![fine(), degraded()]).assignable);
        let blocked = Diagnosis::of(vec![fine(), Finding::blocks("IOMMU", "none", "get one")]);
        assert!(!blocked.assignable);
        assert_eq!(
            blocked.to_text(),
            "fine    KVM    there\nblocks  IOMMU  none\n                 help: get one\n\n\
             1 finding blocks the assignment of devices\n"
        );
    }
}
