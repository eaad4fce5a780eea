use super::super::super::assign::{DeviceRef, preflight};
use super::super::super::testing::FakeHost;
use super::*;

const GIB: u64 = 1 << 30;

fn constraints(regions: &str) -> DmaConstraints {
    let fake = FakeHost::with_vfio();
    fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
    fake.device("platform", "2.dma", Some("vfio-platform"), Some(3));
    fake.device("platform", "3.dma", Some("vfio-platform"), Some(4));
    fake.write("sys/kernel/iommu_groups/3/reserved_regions", regions);
    fake.write("sys/kernel/iommu_groups/4/reserved_regions", "");
    let host = fake.host();
    let assignments = preflight(&host, &["1.dma", "2.dma", "3.dma"].map(DeviceRef::from)).unwrap();
    DmaConstraints::of(&host, &assignments).unwrap()
}

#[test]
fn ram_may_not_overlap_reserved_regions() {
    let constraints = constraints(
        "0x8000000 0x80fffff msi\n0x80000000 0x8000ffff direct\n\
         0x50000000 0x5fffffff direct-relaxable\n",
    );
    // GPA, size, start of the region that it overlaps.
    let cases = [
        (GIB, GIB, None),
        (0, 0x800_0000, None),
        (0x810_0000, 0x1000, None),
        (0x810_0000, 0, None),
        (GIB, GIB + 0x1000, Some(0x8000_0000)),
        (0, 0x800_1000, Some(0x800_0000)),
        (0x80f_f000, 0x1000, Some(0x800_0000)),
        (0x800_1000, 0x1000, Some(0x800_0000)),
        (0x7fff_f000, u64::MAX, Some(0x8000_0000)),
    ];
    for (gpa, size, expected) in cases {
        let start = match constraints.check(gpa, size) {
            Ok(()) => None,
            Err(DmaConstraintError::Reserved { reserved, .. }) => Some(reserved.region.start),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(start, expected, "{gpa:#x} {size:#x}");
    }
}

#[test]
fn the_error_names_the_reserved_region_and_its_devices() {
    let error = constraints("0x80000000 0x800fffff msi\n").check(GIB, 2 * GIB).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the guest's RAM at 0x40000000-0xbfffffff can't be mapped for DMA: \
         0x80000000-0x800fffff is reserved (msi) for 1.dma, 2.dma"
    );
    let help = "give the guest less memory: 1024 MiB fit at 0x40000000";
    assert_eq!(error.help().as_deref(), Some(help));
    let below = constraints("0x40000000 0x400fffff msi\n").check(GIB, GIB).unwrap_err();
    assert_eq!(below.help(), None);
}

#[test]
fn ram_stays_within_one_iova_range_and_whole_pages() {
    let mut constraints = constraints("");
    let ranges = Some(vec![0..=0x7ff_ffff, 0x810_0000..=0xffff_ffff]);
    let info = IommuInfo { alignment: 0x1000, iova_ranges: ranges, ..Default::default() };
    constraints.limit_to(&info);
    assert_eq!(constraints.check(GIB, 3 * GIB), Ok(()));
    let beyond = constraints.check(GIB, 3 * GIB + 0x1000).unwrap_err();
    assert_eq!(
        beyond.help().as_deref(),
        Some("give the guest less memory: 3072 MiB fit at 0x40000000")
    );
    assert!(beyond.to_string().ends_with("the IOMMU maps 0x0-0x7ffffff, 0x8100000-0xffffffff"));
    assert!(constraints.check(4 * GIB, GIB).unwrap_err().help().is_none());
    assert!(constraints.check(0, 0x900_0000).is_err());
    for (gpa, size) in [(GIB + 0x800, 0x1000), (GIB, 0x1800)] {
        let misaligned = DmaConstraintError::Misaligned { gpa, size, page: 0x1000 };
        assert_eq!(constraints.check(gpa, size), Err(misaligned));
    }
}

#[test]
fn ram_has_its_place_behind_what_is_in_its_way() {
    let mut constraints = constraints("0x50000000 0x50001fff msi\n");
    let place = |constraints: &DmaConstraints, size| constraints.place(GIB, size, 2 * MIB);
    assert_eq!(place(&constraints, 256 * MIB), Some(GIB));
    assert_eq!(place(&constraints, 257 * MIB), Some(0x5020_0000));
    let ranges = Some(vec![0..=0x7fff_ffff, 0x1_0010_0000..=0xff_ffff_ffff]);
    constraints.limit_to(&IommuInfo {
        alignment: 0x1000,
        iova_ranges: ranges,
        ..Default::default()
    });
    assert_eq!(place(&constraints, 2 * GIB), Some(0x1_0020_0000));
    assert_eq!(place(&constraints, 1024 * GIB), None);
    assert_eq!(place(&constraints, u64::MAX), None);
}

const MIB: u64 = 1 << 20;

/// A platform device and a PCI function of which the root and the PCI host have these
/// `dma-ranges`: address, address above, size, of two cells each.
fn with_dma_ranges(root: &[u64], pci: &[u64]) -> DmaConstraints {
    let fake = FakeHost::with_vfio();
    fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
    fake.behind_iommu("platform", "1.dma");
    let base = "sys/firmware/devicetree/base";
    let cells = |numbers: &[u64], space: &[u32]| -> Vec<u8> {
        let entry = |entry: &[u64]| {
            let halves = entry.iter().flat_map(|n| n.to_be_bytes());
            let space = space.iter().flat_map(|cell| cell.to_be_bytes());
            space.chain(halves).collect::<Vec<u8>>()
        };
        numbers.chunks(3).flat_map(entry).collect()
    };
    for node in ["", "pcie/"] {
        fake.write(format!("{base}/{node}#size-cells"), 2_u32.to_be_bytes());
    }
    fake.write(format!("{base}/#address-cells"), 2_u32.to_be_bytes());
    fake.write(format!("{base}/pcie/#address-cells"), 3_u32.to_be_bytes());
    fake.write(format!("{base}/pcie/device_type"), "pci\0");
    if !root.is_empty() {
        fake.write(format!("{base}/dma-ranges"), cells(root, &[]));
    }
    if !pci.is_empty() {
        fake.write(format!("{base}/pcie/dma-ranges"), cells(pci, &[0x4200_0000]));
    }
    let host = "sys/devices/platform/1.pcie";
    let function = format!("{host}/pci0000:00/0000:00:05.0");
    fake.link(format!("{host}/of_node"), format!("{base}/pcie"));
    fake.write(format!("{function}/class"), "0x010802\n");
    fake.mkdir("sys/bus/pci/drivers/vfio-pci");
    fake.link(format!("{function}/driver"), "sys/bus/pci/drivers/vfio-pci");
    fake.link(format!("{function}/subsystem"), "sys/bus/pci");
    fake.link("sys/bus/pci/devices/0000:00:05.0", &function);
    fake.link(format!("{function}/iommu_group"), "sys/kernel/iommu_groups/4");
    for group in [3, 4] {
        fake.write(format!("sys/kernel/iommu_groups/{group}/reserved_regions"), "");
    }
    fake.mkdir("sys/kernel/iommu_groups/4/devices");
    let wanted = ["1.dma", "0000:00:05.0"].map(DeviceRef::from);
    DmaConstraints::of(&fake.host(), &preflight(&fake.host(), &wanted).unwrap()).unwrap()
}

#[test]
fn without_dma_ranges_ram_can_be_anywhere() {
    let constraints = with_dma_ranges(&[], &[]);
    assert_eq!(constraints.check_ram(GIB, 1 << 40), Ok(vec![]));
    assert!(constraints.reaches(0, 1 << 40));
}

#[test]
fn a_device_that_can_address_enough_of_ram_is_reported() {
    // The lower 2 GiB: boards have such masters.
    let constraints = with_dma_ranges(&[0, 0, 2 * GIB], &[0, 0, 1 << 40]);
    assert_eq!(constraints.check_ram(GIB, GIB), Ok(vec![]));
    let parts = constraints.check_ram(GIB, 2 * GIB).unwrap();
    let [reach] = parts.as_slice() else { panic!("{parts:?}") };
    let text = "the bus / lets 1.dma address 0x0-0x7fffffff only (its dma-ranges)";
    assert_eq!(reach.to_string(), text);
    assert!(constraints.reaches(GIB, GIB) && !constraints.reaches(GIB, GIB + 1));
}

#[test]
fn ram_of_which_a_device_can_address_too_little_is_refused_with_what_fits() {
    let cases: [(&[u64], Option<&str>); 3] = [
        // None of it: it begins too high, or too low.
        (&[0, 0, GIB], None),
        (&[4 * GIB, 0, 0xffef_0000], None),
        // Too little for a kernel that copies.
        (&[0, 0, GIB + 255 * MIB], Some("--memory 255M")),
    ];
    for (ranges, help) in cases {
        let error = with_dma_ranges(ranges, &[]).check_ram(GIB, 2 * GIB).unwrap_err();
        assert!(matches!(error, DmaConstraintError::OutOfReach { .. }), "{error}");
        assert!(error.to_string().contains("1.dma"), "{error}");
        let said = error.help().unwrap();
        assert_eq!(said.contains("--memory"), help.is_some(), "{said}");
        assert!(said.contains(help.unwrap_or("0x40000000")), "{said}");
    }
    let constraints = with_dma_ranges(&[0, 0, GIB + 255 * MIB], &[]);
    assert_eq!(constraints.check_ram(GIB, 255 * MIB), Ok(vec![]));
}

#[test]
fn a_pci_function_must_be_able_to_address_all_of_ram() {
    let constraints = with_dma_ranges(&[], &[0, 0, 2 * GIB]);
    assert_eq!(constraints.check_ram(GIB, GIB), Ok(vec![]));
    let error = constraints.check_ram(GIB, GIB + MIB).unwrap_err();
    assert!(error.to_string().contains("/pcie lets 0000:00:05.0 address 0x0-0x7fffffff"));
    assert!(error.help().unwrap().contains("--memory 1024M"), "{error}");
}
