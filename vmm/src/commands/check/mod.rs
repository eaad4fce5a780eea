//! `strait check`: what this host has and lacks for device assignment. Nothing is changed.

mod backends;
mod diagnosis;
mod drivers;
mod finding;
mod kernel;
mod kind;
#[cfg(target_arch = "aarch64")]
mod kvm;
mod limits;
mod memory;
mod messages;
mod vfio;

use std::path::PathBuf;

use devices::vfio::host::Host;
use log::LevelFilter;

use self::diagnosis::Diagnosis;
use self::kind::Present;
use super::print::print;
use crate::cli::CheckOptions;
use crate::error::Error;
use crate::output;

/// Hosts of other architectures.
#[cfg(not(target_arch = "aarch64"))]
mod kvm {
    use super::finding::Finding;
    use super::kind::Kind;
    use crate::error::Error;

    /// KVM runs no arm64 guests on them.
    pub fn findings(_ram: u64) -> Vec<Finding> {
        let error = Error::new("strait runs guests on 64-bit Arm hosts");
        vec![Finding::error("KVM", &Kind::ALL, error)]
    }
}

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

/// Looks at the host, prints the findings, and returns the exit status.
///
/// # Errors
///
/// The host can't be looked at.
#[cold]
pub fn run(options: &CheckOptions) -> Result<u8, Error> {
    output::init_log(LevelFilter::Warn);
    let premises = Premises::default();
    let present = Present::of(&premises.host)?;
    let mut findings = kvm::findings(options.memory.bytes());
    findings.extend(vfio::findings(&premises, &present)?);
    findings.extend(memory::findings(&premises, options.memory));
    findings.extend(limits::findings(options.memory));
    let diagnosis = Diagnosis::of(findings, &present);
    print(options.json, &diagnosis)?;
    Ok(u8::from(!diagnosis.assignable))
}
