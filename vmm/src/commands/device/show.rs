//! `strait device show`.

use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::sync::Arc;

use arch::RamPages;
use boot::fdt::host::{ClockStates, HostNode, HostTree, SYSTEM_CLOCKS};
use boot::fdt::{self, Node};
use boot::layout::Ram;
use devices::vfio::assign::{self, DeviceRef};
use devices::vfio::host::{GroupMember, Host, HostBus, HostDevice, ReservedRegion, Usage};
use devices::vfio::iommu::{Iommu, IommuOptions};
use devices::vfio::region::host_page_size;
use devices::vfio::unbound::UnboundDevice;
use serde::Serialize;

use super::function::FunctionDetails;
use super::pci_ids::PciIds;
use super::summary::{File, State, Summary};
use super::vfio_info::{IommuDetails, VfioInfo};
use crate::allocator::Allocator;
use crate::assigned::{AssignedDevices, Selection};
use crate::cli::VfioPlatformOptions;
use crate::error::Error;
use crate::host_clocks::{self, DeviceClock, KEEP_ON};

/// The RAM of the guest for which the node is planned: as little as there can be.
const RAM: Ram = Ram { base: arch::layout::RAM_START, size: 2 << 20 };

/// All that is known of a device.
#[derive(Debug, Serialize)]
pub struct Details {
    #[serde(flatten)]
    summary: Summary,
    /// Its directory in sysfs.
    path: String,
    group: Option<Group>,
    /// A PCI function as a guest gets it.
    function: Option<FunctionDetails>,
    /// What VFIO reports of it; while it isn't bound, what it will report, as far as node and sysfs say.
    vfio: Option<VfioInfo>,
    /// What its IOMMU can map; nothing while it isn't bound.
    iommu: Option<IommuDetails>,
    /// The device's own accesses are coherent with the caches, by its node.
    dma_coherent: Option<bool>,
    /// The host's clocks that its node names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    clocks: Vec<DeviceClock>,
    /// Its node in the host's device tree, as source.
    host_node: Option<String>,
    /// Its node in a guest, as source.
    guest_node: Option<String>,
}

/// Its IOMMU group.
#[derive(Debug, Serialize)]
struct Group {
    number: u32,
    /// What Linux itself uses it for.
    domain_type: Option<String>,
    members: Vec<GroupMember>,
    reserved: Vec<ReservedRegion>,
}

impl Details {
    /// Those of the device of this name, opened in this way.
    ///
    /// # Errors
    ///
    /// There is no such device, or its attributes can't be read. Why one can't be opened is in its
    /// details.
    pub fn of(host: &Host, name: &str, options: IommuOptions) -> Result<Self, Error> {
        let device = match host.find(name)? {
            Some(device) => device,
            // Says which names there are.
            None => {
                let which = [DeviceRef::from(name)];
                return Err(assign::preflight(host, &which).err().map_or_else(
                    || Error::new(format!("there is no device {name}")),
                    Error::from,
                ));
            }
        };
        let node = host_node(&device);
        let mut details = Self {
            summary: Summary::of(host, &PciIds::installed(), &Usage::of(host), &device)?,
            path: device.path().display().to_string(),
            group: Group::of(host, &device)?,
            function: None,
            vfio: None,
            iommu: None,
            clocks: node.as_ref().map(clocks).unwrap_or_default(),
            dma_coherent: node.as_ref().map(|node| node.has("dma-coherent")),
            host_node: node.as_ref().map(|node| fdt::subtree_to_dts(&copy(node))),
            guest_node: None,
        };
        if let Err(error) = details.open(host, device.clone(), options) {
            details.summary.add(error);
            if let Err(error) = details.predict(&device, node.as_ref(), options) {
                log::warn!("{}: {}", device.name(), error.message());
            }
        }
        Ok(details)
    }

    /// Adds what is known beforehand of a device that can't be opened.
    fn predict(
        &mut self,
        device: &HostDevice,
        node: Option<&HostNode>,
        options: IommuOptions,
    ) -> Result<(), Error> {
        if device.bus() == HostBus::Pci && !device.is_bridge()? {
            let calls = Arc::new(UnboundDevice::pci(device)?);
            self.vfio = Some(VfioInfo::of_unbound(&*calls).map_err(|e| Error::chain(&e))?);
            self.function = Some(FunctionDetails::of(calls, device.name(), device.pci_config()?)?);
        } else if let Some(node) = node {
            let tree = HostTree::system()?;
            let calls = UnboundDevice::platform(&tree, device, node, host_page_size())?;
            self.vfio = Some(VfioInfo::of_unbound(&calls).map_err(|e| Error::chain(&e))?);
            self.guest_node = Some(guest_source(&self.path, options)?);
        }
        Ok(())
    }

    /// Adds what only shows when the device is opened.
    fn open(
        &mut self,
        host: &Host,
        device: HostDevice,
        options: IommuOptions,
    ) -> Result<(), Error> {
        let assignment = assign::assess(host, device)?;
        let iommu = Iommu::open(host, std::slice::from_ref(&assignment), options)?;
        let calls = iommu.open_device(&assignment)?;
        self.iommu = Some(IommuDetails::of(&iommu)?);
        self.vfio = Some(VfioInfo::of(&*calls).map_err(|e| Error::chain(&e))?);
        if assignment.device.bus() == HostBus::Pci {
            let hardware = assignment.device.pci_config()?;
            self.function = Some(FunctionDetails::of(calls, assignment.name(), hardware)?);
            return Ok(());
        }
        // Closed before it is opened again.
        drop((calls, iommu));
        self.guest_node = Some(guest_source(&self.path, options)?);
        Ok(())
    }
}

impl Display for Details {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { summary, vfio, iommu, function, .. } = self;
        writeln!(f, "{} on the {} bus: {}", summary.name, summary.bus.name(), self.path)?;
        write!(f, "driver: {}", summary.driver.as_deref().unwrap_or("none"))?;
        summary.driver_before.iter().try_for_each(|driver| write!(f, " (before: {driver})"))?;
        writeln!(f)?;
        summary.what.iter().try_for_each(|what| writeln!(f, "it is: {what}"))?;
        match &self.group {
            Some(group) => group.fmt(f)?,
            None => writeln!(f, "IOMMU group: none yet")?,
        }
        writeln!(f, "state: {}", summary.state_text())?;
        if !summary.files.is_empty() {
            writeln!(f, "files: {}", File::list(&summary.files))?;
        }
        vfio.iter().try_for_each(|vfio| vfio.fmt(f))?;
        iommu.iter().try_for_each(|iommu| iommu.fmt(f))?;
        function.iter().try_for_each(|function| function.fmt(f))?;
        if let Some(coherent) = self.dma_coherent {
            let whether = if coherent { "is" } else { "isn't" };
            writeln!(f, "the device {whether} dma-coherent")?;
        }
        for DeviceClock { name, host, rate, on } in &self.clocks {
            let host = host.iter().map(|host| format!(", {host} on the host")).collect::<String>();
            let rate = rate.iter().map(|rate| format!(", {rate} Hz")).collect::<String>();
            writeln!(f, "clock {name}{host}{rate}: {}", host_clocks::state(*on))?;
        }
        if self.clocks.iter().any(|clock| clock.on == Some(false)) {
            writeln!(f, "  help: {KEEP_ON}")?;
        }
        for (whose, node) in [("on the host", &self.host_node), ("in a guest", &self.guest_node)] {
            node.iter().try_for_each(|node| writeln!(f, "\nnode {whose}:\n{}", node.trim_end()))?;
        }
        if !matches!(summary.state, State::UsedByHost | State::InUse) {
            let mut reason = summary.reason.iter();
            reason.try_for_each(|reason| writeln!(f, "\nVFIO tells nothing of it: {reason}"))?;
        }
        summary.help.iter().try_for_each(|help| writeln!(f, "  help: {help}"))
    }
}

impl Group {
    fn of(host: &Host, device: &HostDevice) -> Result<Option<Self>, Error> {
        let Some(number) = device.group()? else { return Ok(None) };
        let group = host.group(number);
        Ok(Some(Self {
            number,
            domain_type: group.domain_type()?,
            members: group.members()?,
            reserved: group.reserved_regions()?,
        }))
    }
}

impl Display for Group {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = self.domain_type.as_deref().unwrap_or("unknown");
        writeln!(f, "IOMMU group: {}, type {kind}", self.number)?;
        for GroupMember { name, bus, driver } in &self.members {
            writeln!(f, "  {name} ({bus}, driver {})", driver.as_deref().unwrap_or("none"))?;
        }
        for ReservedRegion { start, end, kind } in &self.reserved {
            writeln!(f, "  reserved: {start:#x}-{end:#x} ({kind})")?;
        }
        Ok(())
    }
}

/// The device's node on the host; nothing where it has none, or none that can be read.
fn host_node(device: &HostDevice) -> Option<HostNode> {
    let directory = device.of_node().ok().flatten()?;
    let node = HostTree::system().and_then(|tree| tree.node(&directory));
    node.inspect_err(|e| log::warn!("{}: {e}", device.name())).ok()
}

/// The host's clocks that a node names.
fn clocks(node: &HostNode) -> Vec<DeviceClock> {
    let states = || ClockStates::read(Path::new(SYSTEM_CLOCKS));
    HostTree::system().map(|tree| DeviceClock::of(&tree, node, &states())).unwrap_or_default()
}

/// A node of the host's, its properties as what they most likely are. How deep children are followed is
/// bounded by the reader of the tree.
fn copy(node: &HostNode) -> Node {
    let mut copied = Node::new(node.name());
    for property in node.properties() {
        copied.set(&property.name, property.value());
    }
    copied.with_children(node.children().iter().map(copy))
}

/// The nodes that a guest would get for it.
fn guest_source(path: &str, iommu: IommuOptions) -> Result<String, Error> {
    let options = VfioPlatformOptions::new(path.into());
    let pages = RamPages::Any;
    let selection = Selection { platform: &[options], pci: &[], iommu, pages, unbound: true };
    let (assigned, _) = AssignedDevices::of_host(&selection, RAM, &mut Allocator::new(RAM, true))?;
    let nodes = [assigned.clocks(), assigned.nodes()].concat();
    Ok(nodes.iter().map(fdt::subtree_to_dts).collect::<Vec<_>>().join("\n"))
}
