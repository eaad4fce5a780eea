//! Open file descriptors that strait inherits from the process that starts it.
//!
//! The starting process may open files that strait may not: strait then needs no permission for
//! anything in `/dev/vfio`.

use boot::help::Help;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::host::{DeviceNumber, Host, HostDevice, ReadError};
use super::uapi::Iommufd;

/// What an inherited descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdKind {
    /// A VFIO device (`/dev/vfio/devices/vfioN`).
    Device,
    /// An iommufd (`/dev/iommu`).
    Iommufd,
}

impl FdKind {
    /// A path whose file is of this kind.
    fn example(self) -> &'static str {
        match self {
            Self::Device => "/dev/vfio/devices/vfio0",
            Self::Iommufd => "/dev/iommu",
        }
    }
}

/// Why an inherited descriptor can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedError {
    /// It isn't what the command line says.
    #[error("descriptor {fd} {problem}")]
    Unsuitable {
        /// The descriptor.
        fd: RawFd,
        /// What it should refer to.
        expected: FdKind,
        /// What is wrong with it.
        problem: &'static str,
        /// The error of `fcntl(2)`, if there was one.
        #[source]
        source: Option<io::Error>,
    },
    /// Sysfs can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl Help for InheritedError {
    fn help(&self) -> Option<String> {
        let Self::Unsuitable { fd, expected, .. } = self else { return None };
        let example = expected.example();
        Some(format!(
            "whoever starts strait opens it, in a shell by {fd}<>{example} behind the command"
        ))
    }
}

/// A duplicate of an inherited descriptor.
#[derive(Debug)]
pub struct InheritedFd {
    fd: RawFd,
    kind: FdKind,
    file: File,
}

impl InheritedFd {
    /// Duplicates descriptor `fd`, which is its owner's to close.
    fn duplicate(fd: RawFd, kind: FdKind) -> Result<Self, InheritedError> {
        // SAFETY: takes numbers, and leaves what is open as it is.
        let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if duplicate < 0 {
            let source = Some(io::Error::last_os_error());
            return Err(unsuitable(fd, kind, "isn't open", source));
        }
        // SAFETY: made just now, and nobody else's.
        let file = unsafe { File::from_raw_fd(duplicate) };
        // SAFETY: takes no pointer.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 || flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(unsuitable(fd, kind, "isn't open for reading and writing", None));
        }
        Ok(Self { fd, kind, file })
    }

    /// The inherited file of a VFIO device, and the device.
    ///
    /// # Errors
    ///
    /// Descriptor `fd` isn't open for reading and writing, or refers to something else.
    pub fn device(host: &Host, fd: RawFd) -> Result<(Self, HostDevice), InheritedError> {
        let inherited = Self::duplicate(fd, FdKind::Device)?;
        let found = inherited.number().map(|number| host.device_of_cdev(number)).transpose()?;
        let device = found
            .flatten()
            .ok_or_else(|| unsuitable(fd, FdKind::Device, "is no file of a VFIO device", None))?;
        Ok((inherited, device))
    }

    /// The inherited iommufd.
    ///
    /// # Errors
    ///
    /// As for [`device`](Self::device).
    pub fn iommufd(host: &Host, fd: RawFd) -> Result<Iommufd, InheritedError> {
        let inherited = Self::duplicate(fd, FdKind::Iommufd)?;
        let is_iommufd = inherited.number().map(|number| host.is_iommufd(number)).transpose()?;
        if is_iommufd != Some(true) {
            return Err(unsuitable(fd, FdKind::Iommufd, "is no iommufd", None));
        }
        Ok(Iommufd::from(inherited.file))
    }

    /// Its number in the process that started strait.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// A further duplicate.
    ///
    /// # Errors
    ///
    /// As from `fcntl(2)`, `F_DUPFD_CLOEXEC`: this process has too many files open.
    pub fn file(&self) -> Result<File, InheritedError> {
        let duplicate = self.file.try_clone();
        duplicate.map_err(|error| unsuitable(self.fd, self.kind, "isn't open", Some(error)))
    }

    /// The device number of the file, if it is a character device's.
    fn number(&self) -> Option<DeviceNumber> {
        let metadata = self.file.metadata().ok()?;
        let number = DeviceNumber::of(metadata.rdev());
        metadata.file_type().is_char_device().then_some(number)
    }
}

fn unsuitable(
    fd: RawFd,
    expected: FdKind,
    problem: &'static str,
    source: Option<io::Error>,
) -> InheritedError {
    InheritedError::Unsuitable { fd, expected, problem, source }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use vmm_sys_util::tempfile::TempFile;

    use super::super::testing::FakeHost;
    use super::*;

    /// No process has as many open.
    const CLOSED: RawFd = 1 << 20;

    /// A host on which /dev/null is the file of a device.
    fn null_is_a_device() -> FakeHost {
        let fake = FakeHost::with_vfio();
        fake.device("platform", "1.dma", Some("vfio-platform"), Some(3));
        fake.cdev("platform", "1.dma", 0);
        fake.link("sys/dev/char/1:3", "sys/devices/platform/1.dma/vfio-dev/vfio0");
        fake
    }

    fn null(write: bool) -> File {
        OpenOptions::new().read(true).write(write).open("/dev/null").unwrap()
    }

    #[test]
    fn a_device_is_found_by_the_file_of_a_descriptor() {
        let (fake, file) = (null_is_a_device(), null(true));
        let fd = file.as_raw_fd();
        let (inherited, device) = InheritedFd::device(&fake.host(), fd).unwrap();
        assert_eq!((inherited.fd(), device.name()), (fd, "1.dma"));
        let own = inherited.file().unwrap();
        drop((inherited, file));
        assert!(own.metadata().unwrap().file_type().is_char_device());
    }

    #[test]
    fn other_descriptors_are_refused_with_the_command_that_opens_the_right_one() {
        let (fake, read_only, regular) =
            (null_is_a_device(), null(false), TempFile::new().unwrap());
        let of = |fd| InheritedFd::device(&fake.host(), fd).map(drop).unwrap_err();
        let cases = [
            (of(CLOSED), "isn't open"),
            (of(-1), "isn't open"),
            (of(read_only.as_raw_fd()), "isn't open for reading and writing"),
            (of(regular.as_file().as_raw_fd()), "is no file of a VFIO device"),
        ];
        for (error, text) in cases {
            assert!(error.to_string().ends_with(text), "{error}");
            assert!(error.help().unwrap().contains("<>/dev/vfio/devices/vfio0"), "{error}");
        }
        let null = null(true);
        let error = InheritedFd::iommufd(&fake.host(), null.as_raw_fd()).unwrap_err();
        assert!(error.to_string().ends_with("is no iommufd"), "{error}");
        assert!(error.help().unwrap().contains("<>/dev/iommu behind"), "{error}");
    }
}
