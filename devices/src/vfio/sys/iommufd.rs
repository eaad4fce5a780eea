//! iommufd: address spaces of IOVAs, to which devices are attached one by one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::ptr::NonNull;

use iommufd_bindings::{
    IOMMUFD_CMD_BASE, IOMMUFD_CMD_DESTROY, IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES,
    IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP, IOMMUFD_TYPE, iommu_destroy, iommu_ioas_alloc,
    iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_unmap, iommu_iova_range,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref};

use super::{DmaCalls, IoctlError, IommuInfo, Request, argsz};

const DESTROY: Request = Request::iommufd("IOMMU_DESTROY", IOMMUFD_CMD_DESTROY);
const IOAS_ALLOC: Request = Request::iommufd("IOMMU_IOAS_ALLOC", IOMMUFD_CMD_IOAS_ALLOC);
const IOAS_IOVA_RANGES: Request =
    Request::iommufd("IOMMU_IOAS_IOVA_RANGES", IOMMUFD_CMD_IOAS_IOVA_RANGES);
const IOAS_MAP: Request = Request::iommufd("IOMMU_IOAS_MAP", IOMMUFD_CMD_IOAS_MAP);
const IOAS_UNMAP: Request = Request::iommufd("IOMMU_IOAS_UNMAP", IOMMUFD_CMD_IOAS_UNMAP);

/// How many IOVA ranges an address space is taken to have at most: the reserved windows of its
/// devices cut it into a handful. More is taken for nonsense.
const MOST_RANGES: u32 = 1 << 16;

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

/// An address space of an iommufd: one set of mappings, shared by the devices attached to it. It is
/// destroyed when dropped, for which no device may be attached any more: an iommufd that another
/// process holds too would keep it.
#[derive(Debug)]
pub struct Ioas {
    iommufd: Iommufd,
    id: u32,
}

impl Ioas {
    /// A new one, in which nothing is mapped.
    ///
    /// # Errors
    ///
    /// `ENOTTY` if this isn't an iommufd.
    pub fn new(iommufd: Iommufd) -> Result<Self, IoctlError> {
        let mut alloc =
            iommu_ioas_alloc { size: argsz::<iommu_ioas_alloc>(), ..Default::default() };
        // SAFETY: the structure is complete; the kernel writes the new number into it.
        let returned = unsafe { ioctl_with_mut_ref(&iommufd, IOAS_ALLOC.number, &mut alloc) };
        IOAS_ALLOC.check(returned)?;
        Ok(Self { iommufd, id: alloc.out_ioas_id })
    }

    /// The iommufd that it is in.
    pub fn iommufd(&self) -> &Iommufd {
        &self.iommufd
    }

    /// Its number there.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What can be mapped for all devices that are attached: the IOVAs and their alignment. iommufd
    /// tells neither other page sizes nor how many mappings there can be.
    ///
    /// # Errors
    ///
    /// What the kernel refused.
    pub fn info(&self) -> Result<IommuInfo, IoctlError> {
        let mut ranges = Vec::new();
        loop {
            let mut query = self.query(&mut ranges)?;
            // SAFETY: the structure is complete; the kernel writes back into it, and at most
            // `num_iovas` ranges to `allowed_iovas`, where `query` has put a vector of as many.
            let returned =
                unsafe { ioctl_with_mut_ref(&self.iommufd, IOAS_IOVA_RANGES.number, &mut query) };
            match IOAS_IOVA_RANGES.check(returned) {
                Ok(_) => {
                    ranges.truncate(usize::try_from(query.num_iovas).unwrap_or(usize::MAX));
                    let ranges = ranges.iter().map(|range| range.start..=range.last).collect();
                    let (alignment, iova_ranges) = (query.out_iova_alignment, Some(ranges));
                    return Ok(IommuInfo { alignment, iova_ranges, ..Default::default() });
                }
                // Tells how many there are.
                Err(error) if error.is(libc::EMSGSIZE) && query.num_iovas <= MOST_RANGES => {
                    let count = usize::try_from(query.num_iovas).unwrap_or(0);
                    ranges = vec![iommu_iova_range::default(); count.max(ranges.len() + 1)];
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for as many ranges as there is room for.
    fn query(&self, ranges: &mut [iommu_iova_range]) -> Result<iommu_ioas_iova_ranges, IoctlError> {
        let num_iovas = u32::try_from(ranges.len()).ok().filter(|count| *count <= MOST_RANGES);
        let num_iovas = num_iovas.ok_or_else(|| {
            IOAS_IOVA_RANGES.refused(io::ErrorKind::InvalidData, "the kernel has too many ranges")
        })?;
        Ok(iommu_ioas_iova_ranges {
            size: argsz::<iommu_ioas_iova_ranges>(),
            ioas_id: self.id,
            num_iovas,
            allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
            ..Default::default()
        })
    }
}

impl DmaCalls for Ioas {
    unsafe fn map_dma(&self, iova: u64, host: NonNull<u8>, size: u64) -> Result<(), IoctlError> {
        let mut map = iommu_ioas_map {
            size: argsz::<iommu_ioas_map>(),
            flags: FIXED_IOVA | READABLE | WRITEABLE,
            ioas_id: self.id,
            user_va: host.as_ptr().addr() as u64,
            length: size,
            iova,
            ..Default::default()
        };
        // SAFETY: the structure is complete, the kernel writes back `iova` within it, and the caller
        // vouches for the memory.
        let returned = unsafe { ioctl_with_mut_ref(&self.iommufd, IOAS_MAP.number, &mut map) };
        IOAS_MAP.check(returned).map(drop)
    }

    fn unmap_dma(&self, iova: u64, size: u64) -> Result<(), IoctlError> {
        let mut unmap = iommu_ioas_unmap {
            size: argsz::<iommu_ioas_unmap>(),
            ioas_id: self.id,
            iova,
            length: size,
        };
        // SAFETY: the structure is complete; the kernel writes back `length` within it.
        let returned = unsafe { ioctl_with_mut_ref(&self.iommufd, IOAS_UNMAP.number, &mut unmap) };
        IOAS_UNMAP.check(returned).map(drop)
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        let destroy = iommu_destroy { size: argsz::<iommu_destroy>(), id: self.id };
        // SAFETY: the structure is complete, and the kernel only reads it.
        let returned = unsafe { ioctl_with_ref(&self.iommufd, DESTROY.number, &destroy) };
        if let Err(error) = DESTROY.check(returned) {
            log::error!("the address space {}: {error}: {}", self.id, error.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_header() {
        // ';' << 8 | command: `_IO(';', 0x8n)`.
        let cases = [
            (DESTROY, 0x3b80),
            (IOAS_ALLOC, 0x3b81),
            (IOAS_IOVA_RANGES, 0x3b84),
            (IOAS_MAP, 0x3b85),
            (IOAS_UNMAP, 0x3b86),
        ];
        for (request, number) in cases {
            assert_eq!(request.number, number, "{}", request.name);
        }
    }

    #[test]
    fn another_file_is_no_iommufd() {
        let error = Ioas::new(File::open("/dev/null").unwrap().into()).unwrap_err();
        assert!(error.is(libc::ENOTTY) && error.request == "IOMMU_IOAS_ALLOC", "{error:?}");
    }
}
