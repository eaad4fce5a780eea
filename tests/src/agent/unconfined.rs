//! Running a program that confines itself by namespaces, on a kernel that has none.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::CommandError;

/// What it calls for that, which is answered without being done.
const CALLS: [libc::c_long; 4] =
    [libc::SYS_unshare, libc::SYS_mount, libc::SYS_umount2, libc::SYS_pivot_root];

/// Runs a command whose calls for namespaces and mounts do nothing and succeed.
pub(crate) fn run(words: &[&str]) -> Result<(), CommandError> {
    let [program, arguments @ ..] = words else { return Err("nothing to run".into()) };
    let statement = |code: u32, jt: u8, jf: u8, k: u32| -> Result<_, CommandError> {
        Ok(libc::sock_filter { code: u16::try_from(code)?, jt, jf, k })
    };
    // The number of the call is the first word of what a filter sees (seccomp(2)).
    let mut filter = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)?];
    for (index, call) in (0..).zip(CALLS) {
        let over = u8::try_from(CALLS.len())? - index;
        let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        filter.push(statement(code, over, 0, u32::try_from(call)?)?);
    }
    filter.push(statement(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW)?);
    filter.push(statement(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ERRNO)?);
    let program_of_filter =
        libc::sock_fprog { len: u16::try_from(filter.len())?, filter: filter.as_mut_ptr() };
    // SAFETY: the filter outlives the call, which reads as many statements as its length says.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program_of_filter,
            ) != 0
    };
    if failed {
        return Err(io::Error::last_os_error().into());
    }
    Err(Command::new(program).args(arguments).exec().into())
}
