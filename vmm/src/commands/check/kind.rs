//! The kinds of device: each needs other things of the host.

use boot::fdt::host::HostTree;
use devices::vfio::host::{Host, HostBus, HostDevice, ReadError};
use serde::Serialize;

use super::msi_isolation;

/// A kind of device, by how a guest is given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Of the platform bus.
    Platform,
    /// Of the AMBA bus.
    Amba,
    /// Of the PCI bus.
    Pci,
    /// Of another process, over vfio-user: it needs neither an IOMMU nor the host's VFIO.
    VfioUser,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Platform, Self::Amba, Self::Pci, Self::VfioUser];

    /// Those of the host's own devices.
    pub const OF_HOST: [Self; 3] = [Self::Platform, Self::Amba, Self::Pci];

    /// The kind of a bus's devices.
    pub fn on(bus: HostBus) -> Self {
        match bus {
            HostBus::Platform => Self::Platform,
            HostBus::Amba => Self::Amba,
            HostBus::Pci => Self::Pci,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Amba => "AMBA",
            Self::Pci => "PCI",
            Self::VfioUser => "vfio-user",
        }
    }
}

/// The names of kinds, as in "platform and AMBA".
pub fn names(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(" and ")
}

/// The host's devices that an IOMMU confines, bridges left out.
pub struct ConfinedDevices(Vec<ConfinedDevice>);

/// One of them.
struct ConfinedDevice {
    kind: Kind,
    device: HostDevice,
    /// The interrupt controller tells its messages from those of others.
    isolated: bool,
}

impl ConfinedDevices {
    /// Those of a host.
    ///
    /// # Errors
    ///
    /// A device can't be looked at.
    pub fn of(host: &Host) -> Result<Self, ReadError> {
        let tree = HostTree::at(&host.device_tree()).ok();
        let mut confined = Vec::new();
        for bus in HostBus::ALL {
            for device in host.devices_on(bus) {
                if !device.behind_iommu()? || device.is_bridge()? || is_unconfined(host, &device)? {
                    continue;
                }
                let isolated = msi_isolation::are_isolated(tree.as_ref(), &device);
                confined.push(ConfinedDevice { kind: Kind::on(bus), device, isolated });
            }
        }
        Ok(Self(confined))
    }

    /// Those of a kind.
    pub fn devices(&self, kind: Kind) -> impl Iterator<Item = &HostDevice> {
        self.0.iter().filter(move |confined| confined.kind == kind).map(|c| &c.device)
    }

    /// How many of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        self.devices(kind).count()
    }

    /// The kinds of which there are any; all of the host's where there is none at all.
    pub fn kinds(&self) -> Vec<Kind> {
        let any = |kind: &Kind| self.0.is_empty() || self.count(*kind) > 0;
        Kind::OF_HOST.into_iter().filter(any).collect()
    }

    /// Whether VFIO takes a device of this kind only where it is let go on without isolated
    /// messages (`allow_unsafe_interrupts`).
    pub fn needs_unsafe_interrupts(&self, kind: Kind) -> bool {
        !self.0.iter().any(|confined| confined.kind == kind && confined.isolated)
    }
}

/// Whether its group was made up, by `CONFIG_VFIO_NOIOMMU`.
fn is_unconfined(host: &Host, device: &HostDevice) -> Result<bool, ReadError> {
    device.group()?.map_or(Ok(false), |group| host.group(group).is_noiommu())
}

#[cfg(test)]
impl ConfinedDevices {
    /// A device of each of these kinds, none of which has isolated messages but the PCI function.
    pub fn of_kinds(kinds: &[Kind]) -> Self {
        let root = std::env::temp_dir().join(format!("strait-confined-{}", std::process::id()));
        let confined = kinds.iter().filter_map(|kind| {
            let bus = HostBus::ALL.into_iter().find(|bus| Kind::on(*bus) == *kind)?;
            let path = root.join("bus").join(bus.name()).join("devices/1.x");
            std::fs::create_dir_all(&path).ok()?;
            let device = Host::at(&root, &root, &root, &root).find_on(bus, "1.x").ok()??;
            Some(ConfinedDevice { kind: *kind, device, isolated: *kind == Kind::Pci })
        });
        let confined = confined.collect();
        let _ = std::fs::remove_dir_all(&root);
        Self(confined)
    }
}
