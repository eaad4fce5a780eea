//! iommufd: I/O address spaces (IOAS), to which devices are attached one by one, each by its own file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use iommufd_bindings::{
    IOMMUFD_CMD_BASE, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_TYPE, iommu_ioas_iova_ranges,
    iommu_iova_range,
};
use iommufd_ioctls::IommuFd;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_BIND_FLAG_TOKEN, vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd,
    vfio_device_detach_iommufd_pt,
};
use vfio_ioctls::{VfioIommufd, VfioOps};
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref};

use super::{DeviceFile, IoctlError, IommuInfo, Request, argsz};

const BIND_IOMMUFD: Request = Request::new("VFIO_DEVICE_BIND_IOMMUFD", 18);
const ATTACH_IOMMUFD_PT: Request = Request::new("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 19);
const DETACH_IOMMUFD_PT: Request = Request::new("VFIO_DEVICE_DETACH_IOMMUFD_PT", 20);
const IOAS_IOVA_RANGES: Request =
    Request::iommufd("IOMMU_IOAS_IOVA_RANGES", IOMMUFD_CMD_IOAS_IOVA_RANGES);
/// How many IOVA ranges an IOAS usually has at most: the reserved regions of its devices divide the address
/// space into a handful.
const USUAL_RANGES: usize = 16;
/// How many are accepted.
const MAX_RANGES: u32 = 1 << 16;

impl Request {
    /// The request `_IO(IOMMUFD_TYPE, command)`.
    const fn iommufd(name: &'static str, command: u32) -> Self {
        assert!(command >= IOMMUFD_CMD_BASE);
        Self { name, number: ioctl_expr(_IOC_NONE, IOMMUFD_TYPE as u32, command, 0) }
    }
}

/// An iommufd (`/dev/iommu`).
#[derive(Debug)]
pub struct Iommufd(File);

impl Iommufd {
    /// Opens a new one.
    ///
    /// # Errors
    ///
    /// As from `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }
}

impl From<File> for Iommufd {
    fn from(file: File) -> Self {
        Self(file)
    }
}

impl AsRawFd for Iommufd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An I/O address space of an iommufd: one set of mappings, shared by the devices attached to it. Dropping
/// it destroys it, for which no device may be attached any more; an iommufd that another process has open
/// too would keep it otherwise.
pub struct Ioas {
    /// vfio-ioctls doesn't give access to its own.
    iommufd: Iommufd,
    space: Arc<VfioIommufd>,
}

impl Ioas {
    /// A new one, in which nothing is mapped.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if this isn't an iommufd, `EMFILE` if this process has too many files open.
    pub fn new(iommufd: Iommufd) -> Result<Self, IoctlError> {
        let file = iommufd.0.try_clone();
        let file = file.map_err(|source| IoctlError { request: "F_DUPFD_CLOEXEC", source })?;
        // Without KVM's VFIO device: the devices are added to it once there is a VM.
        let space = VfioIommufd::new(Arc::new(IommuFd::new_from_fd(file)), None, None);
        Ok(Self { iommufd, space: Arc::new(space?) })
    }

    /// Maps and unmaps for DMA.
    pub fn dma(&self) -> Arc<dyn VfioOps> {
        self.space.clone()
    }

    /// The iommufd that it is in.
    pub fn iommufd(&self) -> &Iommufd {
        &self.iommufd
    }

    /// Its ID in the iommufd.
    pub fn id(&self) -> u32 {
        self.space.ioas().id()
    }

    /// What can be mapped for all attached devices: the IOVAs and their alignment. iommufd tells neither other
    /// page sizes nor how many mappings there can be.
    ///
    /// # Errors
    ///
    /// The kernel has too many ranges, or refused the request.
    pub fn info(&self) -> Result<IommuInfo, IoctlError> {
        let mut ranges = vec![iommu_iova_range::default(); USUAL_RANGES];
        loop {
            let mut query = iommu_ioas_iova_ranges {
                size: argsz::<iommu_ioas_iova_ranges>(),
                ioas_id: self.id(),
                num_iovas: u32::try_from(ranges.len()).unwrap_or(MAX_RANGES),
                allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
                ..Default::default()
            };
            // SAFETY: the structure is complete; the kernel writes back into it, and at most
            // `num_iovas` ranges, as many as the vector has, to `allowed_iovas`.
            let returned =
                unsafe { ioctl_with_mut_ref(&self.iommufd, IOAS_IOVA_RANGES.number, &mut query) };
            let count = usize::try_from(query.num_iovas).unwrap_or(usize::MAX);
            match IOAS_IOVA_RANGES.check(returned) {
                Ok(_) => {
                    let ranges = ranges.iter().take(count).map(|range| range.start..=range.last);
                    let (alignment, iova_ranges) = (query.out_iova_alignment, ranges.collect());
                    let iova_ranges = Some(iova_ranges);
                    return Ok(IommuInfo { alignment, iova_ranges, ..Default::default() });
                }
                // There are more: the kernel has set `num_iovas` to how many.
                Err(error)
                    if error.is(libc::EMSGSIZE)
                        && query.num_iovas <= MAX_RANGES
                        && count > ranges.len() =>
                {
                    ranges.resize_with(count, Default::default);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl DeviceFile {
    /// Opens a device's own file (`/dev/vfio/devices/vfioN`). It can be open more than once, and bound once.
    ///
    /// # Errors
    ///
    /// As from `open(2)`.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self::from)
    }

    /// Binds the device to the iommufd and opens it, for which its driver may reset it. From here on it can
    /// access no memory. Closing the file unbinds it.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the device or this file is bound already, or if there is a VF token and the kernel is older
    /// than 6.17, `EACCES` if another VF token is wanted or there has to be one, `EBUSY` if its group is open,
    /// `EPERM` if interrupts aren't isolated and iommufd's `allow_unsafe_interrupts` is off or if the group
    /// has another owner, and whatever the device's driver fails with.
    pub fn bind(&self, iommufd: &Iommufd, vf_token: Option<&[u8; 16]>) -> Result<(), IoctlError> {
        let mut bind = vfio_device_bind_iommufd {
            argsz: argsz::<vfio_device_bind_iommufd>(),
            iommufd: iommufd.as_raw_fd(),
            ..Default::default()
        };
        if let Some(token) = vf_token {
            bind.flags = VFIO_DEVICE_BIND_FLAG_TOKEN;
            // The kernel reads 16 bytes there.
            bind.token_uuid_ptr = token.as_ptr().expose_provenance() as u64;
        }
        // SAFETY: the structure is complete, with a token that outlives the call; the kernel writes the
        // device's number into it.
        let returned = unsafe { ioctl_with_mut_ref(self, BIND_IOMMUFD.number, &mut bind) };
        BIND_IOMMUFD.check(returned).map(drop)
    }

    /// Attaches the device to an IOAS of the iommufd to which it is bound: it can access what is mapped there.
    ///
    /// # Errors
    ///
    /// `EINVAL` if its IOMMU can't use this IOAS, as for mappings that overlap the device's reserved
    /// regions, or if it isn't bound.
    pub fn attach(&self, ioas: &Ioas) -> Result<(), IoctlError> {
        let mut attach = vfio_device_attach_iommufd_pt {
            argsz: argsz::<vfio_device_attach_iommufd_pt>(),
            pt_id: ioas.id(),
            ..Default::default()
        };
        // SAFETY: the structure is complete; the kernel writes the page table's number into it.
        let returned = unsafe { ioctl_with_mut_ref(self, ATTACH_IOMMUFD_PT.number, &mut attach) };
        ATTACH_IOMMUFD_PT.check(returned).map(drop)
    }

    /// Detaches the device from its IOAS: it can access no memory.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it isn't bound.
    pub fn detach(&self) -> Result<(), IoctlError> {
        let detach = vfio_device_detach_iommufd_pt {
            argsz: argsz::<vfio_device_detach_iommufd_pt>(),
            ..Default::default()
        };
        // SAFETY: the kernel reads at most `argsz` bytes, the size of `detach`.
        let returned = unsafe { ioctl_with_ref(self, DETACH_IOMMUFD_PT.number, &detach) };
        DETACH_IOMMUFD_PT.check(returned).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_number_is_that_of_the_header() {
        // ';' << 8 | command: `_IO(';', 0x84)`.
        assert_eq!(IOAS_IOVA_RANGES.number, 0x3b84);
    }

    #[test]
    fn another_file_is_no_iommufd() {
        let Err(error) = Ioas::new(File::open("/dev/null").unwrap().into()) else { panic!("made") };
        assert!(error.is(libc::ENOTTY) && error.request == "IOMMU_IOAS_ALLOC", "{error:?}");
    }
}
