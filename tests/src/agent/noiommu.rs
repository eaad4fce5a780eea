//! A PCI function as a program drives it without an IOMMU, as in a guest: through vfio-pci in its
//! no-IOMMU mode (Linux: `drivers/vfio/group.c`), with memory whose physical address is known.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_NOIOMMU_IOMMU, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_TYPE,
    vfio_irq_set, vfio_region_info,
};

use crate::CommandError;

const PAGE: usize = 4096;
/// The command register, and its bits for memory and bus mastering.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 0b110;
/// How long an interrupt may take.
const TIMEOUT: Duration = Duration::from_secs(30);

fn ioctl(file: &impl AsRawFd, request: u32, argument: libc::c_ulong) -> io::Result<i32> {
    let number = u32::from(VFIO_TYPE) << 8 | (VFIO_BASE + request);
    // SAFETY: every caller passes a number, or the address of what the request takes.
    let returned = unsafe { libc::ioctl(file.as_raw_fd(), number.into(), argument) };
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn address<T>(of: &T) -> libc::c_ulong {
    std::ptr::from_ref(of).expose_provenance() as libc::c_ulong
}

/// A function that this process drives.
pub(crate) struct NoIommuDevice {
    file: File,
    // Kept open for as long as the function is used.
    _group: File,
    _container: File,
}

impl NoIommuDevice {
    /// Binds the function of this name (`0000:00:01.0`) to vfio-pci and opens it, with memory and
    /// bus mastering on.
    pub(crate) fn open(name: &str) -> Result<Self, CommandError> {
        let device = Path::new("/sys/bus/pci/devices").join(name);
        bind(&device, name).map_err(|error| format!("can't bind {name}: {error}"))?;
        let group = fs::read_link(device.join("iommu_group"))?;
        let number = group.file_name().ok_or("a group without a number")?.to_owned();
        let node = format!("/dev/vfio/noiommu-{}", number.to_string_lossy());
        let open = |path: PathBuf| {
            let opened = OpenOptions::new().read(true).write(true).open(&path);
            opened.map_err(|error| format!("{}: {error}", path.display()))
        };
        let (container, group) = (open("/dev/vfio/vfio".into())?, open(node.into())?);
        let fd = container.as_raw_fd();
        ioctl(&group, 4, address(&fd))?;
        ioctl(&container, 2, VFIO_NOIOMMU_IOMMU.into())?;
        let c_name = std::ffi::CString::new(name)?;
        let fd = ioctl(&group, 6, c_name.as_ptr().expose_provenance() as libc::c_ulong)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let driven = Self { file, _group: group, _container: container };
        let command = driven.read::<2>(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND)?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        driven.write(VFIO_PCI_CONFIG_REGION_INDEX, COMMAND, &command.to_le_bytes())?;
        Ok(driven)
    }

    fn region(&self, index: u32) -> io::Result<vfio_region_info> {
        let argsz = u32::try_from(size_of::<vfio_region_info>()).unwrap_or(0);
        let info = vfio_region_info { argsz, index, ..Default::default() };
        ioctl(&self.file, 8, address(&info))?;
        Ok(info)
    }

    /// Reads bytes of a region by one access.
    pub(crate) fn read<const N: usize>(&self, region: u32, offset: u64) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, self.region(region)?.offset + offset)?;
        Ok(bytes)
    }

    /// Writes bytes of a region by one access.
    pub(crate) fn write(&self, region: u32, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.region(region)?.offset + offset)
    }

    /// Maps a region into this process.
    pub(crate) fn map(&self, region: u32) -> Result<MappedRegion, CommandError> {
        let info = self.region(region)?;
        let size = usize::try_from(info.size)?;
        let offset = i64::try_from(info.offset)?;
        Ok(MappedRegion::new(size, libc::MAP_SHARED, self.file.as_raw_fd(), offset)?)
    }

    /// Has the vectors of this index, from the first on, signal these eventfds.
    pub(crate) fn signal(&self, index: u32, eventfds: &[Event]) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
        let fds = eventfds.iter().map(|event| event.0.as_raw_fd().cast_unsigned()).collect();
        self.set_irqs(index, flags, eventfds.len(), fds)
    }

    /// Has no interrupt of this index signal anything.
    pub(crate) fn silence(&self, index: u32) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_NONE;
        self.set_irqs(index, flags, 0, Vec::new())
    }

    /// Unmasks the first interrupt of this index.
    pub(crate) fn unmask(&self, index: u32) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_DATA_NONE;
        self.set_irqs(index, flags, 1, Vec::new())
    }

    fn set_irqs(&self, index: u32, flags: u32, count: usize, data: Vec<u32>) -> io::Result<()> {
        let words = size_of::<vfio_irq_set>() / 4 + data.len();
        let small = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let mut set = vec![small(words * 4), flags, index, 0, small(count)];
        set.extend(data);
        ioctl(&self.file, 10, set.as_ptr().expose_provenance() as libc::c_ulong).map(drop)
    }
}

/// Binds a function to vfio-pci, which takes it though there is no IOMMU.
fn bind(device: &Path, name: &str) -> io::Result<()> {
    fs::write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y")?;
    fs::write(device.join("driver_override"), "vfio-pci")?;
    let driver = device.join("driver");
    if fs::read_link(&driver).is_ok_and(|driver| driver.ends_with("vfio-pci")) {
        return Ok(());
    }
    if driver.exists() {
        fs::write(driver.join("unbind"), name)?;
    }
    fs::write("/sys/bus/pci/drivers_probe", name)
}

/// An eventfd.
pub(crate) struct Event(OwnedFd);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes numbers; the descriptor is ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits until it is signalled; how often it was since it was asked last.
    pub(crate) fn wait(&self) -> Result<u64, CommandError> {
        let milliseconds = i32::try_from(TIMEOUT.as_millis())?;
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure, as the count says.
        if unsafe { libc::poll(&raw mut poll, 1, milliseconds) } != 1 {
            return Err("an interrupt doesn't come".into());
        }
        self.count().ok_or_else(|| "an interrupt came and went".into())
    }

    /// How often it was signalled since it was asked last, if at all.
    pub(crate) fn count(&self) -> Option<u64> {
        let mut count = 0u64;
        // SAFETY: the buffer has the 8 bytes that an eventfd gives.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) };
        (read == 8).then_some(count)
    }
}

/// Memory that others see too, accessed in 32-bit words.
pub(crate) struct MappedRegion {
    base: *mut u32,
    size: usize,
}

impl MappedRegion {
    fn new(size: usize, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), size, protection, flags, fd, offset)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), size })
    }

    /// Locked pages of memory for a device.
    pub(crate) fn pages(count: usize) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_POPULATE;
        Self::new(count * PAGE, flags, -1, 0)
    }

    /// The physical address of each page.
    pub(crate) fn addresses(&self) -> Result<Vec<u64>, CommandError> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let pages = (0..self.size).step_by(PAGE);
        pages.map(|at| crate::canary::physical(&pagemap, self.base.addr() + at)).collect()
    }

    fn word(&self, index: usize) -> *mut u32 {
        assert!(index < self.size / 4, "word {index} is beyond {} bytes", self.size);
        // SAFETY: within the mapping, as just checked.
        unsafe { self.base.add(index) }
    }

    pub(crate) fn read(&self, index: usize) -> u32 {
        // SAFETY: within the mapping; a device may change the word, hence volatile.
        unsafe { self.word(index).read_volatile() }
    }

    pub(crate) fn write(&self, index: usize, value: u32) {
        // SAFETY: as for reading.
        unsafe { self.word(index).write_volatile(value) };
    }
}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a pointer into it.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}
