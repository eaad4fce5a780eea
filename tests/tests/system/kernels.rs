//! Debian's kernels of three releases, unmodified, with a DMA controller: an old one, that of the stable
//! release, and the newest that the archive has for it.

use tests::artifacts::Artifacts;
use tests::harness::{BACKENDS, Board, Failure, Host, Launch, PLATFORM_DMA, TestResult};

/// Where a guest has its DMA controller.
const DMA: &str = "0xc000000";

/// What the kernel's driver says of a controller that it takes.
const FOUND: &str = "Loaded driver for PL330 DMAC-241330";

/// The guests' kernels: files on the host, and how each one's release begins.
fn kernels() -> Result<Vec<(String, &'static str)>, Failure> {
    let others = Artifacts::from_env().map_err(|error| Failure::new(error.to_string()))?;
    // bookworm's is of a series that is kept; what backports have changes.
    let releases = [("other0", "6.1."), ("stock", "6.12."), ("other1", "")];
    assert_eq!(others.other_kernels.len(), 2, "cargo model setup");
    Ok(releases.map(|(name, release)| (format!("/k/{name}"), release)).into())
}

fn boot(gic: u8) -> Result<Host, Failure> {
    let host = Board::new().gic(gic).stock().other_kernels().boot()?;
    host.bind(PLATFORM_DMA[0])?;
    Ok(host)
}

/// Boots a guest with this kernel, and has it copy by its DMA controller, which its own driver has found.
/// Returns the kernel's release.
fn drives_dma(host: &Host, kernel: &str, options: &str) -> Result<String, Failure> {
    // The last 64 MiB of memory are the DMA controller's.
    let launch = Launch::stock()
        .kernel(kernel)
        .initrd(&format!("{kernel}.cpio"))
        .cmdline("mem=448M")
        .with(&format!("--vfio-platform {} {options}", PLATFORM_DMA[0]));
    let mut guest = host.launch(&launch)?;
    let release = guest.sh("uname -r && nproc")?.trim().to_owned();
    assert_eq!(guest.log_of(FOUND)?.matches(FOUND).count(), 1, "{release}");
    assert!(guest.sh("ls /sys/class/dma")?.contains("dma0chan7"), "{release}");
    // The kernels have no DMA test of their own, and their driver would be in the way.
    let driver = "/sys/bus/amba/drivers/dma-pl330";
    guest.sh(&format!("basename {driver}/*.dma-controller >{driver}/unbind"))?;
    let (program, from, to) = ("0x5c000000", "0x5c001000", "0x5c002000");
    let copied = guest.sh(&format!(
        "for byte in $(seq 20); do
             agent memory fill {from} 4096 $byte &&
                 agent pl330 {DMA} copy 1 {program} {from} {to} 4096 >/dev/null &&
                 agent memory check {to} 4096 $byte && echo copied
         done"
    ))?;
    assert_eq!(copied.matches("copied").count(), 20, "{release}: {copied}");
    assert_eq!(guest.power_off()?, 0);
    Ok(release)
}

#[test]
fn debians_kernels_old_and_new_drive_a_device() -> TestResult {
    let host = boot(3)?;
    let mut releases = Vec::new();
    for (kernel, release) in kernels()? {
        let found = drives_dma(&host, &kernel, "--cpus 2")?;
        assert!(found.starts_with(release) && found.ends_with("\n2"), "{kernel}: {found}");
        assert!(!releases.contains(&found), "{releases:?}");
        releases.push(found);
    }
    Ok(())
}

#[test]
#[ignore = "takes long: cargo model test --soak"]
fn debians_kernels_drive_it_on_any_machine() -> TestResult {
    for gic in [2, 3] {
        let host = boot(gic)?;
        for (kernel, _) in kernels()? {
            for (backend, options) in [(BACKENDS[0], "--cpus 4"), (BACKENDS[1], "--serial pl011")] {
                drives_dma(&host, &kernel, &format!("--iommu {backend} {options}"))?;
            }
        }
    }
    Ok(())
}
