//! QEMU's educational PCI device (QEMU, docs/specs/edu.rst), which copies between its own memory and its
//! host's: what it is kept from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use crate::vfio::region::{RegisterAccess, VfioRegion};
use crate::vfio::selftest::{Isolation, SelfTest, SelfTestError};

/// Its vendor and device.
const IDENTITY: [u8; 4] = [0x34, 0x12, 0xe8, 0x11];

/// `PCI_COMMAND`, and its bits for memory and bus mastering.
const CONFIG_COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: u16 = 0b110;

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

/// The verdict on a function's isolation, if it is such a device.
///
/// # Errors
///
/// The host refuses something without which nothing can be tested.
#[cold]
pub(super) fn isolation(test: &mut SelfTest) -> Result<Option<Isolation>, SelfTestError> {
    let calls = test.calls().clone();
    let Ok(config) = calls.region_info(VFIO_PCI_CONFIG_REGION_INDEX) else { return Ok(None) };
    let mut identity = [0; 4];
    let mut command = [0; 2];
    let read = calls.read(&config, 0, &mut identity);
    let read = read.and_then(|()| calls.read(&config, CONFIG_COMMAND, &mut command));
    let Some(registers) = test.regions().first().cloned() else { return Ok(None) };
    if read.is_err() || identity != IDENTITY {
        return Ok(None);
    }
    let on = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
    if calls.write(&config, CONFIG_COMMAND, &on.to_le_bytes()).is_err() {
        return Ok(None);
    }
    let verdict = judge(test, &Edu { registers });
    // Nobody should find it turned on; what it does is over.
    let _ = calls.write(&config, CONFIG_COMMAND, &command);
    test.unmap_all();
    verdict.map(Some)
}

fn judge(test: &mut SelfTest, edu: &Edu) -> Result<Isolation, SelfTestError> {
    let (memory, iova) = test.dma_buffer(2 * SIZE)?;
    let canary = test.canary()?;
    let (ours, copied) = (bus_address(iova)?, bus_address(iova.saturating_add(SIZE as u64))?);
    let address = bus_address(canary.address)?;
    let pattern = vec![0x5a; SIZE];
    memory.write(0, &pattern);
    // Where it may, it copies: what comes after means something.
    let works = |what: &str| -> Result<(), String> {
        memory.write(SIZE, &vec![0; SIZE]);
        edu.copy(ours, MEMORY, START)?;
        edu.copy(MEMORY, copied, START | TO_HOST)?;
        let copied = memory.read(SIZE, SIZE) == pattern;
        copied.then_some(()).ok_or_else(|| format!("its DMA doesn't work {what}"))
    };
    let read = works("within its memory").and_then(|()| {
        edu.copy(address, MEMORY, START)?;
        edu.copy(MEMORY, copied, START | TO_HOST)?;
        let found = memory.read(SIZE, SIZE);
        if canary.begins_with(&found) { Err("it has read the canary".to_owned()) } else { Ok(()) }
    });
    let write = edu.copy(MEMORY, address, START | TO_HOST).and_then(|()| works("any more"));
    let told = |outcome: Result<(), String>, what: &str| outcome.map(|()| what.to_owned());
    Ok(canary.judge(
        told(read, "what it got isn't the canary"),
        told(write, "done; its DMA works again"),
        false,
    ))
}

struct Edu {
    registers: Arc<VfioRegion>,
}

impl Edu {
    /// Copies, and waits for the end.
    fn copy(&self, from: u32, to: u32, command: u32) -> Result<(), String> {
        let count = u32::try_from(SIZE).unwrap_or_default();
        let set = |(register, value)| self.registers.write32(register, value);
        [(SOURCE, from), (DESTINATION, to), (COUNT, count), (COMMAND, command)]
            .into_iter()
            .try_for_each(set)
            .map_err(|error| error.to_string())?;
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            let command = self.registers.read32(COMMAND).map_err(|error| error.to_string())?;
            if command & START == 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err("a copy doesn't end".to_owned())
    }
}

/// Its registers are set by 32 bits.
fn bus_address(iova: u64) -> Result<u32, SelfTestError> {
    u32::try_from(iova).map_err(|_| SelfTestError::NoIova(iova))
}
