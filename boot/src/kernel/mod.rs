//! What the guest runs first: a Linux kernel, an ELF program, or a raw binary.

mod drivers;
mod elf;
mod error;
mod image;
mod linux;
mod unpack;

use std::fmt;
use std::path::Path;

#[cfg(target_arch = "aarch64")]
use vm_memory::GuestMemoryBackend;

pub use drivers::ScmiDrivers;
pub use error::{KernelError, KernelFault};
pub use unpack::UnpackError;

#[cfg(target_arch = "aarch64")]
use crate::file::FileError;
use crate::file::{BootFile, Role};
use crate::format::{EM_AARCH64, Format, START_SIZE};
use crate::layout::{Placement, Ram};
use elf::Program;
use linux::Linux;

/// What a kernel file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packaging {
    /// `Image`
    Image,
    /// `Image.gz`
    Gzip,
    /// `vmlinuz.efi` with a gzip payload
    ZbootGzip,
    /// `vmlinuz.efi` with a zstd payload
    ZbootZstd,
    /// A program that is linked to its addresses
    Elf,
    /// Nothing but what is loaded
    Raw,
}

impl fmt::Display for Packaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Image => "uncompressed",
            Self::Gzip => "gzip'ed",
            Self::ZbootGzip => "an EFI zboot image compressed by gzip",
            Self::ZbootZstd => "an EFI zboot image compressed by zstd",
            Self::Elf => "an ELF program",
            Self::Raw => "a raw binary",
        })
    }
}

/// A kernel that can be booted, in its open file.
#[derive(Debug)]
pub struct Kernel {
    file: BootFile,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Linux(Linux),
    Elf(Program),
    /// A binary that is loaded and entered at this guest physical address.
    Raw(u64),
}

impl Kernel {
    /// Opens the kernel at `path` and reads its header; a compressed one is decompressed. With an address
    /// (GPA) it is a raw binary that is loaded and entered there, whatever it looks like.
    ///
    /// # Errors
    ///
    /// The file can't be read, isn't a little-endian arm64 kernel or program (the error says what it is),
    /// or is cut off or damaged.
    pub fn open(path: &Path, at: Option<u64>) -> Result<Self, KernelError> {
        let file = BootFile::open(Role::Kernel, path)?;
        if let Some(at) = at {
            return Ok(Self { file, content: Content::Raw(at) });
        }
        let mut buffer = [0; START_SIZE];
        let start = file.read_start(&mut buffer)?;
        let content = match Format::of(start) {
            Format::Elf(EM_AARCH64) => Program::parse(&file).map(Content::Elf),
            _ => Linux::parse(&file, start).map(Content::Linux),
        };
        match content {
            Ok(content) => Ok(Self { file, content }),
            Err(fault) => Err(KernelError::Content { path: path.to_owned(), fault }),
        }
    }

    /// The file's path as it was given.
    pub fn name(&self) -> String {
        self.file.path().display().to_string()
    }

    /// What the file is.
    pub fn packaging(&self) -> Packaging {
        match &self.content {
            Content::Linux(linux) => linux.packaging(),
            Content::Elf(_) => Packaging::Elf,
            Content::Raw(_) => Packaging::Raw,
        }
    }

    /// Whether it is a Linux kernel.
    pub fn is_linux(&self) -> bool {
        matches!(self.content, Content::Linux(_))
    }

    /// The page size in bytes that the kernel was built for, where its header says.
    pub fn page_size(&self) -> Option<u64> {
        match &self.content {
            Content::Linux(linux) => linux.page_size(),
            _ => None,
        }
    }

    /// The drivers of SCMI that are built into a Linux kernel, as far as its image shows.
    #[cold]
    pub fn scmi_drivers(&self) -> ScmiDrivers {
        match &self.content {
            Content::Linux(linux) => linux.scmi_drivers(&self.file),
            _ => ScmiDrivers::default(),
        }
    }

    /// How many bytes its image has, and how many it takes in memory, where it has less than three
    /// quarters: the rest is its BSS, or was cut off.
    pub fn shortage(&self) -> Option<(u64, u64)> {
        match &self.content {
            Content::Linux(linux) => linux.shortage(&self.file),
            _ => None,
        }
    }

    /// Where it lies in RAM of `ram_size` bytes from guest physical address `ram_base` on.
    ///
    /// # Errors
    ///
    /// It doesn't fit with its BSS, or isn't made for RAM that is there.
    pub fn placement(&self, ram_base: u64, ram_size: u64) -> Result<Placement, KernelError> {
        let ram = Ram { base: ram_base, size: ram_size };
        let placement = match &self.content {
            Content::Linux(linux) => linux.placement(&self.file, ram),
            Content::Elf(program) => program.placement(ram),
            Content::Raw(at) => raw(*at, self.file.size(), ram),
        };
        let path = self.file.path();
        placement.map_err(|fault| KernelError::Content { path: path.to_owned(), fault })
    }

    /// Puts it into guest memory, which is zero, from guest physical address `load` on, which is where
    /// its [placement](Self::placement) has it.
    ///
    /// # Errors
    ///
    /// The file can't be read or has shrunk, or the guest has no memory there.
    #[cfg(target_arch = "aarch64")]
    pub fn load_into<M: GuestMemoryBackend>(&self, memory: &M, load: u64) -> Result<(), FileError> {
        match &self.content {
            Content::Linux(linux) => linux.load_into(&self.file, memory, load),
            Content::Elf(program) => program.load_into(&self.file, memory),
            Content::Raw(_) => {
                let all = self.file.extent(self.file.size());
                self.file.load(memory, load, all)
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
impl Kernel {
    /// Clears what has to be zero before it is [loaded](Self::load_into) into memory that isn't, and doesn't
    /// clear by itself: a program's part that its file doesn't have.
    ///
    /// # Errors
    ///
    /// The guest has no memory there.
    #[cold]
    pub fn clear<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), FileError> {
        match &self.content {
            Content::Elf(program) => program.clear(&self.file, memory),
            Content::Linux(_) | Content::Raw(_) => Ok(()),
        }
    }
}

/// Where a raw binary lies.
fn raw(at: u64, size: u64, ram: Ram) -> Result<Placement, KernelFault> {
    let end = at.saturating_add(size);
    if at < ram.base || end > ram.end() {
        return Err(KernelFault::OutsideRam { start: at, end, ram });
    }
    Ok(Placement { load: at, entry: at, end, open_end: true })
}
