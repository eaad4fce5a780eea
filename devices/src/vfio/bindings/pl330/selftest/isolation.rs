//! What a channel is kept from: a read and a write of memory that isn't mapped for the controller.

use super::{Driver, StepError};
use crate::vfio::selftest::{Isolation, SelfTestError};

/// Where in source and destination the wild transfers are, in bytes, and their size.
const AT: usize = 8192;
const SIZE: usize = 64;

impl Driver<'_> {
    /// Has channel 0 read a canary and write to it: it must fault, and nothing may be transferred.
    pub(super) fn isolation(&mut self) -> Result<Isolation, SelfTestError> {
        let canary = self.test.canary()?;
        let address =
            u32::try_from(canary.address).map_err(|_| SelfTestError::NoIova(canary.address))?;
        self.buffers.clear(AT, AT, SIZE);
        let destination = self.buffers.destination(AT);
        let read = told(self.abort(address, destination))?.and_then(|told| {
            let is_clear = self.buffers.is_clear(AT, SIZE);
            if is_clear { Ok(told) } else { Err("it has copied what it read".to_owned()) }
        });
        let write = told(self.abort(self.buffers.source(AT), address))?;
        Ok(canary.judge(read, write, true))
    }
}

/// What the device told of a transfer, or that it didn't fail.
fn told(step: Result<String, StepError>) -> Result<Result<String, String>, SelfTestError> {
    match step {
        Ok(told) => Ok(Ok(told)),
        Err(StepError::Device(failure)) => Ok(Err(failure)),
        Err(StepError::Host(error)) => Err(error),
    }
}
