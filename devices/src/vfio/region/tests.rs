use std::os::unix::fs::FileExt;

use super::super::testing::FakeDevice;
use super::*;

const PAGE: u64 = 0x1_0000;

fn info(size: u64, offset: u64, mappable: bool) -> RegionInfo {
    RegionInfo { size, offset, readable: true, writable: true, mappable, ..Default::default() }
}

/// Two regions in one file: the first mapped, the second trapped.
fn regions() -> (Arc<FakeDevice>, [VfioRegion; 2]) {
    let regions = vec![info(PAGE, 0, true), info(0x1000, PAGE, false)];
    let device = Arc::new(FakeDevice::new(regions, Vec::new()));
    let open = |index| VfioRegion::open(device.clone(), index, Some(PAGE)).unwrap();
    let regions = [open(0), open(1)];
    (device, regions)
}

#[test]
fn a_region_is_mapped_if_vfio_permits_and_it_is_whole_pages() {
    // Size, MMAP flag, page size.
    let cases = [
        (0x1000, true, 0x1000, true),
        (0x1000, true, 0x1_0000, false),
        (0x1_0000, true, 0x1_0000, true),
        (0x1000, false, 0x1000, false),
        (0x1800, true, 0x1000, false),
        (0x800, true, 0x1000, false),
        (0, true, 0x1000, false),
    ];
    for (size, flag, page, expected) in cases {
        let found = mappable(&info(size, 0, flag), page, &[]);
        assert_eq!(
            found.first() == Some(&(0..size)),
            expected,
            "{size:#x} {flag} {page:#x}: {found:x?}"
        );
    }
    let (_, [mapped, trapped]) = regions();
    assert!(mapped.mapped().is_some());
    assert!(trapped.mapped().is_none());
}

#[test]
fn only_what_can_be_both_read_and_written_is_mapped() {
    for (readable, writable) in [(true, false), (false, true), (false, false)] {
        let info = RegionInfo { readable, writable, ..info(PAGE, 0, true) };
        assert_eq!(mappable(&info, 0x1000, &[]), []);
        let device = Arc::new(FakeDevice::new(vec![info], Vec::new()));
        let region = VfioRegion::open(device, 0, Some(PAGE)).unwrap();
        assert_eq!(region.areas().len(), 0, "{readable} {writable}");
        assert_eq!(
            (region.read(0, &mut [0]).is_ok(), region.write(0, &[0]).is_ok()),
            (readable, writable)
        );
    }
}

/// A file in memory of [`PAGE`] bytes with these seals.
fn sealed(seals: i32) -> std::fs::File {
    use std::os::fd::{AsRawFd, FromRawFd};
    // SAFETY: the name is a C string, and the descriptor nobody else's.
    let file = unsafe {
        let fd = libc::memfd_create(c"sealed".as_ptr(), libc::MFD_ALLOW_SEALING);
        std::fs::File::from_raw_fd(fd)
    };
    file.set_len(PAGE).unwrap();
    // SAFETY: F_ADD_SEALS takes a number.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
    file
}

#[test]
fn a_file_that_is_sealed_against_writing_is_not_mapped() {
    for seals in [libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE, libc::F_SEAL_FUTURE_WRITE] {
        let device = FakeDevice::over(sealed(seals), vec![info(PAGE, 0, true)]);
        let region = VfioRegion::open(Arc::new(device), 0, Some(PAGE)).unwrap();
        assert_eq!(region.areas().len(), 0);
        region.read(0, &mut [0]).unwrap();
        assert!(matches!(region.write(0, &[0]), Err(AccessError::Host(..))));
    }
}

#[test]
fn memory_that_is_taken_away_answers_with_an_error() {
    let device = Arc::new(FakeDevice::new(vec![info(PAGE, 0, true)], Vec::new()));
    let region = VfioRegion::open(device.clone(), 0, Some(PAGE)).unwrap();
    assert!(region.mapped().is_some());
    device.file().set_len(0).unwrap();
    assert!(matches!(region.read(0, &mut [0; 4]), Err(AccessError::Host(..))));
    // A file grows when it is written to; a device doesn't. That nothing is raised is the point.
    region.write(0x10, &[1, 2, 3, 4]).unwrap();
}

#[test]
fn a_region_whose_mapping_fails_traps() {
    let forged = RegionInfo { offset: u64::MAX - 0xffff, ..info(PAGE, 0, true) };
    let mut device = FakeDevice::new(Vec::new(), Vec::new());
    device.regions.push(forged);
    let region = VfioRegion::open(Arc::new(device), 0, Some(PAGE)).unwrap();
    assert!(region.mapped().is_none());
}

#[test]
fn accesses_of_every_size_reach_the_device_at_their_place() {
    let (device, regions) = regions();
    for (region, base) in regions.iter().zip([0, PAGE]) {
        for size in [1usize, 2, 4, 8] {
            let bytes: Vec<u8> = (1..=8).take(size).collect();
            region.write(0x10, &bytes).unwrap();
            let mut stored = vec![0; size];
            device.file().read_exact_at(&mut stored, base + 0x10).unwrap();
            assert_eq!(stored, bytes);
            let mut read = vec![0; size];
            region.read(0x10, &mut read).unwrap();
            assert_eq!(read, bytes);
        }
        region.write32(0xffc, 0x0403_0201).unwrap();
        assert_eq!(region.read32(0xffc).unwrap(), 0x0403_0201);
        let mut byte = [0];
        region.read(0xffc, &mut byte).unwrap();
        assert_eq!(byte, [1], "little-endian");
    }
}

#[test]
fn malformed_accesses_are_refused() {
    let (_, regions) = regions();
    for region in &regions {
        let end = region.size();
        for (offset, size) in [(0, 0), (0, 3), (0, 16), (1, 2), (2, 4), (4, 8)] {
            let mut data = vec![0; size];
            let read = region.read(offset, &mut data);
            assert!(matches!(read, Err(AccessError::Unaligned { .. })), "{offset} {size}");
            let write = region.write(offset, &data);
            assert!(matches!(write, Err(AccessError::Unaligned { .. })), "{offset} {size}");
        }
        for (offset, size) in [(end, 1), (end, 8), (u64::MAX - 7, 8), (u64::MAX, 1)] {
            let mut data = vec![0; size];
            let read = region.read(offset, &mut data);
            assert!(matches!(read, Err(AccessError::OutOfBounds { .. })), "{offset} {size}");
            let write = region.write(offset, &data);
            assert!(matches!(write, Err(AccessError::OutOfBounds { .. })), "{offset} {size}");
        }
    }
}

#[test]
fn accesses_that_vfio_does_not_permit_are_not_made() {
    for mappable in [true, false] {
        let closed = RegionInfo { readable: false, writable: false, ..info(PAGE, 0, mappable) };
        let device = Arc::new(FakeDevice::new(vec![closed], Vec::new()));
        let region = VfioRegion::open(device, 0, Some(PAGE)).unwrap();
        assert!(matches!(region.read(0, &mut [0]), Err(AccessError::NotPermitted("read"))));
        assert!(matches!(region.write(0, &[0]), Err(AccessError::NotPermitted("written"))));
    }
}

#[test]
fn a_trapped_access_that_fails_reads_as_zero() {
    let (_, [_, region]) = regions();
    let mut trapped = TrappedRegion::new("1.dma", Arc::new(region));
    assert_eq!(trapped.write(8, &[1, 2, 3, 4]), Action::None);
    let mut data = [0xff; 4];
    trapped.read(8, &mut data);
    assert_eq!(data, [1, 2, 3, 4]);
    trapped.read(0x1000, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn errors_of_the_device_are_returned() {
    // Behind the end of the file: reading fails, and writing too, as the file is read-only.
    let path = std::env::temp_dir().join(format!("strait-region-{}", std::process::id()));
    std::fs::write(&path, [0; 16]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let device = Arc::new(FakeDevice::over(file, vec![info(0x1000, 0, false)]));
    let region = Arc::new(VfioRegion::open(device, 0, Some(0x1000)).unwrap());
    assert!(matches!(region.read(0x800, &mut [0; 4]), Err(AccessError::Host(..))));
    assert!(matches!(region.write(0, &[0; 4]), Err(AccessError::Host(..))));
    let mut trapped = TrappedRegion::new("1.dev", region);
    for size in [1, 2, 4, 8] {
        let mut data = vec![0xff; size];
        trapped.read(0x800, &mut data);
        assert_eq!(data, vec![0; size]);
        assert_eq!(trapped.write(0x800, &data), Action::None);
    }
}

#[test]
fn the_last_bytes_of_a_region_can_be_accessed_and_none_beyond() {
    let (_, [_, region]) = regions();
    let mut trapped = TrappedRegion::new("1.dev", Arc::new(region));
    for size in [1_u64, 2, 4, 8] {
        let bytes: Vec<u8> = (1..=8).take(usize::try_from(size).unwrap()).collect();
        let mut read = bytes.clone();
        assert_eq!(trapped.write(0x1000 - size, &bytes), Action::None);
        trapped.read(0x1000 - size, &mut read);
        assert_eq!(read, bytes, "the last {size}");
        // Straddling the end, beyond it, and misaligned: nothing is read, nothing is written.
        for offset in [0x1000 - size / 2, 0x1000, 0x1000 - size - size / 2] {
            if size == 1 && offset < 0x1000 {
                continue;
            }
            let mut nothing = vec![0xff; bytes.len()];
            assert_eq!(trapped.write(offset, &nothing), Action::None);
            trapped.read(offset, &mut nothing);
            assert_eq!(nothing, vec![0; bytes.len()], "{size} at {offset:#x}");
        }
        trapped.read(0x1000 - size, &mut read);
        assert_eq!(read, bytes, "unharmed");
    }
}

#[test]
fn what_is_mapped_is_whole_pages_that_vfio_permits_around_the_holes() {
    type Ranges<'a> = &'a [(u64, u64)];
    // Size, sparse areas, page size, holes; what is mapped.
    let cases: [(u64, Option<Ranges<'_>>, u64, Ranges<'_>, Ranges<'_>); 11] = [
        (0x4000, None, 0x1000, &[(0x2000, 0x2100)], &[(0, 0x2000), (0x3000, 0x4000)]),
        (0x4000, None, 0x1000, &[(0x1ff8, 0x2008)], &[(0, 0x1000), (0x3000, 0x4000)]),
        (0x4000, None, 0x1000, &[(0x3000, 0x4000), (0, 0x10)], &[(0x1000, 0x3000)]),
        (0x4000, None, 0x1000, &[(0x3000, u64::MAX)], &[(0, 0x3000)]),
        // The table's page is all of the region where pages are large.
        (0x1_0000, None, 0x1_0000, &[(0x2000, 0x2100)], &[]),
        (0x4_0000, None, 0x1_0000, &[(0x2_2000, 0x2_2100)], &[(0, 0x2_0000), (0x3_0000, 0x4_0000)]),
        (
            0x4000,
            Some(&[(0, 0x1000), (0x3000, 0x4000)]),
            0x1000,
            &[],
            &[(0, 0x1000), (0x3000, 0x4000)],
        ),
        (0x4000, Some(&[(0x800, 0x2800)]), 0x1000, &[], &[(0x1000, 0x2000)]),
        (0x4000, Some(&[]), 0x1000, &[], &[]),
        // What a device can't mean: beyond its end, twice, and backwards.
        (
            0x4000,
            Some(&[(0x3000, 0x9000), (0, 0x2000), (0x1000, 0x3000)]),
            0x1000,
            &[],
            &[(0, 0x2000), (0x3000, 0x4000)],
        ),
        (0x4000, Some(&[(0x2000, 0x1000)]), 0x1000, &[], &[]),
    ];
    let ranges = |pairs: Ranges<'_>| pairs.iter().map(|(start, end)| *start..*end).collect();
    for (size, areas, page, holes, expected) in cases {
        let (areas, holes): (_, Vec<_>) = (areas.map(ranges), ranges(holes));
        let info = RegionInfo { areas, ..info(size, 0, true) };
        let expected: Vec<_> = ranges(expected);
        assert_eq!(mappable(&info, page, &holes), expected, "{info:x?} {holes:x?}");
        let closed = RegionInfo { mappable: false, ..info };
        assert_eq!(mappable(&closed, page, &holes), []);
    }
}

#[test]
fn mapped_and_trapped_parts_of_a_region_are_one() {
    let device = Arc::new(FakeDevice::new(vec![info(3 * PAGE, 0, true)], Vec::new()));
    let hole = PAGE..PAGE + 8;
    let holes = std::slice::from_ref(&hole);
    let region = VfioRegion::open_around(device.clone(), 0, Some(PAGE), holes).unwrap();
    let areas: Vec<_> = region.areas().iter().map(Area::range).collect();
    assert_eq!(areas, [0..PAGE, 2 * PAGE..3 * PAGE]);
    assert!(region.mapped().is_none());
    for offset in [0, PAGE - 8, PAGE, 2 * PAGE - 8, 2 * PAGE, 3 * PAGE - 8] {
        let bytes = (offset + 0x1122_3344_5566_7788).to_le_bytes();
        region.write(offset, &bytes).unwrap();
        let mut stored = [0; 8];
        device.file().read_exact_at(&mut stored, offset).unwrap();
        assert_eq!(stored, bytes, "{offset:#x}");
        let mut read = [0; 8];
        region.read(offset, &mut read).unwrap();
        assert_eq!(read, bytes, "{offset:#x}");
    }
}
