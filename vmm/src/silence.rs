//! A guest that says nothing: what may be wrong is told once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use boot::size::Size;

/// How long a guest may take to its first word: Linux takes less than a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// Watches for the first word.
pub struct Silence {
    until: Instant,
    spoke: Arc<AtomicBool>,
    shortage: Option<(u64, u64)>,
}

impl Silence {
    /// Watches from now on; `spoke` becomes true when the guest writes to its console. `shortage`
    /// tells how many bytes the kernel's file has of how many in memory, if it lacks many.
    pub fn new(spoke: Arc<AtomicBool>, shortage: Option<(u64, u64)>) -> Self {
        Self { until: Instant::now() + PATIENCE, spoke, shortage }
    }

    /// How long to wait before the next look, in ms.
    pub fn wait_ms(&self) -> i32 {
        let left = self.until.saturating_duration_since(Instant::now());
        // One more, for what is cut off.
        i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    }

    /// Looks; `None` when there is no more to wait for.
    pub fn look(self) -> Option<Self> {
        if self.spoke.load(Ordering::Relaxed) {
            return None;
        }
        if Instant::now() < self.until {
            return Some(self);
        }
        log::warn!("{}", self.text());
        None
    }

    fn text(&self) -> String {
        let mut text = format!(
            "the guest has written nothing to its console for {} s. Does its kernel have \
             CONFIG_SERIAL_8250_CONSOLE and CONFIG_SERIAL_OF_PLATFORM, and is ttyS0 its console \
             (--cmdline console=ttyS0)? --cmdline earlycon shows what it says before that",
            PATIENCE.as_secs()
        );
        if let Some((has, takes)) = self.shortage {
            text += &format!(
                ". Its file has {} of the {} that the kernel takes in memory: it may be cut off",
                Size(has),
                Size(takes)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_speaks_in_time_is_left_alone() {
        let spoke = Arc::new(AtomicBool::new(false));
        let silence = Silence::new(spoke.clone(), None);
        assert!((9_000..=10_001).contains(&silence.wait_ms()));
        let silence = silence.look().unwrap();
        spoke.store(true, Ordering::Relaxed);
        assert!(silence.look().is_none());
    }

    #[test]
    fn who_does_not_is_told_of_once() {
        let start = Instant::now();
        let silence = Silence { until: start, spoke: Arc::default(), shortage: None };
        assert_eq!(silence.wait_ms(), 1);
        assert!(silence.look().is_none());
        let shortage = Some((5 << 20, 9 << 20));
        let silence = Silence { until: start, spoke: Arc::default(), shortage };
        assert!(silence.text().ends_with(
            "has 5 MiB of the 9 MiB that the kernel takes in memory: it may be cut off"
        ));
    }
}
