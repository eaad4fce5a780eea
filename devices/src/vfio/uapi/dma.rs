//! What vfio-ioctls says of a refused DMA mapping, as the request that was refused and the system's
//! error number.

use std::io;

use iommufd_ioctls::IommufdError;
use vfio_ioctls::VfioError;

use super::IoctlError;

/// The request that failed, and with what.
pub(in super::super) fn refusal(error: VfioError) -> IoctlError {
    let (request, source) = match error {
        VfioError::OpenContainer(source) => return IoctlError { request: "open", source },
        VfioError::IommuDmaMap(source) => ("VFIO_IOMMU_MAP_DMA", source),
        VfioError::IommuDmaUnmap(source) => ("VFIO_IOMMU_UNMAP_DMA", source),
        VfioError::NewVfioIommufd(IommufdError::IommuIoasAlloc(source)) => {
            ("IOMMU_IOAS_ALLOC", source)
        }
        VfioError::IommufdIoctlError(IommufdError::IommuIoasMap(source)) => {
            ("IOMMU_IOAS_MAP", source)
        }
        VfioError::IommufdIoctlError(IommufdError::IommuIoasUnmap(source)) => {
            ("IOMMU_IOAS_UNMAP", source)
        }
        other => return IoctlError { request: "VFIO", source: io::Error::other(other) },
    };
    IoctlError { request, source: source.into() }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::errno;

    use super::*;

    #[test]
    fn the_systems_error_number_is_kept() {
        let enomem = || errno::Error::new(libc::ENOMEM);
        let iommufd = |error| VfioError::IommufdIoctlError(error);
        let cases = [
            (VfioError::IommuDmaMap(enomem()), "VFIO_IOMMU_MAP_DMA"),
            (VfioError::IommuDmaUnmap(enomem()), "VFIO_IOMMU_UNMAP_DMA"),
            (iommufd(IommufdError::IommuIoasMap(enomem())), "IOMMU_IOAS_MAP"),
            (iommufd(IommufdError::IommuIoasUnmap(enomem())), "IOMMU_IOAS_UNMAP"),
        ];
        for (error, request) in cases {
            let refusal = refusal(error);
            assert!(refusal.request == request && refusal.is(libc::ENOMEM), "{refusal:?}");
        }
        let short = refusal(VfioError::InvalidDmaUnmapSize);
        assert_eq!(short.source.to_string(), "invalid dma unmap size");
    }
}
