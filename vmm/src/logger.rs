//! Log lines on standard error.

use log::{LevelFilter, Log, Metadata, Record};

use crate::output;

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            output::log(&format!("strait: {level}: {}\n", record.args()));
        }
    }

    fn flush(&self) {}
}

/// Logs what is at least as severe as `level` from here on.
pub fn init(level: LevelFilter) {
    // The only failure is that a logger is set already, and then it is this one.
    let _ = log::set_logger(&Stderr);
    log::set_max_level(level);
}
