//! The shared memory of a channel (DEN0056E, 5.1.2 "Shared memory area layout"): little-endian fields,
//! which the guest writes and reads as it likes.

use std::ops::Range;

use super::message::{Answer, Header, Request, Status};

/// Its size in bytes: what precedes the payload, and 128 bytes of that, which is as much as Linux sends
/// or takes (`max_msg_size` of drivers/firmware/arm_scmi/transports/smc.c), to the next power of two.
pub(super) const SIZE: usize = 0x100;

/// The channel is free: the guest may write a message. It clears this before it does.
const CHANNEL_FREE: u32 = 1 << 0;

/// The fields.
const STATUS: usize = 0x04;
const LENGTH: usize = 0x14;
const HEADER: usize = 0x18;
const PAYLOAD: usize = 0x1c;

/// Shared memory.
pub(super) struct Channel([u8; SIZE]);

impl Default for Channel {
    fn default() -> Self {
        let mut channel = Self([0; SIZE]);
        channel.set(STATUS, CHANNEL_FREE);
        channel
    }
}

impl Channel {
    /// The guest reads; behind the end are zeroes.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let there = range(offset, data.len()).and_then(|range| self.0.get(range));
        for (byte, there) in data.iter_mut().zip(there.unwrap_or_default()) {
            *byte = *there;
        }
    }

    /// The guest writes; behind the end that has no effect.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(there) = range(offset, data.len()).and_then(|range| self.0.get_mut(range)) {
            there.copy_from_slice(data);
        }
    }

    /// The message that the guest has written, if it has marked the channel busy for one.
    pub(super) fn take(&self) -> Option<Result<Request, Status>> {
        (self.word(STATUS) & CHANNEL_FREE == 0).then(|| self.request())
    }

    fn request(&self) -> Result<Request, Status> {
        let length = usize::try_from(self.word(LENGTH)).unwrap_or(usize::MAX);
        // It counts the header.
        let payload = length.checked_sub(PAYLOAD - HEADER).ok_or(Status::ProtocolError)?;
        let payload = range(PAYLOAD as u64, payload).and_then(|range| self.0.get(range));
        let (words, rest) = payload.ok_or(Status::ProtocolError)?.as_chunks();
        if !rest.is_empty() {
            return Err(Status::ProtocolError);
        }
        let arguments = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Ok(Request { header: Header(self.word(HEADER)), arguments })
    }

    /// Writes the answer behind the message's own header, by whose token the guest knows it, and gives the
    /// channel back.
    pub(super) fn answer(&mut self, answer: &Answer) {
        let (status, values) = match answer {
            Ok(values) => (Status::Success, values.as_slice()),
            Err(status) => (*status, &[][..]),
        };
        let words = [status.code()].into_iter().chain(values.iter().copied());
        let mut end = PAYLOAD;
        for (offset, word) in (PAYLOAD..SIZE).step_by(size_of::<u32>()).zip(words) {
            self.set(offset, word);
            end = offset + size_of::<u32>();
        }
        self.set(LENGTH, u32::try_from(end - HEADER).unwrap_or_default());
        self.set(STATUS, CHANNEL_FREE);
    }

    fn word(&self, offset: usize) -> u32 {
        let word = self.0.get(offset..).and_then(|from| from.first_chunk());
        word.copied().map_or(0, u32::from_le_bytes)
    }

    fn set(&mut self, offset: usize, value: u32) {
        if let Some(word) = self.0.get_mut(offset..).and_then(|from| from.first_chunk_mut()) {
            *word = value.to_le_bytes();
        }
    }
}

/// So many bytes from `offset` on.
fn range(offset: u64, length: usize) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(length)?)
}
