//! A plain tree with the devices, their clocks and an interrupt controller to refer to: dtc merges it
//! with the tree that QEMU's `virt` board dumps.
//!
//! Addresses and interrupts are those that QEMU gives devices of the host (`hw/core/platform-bus.c`:
//! one region after another, each aligned to the power of two that holds it).

use boot::fdt::host::HostTree;
use boot::fdt::{Node, to_dts};

use super::{
    ExportDevice, ExportError, aliases, clocks, comment, file_name, gic, names, trigger, with_cells,
};
use crate::irq::Spi;
use crate::vfio::node::GuestNodes;

/// Where QEMU's `virt` board has such devices (GPA), and their first interrupt (`hw/arm/virt.c`,
/// `VIRT_PLATFORM_BUS`).
const START: u64 = 0x0c00_0000;
const END: u64 = START + (32 << 20);
const FIRST_SPI: u32 = 112;

/// The smallest alignment of a region, in bytes.
const PAGE: u64 = 4096;

pub(super) fn export(tree: &HostTree, devices: &[ExportDevice<'_>]) -> Result<String, ExportError> {
    let mut places = Places { gpa: START, spi: FIRST_SPI };
    let nodes = devices.iter().map(|device| places.nodes(tree, device));
    let nodes = nodes.collect::<Result<Vec<GuestNodes>, _>>()?;
    let root = with_cells(Node::new(""))
        .refs("interrupt-parent", ["gic"])
        .child(gic("intc@8000000"))
        .with_children(aliases(&nodes, "")?)
        .with_children(clocks(&nodes))
        .with_children(nodes.iter().map(GuestNodes::top));
    Ok(comment(&usage(devices)) + &to_dts(&root))
}

/// The next address and interrupt that are free.
struct Places {
    gpa: u64,
    spi: u32,
}

impl Places {
    fn nodes(
        &mut self,
        tree: &HostTree,
        device: &ExportDevice<'_>,
    ) -> Result<GuestNodes, ExportError> {
        let mut regions = Vec::new();
        for (index, range) in device.regions()?.into_iter().enumerate() {
            let size = range.end.saturating_sub(range.start);
            let gpa = device.chosen(index).or_else(|| self.allocate(size));
            let full = || ExportError::Full { name: device.name.to_owned(), index, size };
            regions.push((gpa.ok_or_else(full)?, size));
        }
        let mut irqs = Vec::new();
        for interrupt in device.interrupts(tree) {
            irqs.push((Spi(self.spi), trigger(&interrupt)));
            self.spi = self.spi.saturating_add(1);
        }
        Ok(device.builder.build(&regions, &irqs))
    }

    fn allocate(&mut self, size: u64) -> Option<u64> {
        let alignment = size.max(PAGE).checked_next_power_of_two()?;
        let start = self.gpa.checked_next_multiple_of(alignment)?;
        let end = start.checked_add(size).filter(|end| *end <= END)?;
        self.gpa = end;
        Some(start)
    }
}

fn usage(devices: &[ExportDevice<'_>]) -> String {
    let file = file_name(devices);
    format!(
        "{}\nwhere QEMU's virt board has devices of the host; merged with the board's own tree:\n  \
         qemu-system-aarch64 -machine virt,dumpdtb=virt.dtb …\n  \
         (dtc -I dtb -O dts virt.dtb; sed '/^.dts-v1/d' {file}.dts) >guest.dts\n  \
         dtc -I dts -O dtb -o guest.dtb guest.dts\n  \
         qemu-system-aarch64 -machine virt -dtb guest.dtb …\n",
        names(devices)
    )
}
