//! Stopping a device before it changes hands: what stopped it, why it couldn't be stopped, and the
//! bounded polling of its registers that this takes.

use std::fmt;
use std::time::{Duration, Instant};

use super::region::AccessError;

/// How a device was quiesced: no DMA, no interrupt of its former owner is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quiesced {
    /// By the [binding](super::bindings) of this name.
    ByBinding(&'static str),
    /// By VFIO's reset, after the binding's steps where there is one.
    ByReset,
    /// By the reset of its PCI bus.
    ByBusReset,
    /// Not at all: there is no binding, and VFIO has no reset.
    Unsupported,
    /// Not at all: an option turned it off.
    Disabled,
}

impl fmt::Display for Quiesced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByBinding(kind) => write!(f, "stopped as a {kind} is"),
            Self::ByReset => f.write_str("stopped by VFIO's reset"),
            Self::ByBusReset => f.write_str("stopped by VFIO's reset of its bus"),
            Self::Unsupported => f.write_str("left as it is: how to stop it isn't known"),
            Self::Disabled => f.write_str("left as it is, as was asked for"),
        }
    }
}

/// Why a device couldn't be quiesced.
#[derive(Debug, thiserror::Error)]
pub enum QuiesceError {
    /// The device has no region of this index.
    #[error("it has no region {0}")]
    NoRegion(usize),
    /// Its registers can't be reached.
    #[error("its registers can't be reached")]
    Access(#[from] AccessError),
    /// The identification registers are those of another device.
    #[error("its identification is {found:#010x}, which is no {expected}")]
    WrongDevice {
        /// The device that the binding is for.
        expected: &'static str,
        /// What its identification registers hold.
        found: u32,
    },
    /// A part of it still runs, or an interrupt is still high: which.
    #[error("{0}")]
    StillActive(String),
}

/// Polls until there is a result, for at most `timeout` (as the kernel's `readl_poll_timeout` does),
/// and returns it; `None` if there was none.
///
/// It polls once more after the time is over, so that a process that didn't run meanwhile still sees
/// the result.
///
/// # Errors
///
/// A poll fails.
pub(super) fn poll_timeout<T>(
    timeout: Duration,
    mut poll: impl FnMut() -> Result<Option<T>, AccessError>,
) -> Result<Option<T>, AccessError> {
    let started = Instant::now();
    loop {
        let expired = started.elapsed() > timeout;
        let result = poll()?;
        if result.is_some() || expired {
            return Ok(result);
        }
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_ends_with_a_result_or_at_the_timeout() {
        let mut polls = 0;
        let third = || {
            polls += 1;
            Ok((polls == 3).then_some(polls))
        };
        assert_eq!(poll_timeout(Duration::from_secs(60), third).unwrap(), Some(3));
        let started = Instant::now();
        assert_eq!(poll_timeout(Duration::from_millis(5), || Ok(None::<()>)).unwrap(), None);
        assert!(started.elapsed() > Duration::from_millis(5));
    }

    #[test]
    fn it_polls_once_more_after_the_timeout() {
        let mut polls = 0;
        let slow = || {
            polls += 1;
            std::thread::sleep(Duration::from_millis(2));
            Ok((polls == 2).then_some(()))
        };
        assert_eq!(poll_timeout(Duration::from_millis(1), slow).unwrap(), Some(()));
    }

    #[test]
    fn a_failed_poll_ends_it() {
        let error = || Err::<Option<()>, _>(AccessError::NotPermitted("read"));
        assert!(poll_timeout(Duration::from_secs(60), error).is_err());
    }
}
