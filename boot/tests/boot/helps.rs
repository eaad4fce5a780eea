//! The commands that errors about kernels and initrds advise, typed as they are.

use boot::help::Help;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use boot::initrd::{Initrd, InitrdError};
use boot::kernel::Kernel;

use crate::support::files::{gzip, image_with_stub, padded_cpio};
use crate::support::scratch::Scratch;

/// The packages that have the tools.
const TOOLS: &str = "these tests need cpio lz4 lzop mkbootimg u-boot-tools unzip xz-utils zip zstd";

/// Runs commands in the directory.
fn sh(directory: &Path, commands: &str) {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", commands])
        .current_dir(directory)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{commands}\n{errors}{TOOLS}");
}

/// An arm64 Image, and that it is one still.
fn kernel() -> Vec<u8> {
    image_with_stub(20_000, 0x10_0000, 20_000)
}

/// The file with a name that a shell would take apart.
fn renamed(scratch: &Scratch) -> PathBuf {
    let path = scratch.path().join("it's $a file");
    fs::rename(scratch.path().join("file"), &path).unwrap();
    path
}

/// Makes a file of an Image by `commands`, types what the error about it advises, and opens what
/// that made.
fn kernel_is_mended(commands: &str, made: &str) {
    let scratch = Scratch::new();
    scratch.write("Image", kernel());
    scratch.write("Image.gz", gzip(&kernel()));
    sh(scratch.path(), &format!("{commands}; rm -f Image Image.gz"));
    let error = Kernel::open(&renamed(&scratch), None).unwrap_err();
    let help = error.help().unwrap_or_default();
    sh(scratch.path(), help.lines().next().unwrap_or_default());
    Kernel::open(&scratch.path().join(made), None)
        .unwrap_or_else(|e| panic!("{error}\n{help}\n{e}"));
}

/// A FIT's source with these files in it.
fn fit(parts: &[(&str, &str)]) -> String {
    let mut images = String::new();
    for (kind, file) in parts {
        write!(
            images,
            "{kind} {{ data = /incbin/(\"{file}\"); type = \"{kind}\"; arch = \"arm64\"; \
             os = \"linux\"; compression = \"none\"; load = <0>; entry = <0>; \
             hash {{ algo = \"crc32\"; }}; }};"
        )
        .unwrap();
    }
    format!(
        "/dts-v1/; / {{ description = \"test\"; #address-cells = <1>; images {{ {images} }}; \
         configurations {{ default = \"a\"; a {{ kernel = \"kernel\"; }}; }}; }};"
    )
}

#[test]
fn kernels_in_foreign_formats() {
    for compressor in ["bzip2", "xz", "lzma", "lz4", "lz4 -l", "lzop", "zstd"] {
        kernel_is_mended(&format!("{compressor} -c <Image >file"), "Image");
    }
    let mkimage = "mkimage -A arm64 -O linux -T kernel -C none -a 0 -e 0 -n a";
    kernel_is_mended(&format!("{mkimage} -d Image file"), "Image");
    kernel_is_mended(&format!("{mkimage} -d Image.gz file"), "Image");
    let source = fit(&[("kernel", "Image")]);
    kernel_is_mended(&format!("echo '{source}' >its; mkimage -f its file"), "Image");
    kernel_is_mended("mkbootimg --kernel Image -o file", "kernel");
    kernel_is_mended(
        "mkbootimg --header_version 2 --dtb Image --kernel Image.gz -o file",
        "kernel",
    );
}

/// The same for an initrd, made of an archive with a file `init`; the commands are at the help's
/// end.
fn initrd_is_mended(commands: &str, help_line: usize, made: &str) {
    let scratch = Scratch::new();
    scratch.write("cpio", padded_cpio(3000));
    scratch.write("Image", kernel());
    sh(
        scratch.path(),
        &format!("mkdir d; (cd d; cpio -id <../cpio); {commands}; rm -rf cpio Image d"),
    );
    let error = Initrd::open(&renamed(&scratch), false).unwrap_err();
    let help = error.help().unwrap_or_default();
    sh(scratch.path(), help.lines().nth(help_line).unwrap_or_default());
    let mended = Initrd::open(&scratch.path().join(made), false);
    mended.unwrap_or_else(|e| panic!("{error}\n{help}\n{e}"));
}

#[test]
fn initrds_in_foreign_formats() {
    initrd_is_mended("xz <cpio >file", 0, "initrd.xz");
    initrd_is_mended("lz4 <cpio >file", 0, "initrd.lz4");
    for (commands, line) in [
        ("cd d; find . | cpio -o -H odc >../file; cd ..", 0),
        ("cd d; find . | cpio -o -H odc | gzip >../file; cd ..", 0),
        ("cd d; find . | cpio -o -H bin >../file; cd ..", 0),
        ("tar -cf file -C d .", 0),
        ("tar -czf file -C d .", 0),
        ("cd d; zip -qr ../file .; cd ..; mv file.zip file", 0),
    ] {
        initrd_is_mended(commands, line, "initrd.cpio");
    }
    let mkimage = "mkimage -A arm64 -O linux -T multi -C none -a 0 -e 0 -n a -d Image:cpio file";
    initrd_is_mended(mkimage, 1, "initrd");
    let source = fit(&[("kernel", "Image"), ("ramdisk", "cpio")]);
    initrd_is_mended(&format!("echo '{source}' >its; mkimage -f its file"), 1, "initrd");
    initrd_is_mended("mkbootimg --kernel Image --ramdisk cpio -o file", 0, "ramdisk");
}

#[test]
fn what_is_only_wrapped_or_made_by_linux_own_tools_needs_no_mending() {
    let scratch = Scratch::new();
    scratch.write("cpio", padded_cpio(3000));
    for commands in [
        "mkimage -A arm64 -O linux -T ramdisk -C none -n a -d cpio file",
        "gzip -9 <cpio >gz; mkimage -A arm64 -O linux -T ramdisk -C gzip -n a -d gz file",
        "gzip -n -9 <cpio >file",
        "bzip2 <cpio >file",
        "lzma <cpio >file",
        "xz --check=crc32 <cpio >file",
        "lzop <cpio >file",
        "lz4 -l <cpio >file",
        "zstd -q <cpio >file",
        "mkdir -p root && touch root/a && (cd root && find . | cpio -o -H newc) > file",
    ] {
        sh(scratch.path(), commands);
        let opened = Initrd::open(&scratch.path().join("file"), false);
        opened.unwrap_or_else(|e: InitrdError| panic!("{commands}: {e}"));
    }
}
