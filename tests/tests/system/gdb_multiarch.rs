//! Debian's GDB, with the symbols of the guest's kernel, in a driver of that.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use tests::harness::{
    Board, DmaTest, Failure, Forward, Launch, PLATFORM_DMA, TestResult, symbol_file,
};

/// Where the guest's debugger connects, on the model host.
const SOCKET: &str = "/tmp/gdb";

/// What GDB prints before the guest may go on.
const READY: &str = "strait: ready";

/// How long it may take, in seconds.
const TIMEOUT: Duration = Duration::from_secs(240);

/// Stops in the driver's probe, steps, looks where its copy of the controller's identification register is,
/// and watches that be written when the driver probes the controller again.
const SCRIPT: &str = "\
set pagination off
set confirm off
break pl330_probe
echo strait: ready\\n
continue
backtrace 2
set $entry = $pc
stepi
stepi
printf \"stepped %d\\n\", $pc - $entry
set $end = $lr
tbreak devm_kmalloc
continue
set $size = $x1
finish
set $driver = $x0
tbreak *$end
continue
find /w1 $driver, +$size, ID
set $shadow = $_ - $driver
continue
tbreak devm_kmalloc
continue
finish
set $driver = $x0
watch *(unsigned int *) ($driver + $shadow)
continue
printf \"the shadow is %#x\\n\", *(unsigned int *) ($driver + $shadow)
info threads
detach
";

/// A debugger, with the files that it reads.
struct Gdb {
    child: Child,
    files: [String; 2],
}

impl Drop for Gdb {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

impl Gdb {
    /// Starts it with the kernel's symbols, connected.
    fn start(socket: &Forward, symbols: &[u8], script: &str) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::new(format!("gdb-multiarch: {error}"));
        let base = socket.path().display();
        let (vmlinux, commands) = (format!("{base}.vmlinux"), format!("{base}.gdb"));
        fs::write(&vmlinux, symbols).map_err(failed)?;
        fs::write(&commands, script).map_err(failed)?;
        let mut gdb = Command::new("gdb-multiarch");
        gdb.args(["-nx", "-q", "-batch", "-ex", &format!("target remote {base}"), "-x", &commands]);
        let child = gdb.arg(&vmlinux).stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        Ok(Self { child: child.map_err(failed)?, files: [vmlinux, commands] })
    }

    /// What it says up to a line, or to its end.
    fn said(&mut self, line: Option<&str>) -> Result<String, Failure> {
        let mut output =
            BufReader::with_capacity(1, self.child.stdout.as_mut().expect("it is a pipe"));
        let mut said = String::new();
        let read = match line {
            None => output.read_to_string(&mut said),
            Some(line) => loop {
                match output.read_line(&mut said) {
                    Ok(1..) if !said.trim_end().ends_with(line) => {}
                    other => break other,
                }
            },
        };
        read.map_err(|error| Failure::new(format!("gdb-multiarch: {error}")))?;
        Ok(said)
    }
}

#[test]
fn debian_s_gdb_debugs_a_driver_of_the_guest_s_kernel() -> TestResult {
    let host = Board::new().cpus(2).param("nokaslr").boot()?;
    let kallsyms = host.sh("grep -i ' [tw] ' /proc/kallsyms")?;
    host.bind(PLATFORM_DMA[0])?;
    let options = format!("--cpus 2 --gdb unix:{SOCKET} --vfio-platform {}", PLATFORM_DMA[0]);
    let mut guest = host.launch(&Launch::model().cmdline("nokaslr").with(&options))?;
    let device = guest.sh("cd /sys/bus/amba/drivers/dma-pl330 && echo *.dma*")?;
    let id = guest.sh(&format!("cat /sys/bus/amba/devices/{}/id", device.trim()))?;
    let socket = host.forward(SOCKET)?;
    let script = SCRIPT.replace("ID", &format!("0x{}", id.trim()));
    let mut gdb = Gdb::start(&socket, &symbol_file(&kallsyms), &script)?;
    let (ended, ends) = mpsc::channel::<()>();
    let pid = gdb.child.id();
    let watchdog = thread::spawn(move || {
        if ends.recv_timeout(TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            // SAFETY: takes numbers; the child isn't waited for before this thread has ended.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
        }
    });
    let said = gdb.said(Some(READY))?;
    let again = "for i in 1 2; do echo $d >unbind; echo $d >bind; done";
    guest.begin(&format!("cd /sys/bus/amba/drivers/dma-pl330; d={}; {again}", device.trim()))?;
    let said = said + &gdb.said(None)?;
    drop(ended);
    watchdog.join().expect("it doesn't panic");
    for expected in [
        "pl330_probe ()",
        " in amba_probe ()",
        "stepped 8\n",
        "Hardware watchpoint",
        "Old value = 0\n",
        "(vCPU 1)",
        "detached",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let id = u32::from_str_radix(id.trim(), 16).expect("an identification is hexadecimal");
    assert!(said.contains(&format!("the shadow is {id:#x}\n")), "{said}");
    assert_eq!(guest.finish()?.0, 0);
    DmaTest::default().pass(&mut guest)?;
    Ok(())
}
