//! Which system calls the threads of a program make, and what they are confined to.
//!
//! A thread that filters its calls has them counted from then on: the filter that it asks for is replaced by one
//! that stops it at each call, once, but for `KVM_RUN`. A vCPU makes that one all the time, so whoever reads the
//! counts has to know of it. All else runs as fast as without a tracer.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};

use crate::CommandError;
use crate::ptrace::{self, Call, Stop, Thread};

/// System calls of 64-bit Arm (asm-generic/unistd.h).
const FCNTL: u32 = 25;
const IOCTL: u32 = 29;
const SOCKETPAIR: u32 = 199;
const MMAP: u32 = 222;
const MPROTECT: u32 = 226;
const MADVISE: u32 = 233;
const SECCOMP: u32 = 277;
const SET_MODE_FILTER: u64 = 1;

/// Of linux/kvm.h.
const KVM_RUN: u32 = 0xae80;

/// Replaces this process by a program whose calls are counted, by another process, until it ends. Those
/// of threads that filter theirs are appended to `file`: name, call, its deciding arguments, number. Only the
/// call that ends the program is noted, if one does, unless `counts_all`.
pub fn run(file: &str, command: &[&str], counts_all: bool) -> Result<(), CommandError> {
    let failed =
        |what: &str| -> CommandError { format!("{what}: {}", io::Error::last_os_error()).into() };
    let program = command.first().ok_or("which command?")?;
    let words: Vec<CString> =
        command.iter().map(|word| CString::new(*word)).collect::<Result<_, _>>()?;
    let mut argv: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    if counts_all {
        match filter(&traced_filters()) {
            // Of another user than root nothing is counted: it may not filter without giving up more.
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
                // SAFETY: the words are C strings, which a null pointer ends.
                unsafe { libc::execvp(argv[0], argv.as_ptr()) };
                return Err(failed("execvp"));
            }
            result => result?,
        }
    }
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
            let result = trace(Thread(traced), program, file, pipe[1]);
            if let Err(why) = &result {
                let _ = writeln!(io::stderr(), "agent: trace: {why}");
            }
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
        _ => {}
    }
    let mut byte = 0u8;
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

/// A filter of these instructions, and what they come to: that the call is traced, and behind that, that it is
/// allowed.
fn filter_program(instructions: &[libc::sock_filter]) -> Vec<libc::sock_filter> {
    let answers = [libc::SECCOMP_RET_TRACE, libc::SECCOMP_RET_ALLOW];
    instructions.iter().copied().chain(answers.map(|answer| statement(0x06, answer))).collect()
}

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K` (linux/bpf_common.h), on
/// `struct seccomp_data` (linux/seccomp.h): the call's number is first, the low half of its second argument at 24.
fn statement(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// A jump over so many instructions, if what was loaded is this, and if not.
fn compare(k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: 0x15, jt, jf, k }
}

/// Has the calls traced by which threads filter theirs.
fn traced_filters() -> Vec<libc::sock_filter> {
    filter_program(&[statement(0x20, 0), compare(SECCOMP, 0, 1)])
}

/// Has all calls traced but `KVM_RUN`.
fn traced_calls() -> Vec<libc::sock_filter> {
    filter_program(&[
        statement(0x20, 0),
        compare(IOCTL, 0, 2),
        statement(0x20, 24),
        compare(KVM_RUN, 1, 0),
    ])
}

/// Filters the calls of this thread, and of what it starts.
fn filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the program is as long as said, and only read.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Counts until the program and all that it has started have ended: without a tracer their calls would fail.
fn trace(first: Thread, program: &str, file: &str, ready: libc::c_int) -> Result<(), CommandError> {
    let events = libc::PTRACE_O_TRACESECCOMP
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEEXIT;
    let mut counts = Counts::new(program, file)?;
    first.seize(events)?;
    first.interrupt()?;
    // SAFETY: the descriptor is this process's; its end is what the other waits for.
    unsafe { libc::close(ready) };
    while let Some((thread, stop)) = ptrace::wait()? {
        let resumed = match stop {
            Stop::Call => {
                if let Ok(Some(call)) = thread.call() {
                    counts.add(thread, call);
                }
                thread.resume(0)
            }
            Stop::Exit => {
                counts.end(thread);
                thread.resume(0)
            }
            Stop::Event => thread.resume(0),
            Stop::Group => thread.listen(),
            Stop::Signal(signal) => thread.resume(signal),
            Stop::Gone(_) => {
                counts.filtered.remove(&thread);
                Ok(())
            }
        };
        // It may have been killed meanwhile.
        drop(resumed);
        if thread == first && matches!(stop, Stop::Gone(_)) {
            counts.write();
        }
    }
    counts.write();
    Ok(())
}

struct Counts {
    /// What the program's process is called.
    program: String,
    file: File,
    /// Those that have been made since they were written last.
    calls: BTreeMap<(String, u64, String), u64>,
    /// Threads that filter their calls, by what they are called.
    filtered: BTreeMap<Thread, String>,
    has_killed: bool,
}

impl Counts {
    fn new(program: &str, file: &str) -> Result<Self, CommandError> {
        let name = program.rsplit('/').next().unwrap_or_default();
        Ok(Self {
            // TASK_COMM_LEN, with the end of the string.
            program: name.chars().take(15).collect(),
            file: OpenOptions::new().append(true).create(true).open(file)?,
            calls: BTreeMap::new(),
            filtered: BTreeMap::new(),
            has_killed: false,
        })
    }

    fn add(&mut self, thread: Thread, call: Call) {
        if let Some(name) = self.filtered.get(&thread) {
            let key = (name.clone(), call.number, decisive(call));
            let is_first = !self.calls.contains_key(&key);
            if is_first {
                // At once, as the host may end before this program does.
                self.line(&key, 1);
            }
            *self.calls.entry(key).or_default() += u64::from(!is_first);
        } else if call.number == u64::from(SECCOMP)
            && call.arguments[0] == SET_MODE_FILTER
            && thread.process_name().as_ref() == Some(&self.program)
            && replace_filter(thread).is_ok()
        {
            self.filtered.insert(thread, thread.name().replace(' ', "_"));
        }
    }

    /// A thread is about to end: by a call that isn't allowed, maybe.
    fn end(&mut self, thread: Thread) {
        // The others end with the first.
        if !self.has_killed
            && let Ok(Some(call)) = thread.killed_by_call()
        {
            let (name, argument) = (thread.name(), decisive(call));
            let _ = writeln!(self.file, "killed {name} {} {argument}", call.number);
            self.has_killed = true;
        }
    }

    fn line(&mut self, (name, number, argument): &(String, u64, String), count: u64) {
        let text = format!("{name} {number} {argument} {count}\n");
        // In one piece, as others append to the file, too.
        let _ = self.file.write_all(text.as_bytes());
    }

    fn write(&mut self) {
        let calls = self.calls.iter_mut().map(|(key, count)| (key.clone(), std::mem::take(count)));
        let calls: Vec<_> = calls.filter(|(_, count)| *count > 0).collect();
        for (key, count) in calls {
            self.line(&key, count);
        }
    }
}

/// Has a thread that asks for a filter get the one that has its calls traced, which it finds in its stack.
fn replace_filter(thread: Thread) -> Result<(), CommandError> {
    let mut registers = thread.registers()?;
    let program = traced_calls();
    // Below what the thread uses, and the frame of a signal's handler isn't made before the call has ended.
    let place = registers.sp.checked_sub(1024).ok_or("it has no stack")? & !15;
    // `struct sock_fprog`, and instructions.
    let mut bytes = Vec::new();
    bytes.extend((program.len() as u64).to_le_bytes());
    bytes.extend((place + 16).to_le_bytes());
    for instruction in &program {
        bytes.extend(instruction.code.to_le_bytes());
        bytes.extend([instruction.jt, instruction.jf]);
        bytes.extend(instruction.k.to_le_bytes());
    }
    thread.write(&bytes, place)?;
    registers.x[2] = place;
    thread.set_registers(registers)
}

/// The arguments by which a filter decides: a request, a command, a family, a protection and flags, an advice.
fn decisive(Call { number, arguments }: Call) -> String {
    match u32::try_from(number).unwrap_or(u32::MAX) {
        IOCTL | FCNTL => format!("1={:#x}", arguments[1] & 0xffff_ffff),
        SOCKETPAIR => format!("0={:#x}", arguments[0]),
        MMAP => format!("2={:#x},3={:#x}", arguments[2], arguments[3]),
        MPROTECT | MADVISE => format!("2={:#x}", arguments[2]),
        _ => "-".to_owned(),
    }
}
