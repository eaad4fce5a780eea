//! Why the files through which VFIO gives access to devices couldn't be opened.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::host::{Host, HostDevice, OpenFiles};
use super::error::AssignError;
use super::files::{ClosedFile, VfioFile};

impl AssignError {
    /// Why one of VFIO's files, which gives access to `device` of this group, couldn't be opened.
    #[cold]
    pub(crate) fn opening(
        host: &Host,
        device: &HostDevice,
        group: u32,
        path: &Path,
        source: io::Error,
    ) -> Self {
        let (name, path) = (device.name().to_owned(), path.to_owned());
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ENODEV | libc::ENXIO) => {
                let file = vfio_file(host, device, group, &path);
                Self::NoFile { name, path, file }
            }
            Some(libc::EACCES | libc::EPERM) => {
                // SAFETY: takes nothing and never fails.
                let uid = unsafe { libc::geteuid() };
                let (owner, mode) =
                    path.metadata().map_or((0, 0), |node| (node.uid(), node.mode() & 0o7777));
                let shared = path == host.container_node() || path == host.iommufd_node();
                let device = (!shared).then(|| name.clone());
                let closed = vec![ClosedFile { path, device, owner, mode }];
                Self::NotPermitted { name, closed, uid, source }
            }
            Some(libc::EBUSY) => Self::busy(host, device, path),
            _ => Self::Open { name, path, source },
        }
    }

    /// Another process has the device or its group open.
    #[cold]
    pub(crate) fn busy(host: &Host, device: &HostDevice, path: PathBuf) -> Self {
        let users = OpenFiles::of(host).users_by_vfio(host, device);
        let mut files = host.files_of(device);
        if files.is_empty() {
            files.push(path.clone());
        }
        Self::Busy { name: device.name().to_owned(), users, path, files }
    }

    /// The files that are closed to this user, if permission is all that is missing.
    pub(crate) fn closed(&self) -> Option<&[ClosedFile]> {
        match self {
            Self::NotPermitted { closed, .. } => Some(closed),
            _ => None,
        }
    }

    /// Both errors in one if permission is all that is missing; else the one that permission doesn't
    /// solve.
    pub(crate) fn joined(mut self, other: Self) -> Self {
        match (&mut self, other) {
            (Self::NotPermitted { closed, .. }, Self::NotPermitted { closed: more, .. }) => {
                let new: Vec<_> = more.into_iter().filter(|file| !closed.contains(file)).collect();
                closed.extend(new);
                self
            }
            (Self::NotPermitted { .. }, other) => other,
            _ => self,
        }
    }
}

/// Which of VFIO's files this path is.
fn vfio_file(host: &Host, device: &HostDevice, group: u32, path: &Path) -> VfioFile {
    if path == host.container_node() {
        return VfioFile::Container;
    }
    if path == host.iommufd_node() {
        return VfioFile::Iommufd;
    }
    match host.cdev(device).ok().flatten().filter(|cdev| cdev.path == path) {
        Some(cdev) => VfioFile::Device(cdev.number),
        None => VfioFile::Group(host.group_node_number(group)),
    }
}
