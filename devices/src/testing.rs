//! What the host doesn't do for a thread of a test.

use std::thread;

/// Runs `test` in a thread for which each of these system calls fails, by this error.
pub(crate) fn without<T: Send>(
    calls: &[libc::c_long],
    errno: libc::c_int,
    test: impl FnOnce() -> T + Send,
) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse(calls, errno.unsigned_abs());
            test()
        });
        thread.join().unwrap()
    })
}

/// Has these calls fail from now on, in this thread and those that it starts (seccomp(2)).
fn refuse(calls: &[libc::c_long], errno: u32) {
    // Of linux/bpf_common.h: BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ, BPF_RET.
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let unless = |number| libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number };
    let mut program = vec![statement(0x20, 0)];
    for call in calls {
        let refused = statement(0x06, libc::SECCOMP_RET_ERRNO | errno);
        program.extend([unless(u32::try_from(*call).unwrap()), refused]);
    }
    program.push(statement(0x06, libc::SECCOMP_RET_ALLOW));
    let program =
        libc::sock_fprog { len: program.len().try_into().unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: the first takes numbers; the second reads as many instructions as are said.
    let filtered = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            ) == 0
    };
    assert!(filtered, "{}", std::io::Error::last_os_error());
}
