use boot::help::Help;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use super::super::iommu::{Backend, IommuOptions};
use super::super::remedy;
use super::super::testing::FakeHost;
use super::*;

const DMA: &str = "2c0a0000.dma";
const AMBA: &str = "2c0c0000.dma";

/// What can be assigned of these, whose files can be opened.
fn assignments(fake: &FakeHost, names: &[&str]) -> Result<Vec<Assignment>, AssignError> {
    let wanted: Vec<DeviceRef> = names.iter().copied().map(DeviceRef::from).collect();
    let assignments = preflight(&fake.host(), &wanted)?;
    Backend::choose(&fake.host(), &assignments, IommuOptions::default())?;
    Ok(assignments)
}

/// The error of assigning these, and its help.
fn refusal(fake: &FakeHost, names: &[&str]) -> (String, String) {
    let error = assignments(fake, names).unwrap_err();
    (error.to_string(), error.help().unwrap_or_default())
}

#[track_caller]
fn assert_refused(fake: &FakeHost, names: &[&str], text: &str, help: &str) {
    let fake_root = fake.path("").display().to_string();
    let (error, command) = refusal(fake, names);
    let plain = |s: &str| s.replace(&fake_root, "/");
    assert_eq!((plain(&error).as_str(), plain(&command).as_str()), (text, help));
}

#[test]
fn devices_of_both_buses_can_be_assigned_together() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    fake.device("amba", AMBA, Some("vfio-amba"), Some(4));
    let assignments = assignments(&fake, &[DMA, AMBA]).unwrap();
    let found: Vec<_> = assignments.iter().map(|a| (a.name(), a.group)).collect();
    assert_eq!(found, [(DMA, 3), (AMBA, 4)]);
}

#[test]
fn an_unknown_name_is_answered_with_similar_names_or_candidates() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    fake.device("platform", "9000000.serial", None, None);
    let text = |name| format!("there is no device {name} on the host's platform, AMBA or PCI bus");
    assert_refused(&fake, &["2c0a000.dma"], &text("2c0a000.dma"), "did you mean 2c0a0000.dma?");
    assert_refused(&fake, &["gpu"], &text("gpu"), "behind an IOMMU are: 2c0a0000.dma");
    let none = "no device of these buses is behind an IOMMU on this host";
    assert_refused(&FakeHost::with_vfio(), &["gpu"], &text("gpu"), none);
}

#[test]
fn a_device_with_its_own_driver_is_refused_with_the_command_to_bind_it() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("dma-pl330"), Some(3));
    fake.device("amba", AMBA, Some("dma-pl330"), Some(4));
    assert_refused(
        &fake,
        &[DMA],
        "2c0a0000.dma can't be assigned: its driver is dma-pl330, not vfio-platform",
        "strait device bind 2c0a0000.dma",
    );
    let (error, help) = refusal(&fake, &[AMBA]);
    assert!(error.ends_with("its driver is dma-pl330, not vfio-amba"), "{error}");
    assert_eq!(help, "strait device bind 2c0c0000.dma");
}

#[test]
fn an_unbound_device_is_refused_with_the_command_to_bind_it() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, None, Some(3));
    assert_refused(
        &fake,
        &[DMA],
        "2c0a0000.dma can't be assigned: it is bound to no driver, and must be to vfio-platform",
        "strait device bind 2c0a0000.dma",
    );
}

#[test]
fn a_device_whose_group_comes_with_its_driver_counts_as_not_bound() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, None, None);
    assert!(refusal(&fake, &[DMA]).0.contains("it is in no IOMMU group"));
    fake.write("sys/firmware/devicetree/base/dma/iommus", [0; 8]);
    fake.link(format!("sys/devices/platform/{DMA}/of_node"), "sys/firmware/devicetree/base/dma");
    assert!(refusal(&fake, &[DMA]).0.contains("it is bound to no driver"));
    assert_eq!(refusal(&fake, &["gpu"]).1, "behind an IOMMU are: 2c0a0000.dma");
}

#[test]
fn reset_required_is_the_error_only_after_vfio_platform_has_probed() {
    let parameter = "sys/module/vfio_platform/parameters/reset_required";
    // Bus, driver_override, reset_required; is it to blame?
    let cases = [
        ("platform", "vfio-platform\n", "Y\n", true),
        ("platform", "vfio-platform\n", "N\n", false),
        ("platform", "(null)\n", "Y\n", false),
        ("amba", "vfio-amba\n", "Y\n", false),
    ];
    for (bus, driver_override, required, blamed) in cases {
        let fake = FakeHost::with_vfio();
        fake.device(bus, DMA, None, Some(3));
        fake.write(format!("sys/devices/{bus}/{DMA}/driver_override"), driver_override);
        fake.write(parameter, required);
        let error = assignments(&fake, &[DMA]).unwrap_err();
        let found = matches!(error, AssignError::ResetRequired { .. });
        assert_eq!(found, blamed, "{bus} {driver_override} {required}: {error}");
        if blamed {
            assert!(error.help().unwrap().contains("vfio_platform.reset_required=0"));
        }
    }
}

#[test]
fn a_kernel_without_the_driver_is_named() {
    let fake = FakeHost::new();
    fake.device("amba", DMA, Some("dma-pl330"), Some(3));
    assert_refused(
        &fake,
        &[DMA],
        "2c0a0000.dma can't be assigned: the host's kernel has no vfio-amba driver",
        "modprobe vfio-amba (CONFIG_VFIO_AMBA)",
    );
}

#[test]
fn a_device_without_an_iommu_is_refused() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), None);
    fake.device("platform", "1.dma", Some("vfio-platform"), Some(0));
    fake.write("sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    let (error, help) = refusal(&fake, &[DMA]);
    assert!(error.contains("it is in no IOMMU group"), "{error}");
    assert!(help.contains("iommus"), "{help}");
    let (error, _) = refusal(&fake, &["1.dma"]);
    assert!(error.contains("its group 0 has no IOMMU"), "{error}");
}

#[test]
fn a_shared_group_is_refused_with_its_other_users() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    fake.device("platform", "1.idle", None, Some(3));
    fake.device("amba", AMBA, Some("dma-pl330"), Some(3));
    assert_refused(
        &fake,
        &[DMA],
        "2c0a0000.dma can't be assigned: its IOMMU group 3 is shared with 2c0c0000.dma (driver \
         dma-pl330)",
        "strait device bind --group 2c0a0000.dma",
    );
}

#[test]
fn devices_that_share_a_group_are_assigned_together() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    fake.device("amba", AMBA, Some("vfio-amba"), Some(3));
    let assignments = assignments(&fake, &[DMA, AMBA]).unwrap();
    assert!(assignments.iter().all(|assignment| assignment.group == 3));
}

#[test]
fn pci_devices_have_an_option_of_their_own() {
    let fake = FakeHost::with_vfio();
    fake.device("pci", "0000:00:01.0", Some("vfio-pci"), Some(3));
    fake.device("platform", DMA, Some("vfio-platform"), Some(4));
    let assignments = assignments(&fake, &["00:01.0", DMA]).unwrap();
    for (assignment, pci) in assignments.iter().zip([true, false]) {
        check_bus(&assignment.device, pci).unwrap();
    }
    let wrong: Vec<_> = assignments
        .iter()
        .zip([false, true])
        .map(|(assignment, pci)| {
            let error = check_bus(&assignment.device, pci).unwrap_err();
            (error.to_string(), error.help().unwrap())
        })
        .collect();
    assert!(wrong[0].0.ends_with("it is on the pci bus"), "{wrong:?}");
    assert_eq!(wrong[0].1, "--vfio-pci 0000:00:01.0");
    assert_eq!(wrong[1].1, "--vfio-platform 2c0a0000.dma");
}

#[test]
fn a_bridge_is_refused_and_other_functions_of_a_group_are_named() {
    let fake = FakeHost::with_vfio();
    fake.device("pci", "0000:00:00.0", None, Some(2));
    fake.write("sys/devices/pci/0000:00:00.0/class", "0x060000\n");
    let (error, _) = refusal(&fake, &["0000:00:00.0"]);
    assert!(error.contains("it is a bridge"), "{error}");
    fake.device("pci", "0000:00:03.0", Some("vfio-pci"), Some(5));
    fake.device("pci", "0000:00:03.1", Some("nvme"), Some(5));
    assert_refused(
        &fake,
        &["00:03.0"],
        "0000:00:03.0 can't be assigned: its IOMMU group 5 is shared with 0000:00:03.1 (driver \
         nvme)",
        "strait device bind --group 0000:00:03.0",
    );
}

#[test]
fn missing_files_in_dev_are_named() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    let remove = |path| std::fs::remove_file(fake.path(path)).unwrap();
    remove("dev/vfio/3");
    fake.write("sys/class/vfio/3/dev", "240:0\n");
    assert_refused(
        &fake,
        &[DMA],
        "2c0a0000.dma can't be assigned: there is no /dev/vfio/3, the file of its IOMMU group",
        "mknod /dev/vfio/3 c 240 0; in a container, give it access to that device",
    );
    remove("sys/class/vfio/3/dev");
    assert!(refusal(&fake, &[DMA]).1.contains("CONFIG_VFIO_GROUP"));
    remove("dev/vfio/vfio");
    let (error, help) = refusal(&fake, &[DMA]);
    assert!(error.ends_with("dev/vfio/vfio"), "{error}");
    assert!(help.contains("modprobe vfio_iommu_type1"), "{help}");
}

#[test]
fn a_refused_open_names_the_user_and_the_file() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    let device = fake.host().find(DMA).unwrap().unwrap();
    let path = fake.path("dev/vfio/3");
    let opening = |errno| {
        let source = io::Error::from_raw_os_error(errno);
        AssignError::opening(&fake.host(), &device, 3, &path, source)
    };
    let busy = opening(libc::EBUSY);
    assert!(busy.to_string().contains("another process uses"), "{busy}");
    assert_eq!(busy.help().unwrap(), format!("fuser -v {}", path.display()));
    for errno in [libc::EACCES, libc::EPERM] {
        let AssignError::NotPermitted { uid, closed, .. } = opening(errno) else {
            panic!("{}", opening(errno));
        };
        let [ClosedFile { owner, mode, .. }] = closed[..] else { panic!("{closed:?}") };
        assert_eq!((owner, mode & 0o400), (uid, 0o400), "made by this very user");
    }
    assert!(matches!(opening(libc::EIO), AssignError::Open { .. }));
    assert!(matches!(opening(libc::ENODEV), AssignError::NoFile { .. }));
}

/// The refusal of files to this user.
fn denied(uid: u32, files: &[(&str, Option<&str>)]) -> AssignError {
    let closed = files.iter().map(|(path, device)| ClosedFile {
        path: path.into(),
        device: device.map(str::to_owned),
        owner: 0,
        mode: 0o600,
    });
    AssignError::NotPermitted {
        name: DMA.into(),
        closed: closed.collect(),
        uid,
        source: io::Error::from_raw_os_error(libc::EACCES),
    }
}

#[test]
fn the_remedy_for_permission_names_the_user() {
    let error = denied(1000, &[("/dev/vfio/3", Some(DMA))]);
    assert_eq!(
        error.to_string(),
        "2c0a0000.dma can't be assigned: user 1000 may not open /dev/vfio/3, which is user 0's \
         with mode 0600"
    );
    let help = error.help().unwrap();
    assert!(help.starts_with("sudo strait device bind --owner 1000 2c0a0000.dma\n"), "{help}");
    assert!(denied(0, &[("/dev/vfio/3", Some(DMA))]).help().unwrap().contains("DeviceAllow"));
}

#[test]
fn the_remedy_for_permission_covers_all_closed_files() {
    let error = denied(1000, &[("/dev/iommu", None), ("/dev/vfio/devices/vfio0", Some(DMA))]);
    let text = error.to_string();
    assert!(text.contains("/dev/iommu") && text.contains("nor /dev/vfio/devices/vfio0"), "{text}");
    let help = error.help().unwrap();
    let commands =
        "sudo strait device bind --owner 1000 2c0a0000.dma && sudo chmod 666 /dev/iommu\n";
    assert!(help.starts_with(commands), "{help}");
}

#[test]
fn the_rules_for_udev_are_complete() {
    let rules = remedy::udev_rules(1000);
    for part in [
        r#"'SUBSYSTEM=="vfio", OWNER="1000"'"#,
        r#"'SUBSYSTEM=="vfio-dev", OWNER="1000"'"#,
        r#"'SUBSYSTEM=="misc", KERNEL=="vfio|iommu", MODE="0666"'"#,
        "udevadm control --reload",
        "udevadm trigger -s vfio -s vfio-dev -s misc",
    ] {
        assert!(rules.contains(part), "{part} in {rules}");
    }
    assert!(denied(1000, &[("/dev/vfio/3", Some(DMA))]).help().unwrap().contains(&rules));
    // What the shell makes of it is a rule on each line.
    let made = rules.split(" | ").next().unwrap();
    let made = std::process::Command::new("sh").args(["-c", made]).output().unwrap();
    let made = String::from_utf8(made.stdout).unwrap();
    assert_eq!(made.lines().filter(|line| line.starts_with("SUBSYSTEM==")).count(), 3, "{made}");
}

#[test]
fn bridges_are_not_suggested() {
    let fake = FakeHost::with_vfio();
    fake.device("pci", "0000:00:00.0", None, Some(2));
    fake.write("sys/devices/pci/0000:00:00.0/class", "0x060000\n");
    fake.device("pci", "0000:00:03.0", None, Some(5));
    for name in ["gpu", "0000:00:00.1", "0000:00:0"] {
        let help = refusal(&fake, &[name]).1;
        assert!(help.contains("0000:00:03.0") && !help.contains("0000:00:00.0"), "{help}");
    }
}

#[test]
fn an_inherited_descriptor_names_the_device_whose_file_it_is() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    fake.cdev("platform", DMA, 0);
    // Here /dev/null is its file.
    fake.link("sys/dev/char/1:3", format!("sys/devices/platform/{DMA}/vfio-dev/vfio0"));
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
    let inherited = || DeviceRef::Descriptor(null.as_raw_fd());
    let assignments = preflight(&fake.host(), &[inherited()]).unwrap();
    assert_eq!((assignments[0].name(), assignments[0].group), (DMA, 3));
    assert_eq!(assignments[0].inherited.as_ref().unwrap().fd(), null.as_raw_fd());
    for again in [inherited(), DeviceRef::from(DMA)] {
        let error = preflight(&fake.host(), &[inherited(), again]).unwrap_err();
        assert!(matches!(error, AssignError::Duplicate { .. }), "{error}");
    }
    fake.write(format!("sys/devices/platform/{DMA}/driver_override"), "(null)\n");
    std::fs::remove_file(fake.path(format!("sys/devices/platform/{DMA}/driver"))).unwrap();
    let error = preflight(&fake.host(), &[inherited()]).unwrap_err();
    assert!(matches!(error, AssignError::NotBound { driver: None, .. }), "{error}");
}

#[test]
fn a_device_given_by_two_names_is_refused() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    let path = fake.path("sys/bus/platform/devices/2c0a0000.dma");
    for again in [DMA, path.to_str().unwrap()] {
        let (error, _) = refusal(&fake, &[DMA, again]);
        assert_eq!(error, "2c0a0000.dma can't be assigned twice to one guest");
    }
}

#[test]
fn only_the_most_similar_names_are_suggested() {
    let names = ["2c0a0000.dma", "2c0b0000.dma", "9000000.serial", "x"].map(str::to_owned);
    let cases: [(&str, &[&str]); 7] = [
        ("2c0a000.dma", &["2c0a0000.dma"]),
        ("2c0c0000.dma", &["2c0a0000.dma", "2c0b0000.dma"]),
        ("2c0", &["2c0a0000.dma", "2c0b0000.dma"]),
        ("2c0b", &["2c0b0000.dma"]),
        ("9000000.uart", &[]),
        ("", &[]),
        ("gpu", &[]),
    ];
    for (name, expected) in cases {
        assert_eq!(similar(name, &names), expected, "{name}");
    }
}
