//! Descriptors that somebody else opened and this process was started with.
//!
//! Whoever starts it may open what it may not: it needs no permission for anything in `/dev/vfio`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::host::{DeviceNumber, Host, HostDevice, ReadError};
use super::sys::Iommufd;

/// Why a descriptor isn't what it is taken for.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// There is none of this number.
    #[error("descriptor {fd} isn't open")]
    NotOpen {
        /// The descriptor.
        fd: RawFd,
        /// What it should be.
        wanted: Wanted,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// It can't be read or written.
    #[error("descriptor {fd} isn't open for reading and writing")]
    NotReadWrite {
        /// The descriptor.
        fd: RawFd,
        /// What it should be.
        wanted: Wanted,
    },
    /// It is something else.
    #[error("descriptor {fd} is no {}", wanted.what())]
    Other {
        /// The descriptor.
        fd: RawFd,
        /// What it should be.
        wanted: Wanted,
    },
    /// The host can't be looked at.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What a descriptor should be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The own file of a device.
    Device,
    /// An iommufd.
    Iommufd,
}

impl Wanted {
    fn what(self) -> &'static str {
        match self {
            Self::Device => "file of a VFIO device",
            Self::Iommufd => "iommufd",
        }
    }

    fn example(self) -> &'static str {
        match self {
            Self::Device => "/dev/vfio/devices/vfio0",
            Self::Iommufd => "/dev/iommu",
        }
    }
}

impl PassedError {
    /// What mends it.
    pub fn help(&self) -> Option<String> {
        let (Self::NotOpen { fd, wanted, .. }
        | Self::NotReadWrite { fd, wanted }
        | Self::Other { fd, wanted }) = self
        else {
            return None;
        };
        Some(format!(
            "whoever starts strait opens it, in a shell by {fd}<>{} behind the command",
            wanted.example()
        ))
    }
}

/// A descriptor that was passed, as one of this process's own.
#[derive(Debug)]
pub struct Passed {
    fd: RawFd,
    file: File,
}

impl Passed {
    /// Takes part in what descriptor `fd` refers to; that one stays as it is.
    ///
    /// # Errors
    ///
    /// It isn't open for reading and writing.
    fn take(fd: RawFd, wanted: Wanted) -> Result<Self, PassedError> {
        // SAFETY: takes numbers, and leaves what is open as it is.
        let own = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
        if own < 0 {
            let source = io::Error::last_os_error();
            return Err(PassedError::NotOpen { fd, wanted, source });
        }
        // SAFETY: made just now, and nobody else's.
        let file = unsafe { File::from_raw_fd(own) };
        // SAFETY: takes no pointer.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 || flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(PassedError::NotReadWrite { fd, wanted });
        }
        Ok(Self { fd, file })
    }

    /// The file of a device, and the device.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn device(host: &Host, fd: RawFd) -> Result<(Self, HostDevice), PassedError> {
        let wanted = Wanted::Device;
        let passed = Self::take(fd, wanted)?;
        let found = passed.number().map(|number| host.device_of_cdev(number)).transpose()?;
        let device = found.flatten().ok_or(PassedError::Other { fd, wanted })?;
        Ok((passed, device))
    }

    /// An iommufd.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn iommufd(host: &Host, fd: RawFd) -> Result<Iommufd, PassedError> {
        let wanted = Wanted::Iommufd;
        let passed = Self::take(fd, wanted)?;
        let is_iommufd = passed.number().map(|number| host.is_iommufd(number)).transpose()?;
        if is_iommufd != Some(true) {
            return Err(PassedError::Other { fd, wanted });
        }
        Ok(Iommufd::from(passed.file))
    }

    /// Its number in the process that was started.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// A further file of what it refers to.
    ///
    /// # Errors
    ///
    /// This process has too many open.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// What identifies the file, if it is a character device's.
    fn number(&self) -> Option<DeviceNumber> {
        let metadata = self.file.metadata().ok()?;
        let number = metadata.rdev();
        metadata
            .file_type()
            .is_char_device()
            .then(|| DeviceNumber { major: libc::major(number), minor: libc::minor(number) })
    }
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
        let (passed, device) = Passed::device(&fake.host(), fd).unwrap();
        assert_eq!((passed.fd(), device.name()), (fd, "1.dma"));
        let own = passed.file().unwrap();
        drop((passed, file));
        assert!(own.metadata().unwrap().file_type().is_char_device());
    }

    #[test]
    fn other_descriptors_are_refused_with_the_command_that_opens_the_right_one() {
        let (fake, read_only, regular) =
            (null_is_a_device(), null(false), TempFile::new().unwrap());
        let of = |fd| Passed::device(&fake.host(), fd).map(drop).unwrap_err();
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
        let error = Passed::iommufd(&fake.host(), null.as_raw_fd()).unwrap_err();
        assert!(error.to_string().ends_with("is no iommufd"), "{error}");
        assert!(error.help().unwrap().contains("<>/dev/iommu behind"), "{error}");
    }
}
