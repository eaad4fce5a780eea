//! A bank of flash at its place in the guest.

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use vm_memory::{
    Bytes, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, MmapRegion,
};

use crate::bus::{Action, MemorySlots, SharedDevice};
use crate::ratelimit::LogLimit;
use crate::sync::lock;

use super::chips::{Cells, Chips};
use super::variables::VariableFile;
use super::writer::Writer;
use super::{BANK_SIZE, BANK_WIDTH, BLOCK_SIZE};

/// What is read of a file at a time, and stays untouched memory if it is all zeroes.
const CHUNK: usize = 64 << 10;

/// A bank of flash. What isn't put into it is zero.
pub struct Bank {
    memory: Arc<GuestRegionMmap>,
    state: Mutex<State>,
    writer: Option<Writer>,
    log: LogLimit,
}

struct State {
    chips: Chips,
    slot: Option<Slot>,
}

/// The memory slot by which it is read like memory.
struct Slot {
    slots: Arc<dyn MemorySlots>,
    mapped: bool,
}

impl Bank {
    /// A bank at `gpa` with this content, which can't be changed.
    ///
    /// # Errors
    ///
    /// It can't be read, or the host has no room.
    pub fn read_only(gpa: u64, mut content: impl Read) -> io::Result<Self> {
        Self::new(gpa, true, &mut content, None)
    }

    /// A bank at `gpa` that can be changed, with the content of this file, which it is kept in; without
    /// one it is gone with the bank.
    ///
    /// # Errors
    ///
    /// The file can't be read, or the host has no room.
    pub fn writable(gpa: u64, file: Option<VariableFile>) -> io::Result<Self> {
        let file = file.map(Arc::new);
        match &file {
            Some(opened) => Self::new(gpa, false, &mut opened.content(), file.clone()),
            None => Self::new(gpa, false, &mut io::empty(), None),
        }
    }

    fn new(
        gpa: u64,
        locked: bool,
        content: &mut dyn Read,
        file: Option<Arc<VariableFile>>,
    ) -> io::Result<Self> {
        let size = usize::try_from(BANK_SIZE).map_err(io::Error::other)?;
        let region = MmapRegion::new(size).map_err(io::Error::other)?;
        let memory =
            GuestRegionMmap::new(region, GuestAddress(gpa)).ok_or(io::ErrorKind::InvalidInput)?;
        fill(&memory, content)?;
        let memory = Arc::new(memory);
        let state = Mutex::new(State { chips: Chips::new(locked), slot: None });
        let writer = file.map(|file| Writer::new(file, memory.clone()));
        Ok(Self { memory, state, writer, log: LogLimit::new("flash") })
    }

    /// What is in it, at its place in the guest.
    pub fn memory(&self) -> &Arc<GuestRegionMmap> {
        &self.memory
    }

    /// Where it is in the guest (GPA).
    pub fn range(&self) -> Range<u64> {
        let base = self.memory.start_addr().0;
        base..base.saturating_add(self.memory.len())
    }

    /// Has it read like memory by a memory slot, whenever it is. The guest may run until it is dropped.
    ///
    /// # Errors
    ///
    /// The hypervisor's refusal.
    pub fn map_through(&self, slots: Arc<dyn MemorySlots>) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.slot = Some(Slot { slots, mapped: false });
        self.update(&mut state)
    }

    /// Starts the thread that writes to the file, if it has one.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn start(&self) -> io::Result<()> {
        self.writer.as_ref().map_or(Ok(()), Writer::start)
    }

    /// Waits until all that was changed is in the file and on the host's disk, once the guest runs no
    /// more.
    ///
    /// # Errors
    ///
    /// It can't be written.
    pub fn finish(&self) -> Result<(), super::VariableFileError> {
        self.writer.as_ref().map_or(Ok(()), Writer::finish)
    }

    /// Maps it if it is read like memory, and unmaps it if not.
    fn update(&self, state: &mut State) -> io::Result<()> {
        let wanted = state.chips.is_array();
        let Some(slot) = state.slot.as_mut().filter(|slot| slot.mapped != wanted) else {
            return Ok(());
        };
        let (gpa, size) = (self.memory.start_addr().0, self.memory.len());
        if wanted {
            let host = NonNull::new(self.memory.as_ptr()).ok_or(io::ErrorKind::InvalidInput)?;
            // SAFETY: the memory stays mapped for as long as this bank lives, which unmaps it from the
            // guest when it is dropped.
            unsafe { slot.slots.map_read_only(gpa, host, size)? };
        } else {
            slot.slots.unmap(gpa, size)?;
        }
        slot.mapped = wanted;
        Ok(())
    }

    /// Reads what is in it.
    fn read_array(&self, offset: u64, data: &mut [u8]) {
        if self.memory.read_slice(data, MemoryRegionAddress(offset)).is_err() {
            data.fill(0);
        }
    }

    /// Tells the writer of what has changed.
    fn changed(&self, offset: u64, size: u64) {
        if let Some(writer) = &self.writer {
            writer.note(offset, size);
        }
    }
}

impl SharedDevice for Bank {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        if state.chips.is_array() {
            self.read_array(offset, data);
        } else {
            state.chips.read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let mut state = lock(&self.state);
        let width = BANK_WIDTH as usize;
        for (at, data) in (offset..).step_by(width).zip(data.chunks(width)) {
            state.chips.write(at, data, &mut &*self);
            if let Err(e) = self.update(&mut state) {
                let gpa = self.memory.start_addr().0;
                self.log.error(format_args!("the bank at {gpa:#x} can't be switched: {e}"));
            }
        }
        Action::None
    }

    /// The chips read as memory again, and hold what they held.
    fn reset(&self) {
        let mut state = lock(&self.state);
        state.chips.reset();
        if let Err(e) = self.update(&mut state) {
            let gpa = self.memory.start_addr().0;
            self.log.error(format_args!("the bank at {gpa:#x} can't be switched: {e}"));
        }
    }
}

impl Cells for &Bank {
    fn program(&mut self, offset: u64, data: &[u8]) {
        let mut there = vec![0; data.len()];
        self.read_array(offset, &mut there);
        there.iter_mut().zip(data).for_each(|(there, new)| *there &= new);
        // The bus has checked that it is inside.
        let _ = self.memory.write_slice(&there, MemoryRegionAddress(offset));
        self.changed(offset, data.len() as u64);
    }

    fn erase(&mut self, offset: u64) {
        let block = vec![0xff; usize::try_from(BLOCK_SIZE).unwrap_or_default()];
        let _ = self.memory.write_slice(&block, MemoryRegionAddress(offset));
        self.changed(offset, BLOCK_SIZE);
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(slot) = state.slot.take().filter(|slot| slot.mapped) {
            let _ = slot.slots.unmap(self.memory.start_addr().0, self.memory.len());
        }
    }
}

impl fmt::Debug for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bank").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// Puts content into memory, from its start on; what is zero there stays so.
fn fill(memory: &GuestRegionMmap, content: &mut dyn Read) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0_u64;
    loop {
        let count = match content.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let read = chunk.get(..count).unwrap_or_default();
        if read.iter().any(|byte| *byte != 0) {
            memory.write_slice(read, MemoryRegionAddress(offset)).map_err(io::Error::other)?;
        }
        offset = offset.saturating_add(count as u64);
    }
}
