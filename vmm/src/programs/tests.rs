//! Programs of tests, as shells and sleeps.

use std::io::Read;
use std::os::unix::net::UnixStream;

use super::*;

fn start(script: &str) -> Started {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).env("FD", theirs.as_raw_fd().to_string());
    let child = spawn(&mut command, &theirs).unwrap();
    Started { stream: ours, file: "/bin/sh".into(), child }
}

fn program(script: &str) -> (Served, ChildProgram) {
    ChildProgram::new(start(script)).unwrap()
}

#[test]
fn a_program_has_the_descriptor_and_ends_with_its_handle() {
    let (mut served, program) = program("exec sleep 1000");
    let pid = program.child.id();
    drop(program);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    // What it had is closed.
    assert_eq!(served.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn how_a_program_ended_is_told() {
    for (script, expected) in [
        // It has the descriptor.
        ("test -S /proc/self/fd/$FD && exit 3", Some("ended with status 3")),
        ("kill -9 $$", Some("was ended by signal 9")),
        ("exec sleep 1000", None),
    ] {
        let (mut served, mut program) = program(script);
        let telling = thread::spawn(move || {
            let since = Instant::now();
            while since.elapsed() < Duration::from_secs(1) && program.descriptors()[0] >= 0 {
                program.tell();
            }
        });
        assert_eq!(served.program.ending().as_deref(), expected, "{script}");
        telling.join().unwrap();
    }
}

/// Waits until a program is to be started again, or nobody can ask for that.
fn await_request(program: &ChildProgram) {
    let [_, fd] = program.descriptors();
    let mut ready = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure, as the count says.
    assert_eq!(unsafe { libc::poll(&raw mut ready, 1, 60_000) }, 1);
}

#[test]
fn a_program_is_started_again_unless_it_ends_at_once() {
    let (mut served, mut program) = program("exec sleep 1000");
    for (age, is_started) in [(LIFE, true), (Duration::ZERO, false)] {
        let pid = program.child.id();
        program.since = Instant::now().checked_sub(age).unwrap();
        // Nobody has asked for it.
        program.serve_restart(|| unreachable!()).unwrap();
        let asking = thread::spawn(move || (served.program.restart(), served));
        await_request(&program);
        program.serve_restart(|| Ok(start("exec sleep 1000"))).unwrap();
        let (restarted, then) = asking.join().unwrap();
        served = then;
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(program.child.id() != pid, is_started);
        assert_eq!(restarted.is_ok(), is_started);
        if let Ok(mut stream) = restarted {
            // The other end is the new program's.
            stream.set_nonblocking(true).unwrap();
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
    }
    // It is asked for nothing by who has ended. What other tests are about to execute has copies of all
    // descriptors until then.
    drop(served);
    await_request(&program);
    program.serve_restart(|| unreachable!()).unwrap();
    assert_eq!(program.descriptors()[1], -1);
}

#[test]
fn an_answer_that_comes_late_is_the_next_one_s() {
    let (mut served, mut program) = program("exec sleep 1000");
    let long_ago = || Instant::now().checked_sub(LIFE).unwrap();
    program.since = long_ago();
    let mut ask = |time| served.program.restart_within(time);
    let late = |e: io::Error| assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    let short = Duration::from_millis(50);
    late(ask(short).unwrap_err());
    // It waits on, and asks for no third program.
    late(ask(short).unwrap_err());
    program.serve_restart(|| Ok(start("exec sleep 1000"))).unwrap();
    let second = program.child.id();
    program.since = long_ago();
    let mut stream = ask(Duration::from_secs(300)).unwrap();
    program.serve_restart(|| unreachable!()).unwrap();
    assert!(program.child.try_wait().unwrap().is_none() && program.child.id() == second);
    stream.set_nonblocking(true).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    // An answer that tells of a program that has ended since is none.
    late(ask(short).unwrap_err());
    program.serve_restart(|| Ok(start("exit 0"))).unwrap();
    while program.descriptors()[0] >= 0 {
        program.tell();
        thread::sleep(Duration::from_millis(1));
    }
    program.since = long_ago();
    late(ask(short).unwrap_err());
    program.serve_restart(|| Ok(start("exec sleep 1000"))).unwrap();
    ask(Duration::from_secs(300)).unwrap();
    assert!(program.child.try_wait().unwrap().is_none());
}

#[test]
fn a_program_that_cannot_be_started_is_not_tried_again_at_once() {
    let (mut served, mut program) = program("exit 0");
    program.since = Instant::now().checked_sub(LIFE).unwrap();
    let begun = Instant::now();
    let asked = served.program.restart_within(Duration::from_millis(50)).unwrap_err();
    assert_eq!(asked.kind(), io::ErrorKind::TimedOut);
    let start = || Err(Error::new("there is no such program"));
    assert!(program.serve_restart(start).is_err() && program.since >= begun);
    let answer = served.program.answer(Duration::from_secs(300)).unwrap_err();
    assert_eq!(answer.kind(), io::ErrorKind::Other);
}

/// Has another process trace this one, which then doesn't end for its parent while that process is there
/// (ptrace(2)): as little as one that waits in the kernel.
fn trace(pid: u32) -> libc::pid_t {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let traced = pid.cast_signed();
    let nothing = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the new process makes system calls only.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: these take numbers, and a byte that is there.
            unsafe {
                // It doesn't outlive a test that fails.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let done = libc::ptrace(libc::PTRACE_SEIZE, traced, nothing, nothing) == 0;
                libc::write(theirs.as_raw_fd(), [u8::from(done)].as_ptr().cast(), 1);
                libc::pause();
            }
        },
        tracer => {
            let mut done = [0];
            ours.read_exact(&mut done).unwrap();
            assert_eq!(done, [1]);
            tracer
        }
    }
}

#[test]
#[cfg_attr(
    target_arch = "aarch64",
    ignore = "qemu-aarch64-static, which runs it there, has no ptrace"
)]
fn nothing_waits_for_a_program_that_sigkill_does_not_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    let mut command = Command::new("/bin/sleep");
    // SAFETY: it makes a system call only.
    unsafe {
        command.arg("1000").pre_exec(|| {
            // Where only ancestors may trace (Yama), it lets others, too; else there is no such option.
            libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY);
            Ok(())
        });
    }
    let child = spawn(&mut command, &theirs).unwrap();
    let started = Started { stream: ours, file: "/bin/sleep".into(), child };
    let (mut served, mut program) = ChildProgram::new(started).unwrap();
    let tracer = trace(program.child.id());
    program.since = Instant::now().checked_sub(LIFE).unwrap();
    served.program.restart_within(Duration::from_millis(50)).unwrap_err();
    let error = program.serve_restart(|| unreachable!()).unwrap_err();
    assert!(error.log_text().contains("SIGKILL"), "{}", error.log_text());
    served.program.answer(Duration::from_secs(300)).unwrap_err();
    // Would wait for ever.
    drop(program);
    // SAFETY: these take numbers, and a status that nobody wants.
    unsafe {
        libc::kill(tracer, libc::SIGKILL);
        libc::waitpid(tracer, std::ptr::null_mut(), 0);
    }
}

#[test]
fn programs_are_found_by_name() {
    assert_eq!(find("sh", &["/no/such/directory", "/bin"]), Some("/bin/sh".into()));
    assert!(find("sh", &[]).is_some());
    assert_eq!(find("no-such-program", &["/bin"]), None);
    assert_eq!(find("etc", &["/"]), None);
}
