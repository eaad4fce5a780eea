//! A VFIO container, to which whole groups are attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use crate::release;
use crate::sync;

use super::super::assign::{AssignError, Assignment, VfToken};
use super::super::host::Host;
use super::super::uapi::{Container, DeviceFile, Group, IoctlError, VfioError};

/// A container and its groups.
pub(super) struct ContainerBackend {
    // Dropped before the container.
    groups: Arc<AttachedGroups>,
    container: Container,
}

/// The groups that are attached to a container, in the order given. The host may take back the devices of one
/// at any time.
#[derive(Default)]
pub(super) struct AttachedGroups(Mutex<Vec<AttachedGroup>>);

/// An attached group, with those of its devices that are in use.
struct AttachedGroup {
    number: u32,
    group: Arc<Group>,
    devices: Vec<String>,
}

impl AttachedGroups {
    /// A device isn't in use any more: detaches its group if that has no other in use, once `closing` has been
    /// called with its file. Nothing if there is no such device.
    pub(super) fn detach(&self, name: &str, closing: impl FnOnce(BorrowedFd<'_>)) {
        let mut groups = sync::lock(&self.0);
        let has = |group: &AttachedGroup| group.devices.iter().any(|device| device == name);
        let Some(index) = groups.iter().position(has) else { return };
        let Some(group) = groups.get_mut(index) else { return };
        group.devices.retain(|device| device != name);
        if group.devices.is_empty() {
            // It leaves the container when its file is closed.
            closing(groups.remove(index).group.as_fd());
        }
    }

    /// Whether all have left the container, with which its mappings are gone (`vfio_iommu_type1_detach_group` of
    /// Linux' drivers/vfio/vfio_iommu_type1.c).
    pub(super) fn is_empty(&self) -> bool {
        sync::lock(&self.0).is_empty()
    }
}

impl ContainerBackend {
    /// Opens a container and attaches these devices' groups, each once.
    pub(super) fn open(host: &Host, assignments: &[Assignment]) -> Result<Self, AssignError> {
        let mut groups: Vec<AttachedGroup> = Vec::new();
        let mut container = None;
        for assignment in assignments {
            let name = assignment.name().to_owned();
            if let Some(known) = groups.iter_mut().find(|group| group.number == assignment.group) {
                known.devices.push(name);
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
            let (number, group) = (assignment.group, Arc::new(group));
            groups.push(AttachedGroup { number, group, devices: vec![name] });
        }
        let container = container.ok_or(AssignError::NoDevices)?;
        Ok(Self { groups: Arc::new(AttachedGroups(groups.into())), container })
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

    /// The attached groups.
    pub(super) fn groups(&self) -> &Arc<AttachedGroups> {
        &self.groups
    }

    /// The attached group of this number.
    pub(super) fn group(&self, number: u32) -> Option<Arc<Group>> {
        let groups = sync::lock(&self.groups.0);
        groups.iter().find(|group| group.number == number).map(|group| group.group.clone())
    }

    /// Calls `each` with the files of the attached groups.
    pub(super) fn with_files<E>(
        &self,
        each: impl FnMut(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        sync::lock(&self.groups.0).iter().map(|group| group.group.as_fd()).try_for_each(each)
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

    #[test]
    fn a_group_is_detached_with_the_last_of_its_devices() {
        let group = |number, devices: &[&str]| AttachedGroup {
            number,
            group: Arc::new(Group::open("/dev/null".as_ref()).unwrap()),
            devices: devices.iter().map(|name| (*name).to_owned()).collect(),
        };
        let groups = AttachedGroups(vec![group(3, &["a", "b"]), group(4, &["c"])].into());
        for (name, closed, left) in [
            ("a", 0, &[3, 4][..]),
            ("a", 0, &[3, 4]),
            ("c", 1, &[3]),
            ("none", 0, &[3]),
            ("b", 1, &[]),
            ("b", 0, &[]),
        ] {
            let mut files = 0;
            groups.detach(name, |_| files += 1);
            let numbers: Vec<_> = sync::lock(&groups.0).iter().map(|group| group.number).collect();
            assert_eq!((files, &*numbers), (closed, left), "{name}");
            assert_eq!(groups.is_empty(), left.is_empty());
        }
    }
}
