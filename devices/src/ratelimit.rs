//! Rate limits for log lines that a guest or another process can cause.
//!
//! As the kernel's `ratelimit`: without one, a guest that writes to a register in a loop fills the disk
//! that the log is on, or slows strait down by the log's reader.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use log::Level;

use crate::sync::lock;

/// The number of lines of a source that are logged as fast as they come.
pub const BURST: u32 = 5;

/// The time after which one more line is logged.
const REFILL: Duration = Duration::from_secs(60);

/// Limits the log lines of one source, which begin with its name.
///
/// The number of lines that were left out is logged with the next line, or when this is dropped.
#[derive(Debug)]
pub struct LogLimit {
    source: Cow<'static, str>,
    bucket: Mutex<TokenBucket>,
}

/// A token bucket.
#[derive(Debug)]
struct TokenBucket {
    tokens: u32,
    /// When the tokens that are there now were filled in; `None` while all are there.
    filled: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// Limits the lines of this source.
    pub const fn new(source: &'static str) -> Self {
        Self::of(Cow::Borrowed(source))
    }

    /// Limits the lines of a source whose name is not known before.
    pub fn named(source: impl Into<String>) -> Self {
        Self::of(Cow::Owned(source.into()))
    }

    const fn of(source: Cow<'static, str>) -> Self {
        let bucket = TokenBucket { tokens: BURST, filled: None, left_out: 0 };
        Self { source, bucket: Mutex::new(bucket) }
    }

    /// Logs an error of the source, unless there were too many lines.
    #[cold]
    pub fn error(&self, line: Arguments<'_>) {
        self.log(Level::Error, line);
    }

    /// Logs a warning of the source, unless there were too many lines.
    #[cold]
    pub fn warn(&self, line: Arguments<'_>) {
        self.log(Level::Warn, line);
    }

    /// Logs an event of the source, unless there were too many lines.
    #[cold]
    pub fn info(&self, line: Arguments<'_>) {
        self.log(Level::Info, line);
    }

    /// Logs an event of the source for debugging, unless there were too many lines.
    #[cold]
    pub fn debug(&self, line: Arguments<'_>) {
        self.log(Level::Debug, line);
    }

    fn log(&self, level: Level, line: Arguments<'_>) {
        if !log::log_enabled!(level) {
            return;
        }
        let Some(left_out) = self.bucket().admit(Instant::now()) else { return };
        self.log_left_out(left_out);
        log::log!(level, "{}: {line}", self.source);
    }

    fn log_left_out(&self, left_out: u64) {
        if left_out != 0 {
            let lines = if left_out == 1 { "line was" } else { "lines were" };
            log::warn!("{}: {left_out} more {lines} left out", self.source);
        }
    }

    fn bucket(&self) -> MutexGuard<'_, TokenBucket> {
        lock(&self.bucket)
    }
}

impl Drop for LogLimit {
    fn drop(&mut self) {
        let left_out = std::mem::take(&mut self.bucket().left_out);
        self.log_left_out(left_out);
    }
}

impl TokenBucket {
    /// Admits a line: the number of lines that were left out before it. `None` if it is left out.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if let Some(filled) = self.filled {
            let missing = BURST - self.tokens;
            let full = now.saturating_duration_since(filled).as_secs() / REFILL.as_secs();
            let more = u32::try_from(full).unwrap_or(missing).min(missing);
            self.tokens += more;
            self.filled = (more < missing).then(|| filled + REFILL * more);
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                self.filled.get_or_insert(now);
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out = self.left_out.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket() -> TokenBucket {
        TokenBucket { tokens: BURST, filled: None, left_out: 0 }
    }

    #[test]
    fn a_burst_is_admitted_and_a_flood_is_counted() {
        let (mut bucket, now) = (bucket(), Instant::now());
        let admitted = (0..100_000).filter(|_| bucket.admit(now).is_some()).count();
        assert_eq!(admitted, 5);
        assert_eq!(bucket.left_out, 99_995);
        assert_eq!(bucket.admit(now + REFILL), Some(99_995));
        assert_eq!(bucket.admit(now + REFILL), None);
    }

    #[test]
    fn an_endless_flood_gets_a_line_a_minute() {
        let (mut bucket, start) = (bucket(), Instant::now());
        // An hour, ten a second.
        let times = (0..36_000).map(|n| start + Duration::from_millis(100) * n);
        assert_eq!(times.filter(|now| bucket.admit(*now).is_some()).count(), 5 + 59);
    }

    #[test]
    fn a_source_that_was_quiet_has_its_burst_again() {
        let (mut bucket, start) = (bucket(), Instant::now());
        assert_eq!((0..7).filter_map(|_| bucket.admit(start)).count(), 5);
        let later = start + REFILL * 1000;
        let admitted: Vec<_> = (0..6).map(|_| bucket.admit(later)).collect();
        assert_eq!(admitted, [Some(2), Some(0), Some(0), Some(0), Some(0), None]);
        // Time that goes backwards is no time.
        assert_eq!(bucket.admit(start), None);
    }
}
