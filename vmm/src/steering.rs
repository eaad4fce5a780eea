//! What the event loop does with the machine, and who controls that from outside.

use crate::exit_reason::ExitReason;

/// What has become of a machine.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing new.
    Unchanged,
    /// Its guest has begun anew.
    BegunAnew,
    /// The run is over.
    Over(ExitReason),
}

/// A machine that runs.
pub trait Steering {
    /// A vCPU has ended the run, or its guest asks for a reset: it begins anew if it may, unless the run has to
    /// end all the same.
    fn vcpu_ended(&mut self, may_restart: bool) -> Outcome;

    /// Whether a guest that asks for a reset begins anew.
    fn restarts(&self) -> bool;

    /// Has the guest begin anew, as if it had asked for a reset.
    fn restart(&mut self) -> Outcome;

    /// Has the vCPUs stand still. Whether they do: one of them may wait for a server of a device.
    fn pause(&mut self) -> bool;

    /// Lets them run again.
    fn resume(&mut self);

    /// Whether they stand still.
    fn is_paused(&self) -> bool;
}
