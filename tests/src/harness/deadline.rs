//! How long to wait for something.

use std::time::{Duration, Instant};

/// The environment variable that stretches every deadline, for slow or busy machines.
const SCALE: &str = "STRAIT_TIMEOUT_SCALE";

/// A point in time after which waiting is pointless.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    after: Duration,
}

impl Deadline {
    /// `seconds` from now, times `STRAIT_TIMEOUT_SCALE`.
    pub(super) fn after(seconds: u64) -> Self {
        let after =
            Duration::from_secs(seconds).mul_f64(scale(std::env::var(SCALE).ok().as_deref()));
        Self { at: Instant::now() + after, after }
    }

    /// What is left, or nothing when it has passed.
    pub(super) fn left(self) -> Option<Duration> {
        self.at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// The whole time that was given.
    pub(super) fn given(self) -> Duration {
        self.after
    }
}

/// The factor named by the variable's text; 1 where it is absent or no sensible number.
fn scale(text: Option<&str>) -> f64 {
    text.and_then(|text| text.parse().ok())
        .filter(|scale: &f64| scale.is_finite() && (0.01..=1000.0).contains(scale))
        .unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn an_invalid_scale_is_one() {
        for (text, factor) in [
            (None, 1.0),
            (Some("2.5"), 2.5),
            (Some("0"), 1.0),
            (Some("-3"), 1.0),
            (Some("NaN"), 1.0),
            (Some("inf"), 1.0),
            (Some("fast"), 1.0),
        ] {
            assert!((scale(text) - factor).abs() < 1e-9, "{text:?}");
        }
    }
}
