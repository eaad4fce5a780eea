//! What libFuzzer drives: one target, which the environment names.
//!
//! libFuzzer's own `main` reads the arguments; a panic in any thread ends the process.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// The environment variable that names the target.
const TARGET: &str = "STRAIT_FUZZ_TARGET";

fn target() -> &'static fuzz::Target {
    static FOUND: OnceLock<&fuzz::Target> = OnceLock::new();
    FOUND.get_or_init(|| {
        // As in a program whose `main` is Rust's.
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let name = std::env::var(TARGET).unwrap_or_default();
        fuzz::find(&name).unwrap_or_else(|| panic!("{TARGET}: there is no target `{name}`"))
    })
}

fuzz_target!(|data: &[u8]| (target().run)(data));
