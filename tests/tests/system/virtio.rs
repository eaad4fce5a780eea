//! Virtio over PCI: what all of a guest's virtio devices have in common, by its entropy device, which
//! every guest with a PCI host has.

use tests::harness::{Board, Failure, Guest, Host, Launch, TestResult};

/// An assigned function, so that there is a PCI host.
const EDU: &str = "0000:00:07.0";

/// The entropy device, the last function.
const ENTROPY: &str = "0000:00:02.0";

fn boot() -> Result<Host, Failure> {
    let host = Board::new().cpus(2).device("edu,addr=7").boot()?;
    host.bind(EDU)?;
    Ok(host)
}

/// Reads randomness `times` times from the device, and checks that it is some.
fn read(guest: &mut Guest, times: usize) -> TestResult {
    assert_eq!(guest.sh("cat /sys/class/misc/hw_random/rng_current")?.trim(), "virtio_rng.0");
    let sums = guest.sh(&format!(
        "for i in $(seq {times}); do dd if=/dev/hwrng bs=64 count=1 2>/dev/null | md5sum; done"
    ))?;
    let mut sums: Vec<&str> = sums.lines().collect();
    assert_eq!(sums.len(), times, "{sums:?}");
    sums.sort_unstable();
    sums.dedup();
    assert_eq!(sums.len(), times, "the same twice: {sums:?}");
    Ok(())
}

/// How often the device has interrupted the guest.
fn interrupts(guest: &mut Guest) -> Result<u64, Failure> {
    let awk = "awk '/virtio/ { for (i = 2; i < NF; i++) if ($i ~ /^[0-9]+$/) n += $i } END { print n + 0 }'";
    let count = guest.sh(&format!("{awk} /proc/interrupts"))?;
    Ok(count.trim().parse().unwrap_or_default())
}

#[test]
fn requests_cause_interrupts_and_no_exits() -> TestResult {
    let host = boot()?;
    for gic in ["--gic 3", "--gic 3,its=off"] {
        let options = format!("--vfio-pci {EDU} --cpus 2 {gic}");
        let mut guest = host.launch(&Launch::model().with(&options))?;
        read(&mut guest, 4)?;
        let before = interrupts(&mut guest)?;
        let reads =
            "i=0; while [ $i -lt 20 ]; do head -c 64 /dev/hwrng >/dev/null; i=$((i+1)); done";
        let nothing = host.exits_during(&mut guest, &reads.replace("/dev/hwrng", "/dev/zero"))?;
        let with_reads = host.exits_during(&mut guest, reads)?;
        let after = interrupts(&mut guest)?;
        assert!(after >= before + 100, "{gic}: {before} to {after} interrupts");
        if gic == "--gic 3" {
            // What remains is the console's: more of it on a busy host, but less than an exit for each.
            assert!(with_reads <= nothing + 50, "{with_reads} exits, {nothing} without the device");
        }
        // The driver goes and comes, which resets the device; then the function is reset.
        guest.sh(
            "cd /sys/bus/virtio/drivers/virtio_rng && echo virtio0 >unbind && echo virtio0 >bind",
        )?;
        read(&mut guest, 4)?;
        guest.sh(&format!(
            "echo virtio0 >/sys/bus/virtio/drivers/virtio_rng/unbind && \
             echo 1 >/sys/bus/pci/devices/{ENTROPY}/reset && \
             echo virtio0 >/sys/bus/virtio/drivers/virtio_rng/bind"
        ))?;
        read(&mut guest, 4)?;
        // Its registers are moved while the guest runs.
        guest.sh(&format!(
            "cd /sys/bus/pci && echo 1 >devices/{ENTROPY}/remove && echo 1 >rescan && \
             until [ -e /sys/bus/virtio/drivers/virtio_rng/virtio* ]; do sleep 0.1; done"
        ))?;
        let name = guest.sh("cat /sys/class/misc/hw_random/rng_current")?;
        assert_eq!(name.trim(), "virtio_rng.0");
        guest.sh("dd if=/dev/hwrng bs=64 count=1 of=/dev/null 2>/dev/null")?;
        assert_eq!(guest.power_off()?, 0);
    }
    Ok(())
}
