//! A VFIO container, to which whole groups are attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::release;

use super::super::assign::{AssignError, Assignment, VfToken};
use super::super::host::Host;
use super::super::uapi::{Container, DeviceFile, Group, IoctlError, VfioError};

/// A container and its groups.
pub(super) struct ContainerBackend {
    // Dropped before the container.
    groups: Vec<(u32, Arc<Group>)>,
    container: Container,
}

impl ContainerBackend {
    /// Opens a container and attaches these devices' groups, each once.
    pub(super) fn open(host: &Host, assignments: &[Assignment]) -> Result<Self, AssignError> {
        let mut groups: Vec<(u32, Arc<Group>)> = Vec::new();
        let mut container = None;
        for assignment in assignments {
            if groups.iter().any(|(number, _)| *number == assignment.group) {
                continue;
            }
            IoctlError::check_stop("VFIO_GROUP_SET_CONTAINER").map_err(AssignError::Setup)?;
            let group = open_group(host, assignment)?;
            let container = match &container {
                Some(container) => container,
                None => container.insert(open_container(host, assignment)?),
            };
            let attached = group
                .set_container(container)
                .and_then(|()| if groups.is_empty() { container.set_iommu() } else { Ok(()) });
            attached.map_err(|error| attach_error(host, assignment, error))?;
            groups.push((assignment.group, Arc::new(group)));
        }
        let container = container.ok_or(AssignError::NoDevices)?;
        Ok(Self { groups, container })
    }

    /// The container.
    pub(super) fn container(&self) -> &Container {
        &self.container
    }

    /// Opens a device of an attached group.
    pub(super) fn open_device(&self, assignment: &Assignment) -> Result<DeviceFile, AssignError> {
        let name = || assignment.name().to_owned();
        self.group(assignment.group)
            .ok_or_else(|| AssignError::NoGroup { name: name() })?
            .device(assignment.name(), assignment.vf_token.as_ref().map(VfToken::to_string))
            .map_err(|source| match source.is(libc::EACCES) {
                true => {
                    AssignError::vf_token(&assignment.device, assignment.vf_token.is_some(), source)
                }
                false => AssignError::OpenDevice { name: name(), source },
            })
    }

    /// The attached group of this number.
    pub(super) fn group(&self, number: u32) -> Option<&Arc<Group>> {
        self.groups.iter().find(|(other, _)| *other == number).map(|(_, group)| group)
    }

    /// Calls `each` with the files of the attached groups.
    pub(super) fn with_files<E>(
        &self,
        each: impl FnMut(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.groups.iter().map(|(_, group)| group.as_fd()).try_for_each(each)
    }
}

fn open_group(host: &Host, assignment: &Assignment) -> Result<Group, AssignError> {
    let path = host.group_node(assignment.group);
    // A group is open once.
    let busy = |error: &io::Error| error.raw_os_error() == Some(libc::EBUSY);
    let opened = release::wait(|| Group::open(&path), |opened| opened.as_ref().is_err_and(busy));
    let group = opened.map_err(|error| assignment.opening(host, &path, error))?;
    let (name, number) = (assignment.name().to_owned(), assignment.group);
    match group.is_viable() {
        Ok(true) => Ok(group),
        Ok(false) => {
            Err(AssignError::NotViable { name, group: number, members: Vec::new(), source: None })
        }
        Err(source) => Err(AssignError::Attach { name, group: number, source }),
    }
}

fn open_container(host: &Host, assignment: &Assignment) -> Result<Container, AssignError> {
    Container::open().map_err(|error| match error {
        VfioError::OpenContainer(error) => assignment.opening(host, &host.container_node(), error),
        VfioError::VfioExtension => AssignError::NoType1,
        other => AssignError::Setup(other.into()),
    })
}

/// Why a group couldn't be attached (`vfio_iommu_type1_attach_group`, `vfio_container_attach_group`
/// in the kernel).
fn attach_error(host: &Host, assignment: &Assignment, source: IoctlError) -> AssignError {
    let (name, group) = (assignment.name().to_owned(), assignment.group);
    let module = "vfio_iommu_type1";
    let allowed = host.flag(module, "allow_unsafe_interrupts").ok().flatten();
    if source.is(libc::EPERM) && allowed == Some(false) {
        AssignError::UnsafeInterrupts { name, module, source }
    } else if source.is(libc::EBUSY) {
        AssignError::NotViable { name, group, members: Vec::new(), source: Some(source) }
    } else {
        AssignError::Attach { name, group, source }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::assign::{DeviceRef, preflight};
    use super::super::super::testing::FakeHost;
    use super::*;
    use boot::help::Help;

    #[test]
    fn a_refused_attachment_has_an_error_for_its_cause() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
        let assignment = preflight(&fake.host(), &[DeviceRef::from("1.dma")]).unwrap().remove(0);
        let because = |allowed: &str, errno| {
            fake.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", allowed);
            attach_error(&fake.host(), &assignment, IoctlError::new("VFIO_SET_IOMMU", errno))
        };
        let unsafe_interrupts = because("N\n", libc::EPERM);
        assert!(matches!(unsafe_interrupts, AssignError::UnsafeInterrupts { .. }));
        let help = unsafe_interrupts.help().unwrap();
        assert!(help.contains("vfio_iommu_type1/parameters/allow_unsafe_interrupts"), "{help}");
        assert!(matches!(because("Y\n", libc::EPERM), AssignError::Attach { group: 3, .. }));
        assert!(matches!(because("N\n", libc::EBUSY), AssignError::NotViable { .. }));
        assert!(matches!(because("N\n", libc::EINVAL), AssignError::Attach { .. }));
    }

    #[test]
    fn a_file_that_is_no_group_is_refused() {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
        let assignments = preflight(&fake.host(), &[DeviceRef::from("1.dma")]).unwrap();
        let Err(error) = ContainerBackend::open(&fake.host(), &assignments) else {
            panic!("opened")
        };
        let AssignError::Attach { name, group: 3, source } = error else { panic!("{error}") };
        assert_eq!((name.as_str(), source.request), ("1.dma", "VFIO_GROUP_GET_STATUS"));
    }
}
