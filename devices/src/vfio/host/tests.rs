use super::super::testing::FakeHost;
use super::*;

const DMA: &str = "2c0a0000.dma";

#[test]
fn a_device_is_found_by_its_name_on_either_bus() {
    let fake = FakeHost::new();
    fake.device("platform", DMA, None, None);
    fake.device("amba", "2c0c0000.dma", None, None);
    let host = fake.host();
    for (name, bus) in [(DMA, HostBus::Platform), ("2c0c0000.dma", HostBus::Amba)] {
        let device = host.find(name).unwrap().unwrap();
        assert_eq!((device.name(), device.bus()), (name, bus));
        assert_eq!(device.path(), fake.path(format!("sys/devices/{bus}/{name}")));
    }
    for name in ["2c0b0000.dma", "", ".", ".."] {
        assert_eq!(host.find(name).unwrap(), None, "{name:?}");
    }
}

#[test]
fn a_device_is_found_by_its_path() {
    let fake = FakeHost::new();
    fake.device("amba", DMA, None, None);
    fake.device("pci", "0000:00:01.0", None, None);
    fake.write("elsewhere/2c0a0000.dma/x", "");
    let find = |path: &str| fake.host().find(fake.path(path).to_str().unwrap()).unwrap();
    let by_name = fake.host().find(DMA).unwrap();
    assert_eq!(find("sys/devices/amba/2c0a0000.dma"), by_name);
    assert_eq!(find("sys/bus/amba/devices/2c0a0000.dma"), by_name);
    assert_eq!(find("sys/devices/pci/0000:00:01.0").map(|device| device.bus()), Some(HostBus::Pci));
    fake.device("usb", "1-1", None, None);
    for path in ["sys/devices/usb/1-1", "sys/bus", "sys/none", "elsewhere/2c0a0000.dma"] {
        assert_eq!(find(path), None, "{path}");
    }
}

#[test]
fn a_pci_function_is_found_without_its_domain_and_identified() {
    let fake = FakeHost::new();
    fake.device("pci", "0000:00:05.0", None, None);
    let path = "sys/devices/pci/0000:00:05.0";
    fake.write(format!("{path}/class"), "0x010802\n");
    fake.write(format!("{path}/vendor"), "0x1b36\n");
    fake.write(format!("{path}/device"), "nonsense\n");
    fake.write(format!("{path}/config"), [0x36, 0x1b]);
    let device = fake.host().find("00:05.0").unwrap().unwrap();
    assert_eq!(Some(&device), fake.host().find("0000:00:05.0").unwrap().as_ref());
    let identity = PciIdentity { class: 0x1_0802, vendor: 0x1b36, device: 0 };
    assert_eq!(device.pci_identity().unwrap(), Some(identity));
    assert_eq!(device.pci_config().unwrap(), [0x36, 0x1b]);
    for name in ["00:06.0", "00:05.1", ":", "0:0:05.0"] {
        assert_eq!(fake.host().find(name).unwrap(), None, "{name}");
    }
    fake.device("amba", DMA, None, None);
    let other = fake.host().find(DMA).unwrap().unwrap();
    assert_eq!((other.pci_identity().unwrap(), other.pci_config().unwrap()), (None, vec![]));
}

#[test]
fn a_pci_function_is_behind_the_iommu_of_its_host_bridge() {
    let fake = FakeHost::new();
    fake.device("pci", "0000:00:05.0", None, None);
    fake.device("platform", "pcie", None, None);
    let behind = || fake.host().find("00:05.0").unwrap().unwrap().behind_iommu().unwrap();
    assert!(!behind());
    // The bridge's directory is above its devices'.
    fake.write("sys/firmware/devicetree/base/pcie/iommu-map", [0; 16]);
    fake.link("sys/devices/pci/of_node", "sys/firmware/devicetree/base/pcie");
    assert!(behind());
    fake.link("sys/devices/platform/of_node", "sys/firmware/devicetree/base/pcie");
    assert!(!fake.host().find("pcie").unwrap().unwrap().behind_iommu().unwrap());
}

#[test]
fn driver_override_and_group_are_read() {
    let fake = FakeHost::new();
    fake.device("platform", DMA, Some("dma-pl330"), Some(3));
    let device = fake.host().find(DMA).unwrap().unwrap();
    assert_eq!(device.driver().unwrap().as_deref(), Some("dma-pl330"));
    assert_eq!(device.driver_override().unwrap(), None);
    assert_eq!(device.group().unwrap(), Some(3));
    assert_eq!(device.of_node().unwrap(), None);
    fake.write("sys/devices/platform/2c0a0000.dma/driver_override", "vfio-platform\n");
    assert_eq!(device.driver_override().unwrap().as_deref(), Some("vfio-platform"));
    fake.device("platform", "9000000.uart", None, None);
    let uart = fake.host().find("9000000.uart").unwrap().unwrap();
    assert_eq!((uart.driver().unwrap(), uart.group().unwrap()), (None, None));
}

#[test]
fn a_group_names_its_members_with_their_drivers() {
    let fake = FakeHost::new();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    fake.device("amba", "1.dma", None, Some(3));
    fake.device("platform", "2.dma", Some("x"), Some(4));
    let group = fake.host().group(3);
    let members = group.members().unwrap();
    let members: Vec<_> =
        members.iter().map(|m| (m.name.as_str(), m.bus.as_str(), m.driver.as_deref())).collect();
    assert_eq!(members, [("1.dma", "amba", None), (DMA, "platform", Some("vfio-platform"))]);
    assert_eq!(group.reserved_regions().unwrap().len(), 1);
    assert!(!group.is_noiommu().unwrap());
    fake.write("sys/kernel/iommu_groups/3/name", "vfio-noiommu\n");
    assert!(group.is_noiommu().unwrap());
    assert_eq!(fake.host().group(9).members().unwrap(), []);
}

#[test]
fn module_flags_are_yes_no_or_absent() {
    let fake = FakeHost::new();
    for (value, expected) in [("Y\n", true), ("1\n", true), ("N\n", false), ("", false)] {
        fake.write("sys/module/vfio_platform/parameters/reset_required", value);
        let flag = fake.host().flag("vfio_platform", "reset_required").unwrap();
        assert_eq!(flag, Some(expected), "{value:?}");
    }
    assert_eq!(fake.host().flag("vfio_platform", "absent").unwrap(), None);
}

#[test]
fn a_read_error_names_the_file() {
    let fake = FakeHost::new();
    fake.mkdir("sys/module/m/parameters/p");
    let error = fake.host().flag("m", "p").unwrap_err();
    assert_eq!(error.path, fake.path("sys/module/m/parameters/p"));
    assert!(error.to_string().ends_with("sys/module/m/parameters/p"), "{error}");
}

#[test]
fn a_file_of_proc_has_a_field_a_line() {
    let status = "Name:\tUid:\nUid:\t1000\t1000\t0\t0\nThreads:\t3\nMemFree:   12 kB\n";
    let cases =
        [("Uid", Some("1000")), ("Threads", Some("3")), ("MemFree", Some("12")), ("Cap", None)];
    for (name, value) in cases {
        assert_eq!(proc_field(status, name), value, "{name}");
    }
}
