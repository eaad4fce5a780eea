//! QEMU's educational PCI device (QEMU, docs/specs/edu.rst), which copies between its own memory and its
//! host's: what it is kept from.

use std::time::{Duration, Instant};

use super::copier::{self, Copied, SIZE};
use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::RegisterAccess;
use crate::vfio::selftest::{Isolation, SelfTest, SelfTestError, StepError};

/// Its vendor and device.
pub(super) const IDENTITY: [u8; 4] = [0x34, 0x12, 0xe8, 0x11];

/// Registers of its only region.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;

/// Commands: start, which reads as 1 until it has copied; to the host.
const START: u32 = 0x01;
const TO_HOST: u32 = 0x02;

/// Its own memory, on its own bus.
const MEMORY: u32 = 0x4_0000;

/// How long a copy may take: it takes 100 ms by definition.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The verdict on its isolation.
///
/// # Errors
///
/// The host refuses something without which nothing can be tested.
#[cold]
pub(super) fn isolation(test: &mut SelfTest) -> Result<Isolation, SelfTestError> {
    let registers = test.regions().first().cloned().ok_or(QuiesceError::NoRegion(0))?;
    copier::isolation(test, &|from, to| {
        // Its registers are set by 32 bits.
        let address = |iova| u32::try_from(iova).map_err(|_| SelfTestError::NoIova(iova));
        copy(&*registers, address(from)?, MEMORY, START)?;
        copy(&*registers, MEMORY, address(to)?, START | TO_HOST)?;
        Ok(Copied::Done)
    })
}

/// Copies, and waits for the end.
fn copy(edu: &dyn RegisterAccess, from: u32, to: u32, command: u32) -> Result<(), StepError> {
    let count = u32::try_from(SIZE).unwrap_or_default();
    let set = |(register, value)| edu.write32(register, value);
    [(SOURCE, from), (DESTINATION, to), (COUNT, count), (COMMAND, command)]
        .into_iter()
        .try_for_each(set)?;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        if edu.read32(COMMAND)? & START == 0 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("a copy doesn't end".into())
}
