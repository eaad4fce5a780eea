//! `strait device show --vfio-user PATH`: what a server says of its device.

use std::fmt::{self, Display, Formatter};

use devices::vfio::uapi::{DeviceCalls, IoctlError, RegionInfo};
use devices::vfio_user::VfioUserDevice;
use serde::Serialize;

use crate::cli::{Size, VfioUserOptions};
use crate::error::Error;

/// What the regions of a PCI device are, by index (`VFIO_PCI_BAR0_REGION_INDEX` and the following in
/// `linux/vfio.h`).
const REGIONS: [&str; 9] =
    ["BAR 0", "BAR 1", "BAR 2", "BAR 3", "BAR 4", "BAR 5", "ROM", "configuration", "VGA"];

/// The region that is the configuration space.
const CONFIG: u32 = 7;

/// What the interrupts of a PCI device are, by index (`VFIO_PCI_INTX_IRQ_INDEX` and the following).
const INTERRUPTS: [&str; 5] = ["INTx", "MSI", "MSI-X", "errors", "requests to release it"];

/// More regions or interrupts than any device has.
const MAX_INDICES: u32 = 64;

/// What a server says of its device.
#[derive(Debug, Serialize)]
pub struct ServerInfo {
    socket: String,
    /// Of the protocol.
    version: String,
    /// Vendor and device.
    identity: String,
    /// Base class, subclass and programming interface.
    class: String,
    /// It can be reset.
    reset: bool,
    regions: Vec<Region>,
    interrupts: Vec<Interrupt>,
}

#[derive(Debug, Serialize)]
struct Region {
    index: u32,
    name: String,
    size: u64,
    readable: bool,
    writable: bool,
    /// What of it a guest reaches without traps: first and last byte.
    mappable: Vec<[u64; 2]>,
}

#[derive(Debug, Serialize)]
struct Interrupt {
    index: u32,
    name: String,
    count: u32,
    eventfd: bool,
}

impl ServerInfo {
    /// Asks the server at the path of these options.
    ///
    /// # Errors
    ///
    /// There is none, or it doesn't answer as it should.
    pub fn of(options: &VfioUserOptions) -> Result<Self, Error> {
        let path = &options.path;
        let device = VfioUserDevice::connect(path, options.peer)?;
        let socket = path.display().to_string();
        Self::ask(&device, socket).map_err(|error| {
            Error::chain(&error)
                .help(format!("the output of the server at {} may say why", path.display()))
        })
    }

    fn ask(device: &VfioUserDevice, socket: String) -> Result<Self, IoctlError> {
        let info = device.info()?;
        let mut head = [0; 16];
        let config = device.region_info(CONFIG)?;
        device
            .read(&config, 0, &mut head)
            .map_err(|source| IoctlError { request: "VFIO_USER_REGION_READ", source })?;
        let [v0, v1, d0, d1, .., programming, sub, base, _, _, _, _] = head;
        let (vendor, number) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([d0, d1]));
        let mut server = Self {
            socket,
            version: device.version().to_string(),
            identity: format!("{vendor:04x}:{number:04x}"),
            class: format!("{base:02x}{sub:02x}{programming:02x}"),
            reset: info.reset,
            regions: Vec::new(),
            interrupts: Vec::new(),
        };
        for index in 0..info.regions.min(MAX_INDICES) {
            let region = device.region_info(index)?;
            if region.size != 0 {
                server.regions.push(Region::of(&region));
            }
        }
        for index in 0..info.irqs.min(MAX_INDICES) {
            let irq = device.irq_info(index)?;
            if irq.count != 0 {
                let name = name(&INTERRUPTS, "interrupt", index);
                let (count, eventfd) = (irq.count, irq.eventfd);
                server.interrupts.push(Interrupt { index, name, count, eventfd });
            }
        }
        Ok(server)
    }
}

impl Display for ServerInfo {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { socket, version, identity, class, .. } = self;
        writeln!(f, "{socket}: a PCI device over vfio-user {version}")?;
        let reset = if self.reset { "can be reset" } else { "can't be reset" };
        writeln!(f, "{identity}, class {class}, {reset}")?;
        for region in &self.regions {
            let size = Size::from(region.size);
            write!(f, "  {}: {size}", region.name)?;
            match (region.readable, region.writable) {
                // Some servers leave it open of the configuration space, which all can access.
                _ if region.index == CONFIG => {}
                (true, true) => {}
                (true, false) => write!(f, ", can't be written")?,
                (false, true) => write!(f, ", can't be read")?,
                (false, false) => write!(f, ", can't be accessed")?,
            }
            if region.index != CONFIG && region.mappable.is_empty() {
                write!(f, ", traps")?;
            }
            for [first, last] in &region.mappable {
                write!(f, ", {first:#x}-{last:#x} mapped")?;
            }
            writeln!(f)?;
        }
        for irq in &self.interrupts {
            let how = if irq.eventfd { "" } else { ", without an eventfd" };
            writeln!(f, "  {}: {}{how}", irq.name, irq.count)?;
        }
        Ok(())
    }
}

impl Region {
    fn of(info: &RegionInfo) -> Self {
        let whole = 0..info.size;
        let areas = info.areas.as_deref().unwrap_or(std::slice::from_ref(&whole));
        let areas = areas.iter().filter(|area| info.mappable && !area.is_empty());
        Self {
            index: info.index,
            name: name(&REGIONS, "region", info.index),
            size: info.size,
            readable: info.readable,
            writable: info.writable,
            mappable: areas.map(|area| [area.start, area.end.saturating_sub(1)]).collect(),
        }
    }
}

fn name(names: &[&str], kind: &str, index: u32) -> String {
    let name = usize::try_from(index).ok().and_then(|index| names.get(index));
    name.map_or_else(|| format!("{kind} {index}"), |name| (*name).to_owned())
}
