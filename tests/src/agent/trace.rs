//! Which system calls the threads of a program make, and what they are confined to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, Write};

use crate::CommandError;
use crate::ptrace::{self, Call, Stop, Thread};

/// System calls of 64-bit Arm (asm-generic/unistd.h).
const FCNTL: u64 = 25;
const IOCTL: u64 = 29;
const MMAP: u64 = 222;
const MPROTECT: u64 = 226;
const MADVISE: u64 = 233;
const SECCOMP: u64 = 277;
const SET_MODE_FILTER: u64 = 1;

/// Replaces this process by a program whose calls are counted, by another process, until it ends. Those
/// of threads that filter theirs are appended to `file` then: name, call, its deciding argument, number. Only the
/// call that ends the program is noted, if one does, unless `counts_all`.
pub fn run(file: &str, command: &[&str], counts_all: bool) -> Result<(), CommandError> {
    let failed =
        |what: &str| -> CommandError { format!("{what}: {}", io::Error::last_os_error()).into() };
    let mut pipe = [0; 2];
    // SAFETY: two descriptors are written to an array of two.
    if unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(failed("pipe2"));
    }
    // SAFETY: neither has another thread.
    match unsafe { (libc::getpid(), libc::fork()) } {
        (_, -1) => return Err(failed("fork")),
        (traced, 0) => {
            // Its parent is to have no child that it doesn't know of.
            // SAFETY: as above; what ends here has nothing to tidy up.
            unsafe {
                if libc::fork() != 0 {
                    libc::_exit(0);
                }
                libc::setsid();
            }
            let result = trace(Thread(traced), file, pipe[1], counts_all);
            if let Err(why) = &result {
                let _ = writeln!(io::stderr(), "agent: trace: {why}");
            }
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
        _ => {}
    }
    let mut byte = 0u8;
    let words: Vec<CString> =
        command.iter().map(|word| CString::new(*word)).collect::<Result<_, _>>()?;
    let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    // SAFETY: the byte is one; the words are C strings, which a null pointer ends. The child is waited
    // for, which ends at once.
    unsafe {
        libc::wait(std::ptr::null_mut());
        libc::close(pipe[1]);
        libc::read(pipe[0], (&raw mut byte).cast(), 1);
        libc::execvp(argv[0], argv.as_ptr());
    }
    Err(failed("execvp"))
}

/// Counts until the program and all that it has started have ended.
fn trace(
    first: Thread,
    file: &str,
    ready: libc::c_int,
    counts_all: bool,
) -> Result<(), CommandError> {
    let events = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEEXIT;
    first.seize(events)?;
    first.interrupt()?;
    // SAFETY: the descriptor is this process's; its end is what the other waits for.
    unsafe { libc::close(ready) };
    let mut counts = Counts::default();
    while let Some((thread, stop)) = ptrace::wait()? {
        let resumed = match stop {
            Stop::Call => {
                if let Ok(Some(call)) = thread.call() {
                    counts.add(thread, call);
                }
                thread.resume(0, counts_all)
            }
            Stop::Exit => {
                counts.end(thread);
                thread.resume(0, counts_all)
            }
            Stop::Event => thread.resume(0, counts_all),
            Stop::Group => thread.listen(),
            Stop::Signal(signal) => thread.resume(signal, counts_all),
            Stop::Gone(_) => Ok(()),
        };
        // It may have been killed meanwhile.
        drop(resumed);
        if thread == first && matches!(stop, Stop::Gone(_)) {
            break;
        }
    }
    counts.write(file)
}

#[derive(Default)]
struct Counts {
    calls: BTreeMap<(String, u64, String), u64>,
    /// Threads that filter their calls.
    filtered: BTreeSet<Thread>,
    killed: Vec<String>,
}

impl Counts {
    fn add(&mut self, thread: Thread, call: Call) {
        let key = (thread.name(), call.number, decisive(call));
        if self.filtered.contains(&thread) {
            *self.calls.entry(key).or_default() += 1;
        }
        if call.number == SECCOMP && call.arguments[0] == SET_MODE_FILTER {
            self.filtered.insert(thread);
        }
    }

    /// A thread is about to end: by a call that isn't allowed, maybe.
    fn end(&mut self, thread: Thread) {
        // The others end with the first.
        if self.killed.is_empty()
            && let Ok(Some(call)) = thread.killed_by_call()
        {
            let (name, argument) = (thread.name(), decisive(call));
            self.killed.push(format!("killed {name} {} {argument}", call.number));
        }
    }

    fn write(&self, file: &str) -> Result<(), CommandError> {
        let mut text: String = self.killed.iter().map(|line| format!("{line}\n")).collect();
        for ((name, number, argument), count) in &self.calls {
            text += &format!("{} {number} {argument} {count}\n", name.replace(' ', "_"));
        }
        let mut file = OpenOptions::new().append(true).create(true).open(file)?;
        file.write_all(text.as_bytes())?;
        Ok(())
    }
}

/// The argument by which a filter decides: a request, a command, a protection, an advice.
fn decisive(Call { number, arguments }: Call) -> String {
    match number {
        IOCTL | FCNTL => format!("{:#x}", arguments[1]),
        MMAP => format!("{:#x}/{:#x}", arguments[2], arguments[3]),
        MPROTECT | MADVISE => format!("{:#x}", arguments[2]),
        _ => "-".to_owned(),
    }
}
