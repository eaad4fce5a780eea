//! The server.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_INFO_AUTOMASKED, VFIO_IRQ_INFO_EVENTFD, VFIO_IRQ_INFO_MASKABLE,
    VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX,
    VFIO_PCI_BAR4_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
    vfio_region_sparse_mmap_area,
};
use vfio_user::{
    DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion, SparseArea,
};

use super::config::{self, Config};
use super::dma::Memory;
use super::proxy::{self, DmaRequester};
use super::{DONE, FAULT, IDENTITY, MEMORY_SIZE, REGISTERS_SIZE, TABLE_SIZE, VECTORS, register};
use crate::CommandError;

/// Serves the device to one client after the other; prints a line once clients can come. With
/// `messages` it reads and writes their memory as libvfio-user does, on a connection of its own
/// unless that is to be the `single` one.
pub(crate) fn serve(path: &Path, behaviour: Option<&str>) -> Result<(), CommandError> {
    let mut device = Device::new()?;
    let server = |path: &Path| Server::new(path, true, irqs(), regions(&device.memory));
    let server = match behaviour {
        None => server(path)?,
        Some(behaviour @ ("messages" | "single")) => {
            let inner = path.with_extension("inner");
            let server = server(&inner)?;
            let requester = DmaRequester::new(behaviour == "single");
            proxy::start(path, &inner, &requester)?;
            device.dma = Memory::by_messages(requester);
            server
        }
        Some(other) => return Err(format!("{other:?} is no behaviour of a server").into()),
    };
    println!("serving {}", path.display());
    loop {
        if let Err(error) = server.run(&mut device) {
            eprintln!("the client is lost: {error}");
        }
        device.forget_client();
    }
}

fn irqs() -> Vec<IrqInfo> {
    let irq = |index| {
        let (flags, count) = match index {
            VFIO_PCI_INTX_IRQ_INDEX => (VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED, 1),
            VFIO_PCI_MSIX_IRQ_INDEX => (0, u32::from(VECTORS)),
            _ => (0, 0),
        };
        IrqInfo { index, flags: flags | VFIO_IRQ_INFO_EVENTFD, count }
    };
    (0..VFIO_PCI_NUM_IRQS).map(irq).collect()
}

fn regions(memory: &File) -> Vec<ServerRegion> {
    let region = |index| {
        let size = match index {
            VFIO_PCI_BAR0_REGION_INDEX => REGISTERS_SIZE,
            VFIO_PCI_BAR2_REGION_INDEX => MEMORY_SIZE,
            VFIO_PCI_BAR4_REGION_INDEX => TABLE_SIZE,
            VFIO_PCI_CONFIG_REGION_INDEX => config::SIZE as u64,
            _ => 0,
        };
        let mut flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        let (mut sparse_areas, mut mmap_fd) = (Vec::new(), None);
        if index == VFIO_PCI_BAR2_REGION_INDEX {
            flags |= VFIO_REGION_INFO_FLAG_MMAP;
            // The crate passes the descriptor only along with areas.
            let area = vfio_region_sparse_mmap_area { offset: 0, size: MEMORY_SIZE };
            sparse_areas.push(SparseArea { area });
            mmap_fd = Some(memory.as_raw_fd());
        }
        let argsz = u32::try_from(size_of::<vfio_region_info>()).unwrap_or(0);
        let region_info = vfio_region_info { argsz, flags, index, size, ..Default::default() };
        ServerRegion { region_info, sparse_areas, mmap_fd }
    };
    (0..VFIO_PCI_NUM_REGIONS).map(region).collect()
}

/// The device.
struct Device {
    config: Config,
    registers: Registers,
    /// What BAR 2 shows.
    memory: File,
    table: [u8; 4096],
    dma: Memory,
    line: Line,
    vectors: [Option<File>; VECTORS as usize],
}

#[derive(Default)]
struct Registers {
    scratch: u32,
    source: u64,
    destination: u64,
    length: u32,
    status: u32,
    count: u32,
}

/// The interrupt line.
#[derive(Default)]
struct Line {
    asserted: bool,
    masked: bool,
    /// By the command register.
    off: bool,
    eventfd: Option<File>,
}

impl Line {
    /// Signals the line if it is asserted and neither off nor masked, which masks it.
    fn signal(&mut self) {
        if let Some(eventfd) =
            self.eventfd.as_ref().filter(|_| self.asserted && !self.masked && !self.off)
        {
            self.masked = true;
            signal(eventfd);
        }
    }
}

fn signal(mut eventfd: &File) {
    // It is a client's affair if its counter is full.
    let _ = eventfd.write_all(&1u64.to_ne_bytes());
}

impl Device {
    fn new() -> io::Result<Self> {
        // SAFETY: the name is a C string.
        let fd = unsafe { libc::memfd_create(c"bar2".as_ptr(), libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made for us.
        let memory = unsafe { File::from_raw_fd(fd) };
        memory.set_len(MEMORY_SIZE)?;
        let (registers, dma, line, vectors) = Default::default();
        Ok(Self { config: Config::new(), registers, memory, table: [0; 4096], dma, line, vectors })
    }

    fn forget_client(&mut self) {
        self.dma.clear();
        self.line = Line::default();
        self.vectors = Default::default();
    }

    fn read_register(&self, offset: u64) -> u32 {
        let registers = &self.registers;
        let half =
            |value: u64, shift: u32| u32::try_from(value >> shift & 0xffff_ffff).unwrap_or(0);
        match offset {
            register::IDENTITY => IDENTITY,
            register::SCRATCH => registers.scratch,
            register::SOURCE => half(registers.source, 0),
            0x0c => half(registers.source, 32),
            register::DESTINATION => half(registers.destination, 0),
            0x14 => half(registers.destination, 32),
            register::LENGTH => registers.length,
            register::STATUS => registers.status,
            register::LINE => u32::from(self.line.asserted),
            register::COUNT => registers.count,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let registers = &mut self.registers;
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            register::SCRATCH => registers.scratch = value,
            register::SOURCE => registers.source = low(registers.source),
            0x0c => registers.source = high(registers.source),
            register::DESTINATION => registers.destination = low(registers.destination),
            0x14 => registers.destination = high(registers.destination),
            register::LENGTH => registers.length = value,
            register::GO => self.copy(value),
            register::LINE => self.line.asserted = false,
            register::WRONG => go_wrong(value),
            _ => {}
        }
    }

    fn copy(&mut self, vector: u32) {
        let registers = &mut self.registers;
        let copied = self.dma.copy(registers.source, registers.destination, registers.length);
        registers.status = if copied.is_some() { DONE } else { FAULT };
        registers.count = registers.count.wrapping_add(1);
        if !self.config.has_msix_on() {
            self.line.asserted = true;
            self.line.signal();
        } else if let Some(Some(eventfd)) =
            usize::try_from(vector).ok().and_then(|vector| self.vectors.get(vector))
        {
            signal(eventfd);
        }
    }
}

/// Ways to go wrong, as written to the register: 1 dies, 2 stops, 3 sends nonsense.
fn go_wrong(way: u32) {
    match way {
        1 => std::process::abort(),
        // SAFETY: raise takes a number.
        2 => drop(unsafe { libc::raise(libc::SIGSTOP) }),
        _ => {
            for fd in 3..64 {
                send_nonsense(fd);
            }
        }
    }
}

/// Sends a message that makes no sense, if this is a connection.
fn send_nonsense(fd: RawFd) {
    // A reply to a command that nobody sent, of 4 GiB.
    let nonsense = [0xffu8; 16];
    // SAFETY: the buffer is as long as said; a descriptor that isn't a connection is refused.
    unsafe { libc::send(fd, nonsense.as_ptr().cast(), nonsense.len(), libc::MSG_NOSIGNAL) };
}

fn refused() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// The bytes of `table` at an offset.
fn part(table: &mut [u8], offset: u64, length: usize) -> io::Result<&mut [u8]> {
    let start = usize::try_from(offset).map_err(|_| refused())?;
    let end = start.checked_add(length).ok_or_else(refused)?;
    table.get_mut(start..end).ok_or_else(refused)
}

impl ServerBackend for Device {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => {
                // Of up to two registers.
                let first = offset & !3;
                let both = [first, first + 4].map(|at| self.read_register(at).to_le_bytes());
                let skip = usize::try_from(offset & 3).unwrap_or(0);
                let bytes = both.as_flattened().get(skip..skip + data.len()).ok_or_else(refused)?;
                data.copy_from_slice(bytes);
            }
            VFIO_PCI_BAR2_REGION_INDEX => self.memory.read_exact_at(data, offset)?,
            VFIO_PCI_BAR4_REGION_INDEX => {
                data.copy_from_slice(part(&mut self.table, offset, data.len())?);
            }
            VFIO_PCI_CONFIG_REGION_INDEX => {
                let offset = usize::try_from(offset).map_err(|_| refused())?;
                self.config.show_line(self.line.asserted);
                self.config.read(offset, data).ok_or_else(refused)?;
            }
            _ => return Err(refused()),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        match region {
            VFIO_PCI_BAR0_REGION_INDEX => {
                for (at, word) in (offset..).step_by(4).zip(data.chunks(4)) {
                    let word = word.try_into().map_err(|_| refused())?;
                    self.write_register(at, u32::from_le_bytes(word));
                }
            }
            VFIO_PCI_BAR2_REGION_INDEX => {
                if offset.saturating_add(data.len() as u64) > MEMORY_SIZE {
                    return Err(refused());
                }
                self.memory.write_all_at(data, offset)?;
            }
            VFIO_PCI_BAR4_REGION_INDEX => {
                part(&mut self.table, offset, data.len())?.copy_from_slice(data);
            }
            VFIO_PCI_CONFIG_REGION_INDEX => {
                let offset = usize::try_from(offset).map_err(|_| refused())?;
                self.config.write(offset, data).ok_or_else(refused)?;
                self.line.off = self.config.has_line_off();
                self.line.signal();
            }
            _ => return Err(refused()),
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        // The crate's server has no way to ask for memory by messages.
        self.dma.map(&file.ok_or_else(refused)?, offset, address, size)
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, size: u64) -> io::Result<()> {
        self.dma.unmap(address, size)
    }

    fn reset(&mut self) -> io::Result<()> {
        self.registers = Registers::default();
        (self.line.asserted, self.line.off) = (false, false);
        self.config = Config::new();
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: u32,
        flags: u32,
        start: u32,
        count: u32,
        files: Vec<File>,
    ) -> io::Result<()> {
        let with_eventfds = flags & VFIO_IRQ_SET_DATA_EVENTFD != 0;
        match index {
            VFIO_PCI_INTX_IRQ_INDEX if flags & VFIO_IRQ_SET_ACTION_TRIGGER != 0 => {
                self.line.eventfd = files.into_iter().next();
                self.line.signal();
            }
            VFIO_PCI_INTX_IRQ_INDEX if flags & VFIO_IRQ_SET_ACTION_MASK != 0 => {
                self.line.masked = true;
            }
            VFIO_PCI_INTX_IRQ_INDEX if flags & VFIO_IRQ_SET_ACTION_UNMASK != 0 => {
                self.line.masked = false;
                self.line.signal();
            }
            VFIO_PCI_MSIX_IRQ_INDEX if with_eventfds => {
                let first = usize::try_from(start).map_err(|_| refused())?;
                let count = usize::try_from(count).map_err(|_| refused())?;
                let vectors = self.vectors.get_mut(first..).and_then(|v| v.get_mut(..count));
                let mut files = files.into_iter();
                vectors.ok_or_else(refused)?.iter_mut().for_each(|v| *v = files.next());
            }
            VFIO_PCI_MSIX_IRQ_INDEX if count == 0 => self.vectors = Default::default(),
            _ => return Err(refused()),
        }
        Ok(())
    }
}
