//! The clone that this tool was built from, and where cargo puts what it builds of it.

use std::path::{Path, PathBuf};

/// The workspace's root directory. Cargo doesn't build anew what was moved with its clone, but says where it
/// runs it.
pub fn root() -> PathBuf {
    let moved = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let moved = moved.filter(|package| package.ends_with("tests"));
    let package = moved.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    package.parent().unwrap_or(&package).to_owned()
}

/// The directory with the model's patch, configuration and init script.
pub fn model_dir() -> PathBuf {
    root().join("tests/model")
}

/// The directory for what this tool builds: `model` in the target directory from which it runs, so
/// that `cargo clean` removes it, and cargo's lock there is never the one of an outer `cargo run`.
pub fn target_dir() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    // <target>/<profile>/model
    match program.parent().and_then(Path::parent) {
        Some(target) if target.join("CACHEDIR.TAG").exists() => target.join("model"),
        _ => root().join("target/model"),
    }
}
