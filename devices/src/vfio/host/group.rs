//! An IOMMU group: devices that the IOMMU can't isolate from each other.

use std::fs;
use std::path::PathBuf;

use boot::order;
use serde::Serialize;

use super::{ReadError, found, link_name, read_line};

/// A device of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupMember {
    /// Its name in sysfs.
    pub name: String,
    /// The bus it is on, such as `platform`.
    pub bus: String,
    /// The driver it is bound to.
    pub driver: Option<String>,
}

impl GroupMember {
    /// Whether its driver leaves the group viable: it is one of VFIO's, or one of the few that do no DMA
    /// (`driver_managed_dma` in the kernel's `struct device_driver`).
    pub fn leaves_dma_to_vfio(&self) -> bool {
        self.driver.as_deref().is_none_or(|driver| {
            driver.starts_with("vfio-") || matches!(driver, "pci-stub" | "pcieport")
        })
    }
}

/// IOVAs that can't be mapped, a line of the group's `reserved_regions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReservedRegion {
    /// Its first IOVA.
    pub start: u64,
    /// Its last IOVA.
    pub end: u64,
    /// Its type: `msi`, `direct`, `direct-relaxable` or `reserved`.
    pub kind: String,
}

impl ReservedRegion {
    /// Parses a line: two hexadecimal numbers and a word.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let mut number = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let (start, end) = (number()?, number()?);
        Some(Self { start, end, kind: words.next()?.to_owned() })
    }

    /// Whether VFIO refuses to map it; regions that only firmware needed may be mapped.
    pub fn is_enforced(&self) -> bool {
        self.kind != "direct-relaxable"
    }
}

/// A group, and what sysfs says of it at the time of asking.
#[derive(Clone, Debug)]
pub struct IommuGroup {
    number: u32,
    path: PathBuf,
}

impl IommuGroup {
    pub(super) fn new(number: u32, path: PathBuf) -> Self {
        Self { number, path }
    }

    /// Its number, also the name of its file in `/dev/vfio`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether it is VFIO's own, without an IOMMU (`enable_unsafe_noiommu_mode`).
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn is_noiommu(&self) -> Result<bool, ReadError> {
        Ok(read_line(&self.path.join("name"))?.as_deref() == Some("vfio-noiommu"))
    }

    /// Its devices, sorted by name.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn members(&self) -> Result<Vec<GroupMember>, ReadError> {
        let path = self.path.join("devices");
        let entries = found(&path, fs::read_dir(&path))?.into_iter().flatten();
        let mut members = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| ReadError { path: path.clone(), source })?;
            members.push(GroupMember {
                name: entry.file_name().to_string_lossy().into_owned(),
                bus: link_name(&entry.path().join("subsystem"))?.unwrap_or_default(),
                driver: link_name(&entry.path().join("driver"))?,
            });
        }
        order::sort_by(&mut members, |a, b| a.name.cmp(&b.name));
        Ok(members)
    }

    /// What Linux itself uses it for: `DMA`, `DMA-FQ` or `identity`
    /// (`Documentation/ABI/testing/sysfs-kernel-iommu_groups`).
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn domain_type(&self) -> Result<Option<String>, ReadError> {
        read_line(&self.path.join("type"))
    }

    /// Whether Linux itself uses it untranslated: without a guest, its devices reach all of the host's memory.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn is_identity(&self) -> Result<bool, ReadError> {
        Ok(self.domain_type()?.as_deref() == Some("identity"))
    }

    /// Its reserved regions. A line that can't be parsed is skipped: VFIO still refuses to map it.
    ///
    /// # Errors
    ///
    /// Sysfs can't be read.
    pub fn reserved_regions(&self) -> Result<Vec<ReservedRegion>, ReadError> {
        let path = self.path.join("reserved_regions");
        let text = found(&path, fs::read_to_string(&path))?.unwrap_or_default();
        Ok(text.lines().filter_map(ReservedRegion::parse).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_regions_are_two_numbers_and_a_word() {
        let region =
            |start, end, kind: &str| Some(ReservedRegion { start, end, kind: kind.into() });
        let cases = [
            ("0x0000000008000000 0x00000000080fffff msi", region(0x800_0000, 0x80f_ffff, "msi")),
            ("0x0 0xffffffffffffffff reserved", region(0, u64::MAX, "reserved")),
            ("0x0 0x10", None),
            ("0x0 ten msi", None),
            ("8000000 80fffff msi", None),
            ("", None),
        ];
        for (line, expected) in cases {
            assert_eq!(ReservedRegion::parse(line), expected, "{line}");
        }
    }

    #[test]
    fn drivers_that_do_dma_make_a_group_not_viable() {
        let cases = [
            (None, true),
            (Some("vfio-platform"), true),
            (Some("vfio-amba"), true),
            (Some("pcieport"), true),
            (Some("dma-pl330"), false),
            (Some("vfio"), false),
        ];
        for (driver, leaves) in cases {
            let driver = driver.map(str::to_owned);
            let member = GroupMember { name: "x".into(), bus: "platform".into(), driver };
            assert_eq!(member.leaves_dma_to_vfio(), leaves, "{member:?}");
        }
    }
}
