//! What is made from `strait --help`, and what else in `resources` stands for itself.

use std::fs;
use std::process::Command;

use tests::artifacts::Artifacts;
use tests::harness::{Board, TestResult, payload};
use tests::manual;
use tests::setup::workspace;
use tests::suite;

/// What a shell prints for this script, which must succeed.
fn sh(shell: &str, script: &str) -> String {
    let output = Command::new(shell).args(["-c", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}:\n{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_man_page_and_completions_match_the_help() {
    let strait = Artifacts::from_env().unwrap().strait;
    for made in manual::make(&strait).unwrap() {
        let path = workspace::root().join(&made.path);
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(there == made.text, "{} is out of date: cargo model manual", made.path.display());
    }
}

#[test]
fn bash_completes_commands_options_and_values() {
    let path = workspace::root().join("resources/completions/strait.bash");
    let complete = |words: &str, at: usize| {
        let script = format!(
            "source {}; COMP_WORDS=({words}); COMP_CWORD={at}; _strait; \
             echo \"${{COMPREPLY[@]}}\"",
            path.display()
        );
        sh("bash", &script).trim().to_owned()
    };
    assert_eq!(complete("strait ch", 1), "check");
    assert_eq!(complete("strait run --kern", 2), "--kernel");
    assert_eq!(complete("strait run --iommu io", 3), "iommufd");
    assert!(complete("strait device b", 2).contains("bind"));
    // There are no devices here, and no strait.
    assert_eq!(complete("strait run --vfio-pci 0", 3), "");
}

#[test]
fn shrinkwrap_takes_the_overlay_for_the_fvp() {
    let Some(directory) = std::env::var_os(suite::SHRINKWRAP) else {
        println!(
            "shrinkwrap isn't tried: pip install shrinkwraptool, and {} names where",
            suite::SHRINKWRAP
        );
        return;
    };
    let overlay = workspace::root().join("resources/ci/strait-fvp.yaml");
    let mut shrinkwrap = Command::new("python3");
    shrinkwrap.env("PYTHONPATH", directory).current_dir("/");
    shrinkwrap.args(["-m", "shrinkwrap", "process", "ns-edk2.yaml", "--action", "resolver"]);
    shrinkwrap.args(["--overlay", "arch/v8.5.yaml", "--overlay"]).arg(overlay);
    shrinkwrap.args(["--rtvar", "SHARE=/srv/share", "--rtvar", "SATA=/srv/disk.img"]);
    let output = shrinkwrap.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let resolved = String::from_utf8(output.stdout).unwrap();
    for wanted in [
        "-C pci.pcie_rc.ahci0.ahci.image_path: /srv/disk.img",
        "-C bp.virtiop9device.root_path: /srv/share",
        "CONFIG_VFIO_DEVICE_CDEV",
        "vfio_platform.reset_required=0",
    ] {
        assert!(resolved.contains(wanted), "no {wanted} in:\n{resolved}");
    }
}

#[test]
fn the_systemd_unit_is_valid_and_its_options_exist() {
    let strait = Artifacts::from_env().unwrap().strait;
    let help = manual::texts(&strait).unwrap();
    let examples = workspace::root().join("resources/examples");
    let unit = fs::read_to_string(examples.join("strait@.service")).unwrap();
    let lines =
        unit.lines().filter(|line| line.contains("/usr/bin/strait") || line.contains("OPTIONS="));
    let options: Vec<&str> =
        lines.flat_map(str::split_whitespace).filter(|word| word.starts_with("--")).collect();
    assert!(options.contains(&"--owner"), "{options:?}");
    for option in options {
        assert!(help.contains(&format!("{option} ")), "{option}");
    }
    // systemd wants the program to be there, and says what it doesn't know on standard error.
    let directory = std::env::temp_dir().join(format!("strait-unit-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("strait@guest.service");
    fs::write(&path, unit.replace("/usr/bin/strait", "/bin/true")).unwrap();
    let verify = "command -v systemd-analyze >/dev/null || exit 0; systemd-analyze verify --man=no";
    let complaints = sh("sh", &format!("{verify} {} 2>&1", path.display()));
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(complaints, "", "systemd-analyze verify");
}

#[test]
fn the_boot_test_script_reports_how_the_guest_ended() -> TestResult {
    let script = fs::read(workspace::root().join("resources/ci/boot-test.sh")).unwrap();
    let host = Board::new().file("bin/boot-test", script).file("k/spin", payload::spin()).boot()?;
    let powers_off = "boot-test /k/model /k/guest.cpio --cmdline 'quiet strait.do=poweroff'";
    let resets = powers_off.replace("poweroff", "reset");
    for (command, status, verdict) in [
        (powers_off, 0, "PASS: the guest powered off\n"),
        (&format!("EXPECT='READY: poweroff' {powers_off}"), 0, "PASS: the guest powered off\n"),
        (
            &format!("EXPECT=login: {powers_off}"),
            1,
            "FAIL: the guest powered off without saying: login:\n",
        ),
        (&resets, 3, "FAIL: the guest asked for a reset\n"),
        (
            "TIMEOUT=1 boot-test /k/spin /k/guest.cpio",
            124,
            "FAIL: the guest was still running after 1 s\n",
        ),
        (
            &format!("{powers_off} --until poweroff"),
            0,
            "PASS: the guest's console has `poweroff` (--until)\n",
        ),
        (
            &format!("EXPECT=login: {powers_off} --until poweroff"),
            1,
            "FAIL: the guest's console has `poweroff` (--until) without saying: login:\n",
        ),
        (
            &format!("{powers_off} --until login:"),
            5,
            "FAIL: the guest powered off, and its console never had `login:` (--until)\n",
        ),
        (
            &format!("{powers_off} --fail-on poweroff"),
            5,
            "FAIL: the guest's console has `poweroff` (--fail-on): ",
        ),
        (
            "{ until kill $(pidof strait) 2>/dev/null; do :; done; } & \
             boot-test /k/spin /k/guest.cpio",
            128 + 15,
            "FAIL: the guest was ended with strait, by signal 15\n",
        ),
        ("boot-test /k/none /k/guest.cpio", 1, "FAIL: the guest did not run: error: "),
        ("boot-test /k/model", 2, ""),
    ] {
        let answer = host.run(&format!("cd /tmp && {command}"))?;
        assert_eq!(answer.status, status, "{command}: {answer:?}");
        assert!(answer.output.starts_with(verdict), "{command}: {answer:?}");
    }
    Ok(())
}
