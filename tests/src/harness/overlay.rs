//! Device tree overlays for the files of a board.

use std::io::Write;
use std::process::{Command, Stdio};

/// The blob of an overlay with these fragments.
///
/// # Panics
///
/// As [`compile_overlay`].
pub fn overlay(fragments: &str) -> Vec<u8> {
    compile_overlay(&format!("/dts-v1/;\n/plugin/;\n{fragments}"))
}

/// Compiles an overlay, on the machine that runs the tests.
///
/// # Panics
///
/// dtc isn't there, or refuses the source.
pub fn compile_overlay(source: &str) -> Vec<u8> {
    let mut child = Command::new("dtc")
        .args(["-q", "-@", "-I", "dts", "-O", "dtb"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs dtc: apt install device-tree-compiler");
    child.stdin.take().expect("a pipe").write_all(source.as_bytes()).expect("dtc reads");
    let output = child.wait_with_output().expect("dtc ends");
    assert!(output.status.success());
    output.stdout
}
