//! Functions that have no reset of their own: they are reset with their bus, if all of it is the guest's.

use tests::harness::{Board, Host, Launch, TestResult};

use super::check_host;

/// Two test devices of QEMU in a slot behind a root port, which know neither Function Level Reset nor power states.
const BOTH: [&str; 2] = ["0000:01:00.0", "0000:01:00.1"];

/// Where a guest finds them.
const IN_GUEST: [&str; 2] = ["0000:00:01.0", "0000:00:02.0"];

/// Where a guest finds them behind root ports.
const IN_SLOTS: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];

/// Has a test device tell the first letter of the test that is chosen: `m`, or 0 if it was reset since. `choose`
/// chooses one before.
fn letter(device: &str, choose: bool) -> String {
    let directory = format!("/sys/bus/pci/devices/{device}");
    let choose = if choose { "devmem $bar 8 0;" } else { "" };
    format!(
        "echo 1 >{directory}/enable; bar=$(sed -n '1s/ .*//p' {directory}/resource); {choose} \
         devmem $((bar + 16)) 8; echo 0 >{directory}/enable"
    )
}

const CHOSEN: &str = "0x6D";
const RESET: &str = "0x00";

/// Has the host choose tests and bind the devices to VFIO, the second one if `both`.
fn choose(host: &Host, both: bool) -> TestResult {
    for (device, bind) in BOTH.into_iter().zip([true, both]) {
        assert_eq!(host.sh(&letter(device, true))?.trim(), CHOSEN);
        if bind {
            host.bind(device)?;
        }
    }
    Ok(())
}

#[test]
fn functions_without_a_reset_of_their_own_are_reset_with_their_bus() -> TestResult {
    let host = Board::new()
        .device("pcie-root-port,id=root,chassis=1,addr=6")
        .device("pci-testdev,bus=root,addr=0.0,multifunction=on")
        .device("pci-testdev,bus=root,addr=0.1")
        .boot()?;
    let [first, second] = BOTH;
    choose(&host, false)?;
    let options = |more: &str| Launch::model().with(&format!("--vfio-pci {first} {more}"));
    for backend in ["iommufd", "container"] {
        let mut guest = host.launch(&options(&format!("--iommu {backend}")))?;
        let said = guest.process().output();
        let why = format!("{second} too, which has no driver (strait device bind {second}");
        assert!(said.contains(&why), "{said}");
        assert_eq!(guest.sh(&letter(IN_GUEST[0], false))?.trim(), CHOSEN);
        assert_eq!(guest.power_off()?, 0);
    }
    host.sh(&format!("strait device bind {second}"))?;
    let shown = host.sh(&format!("strait device show {first}"))?;
    assert!(shown.contains(&format!("can be reset with its bus: {first}, {second}")), "{shown}");
    // What no guest has is reset, too, if nobody else can have it.
    let mut guest = host.launch(&options("--iommu iommufd"))?;
    assert_eq!(guest.sh(&letter(IN_GUEST[0], false))?.trim(), RESET);
    assert_eq!(guest.power_off()?, 0);

    for backend in ["iommufd", "container"] {
        host.sh(&format!("strait device unbind {first} {second}"))?;
        choose(&host, true)?;
        let more = format!("--vfio-pci {second} --iommu {backend} --on-reset restart");
        let mut guest = host.launch(&options(&more))?;
        for device in IN_GUEST {
            assert_eq!(guest.sh(&letter(device, false))?.trim(), RESET, "{backend}");
            assert_eq!(guest.sh(&letter(device, true))?.trim(), CHOSEN);
        }
        guest.begin_anew()?;
        for device in IN_GUEST {
            assert_eq!(guest.sh(&letter(device, false))?.trim(), RESET, "{backend}");
        }
        let said = guest.process().output();
        assert!(!said.contains("it is left as it is"), "{said}");
        assert_eq!(guest.power_off()?, 0);
    }
    // In slots the guest resets the bus of each by itself; on the host they are on one.
    let more = format!("--vfio-pci {first},hotplug=on --vfio-pci {second},hotplug=on");
    let mut guest = host.launch(&Launch::model().with(&more))?;
    for device in IN_SLOTS {
        assert_eq!(guest.sh(&letter(device, true))?.trim(), CHOSEN);
        let directory = format!("/sys/bus/pci/devices/{device}");
        guest.sh(&format!("echo bus >{directory}/reset_method && echo 1 >{directory}/reset"))?;
        assert_eq!(guest.sh(&letter(device, false))?.trim(), RESET);
    }
    assert_eq!(guest.power_off()?, 0);
    let plan =
        format!("strait run --dry-run --kernel /k/model --vfio-pci {first} --vfio-pci {second}");
    let planned = host.sh(&plan)?;
    assert!(planned.contains(&format!("reset with its bus, and so with {second}")), "{planned}");
    let planned = host.sh(&format!("{plan},reset=off"))?;
    let why = format!("not reset: a reset of its bus resets {second} too, which has reset=off");
    assert!(planned.contains(&why), "{planned}");
    check_host(&host)
}
