//! What the event loop does with the machine.

use crate::exit_reason::ExitReason;

/// A machine that runs.
pub trait Steering {
    /// A vCPU has ended the run, unless it was for a reset after which the guest begins anew, which it then
    /// does: why. `may_restart` is `false` where it has to end all the same.
    fn vcpu_ended(&mut self, may_restart: bool) -> Option<ExitReason>;
}
