//! NVM Express controllers (NVM Express Base Specification 2.0): what one is kept from. It gets a single
//! command at a time, which asks who it is; nothing is written to it.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::{RegisterAccess, VfioRegion};
use crate::vfio::register_table::offset_of;
use crate::vfio::selftest::{DmaBuffer, Isolation, SelfTest, SelfTestError, StepError};

/// The class of such functions: storage, non-volatile memory, NVM Express (NVM Express over PCIe
/// Transport Specification, "Class Code").
pub(super) const CLASS: [u8; 3] = [0x01, 0x08, 0x02];

/// Its registers ("Controller Properties"); doorbells (NVM Express over PCIe Transport Specification 1.0,
/// 3.1.2) as they are with CAP.DSTRD = 0, which all but emulated controllers have.
pub(super) const REGISTERS: &str = "\
000/64 CAP MQES=15:0 CQR=16 AMS=18:17 TO=31:24 DSTRD=35:32 NSSRS=36 CSS=44:37 MPSMIN=51:48 MPSMAX=55:52
008 VS TER=7:0 MNR=15:8 MJR=31:16
00c INTMS
010 INTMC
014 CC EN=0 CSS=6:4 MPS=10:7 AMS=13:11 SHN=15:14 IOSQES=19:16 IOCQES=23:20
01c CSTS RDY=0 CFS=1 SHST=3:2 NSSRO=4 PP=5
020 NSSR
024 AQA ASQS=11:0 ACQS=27:16
028/64 ASQ
030/64 ACQ
038 CMBLOC
03c CMBSZ
1000*64+8 SQTDBL
1004*64+8 CQHDBL
";

// Offsets in bytes.
/// Capabilities: the time to become ready, in bits 31:24, in units of 500 ms; above, in bits 35:32 of the
/// whole, the distance of doorbells.
const CAPABILITIES: u64 = offset_of(REGISTERS, "CAP");
/// Masks interrupts.
const INTERRUPT_MASK: u64 = offset_of(REGISTERS, "INTMS");
/// Configuration; enabled; entries of 64 and of 16 bytes.
const CONFIGURATION: u64 = offset_of(REGISTERS, "CC");
const ENABLED: u32 = 1 | 6 << 16 | 4 << 20;
/// Status: ready, failed.
const STATUS: u64 = offset_of(REGISTERS, "CSTS");
const READY: u32 = 1 << 0;
const FAILED: u32 = 1 << 1;
/// The sizes of the queues for administration, less 1: two entries each.
const QUEUE_SIZES: u64 = offset_of(REGISTERS, "AQA");
const TWO_EACH: u32 = 1 | 1 << 16;
/// Where submissions are, and completions: two words each.
const SUBMISSIONS: u64 = offset_of(REGISTERS, "ASQ");
const COMPLETIONS: u64 = offset_of(REGISTERS, "ACQ");
/// How many submissions there are.
const DOORBELL: u64 = offset_of(REGISTERS, "SQTDBL");

// What the memory holds, by offset in bytes: a page for each.
const PAGE: usize = 4096;
const COMPLETION_QUEUE: usize = PAGE;
const ANSWER: usize = 2 * PAGE;
const SIZE: usize = 3 * PAGE;

/// How long a command may take; one that fails may never end.
const TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// The unit in which a controller says how long it takes to become ready.
const READY_UNIT: Duration = Duration::from_millis(500);

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// With a status: code and type of code; 0 is success ("Status Field").
    Completed(u16),
    /// The controller reports that it has failed.
    ControllerFailed,
    /// Not at all.
    NoAnswer,
}

/// The verdict on its isolation.
///
/// # Errors
///
/// The host refuses something without which nothing can be tested.
#[cold]
pub(super) fn isolation(test: &mut SelfTest) -> Result<Isolation, SelfTestError> {
    let registers = test.regions().first().cloned().ok_or(QuiesceError::NoRegion(0))?;
    let (memory, iova) = test.dma_buffer(SIZE)?;
    let nvme = Nvme { registers, memory, iova };
    // A submission: where it is read, it is carried out.
    let canary = test.canary(&identify(nvme.address(ANSWER)))?;
    let read = nvme.works().and_then(|()| nvme.wild_read(canary.address));
    let write = nvme.works().and_then(|()| nvme.command(nvme.iova, canary.address));
    // Some don't notice that an answer was lost: the canary and the host's log decide.
    let tells = |end: &Result<End, _>| !matches!(end, Ok(End::NoAnswer | End::Completed(0)));
    let device_tells = tells(&read) && tells(&write);
    let told = |end: End, what: &str| match end {
        End::Completed(0) => format!("{what}: not noticed; the next command works"),
        End::Completed(status) => format!("{what}: status {status:#x}; the next command works"),
        End::ControllerFailed => format!("{what}: the controller failed; reset, it works"),
        End::NoAnswer => format!("{what}: no answer; reset, it works"),
    };
    let again = |end| nvme.works().map(|()| end);
    let read = read.and_then(again).map(|end| told(end, "a submission"));
    let write = write.and_then(again).map(|end| told(end, "an answer"));
    let stopped = nvme.stop();
    let verdict =
        canary.judge(read, write.and_then(|told| stopped.map(|()| told)), device_tells)?;
    Ok(verdict)
}

struct Nvme {
    registers: Arc<VfioRegion>,
    memory: Arc<DmaBuffer>,
    iova: u64,
}

impl Nvme {
    /// Checks that a command is carried out whose parts are all in its memory.
    fn works(&self) -> Result<(), StepError> {
        self.memory.write(ANSWER, &[0; PAGE]);
        let end = self.command(self.iova, self.address(ANSWER))?;
        let answered = self.memory.read(ANSWER, PAGE).iter().any(|byte| *byte != 0);
        if end == End::Completed(0) && answered {
            return Ok(());
        }
        Err(format!("a command within its memory: {end:?}").into())
    }

    /// Has it read submissions at `address`.
    fn wild_read(&self, address: u64) -> Result<End, StepError> {
        match self.command(address, self.address(ANSWER))? {
            End::Completed(status) => {
                Err(format!("it has read the canary, as a command (status {status:#x})").into())
            }
            end => Ok(end),
        }
    }

    /// Has a reset controller carry out the only command in `submissions`, whose answer goes to `answer`.
    fn command(&self, submissions: u64, answer: u64) -> Result<End, StepError> {
        self.stop()?;
        self.memory.write(0, &identify(answer));
        self.memory.write(COMPLETION_QUEUE, &[0; PAGE]);
        let set = |register, value| self.registers.write32(register, value);
        set(INTERRUPT_MASK, u32::MAX)?;
        set(QUEUE_SIZES, TWO_EACH)?;
        let addresses = [(SUBMISSIONS, submissions), (COMPLETIONS, self.address(COMPLETION_QUEUE))];
        for (register, address) in addresses {
            // The lower half, and the upper one.
            let [low, high] = [address & 0xffff_ffff, address >> 32];
            set(register, u32::try_from(low).unwrap_or_default())?;
            set(register.saturating_add(4), u32::try_from(high).unwrap_or_default())?;
        }
        set(CONFIGURATION, ENABLED)?;
        self.wait(READY)?;
        set(DOORBELL, 1)?;

        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            // Its last two bytes ("Completion Queue Entry"): a phase, which is 1 the first time, and status.
            let entry = self.memory.read(COMPLETION_QUEUE, 16);
            if let [.., low, high] = *entry.as_slice()
                && low & 1 != 0
            {
                return Ok(End::Completed(u16::from_le_bytes([low, high]) >> 1 & 0x7ff));
            }
            if self.registers.read32(STATUS)? & FAILED != 0 {
                return Ok(End::ControllerFailed);
            }
            sleep(POLL_INTERVAL);
        }
        Ok(End::NoAnswer)
    }

    /// Resets it ("Controller Level Reset").
    fn stop(&self) -> Result<(), StepError> {
        self.registers.write32(CONFIGURATION, 0)?;
        self.wait(0)
    }

    /// Waits until it is ready, or isn't any more.
    fn wait(&self, ready: u32) -> Result<(), StepError> {
        let units = self.registers.read32(CAPABILITIES)? >> 24;
        let deadline = Instant::now() + READY_UNIT.saturating_mul(units.max(1));
        loop {
            let status = self.registers.read32(STATUS)?;
            if status & READY == ready {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!("it doesn't become ready, or stop (status {status:#x})").into());
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// The bus address of what is at an offset of its memory.
    fn address(&self, offset: usize) -> u64 {
        self.iova.saturating_add(offset as u64)
    }
}

/// The command Identify for the controller itself, with its answer at a bus address ("Submission Queue
/// Entry", "Identify command").
fn identify(answer: u64) -> [u8; 64] {
    let mut command = [0; 64];
    command[0] = 0x06;
    command[24..32].copy_from_slice(&answer.to_le_bytes());
    command[40] = 0x01;
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_submission_asks_who_the_controller_is() {
        let command = identify(0x1234_5678_9abc);
        assert_eq!((command[0], command[40]), (6, 1));
        assert_eq!(command[24..32], [0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12, 0, 0]);
        assert_eq!(command.iter().filter(|byte| **byte != 0).count(), 8);
    }
}
