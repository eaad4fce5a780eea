//! DMA: which of the guest's addresses devices reach, and that they reach nothing else.
//!
//! All assigned devices share one container. Only RAM is mapped, at IOVA = GPA, once and before the
//! guest runs. (An iommufd would go beside [`Iommu`], behind the same functions.)

mod mappings;
mod windows;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use vfio_bindings::bindings::vfio::VFIO_API_VERSION;

use self::mappings::Mappings;
pub use self::windows::{DmaWindows, Reserved, WindowError};
use super::assign::{AssignError, Assignment};
use super::host::Host;
use super::memlock::{Memlock, MemlockTooLow};
use super::sys::{Container, DeviceFile, Group, IoctlError, IommuInfo, IommuKind};

/// RAM that couldn't be mapped for DMA.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It lies where devices can't have it.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// It may not be pinned.
    #[error(transparent)]
    Memlock(#[from] MemlockTooLow),
    /// The host has no memory for it.
    #[error("the host has too little memory to pin the guest's RAM at {gpa:#x}, {size:#x} bytes")]
    NoMemory {
        /// Its GPA.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
        /// What the kernel refused.
        #[source]
        source: IoctlError,
    },
    /// The kernel refused it for another reason.
    #[error("the guest's RAM at {gpa:#x}, {size:#x} bytes, can't be mapped for DMA")]
    Refused {
        /// Its GPA.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
        /// What the kernel refused.
        #[source]
        source: IoctlError,
    },
}

impl MapError {
    /// What mends it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Window(error) => error.help(),
            Self::Memlock(error) => Some(error.help()),
            Self::NoMemory { .. } => Some("give the guest less memory (--memory)".to_owned()),
            Self::Refused { .. } => None,
        }
    }
}

/// The IOMMU as far as this guest's devices are concerned.
///
/// Dropping it undoes the mappings, then releases the groups, then the container; drop the devices
/// before, so that none of them is cut off in the middle of its work. The memory that was mapped
/// must outlive it.
pub struct Iommu {
    // Dropped in this order.
    mappings: Mappings<Container>,
    groups: Vec<(u32, Group)>,
    info: IommuInfo,
    windows: DmaWindows,
}

impl Iommu {
    /// Opens a container and attaches these devices' groups, each once. From here on no device of
    /// these groups reaches any memory but what [`map`](Self::map) lets it.
    ///
    /// # Errors
    ///
    /// What stands in the way; see also [`preflight`](super::assign::preflight).
    pub fn open(host: &Host, assignments: &[Assignment]) -> Result<Self, AssignError> {
        let mut windows = DmaWindows::of(host, assignments)?;
        let mut groups: Vec<(u32, Group)> = Vec::new();
        let mut container = None;
        for assignment in assignments {
            if groups.iter().any(|(number, _)| *number == assignment.group) {
                continue;
            }
            let group = open_group(host, assignment)?;
            let container = match &container {
                Some(container) => container,
                None => container.insert(open_container(host, assignment)?),
            };
            let attached = group.set_container(container).and_then(|()| {
                if groups.is_empty() { container.set_iommu(IommuKind::Type1v2) } else { Ok(()) }
            });
            attached.map_err(|error| attaching(host, assignment, error))?;
            groups.push((assignment.group, group));
        }
        let container = container.ok_or(AssignError::Nothing)?;
        let info = container.info().map_err(AssignError::Container)?;
        windows.limit_to(&info);
        Ok(Self { mappings: Mappings::new(container), groups, info, windows })
    }

    /// Opens a device of an attached group.
    ///
    /// # Errors
    ///
    /// If its driver can't open it, or its group isn't attached.
    pub fn open_device(&self, assignment: &Assignment) -> Result<DeviceFile, AssignError> {
        let name = || assignment.name().to_owned();
        let (_, group) = self
            .groups
            .iter()
            .find(|(number, _)| *number == assignment.group)
            .ok_or_else(|| AssignError::NoGroup { name: name() })?;
        group
            .device(assignment.name())
            .map_err(|source| AssignError::OpenDevice { name: name(), source })
    }

    /// The attached groups, of which the hypervisor must be told (KVM's VFIO device,
    /// `Documentation/virt/kvm/devices/vfio.rst`).
    pub fn groups(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.groups.iter().map(|(number, group)| (*number, group.as_fd()))
    }

    /// What the IOMMU can map.
    pub fn info(&self) -> &IommuInfo {
        &self.info
    }

    /// Whether the IOMMU makes the devices' accesses coherent with the caches where they aren't.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn enforces_coherency(&self) -> Result<bool, AssignError> {
        self.mappings.calls().enforces_coherency().map_err(AssignError::Container)
    }

    /// Where RAM can be.
    pub fn windows(&self) -> &DmaWindows {
        &self.windows
    }

    /// Lets the devices reach `size` bytes of the guest's RAM at `host` as IOVA = `gpa`. The kernel
    /// pins the memory: it is really used from here on.
    ///
    /// # Safety
    ///
    /// As for [`DmaCalls::map_dma`](super::sys::DmaCalls::map_dma), until this is dropped.
    ///
    /// # Errors
    ///
    /// If it can't be mapped there, or not at all. What was mapped before stays.
    pub unsafe fn map(&mut self, gpa: u64, host: NonNull<u8>, size: u64) -> Result<(), MapError> {
        self.windows.check(gpa, size)?;
        // SAFETY: passed on.
        unsafe { self.mappings.map(gpa, host, size) }
            .map_err(|source| mapping(Memlock::current(), self.mappings.size(), gpa, size, source))
    }

    /// As [`map`](Self::map), for memory that isn't a guest's: nothing is checked beforehand, and the
    /// error is the kernel's.
    ///
    /// # Safety
    ///
    /// As for [`map`](Self::map).
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub unsafe fn map_iova(
        &mut self,
        iova: u64,
        host: NonNull<u8>,
        size: u64,
    ) -> Result<(), IoctlError> {
        // SAFETY: passed on.
        unsafe { self.mappings.map(iova, host, size) }
    }

    /// Undoes all mappings, the last first: no device reaches any memory then.
    pub fn unmap_all(&mut self) {
        self.mappings.unmap_all();
    }
}

fn open_group(host: &Host, assignment: &Assignment) -> Result<Group, AssignError> {
    let path = host.group_node(assignment.group);
    let group = Group::open(&path).map_err(|error| opening(host, assignment, &path, error))?;
    let (name, number) = (assignment.name().to_owned(), assignment.group);
    match group.status() {
        Ok(status) if status.viable => Ok(group),
        Ok(_) => Err(AssignError::GroupInUse { name, group: number, source: None }),
        Err(source) => Err(AssignError::Attach { name, group: number, source }),
    }
}

fn open_container(host: &Host, assignment: &Assignment) -> Result<Container, AssignError> {
    let path = host.container_node();
    let container =
        Container::open(&path).map_err(|error| opening(host, assignment, &path, error))?;
    let version = container.api_version().map_err(AssignError::Container)?;
    if version != VFIO_API_VERSION {
        return Err(AssignError::ApiVersion { version });
    }
    if !container.supports(IommuKind::Type1v2).map_err(AssignError::Container)? {
        return Err(AssignError::NoType1);
    }
    Ok(container)
}

fn opening(
    host: &Host,
    assignment: &Assignment,
    path: &std::path::Path,
    error: io::Error,
) -> AssignError {
    AssignError::opening(host, &assignment.device, assignment.group, path, error)
}

/// Why a group couldn't be attached (`vfio_iommu_type1_attach_group` and `vfio_container_attach_group`
/// in the kernel).
fn attaching(host: &Host, assignment: &Assignment, source: IoctlError) -> AssignError {
    let (name, group) = (assignment.name().to_owned(), assignment.group);
    let allowed = host.flag("vfio_iommu_type1", "allow_unsafe_interrupts").ok().flatten();
    if source.is(libc::EPERM) && allowed == Some(false) {
        AssignError::UnsafeInterrupts { name, source }
    } else if source.is(libc::EBUSY) {
        AssignError::GroupInUse { name, group, source: Some(source) }
    } else {
        AssignError::Attach { name, group, source }
    }
}

/// Why RAM couldn't be mapped, `mapped` bytes having been before it.
fn mapping(memlock: Memlock, mapped: u64, gpa: u64, size: u64, source: IoctlError) -> MapError {
    if !source.is(libc::ENOMEM) {
        return MapError::Refused { gpa, size, source };
    }
    // A capability that /proc shows may be one of a user namespace, which the kernel doesn't count.
    let counted = Memlock { exempt: false, ..memlock };
    match counted.check(mapped.saturating_add(size)) {
        Err(too_low) => MapError::Memlock(too_low),
        Ok(()) => MapError::NoMemory { gpa, size, source },
    }
}

#[cfg(test)]
mod tests {
    use super::super::assign::preflight;
    use super::super::testing::FakeHost;
    use super::*;

    fn refused(errno: i32) -> IoctlError {
        IoctlError { request: "VFIO_SET_IOMMU", source: io::Error::from_raw_os_error(errno) }
    }

    #[test]
    fn a_refused_attachment_is_told_by_its_cause() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
        let assignment = preflight(&fake.host(), &["1.dma"]).unwrap().remove(0);
        let because = |allowed: &str, errno| {
            fake.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", allowed);
            attaching(&fake.host(), &assignment, refused(errno))
        };
        let unsafe_interrupts = because("N\n", libc::EPERM);
        assert!(matches!(unsafe_interrupts, AssignError::UnsafeInterrupts { .. }));
        let help = unsafe_interrupts.help().unwrap();
        assert!(help.contains("parameters/allow_unsafe_interrupts"), "{help}");
        assert!(matches!(because("Y\n", libc::EPERM), AssignError::Attach { group: 3, .. }));
        assert!(matches!(because("N\n", libc::EBUSY), AssignError::GroupInUse { .. }));
        assert!(matches!(because("N\n", libc::EINVAL), AssignError::Attach { .. }));
    }

    #[test]
    fn no_device_needs_no_iommu() {
        let opened = Iommu::open(&FakeHost::with_vfio().host(), &[]);
        assert!(matches!(opened, Err(AssignError::Nothing)));
    }

    #[test]
    fn files_that_are_no_vfio_are_refused_by_name() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
        let assignments = preflight(&fake.host(), &["1.dma"]).unwrap();
        let Err(error) = Iommu::open(&fake.host(), &assignments) else { panic!("opened") };
        let AssignError::Attach { name, group: 3, source } = error else { panic!("{error}") };
        assert_eq!((name.as_str(), source.request), ("1.dma", "VFIO_GROUP_GET_STATUS"));
    }

    #[test]
    fn too_little_memory_is_told_from_too_low_a_limit() {
        let limit = |limit, exempt| Memlock { limit, exempt };
        let map = |memlock, errno| mapping(memlock, 0x1000, 0x4000_0000, 0x1000, refused(errno));
        for exempt in [false, true] {
            let error = map(limit(Some(0x1fff), exempt), libc::ENOMEM);
            let MapError::Memlock(too_low) = error else { panic!("{error}") };
            assert_eq!(too_low, MemlockTooLow { ram: 0x2000, limit: 0x1fff });
        }
        for memlock in [limit(Some(0x2000), false), limit(None, false)] {
            assert!(matches!(map(memlock, libc::ENOMEM), MapError::NoMemory { .. }));
        }
        assert!(matches!(map(limit(Some(0), false), libc::EINVAL), MapError::Refused { .. }));
    }
}
