//! A system call that a thread of another program is made to ask for, as if it had been taken over.

use std::fs;

use crate::CommandError;
use crate::ptrace::{self, Stop, Thread};

/// Has the thread called `name` of a process make this call; answers what became of the process: its
/// status, or the signal that ended it.
pub fn run(process: &str, name: &str, number: u64, arguments: &[u64]) -> Result<(), CommandError> {
    let thread = find(process, name)?;
    thread.seize(0)?;
    thread.interrupt()?;
    loop {
        match ptrace::wait()? {
            Some((one, Stop::Event)) if one == thread => break,
            Some((one, Stop::Signal(signal))) if one == thread => thread.resume(signal)?,
            other => return Err(format!("it doesn't stop: {other:?}").into()),
        }
    }
    thread.call_again(|registers| {
        registers.x[..6].fill(0);
        for (register, argument) in registers.x.iter_mut().zip(arguments) {
            *register = *argument;
        }
        registers.x[8] = number;
    })?;
    thread.resume(0)?;
    match ptrace::wait()? {
        Some((_, Stop::Gone(Err(signal)))) => println!("killed by signal {signal}"),
        other => println!("goes on: {other:?}"),
    }
    Ok(())
}

fn find(process: &str, name: &str) -> Result<Thread, CommandError> {
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = entry?.file_name().to_string_lossy().parse().map(Thread);
        if let Some(thread) = thread.ok().filter(|thread| thread.name() == name) {
            return Ok(thread);
        }
    }
    Err(format!("process {process} has no thread {name}").into())
}
