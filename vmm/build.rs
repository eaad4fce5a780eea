//! Says what to do where strait can't be built, and how it is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("aarch64") {
        println!(
            "cargo::error=strait runs on 64-bit Arm hosts: `cargo model build` cross-builds it, \
             `cargo model demo` runs it in the system model"
        );
    }
    // The functions of a run lie together: see there.
    println!("cargo::rerun-if-changed=run.ld");
    if let Ok(here) = std::env::var("CARGO_MANIFEST_DIR") {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/run.ld");
    }
}
