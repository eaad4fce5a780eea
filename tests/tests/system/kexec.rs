//! What a guest's kernel does with itself while a device is its own: it makes way for another one,
//! and crashes.

use tests::harness::{Board, DmaTest, Guest, Host, Launch, PLATFORM_DMA, TestResult};

const NAME: &str = PLATFORM_DMA[0];
/// What the kernels that follow are told.
const CMDLINE: &str = "console=ttyS0 quiet strait.do=shell";

/// Puts a kernel into guests' initrds: into `/tmp/inner.cpio`, and with that one into
/// `/tmp/outer.cpio`, at `/k/model` and `/k/next.cpio`.
fn kernels_in_initrds(host: &Host) -> TestResult {
    for (inner, outer) in [("/k/guest", "/tmp/inner"), ("/tmp/inner", "/tmp/outer")] {
        host.sh(&format!(
            "rm -rf /tmp/more && mkdir -p /tmp/more/k && cd /tmp/more && \
             ln -s /k/model k/model && cp {inner}.cpio k/next.cpio && \
             find k | cpio -o -L -H newc 2>/dev/null | cat /k/guest.cpio - >{outer}.cpio"
        ))?;
    }
    Ok(())
}

/// Waits until the guest's next kernel has come up.
fn comes_up_again(guest: &mut Guest) -> TestResult {
    guest.process().wait_for("GUEST READY: shell")?;
    guest.process().wait_for("\n")?;
    guest.sh("true").map(|_| ())
}

#[test]
fn a_device_works_after_kexec_and_in_a_crash_kernel() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(NAME)?;
    kernels_in_initrds(&host)?;
    let launch = Launch::model()
        .initrd("/tmp/outer.cpio")
        .memory("512M")
        .with(&format!("--cpus 2 --vfio-platform {NAME}"));
    let mut guest = host.launch(&launch)?;
    DmaTest::default().pass(&mut guest)?;

    guest.begin(&format!("agent kexec /k/model /k/next.cpio '{CMDLINE} crashkernel=128M'"))?;
    comes_up_again(&mut guest)?;
    assert!(guest.sh("cat /proc/cmdline")?.contains("crashkernel"));
    assert_eq!(guest.sh("nproc")?.trim(), "2");
    DmaTest::default().pass(&mut guest)?;

    guest.sh(&format!("agent kexec-on-crash /k/model /k/next.cpio '{CMDLINE} nr_cpus=1'"))?;
    guest.begin("echo c >/proc/sysrq-trigger")?;
    comes_up_again(&mut guest)?;
    guest.sh("[ -s /proc/vmcore ] && ! [ -e /k/model ]")?;
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
