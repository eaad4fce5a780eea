//! `strait check`: what this host has and lacks for device assignment. Nothing is changed.

mod backends;
mod clocks;
mod diagnosis;
mod drivers;
mod finding;
mod kind;
#[cfg(target_arch = "aarch64")]
mod kvm;
mod limits;
mod memory;
mod sandbox;
mod vfio;

use std::path::PathBuf;

use boot::layout::Ram;
use devices::vfio::host::Host;
use log::LevelFilter;

use self::diagnosis::Diagnosis;
use self::drivers::Modules;
use self::kind::ConfinedDevices;
use super::print::print;
use crate::cli::CheckOptions;
use crate::error::Error;
use crate::output;

/// Hosts of other architectures.
#[cfg(not(target_arch = "aarch64"))]
mod kvm {
    use boot::layout::Ram;

    use super::finding::Finding;
    use super::kind::Kind;
    use crate::error::Error;

    /// KVM runs no arm64 guests on them.
    pub fn findings(_ram: Ram) -> Vec<Finding> {
        let error = Error::new("strait runs guests on 64-bit Arm hosts");
        vec![Finding::error("KVM", &Kind::ALL, error)]
    }
}

/// The files of the host that are checked.
struct System {
    host: Host,
    proc: PathBuf,
    modules: Modules,
}

impl Default for System {
    fn default() -> Self {
        let proc = PathBuf::from("/proc");
        let modules = Modules::of("/lib/modules".as_ref(), &proc);
        Self { host: Host::default(), proc, modules }
    }
}

/// Checks the host, prints the findings, and returns the exit status.
///
/// # Errors
///
/// The host's sysfs can't be read.
#[cold]
pub fn run(options: &CheckOptions) -> Result<u8, Error> {
    output::init_log(LevelFilter::Warn);
    let system = System::default();
    let confined = ConfinedDevices::of(&system.host)?;
    let memory = options.memory;
    let mut findings = kvm::findings(Ram { base: memory.base, size: memory.size.bytes() });
    findings.extend(vfio::findings(&system, &confined)?);
    findings.extend(clocks::findings(&system, &confined));
    findings.extend(memory::findings(&system, memory));
    findings.extend(limits::findings(memory));
    findings.extend(sandbox::findings(&system));
    let diagnosis = Diagnosis::of(findings, &confined);
    print(options.json, &diagnosis)?;
    Ok(u8::from(!diagnosis.assignable))
}
