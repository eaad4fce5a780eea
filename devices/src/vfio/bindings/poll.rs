//! Waiting for a device by looking at it.

use std::time::{Duration, Instant};

use super::super::region::AccessError;

/// Looks until there is something to see, at most for `patience`, and returns it.
///
/// The first look past that time counts: whoever was kept from looking in time sees what is.
///
/// # Errors
///
/// A look fails.
pub(super) fn until<T>(
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>, AccessError>,
) -> Result<Option<T>, AccessError> {
    let started = Instant::now();
    loop {
        let late = started.elapsed() > patience;
        let seen = look()?;
        if seen.is_some() || late {
            return Ok(seen);
        }
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_seen_and_nothing_is_waited_for_but_so_long() {
        let mut looks = 0;
        let third = || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        };
        assert_eq!(until(Duration::from_secs(60), third).unwrap(), Some(3));
        let started = Instant::now();
        assert_eq!(until(Duration::from_millis(5), || Ok(None::<()>)).unwrap(), None);
        assert!(started.elapsed() > Duration::from_millis(5));
    }

    #[test]
    fn a_look_past_the_time_counts() {
        let mut looks = 0;
        let slow = || {
            looks += 1;
            std::thread::sleep(Duration::from_millis(2));
            Ok((looks == 2).then_some(()))
        };
        assert_eq!(until(Duration::from_millis(1), slow).unwrap(), Some(()));
    }

    #[test]
    fn a_look_that_fails_ends_it() {
        let error = || Err::<Option<()>, _>(AccessError::Forbidden("read"));
        assert!(until(Duration::from_secs(60), error).is_err());
    }
}
