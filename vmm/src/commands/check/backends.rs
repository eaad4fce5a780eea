//! The two ways to the IOMMU, iommufd and VFIO's containers: one that works is enough.

use std::fs;
use std::io;
use std::path::Path;

use devices::vfio::assign::may_open;
use devices::vfio::remedy;
use devices::vfio::uapi::{Container, VfioError};

use super::Premises;
use super::finding::Finding;
use super::kernel::{self, Presence};
use super::kind::{Kind, Present, names};

/// For which kinds of the host's devices each of them works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// iommufd does.
    pub iommufd: Vec<Kind>,
    /// Containers do.
    pub container: Vec<Kind>,
}

/// What keeps one from working, and what mends it.
#[derive(Debug)]
struct Obstacle {
    text: String,
    help: String,
}

impl Obstacle {
    fn new(text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { text: text.into(), help: help.into() }
    }
}

/// One of them.
struct Way {
    subject: &'static str,
    /// The part of the kernel that can be told to go on where messages aren't isolated.
    module: &'static str,
    /// Where it is, if it is.
    there: Result<String, Obstacle>,
    /// Whether that was told to go on (`allow_unsafe_interrupts`), where it has that parameter.
    goes_on: Option<bool>,
}

/// Looks at both.
#[cold]
pub fn findings(premises: &Premises, present: &Present) -> (Backends, Vec<Finding>) {
    let way = |subject, module, there| {
        let goes_on = premises.host.flag(module, "allow_unsafe_interrupts").ok().flatten();
        Way { subject, module, there, goes_on }
    };
    let iommufd = way("iommufd", "iommufd", iommufd(premises));
    let container = way("VFIO containers", "vfio_iommu_type1", container(premises));
    let works = Backends { iommufd: iommufd.kinds(present), container: container.kinds(present) };
    let findings = vec![iommufd.finding(&container, present), container.finding(&iommufd, present)];
    (works, findings)
}

impl Way {
    /// The kinds of device that can be had by it.
    fn kinds(&self, present: &Present) -> Vec<Kind> {
        let mut kinds = if self.there.is_ok() { present.kinds() } else { Vec::new() };
        kinds.retain(|kind| self.goes_on != Some(false) || !present.needs_unsafe_interrupts(*kind));
        kinds
    }

    /// What is found about it beside the other one.
    fn finding(&self, other: &Self, present: &Present) -> Finding {
        let (mine, others) = (self.kinds(present), other.kinds(present));
        let mut refused = present.kinds();
        refused.retain(|kind| !mine.contains(kind));
        let mut lost = refused.clone();
        lost.retain(|kind| !others.contains(kind));
        let Self { subject, module, there, goes_on } = self;
        let path = match there {
            Ok(path) => path,
            Err(Obstacle { text, .. }) if lost.is_empty() => {
                return Finding::fine(
                    subject,
                    format!("{text}; not needed beside {}", other.subject),
                );
            }
            Err(Obstacle { text, help }) => return Finding::blocks(subject, &lost, text, help),
        };
        let told = match goes_on {
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

fn iommufd(premises: &Premises) -> Result<String, Obstacle> {
    let host = &premises.host;
    let path = host.iommufd_node();
    openable(&path, |error| {
        let release = kernel::release(&premises.proc);
        let presence = Presence::of(false, &premises.modules, &release, "iommufd");
        let help = kernel::help(presence, "iommufd", "CONFIG_IOMMUFD");
        Obstacle::new(format!("{} can't be opened: {error}", path.display()), help)
    })?;
    // VFIO takes numbers for devices' files only if it makes any (`vfio_cdev_init` in the kernel).
    let numbers = fs::read_to_string(premises.proc.join("devices")).unwrap_or_default();
    if !numbers.lines().any(|line| line.split_whitespace().nth(1) == Some("vfio-dev")) {
        return Err(Obstacle::new("VFIO makes no files for devices", remedy::DEVICE_CDEV));
    }
    Ok(path.display().to_string())
}

fn container(premises: &Premises) -> Result<String, Obstacle> {
    let path = premises.host.container_node();
    let missing = |error: io::Error| {
        Obstacle::new(format!("{} can't be opened: {error}", path.display()), remedy::CONTAINER)
    };
    openable(&path, missing)?;
    match Container::open() {
        Ok(_) => Ok(format!("{}, type 1", path.display())),
        Err(VfioError::OpenContainer(error)) => Err(missing(error)),
        Err(VfioError::VfioExtension) => {
            let release = kernel::release(&premises.proc);
            let presence = Presence::of(false, &premises.modules, &release, "vfio_iommu_type1");
            Err(Obstacle::new(
                format!("{} has no type 1 IOMMU model", path.display()),
                kernel::help(presence, "vfio_iommu_type1", "CONFIG_VFIO_IOMMU_TYPE1"),
            ))
        }
        Err(error) => Err(Obstacle::new(
            format!("{} can't be used: {error}", path.display()),
            remedy::KERNEL_LOG,
        )),
    }
}

/// Checks that this user may open the file; `otherwise` says why it can't be opened for another
/// reason.
fn openable(path: &Path, otherwise: impl FnOnce(io::Error) -> Obstacle) -> Result<(), Obstacle> {
    may_open(path).map_err(|error| {
        if error.raw_os_error() == Some(libc::EPERM) {
            return Obstacle::new(
                format!("this process may not open {}, whoever runs it", path.display()),
                remedy::allow_in_container(&[path.display().to_string()]),
            );
        }
        if error.kind() != io::ErrorKind::PermissionDenied {
            return otherwise(error);
        }
        Obstacle::new(
            format!("this user may not open {}", path.display()),
            remedy::permit_all(&[path.display().to_string()]),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn way(subject: &'static str, there: bool, goes_on: Option<bool>) -> Way {
        let obstacle = || Obstacle::new("no /dev/iommu", "modprobe iommufd");
        let there = if there { Ok("/dev/iommu".to_owned()) } else { Err(obstacle()) };
        Way { subject, module: "iommufd", there, goes_on }
    }

    fn found(way: Way, other: &Way, kinds: &[Kind]) -> Finding {
        way.finding(other, &Present::of_kinds(kinds))
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
