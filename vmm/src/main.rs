//! strait, where the C library enters.

#![cfg_attr(not(test), no_main)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]
#![deny(missing_docs)]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

/// Where the C library enters.
///
/// Not Rust's `fn main`: what the standard library does before it, above all reading
/// /proc/self/maps to find the stack's guard page, is a tenth of the time it takes to start a
/// guest. What of it matters here, [`own_standard_descriptors`] and [`ignore_broken_pipes`] do, and
/// the arguments are taken as they come: glibc also hands them to the standard library, musl doesn't.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    own_standard_descriptors();
    ignore_broken_pipes();
    wait_for_children();
    share_the_heap();
    // SAFETY: these are what the C library calls main with.
    let arguments = unsafe { arguments(argc, argv) };
    c_int::from(vmm::run(arguments))
}

/// The arguments, the program's name first.
///
/// # Safety
///
/// `argv` holds `argc` C strings, or fewer and then a null pointer.
unsafe fn arguments(argc: c_int, argv: *const *const c_char) -> Vec<OsString> {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the caller says how many there are.
    let pointers = (0..count).map(|index| unsafe { *argv.add(index) });
    let strings = pointers.take_while(|pointer| !pointer.is_null()).map(|pointer| {
        // SAFETY: it isn't null, and so a C string.
        unsafe { CStr::from_ptr(pointer) }
    });
    strings.map(|string| OsStr::from_bytes(string.to_bytes()).to_owned()).collect()
}

/// Opens /dev/null for standard input, output and error where they are closed: else the next file
/// that is opened would take their place, and the guest's console would be written into it.
fn own_standard_descriptors() {
    for fd in libc::STDIN_FILENO..=libc::STDERR_FILENO {
        // SAFETY: F_GETFD takes no pointer. The path is a C string; the lowest free descriptor,
        // which open returns, is `fd`, as those below are open.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) < 0 {
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
}

/// Makes writing to a closed pipe an error like any other.
fn ignore_broken_pipes() {
    // SAFETY: SIG_IGN is a valid disposition of SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Has children's ends told: who starts strait may ignore SIGCHLD, which `execve(2)` leaves so, and the
/// kernel then forgets how they have ended (`wait(2)`).
fn wait_for_children() {
    // SAFETY: SIG_DFL is a valid disposition of SIGCHLD.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Has all threads allocate of one heap. glibc makes one for each of the first threads, with five system
/// calls, where strait's threads hardly allocate.
fn share_the_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: M_ARENA_MAX takes a number (mallopt(3)); no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// A message of the C library's as it is, in the place of `__dcigettext`, which looks for translations of it:
/// strait's locale is always "C", which has none (setlocale(3)), and what reads catalogs and converts them is
/// left out of a static binary (`build/main.rs`).
#[unsafe(no_mangle)]
extern "C" fn strait_untranslated(_: *const c_char, message: *const c_char) -> *const c_char {
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_that_main_is_called_with() {
        let words = [c"strait", c"run", c"--cmdline", c"a \xff", c""];
        let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
        argv.push(std::ptr::null());
        let taken = |argc| {
            // SAFETY: the words live, and a null pointer ends them.
            let arguments = unsafe { arguments(argc, argv.as_ptr()) };
            arguments.into_iter().map(|word| word.into_encoded_bytes()).collect::<Vec<_>>()
        };
        let all: Vec<_> = words.iter().map(|word| word.to_bytes().to_vec()).collect();
        assert_eq!(taken(5), all);
        // An argc that says more, and one that says nothing.
        assert_eq!(taken(6), all);
        assert!(taken(0).is_empty() && taken(-1).is_empty());
    }
}
