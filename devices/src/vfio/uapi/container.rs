//! The container, one set of DMA mappings, and the IOMMU groups that are attached to it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_CC_IOMMU, VFIO_GROUP_FLAGS_VIABLE, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, VFIO_TYPE1v2_IOMMU,
    vfio_group_status, vfio_iommu_type1_info,
};
use vfio_ioctls::{VfioContainer, VfioError, VfioOps};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val};

use super::capability::{self, capabilities, pairs, u32_at, u64_at};
use super::{DeviceFile, IoctlError, Request, argsz};

const CHECK_EXTENSION: Request = Request::new("VFIO_CHECK_EXTENSION", 1);
const SET_IOMMU: Request = Request::new("VFIO_SET_IOMMU", 2);
const GROUP_GET_STATUS: Request = Request::new("VFIO_GROUP_GET_STATUS", 3);
const GROUP_SET_CONTAINER: Request = Request::new("VFIO_GROUP_SET_CONTAINER", 4);
const GROUP_GET_DEVICE_FD: Request = Request::new("VFIO_GROUP_GET_DEVICE_FD", 6);
const IOMMU_GET_INFO: Request = Request::new("VFIO_IOMMU_GET_INFO", 12);

/// What the IOMMU can map: the answer to `VFIO_IOMMU_GET_INFO` of a container, or to
/// `IOMMU_IOAS_IOVA_RANGES` of an IOAS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IommuInfo {
    /// The page sizes that the IOMMU can map, a bit each; 0 if the kernel doesn't say.
    #[serde(serialize_with = "as_list")]
    pub page_sizes: u64,
    /// The alignment of IOVAs and of the sizes of mappings, in bytes: the smallest of the page sizes; 0 if
    /// the kernel doesn't say.
    pub alignment: u64,
    /// The IOVAs that may be mapped; `None` if the kernel doesn't say.
    pub iova_ranges: Option<Vec<RangeInclusive<u64>>>,
    /// How many more mappings may be made; `None` if the kernel doesn't say.
    pub mappings_left: Option<u32>,
}

/// Page sizes, a bit each, as numbers of bytes.
pub fn page_sizes(bits: u64) -> impl Iterator<Item = u64> {
    (0..u64::BITS).map(|bit| 1 << bit).filter(move |size| bits & size != 0)
}

fn as_list<S: Serializer>(bits: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    (*bits != 0).then(|| page_sizes(*bits).collect::<Vec<_>>()).serialize(serializer)
}

impl IommuInfo {
    /// Parses a `struct vfio_iommu_type1_info` and its capability chain. What is unknown or out of bounds
    /// is skipped.
    fn parse(bytes: &[u8]) -> Self {
        let flags = u32_at(bytes, 4).unwrap_or(0);
        let mut info = Self::default();
        if flags & VFIO_IOMMU_INFO_PGSIZES != 0 {
            info.page_sizes = u64_at(bytes, 8).unwrap_or(0);
            info.alignment = info.page_sizes & info.page_sizes.wrapping_neg();
        }
        if flags & VFIO_IOMMU_INFO_CAPS == 0 {
            return info;
        }
        for (id, capability) in capabilities(bytes, u32_at(bytes, 16).unwrap_or(0)) {
            match id {
                VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    let ranges = pairs(capability).map(|ranges| ranges.map(|(a, b)| a..=b));
                    info.iova_ranges = ranges.map(Iterator::collect);
                }
                VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.mappings_left = u32_at(capability, 8),
                _ => {}
            }
        }
        info
    }
}

/// A VFIO container (`/dev/vfio/vfio`) of type 1, version 2: unmapping takes whole mappings and never
/// splits them.
pub struct Container(Arc<VfioContainer>);

impl Container {
    /// Opens a new container.
    ///
    /// # Errors
    ///
    /// [`OpenContainer`](VfioError::OpenContainer) as from `open(2)`,
    /// [`VfioApiVersion`](VfioError::VfioApiVersion) and [`VfioExtension`](VfioError::VfioExtension)
    /// if the kernel has another interface, or no such model.
    pub fn open() -> Result<Self, VfioError> {
        // Without KVM's VFIO device: the groups are added to it once there is a VM.
        VfioContainer::new(None).map(|container| Self(Arc::new(container)))
    }

    /// Maps and unmaps for DMA.
    pub fn dma(&self) -> Arc<dyn VfioOps> {
        self.0.clone()
    }

    /// Whether the IOMMU enforces cache coherency of the devices' DMA (`VFIO_DMA_CC_IOMMU`), once the IOMMU
    /// model has been set.
    ///
    /// # Errors
    ///
    /// This isn't a container.
    pub fn enforces_coherency(&self) -> Result<bool, IoctlError> {
        // SAFETY: the request's argument is a number.
        let returned =
            unsafe { ioctl_with_val(self, CHECK_EXTENSION.number, VFIO_DMA_CC_IOMMU.into()) };
        Ok(CHECK_EXTENSION.check(returned)? > 0)
    }

    /// Sets the IOMMU model, once at least one group has been attached.
    ///
    /// # Errors
    ///
    /// `EPERM` if interrupts aren't isolated and `allow_unsafe_interrupts` is off, `EINVAL` if the
    /// groups' reserved regions don't fit.
    pub fn set_iommu(&self) -> Result<(), IoctlError> {
        let number = VFIO_TYPE1v2_IOMMU.into();
        // SAFETY: the request's argument is a number.
        let returned = unsafe { ioctl_with_val(self, SET_IOMMU.number, number) };
        SET_IOMMU.check(returned).map(drop)
    }

    /// What the IOMMU can map.
    ///
    /// # Errors
    ///
    /// No IOMMU model has been set.
    pub fn info(&self) -> Result<IommuInfo, IoctlError> {
        let answer = capability::answer::<vfio_iommu_type1_info>(self, IOMMU_GET_INFO, 0)?;
        Ok(IommuInfo::parse(&answer))
    }
}

impl AsRawFd for Container {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A VFIO group (`/dev/vfio/N`). It can be open once only.
#[derive(Debug)]
pub struct Group(File);

impl Group {
    /// Opens the group.
    ///
    /// # Errors
    ///
    /// As from `open(2)`; `EBUSY` if it is open elsewhere.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }

    /// Whether the group is viable: no device of it is bound to a driver that does DMA of its own.
    ///
    /// # Errors
    ///
    /// This isn't a group.
    pub fn is_viable(&self) -> Result<bool, IoctlError> {
        let mut status = vfio_group_status { argsz: argsz::<vfio_group_status>(), flags: 0 };
        // SAFETY: the kernel writes at most `argsz` bytes, the size of `status`.
        let returned = unsafe { ioctl_with_mut_ref(&self.0, GROUP_GET_STATUS.number, &mut status) };
        GROUP_GET_STATUS.check(returned)?;
        Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
    }

    /// Attaches the group to a container. If that has its IOMMU model already, the group's devices
    /// are confined to the container's mappings from here on.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a device of the group has a driver that does DMA, `EPERM` and `EINVAL` as from
    /// [`Container::set_iommu`].
    pub fn set_container(&self, container: &Container) -> Result<(), IoctlError> {
        let fd = container.as_raw_fd();
        // SAFETY: the kernel reads one 32-bit number, `fd`.
        let returned = unsafe { ioctl_with_ref(&self.0, GROUP_SET_CONTAINER.number, &fd) };
        GROUP_SET_CONTAINER.check(returned).map(drop)
    }

    /// Opens one of its devices by the name that sysfs has for it, a function with SR-IOV with this VF token.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the group has no such device bound to a VFIO driver, `EACCES` if another VF token is wanted
    /// or there has to be one, and whatever its driver fails with, resetting it included.
    pub fn device(&self, name: &str, vf_token: Option<String>) -> Result<DeviceFile, IoctlError> {
        // `vfio_pci_core_match`.
        let token = vf_token.map(|token| format!(" vf_token={token}")).unwrap_or_default();
        let name = CString::new(format!("{name}{token}")).map_err(|_| {
            GROUP_GET_DEVICE_FD.refused(io::ErrorKind::InvalidInput, "a NUL in the name")
        })?;
        // SAFETY: the kernel reads a NUL-terminated string.
        let returned =
            unsafe { ioctl_with_ptr(&self.0, GROUP_GET_DEVICE_FD.number, name.as_ptr()) };
        GROUP_GET_DEVICE_FD.check(returned)?;
        // SAFETY: a file descriptor that the kernel made just now and that nobody else has.
        Ok(DeviceFile::from(unsafe { File::from_raw_fd(returned) }))
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a `struct vfio_iommu_type1_info`, then capabilities.
    fn info(flags: u32, page_sizes: u64, first: u32, capabilities: &[u8]) -> Vec<u8> {
        let mut bytes = [0u32, flags].map(u32::to_ne_bytes).concat();
        bytes.extend(page_sizes.to_ne_bytes());
        bytes.extend([first, 0].map(u32::to_ne_bytes).concat());
        bytes.extend(capabilities);
        bytes
    }

    fn header(id: u16, next: u32) -> Vec<u8> {
        [id.to_ne_bytes().as_slice(), &1u16.to_ne_bytes(), &next.to_ne_bytes()].concat()
    }

    fn ranges(next: u32, count: u32, ranges: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = header(1, next);
        bytes.extend([count, 0].map(u32::to_ne_bytes).concat());
        bytes.extend(ranges.iter().flat_map(|(a, b)| [a.to_ne_bytes(), b.to_ne_bytes()].concat()));
        bytes
    }

    #[test]
    fn capabilities_are_parsed() {
        let windows = [(0, 0x7ff_ffff), (0x810_0000, 0xffff_ffff_ffff)];
        let mut capabilities = ranges(24 + 48, 2, &windows);
        capabilities.extend(header(3, 0));
        capabilities.extend(65535u32.to_ne_bytes());
        let parsed = IommuInfo::parse(&info(3, 0x4020_1000, 24, &capabilities));
        assert_eq!(
            parsed,
            IommuInfo {
                page_sizes: 0x4020_1000,
                alignment: 0x1000,
                iova_ranges: Some(vec![0..=0x7ff_ffff, 0x810_0000..=0xffff_ffff_ffff]),
                mappings_left: Some(65535),
            }
        );
    }

    #[test]
    fn without_capabilities_their_fields_are_unknown() {
        let parsed = IommuInfo::parse(&info(1, 0x1000, 0, &[]));
        let page = 0x1000;
        assert_eq!(parsed, IommuInfo { page_sizes: page, alignment: page, ..Default::default() });
    }

    #[test]
    fn a_malformed_chain_ends_where_it_is_malformed() {
        let unknown = header(77, 24);
        let cases: [(&str, Vec<u8>, Option<usize>); 6] = [
            ("points to itself", info(3, 0, 24, &unknown), None),
            ("points past the end", info(3, 0, 4096, &[]), None),
            ("ends within a header", info(3, 0, 24, &[1, 0]), None),
            ("ends within a capability", info(3, 0, 24, &ranges(0, 1, &[])[..12]), None),
            (
                "claims more ranges than there are",
                info(3, 0, 24, &ranges(0, 9, &[(0, 1)])),
                Some(1),
            ),
            ("is shorter than the structure", vec![0; 6], None),
        ];
        for (case, bytes, count) in cases {
            assert_eq!(IommuInfo::parse(&bytes).iova_ranges.map(|r| r.len()), count, "{case}");
        }
    }
}
