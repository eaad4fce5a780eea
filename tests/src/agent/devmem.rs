//! Physical memory through `/dev/mem`: device registers, and RAM the kernel was told not to use.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use crate::CommandError;

/// The size of this kernel's pages in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: the call takes a number only.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|size| *size != 0).unwrap_or(4096)
}

/// A window onto physical memory, accessed in 32-bit words.
pub(crate) struct Window {
    base: NonNull<u32>,
    /// The first word's offset in the mapping, in words.
    first: usize,
    words: usize,
    mapped: usize,
    _file: File,
}

impl Window {
    /// Maps `length` bytes at physical `address`, both multiples of 4.
    pub(crate) fn open(address: u64, length: u64) -> Result<Self, CommandError> {
        if !address.is_multiple_of(4) || !length.is_multiple_of(4) || length == 0 {
            return Err(format!("{address:#x}+{length:#x} isn't made of 32-bit words").into());
        }
        let start = address - address % page_size();
        let end = address.checked_add(length).ok_or("beyond the end of the address space")?;
        let mapped = usize::try_from(end - start)?;
        let file = OpenOptions::new().read(true).write(true).open("/dev/mem")?;
        // SAFETY: a new shared mapping at an address of the kernel's choice; nothing else of this
        // process is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                i64::try_from(start)?,
            )
        };
        let base = (base != libc::MAP_FAILED).then_some(base.cast()).and_then(NonNull::new);
        let base = base.ok_or_else(|| {
            format!("can't map {address:#x} of /dev/mem: {}", io::Error::last_os_error())
        })?;
        let first = usize::try_from((address - start) / 4)?;
        Ok(Self { base, first, words: usize::try_from(length / 4)?, mapped, _file: file })
    }

    /// The word at byte `offset`.
    pub(crate) fn read(&self, offset: u64) -> Result<u32, CommandError> {
        let index = self.index(offset)?;
        // SAFETY: `index` lies within the mapping, which lives as long as `self`; another agent
        // may change the word, hence volatile.
        Ok(unsafe { self.base.add(index).read_volatile() })
    }

    /// Sets the word at byte `offset`.
    pub(crate) fn write(&self, offset: u64, value: u32) -> Result<(), CommandError> {
        let index = self.index(offset)?;
        // SAFETY: as for reading.
        unsafe { self.base.add(index).write_volatile(value) };
        Ok(())
    }

    /// Reads 1, 2, 4 or 8 bytes at byte `offset` by one access, which is aligned to them.
    pub(crate) fn read_sized(&self, offset: u64, size: u64) -> Result<u64, CommandError> {
        let place = self.place(offset, size)?;
        // SAFETY: all of it lies within the mapping, which lives as long as `self`, and is aligned.
        Ok(unsafe {
            match size {
                1 => place.cast::<u8>().read_volatile().into(),
                2 => place.cast::<u16>().read_volatile().into(),
                4 => place.cast::<u32>().read_volatile().into(),
                _ => place.cast::<u64>().read_volatile(),
            }
        })
    }

    /// Writes the low 1, 2, 4 or 8 bytes of `value` at byte `offset` by one access, which is aligned
    /// to them.
    #[expect(clippy::cast_possible_truncation, reason = "the low bytes are what is wanted")]
    pub(crate) fn write_sized(
        &self,
        offset: u64,
        size: u64,
        value: u64,
    ) -> Result<(), CommandError> {
        let place = self.place(offset, size)?;
        // SAFETY: as for reading.
        unsafe {
            match size {
                1 => place.cast::<u8>().write_volatile(value as u8),
                2 => place.cast::<u16>().write_volatile(value as u16),
                4 => place.cast::<u32>().write_volatile(value as u32),
                _ => place.cast::<u64>().write_volatile(value),
            }
        }
        Ok(())
    }

    /// Where `size` (1, 2, 4 or 8) bytes at `offset` are in this process.
    fn place(&self, offset: u64, size: u64) -> Result<NonNull<u8>, CommandError> {
        let end = offset.checked_add(size).filter(|end| *end <= 4 * self.words as u64);
        if end.is_none() || !matches!(size, 1 | 2 | 4 | 8) || !offset.is_multiple_of(size) {
            return Err(format!("{size} bytes at {offset:#x} are outside the window").into());
        }
        let offset = usize::try_from(offset)?;
        // SAFETY: within the mapping, as checked above.
        Ok(unsafe { self.base.cast::<u8>().add(4 * self.first + offset) })
    }

    /// Reads the window's first two words by one instruction, a pair load.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn read_pair(&self) -> Result<[u32; 2], CommandError> {
        self.index(4)?;
        let (first, second): (u32, u32);
        // SAFETY: the two words at `first` lie within the mapping, which lives as long as `self`.
        unsafe {
            let words = self.base.add(self.first).as_ptr();
            std::arch::asm!(
                "ldp {0:w}, {1:w}, [{2}]",
                out(reg) first, out(reg) second, in(reg) words,
                options(nostack, readonly)
            );
        }
        Ok([first, second])
    }

    /// Reads the window's first two words into a vector register.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn read_vector(&self) -> Result<u64, CommandError> {
        self.index(4)?;
        let both: u64;
        // SAFETY: the two words at `first` lie within the mapping, which lives as long as `self`.
        unsafe {
            let words = self.base.add(self.first).as_ptr();
            std::arch::asm!(
                "ldr {0:d}, [{1}]",
                "fmov {2}, {0:d}",
                out(vreg) _, in(reg) words, out(reg) both,
                options(nostack, readonly)
            );
        }
        Ok(both)
    }

    /// These instructions are Arm's.
    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) fn read_vector(&self) -> Result<u64, CommandError> {
        Err("vector loads of this kind are Arm's".into())
    }

    /// There are pair loads on Arm only.
    #[cfg(not(target_arch = "aarch64"))]
    pub(crate) fn read_pair(&self) -> Result<[u32; 2], CommandError> {
        Err("pair loads are Arm's".into())
    }

    fn index(&self, offset: u64) -> Result<usize, CommandError> {
        let word = usize::try_from(offset / 4)?;
        if !offset.is_multiple_of(4) || word >= self.words {
            return Err(format!("offset {offset:#x} is outside the window").into());
        }
        Ok(self.first + word)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made by `open`, and nobody has a pointer into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// Fills physical memory with a byte.
pub(crate) fn fill(address: u64, length: u64, byte: u8) -> Result<(), CommandError> {
    let window = Window::open(address, length)?;
    (0..length / 4).try_for_each(|word| window.write(word * 4, u32::from_ne_bytes([byte; 4])))
}

/// Fails unless all of that physical memory is `byte`.
pub(crate) fn check(address: u64, length: u64, byte: u8) -> Result<(), CommandError> {
    let window = Window::open(address, length)?;
    for word in 0..length / 4 {
        let value = window.read(word * 4)?;
        if value != u32::from_ne_bytes([byte; 4]) {
            let at = address + word * 4;
            return Err(format!("{at:#x} holds {value:#010x}, not bytes of {byte:#04x}").into());
        }
    }
    Ok(())
}

/// Prints two words that are read by one instruction.
pub(crate) fn pair(address: u64) -> Result<(), CommandError> {
    let [first, second] = Window::open(address, 8)?.read_pair()?;
    println!("{first:#010x} {second:#010x}");
    Ok(())
}

/// Prints two words that are read into a vector register.
pub(crate) fn vector(address: u64) -> Result<(), CommandError> {
    println!("{:#018x}", Window::open(address, 8)?.read_vector()?);
    Ok(())
}
