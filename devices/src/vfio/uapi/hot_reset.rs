//! The reset of a PCI function's slot or bus, which resets all functions that are there (VFIO's hot reset).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_DEVID_NOT_OWNED, VFIO_PCI_HOT_RESET_FLAG_DEV_ID, vfio_pci_dependent_device,
    vfio_pci_hot_reset_info,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ptr};

use super::capability::u32_at;
use super::{IoctlError, Request, argsz};

const GET_HOT_RESET_INFO: Request = Request::new("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", 12);
const HOT_RESET: Request = Request::new("VFIO_DEVICE_PCI_HOT_RESET", 13);

/// How many functions there is room for at first: those of a slot.
const USUAL_FUNCTIONS: u32 = 8;

/// The most that are accepted: those of all buses of a segment (PCI Express Base 5.0, 2.2.6.2).
const MAX_FUNCTIONS: u32 = 1 << 16;

/// A function that a hot reset resets (`struct vfio_pci_dependent_device`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedFunction {
    /// Its name in sysfs, such as `0000:05:00.1`.
    pub name: String,
    /// Whose it is.
    pub owner: FunctionOwner,
}

/// Whose a function is, as VFIO tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionOwner {
    /// Its IOMMU group's: the number. The answer to a function that was opened through its group.
    Group(u32),
    /// It belongs to the iommufd to which the function is bound that was asked: it is bound to it too, or
    /// it is bound to VFIO's driver and in the group of one that is (`VFIO_PCI_DEVID_OWNED`).
    SameIommufd,
    /// It doesn't (`VFIO_PCI_DEVID_NOT_OWNED`).
    Another,
}

/// The functions that a hot reset of the function `file` resets, itself among them.
pub(super) fn info(file: &File) -> Result<Vec<AffectedFunction>, IoctlError> {
    let mut room = USUAL_FUNCTIONS;
    loop {
        let size = room
            .saturating_mul(argsz::<vfio_pci_dependent_device>())
            .saturating_add(argsz::<vfio_pci_hot_reset_info>());
        let mut bytes = size.to_ne_bytes().to_vec();
        bytes.resize(usize::try_from(size).unwrap_or_default(), 0);
        // SAFETY: the kernel writes at most `argsz` bytes, the length of `bytes`.
        let returned =
            unsafe { ioctl_with_mut_ptr(file, GET_HOT_RESET_INFO.number, bytes.as_mut_ptr()) };
        let count = u32_at(&bytes, 8).unwrap_or_default();
        match GET_HOT_RESET_INFO.check(returned) {
            Ok(_) => return Ok(parse(&bytes)),
            // There are more: the kernel tells how many.
            Err(error) if error.is(libc::ENOSPC) && count > room && count <= MAX_FUNCTIONS => {
                room = count;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Parses a `struct vfio_pci_hot_reset_info`.
fn parse(bytes: &[u8]) -> Vec<AffectedFunction> {
    let by_id = u32_at(bytes, 4).unwrap_or_default() & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0;
    let count = u32_at(bytes, 8).and_then(|count| usize::try_from(count).ok()).unwrap_or_default();
    let functions = bytes.get(argsz::<vfio_pci_hot_reset_info>() as usize..).unwrap_or_default();
    let functions = functions.chunks_exact(size_of::<vfio_pci_dependent_device>()).take(count);
    let function = |function: &[u8]| {
        let [a, b, c, d, segment @ .., bus, place] = *function.first_chunk::<8>()?;
        let (id, segment) = (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes(segment));
        let (device, number) = (place >> 3, place & 7);
        let owner = match id {
            _ if !by_id => FunctionOwner::Group(id),
            _ if id.cast_signed() == VFIO_PCI_DEVID_NOT_OWNED => FunctionOwner::Another,
            _ => FunctionOwner::SameIommufd,
        };
        let name = format!("{segment:04x}:{bus:02x}:{device:02x}.{number:x}");
        Some(AffectedFunction { name, owner })
    };
    functions.filter_map(function).collect()
}

/// Has VFIO reset the slot or bus of the function `file`. `groups` are the groups of all functions there, none
/// if it was opened by its own file.
pub(super) fn reset(file: &File, groups: &[BorrowedFd<'_>]) -> Result<(), IoctlError> {
    let request = hot_reset(groups).ok_or_else(|| {
        HOT_RESET.refused(io::ErrorKind::InvalidInput, "more groups than there can be")
    })?;
    // SAFETY: the kernel reads at most `argsz` bytes, the size of `request`.
    HOT_RESET.check(unsafe { ioctl_with_ptr(file, HOT_RESET.number, request.as_ptr()) }).map(drop)
}

/// A `struct vfio_pci_hot_reset` with these groups.
fn hot_reset(groups: &[BorrowedFd<'_>]) -> Option<Vec<u32>> {
    let count = u32::try_from(groups.len()).ok()?;
    let size = count.checked_mul(4)?.checked_add(argsz::<[u32; 3]>())?;
    let files = groups.iter().map(|group| group.as_raw_fd().cast_unsigned());
    Some([size, 0, count].into_iter().chain(files).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// An answer with these flags: of each function its group or ID, its segment, bus and place.
    fn answer(flags: u32, functions: &[(u32, u16, u8, u8)]) -> Vec<u8> {
        let count = u32::try_from(functions.len()).unwrap();
        let mut bytes = [76, flags, count].map(u32::to_ne_bytes).concat();
        for (id, segment, bus, place) in functions {
            bytes.extend(id.to_ne_bytes());
            bytes.extend(segment.to_ne_bytes());
            bytes.extend([*bus, *place]);
        }
        // Room that the kernel didn't need.
        bytes.extend([0; 8]);
        bytes
    }

    #[test]
    fn affected_functions_are_named_as_in_sysfs() {
        let named = |name: &str, owner| AffectedFunction { name: name.to_owned(), owner };
        let groups = parse(&answer(0, &[(7, 0, 5, 0), (9, 1, 0x8a, 0xff)]));
        let group = FunctionOwner::Group;
        assert_eq!(groups, [named("0000:05:00.0", group(7)), named("0001:8a:1f.7", group(9))]);
        // DEV_ID 1, DEV_ID_OWNED 2.
        let ids = parse(&answer(1, &[(3, 0, 1, 0), (0, 0, 1, 1), (u32::MAX, 0, 1, 2)]));
        let owners: Vec<_> = ids.iter().map(|function| function.owner).collect();
        use FunctionOwner::{Another, SameIommufd};
        assert_eq!(owners, [SameIommufd, SameIommufd, Another]);
    }

    #[test]
    fn an_answer_that_is_too_short_ends_where_it_ends() {
        let whole = answer(0, &[(7, 0, 5, 0), (7, 0, 5, 1)]);
        for (length, count) in [(28, 2), (27, 1), (12, 0), (11, 0), (0, 0)] {
            assert_eq!(parse(&whole[..length]).len(), count, "{length}");
        }
        let mut more = whole;
        more[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse(&more).len(), 3);
    }

    #[test]
    fn the_request_is_what_the_header_describes() {
        assert_eq!(hot_reset(&[]).unwrap(), [12, 0, 0]);
        let file = File::open("/dev/null").unwrap();
        let fd = u32::try_from(file.as_raw_fd()).unwrap();
        assert_eq!(hot_reset(&[file.as_fd(), file.as_fd()]).unwrap(), [20, 0, 2, fd, fd]);
        // ';' << 8 | 100 + n: `_IO(';', 100 + n)`.
        assert_eq!((GET_HOT_RESET_INFO.number, HOT_RESET.number), (0x3b70, 0x3b71));
    }
}
