//! The two ways to the IOMMU, iommufd and VFIO's containers: one that works is enough.

use std::fs;
use std::io;
use std::path::Path;

use devices::vfio::assign::may_open;
use devices::vfio::host::Host;
use devices::vfio::sys::{Container, IommuKind};

use super::Premises;
use super::finding::Finding;
use super::kernel::{self, Presence};
use crate::error::Error;

/// Which of them work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backends {
    /// iommufd does.
    pub iommufd: bool,
    /// Containers do.
    pub container: bool,
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

const IOMMUFD: &str = "iommufd";
const CONTAINERS: &str = "VFIO containers";

/// Looks at both.
#[cold]
pub fn findings(premises: &Premises) -> Result<(Backends, Vec<Finding>), Error> {
    let iommufd = iommufd(premises).and_then(|text| told(&premises.host, text, "iommufd"));
    let container =
        container(premises).and_then(|text| told(&premises.host, text, "vfio_iommu_type1"));
    let works = Backends { iommufd: iommufd.is_ok(), container: container.is_ok() };
    let findings = vec![
        finding(IOMMUFD, iommufd, works.container.then_some(CONTAINERS)),
        finding(CONTAINERS, container, works.iommufd.then_some(IOMMUFD)),
    ];
    Ok((works, findings))
}

/// The finding about one, where `other` is the other one if that works.
fn finding(
    subject: &'static str,
    looked: Result<String, Obstacle>,
    other: Option<&'static str>,
) -> Finding {
    match (looked, other) {
        (Ok(text), _) => Finding::fine(subject, format!("works: {text}")),
        (Err(Obstacle { text, .. }), Some(other)) => {
            Finding::fine(subject, format!("{text}; not needed beside {other}"))
        }
        (Err(Obstacle { text, help }), None) => Finding::blocks(subject, text, help),
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
        return Err(Obstacle::new(
            "VFIO makes no files for devices",
            "build the host's kernel with CONFIG_VFIO_DEVICE_CDEV; if that is so, modprobe vfio",
        ));
    }
    Ok(path.display().to_string())
}

fn container(premises: &Premises) -> Result<String, Obstacle> {
    let path = premises.host.container_node();
    let missing = |error: io::Error| {
        Obstacle::new(
            format!("{} can't be opened: {error}", path.display()),
            "modprobe vfio, which is there if the kernel was built with CONFIG_VFIO and \
             CONFIG_VFIO_CONTAINER; in a container, let it have /dev/vfio",
        )
    };
    openable(&path, missing)?;
    let container = Container::open(&path).map_err(missing)?;
    if matches!(container.supports(IommuKind::Type1v2), Ok(true)) {
        return Ok(format!("{}, type 1", path.display()));
    }
    let release = kernel::release(&premises.proc);
    let presence = Presence::of(false, &premises.modules, &release, "vfio_iommu_type1");
    Err(Obstacle::new(
        format!("{} has no type 1 IOMMU model", path.display()),
        kernel::help(presence, "vfio_iommu_type1", "CONFIG_VFIO_IOMMU_TYPE1"),
    ))
}

/// Checks that this user may open the file; `otherwise` says why it can't be opened for another
/// reason.
fn openable(path: &Path, otherwise: impl FnOnce(io::Error) -> Obstacle) -> Result<(), Obstacle> {
    may_open(path).map_err(|error| {
        if error.kind() != io::ErrorKind::PermissionDenied {
            return otherwise(error);
        }
        Obstacle::new(
            format!("this user may not open {}", path.display()),
            format!("sudo chmod 666 {}: it gives access to nothing by itself", path.display()),
        )
    })
}

/// Adds what this part of the kernel does where interrupts aren't isolated.
fn told(host: &Host, text: String, module: &str) -> Result<String, Obstacle> {
    match host.flag(module, "allow_unsafe_interrupts").ok().flatten() {
        Some(false) => Err(Obstacle::new(
            "its allow_unsafe_interrupts is off, and platform devices have no message-signalled \
             interrupts to isolate: it refuses them",
            format!(
                "echo Y | sudo tee /sys/module/{module}/parameters/allow_unsafe_interrupts, or \
                 boot the host with {module}.allow_unsafe_interrupts=1"
            ),
        )),
        Some(true) => Ok(format!("{text}, allow_unsafe_interrupts on")),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn one_that_works_is_enough() {
        let broken = || Err(Obstacle::new("no /dev/iommu", "modprobe iommufd"));
        let alone = finding(IOMMUFD, broken(), None);
        assert_eq!((alone.level, alone.help.as_deref()), (Level::Blocks, Some("modprobe iommufd")));
        let beside = finding(IOMMUFD, broken(), Some(CONTAINERS));
        assert_eq!(beside.level, Level::Fine);
        assert_eq!(beside.text, "no /dev/iommu; not needed beside VFIO containers");
        let works = finding(IOMMUFD, Ok("/dev/iommu".into()), None);
        assert_eq!((works.level, works.text.as_str()), (Level::Fine, "works: /dev/iommu"));
    }
}
