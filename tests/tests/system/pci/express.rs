//! What the host's PCI Express driver has a part in: errors that it finds (AER), and virtual functions (SR-IOV). The
//! host has Debian's kernel, as the model's has neither.

use tests::harness::{Board, Failure, Guest, Host, Launch, TestResult};

use super::FIRST;

/// A source of random numbers, and a disk with virtual functions, each behind a root port of its own.
pub const SOURCE: &str = "0000:01:00.0";
pub const PHYSICAL: &str = "0000:02:00.0";

const TOKEN: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";

/// A board with these, whose root ports are in groups of their own (ACS). In the group of a guest's function they
/// would lose their messages to VFIO, and with them what functions report.
pub fn with_ports(board: Board) -> Board {
    board
        .param("pci=config_acs=xx11101@pci:1b36:000c")
        .device("pcie-root-port,id=first,chassis=1,addr=6")
        .device("virtio-rng-pci,bus=first,id=victim,aer=on,iommu_platform=on")
        .device("pcie-root-port,id=second,chassis=2,addr=7")
        .device("nvme-subsys,id=subsystem")
        .device(
            "nvme,bus=second,serial=pf,subsys=subsystem,sriov_max_vfs=2,sriov_vq_flexible=4,\
             sriov_vi_flexible=2",
        )
}

fn boot() -> Result<Host, Failure> {
    let board = Board::new().debian_kernel().device("nvme,drive=debian,serial=system,addr=5");
    let host = with_ports(board).boot()?;
    host.until("ls /dev/nvme*n1")?;
    host.mount_debian(host.sh("ls /dev/nvme*n1")?.trim(), "ro")?;
    host.sh("mount -o rbind /dev /debian/dev && mount -o rbind /sys /debian/sys && \
         chroot /debian env PATH=/usr/bin:/usr/sbin modprobe vfio-pci enable_sriov=1 && \
         chroot /debian env PATH=/usr/bin:/usr/sbin modprobe vfio_iommu_type1")?;
    Ok(host)
}

/// A guest with these devices, which has its shell.
fn guest(host: &Host, options: &str) -> Result<Guest, Failure> {
    host.launch(&Launch::model().with(options))
}

/// Has the source report an error that can't be corrected, and its guest lose it.
fn report_error(host: &Host, error: &str) -> TestResult {
    let mut guest = guest(host, &format!("--vfio-pci {SOURCE}"))?;
    assert_ne!(guest.sh("head -c 16 /dev/hwrng | hexdump")?.trim(), "");
    host.monitor(&format!("pcie_aer_inject_error victim {error}"))?;
    guest.process().wait_for(&format!("{SOURCE}: the host can't correct an error of it"))?;
    let config = guest.sh(&format!("hexdump -n 4 /sys/bus/pci/devices/{FIRST}/config"))?;
    assert!(config.contains("ffff ffff"), "{config}");
    guest.sh("uname")?;
    // Its driver waits for ever for a device to be reset.
    guest.process().signal(15)?;
    assert_eq!(guest.exit_status()?, 128 + 15);
    Ok(())
}

#[test]
fn errors_of_functions_and_tokens_of_virtual_ones_are_the_host_s() -> TestResult {
    let host = boot()?;
    host.sh(&format!("strait device bind {SOURCE} {PHYSICAL}"))?;
    for error in ["COMP_TIME", "MALF_TLP"] {
        report_error(&host, error)?;
    }

    let function = make_virtual_function(&host)?;
    check_tokens(&host, &function, "container")
}

/// Has the disk, which VFIO has, make a virtual function, and gives that to VFIO, too. Returns its name.
pub fn make_virtual_function(host: &Host) -> Result<String, Failure> {
    let device = format!("/sys/bus/pci/devices/{PHYSICAL}");
    host.sh(&format!("echo 1 >{device}/sriov_numvfs"))?;
    let link = host.sh(&format!("readlink {device}/virtfn0"))?;
    let name = link.trim().trim_start_matches("../").to_owned();
    host.sh(&format!("strait device bind {name}"))?;
    Ok(name)
}

/// Checks that by this way to the IOMMU the disk is opened with a token, that the virtual function is with the same
/// one alone, and that what has none takes none. The source and all of them are with VFIO.
pub fn check_tokens(host: &Host, function: &str, backend: &str) -> TestResult {
    let refused = |options: &str| {
        let run =
            format!("strait run --kernel /k/model --iommu {backend} --vfio-pci {options} 2>&1");
        let said = host.run(&run)?;
        assert_eq!(said.status, 1, "{}", said.output);
        Ok::<_, Failure>(said.output)
    };
    let given =
        |name: &str| guest(host, &format!("--iommu {backend} --vfio-pci {name},vf-token={TOKEN}"));
    let said = refused(function)?;
    assert!(said.contains(&format!("VFIO asks for the VF token of {PHYSICAL}")), "{said}");
    assert!(said.contains(&format!("help: --vfio-pci {function},vf-token=UUID")), "{said}");
    assert_eq!(given(PHYSICAL)?.power_off()?, 0);
    let wrong = format!("{function},vf-token={}", TOKEN.replace("bd8d", "bd8e"));
    let said = refused(&wrong)?;
    assert!(said.contains("VFIO doesn't take this VF token"), "{said}");
    let said = refused(&format!("{SOURCE},vf-token={TOKEN}"))?;
    assert!(said.contains("it is no function with SR-IOV"), "{said}");
    let mut guest = given(function)?;
    let class = guest.sh(&format!("cat /sys/bus/pci/devices/{FIRST}/class"))?;
    assert_eq!(class.trim(), "0x010802");
    // While a guest has it, the right token isn't what is missing.
    let said = refused(&format!("{function},vf-token={TOKEN}"))?;
    assert!(said.contains("another process uses") && !said.contains("vf-token"), "{said}");
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
