//! An I/O address space (IOAS) of an iommufd, to which devices are attached one by one.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::release;
use crate::sync;

use super::super::assign::{AssignError, Assignment, VfToken};
use super::super::host::{Host, HostDevice};
use super::super::inherited::InheritedFd;
use super::super::uapi::{DeviceCalls, DeviceFile, Ioas, IoctlError, Iommufd};
use super::IommuOptions;

/// An IOAS and its devices.
pub(super) struct IommufdBackend {
    // Dropped before the IOAS: it can't be destroyed while devices are attached.
    devices: Arc<AttachedDevices>,
    ioas: Ioas,
}

/// The devices that are attached to an IOAS, in the order given. The host may take back one at any time.
#[derive(Default)]
pub(super) struct AttachedDevices(Mutex<Vec<Attached>>);

impl AttachedDevices {
    /// Detaches a device, once `closing` has been called with its file. Nothing if there is no such device.
    pub(super) fn detach(&self, name: &str, closing: impl FnOnce(BorrowedFd<'_>)) {
        let mut devices = sync::lock(&self.0);
        if let Some(index) = devices.iter().position(|attached| attached.device.name() == name) {
            closing(devices.remove(index).file.as_fd());
        }
    }
}

/// An attached device, detached when dropped even if another process has its file open.
struct Attached {
    device: HostDevice,
    group: u32,
    file: Arc<DeviceFile>,
}

impl IommufdBackend {
    /// Opens an iommufd, or uses the inherited one, and attaches these devices.
    pub(super) fn open(
        host: &Host,
        assignments: &[Assignment],
        options: IommuOptions,
    ) -> Result<Self, AssignError> {
        let first = assignments.first().ok_or(AssignError::NoDevices)?;
        let iommufd = match options.iommufd {
            Some(fd) => InheritedFd::iommufd(host, fd)?,
            None => {
                let path = host.iommufd_node();
                Iommufd::open(&path).map_err(|error| first.opening(host, &path, error))?
            }
        };
        let ioas = Ioas::new(iommufd).map_err(AssignError::Setup)?;
        let backend = Self { devices: Arc::default(), ioas };
        for assignment in assignments {
            IoctlError::check_stop("VFIO_DEVICE_BIND_IOMMUFD").map_err(AssignError::Setup)?;
            let attached = backend.attach(host, assignment)?;
            sync::lock(&backend.devices.0).push(attached);
        }
        Ok(backend)
    }

    fn attach(&self, host: &Host, assignment: &Assignment) -> Result<Attached, AssignError> {
        let (file, path) = open(host, assignment)?;
        let ours = sync::lock(&self.devices.0).iter().any(|one| one.group == assignment.group);
        // A group of which this process has a device can't be in use by another one.
        let in_use = || if ours { Some(false) } else { host.group_in_use(assignment.group) };
        let is_held = |bound: &Result<(), IoctlError>| {
            let held = |error: &IoctlError| is_device_held(error, in_use);
            bound.as_ref().is_err_and(held)
        };
        let token = assignment.vf_token.as_ref().map(VfToken::bytes);
        release::wait(|| bind(&file, self.ioas.iommufd(), token), is_held)
            .map_err(|error| bind_error(host, assignment, path, error, in_use))?;
        let (device, group) = (assignment.device.clone(), assignment.group);
        file.attach(&self.ioas).map_err(|source| AssignError::Attach {
            name: assignment.name().to_owned(),
            group,
            source,
        })?;
        Ok(Attached { device, group, file: Arc::new(file) })
    }

    /// The IOAS.
    pub(super) fn ioas(&self) -> &Ioas {
        &self.ioas
    }

    /// The file of an attached device.
    pub(super) fn device(&self, assignment: &Assignment) -> Result<Arc<DeviceFile>, AssignError> {
        let devices = sync::lock(&self.devices.0);
        let found = devices.iter().find(|attached| attached.device == assignment.device);
        found
            .map(|attached| attached.file.clone())
            .ok_or_else(|| AssignError::NoGroup { name: assignment.name().to_owned() })
    }

    /// The attached devices.
    pub(super) fn devices(&self) -> &Arc<AttachedDevices> {
        &self.devices
    }

    /// Calls `each` with the files of the attached devices.
    pub(super) fn with_files<E>(
        &self,
        each: impl FnMut(BorrowedFd<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        sync::lock(&self.devices.0).iter().map(|attached| attached.file.as_fd()).try_for_each(each)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Err(error) = self.file.detach() {
            log::error!("{}: {error}: {}", self.device.name(), error.source);
        }
    }
}

/// Opens a device's own file, or uses the inherited one; with its path, for errors.
fn open(host: &Host, assignment: &Assignment) -> Result<(DeviceFile, PathBuf), AssignError> {
    let name = || assignment.name().to_owned();
    if let Some(inherited) = &assignment.inherited {
        let file = DeviceFile::from(inherited.file()?);
        // Every request fails before the device is bound to an iommufd.
        if file.info().is_ok() {
            return Err(AssignError::AlreadyBound { name: name(), fd: inherited.fd() });
        }
        let cdev = host.cdev(&assignment.device)?;
        return Ok((file, cdev.map_or_else(PathBuf::new, |cdev| cdev.path)));
    }
    let cdev = host.cdev(&assignment.device)?;
    let path = cdev.ok_or_else(|| AssignError::NoCdev { name: name() })?.path;
    let file = DeviceFile::open(&path).map_err(|error| assignment.opening(host, &path, error))?;
    Ok((file, path))
}

/// Binds a device to an iommufd, a function with SR-IOV with this token. Linux before 6.17 takes and asks for none
/// here, and answers with `EINVAL`: then it is bound without. Newer Linux answers so, too, where the device is bound
/// already, and to who has no token then with `EACCES`.
fn bind(file: &DeviceFile, iommufd: &Iommufd, token: Option<&[u8; 16]>) -> Result<(), IoctlError> {
    match file.bind(iommufd, token) {
        Err(error) if token.is_some() && error.is(libc::EINVAL) => {
            let without = file.bind(iommufd, None);
            let takes_tokens = without.as_ref().is_err_and(|error| error.is(libc::EACCES));
            if takes_tokens { Err(error) } else { without }
        }
        result => result,
    }
}

/// Whether binding failed since another process has the device or its group, as [`bind_error`] has it.
fn is_device_held(error: &IoctlError, in_use: impl FnOnce() -> Option<bool>) -> bool {
    match error.source.raw_os_error() {
        // Mostly since the device is bound already.
        Some(libc::EINVAL) => in_use() != Some(false),
        Some(libc::EBUSY | libc::EPERM) => in_use() == Some(true),
        _ => false,
    }
}

/// Why a device couldn't be bound (`vfio_df_ioctl_bind_iommufd`, `iommufd_device_bind` and
/// `iommu_device_claim_dma_owner` in the kernel). `in_use` tells whether another process has the
/// group or a device of it open, if that is known.
fn bind_error(
    host: &Host,
    assignment: &Assignment,
    path: PathBuf,
    source: IoctlError,
    in_use: impl FnOnce() -> Option<bool>,
) -> AssignError {
    let (name, group) = (assignment.name().to_owned(), assignment.group);
    let is = |errno| source.is(errno);
    if is_device_held(&source, in_use) {
        return AssignError::busy(host, &assignment.device, path);
    }
    if is(libc::EACCES) {
        return AssignError::vf_token(&assignment.device, assignment.vf_token.is_some(), source);
    }
    let module = "iommufd";
    let allowed = host.flag(module, "allow_unsafe_interrupts").ok().flatten();
    if is(libc::EPERM) && allowed == Some(false) {
        AssignError::UnsafeInterrupts { name, module, source }
    } else if is(libc::EPERM) || is(libc::EBUSY) {
        AssignError::NotViable { name, group, members: Vec::new(), source: Some(source) }
    } else {
        AssignError::OpenDevice { name, source }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::assign::{DeviceRef, preflight};
    use super::super::super::testing::FakeHost;
    use super::*;
    use boot::help::Help;

    fn host() -> (FakeHost, Assignment) {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
        fake.cdev("platform", "1.dma", 0);
        fake.write("dev/iommu", "");
        let assignment = preflight(&fake.host(), &[DeviceRef::from("1.dma")]).unwrap().remove(0);
        (fake, assignment)
    }

    #[test]
    fn a_refused_bind_has_an_error_for_its_cause() {
        let (fake, assignment) = host();
        let because = |allowed: &str, errno, in_use: Option<bool>| {
            fake.write("sys/module/iommufd/parameters/allow_unsafe_interrupts", allowed);
            let source = IoctlError::new("VFIO_DEVICE_BIND_IOMMUFD", errno);
            let path = fake.path("dev/vfio/devices/vfio0");
            bind_error(&fake.host(), &assignment, path, source, || in_use)
        };
        let unsafe_interrupts = because("N\n", libc::EPERM, None);
        assert!(matches!(unsafe_interrupts, AssignError::UnsafeInterrupts { .. }));
        let help = unsafe_interrupts.help().unwrap();
        assert!(help.contains("boot the host with iommufd.allow_unsafe_interrupts=1"), "{help}");
        for (allowed, errno) in [("Y\n", libc::EPERM), ("N\n", libc::EBUSY)] {
            let error = because(allowed, errno, Some(false));
            assert!(matches!(error, AssignError::NotViable { group: 3, .. }), "{error}");
        }
        let error = because("N\n", libc::EACCES, Some(false));
        assert!(matches!(error, AssignError::VfToken { given: false, .. }), "{error}");
        for errno in [libc::EINVAL, libc::EIO] {
            let error = because("N\n", errno, Some(false));
            assert!(matches!(error, AssignError::OpenDevice { .. }), "{error}");
        }
        let busy = [libc::EINVAL, libc::EBUSY, libc::EPERM].map(|errno| (errno, Some(true)));
        for (errno, in_use) in busy.into_iter().chain([(libc::EINVAL, None)]) {
            let error = because("N\n", errno, in_use);
            assert!(error.to_string().ends_with("dev/vfio/devices/vfio0"), "{error}");
            let help = error.help().unwrap();
            assert!(help.starts_with("fuser -v ") && help.contains("dev/vfio/3 "), "{help}");
        }
    }

    #[test]
    fn a_file_that_is_no_iommufd_is_refused() {
        let (fake, assignment) = host();
        let options = IommuOptions::default();
        let Err(error) = IommufdBackend::open(&fake.host(), &[assignment], options) else {
            panic!("opened")
        };
        let AssignError::Setup(source) = error else { panic!("{error}") };
        assert_eq!(source.request, "IOMMU_IOAS_ALLOC");
    }
}
