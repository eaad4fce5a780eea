//! Instructions, and how the debug registers take them.
//!
//! TRM (ARM DDI 0424), chapter 4, "Instruction set"; chapter 3, "Debug Instruction-0 Register".

/// A thread of the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// The manager, which starts channels.
    Manager,
    /// A channel, counted from 0.
    Channel(u8),
}

/// An instruction that the debug registers can run: at most six bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction([u8; 6]);

impl Instruction {
    /// DMAKILL: ends the thread's program at once, once its outstanding transfers are through.
    pub(super) const KILL: Self = Self([0x01, 0, 0, 0, 0, 0]);

    /// DMAGO with `ns` set: the manager starts a channel, in the non-secure state, on the program at
    /// this address.
    pub(super) fn go(channel: u8, program: u32) -> Self {
        let [a, b, c, d] = program.to_le_bytes();
        Self([0xa2, channel & 0x7, a, b, c, d])
    }

    /// DMASEV: signals an event, and its interrupt where that is enabled.
    pub(super) fn signal(event: u8) -> Self {
        Self([0x34, event << 3, 0, 0, 0, 0])
    }

    /// The values of DBGINST0 and DBGINST1 that run it on a thread.
    pub(super) fn for_debug(self, thread: Thread) -> (u32, u32) {
        let [a, b, rest @ ..] = self.0;
        // Bit 0: a channel rather than the manager; bits 10:8: which.
        let (debug_thread, channel) = match thread {
            Thread::Manager => (0, 0),
            Thread::Channel(number) => (1, number & 0x7),
        };
        (u32::from_le_bytes([debug_thread, channel, a, b]), u32::from_le_bytes(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_registers_hold_the_thread_and_the_bytes_in_order() {
        let kill = Instruction::KILL;
        assert_eq!(kill.for_debug(Thread::Manager), (0x0001_0000, 0));
        assert_eq!(kill.for_debug(Thread::Channel(5)), (0x0001_0501, 0));
        let go = Instruction::go(3, 0x1234_5678);
        assert_eq!(go.for_debug(Thread::Manager), (0x03a2_0000, 0x1234_5678));
        let signal = Instruction::signal(5);
        assert_eq!(signal.for_debug(Thread::Manager), (0x2834_0000, 0));
    }
}
