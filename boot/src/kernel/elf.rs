//! AArch64 ELF programs: bare metal and real-time systems, which are loaded where they are linked to
//! (System V ABI, "Program Header"; ELF for the Arm 64-bit Architecture).

use object::Endianness;
use object::elf::{ET_EXEC, FileHeader64, PN_XNUM, PT_LOAD, ProgramHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
#[cfg(target_arch = "aarch64")]
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::KernelFault;
use crate::file::BootFile;
#[cfg(target_arch = "aarch64")]
use crate::file::{FileError, FileFault};
use crate::format::{EM_AARCH64, Format};
use crate::layout::{Placement, Ram};

/// Where the addresses of an arm64 kernel begin (Documentation/arch/arm64/memory.rst), the physical ones
/// in a vmlinux, too.
const LINUX: u64 = 0xfff0_0000_0000_0000;

/// A program.
#[derive(Debug)]
pub(super) struct Program {
    entry: u64,
    segments: Vec<Segment>,
}

/// What is loaded of a program.
#[derive(Debug)]
struct Segment {
    /// Where it goes (GPA): its physical address.
    gpa: u64,
    /// Where it is in the file.
    offset: u64,
    /// Bytes of it in the file.
    file_size: u64,
    /// Bytes of it in memory: what the file hasn't is zero.
    size: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.gpa.saturating_add(self.size)
    }
}

impl Program {
    /// Reads the headers of an ELF file for AArch64.
    ///
    /// # Errors
    ///
    /// It is no linked little-endian program of 64 bits, has nothing to load, or is cut off.
    pub(super) fn parse(file: &BootFile) -> Result<Self, KernelFault> {
        let cache = ReadCache::new(file.extent(file.size()));
        let damaged = |_| KernelFault::ElfDamaged;
        let header = FileHeader64::<Endianness>::parse(&cache).map_err(damaged)?;
        let endian = header.endian().map_err(damaged)?;
        if endian == Endianness::Big {
            return Err(KernelFault::BigEndian);
        }
        // More than a header can count: no program has as many, and reading them could take long.
        if header.e_phnum(endian) == PN_XNUM {
            return Err(KernelFault::ElfDamaged);
        }
        let headers = header.program_headers(endian, &cache).map_err(damaged)?;
        let loaded = headers.iter().filter(|header| header.p_type(endian) == PT_LOAD);
        let loaded: Vec<_> = loaded.filter(|header| header.p_memsz(endian) > 0).collect();
        if loaded.iter().any(|header| header.p_paddr(endian) >= LINUX) {
            return Err(KernelFault::Foreign(Format::Elf(EM_AARCH64)));
        }
        if header.e_type(endian) != ET_EXEC {
            return Err(KernelFault::ElfNotLinked);
        }
        let segments = loaded.iter().map(|header| segment(header, endian));
        let program = Self {
            entry: entry(header.e_entry(endian), &loaded, endian),
            segments: segments.collect(),
        };
        program.check(file.size())?;
        Ok(program)
    }

    fn check(&self, size: u64) -> Result<(), KernelFault> {
        if self.segments.is_empty() {
            return Err(KernelFault::ElfEmpty);
        }
        let ends = self.segments.iter().map(|part| part.offset.saturating_add(part.file_size));
        let least = ends.max().unwrap_or_default();
        if size < least { Err(KernelFault::Truncated { size, least }) } else { Ok(()) }
    }

    /// Where it lies: nowhere else than where it is linked to.
    ///
    /// # Errors
    ///
    /// There is no RAM.
    pub(super) fn placement(&self, ram: Ram) -> Result<Placement, KernelFault> {
        for part in &self.segments {
            let (start, end) = (part.gpa, part.end());
            if start < ram.base || end > ram.end() {
                return Err(KernelFault::OutsideRam { start, end, ram });
            }
        }
        let load = self.segments.iter().map(|part| part.gpa).min().unwrap_or(ram.base);
        let end = self.segments.iter().map(Segment::end).max().unwrap_or(ram.base);
        Ok(Placement { load, entry: self.entry, end, open_end: false })
    }

    /// Puts it into guest memory, which is zero.
    ///
    /// # Errors
    ///
    /// The file can't be read or has shrunk, or the guest has no memory there.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn load_into<M>(&self, file: &BootFile, memory: &M) -> Result<(), FileError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError>,
    {
        for part in &self.segments {
            let extent = file.extent(part.offset.saturating_add(part.file_size));
            file.load(memory, part.gpa, extent.after(part.offset))?;
        }
        Ok(())
    }

    /// Clears its segments.
    ///
    /// # Errors
    ///
    /// The guest has no memory there.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn clear<M>(&self, file: &BootFile, memory: &M) -> Result<(), FileError>
    where
        M: Bytes<GuestAddress, E = GuestMemoryError>,
    {
        const ZEROES: [u8; 4096] = [0; 4096];
        for part in &self.segments {
            let mut gpa = part.gpa;
            while gpa < part.end() {
                let left = usize::try_from(part.end().saturating_sub(gpa)).unwrap_or(usize::MAX);
                let zeroes = ZEROES.get(..left).unwrap_or(&ZEROES);
                memory
                    .write_slice(zeroes, GuestAddress(gpa))
                    .map_err(|source| file.error(FileFault::Memory { gpa, source }))?;
                gpa = gpa.saturating_add(zeroes.len() as u64);
            }
        }
        Ok(())
    }
}

fn segment(header: &ProgramHeader64<Endianness>, endian: Endianness) -> Segment {
    let size = header.p_memsz(endian);
    Segment {
        gpa: header.p_paddr(endian),
        offset: header.p_offset(endian),
        file_size: header.p_filesz(endian).min(size),
        size,
    }
}

/// The physical address of the entry, which the header has as a virtual one.
fn entry(virt: u64, segments: &[&ProgramHeader64<Endianness>], endian: Endianness) -> u64 {
    let physical = segments.iter().find_map(|header| {
        let offset = virt.checked_sub(header.p_vaddr(endian))?;
        (offset < header.p_memsz(endian)).then(|| header.p_paddr(endian).wrapping_add(offset))
    });
    physical.unwrap_or(virt)
}
