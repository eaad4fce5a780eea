//! A PL330's registers ("CoreLink DMA-330 TRM", ARM DDI 0424, chapter 3), driven by hand.

use std::time::{Duration, Instant};

use crate::devmem::Window;
use crate::microcode;
use crate::{CommandError, number32};

const INTEN: u64 = 0x020;
const INT_EVENT_RIS: u64 = 0x024;
const INTMIS: u64 = 0x028;
const INTCLR: u64 = 0x02c;
const DSR: u64 = 0x000;
const FTRD: u64 = 0x038;
const FTR0: u64 = 0x040;
const CSR0: u64 = 0x100;
const DBGSTATUS: u64 = 0xd00;
const DBGCMD: u64 = 0xd04;
const DBGINST0: u64 = 0xd08;
const DBGINST1: u64 = 0xd0c;

/// Channels and events a PL330 has at most ("Features").
const CHANNELS: u32 = 8;
const EVENTS: u32 = 32;

/// The low four bits of DSR and CSRn: what the thread does.
const STATES: [&str; 16] = [
    "stopped",
    "executing",
    "cache miss",
    "updating PC",
    "waiting for event",
    "at barrier",
    "6",
    "waiting for peripheral",
    "killing",
    "completing",
    "10",
    "11",
    "12",
    "13",
    "faulting completing",
    "faulting",
];
const STOPPED: u32 = 0;
const FAULTING: u32 = 15;

/// Instructions that the debug registers take.
const DMAKILL: u32 = 0x01;
/// Bit 0 makes a channel thread execute it, bits 8 to 10 say which.
const KILL_CHANNEL: u32 = DMAKILL << 16 | 1;
const DMASEV: u32 = 0x34;
/// DMAGO with the ns bit: the channel starts in the non-secure state.
const DMAGO_NON_SECURE: u32 = 0xa2;

/// How long a copy may take. The model's clock may run far slower than ours.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs one command on the controller at physical address `base`.
pub(crate) fn run(base: u64, command: &[&str]) -> Result<(), CommandError> {
    let dma = Pl330 { registers: Window::open(base, 0x1000)? };
    match command {
        ["status"] => dma.status(),
        ["raise", event] => dma.raise(number32(event)?),
        ["clear"] => dma.clear(),
        ["copy", channel, at, from, to, length] => {
            let channel = dma.start(channel, at, [from, to, length], None)?;
            dma.wait(channel)
        }
        ["copy-on", event, channel, at, from, to, length] => {
            let event = checked(number32(event)?, EVENTS, "event")?;
            dma.start(channel, at, [from, to, length], Some(event)).map(|_| ())
        }
        ["signal", event] => dma.signal(checked(number32(event)?, EVENTS, "event")?),
        ["kill", channel] => dma.kill(checked(number32(channel)?, CHANNELS, "channel")?),
        _ => Err("no such command; see agent without arguments".into()),
    }
}

struct Pl330 {
    registers: Window,
}

impl Pl330 {
    fn status(&self) -> Result<(), CommandError> {
        let read = |register| self.registers.read(register);
        println!("manager: {} fault {:#x}", state(read(DSR)?), read(FTRD)?);
        for channel in 0..CHANNELS {
            let status = read(csr(channel))?;
            let fault = read(FTR0 + u64::from(channel) * 4)?;
            println!("channel {channel}: {} fault {fault:#x}", state(status));
        }
        println!(
            "events: raw {:#x} enabled {:#x} interrupts {:#x}",
            read(INT_EVENT_RIS)?,
            read(INTEN)?,
            read(INTMIS)?
        );
        Ok(())
    }

    fn raise(&self, event: u32) -> Result<(), CommandError> {
        checked(event, EVENTS, "event")?;
        let enabled = self.registers.read(INTEN)?;
        self.registers.write(INTEN, enabled | 1 << event)?;
        self.signal(event)?;
        let pending = self.registers.read(INTMIS)?;
        println!("pending {pending:#x}");
        if pending & 1 << event == 0 {
            return Err(format!("event {event} raised no interrupt").into());
        }
        Ok(())
    }

    /// Makes an event happen.
    fn signal(&self, event: u32) -> Result<(), CommandError> {
        // The manager thread executes DMASEV: debug instructions have bytes 0 and 1 in the high
        // half of DBGINST0 ("Debug Instruction-0 Register").
        self.debug(DMASEV << 16 | (event << 3) << 24, 0)
    }

    fn clear(&self) -> Result<(), CommandError> {
        // In this order: only an enabled interrupt can be cleared.
        self.registers.write(INTCLR, u32::MAX)?;
        self.registers.write(INTEN, 0)
    }

    /// Places a program and starts it on a channel, which is returned.
    fn start(
        &self,
        channel: &str,
        at: &str,
        [from, to, length]: [&&str; 3],
        whenever: Option<u32>,
    ) -> Result<u32, CommandError> {
        let channel = checked(number32(channel)?, CHANNELS, "channel")?;
        let (at, length) = (number32(at)?, number32(length)?);
        let bursts = length / microcode::BURST;
        let last = bursts
            .checked_sub(1)
            .and_then(|last| u8::try_from(last).ok())
            .filter(|_| length.is_multiple_of(microcode::BURST))
            .ok_or("a copy has 64 to 16384 bytes, a multiple of 64")?;
        let whenever = whenever.map(u8::try_from).transpose()?;
        let program = microcode::copy(number32(from)?, number32(to)?, last, whenever);
        place(at, &program)?;
        self.debug(DMAGO_NON_SECURE << 16 | channel << 24, at)?;
        Ok(channel)
    }

    /// Waits until a channel has stopped.
    fn wait(&self, channel: u32) -> Result<(), CommandError> {
        let end = Instant::now() + TIMEOUT;
        loop {
            let status = self.registers.read(csr(channel))? & 0xf;
            let fault = self.registers.read(FTR0 + u64::from(channel) * 4)?;
            match status {
                STOPPED => {
                    println!("channel {channel}: stopped");
                    return Ok(());
                }
                FAULTING => {
                    // Only this gets it out of there, for the next program.
                    self.debug(KILL_CHANNEL | channel << 8, 0)?;
                    return Err(format!("channel {channel} faulted: {fault:#x}").into());
                }
                _ if Instant::now() > end => {
                    return Err(format!("channel {channel} is still {}", state(status)).into());
                }
                _ => std::thread::yield_now(),
            }
        }
    }

    fn kill(&self, channel: u32) -> Result<(), CommandError> {
        self.debug(KILL_CHANNEL | channel << 8, 0)?;
        self.wait(channel)
    }

    /// Has the debug registers execute an instruction; their order matters.
    fn debug(&self, first: u32, second: u32) -> Result<(), CommandError> {
        let end = Instant::now() + TIMEOUT;
        while self.registers.read(DBGSTATUS)? & 1 != 0 {
            if Instant::now() > end {
                return Err("the debug registers stay busy".into());
            }
        }
        self.registers.write(DBGINST0, first)?;
        self.registers.write(DBGINST1, second)?;
        self.registers.write(DBGCMD, 0)
    }
}

/// Writes a program to physical memory, padded to whole words.
fn place(at: u32, program: &[u8]) -> Result<(), CommandError> {
    let length = u64::try_from(program.len().next_multiple_of(4))?;
    let memory = Window::open(u64::from(at), length)?;
    for (offset, bytes) in (0..).step_by(4).zip(program.chunks(4)) {
        let mut word = [0; 4];
        word.iter_mut().zip(bytes).for_each(|(to, &from)| *to = from);
        memory.write(offset, u32::from_le_bytes(word))?;
    }
    Ok(())
}

fn checked(number: u32, count: u32, what: &str) -> Result<u32, CommandError> {
    if number < count { Ok(number) } else { Err(format!("there is no {what} {number}").into()) }
}

fn csr(channel: u32) -> u64 {
    CSR0 + u64::from(channel) * 8
}

fn state(status: u32) -> &'static str {
    usize::try_from(status & 0xf).ok().and_then(|index| STATES.get(index)).copied().unwrap_or("?")
}
