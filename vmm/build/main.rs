//! How strait is linked, and what the kernel lets its threads ask for.

mod seccomp;

use std::path::Path;

/// Functions of glibc's that print floating-point numbers and wide characters, with tables and arithmetic
/// of 60 KB. Linked statically they come with what its assertions print, which are neither.
const UNUSED: [&str; 3] = ["__printf_fp", "__printf_fphex", "__vfwprintf_internal"];

fn main() {
    println!("cargo::rerun-if-changed=build");
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo");
    // The functions of a run lie together: see there.
    println!("cargo::rerun-if-changed=run.ld");
    let is = |variable, value| std::env::var(variable).as_deref() == Ok(value);
    // Panics unwind in other profiles, and what unwinding takes is left out there.
    if is("CARGO_CFG_TARGET_ARCH", "aarch64") && is("PROFILE", "release") {
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{here}/run.ld");
    }
    let has = |variable, word: &str| {
        std::env::var(variable).is_ok_and(|value| value.split(',').any(|one| one == word))
    };
    if has("CARGO_CFG_TARGET_FEATURE", "crt-static") && has("CARGO_CFG_TARGET_ENV", "gnu") {
        for function in UNUSED {
            println!("cargo::rustc-link-arg-bins=-Wl,--defsym={function}=abort");
        }
        println!("cargo::rustc-link-arg-bins=-Wl,--defsym=__dcigettext=strait_untranslated");
    }
    println!("cargo::rerun-if-changed=seccomp");
    let out = std::env::var("OUT_DIR").expect("set by cargo");
    if let Err(why) = seccomp::compile(&Path::new(&here).join("seccomp"), Path::new(&out)) {
        println!("cargo::error={why}");
    }
}
