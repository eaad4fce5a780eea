//! `strait device show`.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use boot::fdt;
use boot::fdt::host::{HostNode, HostTree};
use boot::layout::Ram;
use devices::vfio::assign::{self, DeviceRef};
use devices::vfio::driver_binding::BindRecords;
use devices::vfio::host::{Bus, Host, HostDevice, Usage};
use devices::vfio::iommu::{Iommu, IommuOptions};
use devices::vfio::region::host_page_size;
use devices::vfio::uapi::{DeviceCalls, IoctlError, IrqInfo, RegionInfo};
use devices::vfio::unbound::UnboundDevice;
use serde::Serialize;

use super::function::{self, FunctionSheet};
use super::host_node;
use super::standing::{File, Standing, State};
use crate::allocator::Allocator;
use crate::assigned::{AssignedDevices, Selection, unbound_note};
use crate::cli::{PlatformOptions, Size};
use crate::error::Error;

/// The RAM of the guest for which the node is planned: as little as there can be.
const RAM: Ram = Ram { base: arch::layout::RAM_START, size: 2 << 20 };

/// All that is known of a device.
#[derive(Debug, Serialize)]
pub struct Sheet {
    name: String,
    bus: &'static str,
    path: String,
    driver: Option<String>,
    /// The driver that `unbind` restores.
    driver_before: Option<String>,
    group: Option<Group>,
    /// Who uses it, and by which files it can be had.
    #[serde(flatten)]
    standing: Standing,
    /// What a PCI function says that it is.
    what: Option<String>,
    /// A PCI function as a guest gets it.
    function: Option<FunctionSheet>,
    /// What VFIO tells of it; nothing while it isn't bound.
    vfio: Option<Vfio>,
    /// What VFIO will tell of it, as far as its node and sysfs do, while it isn't bound.
    foreseen: Option<Vfio>,
    /// What its IOMMU can map; nothing while it isn't bound.
    iommu: Option<IommuFacts>,
    /// The device's own accesses are coherent with the caches, by its node.
    dma_coherent: Option<bool>,
    /// Its node in the host's device tree, as source.
    host_node: Option<String>,
    /// Its node in a guest, as source.
    guest_node: Option<String>,
}

#[derive(Debug, Serialize)]
struct Group {
    number: u32,
    /// What Linux itself uses it for.
    domain_type: Option<String>,
    members: Vec<Member>,
    reserved: Vec<Window>,
}

#[derive(Debug, Serialize)]
struct Member {
    name: String,
    bus: String,
    driver: Option<String>,
}

/// A window of IOVAs, both ends included.
#[derive(Debug, Serialize)]
struct Window {
    start: u64,
    end: u64,
    /// What it is reserved for.
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
}

#[derive(Debug, Serialize)]
struct Vfio {
    platform: bool,
    amba: bool,
    pci: bool,
    /// VFIO can reset it; nothing while it isn't bound.
    reset: Option<bool>,
    regions: Vec<Region>,
    interrupts: Vec<Interrupt>,
}

#[derive(Debug, Serialize)]
struct Region {
    size: u64,
    readable: bool,
    writable: bool,
    mappable: bool,
}

#[derive(Debug, Serialize)]
struct Interrupt {
    count: u32,
    eventfd: bool,
    maskable: bool,
    automasked: bool,
}

#[derive(Debug, Serialize)]
struct IommuFacts {
    /// Who says so: `iommufd` or `container`.
    backend: &'static str,
    /// What mappings begin at and consist of multiples of, in bytes.
    alignment: u64,
    /// In bytes; iommufd doesn't say.
    page_sizes: Option<Vec<u64>>,
    iova_ranges: Option<Vec<Window>>,
    mappings_left: Option<u32>,
    /// It makes accesses coherent with the caches that the device doesn't (`VFIO_DMA_CC_IOMMU`);
    /// iommufd doesn't say.
    enforces_coherency: Option<bool>,
}

impl Sheet {
    /// The sheet of the device of this name, opened in this way.
    ///
    /// # Errors
    ///
    /// There is no such device, or it can't be looked at. One that can't be opened has a sheet that
    /// says why.
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
        let mut sheet = Self {
            name: device.name().to_owned(),
            bus: device.bus().name(),
            path: device.path().display().to_string(),
            driver: device.driver()?,
            driver_before: BindRecords::of(host).read(&device)?.and_then(|record| record.driver),
            group: Group::of(host, &device)?,
            standing: Standing::of(host, &Usage::of(host), &device)?,
            what: function::identity(&device)?,
            function: None,
            vfio: None,
            foreseen: None,
            iommu: None,
            dma_coherent: node.as_ref().map(|node| node.has("dma-coherent")),
            host_node: node.as_ref().map(host_node::source),
            guest_node: None,
        };
        if let Err(error) = sheet.open(host, device.clone(), options) {
            sheet.standing.add(error);
            if let Err(error) = sheet.foresee(&device, node.as_ref(), options) {
                log::warn!("{}: {}", sheet.name, error.message());
            }
        }
        Ok(sheet)
    }

    /// Adds what can be foreseen of a device that can't be opened.
    fn foresee(
        &mut self,
        device: &HostDevice,
        node: Option<&HostNode>,
        options: IommuOptions,
    ) -> Result<(), Error> {
        if device.bus() == Bus::Pci && !device.is_bridge()? {
            let calls = Arc::new(UnboundDevice::pci(device)?);
            self.foreseen = Some(Vfio::foreseen(&calls)?);
            self.function = Some(FunctionSheet::of(calls, &self.name, device.pci_config()?)?);
        } else if let Some(node) = node {
            let tree = HostTree::system()?;
            let calls = UnboundDevice::platform(&tree, device, node, host_page_size())?;
            self.foreseen = Some(Vfio::foreseen(&calls)?);
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
        self.iommu = Some(IommuFacts::of(&iommu)?);
        self.vfio = Some(Vfio::of(&*calls).map_err(|e| Error::chain(&e))?);
        if assignment.device.bus() == Bus::Pci {
            let hardware = assignment.device.pci_config()?;
            self.function = Some(FunctionSheet::of(calls, &self.name, hardware)?);
            return Ok(());
        }
        // Closed before it is opened again.
        drop((calls, iommu));
        self.guest_node = Some(guest_source(&self.path, options)?);
        Ok(())
    }
}

impl Display for Sheet {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on the {} bus: {}", self.name, self.bus, self.path)?;
        let before = self.driver_before.as_ref().map(|driver| format!(" (before: {driver})"));
        let driver = self.driver.as_deref().unwrap_or("none");
        writeln!(f, "driver: {driver}{}", before.unwrap_or_default())?;
        self.what.as_ref().map_or(Ok(()), |what| writeln!(f, "it is: {what}"))?;
        match &self.group {
            Some(group) => write!(f, "{group}")?,
            None => writeln!(f, "IOMMU group: none yet")?,
        }
        writeln!(f, "state: {}", self.standing.to_text(&self.name))?;
        match &self.standing.files[..] {
            [] => (),
            files => writeln!(f, "files: {}", File::list(files))?,
        }
        for vfio in [&self.vfio, &self.foreseen] {
            vfio.as_ref().map_or(Ok(()), |vfio| write!(f, "{vfio}"))?;
        }
        self.iommu.as_ref().map_or(Ok(()), |iommu| write!(f, "{iommu}"))?;
        self.function.as_ref().map_or(Ok(()), |function| write!(f, "{function}"))?;
        if let Some(coherent) = self.dma_coherent {
            let whether = if coherent { "is" } else { "isn't" };
            writeln!(f, "the device {whether} dma-coherent")?;
        }
        for (whose, node) in [("on the host", &self.host_node), ("in a guest", &self.guest_node)] {
            if let Some(node) = node {
                writeln!(f, "\nnode {whose}:\n{}", node.trim_end())?;
            }
        }
        let told = matches!(self.standing.state, State::UsedByHost | State::InUse);
        if let Some(reason) = self.standing.reason.as_ref().filter(|_| !told) {
            writeln!(f, "\nVFIO tells nothing of it: {reason}")?;
        }
        match &self.standing.help {
            Some(help) => writeln!(f, "  help: {help}"),
            None => Ok(()),
        }
    }
}

impl Group {
    fn of(host: &Host, device: &HostDevice) -> Result<Option<Self>, Error> {
        let Some(number) = device.group()? else { return Ok(None) };
        let group = host.group(number);
        let members = group.members()?.into_iter();
        let reserved = group.reserved_regions()?.into_iter();
        Ok(Some(Self {
            number,
            domain_type: group.domain_type()?,
            members: members
                .map(|m| Member { name: m.name, bus: m.bus, driver: m.driver })
                .collect(),
            reserved: reserved
                .map(|r| Window { start: r.start, end: r.end, kind: Some(r.kind) })
                .collect(),
        }))
    }
}

impl Display for Group {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = self.domain_type.as_deref().unwrap_or("unknown");
        writeln!(f, "IOMMU group: {}, type {kind}", self.number)?;
        for Member { name, bus, driver } in &self.members {
            writeln!(f, "  {name} ({bus}, driver {})", driver.as_deref().unwrap_or("none"))?;
        }
        for Window { start, end, kind } in &self.reserved {
            let kind = kind.as_deref().unwrap_or_default();
            writeln!(f, "  reserved: {start:#x}-{end:#x} ({kind})")?;
        }
        Ok(())
    }
}

impl Vfio {
    fn of(calls: &dyn DeviceCalls) -> Result<Self, IoctlError> {
        let info = calls.info()?;
        let regions = (0..info.regions).map(|index| {
            let region = match calls.region_info(index) {
                // A PCI function has an index for each kind of region, also for those it lacks.
                Err(error) if info.pci && error.is(libc::EINVAL) => RegionInfo::default(),
                region => region?,
            };
            Ok(Region {
                size: region.size,
                readable: region.readable,
                writable: region.writable,
                mappable: region.mappable,
            })
        });
        let interrupts = (0..info.irqs).map(|index| {
            let irq = match calls.irq_info(index) {
                Err(error) if info.pci && error.is(libc::EINVAL) => IrqInfo::default(),
                irq => irq?,
            };
            Ok(Interrupt {
                count: irq.count,
                eventfd: irq.eventfd,
                maskable: irq.maskable,
                automasked: irq.automasked,
            })
        });
        Ok(Self {
            platform: info.platform,
            amba: info.amba,
            pci: info.pci,
            reset: Some(info.reset),
            regions: regions.collect::<Result<_, IoctlError>>()?,
            interrupts: interrupts.collect::<Result<_, IoctlError>>()?,
        })
    }

    /// What a device that isn't bound will have.
    fn foreseen(calls: &UnboundDevice) -> Result<Self, Error> {
        let known = Self::of(calls).map_err(|e| Error::chain(&e))?;
        Ok(Self { reset: None, ..known })
    }
}

impl Display for Vfio {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let flags = words([
            (self.platform, "platform"),
            (self.amba, "AMBA"),
            (self.pci, "PCI"),
            (self.reset == Some(true), "reset"),
        ]);
        if self.reset.is_none() {
            writeln!(f, "{}", unbound_note())?;
        } else {
            writeln!(f, "VFIO: {flags}")?;
        }
        for (index, region) in self.regions.iter().enumerate().filter(|(_, r)| r.size != 0) {
            let flags = words([
                (region.readable, "readable"),
                (region.writable, "writable"),
                (region.mappable, "mappable"),
            ]);
            writeln!(f, "  region {index}: {:#x} bytes, {flags}", region.size)?;
        }
        for (index, irq) in self.interrupts.iter().enumerate().filter(|(_, irq)| irq.count != 0) {
            let flags = words([
                (irq.eventfd, "eventfd"),
                (irq.maskable, "maskable"),
                (irq.automasked, "level (automasked)"),
                (!irq.automasked, "edge"),
            ]);
            writeln!(f, "  interrupt {index}: count {}, {flags}", irq.count)?;
        }
        Ok(())
    }
}

impl IommuFacts {
    fn of(iommu: &Iommu) -> Result<Self, Error> {
        let info = iommu.info();
        let window = |r: &std::ops::RangeInclusive<u64>| Window {
            start: *r.start(),
            end: *r.end(),
            kind: None,
        };
        let sizes = (0..u64::BITS).map(|bit| 1 << bit);
        Ok(Self {
            backend: iommu.backend().name(),
            alignment: info.alignment,
            page_sizes: (info.page_sizes != 0)
                .then(|| sizes.filter(|size| info.page_sizes & size != 0).collect()),
            iova_ranges: info.iova_ranges.as_ref().map(|r| r.iter().map(window).collect()),
            mappings_left: info.mappings_left,
            enforces_coherency: iommu.enforces_coherency()?,
        })
    }
}

impl Display for IommuFacts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "IOMMU ({}):", self.backend)?;
        match &self.page_sizes {
            Some(sizes) => {
                let sizes: Vec<_> =
                    sizes.iter().map(|size| Size::from(*size).to_string()).collect();
                writeln!(f, "  pages of {}", sizes.join(", "))?;
            }
            None => writeln!(f, "  pages of {} and larger", Size::from(self.alignment))?,
        }
        if let Some(enforces) = self.enforces_coherency {
            let enforces = if enforces { "made" } else { "not made" };
            writeln!(f, "  accesses of the device are {enforces} coherent by it")?;
        }
        for Window { start, end, .. } in self.iova_ranges.iter().flatten() {
            writeln!(f, "  IOVA: {start:#x}-{end:#x}")?;
        }
        match self.mappings_left {
            Some(left) => writeln!(f, "  mappings left: {left}"),
            None => Ok(()),
        }
    }
}

/// Those words that hold.
fn words<const N: usize>(words: [(bool, &str); N]) -> String {
    let held: Vec<&str> = words.into_iter().filter(|(holds, _)| *holds).map(|(_, w)| w).collect();
    if held.is_empty() { "nothing".to_owned() } else { held.join(", ") }
}

/// The device's node on the host; nothing where it has none, or none that can be read.
fn host_node(device: &HostDevice) -> Option<HostNode> {
    let directory = device.of_node().ok().flatten()?;
    let node = HostTree::system().and_then(|tree| tree.node(&directory));
    node.inspect_err(|e| log::warn!("{}: {e}", device.name())).ok()
}

/// The nodes that a guest would get for it.
fn guest_source(path: &str, iommu: IommuOptions) -> Result<String, Error> {
    let options = PlatformOptions::new(path.into());
    let selection = Selection { platform: &[options], pci: &[], iommu, unbound: true };
    let (assigned, _) = AssignedDevices::of_host(&selection, RAM, &mut Allocator::new(RAM, true))?;
    let nodes = [assigned.clocks(), assigned.nodes()].concat();
    Ok(nodes.iter().map(fdt::subtree_to_dts).collect::<Vec<_>>().join("\n"))
}
