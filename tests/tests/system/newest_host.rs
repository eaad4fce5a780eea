//! The newest Linux as the host: Debian's, unmodified, which assigns PCI functions by VFIO's containers, and, for
//! long tests, one of the same sources with all that the model's host has: iommufd, platform devices.

use tests::harness::{
    AMBA_DMA, BACKENDS, Board, DmaTest, Failure, Guest, Host, Launch, PLATFORM_DMA, TestResult,
    exchange, payload,
};

use crate::check::{assignable, check, complains};
use crate::net::{self, connect, make_tap};
use crate::pci::express::{PHYSICAL, SOURCE, check_tokens, make_virtual_function, with_ports};
use crate::sandbox::{check_files, check_threads};

/// The disk that is assigned whole.
const DISK: &str = "0000:00:05.0";

/// A board with disks, one of which makes virtual functions, and a payload that powers off.
fn board() -> Board {
    with_ports(Board::new())
        .disk("disk", 64 << 20)
        .device("nvme,drive=disk,serial=one,addr=5")
        .file("k/off", payload::power_off())
}

/// Boots one with a kernel that is newer than any release that strait is tried on otherwise.
fn boot(board: Board) -> Result<Host, Failure> {
    let host = board.boot()?;
    let release = host.sh("uname -r")?;
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    assert!(version >= (6, 17), "{release}");
    host.sh("echo Y >/sys/module/vfio_pci/parameters/enable_sriov")?;
    Ok(host)
}

/// Has the guest read of its disk what it has written there, by interrupts.
fn check_disk(guest: &mut Guest) -> TestResult {
    guest.sh(
        "seq 1 20000 >/tmp/numbers && dd if=/tmp/numbers of=/dev/nvme0n1 bs=64k conv=fsync 2>/dev/null && \
         echo 3 >/proc/sys/vm/drop_caches && cmp -n 100000 /tmp/numbers /dev/nvme0n1",
    )?;
    let interrupts = guest.interrupts()?;
    assert!(interrupts.sum("nvme0q") > 0, "{interrupts:?}");
    Ok(())
}

/// Checks what the guest's process gave up.
fn check_sandbox(host: &Host, guest: &Guest) -> TestResult {
    let vmm = host.vmm(guest.pid()?)?;
    check_threads(host, vmm, |id| id >= 0x7000_0000)?;
    check_files(host, vmm)?;
    let filters = host.sh(&format!("grep -h ^Seccomp: /proc/{vmm}/task/*/status | sort -u"))?;
    assert_eq!(filters.trim(), "Seccomp:\t2");
    Ok(())
}

#[test]
fn debian_s_newest_kernel_assigns_pci_functions() -> TestResult {
    let host = boot(board().debian_newest())?;
    let missing = [
        ("vfio-platform", "degraded", "CONFIG_VFIO_PLATFORM"),
        ("vfio-amba", "degraded", "CONFIG_VFIO_AMBA"),
        ("iommufd", "degraded", "build the host's kernel with CONFIG_IOMMUFD"),
        // For the devices that have no VFIO driver.
        ("VFIO containers", "degraded", "allow_unsafe_interrupts"),
    ];
    let diagnosis = check(&host, "strait", "")?;
    complains(&diagnosis, &missing);
    assert_eq!(assignable(&diagnosis), ["pci", "vfio-user"], "{diagnosis:#}");
    let text = host.sh("strait check")?;
    assert!(text.contains("files, Unix sockets, TCP and UDP ports, signals"), "{text}");

    // What can't be had is refused with what is missing.
    for (options, said) in [
        (format!("--vfio-platform {}", PLATFORM_DMA[0]), "CONFIG_VFIO_PLATFORM"),
        (format!("--vfio-platform {}", AMBA_DMA[0]), "CONFIG_VFIO_AMBA"),
        (format!("--bind --vfio-pci {DISK} --iommu iommufd"), "CONFIG_IOMMUFD"),
    ] {
        let refused = host.run(&format!("strait run --kernel /k/off {options}"))?;
        assert_eq!(refused.status, 1, "{}", refused.errors);
        assert!(refused.errors.contains(said), "{said}: {}", refused.errors);
    }
    host.sh("strait run --kernel /k/off --cpus 2 --stats /tmp/stats")?;
    host.sh("grep -q '\"ending\": \"power-off\"' /tmp/stats")?;

    // What a guest has of this kernel, in the sandbox, of which the kernel traces what it is asked to forbid.
    host.sh(&format!("strait device bind {DISK} {SOURCE} {PHYSICAL}"))?;
    make_tap(&host, "tap0", 0)?;
    let traced = "/sys/kernel/tracing/events/landlock/landlock_create_ruleset";
    host.sh(&format!("mount -t tracefs none /sys/kernel/tracing && echo 1 >{traced}/enable"))?;
    let mut guest = host.guest(&format!(
        "--vfio-pci {DISK} --net tap=tap0,vhost=on --vsock cid=3 --cpus 2 --stats /tmp/stats"
    ))?;
    let trace = host.sh("grep landlock_create_ruleset: /sys/kernel/tracing/trace")?;
    for right in ["ioctl_dev", "resolve_unix", "connect_tcp", "bind_udp", "signal"] {
        assert!(trace.to_lowercase().contains(right), "{right}: {trace}");
    }
    check_sandbox(&host, &guest)?;
    check_disk(&mut guest)?;
    connect(&mut guest)?;
    exchange(&host, &mut guest, [net::HOST, net::GUEST], 100_000)?;
    let receiver = host.start("agent receive vsock:any:5000")?;
    guest.sh("agent send vsock:2:5000 10000")?;
    assert_eq!(receiver.exit_status()?, 0);
    assert_eq!(guest.power_off()?, 0);
    host.sh("grep -q '\"exits\": [1-9]' /tmp/stats")?;

    check_tokens(&host, &make_virtual_function(&host)?, "container")
}

#[test]
#[ignore = "takes long: cargo model test --soak"]
fn the_newest_kernel_with_all_options_assigns_every_kind() -> TestResult {
    let host = boot(board().newest())?;
    complains(&check(&host, "strait", "")?, &[]);
    make_tap(&host, "tap0", 0)?;
    let devices = [PLATFORM_DMA[0], AMBA_DMA[0], DISK, SOURCE, PHYSICAL];
    host.sh(&format!("strait device bind {}", devices.join(" ")))?;
    let function = make_virtual_function(&host)?;
    for backend in BACKENDS {
        let [platform, amba, disk, ..] = devices;
        let launch = Launch::model().with(&format!(
            "--iommu {backend} --vfio-platform {platform} --vfio-platform {amba} --vfio-pci {disk} \
             --net tap=tap0,vhost=on --cpus 2 --stats /tmp/stats"
        ));
        let mut guest = host.launch(&launch)?;
        check_sandbox(&host, &guest)?;
        check_disk(&mut guest)?;
        // How often each line is handled isn't looked at: KVM of 7.3 takes an interrupt for ended only where a vCPU
        // left the guest during its handler, and raises it again and again until then (`vgic_v3_fold_lr`).
        let test = DmaTest { channels: 16, copies: 5, ..DmaTest::default() };
        test.check(&guest.sh(&test.command())?).unwrap();
        connect(&mut guest)?;
        exchange(&host, &mut guest, [net::HOST, net::GUEST], 100_000)?;
        assert_eq!(guest.power_off()?, 0);
        host.sh(&format!("grep -q '\"{backend}\"' /tmp/stats"))?;
        check_tokens(&host, &function, backend)?;
    }
    Ok(())
}
