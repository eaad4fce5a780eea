//! The IOMMU: it limits the devices' DMA to the guest's RAM.
//!
//! All assigned devices share one set of mappings: an IOAS of an iommufd, or a container where there is
//! no iommufd ([`Backend`]). Only RAM is mapped, at IOVA = GPA, once and before the guest runs.

mod backend;
mod constraints;
mod container;
mod dma_ranges;
mod iommufd;
mod mappings;

use boot::help::Help;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

pub use self::backend::{Backend, IommuOptions};
pub use self::constraints::{DmaConstraintError, DmaConstraints, Reserved};
use self::container::{AttachedGroups, ContainerBackend};
pub use self::dma_ranges::DmaRanges;
use self::iommufd::{AttachedDevices, IommufdBackend};
use self::mappings::Mappings;
use super::assign::{AssignError, Assignment};
use super::host::Host;
use super::memlock::{self, Memlock, MemlockTooLow};
use super::uapi::{DeviceFile, Group, IoctlError, IommuInfo};

/// Why RAM couldn't be mapped for DMA.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// It can't be mapped at its address.
    #[error(transparent)]
    Window(#[from] DmaConstraintError),
    /// The limit of locked memory is too low.
    #[error(transparent)]
    Memlock(#[from] MemlockTooLow),
    /// The host is out of memory.
    #[error("the host has too little memory to pin the guest's RAM at {gpa:#x}, {size:#x} bytes")]
    NoMemory {
        /// The GPA.
        gpa: u64,
        /// The size in bytes.
        size: u64,
        /// The request that was refused.
        #[source]
        source: IoctlError,
    },
    /// The kernel refused it for another reason.
    #[error("the guest's RAM at {gpa:#x}, {size:#x} bytes, can't be mapped for DMA")]
    Refused {
        /// The GPA.
        gpa: u64,
        /// The size in bytes.
        size: u64,
        /// The request that was refused.
        #[source]
        source: IoctlError,
    },
}

impl Help for MapError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Window(error) => error.help(),
            Self::Memlock(error) => error.help(),
            Self::NoMemory { .. } => Some("give the guest less memory (--memory)".to_owned()),
            Self::Refused { .. } => None,
        }
    }
}

/// What the devices are attached to.
enum Attached {
    Iommufd(IommufdBackend),
    Container(ContainerBackend),
}

/// What attaches devices to the mappings: with a container, by their groups.
pub struct Attachments(AttachedTo);

enum AttachedTo {
    Iommufd(Arc<AttachedDevices>),
    Container(Arc<AttachedGroups>),
}

impl Attachments {
    /// Detaches a device that the guest has lost, so that its file is closed once nobody else has it, or its
    /// group's, if no other device of that is the guest's; `closing` is called with the file, which is among those
    /// of [`Iommu::with_files`].
    pub fn detach(&self, name: &str, closing: impl FnOnce(BorrowedFd<'_>)) {
        match &self.0 {
            AttachedTo::Iommufd(devices) => devices.detach(name, closing),
            AttachedTo::Container(groups) => groups.detach(name, closing),
        }
    }
}

/// The DMA mappings of a guest, and the devices that are attached to them.
///
/// Dropping it unmaps the memory and detaches the devices. Devices must be dropped (and so quiesced) before,
/// and the memory after it.
pub struct Iommu {
    // Dropped in this order.
    mappings: Mappings,
    attached: Attached,
    info: IommuInfo,
    constraints: DmaConstraints,
}

impl Iommu {
    /// Opens the interface that [`Backend::choose`] chooses and attaches these devices, or their groups. From
    /// here on they can access only memory that is mapped by [`map`](Self::map).
    ///
    /// # Errors
    ///
    /// A device can't be attached; see also [`preflight`](super::assign::preflight).
    pub fn open(
        host: &Host,
        assignments: &[Assignment],
        options: IommuOptions,
    ) -> Result<Self, AssignError> {
        let mut constraints = DmaConstraints::of(host, assignments)?;
        let (attached, dma, info) = match Backend::choose(host, assignments, options)? {
            Backend::Iommufd => {
                let backend = IommufdBackend::open(host, assignments, options)?;
                let (dma, info) = (backend.ioas().dma(), backend.ioas().info());
                (Attached::Iommufd(backend), dma, info)
            }
            Backend::Container => {
                let backend = ContainerBackend::open(host, assignments)?;
                let (dma, info) = (backend.container().dma(), backend.container().info());
                (Attached::Container(backend), dma, info)
            }
        };
        let info = info.map_err(AssignError::Setup)?;
        constraints.limit_to(&info);
        Ok(Self { mappings: Mappings::new(dma), attached, info, constraints })
    }

    /// Opens a device that is attached, or whose group is.
    ///
    /// # Errors
    ///
    /// Its driver can't open it, or it isn't attached.
    pub fn open_device(&self, assignment: &Assignment) -> Result<Arc<DeviceFile>, AssignError> {
        match &self.attached {
            Attached::Iommufd(backend) => backend.device(assignment),
            Attached::Container(backend) => backend.open_device(assignment).map(Arc::new),
        }
    }

    /// The group of this number, if it is attached to a container.
    pub fn group(&self, number: u32) -> Option<Arc<Group>> {
        match &self.attached {
            Attached::Iommufd(_) => None,
            Attached::Container(backend) => backend.group(number),
        }
    }

    /// The interface to the IOMMU.
    pub fn backend(&self) -> Backend {
        match &self.attached {
            Attached::Iommufd(_) => Backend::Iommufd,
            Attached::Container(_) => Backend::Container,
        }
    }

    /// Calls `each` with the files of groups or of devices, for KVM's VFIO device
    /// (`Documentation/virt/kvm/devices/vfio.rst`).
    ///
    /// # Errors
    ///
    /// The first of `each`.
    pub fn with_files<E>(
        &self,
        each: impl FnMut(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.attached {
            Attached::Iommufd(backend) => backend.with_files(each),
            Attached::Container(backend) => backend.with_files(each),
        }
    }

    /// The devices' attachments, by which one can be detached while others are in use.
    pub fn attachments(&self) -> Attachments {
        Attachments(match &self.attached {
            Attached::Iommufd(backend) => AttachedTo::Iommufd(backend.devices().clone()),
            Attached::Container(backend) => AttachedTo::Container(backend.groups().clone()),
        })
    }

    /// What the IOMMU can map.
    pub fn info(&self) -> &IommuInfo {
        &self.info
    }

    /// Whether the IOMMU enforces cache coherency of the devices' DMA (`VFIO_DMA_CC_IOMMU`); `None` if the
    /// kernel doesn't say, as with iommufd.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn enforces_coherency(&self) -> Result<Option<bool>, AssignError> {
        match &self.attached {
            Attached::Iommufd(_) => Ok(None),
            Attached::Container(backend) => {
                backend.container().enforces_coherency().map(Some).map_err(AssignError::Setup)
            }
        }
    }

    /// The addresses at which RAM can be.
    pub fn constraints(&self) -> &DmaConstraints {
        &self.constraints
    }

    /// Maps `size` bytes of the guest's RAM at `host` as IOVA = `gpa`. The kernel allocates and pins all of
    /// that memory, which takes a while and is abandoned half-way if strait is to stop.
    ///
    /// # Safety
    ///
    /// As for [`VfioOps::vfio_dma_map`](super::uapi::VfioOps::vfio_dma_map), until this is dropped.
    ///
    /// # Errors
    ///
    /// It can't be mapped there, or not at all. What was mapped before stays mapped.
    pub unsafe fn map(&mut self, gpa: u64, host: NonNull<u8>, size: u64) -> Result<(), MapError> {
        self.constraints.check(gpa, size)?;
        let before = self.mappings.size();
        // SAFETY: passed on.
        unsafe { self.mappings.map_chunked(gpa, host, size) }.map_err(|source| {
            map_error(Memlock::current(), (before, self.pinned_by_others()), gpa, size, source)
        })
    }

    /// As [`map`](Self::map), for memory that isn't a guest's: without checks.
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

    /// Unmaps all memory, in reverse order: devices can access none then.
    pub fn unmap_all(&mut self) {
        if matches!(&self.attached, Attached::Container(backend) if backend.groups().is_empty()) {
            self.mappings.forget();
        }
        self.mappings.unmap_all();
    }

    /// What other processes have pinned that counts against this one's limit, in bytes: iommufd
    /// counts by user, a container by process.
    fn pinned_by_others(&self) -> u64 {
        match self.backend() {
            Backend::Iommufd => memlock::pinned_by_others(),
            Backend::Container => 0,
        }
    }
}

impl Drop for Iommu {
    fn drop(&mut self) {
        self.unmap_all();
    }
}

/// Why RAM couldn't be mapped. Before, this process has mapped `mapped` bytes, and other processes have
/// pinned `others` that count against the limit.
fn map_error(
    memlock: Memlock,
    (mapped, others): (u64, u64),
    gpa: u64,
    size: u64,
    source: IoctlError,
) -> MapError {
    if !source.is(libc::ENOMEM) {
        return MapError::Refused { gpa, size, source };
    }
    // A capability that /proc shows may be one of a user namespace, which the kernel doesn't count.
    let counted = Memlock { exempt: false, ..memlock };
    match counted.check_with(mapped.saturating_add(size), others) {
        Err(too_low) => MapError::Memlock(too_low),
        Ok(()) => MapError::NoMemory { gpa, size, source },
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::FakeHost;
    use super::*;

    #[test]
    fn opening_without_devices_is_an_error() {
        let options = IommuOptions::default();
        let opened = Iommu::open(&FakeHost::with_vfio().host(), &[], options);
        assert!(matches!(opened, Err(AssignError::NoDevices)));
    }

    #[test]
    fn too_little_memory_and_too_low_a_limit_are_different_errors() {
        let limit = |limit, exempt| Memlock { limit, exempt };
        let map = |memlock, others, errno| {
            let source = IoctlError::new("VFIO_IOMMU_MAP_DMA", errno);
            map_error(memlock, (0x1000, others), 0x4000_0000, 0x1000, source)
        };
        for exempt in [false, true] {
            let error = map(limit(Some(0x1fff), exempt), 0, libc::ENOMEM);
            let MapError::Memlock(too_low) = error else { panic!("{error}") };
            assert_eq!(too_low, MemlockTooLow { ram: 0x2000, limit: 0x1fff, others: 0 });
        }
        for memlock in [limit(Some(0x2000), false), limit(None, false)] {
            assert!(matches!(map(memlock, 0, libc::ENOMEM), MapError::NoMemory { .. }));
        }
        let beside = map(limit(Some(0x2000), false), 0x1000, libc::ENOMEM);
        let MapError::Memlock(too_low) = beside else { panic!("{beside}") };
        assert_eq!(too_low, MemlockTooLow { ram: 0x2000, limit: 0x2000, others: 0x1000 });
        assert!(matches!(map(limit(Some(0), false), 0, libc::EINVAL), MapError::Refused { .. }));
    }
}
