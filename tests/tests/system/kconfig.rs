//! `strait device kconfig` by what it is for: a guest's kernel with just the options that it names drives the
//! device.

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::harness::{AMBA_DMA, Board, DmaTest, Failure, Launch, TestResult};
use tests::setup::workspace;
use tests::suite::LINUX;

use crate::tools::{Scratch, output};

/// Unpacks Debian's package of Linux' sources, without most of other processors' and of what is large.
const UNPACK: &str = "\
dpkg-deb --fsys-tarfile \"$1\" | tar -xO --wildcards './usr/src/*.tar.xz' | \
tar -xJ --strip-components=1 --anchored --wildcards --exclude='*/arch/[!a]*/*.[chS]' \
    --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/media/*.[ch]' --exclude='*/sound/*.[ch]' \
    --exclude='*/tools/testing/*'";

/// What of them tells of DMA controllers: in the model it takes minutes to read all of them.
const PART: &str = "\
find . -name 'Kconfig*' -o -name Makefile -o -path './drivers/dma/*.c' -o -path './drivers/amba/*.c' | \
cpio --quiet -o -H newc";

/// What a guest's kernel needs that isn't for a PL330, and the kernel's own test of DMA controllers, which is
/// there only with one.
fn without_controller() -> String {
    let path = workspace::root().join("resources/guest.config");
    let of_controller = ["CONFIG_ARM_AMBA=", "CONFIG_DMADEVICES=", "CONFIG_PL330_DMA="];
    let options = fs::read_to_string(path).unwrap();
    let is_other = |line: &&str| !of_controller.iter().any(|name| line.starts_with(name));
    let lines: Vec<&str> = options.lines().filter(is_other).collect();
    lines.join("\n") + "\nCONFIG_DMATEST=y\n"
}

fn shell(directory: &Path, script: &str, argument: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("set -e; {script}"), "sh"]).arg(argument).current_dir(directory);
    shell
}

/// Builds the kernel of these sources with these options and no others, beside what they select.
fn build(linux: &Path, directory: &Path, options: &str) -> Vec<u8> {
    let all = directory.join("all.config");
    fs::write(&all, options).unwrap();
    for target in [&["allnoconfig"][..], &["-j2", "Image"]] {
        let mut make = Command::new("make");
        make.current_dir(linux).args(["-s", "ARCH=arm64"]).env("KCONFIG_ALLCONFIG", &all);
        if cfg!(not(target_arch = "aarch64")) {
            make.arg("CROSS_COMPILE=aarch64-linux-gnu-");
        }
        output({
            make.arg(format!("O={}", directory.display())).args(target);
            make
        });
    }
    fs::read(directory.join("arch/arm64/boot/Image")).unwrap()
}

/// What strait says that a kernel needs for this device.
fn named(device: &str, sources: Vec<u8>) -> Result<String, Failure> {
    let host = Board::new().file("tmp/linux.cpio", sources).boot()?;
    host.sh("mkdir /linux && cd /linux && cpio -id </tmp/linux.cpio 2>/dev/null")?;
    host.sh(&format!("strait device kconfig {device} --tree /linux"))
}

#[test]
#[ignore = "takes long: cargo model test --soak"]
fn a_kernel_with_the_options_that_are_named_drives_the_device() -> TestResult {
    let Some(package) = std::env::var_os(LINUX) else {
        println!("not tried, since {LINUX} names no package of sources: cargo model test --soak");
        return Ok(());
    };
    let (device, scratch) = (AMBA_DMA[0], Scratch::new("kconfig"));
    let [linux, directory] = ["linux", "build"].map(|name| scratch.0.join(name));
    fs::create_dir(&linux).unwrap();
    fs::create_dir(&directory).unwrap();
    output(shell(&linux, UNPACK, Path::new(&package)));
    let part = shell(&linux, PART, Path::new("")).output().unwrap();
    assert!(part.status.success());
    let named = named(device, part.stdout)?;
    let image = build(&linux, &directory, &(without_controller() + &named));

    let host = Board::new().file("k/named", image).boot()?;
    host.bind(device)?;
    let launch = Launch::model().kernel("/k/named").with(&format!("--vfio-platform {device}"));
    let mut guest = host.launch(&launch)?;
    assert!(guest.log_of("PL330")?.contains("Loaded driver"));
    let test = DmaTest::default();
    let DmaTest { copies, size, channels } = test;
    // The test is part of this kernel. Reading `wait` returns when it has ended.
    guest.sh(&format!(
        "cd /sys/module/dmatest/parameters && echo {copies} >iterations && echo {size} >test_buf_size && \
         echo {channels} >max_channels && echo 20000 >timeout && echo 1 >run && cat wait"
    ))?;
    test.check(&guest.log_of("summary")?).unwrap();
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}
