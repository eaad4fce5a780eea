//! Which function is where behind the bridge.

use super::address::{Bdf, Pin};

/// The bus that there is.
const BUS: u8 = 0;
/// The devices on it that aren't the bridge.
const DEVICES: std::ops::Range<u8> = 1..32;

/// What a function that is to be behind the bridge has and wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// Its name, for messages.
    pub name: String,
    /// Its address, if it is to have a certain one.
    pub address: Option<Bdf>,
    /// Its interrupt pin, if it has one.
    pub pin: Option<Pin>,
}

/// A function can't be where it is wanted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeatError {
    /// There is no such bus.
    #[error("{0} is on a bus that the guest doesn't have")]
    NoBus(Bdf),
    /// The host bridge is there.
    #[error("{0} belongs to the guest's host bridge")]
    Bridge(Bdf),
    /// Another function is there.
    #[error("{0} is taken by another function")]
    Taken(Bdf),
    /// A guest doesn't look for functions of a device that lacks the first.
    #[error("{0} can't be found by a guest: its device has no function 0")]
    NoFirst(Bdf),
    /// All devices are taken.
    #[error("the guest's PCI bus has no more room")]
    Full,
}

impl SeatError {
    /// What mends it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoBus(_) | Self::Bridge(_) => "addr=01.0 to addr=1f.7, all on bus 0".into(),
            Self::Taken(_) => "another addr=, or none".into(),
            Self::NoFirst(bdf) => {
                format!("addr={:02x}.0 for the first function of that device", bdf.device())
            }
            Self::Full => {
                "put several functions on a device, the first at addr=DD.0, the next at addr=DD.1"
                    .into()
            }
        })
    }
}

/// Gives each function an address: the one wanted, else a device of its own, in order.
///
/// # Errors
///
/// The index of the function that can't have one, and why.
#[cold]
pub fn assign(wanted: &[Option<Bdf>]) -> Result<Vec<Bdf>, (usize, SeatError)> {
    let mut taken: Vec<Bdf> = Vec::with_capacity(wanted.len());
    for (index, bdf) in wanted.iter().enumerate() {
        let Some(bdf) = *bdf else { continue };
        let error = if bdf.bus() != BUS {
            SeatError::NoBus(bdf)
        } else if !DEVICES.contains(&bdf.device()) {
            SeatError::Bridge(bdf)
        } else if taken.contains(&bdf) {
            SeatError::Taken(bdf)
        } else {
            taken.push(bdf);
            continue;
        };
        return Err((index, error));
    }
    for (index, bdf) in wanted.iter().enumerate() {
        let Some(bdf) = bdf else { continue };
        let first = taken.iter().any(|t| (t.device(), t.function()) == (bdf.device(), 0));
        if !first {
            return Err((index, SeatError::NoFirst(*bdf)));
        }
    }
    let mut free = DEVICES
        .filter(|device| taken.iter().all(|bdf| bdf.device() != *device))
        .filter_map(|device| Bdf::new(BUS, device, 0));
    let seats = wanted.iter().enumerate();
    seats.map(|(index, bdf)| bdf.or_else(|| free.next()).ok_or((index, SeatError::Full))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(wanted: &[&str]) -> Result<Vec<String>, (usize, SeatError)> {
        let wanted: Vec<Option<Bdf>> = wanted.iter().map(|text| text.parse().ok()).collect();
        assign(&wanted).map(|seats| seats.iter().map(Bdf::to_string).collect())
    }

    #[test]
    fn functions_get_what_they_want_or_a_device_of_their_own() {
        let all = seats(&["-", "02.0", "-", "1f.1", "01.0", "-", "1f.0"]).unwrap();
        let expected =
            ["00:03.0", "00:02.0", "00:04.0", "00:1f.1", "00:01.0", "00:05.0", "00:1f.0"];
        assert_eq!(all, expected);
        assert_eq!(seats(&[]), Ok(vec![]));
    }

    #[test]
    fn seats_that_cannot_be_had_are_refused() {
        let bdf = |text: &str| text.parse::<Bdf>().unwrap();
        for (wanted, index, error) in [
            (&["-", "00.0"][..], 1, SeatError::Bridge(bdf("00.0"))),
            (&["00.1"], 0, SeatError::Bridge(bdf("00.1"))),
            (&["01:01.0"], 0, SeatError::NoBus(bdf("01:01.0"))),
            (&["02.0", "02.0"], 1, SeatError::Taken(bdf("02.0"))),
            (&["02.1", "-"], 0, SeatError::NoFirst(bdf("02.1"))),
            (&["-"; 32], 31, SeatError::Full),
        ] {
            assert!(error.help().is_some());
            assert_eq!(seats(wanted), Err((index, error)));
        }
    }
}
