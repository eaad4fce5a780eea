//! How strait is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // The functions of a run lie together: see there.
    println!("cargo::rerun-if-changed=run.ld");
    let is = |variable, value| std::env::var(variable).as_deref() == Ok(value);
    // Panics unwind in other profiles, and what unwinding takes is left out there.
    let runs = is("CARGO_CFG_TARGET_ARCH", "aarch64") && is("PROFILE", "release");
    if let (true, Ok(here)) = (runs, std::env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/run.ld");
    }
}
