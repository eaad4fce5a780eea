//! A platform or AMBA device, from its node in the host's device tree.
//!
//! Linux makes resources of `reg` and interrupts of `interrupts` up to the first that it can't
//! translate (`of_device_alloc`, `of_amba_device_create`), and vfio-platform a region or an interrupt
//! of each (`vfio_platform_regions_init`, `vfio_platform_irq_init`).

use boot::fdt::host::{HostNode, HostTree};

use super::super::host::{HostBus, HostDevice};
use super::super::uapi::{DeviceInfo, IrqInfo, RegionInfo};
use super::{UnboundDevice, UnboundError};

/// The most interrupts of an AMBA device (`AMBA_NR_IRQS`).
const MAX_AMBA_INTERRUPTS: usize = 9;

impl UnboundDevice {
    /// The platform or AMBA device with this node.
    ///
    /// # Errors
    ///
    /// The memory for its registers can't be allocated.
    pub fn platform(
        tree: &HostTree,
        device: &HostDevice,
        node: &HostNode,
        page_size: u64,
    ) -> Result<Self, UnboundError> {
        let amba = device.bus() == HostBus::Amba;
        let (regions, interrupts) =
            if amba { (1, MAX_AMBA_INTERRUPTS) } else { (usize::MAX, usize::MAX) };
        let regions = self::regions(tree, node, page_size).take(regions).collect();
        let irqs = self::irqs(tree, device, node).take(interrupts).collect();
        let info = DeviceInfo { platform: !amba, amba, ..DeviceInfo::default() };
        Self::new(device.name(), info, regions, irqs)
    }
}

/// The regions; those of whole pages can be mapped (`vfio_platform_regions_init`).
fn regions(tree: &HostTree, node: &HostNode, page_size: u64) -> impl Iterator<Item = RegionInfo> {
    let reg = tree.bus_cells(node).and_then(|cells| node.reg(cells)).unwrap_or_default();
    let placed = reg.into_iter().map_while(|range| {
        let start = tree.translate(node, range.start).ok()?;
        Some((start, range.end.saturating_sub(range.start)))
    });
    let placed: Vec<_> = placed.filter(|(_, size)| *size != 0).collect();
    (0..).zip(placed).map(move |(index, (start, size))| RegionInfo {
        index,
        size,
        readable: true,
        writable: true,
        mappable: start.is_multiple_of(page_size) && size.is_multiple_of(page_size),
        ..RegionInfo::default()
    })
}

/// The interrupts; vfio-platform masks a level interrupt each time it is signalled
/// (`vfio_platform_irq_init`).
fn irqs(tree: &HostTree, device: &HostDevice, node: &HostNode) -> impl Iterator<Item = IrqInfo> {
    let interrupts = tree.interrupts(node).unwrap_or_else(|error| {
        log::info!("{}: its interrupts aren't known: {error}", device.name());
        Vec::new()
    });
    interrupts.into_iter().map(|interrupt| {
        // Most are level-triggered, where the node doesn't say.
        let level = interrupt.is_level_triggered().unwrap_or(true);
        IrqInfo { count: 1, eventfd: true, maskable: level, automasked: level }
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::FakeHost;
    use super::super::super::uapi::DeviceCalls;
    use super::*;

    /// A device on this bus whose node has three `reg` entries, the last of which the CPU can't address,
    /// and a level, an edge, and an interrupt of no known sense.
    fn unbound(bus: &str) -> UnboundDevice {
        let fake = FakeHost::new();
        fake.device(bus, "1.dev", None, None);
        let cells = |cells: &[u32]| cells.iter().flat_map(|c| c.to_be_bytes()).collect::<Vec<_>>();
        let root = "sys/firmware/devicetree/base";
        for (file, value) in [
            ("interrupt-parent", vec![1]),
            ("#address-cells", vec![1]),
            ("#size-cells", vec![1]),
            ("gic/#interrupt-cells", vec![3]),
            ("gic/phandle", vec![1]),
            ("soc/#address-cells", vec![1]),
            ("soc/#size-cells", vec![1]),
            ("soc/ranges", vec![0, 0x1000_0000, 0x10_0000]),
            ("soc/dev@1000/reg", vec![0x1000, 0x1000, 0x2000, 0x100, 0x20_0000, 0x1000]),
            ("soc/dev@1000/interrupts", vec![0, 7, 4, 0, 8, 1, 0, 9, 0]),
        ] {
            fake.write(format!("{root}/{file}"), cells(&value));
        }
        fake.link(format!("sys/devices/{bus}/1.dev/of_node"), format!("{root}/soc/dev@1000"));
        let device = fake.host().find("1.dev").unwrap().unwrap();
        let tree = HostTree::at(&fake.host().device_tree()).unwrap();
        let node = tree.node(&device.of_node().unwrap().unwrap()).unwrap();
        UnboundDevice::platform(&tree, &device, &node, 0x1000).unwrap()
    }

    #[test]
    fn regions_and_interrupts_are_those_of_the_node() {
        let calls = unbound("platform");
        let info = calls.info().unwrap();
        assert_eq!((info.platform, info.amba, info.reset), (true, false, false));
        assert_eq!((info.regions, info.irqs), (2, 3));
        let region = |index| calls.region_info(index).map(|r| (r.size, r.mappable));
        assert_eq!(region(0).unwrap(), (0x1000, true));
        assert_eq!(region(1).unwrap(), (0x100, false), "a part of a page isn't mapped");
        assert!(region(2).is_err());
        let levels: Vec<bool> = (0..3).map(|i| calls.irq_info(i).unwrap().automasked).collect();
        assert_eq!(levels, [true, false, true]);
        assert!(calls.reset().is_err(), "nothing is done with it");
    }

    #[test]
    fn an_amba_device_has_one_region() {
        let info = unbound("amba").info().unwrap();
        assert_eq!((info.platform, info.amba, info.regions, info.irqs), (false, true, 1, 3));
    }
}
