//! KVM and what it offers guests.

use arch::Vm;
use arch::gic::Version;
use boot::layout::Ram;

use super::finding::Finding;
use super::kind::Kind;
use crate::error::Error;
use crate::plan::describe;

/// Checks KVM, for a guest with this RAM.
pub fn findings(ram: Ram) -> Vec<Finding> {
    let vm = match Vm::new(ram, None) {
        Ok(vm) => vm,
        Err(error) => return vec![Finding::error("KVM", &Kind::ALL, Error::from(error))],
    };
    let offered: Vec<String> = [Version::V3, Version::V2]
        .into_iter()
        .filter(|version| matches!(version.is_offered(&vm), Ok(true)))
        .map(|version| version.to_string())
        .collect();
    let gic = match Version::newest(&vm) {
        Ok(_) => Finding::fine("interrupt controller", offered.join(", ")),
        Err(error) => Finding::error("interrupt controller", &Kind::ALL, Error::from(error)),
    };
    let bits = vm.max_ipa_bits();
    let cpu = match cpu_features(&vm) {
        Ok(text) => Finding::fine("CPU features", text),
        Err(error) => Finding::error("CPU features", &Kind::ALL, Error::from(error)),
    };
    vec![
        Finding::fine("KVM", "/dev/kvm can be used"),
        gic,
        Finding::fine("guest addresses", format!("{bits} bits")),
        cpu,
    ]
}

/// What a guest's CPUs can have of the host's.
fn cpu_features(vm: &Vm) -> Result<String, arch::Error> {
    let features = vm.features();
    let lengths = match vm.create_vcpus(1, features)?.first() {
        Some(vcpu) => vcpu.vector_lengths()?,
        None => Vec::new(),
    };
    Ok(describe::cpu_features(&features.names().collect::<Vec<_>>(), &lengths))
}
