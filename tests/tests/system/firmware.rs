//! Guests that begin with firmware, as it is packaged for QEMU's `virt`.

use tests::harness::{Board, Failure, Host, Process, TestResult};

/// How long firmware may take for anything, in seconds.
const TIMEOUT: u64 = 300;

/// U-Boot at its prompt, with what it saves in `/tmp/env`.
fn u_boot(host: &Host) -> Result<Process, Failure> {
    let command = "exec strait run --firmware /k/u-boot,vars=/tmp/env 2>&1";
    let mut process = host.start(command)?.timeout(TIMEOUT);
    process.wait_for("stop autoboot")?;
    process.send("\r")?;
    process.wait_for("=> ")?;
    Ok(process)
}

#[test]
fn u_boot_keeps_its_environment_in_a_file() -> TestResult {
    let host = Board::new().firmware().boot()?;
    let mut process = u_boot(&host)?;
    // Another guest's variables would be lost.
    let second = host.run("strait run --firmware /k/u-boot,vars=/tmp/env 2>&1")?;
    assert!(second.output.contains("/tmp/env is in use by another program"), "{}", second.output);
    process.send("setenv kept variable; saveenv\r")?;
    process.wait_for("Writing to Flash... done")?;
    process.send("reset\r")?;
    assert_eq!(process.exit_status()?, 3);
    let mut process = u_boot(&host)?;
    process.send("printenv kept\r")?;
    process.wait_for("kept=variable")?;
    process.send("poweroff\r")?;
    assert_eq!(process.exit_status()?, 0);
    Ok(())
}
