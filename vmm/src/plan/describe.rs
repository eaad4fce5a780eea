//! The plan as a person or a program reads it (`--dry-run`, `--json`).

use std::fmt::{self, Display, Formatter};
use std::ops::Range;

use arch::{CpuFeatures, layout};
use boot::fdt::{self, Node};
use devices::irq::Trigger;
use devices::pci::{Apertures, Intx};
use devices::vfio::iommu::Backend;
use devices::vfio::node::{Disposition, PropertyReport};
use serde::Serialize;

use crate::assigned::{AssignedDevice, AssignedDevices, Obstacle, unbound_note};
use crate::cli::{ConsoleKind, Size};
use crate::commands::device::FunctionSheet;

use super::{MachinePlan, Opened};

/// What KVM made of a plan.
pub struct KvmFacts {
    /// The interrupt controller's version.
    pub gic: String,
    /// Its register frames (GPA), with their names.
    pub gic_frames: Vec<(&'static str, Range<u64>)>,
    /// It has an ITS.
    pub its: bool,
    /// What the vCPUs have of the host's.
    pub features: CpuFeatures,
    /// The lengths that their SVE vectors can have, in bits.
    pub sve_lengths: Vec<u32>,
    /// Where the PCI host is, if there is one.
    pub apertures: Option<Apertures>,
    /// Why PCI functions have no message-signalled interrupts, if they haven't.
    pub without_messages: Option<String>,
}

/// The machine that would run.
#[derive(Debug, Serialize)]
pub struct Description {
    vcpus: u64,
    gic: String,
    /// It has an ITS.
    its: bool,
    /// What the vCPUs have of the host's: `sve`, `pauth`, `pmu`.
    cpu_features: Vec<&'static str>,
    /// The lengths that SVE vectors can have, in bits.
    sve_lengths: Vec<u32>,
    /// RAM in bytes.
    memory: u64,
    kernel: String,
    packaging: String,
    cmdline: String,
    memory_map: Vec<Place>,
    interrupts: Vec<Interrupt>,
    /// The way to the IOMMU, where there are assigned devices.
    iommu: Option<&'static str>,
    /// What stands in the way of a run; the devices were foreseen then, not opened.
    obstacles: Vec<Obstacle>,
    devices: Vec<Device>,
    pci: Option<PciHost>,
    device_tree: String,
}

/// A part of the guest's address space.
#[derive(Debug, Serialize)]
struct Place {
    start: u64,
    size: u64,
    what: String,
}

/// A shared peripheral interrupt.
#[derive(Debug, Serialize)]
struct Interrupt {
    spi: u32,
    what: String,
    trigger: &'static str,
}

/// The PCI host.
#[derive(Debug, Serialize)]
struct PciHost {
    /// Why functions have no message-signalled interrupts, if they haven't.
    without_messages: Option<String>,
    functions: Vec<PciFunction>,
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
    sheet: FunctionSheet,
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
    properties: Vec<Property>,
    /// The guest's node, as source.
    node: String,
}

#[derive(Debug, Serialize)]
struct Region {
    /// Its GPA.
    start: u64,
    size: u64,
    access: &'static str,
}

#[derive(Debug, Serialize)]
struct DeviceInterrupt {
    spi: u32,
    trigger: &'static str,
}

#[derive(Debug, Serialize)]
struct Property {
    path: String,
    fate: &'static str,
    reason: Option<String>,
}

impl Description {
    /// Of the machine that would run with this device tree.
    pub fn of(plan: &MachinePlan, opened: &Opened, kvm: &KvmFacts, tree: &Node) -> Self {
        let (kernel, assigned) = (&opened.kernel, &opened.assigned);
        Self {
            vcpus: plan.cpus,
            gic: kvm.gic.clone(),
            its: kvm.its,
            cpu_features: kvm.features.names().collect(),
            sve_lengths: kvm.sve_lengths.clone(),
            memory: plan.ram.size,
            kernel: kernel.name().to_string(),
            packaging: kernel.packaging().to_string(),
            cmdline: plan.cmdline.as_str().to_owned(),
            memory_map: memory_map(plan, assigned, kvm),
            interrupts: interrupts(plan, assigned),
            iommu: assigned.backend().map(Backend::name),
            obstacles: assigned.obstacles.clone(),
            pci: kvm.apertures.as_ref().map(|_| PciHost::of(assigned, kvm)),
            devices: assigned.platform.iter().map(|device| Device::of(device, tree)).collect(),
            device_tree: fdt::to_dts(tree),
        }
    }
}

impl PciHost {
    fn of(assigned: &AssignedDevices, kvm: &KvmFacts) -> Self {
        let functions = assigned.functions.iter().map(|function| PciFunction {
            address: function.slot.bdf.to_string(),
            name: function.name.clone(),
            intx: function.slot.intx.map(|intx| intx.spi.0),
            sheet: FunctionSheet::of_function(&function.lock()),
        });
        let without_messages = kvm.without_messages.clone();
        Self { without_messages, functions: functions.collect() }
    }
}

impl Device {
    /// A device with its node in the tree, in which an overlay may have changed it.
    fn of(placed: &AssignedDevice, tree: &Node) -> Self {
        let label = placed.nodes.device.get_label();
        let tops = tree.children().iter();
        // Below the root, or below a bus of its own.
        let node = tops.flat_map(|top| [top].into_iter().chain(top.children()));
        let node = node.into_iter().find(|node| node.get_label() == label);
        let regions = placed.regions().map(|(Range { start, end }, mapped)| Region {
            start,
            size: end.saturating_sub(start),
            access: access(mapped),
        });
        let interrupts = placed
            .irqs()
            .map(|(spi, trigger)| DeviceInterrupt { spi: spi.0, trigger: trigger_name(trigger) });
        Self {
            name: placed.name().to_owned(),
            binding: placed.binding(),
            regions: regions.collect(),
            interrupts: interrupts.collect(),
            properties: placed.nodes.properties.iter().map(Property::of).collect(),
            node: fdt::subtree_to_dts(node.unwrap_or(&placed.nodes.device)),
        }
    }
}

impl Property {
    fn of(report: &PropertyReport) -> Self {
        let (fate, reason) = match &report.disposition {
            Disposition::Kept => ("kept", None),
            Disposition::Linked(devices) => (
                "kept",
                Some(format!("it refers to {}, which the guest has too", devices.join(", "))),
            ),
            Disposition::Rewritten => ("rewritten", None),
            Disposition::Made => ("made", None),
            Disposition::Dropped(reason) => ("dropped", Some(reason.to_string())),
        };
        Self { path: report.path(), fate, reason }
    }
}

fn memory_map(plan: &MachinePlan, assigned: &AssignedDevices, kvm: &KvmFacts) -> Vec<Place> {
    let mut map: Vec<(Range<u64>, String)> = kvm
        .gic_frames
        .iter()
        .map(|(what, range)| (range.clone(), (*what).to_owned()))
        .chain([
            (layout::RTC, "RTC (PL031)".to_owned()),
            (layout::PVPANIC, "panic device (pvpanic)".to_owned()),
        ])
        .collect();
    if plan.console == ConsoleKind::Stdio {
        map.push((layout::SERIAL, "serial console (ns16550a)".to_owned()));
    }
    for device in &assigned.platform {
        for (index, (range, mapped)) in device.regions().enumerate() {
            map.push((range, format!("{} region {index}, {}", device.name(), access(mapped))));
        }
    }
    if let Some(apertures) = &kvm.apertures {
        let parts = [
            (&apertures.memory32, "PCI memory"),
            (&apertures.io, "PCI I/O"),
            (&apertures.ecam, "PCI configuration"),
        ];
        let high = apertures.memory64.as_ref().map(|range| (range, "PCI 64-bit memory"));
        let windows = parts.into_iter().chain(high);
        map.extend(windows.map(|(range, what)| (range.clone(), what.to_owned())));
    }
    map.push((plan.ram.base..plan.ram.end(), "RAM".to_owned()));
    let boot = &plan.boot;
    map.push((boot.kernel.load..boot.kernel.end, "  kernel".to_owned()));
    map.push((
        boot.dtb..boot.dtb + boot::layout::MAX_DTB_SIZE,
        "  device tree, at most".to_owned(),
    ));
    map.extend(boot.initrd.clone().map(|range| (range, "  initrd".to_owned())));
    map.sort_by_key(|(range, _)| range.start);
    let places = map.into_iter().map(|(Range { start, end }, what)| Place {
        start,
        size: end.saturating_sub(start),
        what,
    });
    places.collect()
}

fn interrupts(plan: &MachinePlan, assigned: &AssignedDevices) -> Vec<Interrupt> {
    let mut interrupts = Vec::new();
    if plan.console == ConsoleKind::Stdio {
        let (what, trigger) = ("serial".to_owned(), trigger_name(Trigger::Edge));
        interrupts.push(Interrupt { spi: layout::spi::SERIAL, what, trigger });
    }
    for device in &assigned.platform {
        for (index, (spi, trigger)) in device.irqs().enumerate() {
            let what = format!("{} interrupt {index}", device.name());
            interrupts.push(Interrupt { spi: spi.0, what, trigger: trigger_name(trigger) });
        }
    }
    for function in assigned.functions.iter() {
        if let Some(Intx { pin, spi }) = function.slot.intx {
            let what = format!("{} {pin}", function.name);
            let trigger = trigger_name(Trigger::Level);
            interrupts.push(Interrupt { spi: spi.0, what, trigger });
        }
    }
    interrupts
}

fn access(mapped: bool) -> &'static str {
    if mapped { "mapped" } else { "trapped" }
}

fn trigger_name(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Edge => "edge",
        Trigger::Level => "level",
    }
}

impl Display for Description {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let its = if self.its { " with an ITS" } else { "" };
        let memory = Size::from(self.memory);
        writeln!(f, "machine: {} vCPU(s), {}{its}, {memory} of RAM", self.vcpus, self.gic)?;
        writeln!(f, "CPU features: {}", cpu_features(&self.cpu_features, &self.sve_lengths))?;
        writeln!(f, "kernel: {}, {}", self.kernel, self.packaging)?;
        writeln!(f, "command line: {}", self.cmdline)?;
        writeln!(f, "\nmemory map (guest physical addresses):")?;
        for place in &self.memory_map {
            writeln!(f, "  {}  {}", extent(place.start, place.size), place.what)?;
        }
        writeln!(f, "\ninterrupts:")?;
        for Interrupt { spi, what, trigger } in &self.interrupts {
            writeln!(f, "  SPI {spi:<3}  {what}, {}", signalling(trigger))?;
        }
        if let Some(iommu) = self.iommu {
            writeln!(f, "\nIOMMU: {iommu}")?;
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

/// From where to where something is, in columns; nothing has no last address.
fn extent(start: u64, size: u64) -> String {
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
fn signalling(trigger: &str) -> &str {
    if trigger == "level" { "level, resampled" } else { trigger }
}

impl Display for PciHost {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "PCI functions:")?;
        for PciFunction { address, name, sheet, .. } in &self.functions {
            writeln!(f, "  {address}  {name}")?;
            sheet.to_string().lines().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        self.without_messages.iter().try_for_each(|why| writeln!(f, "  {why}"))
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let binding = self.binding.map_or_else(String::new, |name| format!(", a {name}"));
        writeln!(f, "{}{binding}:", self.name)?;
        for (index, Region { start, size, access }) in self.regions.iter().enumerate() {
            writeln!(f, "  region {index}: {start:#x}, {size:#x} bytes, {access}")?;
        }
        for (index, DeviceInterrupt { spi, trigger }) in self.interrupts.iter().enumerate() {
            writeln!(f, "  interrupt {index}: SPI {spi}, {}", signalling(trigger))?;
        }
        writeln!(f, "  of the host's node:")?;
        for fate in ["kept", "rewritten", "made"] {
            let plain = self.properties.iter().filter(|property| property.reason.is_none());
            let paths = plain.filter(|property| property.fate == fate);
            let paths: Vec<&str> = paths.map(|property| property.path.as_str()).collect();
            if !paths.is_empty() {
                writeln!(f, "    {fate:<10}{}", paths.join(" "))?;
            }
        }
        for Property { path, fate, reason } in &self.properties {
            if let Some(reason) = reason {
                writeln!(f, "    {fate:<10}{path}: {reason}")?;
            }
        }
        writeln!(f, "  the guest's node:")?;
        self.node.lines().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::extent;

    #[test]
    fn places_end_with_their_last_byte_if_they_have_one() {
        assert_eq!(extent(0xc01_0000, 0x1000), "0x00c010000-0x00c010fff");
        assert_eq!(extent(0xc01_0000, 0), "0x00c010000, 0 bytes   ");
        assert_eq!(extent(u64::MAX, 1).len(), 37);
    }
}
