//! strait: device assignment for 64-bit Arm.

#[cfg(not(target_arch = "aarch64"))]
compile_error!(
    "strait runs on 64-bit Arm hosts. `cargo model build` cross-builds it from here; \
     `cargo model demo` runs it in the system model."
);

fn main() {}
