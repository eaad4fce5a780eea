//! What a program costs.

use std::fs::File;
use std::io;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::CommandError;

/// Runs a command `runs` times with its output thrown away and prints a line for each run: wall
/// time from process start to process end in ns, CPU time in ns, largest RSS in KiB, exit status
/// (or 128 and the signal).
pub(crate) fn run(runs: &str, words: &[&str]) -> Result<(), CommandError> {
    let runs = crate::number(runs)?;
    let [program, arguments @ ..] = words else {
        return Err("nothing to measure".into());
    };
    let mut lines = String::new();
    for _ in 0..runs {
        let cost = once(Command::new(program).args(arguments))?;
        lines += &format!("{} {} {} {}\n", cost.wall, cost.cpu, cost.rss, cost.status);
    }
    // At the end, so that nothing carries our output while the next run is measured.
    print!("{lines}");
    Ok(())
}

struct Cost {
    wall: u128,
    cpu: u128,
    rss: i64,
    status: i32,
}

fn once(command: &mut Command) -> Result<Cost, CommandError> {
    let output = File::create("/dev/null")?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let start = Instant::now();
    let child = command.spawn()?;
    let pid = i32::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: all zeroes is a valid rusage, which the call below fills in.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both places are writable for the duration of the call, and the child is ours and
    // not waited for elsewhere.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } != pid {
        return Err(io::Error::last_os_error().into());
    }
    let wall = start.elapsed().as_nanos();
    let status = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    let cpu = nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime);
    Ok(Cost { wall, cpu, rss: usage.ru_maxrss, status })
}

fn nanoseconds(time: libc::timeval) -> u128 {
    let seconds = u128::try_from(time.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u128::try_from(time.tv_usec).unwrap_or_default() * 1000
}
