//! The plan as a person or a program reads it (`--dry-run`, `--json`).

mod text;

use std::ops::Range;

use arch::{RamPages, layout};
use boot::fdt::{self, Node};
use boot::kernel::Kernel;
use boot::order;
use devices::extent::Extent;
use devices::irq::Trigger;
use devices::pci::{Apertures, Intx};
use devices::scmi::Resources;
use devices::vfio::iommu::Backend;
use devices::vfio::node::PropertyReport;
use serde::Serialize;

use super::{MachinePlan, Opened};
use crate::assigned::{AssignedDevice, Obstacle};
use crate::cli::{ConsoleKind, GdbOptions, OnReset, Size};
use crate::commands::device::FunctionDetails;
use crate::flash::FlashPlan;
use crate::trace::TracePlan;

pub use text::cpu_features;

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
    /// Where it is controlled from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<String>,
    /// The name by which systemd-machined lists it.
    #[serde(skip_serializing_if = "Option::is_none")]
    registered: Option<String>,
    /// When the guest begins anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    restarts: Option<&'static str>,
    /// Where a debugger connects.
    #[serde(skip_serializing_if = "Option::is_none")]
    gdb: Option<String>,
    /// What is recorded of which devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    traces: Vec<String>,
    memory_map: Vec<Area>,
    interrupts: Vec<Interrupt>,
    /// How devices' DMA is mapped, where there are assigned devices.
    iommu: Option<Backend>,
    /// What devices have by SCMI, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    scmi: Option<ScmiDescription>,
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
    /// The address of the root port whose hot-plug slot it is in.
    root_port: Option<String>,
    /// What of it the guest gets.
    #[serde(flatten)]
    details: FunctionDetails,
}

/// What devices have by SCMI, by the numbers of these lists.
#[derive(Debug, Serialize)]
struct ScmiDescription {
    clocks: Vec<ScmiClock>,
    /// Their names.
    resets: Vec<String>,
    /// Their names.
    power_domains: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ScmiClock {
    /// In the guest.
    name: String,
    /// Of which device it is.
    of: String,
    /// In Hz.
    rate: u64,
    /// It is known to be off on the host.
    off: bool,
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
            control: plan.control.as_ref().map(|path| format!("unix:{}", path.display())),
            registered: plan.register.clone(),
            restarts: (plan.on_reset == OnReset::Restart).then_some("on reset"),
            gdb: None,
            traces: opened.traces.iter().map(TracePlan::to_string).collect(),
            memory_map: memory_map(plan, opened, &kvm),
            interrupts: interrupts(plan, opened),
            iommu: assigned.backend(),
            obstacles: assigned.obstacles.clone(),
            scmi: assigned.scmi.as_ref().map(|scmi| ScmiDescription::of(scmi.resources())),
            pci: kvm.apertures.as_ref().map(|_| PciHost::of(opened, &kvm)),
            devices: assigned.platform.iter().map(|device| Device::of(device, tree)).collect(),
            device_tree: fdt::to_dts(tree),
            kvm,
        }
    }

    /// The same with a debugger, if there may be one.
    #[must_use]
    pub fn with_debugger(self, gdb: Option<&GdbOptions>) -> Self {
        Self { gdb: gdb.map(GdbOptions::to_string), ..self }
    }
}

impl ScmiDescription {
    #[cold]
    fn of(resources: &Resources) -> Self {
        let clocks = resources.clocks.iter().map(|clock| ScmiClock {
            name: clock.name.clone(),
            of: clock.of.clone(),
            rate: clock.rate,
            off: clock.off,
        });
        let domains = resources.power_domains.iter();
        Self {
            clocks: clocks.collect(),
            resets: resources.resets.iter().map(|reset| reset.name.clone()).collect(),
            power_domains: domains.map(|domain| domain.name().to_owned()).collect(),
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
        let functions = opened.assigned.functions.iter().filter_map(|function| {
            Some(PciFunction {
                address: function.slot.bdf.to_string(),
                name: function.name.clone(),
                intx: function.slot.intx.map(|intx| intx.spi.0),
                root_port: function.slot.port.map(|port| port.to_string()),
                details: FunctionDetails::of_function(function.lock().get()?),
            })
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
    if assigned.scmi.is_some() {
        add(&layout::SCMI, "messages of SCMI", false);
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
    order::sort_by_key(&mut map, |area| area.extent.start);
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
