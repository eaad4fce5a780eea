//! Xen's form: a partial device tree, whose `/passthrough` goes into the tree of a domain
//! (`docs/misc/arm/passthrough.txt`, `docs/misc/arm/passthrough-noiommu.txt`).
//!
//! Interrupts have the host's numbers: Xen gives guests no others. So do addresses, unless a person
//! chooses some: Xen's own map of a guest isn't fixed.

use std::ops::Range;

use boot::fdt::host::{HostTree, Reference};
use boot::fdt::{Node, to_dts};

use super::{
    ExportDevice, ExportError, aliases, clocks, comment, file_name, gic, names, spi, trigger,
    with_cells,
};
use crate::irq::{FIRST_SPI, Spi, Trigger};
use crate::vfio::node::GuestNodes;

/// What Xen maps by, in bytes.
const PAGE: u64 = 4096;

pub(super) fn export(tree: &HostTree, devices: &[ExportDevice<'_>]) -> Result<String, ExportError> {
    let mut usage = Usage::default();
    let nodes = devices.iter().map(|device| nodes(tree, device, &mut usage));
    let nodes = nodes.collect::<Result<Vec<GuestNodes>, _>>()?;
    let passthrough = with_cells(Node::new("passthrough").string("compatible", "simple-bus"))
        .flag("ranges")
        .with_children(clocks(&nodes))
        .with_children(nodes.iter().map(GuestNodes::top));
    let root = with_cells(Node::new(""))
        .child(gic("gic"))
        .with_children(aliases(&nodes, "/passthrough")?)
        .child(passthrough);
    Ok(comment(&usage.text(devices)) + &to_dts(&root))
}

/// The nodes of a device; what xl has to be told beside is added to `usage`.
fn nodes(
    tree: &HostTree,
    device: &ExportDevice<'_>,
    usage: &mut Usage,
) -> Result<GuestNodes, ExportError> {
    let (mut regions, mut mapped) = (Vec::new(), Vec::new());
    for (index, range) in device.regions()?.into_iter().enumerate() {
        let gpa = device.chosen(index).unwrap_or(range.start);
        if gpa % PAGE != range.start % PAGE {
            let (name, start) = (device.name.to_owned(), range.start);
            return Err(ExportError::Misaligned { name, index, gpa, start });
        }
        regions.push((gpa, range.end.saturating_sub(range.start)));
        let pages = pages(&range);
        usage.add_pages(&pages, gpa);
        mapped.push((pages, gpa - gpa % PAGE));
    }
    let irqs = interrupts(tree, device)?;
    let path = tree.path(device.builder.host_node());
    usage.irqs.extend(irqs.iter().map(|(spi, _)| spi.0.saturating_add(FIRST_SPI).to_string()));
    usage.paths.push(path.clone());
    let mut nodes = device.builder.build(&regions, &irqs);
    if !irqs.is_empty() {
        nodes.device = nodes.device.refs("interrupt-parent", ["gic"]);
    }
    nodes.device = nodes.device.cells("xen,reg", xen_reg(&mapped)).string("xen,path", path);
    if !device.builder.host_node().has("iommus") {
        nodes.device = nodes.device.flag("xen,force-assign-without-iommu");
    }
    Ok(nodes)
}

/// Its interrupts, all of which have to be SPIs.
fn interrupts(
    tree: &HostTree,
    device: &ExportDevice<'_>,
) -> Result<Vec<(Spi, Trigger)>, ExportError> {
    let interrupt = |(index, interrupt): (usize, &Reference)| {
        let other = || ExportError::Interrupt {
            name: device.name.to_owned(),
            index,
            controller: tree.path(&interrupt.provider),
        };
        Ok((spi(interrupt).ok_or_else(other)?, trigger(interrupt)))
    };
    device.interrupts(tree).iter().enumerate().map(interrupt).collect()
}

/// The whole pages that hold these addresses.
fn pages(range: &Range<u64>) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(PAGE).unwrap_or(range.end);
    range.start - range.start % PAGE..end
}

/// `xen,reg`: address on the host, size, and address in the guest, two cells each.
fn xen_reg(mapped: &[(Range<u64>, u64)]) -> Vec<u32> {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is wanted")]
    let halves = |number: u64| [(number >> 32) as u32, number as u32];
    let entries = mapped.iter().flat_map(|(host, gpa)| {
        [host.start, host.end.saturating_sub(host.start), *gpa].into_iter().flat_map(halves)
    });
    entries.collect()
}

/// What a person has to tell beside the tree.
#[derive(Default)]
struct Usage {
    paths: Vec<String>,
    irqs: Vec<String>,
    iomem: Vec<String>,
}

impl Usage {
    fn add_pages(&mut self, host: &Range<u64>, gpa: u64) {
        let (frame, count) = (host.start / PAGE, (host.end.saturating_sub(host.start)) / PAGE);
        let place = if gpa / PAGE == frame { String::new() } else { format!("@{:#x}", gpa / PAGE) };
        self.iomem.push(format!("{frame:#x},{count:x}{place}"));
    }

    fn text(&self, devices: &[ExportDevice<'_>]) -> String {
        let list = |items: &[String], quote: &str| {
            let items: Vec<String> =
                items.iter().map(|item| format!("{quote}{item}{quote}")).collect();
            format!("[ {} ]", items.join(", "))
        };
        let file = file_name(devices);
        let mut text = format!(
            "{} for a domain of Xen:\n  dtc -I dts -O dtb -o {file}.dtb {file}.dts\n\
             In the host's tree, before Xen starts:\n",
            names(devices)
        );
        for path in &self.paths {
            text += &format!("  fdt set {path} xen,passthrough\n");
        }
        text += &format!(
            "Started by Xen (dom0less), the domain has {file}.dtb as a module that is compatible with\n\
             \"multiboot,device-tree\" and \"multiboot,module\". With xl it needs, beside\n  \
             device_tree = \"{file}.dtb\"\n  dtdev = {}\n",
            list(&self.paths, "\"")
        );
        if !self.irqs.is_empty() {
            text += &format!("  irqs = {}\n", list(&self.irqs, ""));
        }
        text += &format!("  iomem = {}\n", list(&self.iomem, "\""));
        text
    }
}
