//! `strait run`'s options as they are typed.

use devices::vfio::assign::DeviceRef;
use devices::vfio::iommu::IommuOptions;

use super::super::{ConsoleKind, SerialKind};
use super::*;

fn run(arguments: &[&str]) -> Result<RunOptions, Error> {
    let words = ["run", "--kernel", "Image"].iter().chain(arguments);
    match super::super::parse(Parser::from_args(words))? {
        Command::Run(options) => Ok(*options),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_kernel_is_enough() {
    let options = run(&[]).unwrap();
    assert_eq!((options.cpus, options.memory), (1, MemoryOptions::new(256 << 20)));
}

#[test]
fn firmware_is_there_instead_of_a_kernel() {
    let run = |arguments: &str| {
        let words =
            ["run", "--firmware", "u-boot.bin"].into_iter().chain(arguments.split_whitespace());
        match super::super::parse(Parser::from_args(words))? {
            Command::Run(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(run("").unwrap().serial, SerialKind::Pl011);
    assert_eq!(run("--serial 8250").unwrap().serial, SerialKind::Ns16550a);
    for (arguments, why) in [
        (
            "--kernel Image",
            "--kernel and --firmware: a guest begins with a kernel or with firmware",
        ),
        ("--initrd a", "--initrd and --firmware"),
        ("--memory 64M,base=0x80000000", "firmware looks for RAM at 0x40000000"),
    ] {
        let error: Error = run(arguments).unwrap_err();
        assert!(error.message().contains(why) && error.exit_status() == 2, "{}", error.report());
        assert!(error.report().contains("help: "), "{}", error.report());
    }
}

#[test]
fn devices_may_be_repeated() {
    let options = run(&["--vfio-platform", "a", "--vfio-platform", "b,quiesce=off"]).unwrap();
    let which: Vec<_> = options.vfio_platform.into_iter().map(|device| device.which).collect();
    assert_eq!(which, ["a", "b"].map(DeviceRef::from));
    let both = ["--vfio-pci", "05:00.0,mmap=off", "--vfio-platform", "a", "--vfio-pci", "c"];
    assert_eq!(run(&both).unwrap().device_names(), ["a", "05:00.0", "c"]);
}

#[test]
fn descriptors_are_for_iommufd_and_are_bound_already() {
    let options = run(&["--vfio-platform", "fd=0", "--iommufd-fd", "1"]).unwrap();
    assert_eq!(options.iommu, IommuOptions { iommufd: Some(1), ..Default::default() });
    let cases: [&[&str]; 6] = [
        &["--vfio-platform", "fd=0", "--bind"],
        &["--vfio-platform", "fd=0", "--iommu", "container"],
        &["--vfio-pci", "fd=0", "--bind"],
        &["--vfio-pci", "fd=0", "--iommu", "container"],
        &["--iommu", "container", "--iommufd-fd", "0"],
        &["--iommufd-fd", "1048576"],
    ];
    for arguments in cases {
        assert_eq!(run(arguments).unwrap_err().exit_status(), 2, "{arguments:?}");
    }
}

#[test]
fn a_user_is_for_the_sandbox() {
    let options = run(&["--user", "1000:100"]).unwrap();
    assert_eq!(options.user.map(|user| (user.user, user.group)), Some((1000, Some(100))));
    for arguments in [&["--user", "no-such-user"][..], &["--user", "1", "--sandbox", "off"]] {
        assert_eq!(run(arguments).unwrap_err().exit_status(), 2, "{arguments:?}");
    }
}

#[test]
fn a_balloon_is_for_memory_that_can_be_given_back() {
    let balloon = ["--balloon", "free-page-reporting"];
    assert!(run(&balloon).unwrap().balloon && !run(&[]).unwrap().balloon);
    for (others, why) in [
        (["--vfio-platform", "a"], "DMA"),
        (["--vfio-pci", "05:00.0"], "DMA"),
        (["--vfio-user", "/a"], "DMA"),
        (["--memory", "1G,hugepages=2M"], "--memory 1G,hugepages=2M: reserved huge pages"),
    ] {
        let report = run(&[balloon, others].concat()).unwrap_err().report();
        assert!(report.contains(why), "{report}");
    }
    run(&[balloon, ["--memory", "1G,hugepages=thp"]].concat()).unwrap();
}

#[test]
fn wrong_values_are_refused() {
    for arguments in [
        ["--cpus", ""],
        ["--cpus", "0"],
        ["--cpus", "-1"],
        ["--memory", "lots"],
        ["--gic", "4"],
        ["--cpu-features", "sme"],
        ["--timeout", "0"],
        ["--grace", "0"],
        ["--on-reset", "reboot"],
        ["--control", "/run/guest"],
        ["--control", "unix:"],
        ["--register", ""],
        ["--register", "a\"b"],
        ["--register", "a..b"],
        ["--register", "-a"],
        ["--timeout", "nan"],
        ["--timeout", "inf"],
        ["--vfio-platform", ""],
        ["--vfio-user", ""],
        ["--block", ""],
        ["--net", "tap0"],
        ["--vsock", "3"],
        ["--vhost-user", ""],
        ["--share", "src"],
        ["--iommu", "smmu"],
        ["--iommufd-fd", "-1"],
        ["--log-level", "loud"],
        ["--console", "tv"],
        ["--serial", "uart"],
        ["--balloon", "64M"],
        ["--no-such-option", "1"],
        ["--json", "--gic=3"],
        ["--dry-run=yes", "--dry-run"],
        ["stray", "--dry-run"],
        ["--bind", "--dry-run"],
        ["--force", "--gic=3"],
    ] {
        assert!(run(&arguments).unwrap_err().exit_status() == 2, "{arguments:?}");
    }
}

#[test]
fn standard_input_is_one_console_s() {
    let consoles = |arguments: &[&str]| {
        run(arguments).map(|options| (options.console, options.virtio_console))
    };
    use ConsoleKind::{Off, Pty, Stdio};
    assert_eq!(consoles(&[]).unwrap(), (Stdio, Off));
    assert_eq!(consoles(&["--virtio-console", "pty"]).unwrap(), (Stdio, Pty));
    assert_eq!(consoles(&["--virtio-console", "stdio"]).unwrap(), (Off, Stdio));
    let both = ["--virtio-console", "stdio", "--console", "pty"];
    assert_eq!(consoles(&both).unwrap(), (Pty, Stdio));
    let both = ["--virtio-console", "stdio", "--console", "stdio"];
    assert_eq!(consoles(&both).unwrap_err().exit_status(), 2);
}

#[test]
fn each_trace_has_a_file_of_its_own() {
    let error = run(&["--trace", "a,out=x", "--trace", "b", "--trace", "c,out=x"]).unwrap_err();
    assert!(error.message().contains("out=x"), "{}", error.message());
    assert!(run(&["--trace", "a,out=x", "--trace", "b", "--trace", "c,out=y"]).is_ok());
}

#[test]
fn of_two_values_none_is_taken() {
    for (option, first, second) in [
        ("--kernel", "a", "b"),
        ("--firmware", "a", "a,vars=b"),
        ("--initrd", "a", "b"),
        ("--cmdline", "quiet", "debug"),
        ("--cpus", "1", "1"),
        ("--memory", "64M", "128M"),
        ("--iommu", "auto", "container"),
        ("--iommufd-fd", "0", "1"),
        ("--vsock", "cid=3", "cid=4"),
        ("--gic", "2", "3"),
        ("--balloon", "free-page-reporting", "free-page-reporting"),
        ("--console", "off", "stdio"),
        ("--serial", "8250", "pl011"),
        ("--virtio-console", "pty", "off"),
        ("--timeout", "1", "2"),
        ("--grace", "1", "2"),
        ("--dump-dtb", "a", "b"),
        ("--stats", "a", "b"),
        ("--junit", "a", "b"),
        ("--log-level", "off", "info"),
    ] {
        let error = run(&[option, first, option, second]).unwrap_err();
        // A kernel is there already.
        let first = if option == "--kernel" { "Image" } else { first };
        let second = if option == "--kernel" { "a" } else { second };
        let text = format!("{option} is given twice, as `{first}` and as `{second}`");
        assert_eq!((error.message(), error.exit_status()), (text.as_str(), 2));
    }
}

#[test]
fn times_fit_the_host_s_timers() {
    for time in ["0", "-1", "1e-10", "nan", "inf", "1e19", "2147483648", "1s", ""] {
        for option in ["--timeout", "--grace"] {
            assert_eq!(run(&[option, time]).unwrap_err().exit_status(), 2, "{option} {time}");
        }
    }
    assert_eq!(run(&["--timeout", "0.5"]).unwrap().timeout, Some(Duration::from_millis(500)));
    assert!(run(&["--grace", "2147483647"]).is_ok());
}
