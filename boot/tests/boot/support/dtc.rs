//! The device tree compiler, which must be installed: it is the judge.

use std::io::Write;
use std::process::{Command, Stdio};

/// What dtc makes of `input` with these arguments.
pub fn dtc(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("dtc")
        .arg("-q")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need dtc: apt install device-tree-compiler");
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The blob of a source, with symbols as overlays need them.
pub fn compile(source: &str) -> Vec<u8> {
    dtc(&["-@", "-I", "dts", "-O", "dtb"], source.as_bytes())
}
