//! A program whose system call is answered by an error, where the kernel would do what it asks for.
//!
//! A filter that all processes of the program inherit hands the call to this program (`seccomp_unotify(2)`), which
//! counts, and lets all go on but the one that is to fail, or that one and all after it.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use crate::ptrace::Thread;
use crate::{CommandError, number, number32};

const IOCTL: u32 = 29;
/// Asked for by vCPUs all the time (linux/kvm.h); none of them fails.
const KVM_RUN: u32 = 0xae80;

/// Of linux/seccomp.h: `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND`.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const ANSWER: libc::c_ulong = 0xc018_2101;

/// Which calls fail, and how.
struct Fault {
    call: u32,
    error: i32,
    /// The first that fails, from 1 on.
    first: u64,
    /// All after that fail, too.
    and_all_after: bool,
}

/// Replaces this process by a program whose call fails: the `which`th call of number `call` that it makes, or
/// with a `+` all from that one on, by `error`. What has failed is written to `file`, once something has.
pub fn run(
    file: &str,
    [call, error, which]: [&str; 3],
    command: &[&str],
) -> Result<(), CommandError> {
    let first = number(which.trim_end_matches('+'))?;
    let fault = Fault {
        call: number32(call)?,
        error: i32::try_from(number(error)?)?,
        first,
        and_all_after: which.ends_with('+'),
    };
    fs::remove_file(file).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let listener = shared_number()?;
    // It has the same descriptors until the program is started, and so the listener.
    if fork(libc::CLONE_FILES)? == 0 {
        // The program is to have no child that it doesn't know of.
        if matches!(fork(libc::CLONE_FILES), Ok(0)) {
            let result = answer(listener, &fault, file);
            if let Err(why) = &result {
                let _ = writeln!(io::stderr(), "agent: fail: {why}");
            }
        }
        // SAFETY: what ends here has nothing to tidy up.
        unsafe { libc::_exit(0) };
    }
    let words: Vec<CString> =
        command.iter().map(|word| CString::new(*word)).collect::<Result<_, _>>()?;
    let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    // SAFETY: there is a child, which ends at once.
    unsafe { libc::wait(std::ptr::null_mut()) };
    listener.store(filter(fault.call)?, Ordering::Release);
    // SAFETY: the words are C strings, which a null pointer ends.
    unsafe { libc::execvp(argv[0], argv.as_ptr()) };
    Err(io::Error::last_os_error().into())
}

/// A number that forked processes share: the listener's descriptor, once there is one.
fn shared_number() -> Result<&'static AtomicI32, CommandError> {
    let (kind, protection) =
        (libc::MAP_SHARED | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: the kernel chooses the place.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, kind, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the page is this, of zeroes, and is never unmapped.
    let number = unsafe { &*page.cast::<AtomicI32>() };
    number.store(-1, Ordering::Release);
    Ok(number)
}

/// Forks; what `flags` say is shared.
fn fork(flags: libc::c_int) -> Result<libc::c_long, CommandError> {
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: this process has one thread, and the new one a copy of its memory.
    let process = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if process < 0 { Err(io::Error::last_os_error().into()) } else { Ok(process) }
}

/// Filters this process, and answers what reads the calls of this number.
fn filter(call: u32) -> Result<RawFd, CommandError> {
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let unless = |k, jf| libc::sock_filter { code: 0x15, jt: 0, jf, k };
    let load = |at| statement(0x20, at);
    // The request of an ioctl is behind number, architecture, address and one argument.
    let program = [
        load(0),
        unless(call, 5),
        unless(IOCTL, 3),
        load(24),
        unless(KVM_RUN, 1),
        statement(6, libc::SECCOMP_RET_ALLOW),
        statement(6, libc::SECCOMP_RET_USER_NOTIF),
        statement(6, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: 8, filter: program.as_ptr().cast_mut() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program is as long as said, and only read.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    if listener < 0 {
        return Err(format!("seccomp: {}", io::Error::last_os_error()).into());
    }
    Ok(RawFd::try_from(listener)?)
}

/// Answers calls until there is no process any more that makes them.
fn answer(listener: &AtomicI32, fault: &Fault, file: &str) -> Result<(), CommandError> {
    // SAFETY: nothing is passed.
    unsafe { libc::setsid() };
    while listener.load(Ordering::Acquire) < 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let listener = listener.load(Ordering::Acquire);
    let mut made = 0;
    loop {
        let mut ready = libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure is passed, and its number.
        unsafe { libc::poll(&raw mut ready, 1, -1) };
        if ready.revents & libc::POLLIN == 0 {
            return Ok(());
        }
        // SAFETY: the structure is numbers, and the kernel wants zeroes.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel fills the structure of this request.
        if unsafe { libc::ioctl(listener, RECEIVE as _, &raw mut asked) } != 0 {
            continue;
        }
        made += 1;
        let fails = made == fault.first || made > fault.first && fault.and_all_after;
        let (error, flags) = if fails { (-fault.error, 0) } else { (0, 1) };
        if made == fault.first {
            let name = Thread(i32::try_from(asked.pid)?).name();
            fs::write(file, format!("{name} {:#x}\n", asked.data.args[1]))?;
        }
        let answer = libc::seccomp_notif_resp { id: asked.id, val: 0, error, flags };
        // It may have been interrupted meanwhile, and asks again then.
        // SAFETY: the kernel reads the structure of this request.
        unsafe { libc::ioctl(listener, ANSWER as _, &raw const answer) };
    }
}
