//! The two interfaces to the IOMMU: iommufd, and VFIO's container, which it supersedes.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::Serialize;

use super::super::assign::{AssignError, Assignment, may_open};
use super::super::host::Host;

/// The options for the IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IommuOptions {
    /// The interface; `None` for iommufd if all devices can be opened through it, else the container.
    pub backend: Option<Backend>,
    /// An inherited descriptor of an iommufd.
    pub iommufd: Option<RawFd>,
}

/// An interface to the IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// `/dev/iommu` and the devices' own files.
    Iommufd,
    /// `/dev/vfio/vfio` and the files of the devices' groups.
    Container,
}

impl Backend {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iommufd => "iommufd",
            Self::Container => "container",
        }
    }

    /// The one to use for these devices. This process may then open all files that it needs. Reads the
    /// host and changes nothing.
    ///
    /// # Errors
    ///
    /// A file is missing, or this user may not open it.
    pub fn choose(
        host: &Host,
        assignments: &[Assignment],
        options: IommuOptions,
    ) -> Result<Self, AssignError> {
        let inherited =
            options.iommufd.is_some() || assignments.iter().any(|a| a.inherited.is_some());
        match options.backend {
            Some(Self::Container) if inherited => Err(AssignError::InheritedWithContainer),
            Some(Self::Container) => check_container(host, assignments).map(|()| Self::Container),
            None if !inherited => Self::automatic(host, assignments, options),
            _ => check_iommufd(host, assignments, options).map(|()| Self::Iommufd),
        }
    }

    fn automatic(
        host: &Host,
        assignments: &[Assignment],
        options: IommuOptions,
    ) -> Result<Self, AssignError> {
        let container = check_container(host, assignments);
        if container.is_ok() && only_container_allows_unsafe_interrupts(host) {
            return Ok(Self::Container);
        }
        match (check_iommufd(host, assignments, options), container) {
            (Ok(()), _) => Ok(Self::Iommufd),
            (Err(_), Ok(())) => Ok(Self::Container),
            // The kernel has only one of the two: the error is about that one.
            (Err(iommufd), Err(container))
                if container.is_kernel_lacking() && !iommufd.is_kernel_lacking() =>
            {
                Err(iommufd)
            }
            (Err(iommufd), Err(container)) => Err(with_fewer_closed_files(iommufd, container)),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether `allow_unsafe_interrupts` is on for containers and off for iommufd: devices whose interrupts
/// aren't isolated, as platform devices, can then be opened through a container only.
fn only_container_allows_unsafe_interrupts(host: &Host) -> bool {
    let allowed = |module| host.flag(module, "allow_unsafe_interrupts").ok().flatten();
    allowed("vfio_iommu_type1") == Some(true) && allowed("iommufd") == Some(false)
}

/// The error with fewer files that are closed to this user, if both are about such files.
fn with_fewer_closed_files(iommufd: AssignError, container: AssignError) -> AssignError {
    match (iommufd.closed(), container.closed()) {
        (Some(files), Some(others)) if files.len() <= others.len() => iommufd,
        _ => container,
    }
}

fn check_container(host: &Host, assignments: &[Assignment]) -> Result<(), AssignError> {
    let mut files = Vec::new();
    for assignment in assignments {
        files.push((assignment, host.container_node()));
        files.push((assignment, host.group_node(assignment.group)));
    }
    check_all(host, &files)
}

fn check_iommufd(
    host: &Host,
    assignments: &[Assignment],
    options: IommuOptions,
) -> Result<(), AssignError> {
    let mut files = Vec::new();
    for assignment in assignments {
        if options.iommufd.is_none() {
            files.push((assignment, host.iommufd_node()));
        }
        if assignment.inherited.is_none() {
            let name = || assignment.name().to_owned();
            match host.cdev(&assignment.device)? {
                Some(cdev) => files.push((assignment, cdev.path)),
                None => {
                    // A kernel without iommufd makes no such file either.
                    check_all(host, &files)?;
                    return Err(AssignError::NoCdev { name: name() });
                }
            }
        }
    }
    check_all(host, &files)
}

/// Checks that this process may open all of these files. The error names all that it may not.
fn check_all(host: &Host, files: &[(&Assignment, PathBuf)]) -> Result<(), AssignError> {
    let mut refused: Option<AssignError> = None;
    for (assignment, path) in files {
        let Err(error) = may_open(path) else { continue };
        let error = assignment.opening(host, path, error);
        refused = Some(match refused {
            Some(refused) => refused.joined(error),
            None => error,
        });
    }
    refused.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::super::super::assign::{ClosedFile, DeviceRef, VfioFile, preflight};
    use super::super::super::testing::FakeHost;
    use super::*;
    use boot::help::Help;

    const TYPE1: &str = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    const IOMMUFD: &str = "sys/module/iommufd/parameters/allow_unsafe_interrupts";

    /// A host with both, and two devices in different groups.
    fn host() -> FakeHost {
        let fake = FakeHost::with_vfio();
        for (name, group) in [("1.dma", 3), ("2.dma", 4)] {
            fake.device("platform", name, Some("vfio-platform"), Some(group));
            fake.cdev("platform", name, group);
        }
        fake.write("dev/iommu", "");
        fake
    }

    fn choose(fake: &FakeHost, backend: Option<Backend>) -> Result<Backend, AssignError> {
        let wanted = ["1.dma", "2.dma"].map(DeviceRef::from);
        let assignments = preflight(&fake.host(), &wanted).unwrap();
        Backend::choose(&fake.host(), &assignments, IommuOptions { backend, iommufd: None })
    }

    #[test]
    fn iommufd_is_the_default_where_all_devices_can_be_opened_through_it() {
        use Backend::{Container, Iommufd};
        let remove = |path: &'static str| {
            move |fake: &FakeHost| std::fs::remove_file(fake.path(path)).unwrap()
        };
        let flags = |type1: &'static str, iommufd: &'static str| {
            move |fake: &FakeHost| {
                fake.write(TYPE1, type1);
                fake.write(IOMMUFD, iommufd);
            }
        };
        type Case<'a> = (&'a dyn Fn(&FakeHost), Backend);
        let cases: [Case<'_>; 8] = [
            (&|_| (), Iommufd),
            (&remove("dev/iommu"), Container),
            (&remove("dev/vfio/devices/vfio4"), Container),
            (&remove("sys/devices/platform/2.dma/vfio-dev/vfio4/dev"), Container),
            (&remove("dev/vfio/4"), Iommufd),
            (&flags("Y\n", "N\n"), Container),
            (&flags("N\n", "N\n"), Iommufd),
            (&flags("Y\n", "Y\n"), Iommufd),
        ];
        for (number, (change, expected)) in cases.into_iter().enumerate() {
            let fake = host();
            change(&fake);
            assert_eq!(choose(&fake, None).unwrap(), expected, "{number}");
        }
    }

    #[test]
    fn an_explicit_backend_is_used_or_refused() {
        let fake = host();
        let remove = |path| std::fs::remove_file(fake.path(path)).unwrap();
        assert_eq!(choose(&fake, Some(Backend::Container)).unwrap(), Backend::Container);
        assert_eq!(choose(&fake, Some(Backend::Iommufd)).unwrap(), Backend::Iommufd);
        remove("dev/vfio/4");
        let error = choose(&fake, Some(Backend::Container)).unwrap_err();
        assert!(matches!(error, AssignError::NoFile { file: VfioFile::Group(_), .. }), "{error}");
        remove("dev/vfio/devices/vfio4");
        let error = choose(&fake, Some(Backend::Iommufd)).unwrap_err();
        let node = fake.path("dev/vfio/devices/vfio4").display().to_string();
        assert_eq!(
            error.to_string(),
            format!("2.dma can't be assigned: there is no {node}, its file")
        );
        assert!(error.help().unwrap().starts_with(&format!("mknod {node} c 511 4;")));
        remove("sys/devices/platform/2.dma/vfio-dev/vfio4/dev");
        let error = choose(&fake, Some(Backend::Iommufd)).unwrap_err();
        assert!(error.help().unwrap().contains("CONFIG_VFIO_DEVICE_CDEV"), "{error}");
        remove("dev/iommu");
        let error = choose(&fake, Some(Backend::Iommufd)).unwrap_err();
        assert!(error.help().unwrap().contains("CONFIG_IOMMUFD"), "{error}");
    }

    #[test]
    fn with_neither_usable_the_error_is_about_the_one_that_the_kernel_has() {
        let fake = host();
        let remove = |path| std::fs::remove_file(fake.path(path)).unwrap();
        remove("dev/vfio/4");
        remove("dev/vfio/devices/vfio4");
        // A kernel without groups, and with files of devices.
        let error = choose(&fake, None).unwrap_err();
        assert!(matches!(error, AssignError::NoFile { file: VfioFile::Device(_), .. }), "{error}");
        // The other way round.
        fake.write("sys/class/vfio/4/dev", "240:0\n");
        remove("sys/devices/platform/2.dma/vfio-dev/vfio4/dev");
        let error = choose(&fake, None).unwrap_err();
        assert!(matches!(error, AssignError::NoFile { file: VfioFile::Group(_), .. }), "{error}");
    }

    #[test]
    fn with_neither_permitted_the_error_is_about_fewer_files() {
        let refusal = |paths: &[&str]| AssignError::NotPermitted {
            name: "1.dma".into(),
            closed: paths
                .iter()
                .map(|path| ClosedFile { path: path.into(), device: None, owner: 0, mode: 0o600 })
                .collect(),
            uid: 1000,
            source: std::io::ErrorKind::PermissionDenied.into(),
        };
        let (iommufd, cdev) = ("/dev/iommu", "/dev/vfio/devices/vfio0");
        let group = "/dev/vfio/3";
        let error = |iommufd: &[&str], container: &[&str]| {
            with_fewer_closed_files(refusal(iommufd), refusal(container)).to_string()
        };
        assert!(error(&[iommufd, cdev], &[group]).contains(group));
        // Who may open the device's own file lacks the iommufd alone.
        assert!(error(&[iommufd], &[group]).contains(iommufd));
        let joined = refusal(&[iommufd]).joined(refusal(&[cdev])).joined(refusal(&[iommufd]));
        assert_eq!(joined.closed().map(<[_]>::len), Some(2), "{joined}");
        let absent = || AssignError::NoCdev { name: "1.dma".into() };
        assert!(matches!(refusal(&[iommufd]).joined(absent()), AssignError::NoCdev { .. }));
        assert!(matches!(absent().joined(refusal(&[iommufd])), AssignError::NoCdev { .. }));
    }

    #[test]
    fn an_inherited_iommufd_excludes_the_container() {
        let fake = host();
        std::fs::remove_file(fake.path("dev/iommu")).unwrap();
        let assignments = preflight(&fake.host(), &[DeviceRef::from("1.dma")]).unwrap();
        let choose = |backend| {
            let options = IommuOptions { backend, iommufd: Some(7) };
            Backend::choose(&fake.host(), &assignments, options)
        };
        for backend in [None, Some(Backend::Iommufd)] {
            assert_eq!(choose(backend).unwrap(), Backend::Iommufd);
        }
        let error = choose(Some(Backend::Container)).unwrap_err();
        assert_eq!(error.help().as_deref(), Some("--iommu iommufd"));
    }
}
