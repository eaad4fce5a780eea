//! Tap interfaces (the kernel's Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h).

use std::ffi::{CStr, CString, c_int, c_short};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use boot::help::Help;
use libc::{
    IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR, TUN_F_CSUM, TUN_F_TSO_ECN,
    TUN_F_TSO4, TUN_F_TSO6, TUNGETIFF, TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, ifreq,
};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::HEADER_SIZE;
use crate::release;

const TUN: &str = "/dev/net/tun";

/// Which tap a guest gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapRef {
    /// That of this name, in the network namespace of this process.
    Name(String),
    /// One that another process has opened, as a descriptor.
    Descriptor(RawFd),
}

/// A tap interface, opened for a guest.
#[derive(Debug)]
pub struct Tap {
    file: Arc<File>,
    name: String,
    mtu: Option<u16>,
}

/// Why a guest can't have a tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The kernel's interface to taps can't be used.
    #[error("{TUN} can't be opened")]
    Unavailable(#[source] io::Error),
    /// There is none of this name, and this process may not make it.
    #[error("there is no network interface {0}, and only root may make one")]
    Missing(String),
    /// It is another user's.
    #[error("this user may not use the tap interface {0}: it was made for another")]
    NotOwned(String),
    /// Another process has it.
    #[error("another process uses the tap interface {0}")]
    Busy(String),
    /// It is no tap, or one of a kind that isn't taken.
    #[error("the network interface {name} {problem}")]
    Unsuitable {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A descriptor isn't a tap's, or not as it has to be.
    #[error("descriptor {fd} {problem}")]
    Descriptor {
        /// The descriptor.
        fd: RawFd,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The kernel refused something else.
    #[error("the tap interface {name}: {request} was refused")]
    Refused {
        /// Its name.
        name: String,
        /// The request's name in linux/if_tun.h.
        request: &'static str,
        /// What the kernel answered.
        #[source]
        source: io::Error,
    },
}

impl Help for TapError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::Unavailable(error) => match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => "sudo modprobe tun (in a \
                     container: whoever starts it lets it have the device, docker --device \
                     /dev/net/tun)"
                    .into(),
                _ => format!("sudo chmod 666 {TUN}"),
            },
            Self::Missing(name) => make(name),
            Self::NotOwned(name)
            | Self::Unsuitable { name, problem: TUN_PROBLEM | QUEUES_PROBLEM } => {
                format!("sudo ip link delete {name}\n{}", make(name))
            }
            Self::Busy(name) => format!(
                "whoever has it ends: sudo grep -l \"iff:.{name}$\" /proc/[0-9]*/fdinfo/*\n\
                 or another tap: {}",
                make("tap1")
            ),
            Self::Unsuitable { .. } => format!("--net takes taps: {}", make("tap0")),
            Self::Descriptor { fd, .. } => format!(
                "whoever starts strait opens {TUN} as descriptor {fd}, with TUNSETIFF and the flags \
                 IFF_TAP, IFF_NO_PI and IFF_VNET_HDR; or, for one by name: {}",
                make("tap0")
            ),
            Self::Refused { .. } => "a host with Linux 4.0 or later".into(),
        })
    }
}

/// The commands that make a tap for this user.
fn make(name: &str) -> String {
    format!("sudo ip tuntap add dev {name} mode tap user $USER && sudo ip link set {name} up")
}

const TUN_PROBLEM: &str = "is a tun interface, for IP packets; a guest has Ethernet packets";
const QUEUES_PROBLEM: &str = "has several queues (multi_queue); a guest has one";

impl Tap {
    /// Opens it, makes it if there is none of this name and this process may (`CAP_NET_ADMIN`), and
    /// gives packets the header that virtio has.
    ///
    /// # Errors
    ///
    /// There is no such tap, another process has it, this user may not use it, or it isn't a tap.
    pub fn open(which: &TapRef) -> Result<Self, TapError> {
        let (file, name) = match which {
            TapRef::Name(name) => (attach(name)?, name.clone()),
            TapRef::Descriptor(fd) => inherited(*fd)?,
        };
        let mtu = mtu(&name);
        let tap = Self { file: Arc::new(file), name, mtu };
        // The header with the number of buffers (virtio 1.2, 5.1.6).
        let size = c_int::try_from(HEADER_SIZE).unwrap_or(c_int::MAX);
        // SAFETY: the kernel reads an integer at the pointer.
        let set = unsafe { ioctl_with_ref(&*tap.file, TUNSETVNETHDRSZ, &size) };
        tap.check("TUNSETVNETHDRSZ", set)?;
        tap.set_offloads(0)?;
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The largest packet that it takes without its Ethernet header, if that is known.
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// Its file.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Has it hand over packets as a driver that has accepted `features` takes them: with checksums
    /// left to do, or larger than fits on a wire.
    pub(super) fn set_offloads(&self, features: u64) -> Result<(), TapError> {
        let mut offloads = 0;
        for (feature, offload) in [
            (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
            (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
            (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
            (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
        ] {
            if features & 1 << feature != 0 {
                offloads |= offload;
            }
        }
        // Without the checksum the kernel refuses the others.
        if offloads & TUN_F_CSUM == 0 {
            offloads = 0;
        }
        // SAFETY: the argument is a number.
        let set = unsafe { ioctl_with_val(&*self.file, TUNSETOFFLOAD, offloads.into()) };
        self.check("TUNSETOFFLOAD", set)
    }

    /// Turns what `ioctl` returned into a result.
    fn check(&self, request: &'static str, returned: c_int) -> Result<(), TapError> {
        if returned >= 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        Err(TapError::Refused { name: self.name.clone(), request, source })
    }
}

/// Opens the tap of this name.
fn attach(name: &str) -> Result<File, TapError> {
    release::wait(|| attach_now(name), |attached| matches!(attached, Err(TapError::Busy(_))))
}

fn attach_now(name: &str) -> Result<File, TapError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open(TUN).map_err(TapError::Unavailable)?;
    let existed = exists(name);
    let mut request = request(name).ok_or_else(|| TapError::Missing(name.into()))?;
    request.ifr_ifru.ifru_flags = flags(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
    // SAFETY: the kernel reads and writes an ifreq at the pointer.
    if unsafe { ioctl_with_mut_ref(&file, TUNSETIFF, &mut request) } < 0 {
        let error = io::Error::last_os_error();
        return Err(refusal(name, existed, error));
    }
    if !existed {
        log::warn!(
            "{name}: this tap interface was made for the run and ends with it; to give it to the host's \
             network: sudo ip link set {name} up"
        );
    }
    Ok(file)
}

/// Why `TUNSETIFF` was refused.
#[cold]
fn refusal(name: &str, existed: bool, source: io::Error) -> TapError {
    let owned = || name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if existed => TapError::NotOwned(owned()),
        Some(libc::EPERM | libc::EACCES) => TapError::Missing(owned()),
        Some(libc::EBUSY) => TapError::Busy(owned()),
        Some(libc::EINVAL) if existed => {
            TapError::Unsuitable { name: owned(), problem: problem(tun_flags(name)) }
        }
        _ => TapError::Refused { name: owned(), request: "TUNSETIFF", source },
    }
}

/// What is wrong with an interface whose flags in sysfs are these; `None` if it has none.
fn problem(flags: Option<c_int>) -> &'static str {
    match flags {
        Some(flags) if flags & IFF_TUN != 0 => TUN_PROBLEM,
        Some(flags) if flags & IFF_MULTI_QUEUE != 0 => QUEUES_PROBLEM,
        _ => "is no tap interface",
    }
}

/// The flags of a tun or tap interface.
fn tun_flags(name: &str) -> Option<c_int> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/tun_flags")).ok()?;
    c_int::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

/// The tap that another process has opened, and its name.
fn inherited(fd: RawFd) -> Result<(File, String), TapError> {
    let failed = |problem| TapError::Descriptor { fd, problem };
    // SAFETY: takes numbers, and leaves what is open as it is.
    let duplicate = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if duplicate < 0 {
        return Err(failed("isn't open"));
    }
    // SAFETY: made just now, and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(duplicate) });
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes an ifreq at the pointer.
    if unsafe { ioctl_with_mut_ref(&file, TUNGETIFF, &mut request) } < 0 {
        return Err(failed("is no tap interface"));
    }
    // SAFETY: TUNGETIFF has written this field.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & IFF_TAP == 0 {
        return Err(failed(TUN_PROBLEM));
    }
    if flags & IFF_VNET_HDR == 0 || flags & IFF_NO_PI == 0 {
        return Err(failed("is a tap interface without IFF_VNET_HDR and IFF_NO_PI"));
    }
    // SAFETY: takes numbers.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if status & libc::O_ACCMODE != libc::O_RDWR {
        return Err(failed("isn't open for reading and writing"));
    }
    // SAFETY: takes numbers.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, status | libc::O_NONBLOCK) };
    let name: Vec<u8> = request.ifr_name.iter().flat_map(|c| c.to_ne_bytes()).collect();
    let name = CStr::from_bytes_until_nul(&name).map(CStr::to_string_lossy).unwrap_or_default();
    Ok((file, name.into_owned()))
}

/// Whether the interface of a tap's file has been deleted.
pub(super) fn is_deleted(tap: &File) -> bool {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes an ifreq at the pointer.
    let answer = unsafe { ioctl_with_mut_ref(tap, TUNGETIFF, &mut request) };
    answer < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EBADFD)
}

/// A request about the interface of this name; `None` if none can be called so.
fn request(name: &str) -> Option<ifreq> {
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    let room = request.ifr_name.len().saturating_sub(1);
    if name.is_empty() || name.len() > room {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = std::ffi::c_char::from_ne_bytes([from]);
    }
    Some(request)
}

/// Flags as an ifreq has them.
fn flags(flags: c_int) -> c_short {
    c_short::try_from(flags).unwrap_or_default()
}

/// Whether there is an interface of this name.
fn exists(name: &str) -> bool {
    // SAFETY: the name is a C string for the time of the call.
    CString::new(name).is_ok_and(|name| unsafe { libc::if_nametoindex(name.as_ptr()) } != 0)
}

/// The MTU of the interface of this name, if it is one that virtio can tell (virtio 1.2, 5.1.4).
fn mtu(name: &str) -> Option<u16> {
    let mut request = request(name)?;
    // SAFETY: takes numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return None;
    }
    // SAFETY: made just now, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the kernel reads and writes an ifreq at the pointer.
    if unsafe { ioctl_with_mut_ref(&socket, libc::SIOCGIFMTU, &mut request) } < 0 {
        return None;
    }
    // SAFETY: the kernel has written this field.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u16::try_from(mtu).ok().filter(|mtu| *mtu >= 68)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_missing() {
        assert!(request("").is_none() && request("abcdefghijklmnop").is_none());
        assert!(request("abcdefghijklmno").is_some());
        assert!(exists("lo") && !exists("no-such") && !exists("a\0b"));
        assert_eq!(mtu("no-such"), None);
    }

    #[test]
    fn refusals_tell_what_to_type() {
        let of = |existed, errno| refusal("tap7", existed, io::Error::from_raw_os_error(errno));
        let cases = [
            (of(false, libc::EPERM), "there is no network interface tap7", "mode tap user $USER"),
            (of(true, libc::EPERM), "made for another", "sudo ip link delete tap7\n"),
            (of(true, libc::EBUSY), "another process uses", "fdinfo"),
            (of(true, libc::EINVAL), "tap7 is no tap interface", "ip tuntap add dev tap0"),
            (of(false, libc::EINVAL), "TUNSETIFF was refused", "Linux 4.0"),
        ];
        for (error, text, help) in cases {
            assert!(error.to_string().contains(text), "{error}");
            assert!(error.help().unwrap().contains(help), "{error}: {:?}", error.help());
        }
        assert_eq!(problem(Some(IFF_TUN)), TUN_PROBLEM);
        assert_eq!(problem(Some(IFF_TAP | IFF_MULTI_QUEUE)), QUEUES_PROBLEM);
    }

    #[test]
    fn descriptors_that_are_no_taps_are_refused() {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        let of = |fd| Tap::open(&TapRef::Descriptor(fd)).unwrap_err();
        for (error, text) in
            [(of(null.as_raw_fd()), "is no tap interface"), (of(1 << 20), "isn't open")]
        {
            assert!(error.to_string().ends_with(text), "{error}");
            assert!(error.help().unwrap().contains("IFF_VNET_HDR"), "{error}");
        }
    }
}
