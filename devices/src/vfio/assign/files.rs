//! The files in `/dev` through which VFIO gives access to devices.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::super::host::DeviceNumber;
use super::super::remedy;

/// A file through which VFIO gives access to devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfioFile {
    /// The container, `/dev/vfio/vfio`.
    Container,
    /// The iommufd, `/dev/iommu`.
    Iommufd,
    /// An IOMMU group's, `/dev/vfio/N`; without a number if the kernel has no such file.
    Group(Option<DeviceNumber>),
    /// A device's own, `/dev/vfio/devices/vfioN`.
    Device(DeviceNumber),
}

impl fmt::Display for VfioFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Container | Self::Iommufd => "",
            Self::Group(_) => ", the file of its IOMMU group",
            Self::Device(_) => ", its file",
        })
    }
}

/// A file that this user may not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedFile {
    /// Its path.
    pub path: PathBuf,
    /// The device to which it gives access; `None` for the container and the iommufd, which give
    /// access to no device by themselves.
    pub device: Option<String>,
    /// The user ID of its owner.
    pub owner: u32,
    /// Its permissions.
    pub mode: u32,
}

/// Whether this process may open the file for reading and writing.
///
/// # Errors
///
/// As from `faccessat(2)`.
pub fn may_open(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mode = libc::R_OK | libc::W_OK;
    // SAFETY: a NUL-terminated path; the call changes nothing.
    let returned =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) };
    if returned == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What lets this user open these files.
pub(super) fn permit(uid: u32, closed: &[ClosedFile]) -> String {
    let paths = |wanted: fn(&ClosedFile) -> bool| -> Vec<String> {
        let files = closed.iter().filter(|file| wanted(file));
        files.map(|file| file.path.display().to_string()).collect()
    };
    if uid == 0 {
        return remedy::allow_in_container(&paths(|_| true));
    }
    let mut devices: Vec<&str> = closed.iter().filter_map(|file| file.device.as_deref()).collect();
    devices.dedup();
    let shared = paths(|file| file.device.is_none());
    let commands = [
        (!devices.is_empty()).then(|| remedy::permit_devices(uid, &devices)),
        (!shared.is_empty()).then(|| remedy::permit_all(&shared)),
    ];
    let commands: Vec<_> = commands.into_iter().flatten().collect();
    format!("{}\nor, also after a reboot: {}", commands.join(" && "), remedy::udev_rules(uid))
}

/// Files with their owners and permissions, for a message.
pub(super) fn list_closed(closed: &[ClosedFile]) -> String {
    let file = |file: &ClosedFile| {
        let ClosedFile { path, owner, mode, .. } = file;
        format!("{}, which is user {owner}'s with mode {mode:04o}", path.display())
    };
    closed.iter().map(file).collect::<Vec<_>>().join(", nor ")
}
