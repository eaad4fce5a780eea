//! Why vhost can't be used.

use std::io;

use boot::help::Help;

/// Why a device of the kernel's can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// It can't be opened.
    #[error("{path} can't be opened")]
    Open {
        /// Its path.
        path: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
    /// It refused a request.
    #[error("{path}: {request} was refused")]
    Refused {
        /// Its path.
        path: &'static str,
        /// The request's name in linux/vhost.h.
        request: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

impl VhostError {
    /// Whether the kernel answered with this error number (`libc::E…`).
    pub(in super::super) fn is(&self, errno: i32) -> bool {
        let (Self::Open { source, .. } | Self::Refused { source, .. }) = self;
        source.raw_os_error() == Some(errno)
    }
}

impl Help for VhostError {
    fn help(&self) -> Option<String> {
        let Self::Open { path, source } = self else { return None };
        let module = path.trim_start_matches("/dev/").replace('-', "_");
        Some(match source.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => format!(
                "sudo modprobe {module} (in a container: whoever starts it lets it have the device, \
                 docker --device {path})"
            ),
            Some(libc::EACCES | libc::EPERM) => {
                format!(
                    "sudo usermod -aG kvm $USER, then log in again (or: sudo setfacl -m u:$USER:rw {path})"
                )
            }
            _ => format!("ls -l {path}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_can_t_be_opened_has_a_command_that_mends_it() {
        let help = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            VhostError::Open { path: "/dev/vhost-net", source }.help().unwrap()
        };
        assert!(help(libc::ENOENT).starts_with("sudo modprobe vhost_net "));
        assert!(help(libc::ENODEV).starts_with("sudo modprobe vhost_net "));
        assert!(help(libc::EACCES).contains("u:$USER:rw /dev/vhost-net"));
    }
}
