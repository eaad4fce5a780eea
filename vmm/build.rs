//! Says what to do where strait can't be built.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("aarch64") {
        println!(
            "cargo::error=strait runs on 64-bit Arm hosts: `cargo model build` cross-builds it, \
             `cargo model demo` runs it in the system model"
        );
    }
}
