//! The information about a device's region.

use std::ops::Range;

use serde::{Serialize, Serializer};
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_READ,
    VFIO_REGION_INFO_FLAG_WRITE,
};

use crate::extent::Extent;

use super::capability::{capabilities, pairs, u32_at, u64_at};

/// The answer to `VFIO_DEVICE_GET_REGION_INFO`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RegionInfo {
    /// Its index.
    pub index: u32,
    /// Its size in bytes.
    pub size: u64,
    /// Its offset in the device file, in bytes.
    #[serde(skip)]
    pub offset: u64,
    /// It can be read.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
    /// It can be mapped into memory.
    pub mappable: bool,
    /// The parts of a mappable region that can be mapped, in bytes from its start; `None` for all of it
    /// (`VFIO_REGION_INFO_CAP_SPARSE_MMAP`).
    #[serde(serialize_with = "as_extents")]
    pub areas: Option<Vec<Range<u64>>>,
    /// The MSI-X table of a PCI function can be mapped too
    /// (`VFIO_REGION_INFO_CAP_MSIX_MAPPABLE`).
    pub msix_mappable: bool,
}

impl RegionInfo {
    /// Parses a `struct vfio_region_info` and its capability chain.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let flags = u32_at(bytes, 4).unwrap_or(0);
        let mut info = Self {
            index: u32_at(bytes, 8).unwrap_or(0),
            size: u64_at(bytes, 16).unwrap_or(0),
            offset: u64_at(bytes, 24).unwrap_or(0),
            readable: flags & VFIO_REGION_INFO_FLAG_READ != 0,
            writable: flags & VFIO_REGION_INFO_FLAG_WRITE != 0,
            mappable: flags & VFIO_REGION_INFO_FLAG_MMAP != 0,
            ..Self::default()
        };
        if flags & VFIO_REGION_INFO_FLAG_CAPS == 0 {
            return info;
        }
        for (id, capability) in capabilities(bytes, u32_at(bytes, 12).unwrap_or(0)) {
            match id {
                VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                    let area = |(start, size): (u64, u64)| Some(start..start.checked_add(size)?);
                    info.areas = pairs(capability).map(|areas| areas.filter_map(area).collect());
                }
                VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => info.msix_mappable = true,
                _ => {}
            }
        }
        info
    }
}

fn as_extents<S: Serializer>(
    areas: &Option<Vec<Range<u64>>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let extents = areas.as_ref().map(|areas| areas.iter().map(Extent::from).collect::<Vec<_>>());
    extents.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `struct vfio_region_info` of region 2 with these flags, and capabilities from 32 on.
    fn region(flags: u32, capabilities: &[u32]) -> Vec<u8> {
        let words = [32, flags, 2, 32, 0x4000, 0, 0x20_0000, 0];
        words.iter().chain(capabilities).flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn the_mappable_parts_of_a_region_are_parsed() {
        // READ 1, WRITE 2, MMAP 4, CAPS 8; the sparse areas (identity 1, version 1), two of them,
        // then MSI-X (identity 3).
        let sparse = [1 << 16 | 1, 32 + 48, 2, 0, 0, 0, 0x1000, 0, 0x3000, 0, 0x1000, 0];
        let msix = [1 << 16 | 3, 0];
        let plain = RegionInfo {
            index: 2,
            size: 0x4000,
            offset: 0x20_0000,
            readable: true,
            writable: true,
            mappable: true,
            ..Default::default()
        };
        assert_eq!(RegionInfo::parse(&region(7, &[])), plain);
        let found = RegionInfo::parse(&region(15, &[sparse.as_slice(), &msix].concat()));
        let areas = Some(vec![0..0x1000, 0x3000..0x4000]);
        assert_eq!(found, RegionInfo { areas, msix_mappable: true, ..plain });
    }
}
