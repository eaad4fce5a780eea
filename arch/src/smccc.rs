//! Calls of the SMC Calling Convention (Arm DEN0028) that user space answers.

#[cfg(target_arch = "aarch64")]
use kvm_bindings::{
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, kvm_device_attr, kvm_smccc_filter,
    kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER,
};

#[cfg(target_arch = "aarch64")]
use crate::{Error, Vm};

/// The function by which a guest says that there is a message of SCMI: a fast call of 32 bits, of the
/// services that belong to the silicon (DEN0028, 6.1 "Allocation of values").
pub const SCMI: u32 = 0x8200_0010;

/// X0 of a call that was answered.
pub const SUCCESS: u64 = 0;

/// X0 of a call that isn't supported.
pub const NOT_SUPPORTED: u64 = u64::MAX;

#[cfg(target_arch = "aarch64")]
impl Vm {
    /// Has KVM forward calls of a function to user space, as [`Exit::Call`](crate::exit::Exit::Call);
    /// before a vCPU runs (Documentation/virt/kvm/devices/vm.rst, 5.2 KVM_ARM_VM_SMCCC_FILTER). Says
    /// whether it can: Linux 6.4 and later do.
    ///
    /// # Errors
    ///
    /// KVM refused.
    #[cold]
    pub fn forward_call(&self, function: u32) -> Result<bool, Error> {
        let [action, ..] = kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER.to_le_bytes();
        let filter = kvm_smccc_filter { base: function, nr_functions: 1, action, pad: [0; 15] };
        let attr = kvm_device_attr {
            group: KVM_ARM_VM_SMCCC_CTRL,
            attr: u64::from(KVM_ARM_VM_SMCCC_FILTER),
            addr: (&raw const filter).addr() as u64,
            flags: 0,
        };
        if self.fd().has_device_attr(&attr).is_err() {
            return Ok(false);
        }
        let set = self.fd().set_device_attr(&attr);
        set.map(|()| true).map_err(|e| Error::kvm("forward calls of the guest's", e))
    }
}
