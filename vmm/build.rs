//! How strait is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The functions of a run lie together: see there.
    println!("cargo::rerun-if-changed=run.ld");
    let arm = std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("aarch64");
    if let (true, Ok(here)) = (arm, std::env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/run.ld");
    }
}
