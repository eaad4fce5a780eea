//! The limits of devices by the `dma-ranges` of their buses.

use super::super::super::assign::{DeviceRef, preflight};
use super::super::super::testing::FakeHost;
use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A platform device and a PCI function of which the root and the PCI host have these
/// `dma-ranges`: address, address above, size, of two cells each.
fn constraints(root: &[u64], pci: &[u64]) -> DmaConstraints {
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
    let constraints = constraints(&[], &[]);
    assert_eq!(constraints.check_ram(GIB, 1 << 40), Ok(vec![]));
    assert!(constraints.reaches(0, 1 << 40));
}

#[test]
fn a_device_that_can_address_enough_of_ram_is_reported() {
    // The lower 2 GiB: boards have such masters.
    let constraints = constraints(&[0, 0, 2 * GIB], &[0, 0, 1 << 40]);
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
        let error = constraints(ranges, &[]).check_ram(GIB, 2 * GIB).unwrap_err();
        assert!(matches!(error, DmaConstraintError::OutOfReach { .. }), "{error}");
        assert!(error.to_string().contains("1.dma"), "{error}");
        let said = error.help().unwrap();
        assert_eq!(said.contains("--memory"), help.is_some(), "{said}");
        assert!(said.contains(help.unwrap_or("0x40000000")), "{said}");
    }
    let constraints = constraints(&[0, 0, GIB + 255 * MIB], &[]);
    assert_eq!(constraints.check_ram(GIB, 255 * MIB), Ok(vec![]));
}

#[test]
fn a_pci_function_must_be_able_to_address_all_of_ram() {
    let constraints = constraints(&[], &[0, 0, 2 * GIB]);
    assert_eq!(constraints.check_ram(GIB, GIB), Ok(vec![]));
    let error = constraints.check_ram(GIB, GIB + MIB).unwrap_err();
    assert!(error.to_string().contains("/pcie lets 0000:00:05.0 address 0x0-0x7fffffff"));
    assert!(error.help().unwrap().contains("--memory 1024M"), "{error}");
}
