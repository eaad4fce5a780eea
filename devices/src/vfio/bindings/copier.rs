//! Functions that copy from anywhere to anywhere on their bus, when told to: what one is kept from.

use crate::vfio::selftest::{Isolation, SelfTest, SelfTestError, StepError};

/// How much is copied, in bytes.
pub(super) const SIZE: usize = 1024;

/// How a copy ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Copied {
    /// As far as the device knows, all was copied.
    Done,
    /// The device says that it failed: what it says.
    Failed(String),
}

/// The verdict on the isolation of a device that `copy` has copy [`SIZE`] bytes from one bus address to
/// another.
///
/// # Errors
///
/// The host refuses something without which nothing can be tested.
#[cold]
pub(super) fn isolation(
    test: &mut SelfTest,
    copy: &dyn Fn(u64, u64) -> Result<Copied, StepError>,
) -> Result<Isolation, SelfTestError> {
    let (memory, source) = test.dma_buffer(2 * SIZE)?;
    let destination = source.saturating_add(SIZE as u64);
    let canary = test.canary(&[])?;
    let pattern = vec![0x5a; SIZE];
    memory.write(0, &pattern);
    // Where it may, it copies: what comes after means something.
    let works = |what: &str| -> Result<(), StepError> {
        memory.write(SIZE, &vec![0; SIZE]);
        let end = copy(source, destination)?;
        if end == Copied::Done && memory.read(SIZE, SIZE) == pattern {
            return Ok(());
        }
        Err(format!("its DMA doesn't work {what} ({end:?})").into())
    };
    let mut device_tells = true;
    let mut told = |end: Copied, otherwise: &str| match end {
        Copied::Failed(told) => told,
        Copied::Done => {
            device_tells = false;
            otherwise.to_owned()
        }
    };
    let read = works("within its memory").and_then(|()| {
        let end = copy(canary.address, destination)?;
        if canary.begins_with(&memory.read(SIZE, SIZE)) {
            return Err("it has read the canary".into());
        }
        Ok(told(end, "what it got isn't the canary"))
    });
    let write = copy(source, canary.address).and_then(|end| works("any more").map(|()| end));
    let write = write.map(|end| told(end, "done") + "; its DMA works again");
    canary.judge(read, write, device_tells)
}
