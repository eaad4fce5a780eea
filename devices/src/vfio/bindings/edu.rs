//! QEMU's educational PCI device (QEMU, docs/specs/edu.rst), which copies between its own memory and its
//! host's: what it is kept from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::{RegisterAccess, VfioRegion};
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

/// Its own memory, on its own bus, and how much is copied, in bytes.
const MEMORY: u32 = 0x4_0000;
const SIZE: usize = 1024;

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
    let edu = Edu { registers };
    let (memory, iova) = test.dma_buffer(2 * SIZE)?;
    let canary = test.canary(&[])?;
    let (ours, copied) = (bus_address(iova)?, bus_address(iova.saturating_add(SIZE as u64))?);
    let address = canary.address32()?;
    let pattern = vec![0x5a; SIZE];
    memory.write(0, &pattern);
    // Where it may, it copies: what comes after means something.
    let works = |what: &str| -> Result<(), StepError> {
        memory.write(SIZE, &vec![0; SIZE]);
        edu.copy(ours, MEMORY, START)?;
        edu.copy(MEMORY, copied, START | TO_HOST)?;
        let copied = memory.read(SIZE, SIZE) == pattern;
        copied.then_some(()).ok_or_else(|| format!("its DMA doesn't work {what}").into())
    };
    let read = works("within its memory").and_then(|()| {
        edu.copy(address, MEMORY, START)?;
        edu.copy(MEMORY, copied, START | TO_HOST)?;
        let found = memory.read(SIZE, SIZE);
        if canary.begins_with(&found) {
            return Err("it has read the canary".into());
        }
        Ok("what it got isn't the canary".to_owned())
    });
    let write = edu.copy(MEMORY, address, START | TO_HOST).and_then(|()| works("any more"));
    let write = write.map(|()| "done; its DMA works again".to_owned());
    canary.judge(read, write, false)
}

struct Edu {
    registers: Arc<VfioRegion>,
}

impl Edu {
    /// Copies, and waits for the end.
    fn copy(&self, from: u32, to: u32, command: u32) -> Result<(), StepError> {
        let count = u32::try_from(SIZE).unwrap_or_default();
        let set = |(register, value)| self.registers.write32(register, value);
        [(SOURCE, from), (DESTINATION, to), (COUNT, count), (COMMAND, command)]
            .into_iter()
            .try_for_each(set)?;
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if self.registers.read32(COMMAND)? & START == 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("a copy doesn't end".into())
    }
}

/// Its registers are set by 32 bits.
fn bus_address(iova: u64) -> Result<u32, SelfTestError> {
    u32::try_from(iova).map_err(|_| SelfTestError::NoIova(iova))
}
