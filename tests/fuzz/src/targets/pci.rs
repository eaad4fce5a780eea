//! Functions behind the host bridge, which several vCPUs access at a time: configuration space, BARs
//! and MSI-X of an assigned function, on bus 0 or behind a root port, whose configuration space may be
//! anything, and of virtio's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread;

use arbitrary::{Result, Unstructured};
use devices::bus::Bus;
use devices::irq::Spi;
use devices::pci::{Apertures, Bdf, Function, HostBridge, InterruptPin, Intx, RootPort, Slot};
use devices::vfio::pci::{Attachment, PciFunction, PciOptions};
use devices::vfio::uapi::{
    DeviceCalls, DeviceInfo, IoctlError, IrqAction, IrqInfo, Mapping, RegionInfo,
};
use vmm_sys_util::eventfd::EventFd;

use super::virtio_pci;
use crate::driver::ram;
use crate::file::MemoryFile;
use crate::host::{NoInterrupts, Routes, Slots};

/// Where the bridge's parts are (GPA).
const ECAM: u64 = 0x3f00_0000;
const MEMORY32: u64 = 0x2000_0000;
const MEMORY64: u64 = 0x80_0000_0000;
const IO: u64 = 0x3eff_0000;

/// The index of configuration space among VFIO's regions, and how far apart they lie in the file.
const CONFIG: u32 = 7;
const REGIONS: u32 = 9;
const APART: u64 = 1 << 16;

/// In the first byte: the assigned function is behind a root port.
const BEHIND_A_PORT: u8 = 0x80;

/// The most threads.
const MAX_VCPUS: usize = 3;

/// A function as the bridge has it.
type Shared = Arc<Mutex<dyn Function>>;

/// A function of the host: its regions are a file, and configuration space begins as the input has it.
#[derive(Debug)]
struct Calls {
    file: File,
    sizes: [u64; 7],
    vectors: [u8; 3],
    enabled: Mutex<BTreeMap<u32, usize>>,
}

impl Calls {
    fn new(u: &mut Unstructured<'_>) -> Result<Self> {
        let mut sizes = [0; 7];
        for size in &mut sizes {
            let shift = u.arbitrary::<u8>()?;
            *size = if shift & 0x80 == 0 { 0 } else { 1 << (4 + shift % 13) };
        }
        let vectors = u.arbitrary::<[u8; 3]>()?;
        let file = MemoryFile::new(&[]).into_file();
        file.set_len(u64::from(REGIONS) * APART).unwrap();
        let config = APART * u64::from(CONFIG);
        // What makes it a function with capabilities, and what may spoil that.
        let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, config + at).unwrap();
        put(0, &[0x86, 0x80, 0x34, 0x12]);
        put(0x06, &[0x10]);
        put(0x34, &[0x40]);
        put(0x3d, &[u.arbitrary::<u8>()? & 7]);
        let mut at = 0x40_u64;
        for _ in 0..u.arbitrary::<u8>()? % 8 {
            let (id, length) = (u.arbitrary::<u8>()? % 0x18, u.arbitrary::<u8>()? & 31);
            let length = u64::from(length.max(2));
            let behind = (at + length).next_multiple_of(4) & 0xff;
            let next = if u.ratio(1, 16)? { u.arbitrary()? } else { behind };
            put(at, &[id, next.to_le_bytes()[0]]);
            let body = u.bytes(usize::try_from(length - 2).unwrap_or_default().min(u.len()))?;
            put(at + 2, body);
            at = behind;
        }
        for bar in 0..6 {
            put(0x10 + 4 * bar, &[u.arbitrary::<u8>()? & 15]);
        }
        // The first extended capabilities.
        put(0x100, u.bytes(16.min(u.len()))?);
        Ok(Self { file, sizes, vectors, enabled: Mutex::default() })
    }

    fn refused(request: &'static str) -> IoctlError {
        IoctlError { request, source: io::Error::from_raw_os_error(libc::EINVAL) }
    }
}

impl DeviceCalls for Calls {
    fn info(&self) -> std::result::Result<DeviceInfo, IoctlError> {
        let (regions, irqs) = (REGIONS, 5);
        Ok(DeviceInfo { pci: true, reset: true, regions, irqs, ..DeviceInfo::default() })
    }

    fn region_info(&self, index: u32) -> std::result::Result<RegionInfo, IoctlError> {
        let size = match index {
            CONFIG => 4096,
            8 => 0,
            _ => *self.sizes.get(index as usize).ok_or_else(|| Self::refused("REGION_INFO"))?,
        };
        let mappable = index < 6 && size >= 4096;
        let offset = u64::from(index) * APART;
        let (readable, writable) = (true, true);
        Ok(RegionInfo { index, size, offset, readable, writable, mappable, ..Default::default() })
    }

    fn irq_info(&self, index: u32) -> std::result::Result<IrqInfo, IoctlError> {
        let count = match index {
            0..=2 => self.vectors[index as usize],
            3 | 4 => 1,
            _ => return Err(Self::refused("IRQ_INFO")),
        };
        let level = index == 0;
        Ok(IrqInfo { count: count.into(), eventfd: true, maskable: level, automasked: level })
    }

    fn set_irq(&self, _: u32, _: IrqAction<'_>) -> std::result::Result<(), IoctlError> {
        Ok(())
    }

    fn set_vectors(
        &self,
        index: u32,
        start: u32,
        triggers: &[Option<&EventFd>],
    ) -> std::result::Result<(), IoctlError> {
        let end = (start as usize).saturating_add(triggers.len());
        let limit = self.vectors.get(index as usize).copied().unwrap_or_default();
        if end > limit.into() {
            return Err(Self::refused("SET_IRQS"));
        }
        self.enabled.lock().unwrap().insert(index, end);
        Ok(())
    }

    fn reset(&self) -> std::result::Result<(), IoctlError> {
        Ok(())
    }

    fn read(&self, region: &RegionInfo, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        assert!(end <= region.size, "beyond the region's end: {offset:#x}");
        self.file.read_exact_at(data, region.offset + offset)
    }

    fn write(&self, region: &RegionInfo, offset: u64, data: &[u8]) -> io::Result<()> {
        let end = offset + data.len() as u64;
        assert!(end <= region.size, "beyond the region's end: {offset:#x}");
        self.file.write_all_at(data, region.offset + offset)
    }

    fn map(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        assert!(range.end <= region.size, "beyond the region's end: {range:x?}");
        Mapping::new(&self.file, region, range)
    }
}

pub fn run(data: &[u8]) {
    let _ = drive(&mut Unstructured::new(data));
}

fn assigned(u: &mut Unstructured<'_>) -> Result<Option<PciFunction>> {
    let options = PciOptions { mmap: u.arbitrary()?, reset: true };
    let calls = Arc::new(Calls::new(u)?);
    let Ok(mut function) = PciFunction::open(calls, "0000:01:00.0", options, 4096) else {
        return Ok(None);
    };
    let intx = Intx { pin: InterruptPin::INTA, spi: Spi(3) };
    let bdf = Bdf::new(0, 1, 0).unwrap();
    let router = u.arbitrary::<bool>()?.then(|| Arc::new(Routes::default()) as _);
    let slots = Arc::new(Slots::default());
    let slot = Slot { bdf, intx: Some(intx), port: None };
    // SAFETY: there is no guest that could run.
    let attached = unsafe { function.attach(Attachment { slot, slots, router }, &NoInterrupts) };
    function.arm();
    Ok(attached.is_ok().then_some(function))
}

fn drive(u: &mut Unstructured<'_>) -> Result<()> {
    let shape = u.arbitrary::<u8>()?;
    let vcpus = usize::from(shape) % MAX_VCPUS + 1;
    let mut behind_a_port: Option<(Arc<RootPort>, Shared)> = None;
    let mut functions: Vec<(Bdf, Shared)> = Vec::new();
    if let Some(function) = assigned(u)? {
        let function: Shared = Arc::new(Mutex::new(function));
        if shape & BEHIND_A_PORT == 0 {
            functions.push((Bdf::new(0, 1, 0).unwrap(), function));
        } else {
            let pin = Some(InterruptPin::INTA);
            let port = RootPort::new(Bdf::new(0, 1, 0).unwrap(), 1, pin).unwrap();
            behind_a_port = Some((Arc::new(port), function));
        }
    }
    for (device, kind) in [(2, 0), (3, 0x80)] {
        let function = virtio_pci::attached(kind, &format!("00:0{device}.0"), ram());
        functions.push((Bdf::new(0, device, 0).unwrap(), Arc::new(Mutex::new(function))));
    }
    let apertures = Apertures {
        ecam: ECAM..ECAM + (2 << 20),
        memory32: MEMORY32..MEMORY32 + (1 << 20),
        memory64: Some(MEMORY64..MEMORY64 + (1 << 20)),
        io: IO..IO + (1 << 16),
    };
    let bridge = Arc::new(HostBridge::new(apertures, functions).with_ports(behind_a_port));
    let mut bus = Bus::default();
    for (name, range, device) in bridge.devices() {
        bus.add(name, range, device).unwrap();
    }
    let rest = u.len();
    let all = u.bytes(rest)?;
    if vcpus == 1 {
        accesses(&bus, &bridge, all);
        return Ok(());
    }
    thread::scope(|scope| {
        for part in all.chunks(rest.div_ceil(vcpus).max(1)) {
            let (bus, bridge) = (&bus, &bridge);
            scope.spawn(move || accesses(bus, bridge, part));
        }
    });
    Ok(())
}

/// A vCPU's accesses.
fn accesses(bus: &Bus, bridge: &HostBridge, bytes: &[u8]) {
    let u = &mut Unstructured::new(bytes);
    while !u.is_empty() {
        if access(bus, bridge, u).is_err() {
            return;
        }
    }
}

fn access(bus: &Bus, bridge: &HostBridge, u: &mut Unstructured<'_>) -> Result<()> {
    let (kind, at) = (u.arbitrary::<u8>()?, u.arbitrary::<u16>()?);
    let (is_write, size) = (kind & 1 != 0, 1 << (kind >> 1 & 3));
    let gpa = match kind >> 3 & 7 {
        // Registers of one of the functions, mostly of the first 256 bytes.
        0..=2 => ECAM + ((u64::from(at) & 3) << 15) + u64::from(at >> 4 & 0xff),
        // Of the function on bus 1.
        3 => ECAM + (1 << 20) + u64::from(at >> 4 & 0xff),
        4 => ECAM + ((u64::from(at) & 3) << 15) + u64::from(at >> 4),
        5 => MEMORY32 + u64::from(at),
        6 => MEMORY64 + u64::from(at),
        _ => IO + u64::from(at),
    };
    if !is_write {
        bus.read(gpa, &mut [0; 8][..size]);
        return Ok(());
    }
    let value = match kind >> 6 {
        // An address of a BAR, or everything of the command register.
        0 => MEMORY32 + u64::from(u.arbitrary::<u8>()?) * 0x1000,
        1 => MEMORY64 + u64::from(u.arbitrary::<u8>()?) * 0x1000,
        2 => u.arbitrary::<u8>()?.into(),
        _ if u.ratio(1, 64)? => {
            bridge.trap();
            0
        }
        _ => u.arbitrary()?,
    };
    let _ = bus.write(gpa, &value.to_le_bytes()[..size]);
    Ok(())
}
