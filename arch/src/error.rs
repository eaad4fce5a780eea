//! What KVM can refuse.

use boot::help::Help;
use std::io;

/// A failure of the hypervisor, with what was being done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` can't be opened.
    #[error("/dev/kvm can't be opened")]
    OpenKvm(#[source] io::Error),
    /// An ioctl failed.
    #[error("KVM can't {action}")]
    Kvm {
        /// What was asked of it, as in "KVM can't ...".
        action: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The host's KVM lacks something that strait builds on.
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    /// Guest RAM can't be reserved.
    #[error("{size} bytes of guest RAM can't be mapped")]
    MapRam {
        /// Size asked for, in bytes.
        size: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Guest RAM in huge pages can't be reserved.
    #[error("{size} bytes of guest RAM can't be mapped in huge pages of {page} bytes")]
    MapHugePages {
        /// Size asked for, in bytes.
        size: u64,
        /// The size of the pages, in bytes.
        page: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Guest RAM can't be made of transparent huge pages.
    #[error("the host can't be asked for transparent huge pages")]
    AdviseRam(#[source] io::Error),
    /// RAM ends above the guest physical addresses this host can translate.
    #[error(
        "guest RAM would end at {end:#x}, above the {bits} bits of guest physical address that \
         this host's KVM offers: at most {max} bytes of RAM fit"
    )]
    IpaSize {
        /// One past the last byte of RAM (GPA).
        end: u64,
        /// Bits of guest physical address offered.
        bits: u32,
        /// Bytes of RAM that fit.
        max: u64,
    },
    /// More vCPUs than the host or the interrupt controller can have.
    #[error("{asked} vCPUs are too many: {limit} is the most that {who} can have")]
    TooManyCpus {
        /// vCPUs asked for.
        asked: u64,
        /// The most possible.
        limit: u64,
        /// Whose limit it is.
        who: &'static str,
    },
    /// The GIC version asked for, or any, is not offered by the host.
    #[error("this host's KVM offers no {0}")]
    NoGic(&'static str),
}

impl Error {
    /// The error of a failed ioctl.
    #[cfg(target_arch = "aarch64")]
    pub(crate) fn kvm(action: impl Into<String>, error: kvm_ioctls::Error) -> Self {
        Self::Kvm { action: action.into(), source: io_error(error) }
    }
}

impl Help for Error {
    fn help(&self) -> Option<String> {
        match self {
            // Of root's too: permission isn't what is missing.
            Self::OpenKvm(e) if e.raw_os_error() == Some(libc::EPERM) => Some(
                "a container or service must be let have /dev/kvm (docker --device /dev/kvm, \
                     systemd DeviceAllow=/dev/kvm)"
                    .into(),
            ),
            Self::OpenKvm(e) => Some(match e.kind() {
                io::ErrorKind::NotFound => "the host kernel has no KVM: it needs CONFIG_KVM=y, \
                     and must be started at EL2 (on a QEMU model: -M virt,virtualization=on)"
                    .into(),
                io::ErrorKind::PermissionDenied => {
                    "sudo usermod -aG kvm $USER, then log in again (or: sudo setfacl -m \
                     u:$USER:rw /dev/kvm)"
                        .into()
                }
                _ => "ls -l /dev/kvm".into(),
            }),
            Self::NoGic("GICv3") => Some("--gic 2, or --gic auto".into()),
            Self::NoGic("GICv2") => Some("--gic 3, or --gic auto".into()),
            Self::IpaSize { max: 0, .. } => Some("--memory without base=".into()),
            Self::IpaSize { max, .. } => Some(format!("--memory {}M or less", max >> 20)),
            Self::MapRam { .. } => Some("a smaller --memory; `free -m` shows what there is".into()),
            Self::MapHugePages { page, .. } => Some(format!(
                "grep . /sys/kernel/mm/hugepages/hugepages-{}kB/* shows what there is",
                page >> 10
            )),
            Self::AdviseRam(_) => Some(
                "hugepages=2M, or a kernel with CONFIG_TRANSPARENT_HUGEPAGE and \
                     CONFIG_ADVISE_SYSCALLS"
                    .into(),
            ),
            Self::TooManyCpus { limit, .. } => Some(format!("--cpus {limit} or fewer")),
            Self::Kvm { .. } | Self::Missing(_) | Self::NoGic(_) => None,
        }
    }
}

/// The same error as std has it.
#[cfg(target_arch = "aarch64")]
pub(crate) fn io_error(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}
