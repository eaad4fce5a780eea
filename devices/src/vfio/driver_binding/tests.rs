use super::super::error_chain;
use super::super::testing::{FakeHost, FakeKernel};
use super::*;
use boot::help::Help;

const DMA: &str = "2c0a0000.dma";
const AMBA: &str = "2c0c0000.dma";

/// The drivers of both devices.
fn drivers(fake: &FakeHost) -> [Option<String>; 2] {
    [DMA, AMBA].map(|name| fake.host().find(name).unwrap().and_then(|d| d.driver().unwrap()))
}

fn some(driver: &str) -> Option<String> {
    Some(driver.to_owned())
}

/// Two devices of different buses and groups, the first with a driver of its own.
fn two() -> FakeHost {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("dma-pl330"), Some(3));
    fake.device("amba", AMBA, None, Some(4));
    fake
}

#[test]
fn devices_are_bound_to_vfio_and_back_to_their_drivers() {
    let fake = two();
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    let bound = binding.bind(&[DMA, AMBA], &BindOptions::default()).unwrap();
    let found: Vec<_> = bound.iter().map(|b| (b.before.as_deref(), b.changed)).collect();
    assert_eq!(found, [(Some("dma-pl330"), true), (None, true)]);
    assert_eq!(drivers(&fake), [some("vfio-platform"), some("vfio-amba")]);

    let again = binding.bind(&[DMA], &BindOptions::default()).unwrap();
    assert!(!again[0].changed);
    let released = binding.unbind(&[DMA, AMBA], false).unwrap();
    let now: Vec<_> = released.iter().map(|r| r.driver.as_deref()).collect();
    assert_eq!(now, [Some("dma-pl330"), None]);
    for name in [DMA, AMBA] {
        let device = host.find(name).unwrap().unwrap();
        assert_eq!(device.driver_override().unwrap().filter(|d| !d.is_empty()), None);
        assert_eq!(BindRecords::of(&host).read(&device).unwrap(), None);
    }
    assert!(!binding.unbind(&[DMA], false).unwrap()[0].changed);
}

#[test]
fn a_previous_driver_override_is_restored() {
    let fake = two();
    fake.write(format!("sys/devices/platform/{DMA}/driver_override"), "dma-pl330\n");
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    binding.bind(&[DMA], &BindOptions::default()).unwrap();
    binding.unbind(&[DMA], false).unwrap();
    let device = host.find(DMA).unwrap().unwrap();
    assert_eq!(device.driver_override().unwrap(), some("dma-pl330"));
    assert_eq!(device.driver().unwrap(), some("dma-pl330"));
}

#[test]
fn a_device_bound_by_hand_is_probed_by_the_driver_that_matches() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("vfio-platform"), Some(3));
    fake.mkdir("sys/bus/platform/drivers/dma-pl330");
    let (host, mut kernel) = (fake.host(), FakeKernel::new(&fake));
    kernel.natural.insert(DMA, "dma-pl330");
    let released = DriverBinding::new(&host, &kernel).unbind(&[DMA], false).unwrap();
    assert_eq!(released[0].driver, some("dma-pl330"));
}

#[test]
fn a_failure_restores_the_devices_before() {
    // What fails of the second device, after the first has been bound.
    type Break = fn(&mut FakeKernel<'_>);
    let cases: [(&str, Break); 4] = [
        ("vfio-amba doesn't bind to", |kernel| kernel.refuses.push(("vfio-amba", AMBA))),
        ("drivers_probe", |kernel| kernel.denied.push(("amba/drivers_probe", libc::EINVAL))),
        ("driver_override", |kernel| {
            kernel.denied.push(("amba/2c0c0000.dma/driver_override", libc::EACCES));
        }),
        ("there is no device", |_| ()),
    ];
    for (expected, break_it) in cases {
        let fake = two();
        let (host, mut kernel) = (fake.host(), FakeKernel::new(&fake));
        break_it(&mut kernel);
        let second = if expected.contains("no device") { "2c0f0000.dma" } else { AMBA };
        let error = DriverBinding::new(&host, &kernel)
            .bind(&[DMA, second], &BindOptions::default())
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.help().is_some(), "{error}");
        assert_eq!(drivers(&fake), [some("dma-pl330"), None], "{expected}");
        let first = host.find(DMA).unwrap().unwrap();
        assert_eq!(BindRecords::of(&host).read(&first).unwrap(), None, "{expected}");
    }
}

#[test]
fn a_refusal_for_lack_of_a_reset_function_has_its_own_error() {
    let fake = two();
    fake.write("sys/module/vfio_platform/parameters/reset_required", "Y\n");
    let (host, mut kernel) = (fake.host(), FakeKernel::new(&fake));
    kernel.refuses.push(("vfio-platform", DMA));
    let error =
        DriverBinding::new(&host, &kernel).bind(&[DMA], &BindOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::Assign(AssignError::ResetRequired { .. })), "{error}");
    assert_eq!(drivers(&fake)[0], some("dma-pl330"), "restored");
}

#[test]
fn a_device_that_can_never_be_assigned_is_not_written_to() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("dma-pl330"), None);
    let host = fake.host();
    let kernel = FakeKernel::new(&fake);
    let error =
        DriverBinding::new(&host, &kernel).bind(&[DMA], &BindOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::Assign(AssignError::NoGroup { .. })), "{error}");

    let bare = FakeHost::new();
    bare.device("platform", DMA, Some("dma-pl330"), Some(3));
    let host = bare.host();
    let bare_kernel = FakeKernel::new(&bare);
    let error =
        DriverBinding::new(&host, &bare_kernel).bind(&[DMA], &BindOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::Assign(AssignError::NoVfioDriver { .. })), "{error}");
    assert!(kernel.writes().is_empty() && bare_kernel.writes().is_empty());
}

#[test]
fn a_group_that_exists_only_once_a_driver_is_bound_is_bound_whole() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, None, None);
    fake.behind_iommu("platform", DMA);
    fake.device("amba", AMBA, Some("dma-pl330"), Some(7));
    fake.device("pci", "0000:00:01.0", None, Some(7));
    fake.write("sys/devices/pci/0000:00:01.0/class", "0x060400\n");
    let (host, mut kernel) = (fake.host(), FakeKernel::new(&fake));
    kernel.groups.insert(DMA, 7);
    let binding = DriverBinding::new(&host, &kernel);
    let bound =
        binding.bind(&[DMA], &BindOptions { group: true, ..BindOptions::default() }).unwrap();
    let names: Vec<_> = bound.iter().map(|bound| bound.device.name()).collect();
    assert_eq!(names, [DMA, AMBA], "and not the bridge");
    assert_eq!(drivers(&fake), [some("vfio-platform"), some("vfio-amba")]);
    binding.unbind(&[AMBA], true).unwrap();
    assert_eq!(drivers(&fake), [None, some("dma-pl330")]);
}

#[test]
fn a_group_is_restored_if_one_of_its_devices_fails() {
    let fake = FakeHost::with_vfio();
    fake.device("platform", DMA, Some("dma-pl330"), Some(7));
    fake.device("amba", AMBA, Some("dma-pl330"), Some(7));
    let (host, mut kernel) = (fake.host(), FakeKernel::new(&fake));
    kernel.refuses.push(("vfio-amba", AMBA));
    DriverBinding::new(&host, &kernel)
        .bind(&[DMA], &BindOptions { group: true, ..BindOptions::default() })
        .unwrap_err();
    assert_eq!(drivers(&fake), [some("dma-pl330"), some("dma-pl330")]);
}

#[test]
fn the_device_of_a_killed_process_is_restored() {
    // Killed after the record was written and the driver unbound.
    let fake = two();
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let device = host.find(DMA).unwrap().unwrap();
    let record = BindRecord { driver: some("dma-pl330"), ..BindRecord::default() };
    BindRecords::of(&host).write(&device, &record).unwrap();
    kernel.write(&device.path().join("driver_override"), "vfio-platform").unwrap();
    kernel.write(&device.path().join("driver/unbind"), DMA).unwrap();
    let released = DriverBinding::new(&host, &kernel).unbind(&[DMA], false).unwrap();
    assert_eq!(released[0].driver, some("dma-pl330"));
    assert_eq!(BindRecords::of(&host).read(&device).unwrap(), None);
}

#[test]
fn a_device_unbound_by_somebody_else_and_bound_again_goes_back_to_its_driver() {
    let fake = two();
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    binding.bind(&[DMA], &BindOptions::default()).unwrap();
    let device = host.find(DMA).unwrap().unwrap();
    kernel.write(&device.path().join("driver/unbind"), DMA).unwrap();
    assert_eq!(device.driver().unwrap(), None);
    assert!(binding.bind(&[DMA], &BindOptions::default()).unwrap()[0].changed);
    assert_eq!(device.driver().unwrap(), some("vfio-platform"));
    assert_eq!(binding.unbind(&[DMA], false).unwrap()[0].driver, some("dma-pl330"));
}

#[test]
fn a_driver_that_is_gone_is_named_and_stays_recorded() {
    let fake = two();
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    binding.bind(&[DMA], &BindOptions::default()).unwrap();
    std::fs::remove_dir(fake.path("sys/bus/platform/drivers/dma-pl330")).unwrap();
    let error = binding.unbind(&[DMA], false).unwrap_err();
    let modalias = fake.path(format!("sys/devices/platform/{DMA}/modalias")).display().to_string();
    let help = format!("modprobe \"$(cat {modalias})\" && strait device unbind {DMA}");
    assert_eq!(error.help().unwrap(), help, "{error}");
    fake.mkdir("sys/bus/platform/drivers/dma-pl330");
    assert_eq!(binding.unbind(&[DMA], false).unwrap()[0].driver, some("dma-pl330"));
}

#[test]
fn the_module_of_a_driver_that_is_gone_is_named() {
    let fake = two();
    let directory = "sys/bus/platform/drivers/dma-pl330";
    fake.link(format!("{directory}/module"), "sys/module/pl330");
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    binding.bind(&[DMA], &BindOptions::default()).unwrap();
    std::fs::remove_dir_all(fake.path(directory)).unwrap();
    let error = binding.unbind(&[DMA], false).unwrap_err();
    assert_eq!(error.help().unwrap(), "modprobe pl330 && strait device unbind 2c0a0000.dma");
}

#[test]
fn what_keeps_a_record_from_being_written_is_named() {
    let help = |source: std::io::Error| {
        let path = "/run/strait/lock".into();
        BindError::from(BindRecordError { what: "can't create", path, source }).help().unwrap()
    };
    let held = help(std::io::ErrorKind::TimedOut.into());
    assert!(held.starts_with("fuser -v /run/strait/lock"), "{held}");
    let full = help(std::io::Error::from_raw_os_error(libc::ENOSPC));
    assert!(full.contains("df -h /run/strait;"), "{full}");
    assert!(help(std::io::Error::from_raw_os_error(libc::EACCES)).contains("sudo"));
}

/// A device whose disk is mounted.
fn mounted() -> FakeHost {
    let fake = two();
    let disk = fake.below(&format!("platform/{DMA}/block/sda"), "block");
    fake.write(disk.join("dev"), "8:0\n");
    fake.write("proc/self/mountinfo", "20 1 8:0 / /mnt rw - ext4 /dev/sda rw\n");
    fake
}

#[test]
fn a_device_that_the_host_uses_is_refused_before_anything_is_written() {
    let fake = mounted();
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    let error = binding.bind(&[AMBA, DMA], &BindOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "2c0a0000.dma can't be bound to VFIO: the host uses it: sda is mounted on /mnt"
    );
    let help = error.help().unwrap();
    assert!(help.starts_with("umount /mnt\nor --force, "), "{help}");
    assert!(kernel.writes().is_empty(), "not even the other one is touched");
    let options = BindOptions { force: true, ..BindOptions::default() };
    binding.bind(&[AMBA, DMA], &options).unwrap();
    assert_eq!(drivers(&fake), [some("vfio-platform"), some("vfio-amba")]);
}

#[test]
fn a_member_of_the_group_that_the_host_uses_is_refused_too() {
    let fake = mounted();
    fake.device("pci", "0000:00:05.0", Some("driver"), Some(3));
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    let group = BindOptions { group: true, ..BindOptions::default() };
    let error = binding.bind(&["0000:00:05.0"], &group).unwrap_err();
    assert!(matches!(&error, BindError::UsedByHost { name, .. } if name == DMA), "{error}");
    assert!(kernel.writes().is_empty());
}

#[test]
fn a_bridge_is_not_written_to() {
    let fake = FakeHost::with_vfio();
    fake.device("pci", "0000:00:01.0", Some("pcieport"), Some(3));
    fake.write("sys/devices/pci/0000:00:01.0/class", "0x060400\n");
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let error =
        DriverBinding::new(&host, &kernel).bind(&["00:01.0"], &BindOptions::default()).unwrap_err();
    assert!(matches!(error, BindError::Assign(AssignError::Bridge { .. })), "{error}");
    assert!(kernel.writes().is_empty());
}

#[test]
fn after_a_hung_write_nothing_more_is_written_and_the_record_stays() {
    let fake = two();
    let (host, mut kernel) = (fake.host(), FakeKernel::new(&fake));
    kernel.hangs.push("2c0a0000.dma/driver/unbind");
    let error =
        DriverBinding::new(&host, &kernel).bind(&[AMBA, DMA], &BindOptions::default()).unwrap_err();
    let text = error_chain::chain(&error);
    assert!(text.contains("process 7") && text.contains("p9_virtio_remove"), "{text}");
    assert!(error.help().unwrap().ends_with("strait device unbind 2c0a0000.dma"));
    let last = kernel.writes().into_iter().rfind(|(path, _)| path.contains(DMA)).unwrap();
    assert!(last.0.ends_with("driver/unbind"), "{last:?}");
    assert_eq!(drivers(&fake)[1], None, "the other one is restored");
    let device = host.find(DMA).unwrap().unwrap();
    assert_eq!(
        BindRecords::of(&host).read(&device).unwrap().and_then(|r| r.driver),
        some("dma-pl330")
    );
}

/// Whoever runs the test: the one to whom files can be given.
fn me() -> Owner {
    // SAFETY: they take nothing and never fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    Owner { user, group: Some(group) }
}

#[test]
fn an_owner_stays_recorded_over_an_unbind_and_a_bind() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let fake = two();
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    let mode = || fake.path("dev/vfio/3").metadata().unwrap().mode() & 0o777;
    let close = || {
        let closed = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(fake.path("dev/vfio/3"), closed).unwrap();
    };
    close();
    let owner = Some(me());
    binding.bind(&[DMA], &BindOptions { owner, ..BindOptions::default() }).unwrap();
    assert_eq!(mode(), 0o660);
    binding.unbind(&[DMA], false).unwrap();
    close();
    binding.bind(&[DMA], &BindOptions::default()).unwrap();
    assert_eq!(mode(), 0o660, "as it was");
    // One that is bound can still get one.
    close();
    assert!(
        !binding.bind(&[DMA], &BindOptions { owner, ..BindOptions::default() }).unwrap()[0].changed
    );
    assert_eq!(mode(), 0o660);
}

#[test]
fn a_device_that_is_bound_already_is_not_written_to() {
    let fake = two();
    let (host, kernel) = (fake.host(), FakeKernel::new(&fake));
    let binding = DriverBinding::new(&host, &kernel);
    binding.bind(&[DMA], &BindOptions::default()).unwrap();
    let writes = kernel.writes().len();
    // Where nothing can be remembered, as for a user without privileges.
    std::fs::remove_dir_all(fake.path("run")).unwrap();
    fake.write("run", "");
    assert!(!binding.bind(&[DMA], &BindOptions::default()).unwrap()[0].changed);
    assert_eq!(kernel.writes().len(), writes);
    assert!(binding.bind(&[DMA, AMBA], &BindOptions::default()).is_err());
}
