//! The regions of a served device, and the files with which a server offers to have them mapped.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use super::budget::Wait;
use super::device::VfioUserDevice;
use super::error::RequestError;
use super::fds::{ReceivedFd, run_with_deadline};
use super::message::{Command, Payload};
use crate::sync::lock;
use crate::vfio::uapi::{Mapping, RegionInfo};

/// The most that a region's description may take, in bytes: hundreds of areas.
const MAX_REGION_INFO: u32 = 8192;

/// `TMPFS_MAGIC` of `linux/magic.h`: what statfs says of a memfd of ordinary pages.
const TMPFS_MAGIC: u32 = 0x0102_1994;

impl VfioUserDevice {
    /// What the server says of a region; it is mappable only if its file can be mapped so that the
    /// guest's accesses to it always succeed.
    pub(super) fn inspect_region(&self, index: u32) -> Result<RegionInfo, RequestError> {
        let mut wait = self.client.budget.begin();
        let (mut info, file) = self.region_info_and_file(&mut wait, index)?;
        let Some(file) = file.filter(|_| info.mappable) else {
            info.mappable = false;
            return Ok(info);
        };
        let areas = info.areas.as_deref().unwrap_or_default();
        let end = areas.iter().map(|area| area.end).max().unwrap_or(info.size);
        let (file, end) = (Arc::new(file), info.offset.saturating_add(end));
        let inspected = file.clone();
        let checked = if !info.readable || !info.writable {
            Err("is of a region that can't be both read and written".to_owned())
        } else {
            self.inspect(&mut wait, move || check_file(&*inspected, end))?
        };
        match checked {
            Ok(()) => drop(lock(&self.files).insert(index, file)),
            Err(why) => {
                log::info!("{}: region {index} traps: its file {why}", self.client.name);
                info.mappable = false;
            }
        }
        Ok(info)
    }

    fn region_info_and_file(
        &self,
        wait: &mut Wait<'_>,
        index: u32,
    ) -> Result<(RegionInfo, Option<ReceivedFd>), RequestError> {
        let command = Command::GET_REGION_INFO;
        let request = Payload::default().u32s(&[MAX_REGION_INFO, 0, index, 0]).u64(0).u64(0);
        let max_reply = usize::try_from(MAX_REGION_INFO).unwrap_or(usize::MAX);
        let reply = self.client.request(wait, command, &request, &[], max_reply)?;
        let info = RegionInfo::parse(&reply.payload);
        let within = |area: &Range<u64>| area.start < area.end && area.end <= info.size;
        let is_valid = reply.payload.len() >= 32
            && info.index == index
            && info.offset.checked_add(info.size).is_some()
            && info.areas.iter().flatten().all(within);
        let info = self.client.valid(command, is_valid.then_some(info))?;
        Ok((info, reply.files.into_iter().next()))
    }

    pub(super) fn map_region(&self, region: &RegionInfo, range: Range<u64>) -> io::Result<Mapping> {
        let file = lock(&self.files).get(&region.index).filter(|_| region.mappable).cloned();
        let (Some(file), Some(end)) = (file, region.offset.checked_add(range.end)) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let (region, mappings) = (region.clone(), self.client.mappings.clone());
        self.inspect(&mut self.client.budget.begin(), move || {
            check_file(&*file, end).map_err(io::Error::other)?;
            Mapping::revocable(&*file, &region, range, &mappings)
        })?
    }

    /// Runs `work` on a file of the server's in a thread; a server that delays it is given up.
    fn inspect<T: Send + 'static>(
        &self,
        wait: &mut Wait<'_>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        run_with_deadline(wait, work).map_err(|failure| {
            self.client.fail(failure.clone());
            RequestError::Failed(failure)
        })
    }
}

/// Checks that a file has bytes up to `end`, and keeps them, readable and writable: an access to a
/// mapping that its file doesn't back ends the guest, or this process.
///
/// Whether it is a memfd is asked first, which needs nothing of a file system (`memfd_fcntl` of
/// `mm/memfd.c`): nothing else here is done to another file.
fn check_file(file: &impl AsRawFd, end: u64) -> Result<(), String> {
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
    let (fs_type, size) = stat(fd).map_err(|error| format!("can't be looked at: {error}"))?;
    if fs_type != TMPFS_MAGIC {
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

/// The type of a file's file system, and the file's size in bytes.
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
    let fs_type = u32::try_from(on.f_type).unwrap_or_default();
    Ok((fs_type, u64::try_from(file.st_size).unwrap_or_default()))
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
    fn only_files_that_stay_readable_and_writable_are_mapped() {
        let good = memfd(libc::MFD_ALLOW_SEALING);
        check_file(&good, 0x4000).unwrap();
        // It is sealed now, so again, and whatever else is sealed.
        check_file(&opened_again(&good, true, true), 0x4000).unwrap();
        check_file(&sealed(libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL), 0)
            .unwrap();
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
            let error = check_file(&file, 0x4000).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
        check_file(&good, 0x4001).unwrap_err();
        let huge = libc::MFD_HUGETLB | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name is a C string.
        let huge = unsafe { libc::memfd_create(c"test".as_ptr(), huge) };
        if huge >= 0 {
            // SAFETY: just made for us.
            let huge = unsafe { File::from_raw_fd(huge) };
            let error = check_file(&huge, 0).unwrap_err();
            assert!(error.contains("huge pages"), "{error}");
        }
    }
}
