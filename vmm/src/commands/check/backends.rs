//! The two interfaces to the IOMMU, iommufd and VFIO's containers: one that works is enough.

use std::fs;
use std::io;
use std::path::Path;

use devices::vfio::assign::may_open;
use devices::vfio::remedy;
use devices::vfio::uapi::{Container, VfioError};

use super::System;
use super::finding::Finding;
use super::kind::{ConfinedDevices, Kind, names};

/// The kinds of the host's devices for which each of them works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// iommufd does.
    pub iommufd: Vec<Kind>,
    /// Containers do.
    pub container: Vec<Kind>,
}

/// Why one can't be used, and what mends it.
#[derive(Debug)]
struct Unavailable {
    text: String,
    help: String,
}

impl Unavailable {
    fn new(text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { text: text.into(), help: help.into() }
    }
}

/// One of the interfaces.
struct Interface {
    subject: &'static str,
    /// The module whose `allow_unsafe_interrupts` allows devices without isolated messages.
    module: &'static str,
    /// Its file, if this process can use it.
    file: Result<String, Unavailable>,
    /// `allow_unsafe_interrupts` of that module, where it has that parameter.
    allows_unsafe: Option<bool>,
}

/// Checks both.
#[cold]
pub fn findings(system: &System, confined: &ConfinedDevices) -> (Backends, Vec<Finding>) {
    let interface = |subject, module, file| {
        let allows_unsafe = system.host.flag(module, "allow_unsafe_interrupts").ok().flatten();
        Interface { subject, module, file, allows_unsafe }
    };
    let iommufd = interface("iommufd", "iommufd", iommufd(system));
    let container = interface("VFIO containers", "vfio_iommu_type1", container(system));
    let works = Backends { iommufd: iommufd.kinds(confined), container: container.kinds(confined) };
    let findings =
        vec![iommufd.finding(&container, confined), container.finding(&iommufd, confined)];
    (works, findings)
}

impl Interface {
    /// The kinds of device that can be assigned through it.
    fn kinds(&self, confined: &ConfinedDevices) -> Vec<Kind> {
        let mut kinds = if self.file.is_ok() { confined.kinds() } else { Vec::new() };
        kinds.retain(|kind| {
            self.allows_unsafe != Some(false) || !confined.needs_unsafe_interrupts(*kind)
        });
        kinds
    }

    /// What is found about it beside the other one.
    fn finding(&self, other: &Self, confined: &ConfinedDevices) -> Finding {
        let (mine, others) = (self.kinds(confined), other.kinds(confined));
        let mut refused = confined.kinds();
        refused.retain(|kind| !mine.contains(kind));
        let mut lost = refused.clone();
        lost.retain(|kind| !others.contains(kind));
        let Self { subject, module, file, allows_unsafe } = self;
        let path = match file {
            Ok(path) => path,
            Err(Unavailable { text, .. }) if lost.is_empty() => {
                return Finding::fine(
                    subject,
                    format!("{text}; not needed beside {}", other.subject),
                );
            }
            Err(Unavailable { text, help }) => return Finding::blocks(subject, &lost, text, help),
        };
        let told = match allows_unsafe {
            Some(true) => ", allow_unsafe_interrupts on",
            Some(false) => ", allow_unsafe_interrupts off",
            None => "",
        };
        if refused.is_empty() {
            return Finding::fine(subject, format!("works: {path}{told}"));
        }
        let works = if mine.is_empty() {
            String::new()
        } else {
            format!("works for {} devices: {path}; ", names(&mine))
        };
        let text = format!(
            "{works}its allow_unsafe_interrupts is off, and it refuses {} devices: the interrupt \
             controller doesn't isolate their messages, or they have none",
            names(&refused)
        );
        if lost.is_empty() {
            return Finding::fine(subject, format!("{text}; not needed beside {}", other.subject));
        }
        Finding::blocks(subject, &lost, text, remedy::allow_unsafe_interrupts(module))
    }
}

fn iommufd(system: &System) -> Result<String, Unavailable> {
    let host = &system.host;
    let path = host.iommufd_node();
    openable(&path, |error| {
        let help = system.modules.remedy("iommufd", "CONFIG_IOMMUFD");
        Unavailable::new(format!("{} can't be opened: {error}", path.display()), help)
    })?;
    // VFIO takes numbers for devices' files only if it makes any (`vfio_cdev_init` in the kernel).
    let numbers = fs::read_to_string(system.proc.join("devices")).unwrap_or_default();
    if !numbers.lines().any(|line| line.split_whitespace().nth(1) == Some("vfio-dev")) {
        return Err(Unavailable::new("VFIO makes no files for devices", remedy::DEVICE_CDEV));
    }
    Ok(path.display().to_string())
}

fn container(system: &System) -> Result<String, Unavailable> {
    let path = system.host.container_node();
    let missing = |error: io::Error| {
        Unavailable::new(format!("{} can't be opened: {error}", path.display()), remedy::CONTAINER)
    };
    openable(&path, missing)?;
    match Container::open() {
        Ok(_) => Ok(format!("{}, type 1", path.display())),
        Err(VfioError::OpenContainer(error)) => Err(missing(error)),
        Err(VfioError::VfioExtension) => Err(Unavailable::new(
            format!("{} has no type 1 IOMMU model", path.display()),
            system.modules.remedy("vfio_iommu_type1", "CONFIG_VFIO_IOMMU_TYPE1"),
        )),
        Err(error) => Err(Unavailable::new(
            format!("{} can't be used: {error}", path.display()),
            remedy::KERNEL_LOG,
        )),
    }
}

/// Checks that this user may open the file; `otherwise` says why it can't be opened for another
/// reason.
fn openable(
    path: &Path,
    otherwise: impl FnOnce(io::Error) -> Unavailable,
) -> Result<(), Unavailable> {
    may_open(path).map_err(|error| {
        if error.raw_os_error() == Some(libc::EPERM) {
            return Unavailable::new(
                format!("this process may not open {}, whoever runs it", path.display()),
                remedy::allow_in_container(&[path.display().to_string()]),
            );
        }
        if error.kind() != io::ErrorKind::PermissionDenied {
            return otherwise(error);
        }
        Unavailable::new(
            format!("this user may not open {}", path.display()),
            remedy::permit_all(&[path.display().to_string()]),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn way(subject: &'static str, file: bool, allows_unsafe: Option<bool>) -> Interface {
        let obstacle = || Unavailable::new("no /dev/iommu", "modprobe iommufd");
        let file = if file { Ok("/dev/iommu".to_owned()) } else { Err(obstacle()) };
        Interface { subject, module: "iommufd", file, allows_unsafe }
    }

    fn found(way: Interface, other: &Interface, kinds: &[Kind]) -> Finding {
        way.finding(other, &ConfinedDevices::of_kinds(kinds))
    }

    #[test]
    fn one_that_works_is_enough() {
        let iommufd = || way("iommufd", false, None);
        let alone = found(iommufd(), &way("VFIO containers", false, None), &[Kind::Amba]);
        assert_eq!((alone.level, alone.help.as_deref()), (Level::Blocks, Some("modprobe iommufd")));
        assert_eq!(alone.blocks, [Kind::Amba]);
        let beside = found(iommufd(), &way("VFIO containers", true, None), &[Kind::Amba]);
        assert_eq!(beside.level, Level::Fine);
        assert_eq!(beside.text, "no /dev/iommu; not needed beside VFIO containers");
        let works = found(way("iommufd", true, None), &iommufd(), &[Kind::Pci]);
        assert_eq!((works.level, works.text.as_str()), (Level::Fine, "works: /dev/iommu"));
    }

    #[test]
    fn only_devices_whose_messages_are_not_isolated_need_it_to_go_on() {
        let off = || way("iommufd", true, Some(false));
        let none = way("VFIO containers", false, None);
        assert_eq!(found(off(), &none, &[Kind::Pci]).level, Level::Fine);
        let both = found(off(), &none, &[Kind::Platform, Kind::Pci]);
        assert_eq!(both.blocks, [Kind::Platform]);
        assert!(both.text.starts_with("works for PCI devices: /dev/iommu; "), "{}", both.text);
        assert!(both.help.is_some_and(|help| help.contains("iommufd.allow_unsafe_interrupts=1")));
        let on = way("VFIO containers", true, Some(true));
        assert_eq!(found(off(), &on, &[Kind::Platform, Kind::Pci]).level, Level::Fine);
    }
}
