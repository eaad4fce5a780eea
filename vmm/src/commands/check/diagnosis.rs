//! The sum of the findings: which kinds of device can be assigned.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::finding::{Finding, Level};
use super::kind::{ConfinedDevices, Kind};
use crate::commands::print::Table;

/// All findings, and what follows from them.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    /// A device can be assigned that the host has.
    pub assignable: bool,
    kinds: Vec<KindVerdict>,
    findings: Vec<Finding>,
}

/// A kind of device, judged by what it needs.
#[derive(Debug, Serialize)]
struct KindVerdict {
    kind: Kind,
    /// How many the host has behind an IOMMU; nothing for those that other processes have.
    devices: Option<usize>,
    /// One can be assigned.
    assignable: bool,
    /// The subjects of the findings that keep all of them from it.
    obstacles: Vec<&'static str>,
}

impl Diagnosis {
    /// Judges each kind, and weighs the findings: what blocks some kinds only leaves the others.
    pub fn of(mut findings: Vec<Finding>, confined: &ConfinedDevices) -> Self {
        let kinds = Kind::ALL.map(|kind| {
            let devices = (kind != Kind::VfioUser).then(|| confined.count(kind));
            KindVerdict::of(kind, devices, &findings)
        });
        let of_host = kinds.iter().filter(|judged| judged.devices.is_some());
        let assignable = of_host.clone().any(|judged| judged.assignable);
        for finding in findings.iter_mut().filter(|finding| finding.level == Level::Blocks) {
            if assignable {
                finding.level = Level::Degraded;
            }
        }
        Self { assignable, kinds: kinds.into(), findings }
    }
}

impl Display for Diagnosis {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut table = Table::default();
        for finding in &self.findings {
            table.row([finding.level.name(), finding.subject, &finding.text]);
            if let Some(help) = &finding.help {
                table.row(["", "", &format!("  help: {help}")]);
            }
        }
        let mut kinds = Table::default();
        for judged in &self.kinds {
            let devices = judged.devices.map_or_else(String::new, |n| n.to_string());
            kinds.row([judged.kind.name(), &devices, &judged.verdict()]);
        }
        let verdict = if self.assignable {
            "a device can be assigned on this host"
        } else {
            "no device can be assigned on this host"
        };
        writeln!(f, "{table}\n{kinds}\n{verdict}")
    }
}

impl KindVerdict {
    fn of(kind: Kind, devices: Option<usize>, findings: &[Finding]) -> Self {
        let against = findings.iter().filter(|finding| finding.blocks.contains(&kind));
        let obstacles: Vec<_> = against.map(|finding| finding.subject).collect();
        let assignable = obstacles.is_empty() && devices != Some(0);
        Self { kind, devices, assignable, obstacles }
    }

    fn verdict(&self) -> String {
        match (self.devices, self.assignable) {
            (_, true) => "can be assigned".to_owned(),
            (Some(0), false) => "none is behind an IOMMU".to_owned(),
            (_, false) => format!("can't be assigned: {}", self.obstacles.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagnosis(findings: Vec<Finding>, kinds: &[Kind]) -> Diagnosis {
        Diagnosis::of(findings, &ConfinedDevices::of_kinds(kinds))
    }

    #[test]
    fn one_kind_that_works_is_enough() {
        let blocked = |kinds: &[Kind]| Finding::blocks("driver", kinds, "not there", "get it");
        let platform = || blocked(&[Kind::Platform]);
        let both = diagnosis(vec![platform()], &[Kind::Platform, Kind::Pci]);
        assert!(both.assignable);
        assert_eq!(both.findings[0].level, Level::Degraded);
        let text = both.to_string();
        for line in [
            "degraded  driver  not there\n",
            "platform   1  can't be assigned: driver\n",
            "AMBA       0  none is behind an IOMMU\n",
            "PCI        1  can be assigned\n",
            "vfio-user     can be assigned\n",
            "\na device can be assigned on this host\n",
        ] {
            assert!(text.contains(line), "{line:?} in {text}");
        }

        let alone = diagnosis(vec![platform()], &[Kind::Platform]);
        assert!(!alone.assignable, "servers are no devices of the host");
        assert_eq!(alone.findings[0].level, Level::Blocks);
        assert!(alone.to_string().ends_with("\nno device can be assigned on this host\n"));
        assert!(!diagnosis(vec![blocked(&Kind::ALL)], &[Kind::Pci]).assignable);
        assert!(!diagnosis(Vec::new(), &[]).assignable);
    }

    #[test]
    fn a_drawback_is_no_obstacle() {
        let degraded = Finding::degraded("pages", "large", "smaller ones");
        let diagnosis = diagnosis(vec![degraded], &[Kind::Amba]);
        assert!(diagnosis.assignable);
        assert!(diagnosis.to_string().starts_with("degraded  pages  large\n"));
    }
}
