//! Why a vCPU stopped running guest code.

use std::io;

use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::error::io_error;

/// Like `KVM_EXIT_ARM_NISV`, and with the same fields, of LD64B and ST64B (linux/kvm.h; api.rst, 5).
const KVM_EXIT_ARM_LDST64B: u32 = 42;

/// A vCPU's exit to the VMM, parsed (Documentation/virt/kvm/api.rst, section 5).
#[derive(Debug)]
pub enum Exit<'a> {
    /// The guest reads a guest physical address that no memory slot covers.
    MmioRead {
        /// Guest physical address.
        gpa: u64,
        /// Where the answer goes: 1, 2, 4 or 8 bytes.
        data: &'a mut [u8],
    },
    /// The guest writes to a guest physical address that no memory slot covers.
    MmioWrite {
        /// Guest physical address.
        gpa: u64,
        /// What it writes: 1, 2, 4 or 8 bytes.
        data: &'a [u8],
    },
    /// The guest accesses what no memory slot covers, with an instruction whose syndrome does not
    /// tell what it transfers (`KVM_EXIT_ARM_NISV`: pairs, vectors, write-back), or with one of 64 bytes
    /// (`KVM_EXIT_ARM_LDST64B`). See
    /// [`undecodable_access`](crate::Vcpu::undecodable_access).
    Undecodable,
    /// The host can't give the guest what it accesses in a memory slot, such as a device's registers
    /// whose mapping faults (`KVM_EXIT_MEMORY_FAULT`, or `KVM_RUN` fails with `EFAULT`). The access
    /// is made again by the next run.
    MemoryFault {
        /// Guest physical address, where KVM tells.
        gpa: Option<u64>,
    },
    /// The guest makes a call that is forwarded ([`forward_call`](crate::Vm::forward_call)), by HVC or SMC:
    /// its arguments are in the registers from X1 on, and its answer belongs into those from X0 on. The
    /// next run continues behind it.
    Call {
        /// The identifier of the function.
        function: u64,
    },
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET or SYSTEM_RESET2.
    Reset,
    /// KVM gives up on the guest (`KVM_SYSTEM_EVENT_CRASH`).
    Crash,
    /// What a debugger waits for has happened: a syndrome and, of a watchpoint, the virtual address. See
    /// [`Stop`](crate::debug::Stop).
    Debug {
        /// As ESR_EL2 has it.
        syndrome: u32,
        /// As FAR_EL2 has it.
        address: u64,
    },
    /// A signal, or the request of [`ImmediateExit`](crate::ImmediateExit).
    Interrupted,
    /// The guest can't run on: what KVM says of it (`KVM_EXIT_FAIL_ENTRY`, `KVM_EXIT_INTERNAL_ERROR`,
    /// and exits that strait doesn't know).
    Failed(String),
}

/// Runs the vCPU until it exits: part of the loop that calls it, where each instruction counts.
///
/// # Errors
///
/// KVM_RUN itself failed.
#[inline(always)]
pub(crate) fn run(vcpu: &mut VcpuFd) -> io::Result<Exit<'_>> {
    match vcpu.run() {
        Ok(exit) => Ok(parse(exit)),
        Err(e) => match e.errno() {
            libc::EINTR | libc::EAGAIN => Ok(Exit::Interrupted),
            libc::EFAULT => Ok(Exit::MemoryFault { gpa: None }),
            // What kernels before 5.5, which have no KVM_EXIT_ARM_NISV, do instead.
            libc::ENOSYS => Ok(Exit::Failed(
                "the guest accessed memory-mapped I/O with an instruction that KVM can't decode"
                    .into(),
            )),
            _ => Err(io_error(e)),
        },
    }
}

fn parse(exit: VcpuExit<'_>) -> Exit<'_> {
    match exit {
        VcpuExit::MmioRead(gpa, data) => Exit::MmioRead { gpa, data },
        VcpuExit::MmioWrite(gpa, data) => Exit::MmioWrite { gpa, data },
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => Exit::PowerOff,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => Exit::Reset,
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => Exit::Crash,
        VcpuExit::Hypercall(call) => Exit::Call { function: call.nr },
        VcpuExit::Unsupported(KVM_EXIT_ARM_NISV | KVM_EXIT_ARM_LDST64B) => Exit::Undecodable,
        VcpuExit::Debug(debug) => Exit::Debug { syndrome: debug.hsr, address: debug.far },
        VcpuExit::Intr => Exit::Interrupted,
        VcpuExit::FailEntry(reason, cpu) => Exit::Failed(format!(
            "the hardware refused to enter the guest on host CPU {cpu} (reason {reason:#x})"
        )),
        VcpuExit::InternalError => Exit::Failed("KVM met an internal error".into()),
        VcpuExit::MemoryFault { gpa, .. } => Exit::MemoryFault { gpa: Some(gpa) },
        other => Exit::Failed(format!("KVM reported an exit strait does not know: {other:?}")),
    }
}
