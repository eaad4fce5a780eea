//! What vCPUs have of the host's CPUs beyond the base architecture: KVM offers it only to those who
//! ask (Documentation/virt/kvm/api.rst, 4.82 KVM_ARM_VCPU_INIT).

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_ARM_VCPU_SVE,
};

/// Optional features of vCPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The Scalable Vector Extension.
    pub sve: bool,
    /// Pointer authentication, by address and generic.
    pub pauth: bool,
    /// The performance monitors, version 3.
    pub pmu: bool,
}

impl Features {
    /// All that strait knows.
    pub const ALL: Self = Self { sve: true, pauth: true, pmu: true };

    /// Those that both have.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            sve: self.sve && other.sve,
            pauth: self.pauth && other.pauth,
            pmu: self.pmu && other.pmu,
        }
    }

    /// Their names, as on the command line.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [("sve", self.sve), ("pauth", self.pauth), ("pmu", self.pmu)];
        all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name)
    }

    /// As `KVM_ARM_VCPU_INIT` takes them.
    pub(crate) fn bits(self) -> u32 {
        let mut bits = 0;
        if self.sve {
            bits |= 1 << KVM_ARM_VCPU_SVE;
        }
        if self.pauth {
            bits |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
        }
        if self.pmu {
            bits |= 1 << KVM_ARM_VCPU_PMU_V3;
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_bits_for_kvm_and_names_for_people() {
        let none = Features::default();
        assert_eq!((Features::ALL.bits(), none.bits()), (0b111_1000, 0));
        let some = Features { sve: false, ..Features::ALL };
        assert_eq!(some.names().collect::<Vec<_>>(), ["pauth", "pmu"]);
        assert_eq!(Features::ALL.and(some), some);
    }
}
