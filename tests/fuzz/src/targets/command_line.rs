//! The command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use arbitrary::{Result, Unstructured};

/// What words are made of.
const PARTS: &[&str] = &[
    "run",
    "device",
    "check",
    "help",
    "--",
    "--help",
    "--version",
    "--kernel",
    "--initrd",
    "--cmdline",
    "--cpus",
    "--memory",
    "--vfio-platform",
    "--vfio-pci",
    "--vfio-user",
    "--block",
    "--net",
    "--passt",
    "--vsock",
    "--vhost-user",
    "--share",
    "--balloon",
    "--bind",
    "--force",
    "--iommu",
    "--cpu-features",
    "--gic",
    "--console",
    "--virtio-console",
    "--timeout",
    "--until",
    "--fail-on",
    "--stats",
    "--dtb-overlay",
    "--dry-run",
    "--json",
    "--log",
    "--peer",
    "list",
    "show",
    "bind",
    "unbind",
    "test",
    "export",
    "kconfig",
    "=",
    ",",
    ":",
    "-",
    "/",
    ".",
    "0",
    "1",
    "9",
    "18446744073709551615",
    "0x",
    "K",
    "M",
    "G",
    "T",
    "2M",
    "hugepages",
    "base",
    "shared",
    "tap",
    "mac",
    "52:54:00:12:34:56",
    "vhost",
    "on",
    "off",
    "auto",
    "ro",
    "rw",
    "snapshot",
    "direct",
    "serial",
    "queues",
    "aio",
    "threads",
    "io_uring",
    "socket",
    "net",
    "block",
    "fs",
    "type",
    "config",
    "cid",
    "0000:01:00.0",
    "2c0a0000.dma",
    "clock",
    "rate",
    "drop",
    "alias",
    "name",
    "compatible",
    "reg",
    "at",
    "mmap",
    "reset",
    "fd",
    "unix:",
    "pty",
    "stdio",
    "file:",
    "none",
    "v2",
    "v3",
    "its",
    "pmu",
    "sve",
    "ptrauth",
    "user",
    "peer",
    "any",
    "\u{fffd}",
    "ß",
];

/// The most words.
const MAX_WORDS: usize = 24;

pub fn run(data: &[u8]) {
    let words = words(&mut Unstructured::new(data)).unwrap_or_default();
    match vmm::fuzzing::command_line(words) {
        Ok(command) => assert!(!command.is_empty()),
        Err(error) => assert!(error.starts_with("error: "), "{error}"),
    }
}

fn words(u: &mut Unstructured<'_>) -> Result<Vec<OsString>> {
    let mut words = vec![b"strait".to_vec()];
    let mut word = Vec::new();
    while !u.is_empty() && words.len() < MAX_WORDS {
        match u.arbitrary::<u8>()? {
            255 => words.push(std::mem::take(&mut word)),
            254 => word.push(u.arbitrary()?),
            part => {
                let part = PARTS[usize::from(part) % PARTS.len()];
                // An option, or a command, begins a word.
                if part.len() > 2 && part.starts_with("--") && !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                word.extend(part.bytes());
                if part.len() > 2 && (part.starts_with("--") || words.len() == 1) {
                    words.push(std::mem::take(&mut word));
                }
            }
        }
    }
    words.push(word);
    Ok(words.into_iter().map(OsString::from_vec).collect())
}
