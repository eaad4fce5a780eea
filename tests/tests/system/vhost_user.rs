//! Virtio devices of other processes: of programs that strait starts, and of backends that are there.

use tests::harness::{Board, Failure, Host, PLATFORM_DMA, TestResult};

/// A host that has the programs of a Debian system, whose disk is mounted at `/debian`.
fn with_programs(board: Board) -> Result<Host, Failure> {
    let host = board.debian().device("nvme,drive=debian,serial=one").boot()?;
    host.mount_debian("/dev/nvme0n1", "ro")?;
    Ok(host)
}

#[test]
fn a_guest_shares_directories_and_drives_an_assigned_device() -> TestResult {
    let host = with_programs(Board::new())?;
    let dma = PLATFORM_DMA[0];
    host.bind(dma)?;
    host.sh("mkdir /tmp/data && echo from the host >/tmp/data/in")?;
    let shares = "--share data=/tmp/data --share fixed=/debian,ro";
    let mut guest = host.guest(&format!("{shares} --vfio-platform {dma}"))?;
    guest.sh(
        "mkdir /data /fixed && mount -t virtiofs data /data && mount -t virtiofs fixed /fixed",
    )?;
    assert_eq!(guest.sh("cat /data/in")?.trim(), "from the host");
    guest.begin("dd if=/dev/urandom of=/data/out bs=64k count=64 && sync && md5sum /data/out")?;
    let (status, said) = guest.finish()?;
    let sum = said.split_whitespace().find(|word| word.len() == 32).unwrap_or_default();
    assert_eq!((status, host.sh("md5sum </tmp/data/out")?.contains(sum)), (0, true), "{said}");
    assert!(guest.sh("cat /fixed/etc/os-release")?.contains("Debian"));
    assert_ne!(guest.run("touch /fixed/new")?.0, 0);
    assert!(guest.log_of("PL330")?.contains("Loaded driver for PL330 DMAC"));
    tests::harness::DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    // Nothing of them is left, and nothing where their sockets were.
    host.sh("! pidof virtiofsd && [ -z \"$(find /tmp -name '*socket*')\" ]")?;
    Ok(())
}

#[test]
fn a_shared_directory_is_a_guest_s_root() -> TestResult {
    let host = with_programs(Board::new())?;
    let root = "rootfstype=virtiofs root=system ro init=/usr/bin/cat -- /etc/os-release";
    let mut process = host.strait(&format!(
        "run --kernel /k/model --share system=/debian,ro --cmdline 'console=ttyS0 panic=-1 {root}'"
    ))?;
    process.wait_for("Debian GNU/Linux")?;
    process.wait_for("Attempted to kill init")?;
    process.exit_status()?;
    host.sh("! pidof virtiofsd")?;
    Ok(())
}
