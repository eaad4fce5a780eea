//! What a channel is kept from: a read and a write of memory that isn't mapped for the controller.

use super::Driver;
use crate::vfio::selftest::{Isolation, SelfTestError};

/// Where in source and destination the wild transfers are, in bytes, and their size.
const AT: usize = 8192;
const SIZE: usize = 64;

impl Driver<'_> {
    /// Has channel 0 read a canary and write to it: it must fault, and nothing may be transferred.
    pub(super) fn isolation(&mut self) -> Result<Isolation, SelfTestError> {
        let canary = self.test.canary(&[])?;
        let address = canary.address32()?;
        self.buffers.clear(AT, AT, SIZE);
        let destination = self.buffers.destination(AT);
        let read = self.abort(address, destination).and_then(|told| {
            let is_clear = self.buffers.is_clear(AT, SIZE);
            if is_clear { Ok(told) } else { Err("it has copied what it read".into()) }
        });
        let write = self.abort(self.buffers.source(AT), address);
        canary.judge(read, write, true)
    }
}
