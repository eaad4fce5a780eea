//! The plan as a person or a program reads it (`--dry-run`, `--json`).

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use arch::{RamPages, layout};
use boot::fdt::{self, Node};
use boot::kernel::Kernel;
use devices::extent::Extent;
use devices::irq::Trigger;
use devices::pci::{Apertures, Intx};
use devices::vfio::iommu::Backend;
use devices::vfio::node::PropertyReport;
use serde::Serialize;

use crate::assigned::{AssignedDevice, Obstacle, unbound_note};
use crate::cli::{ConsoleKind, Size};
use crate::commands::device::FunctionDetails;
use crate::flash::FlashPlan;

use super::{MachinePlan, Opened};

/// What KVM made of a plan.
#[derive(Debug, Serialize)]
pub struct KvmFacts {
    /// The interrupt controller's version.
    pub gic: String,
    /// Its register frames (GPA), with their names.
    #[serde(skip)]
    pub gic_frames: Vec<(&'static str, Range<u64>)>,
    /// It has an ITS.
    pub its: bool,
    /// What the vCPUs have of the host's: `sve`, `pauth`, `pmu`.
    pub cpu_features: Vec<&'static str>,
    /// The lengths that their SVE vectors can have, in bits.
    pub sve_lengths: Vec<u32>,
    /// Where the PCI host is, if there is one.
    #[serde(skip)]
    pub apertures: Option<Apertures>,
    /// The SPIs that are messages of PCI functions, with a GICv2.
    #[serde(skip)]
    pub message_spis: Option<Range<u32>>,
    /// Why PCI functions have no message-signalled interrupts, if they haven't.
    #[serde(skip)]
    pub without_messages: Option<String>,
}

/// The machine that would run.
#[derive(Debug, Serialize)]
pub struct Description {
    vcpus: u64,
    #[serde(flatten)]
    kvm: KvmFacts,
    /// RAM in bytes.
    memory: u64,
    /// The huge pages of the host that it is made of: their size, or `thp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    hugepages: Option<String>,
    /// What the guest begins with, if that isn't a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    firmware: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packaging: Option<String>,
    cmdline: String,
    memory_map: Vec<Area>,
    interrupts: Vec<Interrupt>,
    /// How devices' DMA is mapped, where there are assigned devices.
    iommu: Option<Backend>,
    /// What stands in the way of a run, where the plan is of devices that aren't bound.
    obstacles: Vec<Obstacle>,
    devices: Vec<Device>,
    pci: Option<PciHost>,
    device_tree: String,
}

/// A part of the guest's address space.
#[derive(Debug, Serialize)]
struct Area {
    #[serde(flatten)]
    extent: Extent,
    what: String,
    /// It is a part of RAM.
    #[serde(skip)]
    in_ram: bool,
}

/// A shared peripheral interrupt.
#[derive(Debug, Serialize)]
struct Interrupt {
    spi: u32,
    trigger: Trigger,
    what: String,
}

/// The PCI host.
#[derive(Debug, Serialize)]
struct PciHost {
    /// The SPIs that are messages, where they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<MessageSpis>,
    /// Why functions have no message-signalled interrupts, if they haven't.
    without_messages: Option<String>,
    functions: Vec<PciFunction>,
    virtio: Vec<VirtioFunction>,
}

/// A virtio device behind it.
#[derive(Debug, Serialize)]
struct VirtioFunction {
    address: String,
    name: String,
    /// Vendor and device ID.
    id: String,
    /// The SPI of its interrupt pin.
    intx: Option<u32>,
    what: String,
}

/// SPIs that are messages.
#[derive(Debug, Serialize)]
struct MessageSpis {
    first: u32,
    count: u32,
}

/// A function behind it.
#[derive(Debug, Serialize)]
struct PciFunction {
    address: String,
    name: String,
    /// The SPI of its interrupt pin.
    intx: Option<u32>,
    /// What of it the guest gets.
    #[serde(flatten)]
    details: FunctionDetails,
}

/// An assigned device.
#[derive(Debug, Serialize)]
struct Device {
    name: String,
    /// What is known of its kind.
    binding: Option<&'static str>,
    regions: Vec<Region>,
    interrupts: Vec<DeviceInterrupt>,
    /// What became of each property of the host's node.
    properties: Vec<PropertyReport>,
    /// The guest's node, as source.
    node: String,
}

#[derive(Debug, Serialize)]
struct Region {
    /// In guest physical addresses.
    #[serde(flatten)]
    extent: Extent,
    access: &'static str,
}

#[derive(Debug, Serialize)]
struct DeviceInterrupt {
    spi: u32,
    trigger: Trigger,
}

impl Description {
    /// Of the machine that would run with this device tree.
    pub fn of(plan: &MachinePlan, opened: &Opened, kvm: KvmFacts, tree: &Node) -> Self {
        let (kernel, assigned) = (opened.kernel.as_ref(), &opened.assigned);
        Self {
            vcpus: plan.cpus,
            memory: plan.ram.size,
            hugepages: hugepages(plan.pages),
            firmware: opened.flash.as_ref().map(FlashPlan::firmware),
            kernel: kernel.map(Kernel::name),
            packaging: kernel.map(|kernel| kernel.packaging().to_string()),
            cmdline: plan.cmdline.as_str().to_owned(),
            memory_map: memory_map(plan, opened, &kvm),
            interrupts: interrupts(plan, opened),
            iommu: assigned.backend(),
            obstacles: assigned.obstacles.clone(),
            pci: kvm.apertures.as_ref().map(|_| PciHost::of(opened, &kvm)),
            devices: assigned.platform.iter().map(|device| Device::of(device, tree)).collect(),
            device_tree: fdt::to_dts(tree),
            kvm,
        }
    }
}

impl PciHost {
    fn of(opened: &Opened, kvm: &KvmFacts) -> Self {
        let virtio = opened.virtio.iter().map(|device| {
            let (vendor, id) = device.ids();
            VirtioFunction {
                address: device.slot.bdf.to_string(),
                name: device.name.clone(),
                id: format!("{vendor:04x}:{id:04x}"),
                intx: device.slot.intx.map(|intx| intx.spi.0),
                what: device.what.clone(),
            }
        });
        let functions = opened.assigned.functions.iter().map(|function| PciFunction {
            address: function.slot.bdf.to_string(),
            name: function.name.clone(),
            intx: function.slot.intx.map(|intx| intx.spi.0),
            details: FunctionDetails::of_function(&function.lock()),
        });
        let without_messages = kvm.without_messages.clone();
        let messages = kvm.message_spis.as_ref().map(|spis| MessageSpis {
            first: spis.start,
            count: spis.end.saturating_sub(spis.start),
        });
        let (functions, virtio) = (functions.collect(), virtio.collect());
        Self { messages, without_messages, functions, virtio }
    }
}

impl Device {
    /// A device with its node in the tree, in which an overlay may have changed it.
    fn of(device: &AssignedDevice, tree: &Node) -> Self {
        let label = device.nodes.device.get_label();
        let tops = tree.children().iter();
        // Below the root, or below a bus of its own.
        let mut nodes = tops.flat_map(|top| [top].into_iter().chain(top.children()));
        let node = nodes.find(|node| node.get_label() == label);
        let regions = device.regions().map(|(range, mapped)| {
            let (extent, access) = (Extent::from(&range), access(mapped));
            Region { extent, access }
        });
        let interrupts =
            device.irqs().map(|(spi, trigger)| DeviceInterrupt { spi: spi.0, trigger });
        Self {
            name: device.name().to_owned(),
            binding: device.binding(),
            regions: regions.collect(),
            interrupts: interrupts.collect(),
            properties: device.nodes.properties.clone(),
            node: fdt::subtree_to_dts(node.unwrap_or(&device.nodes.device)),
        }
    }
}

fn memory_map(plan: &MachinePlan, opened: &Opened, kvm: &KvmFacts) -> Vec<Area> {
    let Opened { flash, assigned, .. } = opened;
    let mut map = Vec::new();
    let mut add = |range: &Range<u64>, what: &str, in_ram| {
        map.push(Area { extent: Extent::from(range), what: what.to_owned(), in_ram });
    };
    for names in flash.iter().map(FlashPlan::names) {
        for (name, range) in names.iter().zip([layout::FIRMWARE, layout::VARIABLES]) {
            add(&range, &format!("flash: {name}"), false);
        }
    }
    kvm.gic_frames.iter().for_each(|(what, range)| add(range, what, false));
    add(&layout::RTC, "RTC (PL031)", false);
    add(&layout::PVPANIC, "panic device (pvpanic)", false);
    if plan.grace.is_some() {
        add(&layout::GPIO, "GPIO with the power button (PL061)", false);
    }
    match &plan.console {
        ConsoleKind::Off => {}
        console => {
            let place = match console {
                ConsoleKind::Stdio => String::new(),
                place => format!(", {place}"),
            };
            let what = format!("serial console ({}){place}", plan.serial.compatible());
            add(&layout::SERIAL, &what, false);
        }
    }
    for device in &assigned.platform {
        for (index, (range, mapped)) in device.regions().enumerate() {
            let what = format!("{} region {index}, {}", device.name(), access(mapped));
            add(&range, &what, false);
        }
    }
    for (what, range) in kvm.apertures.iter().flat_map(Apertures::named) {
        add(range, what, false);
    }
    add(&(plan.ram.base..plan.ram.end()), "RAM", false);
    let boot = &plan.boot;
    if flash.is_none() {
        add(&(boot.kernel.load..boot.kernel.end), "kernel", true);
    }
    add(&(boot.dtb..boot.dtb + boot::layout::MAX_DTB_SIZE), "device tree, at most", true);
    boot.initrd.iter().for_each(|range| add(range, "initrd", true));
    map.sort_by_key(|area| area.extent.start);
    map
}

fn interrupts(plan: &MachinePlan, opened: &Opened) -> Vec<Interrupt> {
    let assigned = &opened.assigned;
    let mut interrupts = Vec::new();
    let mut add = |spi, trigger, what| interrupts.push(Interrupt { spi, trigger, what });
    if plan.console.is_on() {
        add(layout::spi::SERIAL, plan.serial.trigger(), "serial".to_owned());
    }
    for device in &assigned.platform {
        for (index, (spi, trigger)) in device.irqs().enumerate() {
            add(spi.0, trigger, format!("{} interrupt {index}", device.name()));
        }
    }
    let functions = assigned.functions.iter().map(|function| (&function.name, function.slot));
    let virtio = opened.virtio.iter().map(|device| (&device.name, device.slot));
    for (name, slot) in functions.chain(virtio) {
        if let Some(Intx { pin, spi }) = slot.intx {
            add(spi.0, Trigger::Level, format!("{name} {pin}"));
        }
    }
    interrupts
}

/// Huge pages as the option has them.
fn hugepages(pages: RamPages) -> Option<String> {
    match pages {
        RamPages::Any => None,
        RamPages::Transparent => Some("thp".to_owned()),
        RamPages::Reserved(page) => Some(Size(page).to_string()),
    }
}

fn access(mapped: bool) -> &'static str {
    if mapped { "mapped" } else { "trapped" }
}

impl Display for Description {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let KvmFacts { gic, its, cpu_features: features, sve_lengths, .. } = &self.kvm;
        let its = if *its { " with an ITS" } else { "" };
        let memory = Size::from(self.memory);
        write!(f, "machine: {} vCPU(s), {gic}{its}, {memory} of RAM", self.vcpus)?;
        match self.hugepages.as_deref() {
            None => writeln!(f)?,
            Some("thp") => writeln!(f, " in transparent huge pages")?,
            Some(size) => writeln!(f, " in huge pages of {size}")?,
        }
        writeln!(f, "CPU features: {}", cpu_features(features, sve_lengths))?;
        self.firmware.iter().try_for_each(|name| writeln!(f, "firmware: {name}"))?;
        for (kernel, packaging) in self.kernel.iter().zip(&self.packaging) {
            writeln!(f, "kernel: {kernel}, {packaging}")?;
        }
        writeln!(f, "command line: {}", self.cmdline)?;
        writeln!(f, "\nmemory map (guest physical addresses):")?;
        for Area { extent, what, in_ram } in &self.memory_map {
            let indent = if *in_ram { "  " } else { "" };
            writeln!(f, "  {}  {indent}{what}", in_columns(extent))?;
        }
        writeln!(f, "\ninterrupts:")?;
        for Interrupt { spi, what, trigger } in &self.interrupts {
            writeln!(f, "  SPI {spi:<3}  {what}, {}", signalling(*trigger))?;
        }
        if let Some(iommu) = self.iommu {
            writeln!(f, "\nIOMMU: {}", iommu.name())?;
        }
        if !self.obstacles.is_empty() {
            writeln!(f, "\n{}", unbound_note())?;
        }
        for Obstacle { what, help } in &self.obstacles {
            writeln!(f, "  {what}")?;
            help.iter().try_for_each(|help| writeln!(f, "    help: {help}"))?;
        }
        self.devices.iter().try_for_each(|device| write!(f, "\n{device}"))?;
        self.pci.iter().try_for_each(|host| write!(f, "\n{host}"))?;
        write!(f, "\ndevice tree:\n{}", self.device_tree)
    }
}

/// First and last address in columns; nothing has no last one.
fn in_columns(Extent { start, size }: &Extent) -> String {
    match size.checked_sub(1) {
        Some(rest) => format!("{start:#011x}-{:#011x}", start.saturating_add(rest)),
        None => format!("{start:#011x}, 0 bytes   "),
    }
}

/// Features of vCPUs as a person reads them, SVE with the lengths of its vectors.
pub fn cpu_features(names: &[&str], sve_lengths: &[u32]) -> String {
    if names.is_empty() {
        return "none beyond the base architecture".to_owned();
    }
    let lengths: Vec<_> = sve_lengths.iter().map(u32::to_string).collect();
    let name = |name: &&str| match *name {
        "sve" => format!("SVE ({} bits)", lengths.join(", ")),
        "pauth" => "pointer authentication".to_owned(),
        _ => "PMU".to_owned(),
    };
    names.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// How the trigger is handled.
fn signalling(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Edge => "edge",
        Trigger::Level => "level, resampled",
    }
}

impl Display for PciHost {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "PCI functions:")?;
        for PciFunction { address, name, details, .. } in &self.functions {
            writeln!(f, "  {address}  {name}")?;
            details.to_string().lines().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        for VirtioFunction { address, name, id, what, .. } in &self.virtio {
            writeln!(f, "  {address}  {name}, virtio {id}: {what}")?;
        }
        if let Some(MessageSpis { first, count }) = self.messages {
            let last = first.saturating_add(count).saturating_sub(1);
            writeln!(f, "  {count} vectors of MSI and MSI-X in all, SPI {first} to {last}, edge")?;
        }
        self.without_messages.iter().try_for_each(|why| writeln!(f, "  {why}"))
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let binding = self.binding.map_or_else(String::new, |name| format!(", a {name}"));
        writeln!(f, "{}{binding}:", self.name)?;
        for (index, Region { extent, access }) in self.regions.iter().enumerate() {
            let Extent { start, size } = extent;
            writeln!(f, "  region {index}: {start:#x}, {size:#x} bytes, {access}")?;
        }
        for (index, DeviceInterrupt { spi, trigger }) in self.interrupts.iter().enumerate() {
            writeln!(f, "  interrupt {index}: SPI {spi}, {}", signalling(*trigger))?;
        }
        writeln!(f, "  of the host's node:")?;
        let with_reason = |property: &&PropertyReport| property.disposition.reason().is_some();
        for name in ["kept", "rewritten", "made"] {
            let of_name = self.properties.iter().filter(|p| p.disposition.name() == name);
            let paths = of_name.filter(|property| !with_reason(property));
            let paths: Vec<String> = paths.map(PropertyReport::path).collect();
            if !paths.is_empty() {
                writeln!(f, "    {name:<10}{}", paths.join(" "))?;
            }
        }
        for property in self.properties.iter().filter(with_reason) {
            let (name, path) = (property.disposition.name(), property.path());
            let reason = property.disposition.reason().unwrap_or_default();
            writeln!(f, "    {name:<10}{path}: {reason}")?;
        }
        writeln!(f, "  the guest's node:")?;
        self.node.lines().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Extent, in_columns};

    #[test]
    fn places_end_with_their_last_byte_if_they_have_one() {
        let text = |start, size| in_columns(&Extent { start, size });
        assert_eq!(text(0xc01_0000, 0x1000), "0x00c010000-0x00c010fff");
        assert_eq!(text(0xc01_0000, 0), "0x00c010000, 0 bytes   ");
        assert_eq!(text(u64::MAX, 1).len(), 37);
    }
}
