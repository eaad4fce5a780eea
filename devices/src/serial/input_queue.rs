//! Input that waits until the guest takes it.

use std::collections::VecDeque;

use vmm_sys_util::eventfd::EventFd;

use crate::ratelimit::LogLimit;

/// The largest number of bytes of queued input.
pub const INPUT_CAPACITY: usize = 4096;

/// A guest that reads the port's status this often in a row polls for input, without interrupts.
const MIN_POLLS: u32 = 32;

/// Input on its way to a receiver.
pub struct InputQueue {
    bytes: VecDeque<u8>,
    drained: EventFd,
    /// Input was refused since `drained` was signalled last.
    refused: bool,
    /// The number of reads of the status in a row.
    polls: u32,
}

impl InputQueue {
    /// An empty queue that signals `drained` when there is room again after some input was refused.
    pub fn new(drained: EventFd) -> Self {
        Self { bytes: VecDeque::new(), drained, refused: false, polls: 0 }
    }

    /// Appends input; returns the number of bytes that there was room for.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_CAPACITY.saturating_sub(self.bytes.len()));
        self.bytes.extend(bytes.iter().take(taken));
        self.refused = taken < bytes.len();
        taken
    }

    /// The next byte.
    pub fn front(&self) -> Option<u8> {
        self.bytes.front().copied()
    }

    /// Removes the next byte, which the receiver has taken.
    pub fn pop(&mut self, log: &LogLimit) {
        self.bytes.pop_front();
        if self.bytes.is_empty() && self.refused {
            self.refused = false;
            if let Err(e) = self.drained.write(1) {
                log.warn(format_args!("input can't be resumed: {e}"));
            }
        }
    }

    /// The guest has read the port's status.
    pub fn note_poll(&mut self) {
        self.polls = self.polls.saturating_add(1);
    }

    /// The guest has done something else than polling for input.
    pub fn reset_polls(&mut self) {
        self.polls = 0;
    }

    /// The guest polls for input.
    pub fn is_polled(&self) -> bool {
        self.polls >= MIN_POLLS
    }
}
