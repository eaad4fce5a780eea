//! The commands of a bank's two chips, which get them at once (Intel, "3 Volt StrataFlash Memory", Order
//! Number 290667, "Command Definitions"). Every operation is done when its last command has come.

use super::query;
use super::{BLOCK_SIZE, BUFFER_SIZE};

// Commands, in the low byte of each chip's word.
/// Read like memory.
const READ_ARRAY: u8 = 0xff;
/// Program a word, by either.
const PROGRAM: u8 = 0x40;
const PROGRAM_ALTERNATE: u8 = 0x10;
/// Erase a block, once [`CONFIRM`] follows.
const ERASE: u8 = 0x20;
/// Clear the errors in the status.
const CLEAR_STATUS: u8 = 0x50;
/// Lock or unlock a block, as the next command says.
const LOCK: u8 = 0x60;
/// Read the status.
const READ_STATUS: u8 = 0x70;
/// Read identification and locks.
const READ_ID: u8 = 0x90;
/// Read the query table.
const QUERY: u8 = 0x98;
/// Fill the write buffer and program it.
const BUFFER: u8 = 0xe8;
/// Go ahead.
const CONFIRM: u8 = 0xd0;

// Bits of the status.
const READY: u8 = 1 << 7;
const ERASE_ERROR: u8 = 1 << 5;
const PROGRAM_ERROR: u8 = 1 << 4;
const LOCKED: u8 = 1 << 1;
/// What follows a command isn't what must.
const SEQUENCE_ERROR: u8 = ERASE_ERROR | PROGRAM_ERROR;

/// Intel.
const MANUFACTURER: u8 = 0x89;
/// Its chip of 16 bits, as other models of this bank say.
const DEVICE: u8 = 0x18;

/// The words that a write buffer has at most, counted from 0 as drivers do.
const MAX_COUNT: u16 = 0x3ff;
const _: () = assert!((MAX_COUNT as usize + 1) * 4 == BUFFER_SIZE);

/// What a bank's bytes are, while it doesn't matter how they are read.
pub(super) trait Cells {
    /// Clears the bits that are clear in `data`, from this offset in the bank on.
    fn program(&mut self, offset: u64, data: &[u8]);

    /// Sets all bits of the block at this offset in the bank.
    fn erase(&mut self, offset: u64);
}

/// What a read answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Array,
    Status,
    Id,
    Query,
}

/// What the next write is.
#[derive(Debug)]
enum Expected {
    Command,
    Word,
    EraseConfirm { block: u64 },
    LockKind,
    Count,
    Data { left: u16, buffer: Option<Buffer> },
    BufferConfirm { buffer: Buffer },
}

/// A write buffer that is being filled.
#[derive(Debug)]
struct Buffer {
    /// Where it belongs in the bank: a multiple of its size, by where its first data goes.
    offset: u64,
    data: Box<[u8; BUFFER_SIZE]>,
}

impl Buffer {
    /// One that changes nothing, for data at this offset.
    fn of(offset: u64) -> Self {
        let size = BUFFER_SIZE as u64;
        Self { offset: offset - offset % size, data: Box::new([0xff; BUFFER_SIZE]) }
    }

    /// Where these data go, if they belong to it.
    fn place(&mut self, offset: u64, size: usize) -> Option<&mut [u8]> {
        let at = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.data.get_mut(at..at.checked_add(size)?)
    }
}

/// Both chips of a bank.
#[derive(Debug)]
pub(super) struct Chips {
    mode: Mode,
    expected: Expected,
    /// The errors since they were cleared.
    errors: u8,
    /// All blocks are locked, and stay so.
    locked: bool,
}

impl Chips {
    /// Chips that are read like memory; all blocks are `locked` for good, or none is.
    pub(super) fn new(locked: bool) -> Self {
        Self { mode: Mode::Array, expected: Expected::Command, errors: 0, locked }
    }

    /// As their reset pin does: a command that hasn't been carried out is forgotten.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.locked);
    }

    /// Whether they are read like memory.
    pub(super) fn is_array(&self) -> bool {
        self.mode == Mode::Array
    }

    /// The guest reads while they aren't read like memory.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            // Both chips answer the same: the low byte of each one's word.
            *byte = if at.is_multiple_of(2) { self.answer(at / 4) } else { 0 };
        }
    }

    /// What a chip answers at this word of it.
    fn answer(&self, word: u64) -> u8 {
        const WORDS_OF_BLOCK: u64 = BLOCK_SIZE / 4;
        match self.mode {
            Mode::Array => 0,
            Mode::Status => READY | self.errors,
            Mode::Query => query::answer(word),
            Mode::Id => match word % WORDS_OF_BLOCK {
                0 => MANUFACTURER,
                1 => DEVICE,
                2 => u8::from(self.locked),
                _ => 0,
            },
        }
    }

    /// The guest writes at most the 4 bytes that the chips have side by side.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], cells: &mut impl Cells) {
        let command = data.first().copied().unwrap_or_default();
        match std::mem::replace(&mut self.expected, Expected::Command) {
            Expected::Command => self.command(offset, command),
            Expected::Word => {
                if self.may_change(PROGRAM_ERROR) {
                    cells.program(offset, data);
                }
            }
            Expected::EraseConfirm { block } => {
                if self.is_confirmed(command) && self.may_change(ERASE_ERROR) {
                    cells.erase(block);
                }
            }
            // Blocks that can be written are never locked.
            Expected::LockKind if command == READ_ARRAY => self.mode = Mode::Array,
            Expected::LockKind => {}
            Expected::Count => {
                let high = data.get(1).copied().unwrap_or_default();
                match u16::from_le_bytes([command, high]) {
                    left @ ..=MAX_COUNT => self.expected = Expected::Data { left, buffer: None },
                    _ => self.errors |= SEQUENCE_ERROR,
                }
            }
            Expected::Data { left, buffer } => {
                self.fill(offset, data, left, buffer.unwrap_or_else(|| Buffer::of(offset)));
            }
            Expected::BufferConfirm { buffer } => {
                if self.is_confirmed(command) && self.may_change(PROGRAM_ERROR) {
                    cells.program(buffer.offset, &*buffer.data);
                }
            }
        }
    }

    /// The first write of a command, which also tells what is read from here on.
    fn command(&mut self, offset: u64, command: u8) {
        self.mode = match command {
            READ_STATUS | PROGRAM | PROGRAM_ALTERNATE | ERASE | LOCK | BUFFER => Mode::Status,
            READ_ID => Mode::Id,
            QUERY => Mode::Query,
            // What there isn't, and the reset of other command sets, has them read like memory, as on
            // QEMU's `virt`.
            _ => Mode::Array,
        };
        match command {
            PROGRAM | PROGRAM_ALTERNATE => self.expected = Expected::Word,
            ERASE => {
                self.expected = Expected::EraseConfirm { block: offset - offset % BLOCK_SIZE };
            }
            LOCK => self.expected = Expected::LockKind,
            BUFFER => self.expected = Expected::Count,
            CLEAR_STATUS => self.errors = 0,
            _ => {}
        }
    }

    /// Puts data into the write buffer; so many more follow.
    fn fill(&mut self, offset: u64, data: &[u8], left: u16, mut buffer: Buffer) {
        let Some(place) = buffer.place(offset, data.len()) else {
            self.errors |= SEQUENCE_ERROR;
            return;
        };
        place.copy_from_slice(data);
        self.expected = match left.checked_sub(1) {
            Some(left) => Expected::Data { left, buffer: Some(buffer) },
            None => Expected::BufferConfirm { buffer },
        };
    }

    /// Whether an operation is to go ahead.
    fn is_confirmed(&mut self, command: u8) -> bool {
        match command {
            CONFIRM => return true,
            READ_ARRAY => self.mode = Mode::Array,
            _ => self.errors |= SEQUENCE_ERROR,
        }
        false
    }

    /// Whether a block may be changed; `error` is what the status has if not.
    fn may_change(&mut self, error: u8) -> bool {
        if self.locked {
            self.errors |= error | LOCKED;
        }
        !self.locked
    }
}
