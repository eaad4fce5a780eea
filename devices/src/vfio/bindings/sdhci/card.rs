//! Commands to the card: SD Physical Layer Simplified Specification, version 8, chapter 4, "Card
//! Identification Mode" and "Detailed Command Description".

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::quiesce::{reset, stop};
use super::registers::{
    ADMA_ADDRESS, ADMA2_AND_POWER, ARGUMENT, BLOCK, BUFFER_READ_READY, CARD_CLOCK_ON, CLOCK,
    CLOCK_ON, CLOCK_STABLE, COMMAND, COMMAND_COMPLETE, CONTROL, DATA_PORT, ERRORS, INHIBIT,
    INT_SIGNAL_ENABLE, INT_STATUS, INT_STATUS_ENABLE, LONGEST_TIMEOUT, PRESENT_STATE, RESET_LINES,
    RESPONSE, TRANSFER_COMPLETE, divided_clock,
};
use crate::vfio::quiesce::poll_timeout;
use crate::vfio::region::{AccessError, RegisterAccess, VfioRegion};
use crate::vfio::selftest::{SelfTest, SelfTestError, StepError};

/// How long a command or a transfer may take, on a busy machine and a model.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a card may take to be ready ("Initialization Command (ACMD41)": 1 s).
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// The clock, in Hz, until a card has been identified, and then.
const IDENTIFICATION_CLOCK: u32 = 400_000;
const TRANSFER_CLOCK: u32 = 25_000_000;

/// The size of a block in bytes.
const BLOCK_BYTES: u32 = 512;
pub(super) const BLOCK_SIZE: usize = BLOCK_BYTES as usize;

/// A command: its index in bits 13:8, and what its response is ("Command Register").
#[derive(Clone, Copy)]
struct Command(u32);

impl Command {
    /// CMD0: all cards are as after power on. No response.
    const GO_IDLE: Self = Self(0);
    /// CMD2: the card says who it is. R2.
    const ALL_SEND_CID: Self = Self(2 << 8 | 0x09);
    /// CMD3: the card says its address. R6.
    const SEND_RELATIVE_ADDRESS: Self = Self(3 << 8 | 0x1a);
    /// CMD7: selects the card. R1b.
    const SELECT: Self = Self(7 << 8 | 0x1b);
    /// CMD8: the supply voltage. R7.
    const SEND_INTERFACE_CONDITION: Self = Self(8 << 8 | 0x1a);
    /// CMD12: ends a transfer; of the type Abort. R1b.
    const STOP: Self = Self(12 << 8 | 0xc0 | 0x1b);
    /// CMD16: the size of blocks. R1.
    const SET_BLOCK_LENGTH: Self = Self(16 << 8 | 0x1a);
    /// CMD18: reads blocks. R1, with data.
    const READ: Self = Self(18 << 8 | 0x20 | 0x1a);
    /// ACMD41: the card says what it can, and whether it is ready. R3.
    const OPERATION_CONDITION: Self = Self(41 << 8 | 0x02);
    /// CMD55: the next one is the application's. R1.
    const APPLICATION: Self = Self(55 << 8 | 0x1a);

    /// What it ends with.
    fn ends_with(self) -> u32 {
        if self.0 & 0x3 == 0x3 { COMMAND_COMPLETE | TRANSFER_COMPLETE } else { COMMAND_COMPLETE }
    }
}

/// Transfer Mode: blocks are counted, several are read, CMD12 follows; with DMA.
const READ_BLOCKS: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5;
const DMA: u32 = 1 << 0;

/// The controller, and what it signalled that nobody has asked for yet.
pub(super) struct Slot<'a> {
    pub(super) test: &'a mut SelfTest,
    pub(super) region: Arc<VfioRegion>,
    specification: u32,
    capabilities: u32,
    signalled: u32,
}

impl<'a> Slot<'a> {
    pub(super) fn new(
        test: &'a mut SelfTest,
        region: Arc<VfioRegion>,
        specification: u32,
        capabilities: u32,
    ) -> Self {
        Self { test, region, specification, capabilities, signalled: 0 }
    }

    /// Turns on power, clock and interrupts, and sends what has no response.
    pub(super) fn power_on(&mut self) -> Result<String, StepError> {
        let region = &*self.region;
        region.write32(CONTROL, ADMA2_AND_POWER)?;
        let statuses = COMMAND_COMPLETE | TRANSFER_COMPLETE | BUFFER_READ_READY | ERRORS;
        region.write32(INT_STATUS_ENABLE, statuses)?;
        region.write32(INT_SIGNAL_ENABLE, statuses)?;
        self.set_clock(IDENTIFICATION_CLOCK)?;
        // 74 clocks and more, and the supply rises ("Power Up").
        sleep(Duration::from_millis(2));
        self.command(Command::GO_IDLE, 0)?;
        Ok("a command raises its interrupt".to_owned())
    }

    fn set_clock(&self, rate: u32) -> Result<(), StepError> {
        let region = &*self.region;
        let divided = divided_clock(self.specification, self.capabilities, rate);
        region.write32(CLOCK, LONGEST_TIMEOUT)?;
        region.write32(CLOCK, LONGEST_TIMEOUT | divided | CLOCK_ON)?;
        let stable = || Ok((region.read32(CLOCK)? & CLOCK_STABLE != 0).then_some(()));
        if poll_timeout(TIMEOUT, stable)?.is_none() {
            return Err("its clock doesn't become stable".into());
        }
        Ok(region.write32(CLOCK, LONGEST_TIMEOUT | divided | CLOCK_ON | CARD_CLOCK_ON)?)
    }

    /// Has the card ready for transfers; `None` if it is none of SD.
    pub(super) fn identify(&mut self) -> Result<Option<String>, StepError> {
        let is_second = self.command(Command::SEND_INTERFACE_CONDITION, 0x1aa).is_ok();
        if !is_second {
            self.command(Command::GO_IDLE, 0)?;
        }
        // 2.7 to 3.6 V; more than 2 GB, where a card of version 2 asks.
        let condition = 0x00ff_8000 | u32::from(is_second) << 30;
        let deadline = Instant::now() + READY_TIMEOUT;
        let ready = loop {
            if self.command(Command::APPLICATION, 0).is_err() {
                return Ok(None);
            }
            let answer = self.command(Command::OPERATION_CONDITION, condition)?;
            if answer >> 31 != 0 {
                break answer;
            }
            if Instant::now() > deadline {
                return Err(format!("the card isn't ready ({answer:#010x})").into());
            }
            sleep(Duration::from_millis(10));
        };
        self.command(Command::ALL_SEND_CID, 0)?;
        let address = self.command(Command::SEND_RELATIVE_ADDRESS, 0)? & 0xffff_0000;
        self.command(Command::SELECT, address)?;
        self.command(Command::SET_BLOCK_LENGTH, BLOCK_BYTES)?;
        self.set_clock(TRANSFER_CLOCK)?;
        let size = if ready >> 30 & 1 != 0 { "more than" } else { "at most" };
        Ok(Some(format!("SD, of {size} 2 GB")))
    }

    /// Reads the card's first blocks word by word.
    pub(super) fn read_by_port(&mut self, blocks: u32) -> Result<Vec<u8>, StepError> {
        self.begin_read(blocks, READ_BLOCKS)?;
        let mut bytes = Vec::new();
        for _ in 0..blocks {
            self.wait(BUFFER_READ_READY)?;
            for _ in 0..BLOCK_SIZE / 4 {
                bytes.extend(self.region.read32(DATA_PORT)?.to_le_bytes());
            }
        }
        self.wait(TRANSFER_COMPLETE)?;
        Ok(bytes)
    }

    /// Reads the card's first blocks as the ADMA descriptors at bus address `descriptors` say; the time
    /// that took.
    pub(super) fn read_by_dma(
        &mut self,
        blocks: u32,
        descriptors: u32,
    ) -> Result<Duration, StepError> {
        self.region.write32(ADMA_ADDRESS, descriptors)?;
        self.region.write32(ADMA_ADDRESS.saturating_add(4), 0)?;
        let started = Instant::now();
        self.begin_read(blocks, READ_BLOCKS | DMA)?;
        self.wait(TRANSFER_COMPLETE)?;
        Ok(started.elapsed())
    }

    fn begin_read(&mut self, blocks: u32, mode: u32) -> Result<(), StepError> {
        self.region.write32(BLOCK, BLOCK_BYTES | blocks << 16)?;
        self.begin(Command::READ, 0, mode)?;
        self.wait(COMMAND_COMPLETE)
    }

    /// What interrupts signalled that nobody waited for: of a transfer that failed, its errors.
    pub(super) fn take_error(&mut self) -> u32 {
        std::mem::take(&mut self.signalled)
    }

    /// Ends a transfer that failed.
    pub(super) fn recover(&mut self) -> Result<(), StepError> {
        reset(&*self.region, RESET_LINES)?;
        self.region.write32(INT_STATUS, u32::MAX)?;
        match self.command(Command::STOP, 0) {
            // The controller has stopped the card already.
            Ok(_) | Err(StepError::Device(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sends a command and waits for its end; the first word of the response.
    fn command(&mut self, command: Command, argument: u32) -> Result<u32, StepError> {
        self.begin(command, argument, 0)?;
        match self.wait(command.ends_with()) {
            Ok(()) => Ok(self.region.read32(RESPONSE)?),
            Err(StepError::Device(failure)) => {
                // The next one begins afresh.
                reset(&*self.region, RESET_LINES)?;
                Err(StepError::Device(format!("command {}: {failure}", command.0 >> 8)))
            }
            Err(error) => Err(error),
        }
    }

    fn begin(&mut self, command: Command, argument: u32, mode: u32) -> Result<(), StepError> {
        let region = &*self.region;
        let idle = || Ok((region.read32(PRESENT_STATE)? & INHIBIT == 0).then_some(()));
        if poll_timeout(TIMEOUT, idle)?.is_none() {
            return Err("a command doesn't end".into());
        }
        self.signalled = 0;
        region.write32(ARGUMENT, argument)?;
        Ok(region.write32(COMMAND, command.0 << 16 | mode)?)
    }

    /// Waits until interrupts have signalled all of `awaited`, and takes these.
    fn wait(&mut self, awaited: u32) -> Result<(), StepError> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            // One may come together with the end.
            if self.signalled & ERRORS != 0 {
                return Err(format!("error (status {:#010x})", self.signalled).into());
            }
            if self.signalled & awaited == awaited {
                self.signalled &= !awaited;
                return Ok(());
            }
            let region = &*self.region;
            let left = deadline.saturating_duration_since(Instant::now());
            let status = self.test.interrupts().wait_for(left, || {
                let status = take_status(region)?;
                Ok((status != 0).then_some(status))
            })?;
            let Some(status) = status else {
                let state = region.read32(PRESENT_STATE)?;
                return Err(format!("no interrupt {awaited:#x} (state {state:#010x})").into());
            };
            self.signalled |= status;
        }
    }

    /// Stops the controller, and takes what it signalled before.
    pub(super) fn stop(&mut self) -> Result<(), SelfTestError> {
        stop(&*self.region, super::STOP_TIMEOUT)?;
        self.test.interrupts().take_all()
    }
}

/// Clears the statuses that raised the interrupt, and returns them.
fn take_status(region: &VfioRegion) -> Result<u32, AccessError> {
    let status = region.read32(INT_STATUS)?;
    region.write32(INT_STATUS, status)?;
    // Read back: the line must have fallen before it is unmasked.
    region.read32(INT_STATUS)?;
    // Bit 15 says that there is an error.
    Ok(status & !(1 << 15))
}
