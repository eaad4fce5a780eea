//! strait: a KVM virtual machine monitor for device assignment on 64-bit Arm.
//!
//! Options become a plan, the plan a machine, the machine runs; nothing flows back.

#![cfg_attr(not(test), no_main)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)]

mod alarm;
mod allocator;
mod assigned;
mod cli;
mod commands;
mod console;
mod doorbell;
mod error;
mod events;
mod exit_reason;
mod functions;
mod irqfds;
mod limits;
mod lines;
mod logger;
mod outfile;
mod output;
mod pci;
mod signals;
mod silence;
mod stats;
mod terminal;
mod tree;
mod unused;
mod vfio_user;

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

use crate::cli::Command;
use crate::commands::{check, device, run};
use crate::error::Error;

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
    output::report_panics();
    // SAFETY: these are what the C library calls main with.
    let arguments = unsafe { arguments(argc, argv) };
    let parsed = cli::parse(lexopt::Parser::from_iter(arguments));
    let exit_status = c_int::from(match parsed.and_then(execute) {
        Ok(exit_status) => exit_status,
        Err(error) => {
            output::say(&error.report());
            error.exit_status()
        }
    });
    output::finish();
    exit_status
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

/// Does what the person wants.
///
/// Whatever `run` has no use for is marked `#[cold]`, here and in the crates: the linker keeps it
/// apart, and starting a guest reads fewer pages of the program. What it does use is put together by
/// `run.ld`.
fn execute(command: Command) -> Result<u8, Error> {
    match command {
        Command::Run(options) => {
            let reason = run::run(&options)?;
            if let Some(message) = reason.message() {
                output::say(&format!("strait: {message}\n"));
            }
            Ok(reason.exit_status())
        }
        Command::Device(options) => device::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Print(text) => output::print(&text).map(|()| 0),
    }
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
