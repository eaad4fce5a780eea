//! Says what cargo doesn't of a Rust that is too old: where a newer one comes from. `cargo model` has
//! cargo not look at `rust-version`, so that this is what speaks.

use std::env;
use std::process::{Command, ExitCode};

/// Of the root manifest.
const NEEDED: &str = env!("CARGO_PKG_RUST_VERSION");

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(&rustc).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    let found = said.split_whitespace().nth(1).and_then(minor);
    if found.is_none() || found >= minor(NEEDED) {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "error: strait needs Rust {NEEDED} or newer, and this is {}\n  \
         help: on Debian: sudo apt install cargo-web (the package `cargo` is older)\n  \
         help: elsewhere: rustup update (README.md, \"Install\")",
        said.trim()
    );
    ExitCode::FAILURE
}

/// The second number of a version.
fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}
