//! A fake host for tests: a directory with parts of `/sys`, `/proc` and `/dev`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use boot::fdt::host::HostTree;

use super::super::host::Host;
use super::super::node::{HostDeviceNode, NodeBuilder, NodeOptions, PhandleMap};

/// A directory that is removed with its contents when dropped.
pub(crate) struct FakeHost {
    root: PathBuf,
}

impl FakeHost {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("strait-fake-host-{}-{number}", std::process::id());
        // Without symbolic links, as the paths in errors are.
        let root = std::env::temp_dir().canonicalize().unwrap().join(name);
        fs::create_dir_all(root.join("sys")).unwrap();
        Self { root }
    }

    /// A host with the VFIO drivers, a container node, and nothing assigned.
    pub(crate) fn with_vfio() -> Self {
        let host = Self::new();
        host.mkdir("sys/bus/platform/drivers/vfio-platform");
        host.mkdir("sys/bus/amba/drivers/vfio-amba");
        host.mkdir("sys/bus/pci/drivers/vfio-pci");
        host.write("dev/vfio/vfio", "");
        host
    }

    pub(crate) fn host(&self) -> Host {
        let at = |path| self.root.join(path);
        Host::at(at("sys"), at("proc"), at("dev"), at("run/strait"))
    }

    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn mkdir(&self, path: impl AsRef<Path>) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    pub(crate) fn write(&self, path: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    pub(crate) fn link(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        let from = self.path(from);
        fs::create_dir_all(from.parent().unwrap()).unwrap();
        symlink(self.path(to), from).unwrap();
    }

    /// A device on a bus, bound to a driver, in a group with its node in `/dev/vfio`.
    pub(crate) fn device(&self, bus: &str, name: &str, driver: Option<&str>, group: Option<u32>) {
        let path = Path::new("sys/devices").join(bus).join(name);
        self.mkdir(&path);
        self.mkdir(format!("sys/bus/{bus}"));
        self.link(path.join("subsystem"), format!("sys/bus/{bus}"));
        self.link(format!("sys/bus/{bus}/devices/{name}"), &path);
        self.write(path.join("driver_override"), "(null)\n");
        if let Some(driver) = driver {
            let driver = format!("sys/bus/{bus}/drivers/{driver}");
            self.mkdir(&driver);
            self.link(path.join("driver"), driver);
        }
        if let Some(group) = group {
            self.join_group(bus, name, group);
        }
    }

    /// Changes the driver of a device, to none with `None`.
    pub(crate) fn rebind(&self, bus: &str, name: &str, driver: Option<&str>) {
        let link = format!("sys/devices/{bus}/{name}/driver");
        fs::remove_file(self.path(&link)).unwrap();
        if let Some(driver) = driver {
            let driver = format!("sys/bus/{bus}/drivers/{driver}");
            self.mkdir(&driver);
            self.link(link, driver);
        }
    }

    /// Gives a device a file of its own, as kernels with CONFIG_VFIO_DEVICE_CDEV do.
    pub(crate) fn cdev(&self, bus: &str, name: &str, index: u32) {
        let device = Path::new("sys/devices").join(bus).join(name);
        let path = device.join(format!("vfio-dev/vfio{index}"));
        self.write(path.join("dev"), format!("511:{index}\n"));
        self.mkdir("sys/class/vfio-dev");
        self.link(path.join("subsystem"), "sys/class/vfio-dev");
        self.link(path.join("device"), &device);
        self.link(format!("sys/dev/char/511:{index}"), &path);
        self.write(format!("dev/vfio/devices/vfio{index}"), "");
    }

    /// A process with these files open.
    pub(crate) fn process(&self, pid: u32, name: &str, files: &[&str]) {
        let directory = format!("proc/{pid}");
        self.write(format!("{directory}/comm"), format!("{name}\n"));
        self.mkdir(format!("{directory}/fd"));
        for (number, file) in files.iter().enumerate() {
            symlink(file, self.path(format!("{directory}/fd/{number}"))).unwrap();
        }
    }

    /// A device of a class below another, whose directory this is below that of its bus' devices.
    pub(crate) fn below(&self, path: &str, class: &str) -> PathBuf {
        let path = Path::new("sys/devices").join(path);
        self.mkdir(&path);
        self.mkdir(format!("sys/class/{class}"));
        self.link(path.join("subsystem"), format!("sys/class/{class}"));
        if let Some(name) = path.file_name() {
            self.link(Path::new("sys/class").join(class).join(name), &path);
        }
        path
    }

    /// Puts a device into a group.
    pub(crate) fn join_group(&self, bus: &str, name: &str, group: u32) {
        let path = Path::new("sys/devices").join(bus).join(name);
        let directory = format!("sys/kernel/iommu_groups/{group}");
        self.link(format!("{directory}/devices/{name}"), &path);
        self.link(path.join("iommu_group"), &directory);
        let regions = "0x0000000008000000 0x00000000080fffff msi\n";
        self.write(format!("{directory}/reserved_regions"), regions);
        self.write(format!("dev/vfio/{group}"), "");
    }

    /// Gives a device a node that is behind an IOMMU, so that it gets a group with its driver.
    pub(crate) fn behind_iommu(&self, bus: &str, name: &str) {
        let node = format!("sys/firmware/devicetree/base/{name}");
        self.write(format!("{node}/iommus"), [0; 8]);
        self.link(format!("sys/devices/{bus}/{name}/of_node"), node);
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The builder of the guest's node of a device `1.dev`, whose host node has nothing but `compatible`.
pub(crate) fn node_builder(compatible: &[&str]) -> NodeBuilder {
    node_builder_with(compatible, &[])
}

/// The same, of a host node that has these properties too.
pub(crate) fn node_builder_with(compatible: &[&str], properties: &[(&str, &[u8])]) -> NodeBuilder {
    let fake = FakeHost::new();
    for (name, bytes) in properties {
        fake.write(format!("sys/firmware/devicetree/base/device@0/{name}"), bytes);
    }
    let strings: String = compatible.iter().map(|string| format!("{string}\0")).collect();
    fake.write("sys/firmware/devicetree/base/device@0/compatible", strings);
    let tree = HostTree::at(&fake.host().device_tree()).unwrap();
    let (node, options) = (tree.node_at("device@0").unwrap(), NodeOptions::default());
    let device = HostDeviceNode { node: &node, name: "1.dev", options: &options };
    let phandles = Arc::new(PhandleMap::new(&tree, &[device]).unwrap());
    NodeBuilder::from_host(&tree, &phandles, &device).unwrap()
}
