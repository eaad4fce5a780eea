//! What a server lends: a file of which a region's memory is a part, before it is mapped.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};

/// `TMPFS_MAGIC` of `linux/magic.h`: what statfs says of a memfd of ordinary pages.
const TMPFS_MAGIC: u32 = 0x0102_1994;

/// Checks that a file has bytes up to `end`, and keeps them, readable and writable: an access to a
/// mapping that its file doesn't hold ends the guest, or this process.
///
/// Whether it is a memfd is asked first, which needs nothing of a file system (`memfd_fcntl` of
/// `mm/memfd.c`): nothing else here is done to another file.
pub(super) fn check(file: &impl AsRawFd, end: u64) -> Result<(), String> {
    let fd = file.as_raw_fd();
    if fcntl(fd, libc::F_GET_SEALS, 0) < 0 {
        return Err("is no memfd".to_owned());
    }
    // One that can't be sealed by us may be so already.
    fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK);
    let seals = fcntl(fd, libc::F_GET_SEALS, 0);
    if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
        return Err("can be shortened under the guest, for it has no F_SEAL_SHRINK".to_owned());
    }
    if seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 {
        return Err("is sealed against writing".to_owned());
    }
    if fcntl(fd, libc::F_GETFL, 0) & libc::O_ACCMODE != libc::O_RDWR {
        return Err("isn't open for reading and writing".to_owned());
    }
    let (kind, size) = stat(fd).map_err(|error| format!("can't be looked at: {error}"))?;
    if kind != TMPFS_MAGIC {
        return Err("is of huge pages, of which a host can run out".to_owned());
    }
    if size < end {
        return Err(format!("has {size:#x} bytes, and the region is to end at {end:#x}"));
    }
    Ok(())
}

fn fcntl(fd: RawFd, command: c_int, argument: c_int) -> c_int {
    // SAFETY: the commands that are given here take a number or nothing.
    unsafe { libc::fcntl(fd, command, argument) }
}

/// The kind of file system it is on, and its size in bytes.
fn stat(fd: RawFd) -> io::Result<(u32, u64)> {
    let mut on = MaybeUninit::<libc::statfs>::uninit();
    let mut file = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: each has room for what is written there.
    if unsafe { libc::fstatfs(fd, on.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    if unsafe { libc::fstat(fd, file.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both calls succeeded, and so have filled these.
    let (on, file) = unsafe { (on.assume_init(), file.assume_init()) };
    let kind = u32::try_from(on.f_type).unwrap_or_default();
    Ok((kind, u64::try_from(file.st_size).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;

    use super::*;

    /// A memfd of 0x4000 bytes.
    fn memfd(flags: u32) -> File {
        // SAFETY: the name is a C string; the descriptor is ours alone.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), flags)) };
        file.set_len(0x4000).unwrap();
        file
    }

    fn sealed(seals: c_int) -> File {
        let file = memfd(libc::MFD_ALLOW_SEALING);
        assert_eq!(fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals), 0);
        file
    }

    fn opened_again(file: &File, write: bool, read: bool) -> File {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::options().read(read).write(write).open(path).unwrap()
    }

    #[test]
    fn only_files_that_stay_readable_and_writable_are_taken() {
        let good = memfd(libc::MFD_ALLOW_SEALING);
        check(&good, 0x4000).unwrap();
        // It is sealed now, so again, and whatever else is sealed.
        check(&opened_again(&good, true, true), 0x4000).unwrap();
        check(&sealed(libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL), 0).unwrap();
        let cases = [
            ("no memfd", File::open("/dev/zero").unwrap()),
            ("no memfd", File::open("/dev/null").unwrap()),
            ("no F_SEAL_SHRINK", memfd(0)),
            ("no F_SEAL_SHRINK", sealed(libc::F_SEAL_SEAL)),
            ("against writing", sealed(libc::F_SEAL_WRITE)),
            ("against writing", sealed(libc::F_SEAL_FUTURE_WRITE)),
            ("isn't open for", opened_again(&good, false, true)),
            ("isn't open for", opened_again(&good, true, false)),
        ];
        for (why, file) in cases {
            let error = check(&file, 0x4000).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        check(&good, 0x4001).unwrap_err();
        let huge = libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string.
        let huge = unsafe { libc::memfd_create(c"test".as_ptr(), huge) };
        if huge >= 0 {
            // SAFETY: just made for us.
            let huge = unsafe { File::from_raw_fd(huge) };
            let error = check(&huge, 0).unwrap_err();
            assert!(error.contains("huge pages"), "{error}");
        }
    }
}
