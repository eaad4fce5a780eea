//! What labs run: the check script and its test cases, LAVA's job by its own dispatcher, tuxrun, labgrid.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tests::artifacts::Artifacts;
use tests::harness::{Board, PLATFORM_DMA, TestResult, payload};
use tests::setup::workspace;

use crate::tools::{Scratch, command, output, tools};

/// What a guest of the model says of its DMA controller.
const DRIVER_SAYS: &str = "Loaded driver for PL330";

fn ci(name: &str) -> PathBuf {
    workspace::root().join("resources/ci").join(name)
}

/// What a lab downloads: the host's kernel and root file system, the overlay; and the model's QEMU, by the
/// names that LAVA calls it by.
fn downloads(scratch: &Scratch) -> TestResult {
    let (kernel, initramfs) = Board::new().linux()?;
    let artifacts = Artifacts::from_env().unwrap();
    fs::write(scratch.path("rootfs.cpio"), initramfs).unwrap();
    std::os::unix::fs::symlink(kernel, scratch.path("Image")).unwrap();
    fs::create_dir(scratch.path("bin")).unwrap();
    for name in ["qemu-system-arm64", "qemu-system-aarch64"] {
        std::os::unix::fs::symlink(&artifacts.qemu, scratch.0.join("bin").join(name)).unwrap();
    }
    let mut make = Command::new(ci("make-overlay.sh"));
    make.arg(scratch.path("overlay.tar.gz")).args([&artifacts.strait, &artifacts.host_kernel]);
    output(make);
    Ok(())
}

#[test]
fn the_check_script_reports_each_step_as_a_test_case() -> TestResult {
    let script = fs::read(ci("lab-check.sh")).unwrap();
    let lava = "#!/bin/sh\necho \"$*\" >>/tmp/cases\n";
    // A guest that says X, and powers off.
    let says_x = payload::write_byte(0x0900_0000, u32::from(b'X'), 1);
    let board = Board::new().file("bin/lab-check", script).file("tmp/lava-test-case", lava);
    let host = board.file("k/off", payload::power_off()).file("k/x", says_x).boot()?;
    let device = PLATFORM_DMA[0];
    let variables = format!(
        "KERNEL=/k/model INITRD=/k/guest.cpio UNTIL=READY DRIVER_SAYS='{DRIVER_SAYS}' LOGS=/tmp"
    );
    // By LAVA's command.
    host.sh(&format!("export PATH=$PATH:/tmp {variables} DEVICES={device}; lab-check"))?;
    let steps = ["bind", "test", "guest", "unbind"].map(|step| format!("{step}-{device}"));
    let names = ["version", "host", "boot"].map(str::to_owned).into_iter().chain(steps);
    let expected: String = names.map(|name| format!("{name} --result pass\n")).collect();
    assert_eq!(host.sh("cat /tmp/cases")?, expected);
    let report = host.sh(&format!("cat /tmp/guest-{device}.xml"))?;
    assert!(report.contains("failures=\"0\"") && report.contains(DRIVER_SAYS), "{report}");
    // Without it, and with what fails: a guest that doesn't come up, a device that isn't there, another
    // driver than the one that is waited for.
    let silent = format!("KERNEL=/k/x INITRD= UNTIL=X DEVICES={device} DRIVER_SAYS=nothing");
    for (changed, status, wanted) in [
        ("KERNEL=/k/off UNTIL=never INITRD=", 1, "boot: fail\n"),
        ("KERNEL= DEVICES=none", 1, "bind-none: fail\ntest-none: skip\nguest-none: skip\n"),
        (&silent, 1, &format!("guest-{device}: fail\n")),
        ("KERNEL=", 0, "version: pass\n"),
    ] {
        let answer = host.run(&format!("{variables} TIMEOUT=60 {changed} lab-check"))?;
        assert_eq!(answer.status, status, "{changed}: {answer:?}");
        assert!(answer.output.contains(wanted), "{changed}: {answer:?}");
        assert_eq!(answer.output.contains("fail"), status != 0, "{changed}: {answer:?}");
    }
    Ok(())
}

/// `text` with each of these in place of another, which must be there.
fn changed(text: String, changes: &[(&str, &str)]) -> String {
    changes.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "no {from} in {text}");
        text.replace(from, to)
    })
}

/// The job, with everything that it downloads here, the model's machine, and the test definition in it with
/// the parameters that the job would have.
fn job(scratch: &Scratch) -> String {
    let definition = changed(
        fs::read_to_string(ci("lava/strait.yaml")).unwrap(),
        &[
            ("DEVICES: \"\"", &format!("DEVICES: {}", PLATFORM_DMA[0])),
            ("INITRD: /opt/strait/initrd", "INITRD: /k/guest.cpio"),
            ("UNTIL: \"login:\"", "UNTIL: READY"),
            ("DRIVER_SAYS: \"\"", &format!("DRIVER_SAYS: {DRIVER_SAYS}")),
        ],
    );
    let indented: String = definition.lines().map(|line| format!("            {line}\n")).collect();
    let job = fs::read_to_string(ci("lava/job-qemu.yaml")).unwrap();
    let (job, _) = job.split_once("          parameters:").unwrap();
    let url = |name: &str| format!("file://{}", scratch.path(name));
    changed(
        job.to_owned(),
        &[
            ("https://example.com/host/Image", &url("Image")),
            ("https://example.com/host/rootfs.cpio", &url("rootfs.cpio")),
            ("https://example.com/strait-overlay.tar.gz", &url("overlay.tar.gz")),
            ("console=ttyAMA0", "console=ttyAMA0 loglevel=6 model.do=shell"),
            ("max,pauth-impdef=on", "max,pauth=off,sve=off"),
            (
                "repository: https://example.com/strait.git\n          from: git\n",
                &format!("from: inline\n          repository:\n{indented}"),
            ),
        ],
    )
}

/// Makes what LAVA is told of a device, of the type `qemu` and the job's context, by tuxrun's templates.
const DEVICE: &str = "
import jinja2, pathlib, sys, tuxlava, yaml
context = yaml.safe_load(open('job.yaml'))['context']
templates = pathlib.Path(tuxlava.__file__).parent / 'templates/devices'
environment = jinja2.Environment(loader=jinja2.FileSystemLoader(templates))
device = environment.get_template('qemu.yaml.jinja2').render(**context)
open('device.yaml', 'w').write(device + '\\nparameters: {}\\n')
";

/// Whether the files are what LAVA's server takes.
const VALIDATE: &str = "
import sys, yaml
from lava_common.schemas import validate
from lava_common.schemas.device import validate as validate_device
from lava_common.schemas.test.testdef import validate as validate_definition
for path in sys.argv[2:]:
    validate(yaml.safe_load(open(path)))
validate_definition(yaml.safe_load(open(sys.argv[1])))
validate_device(yaml.safe_load(open('device.yaml')))
";

#[test]
fn lavas_dispatcher_runs_the_job() -> TestResult {
    let Some(tools) = tools() else { return Ok(()) };
    let scratch = Scratch::new("lava");
    downloads(&scratch)?;
    fs::write(scratch.path("job.yaml"), job(&scratch)).unwrap();
    let download_directory = format!("dispatcher_download_dir: {}\n", scratch.path("tmp"));
    fs::write(scratch.path("dispatcher.yaml"), download_directory).unwrap();
    let mut make = command(&tools, &scratch, "python3");
    make.args(["-c", DEVICE]);
    output(make);
    let mut validate = command(&tools, &scratch, "python3");
    validate.args(["-c", VALIDATE]).arg(ci("lava/strait.yaml"));
    output({
        validate.args([ci("lava/job-qemu.yaml"), scratch.0.join("job.yaml")]);
        validate
    });
    let mut run = command(&tools, &scratch, "lava-run");
    run.args(["--skip-sudo-warning", "--job-id", "1", "--output-dir", "out"]);
    run.args(["--device", "device.yaml", "--dispatcher", "dispatcher.yaml", "job.yaml"]);
    let log = output(run);
    let device = PLATFORM_DMA[0];
    for case in ["version", "host", "boot"]
        .map(str::to_owned)
        .into_iter()
        .chain(["bind", "test", "guest", "unbind"].map(|step| format!("{step}-{device}")))
    {
        let wanted = format!("\"case\": \"{case}\", \"result\": \"pass\"");
        assert!(log.contains(&wanted), "no {wanted} in:\n{log}");
    }
    assert!(!log.contains("\"result\": \"fail\""), "{log}");
    Ok(())
}

// It runs the same dispatcher as the test above.
#[test]
#[ignore = "takes long: cargo model test --soak"]
fn tuxrun_runs_the_check_script() -> TestResult {
    let Some(tools) = tools() else { return Ok(()) };
    let scratch = Scratch::new("tuxrun");
    downloads(&scratch)?;
    let mut run = command(&tools, &scratch, "python3");
    run.env("XDG_CACHE_HOME", scratch.path("cache"));
    run.args(["-m", "tuxrun", "--runtime", "null", "--device", "qemu-arm64"]);
    run.args(["--dispatcher-download-dir", &scratch.path("tmp"), "--results", "results.json"]);
    run.args(["--kernel", &scratch.path("Image"), "--rootfs", &scratch.path("rootfs.cpio")]);
    run.args(["--overlay", &scratch.path("overlay.tar.gz"), "--prompt", "~ # "]);
    run.args(["--boot-args", "loglevel=6 model.do=shell", "--"]);
    run.arg(
        "INITRD=/k/guest.cpio UNTIL=READY LOGS=/tmp KERNEL=/opt/strait/kernel /usr/bin/strait-lab-check",
    );
    let said = output(run);
    let results = fs::read_to_string(scratch.path("results.json")).unwrap();
    let results: serde_json::Value = serde_json::from_str(&results).unwrap();
    for case in ["version", "host", "boot", "command"] {
        assert_eq!(results["commands"][case]["result"], "pass", "{case}: {results}\n{said}");
    }
    Ok(())
}

/// What a board does when somebody has come by ssh, as the command in labgrid's environment does: its shell
/// runs this. The guest's shell has a prompt.
const PROFILE: &str = "\
cd /tmp && echo \"PS1='root@guest:~# '\" >rc && echo rc | cpio -o -H newc 2>/dev/null >rc.cpio
cat /k/guest.cpio rc.cpio >guest.cpio
exec strait run --kernel /k/model --initrd /tmp/guest.cpio --cmdline 'quiet ENV=/rc' \\
    --bind --vfio-platform 2c0a0000.dma
";

#[test]
fn labgrid_talks_to_a_guest() -> TestResult {
    let Some(tools) = tools() else { return Ok(()) };
    let scratch = Scratch::new("labgrid");
    let board = Board::new().file("root/.profile", PROFILE);
    let initramfs = scratch.0.join("rootfs.cpio");
    fs::write(&initramfs, board.linux()?.1).unwrap();
    let qemu = board.command_on_stdio("stdio", &initramfs)?;
    // As labgrid takes it: words of a shell.
    let words = std::iter::once(qemu.get_program()).chain(qemu.get_args());
    let words: Vec<String> =
        words.map(|word| format!("\"{}\"", word.to_string_lossy().replace('"', "\\\""))).collect();
    let environment = fs::read_to_string(ci("labgrid/guest.yaml")).unwrap();
    let (before, rest) = environment.split_once("ssh -tt board").unwrap();
    let (_, after) = rest.split_once("2c0a0000.dma").unwrap();
    let after = after.replace("login_timeout: 120", "login_timeout: 600");
    let changed = format!("{before}{}{after}", words.join(" "));
    fs::write(scratch.path("guest.yaml"), changed).unwrap();
    let mut pytest = command(&tools, &scratch, "python3");
    pytest.args(["-m", "pytest", "-p", "no:cacheprovider", "-vv", "--lg-log", "."]);
    pytest.args(["--lg-env", "guest.yaml"]).arg(ci("labgrid/test_guest.py"));
    pytest.env("DRIVER_SAYS", DRIVER_SAYS);
    let said = output(pytest);
    assert!(said.contains("3 passed"), "{said}");
    Ok(())
}
