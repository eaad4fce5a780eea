//! Which function is where on the guest's bus.

use boot::help::Help;
use std::ops::Range;

use super::address::{Bdf, InterruptPin};
use super::root_port::RootPort;
use crate::irq::Spi;

/// The only bus.
const BUS: u8 = 0;
/// The devices on it that aren't the host bridge.
const DEVICES: Range<u8> = 1..32;

/// The SPI, level-triggered and its own, to which a function's interrupt pin is wired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intx {
    /// The pin.
    pub pin: InterruptPin,
    /// The guest's SPI.
    pub spi: Spi,
}

/// The place of a function on the guest's bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its address in the guest.
    pub bdf: Bdf,
    /// Its interrupt pin, if it has one.
    pub intx: Option<Intx>,
    /// The root port that it is behind, if it isn't on bus 0.
    pub port: Option<Bdf>,
}

/// Why a function can't have an address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// There is no such bus.
    #[error("{0} is on a bus that the guest doesn't have")]
    NoBus(Bdf),
    /// The host bridge has it.
    #[error("{0} belongs to the guest's host bridge")]
    Bridge(Bdf),
    /// Another function has it.
    #[error("{0} is taken by another function")]
    Taken(Bdf),
    /// Guests look for functions of a device only if it has function 0.
    #[error("{0} can't be found by a guest: its device has no function 0")]
    NoFunction0(Bdf),
    /// All devices are taken.
    #[error("the guest's PCI bus has no more room")]
    Full,
    /// There are as many root ports as there can be.
    #[error("the guest's PCI host has no more than {} hot-plug slots", RootPort::MAX)]
    NoPort,
}

impl Help for SlotError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoBus(_) | Self::Bridge(_) => "addr=01.0 to addr=1f.7, all on bus 0".into(),
            Self::Taken(_) => "another addr=, or none".into(),
            Self::NoFunction0(bdf) => {
                format!("addr={:02x}.0 for the first function of that device", bdf.device())
            }
            Self::NoPort => "hotplug=off for those that the guest needn't eject".into(),
            Self::Full => {
                "put several functions on a device, the first at addr=DD.0, the next at addr=DD.1"
                    .into()
            }
        })
    }
}

/// Allocates addresses of the guest's bus to functions.
///
/// The addresses that are asked for are [reserved](Self::reserve) first, all of them; then each
/// function is [allocated](Self::allocate) its own.
#[derive(Debug, Default)]
pub struct SlotAllocator {
    taken: Vec<Bdf>,
    ports: u8,
}

impl SlotAllocator {
    /// Reserves the address that a function is to have.
    ///
    /// # Errors
    ///
    /// There is no such address, or it is taken.
    pub fn reserve(&mut self, bdf: Bdf) -> Result<(), SlotError> {
        if bdf.bus() != BUS {
            return Err(SlotError::NoBus(bdf));
        }
        if !DEVICES.contains(&bdf.device()) {
            return Err(SlotError::Bridge(bdf));
        }
        if self.taken.contains(&bdf) {
            return Err(SlotError::Taken(bdf));
        }
        self.taken.push(bdf);
        Ok(())
    }

    /// The address of a function: the one reserved for it, else function 0 of the next free device.
    ///
    /// # Errors
    ///
    /// A guest doesn't find a function there, or no device is free.
    pub fn allocate(&mut self, reserved: Option<Bdf>) -> Result<Bdf, SlotError> {
        let has = |device, function: Option<u8>| {
            let of_device = self.taken.iter().filter(|bdf| bdf.device() == device);
            of_device.clone().any(|bdf| function.is_none_or(|number| bdf.function() == number))
        };
        if let Some(bdf) = reserved {
            return if has(bdf.device(), Some(0)) {
                Ok(bdf)
            } else {
                Err(SlotError::NoFunction0(bdf))
            };
        }
        let device = DEVICES.clone().find(|device| !has(*device, None));
        let bdf = device.and_then(|device| Bdf::new(BUS, device, 0)).ok_or(SlotError::Full)?;
        self.taken.push(bdf);
        Ok(bdf)
    }

    /// As [`allocate`](Self::allocate), for a root port, which gets a number, from 1.
    ///
    /// # Errors
    ///
    /// As for [`allocate`](Self::allocate), or there are too many ports.
    pub fn allocate_port(&mut self, reserved: Option<Bdf>) -> Result<(Bdf, u8), SlotError> {
        let number = self.ports.saturating_add(1);
        if number > RootPort::MAX {
            return Err(SlotError::NoPort);
        }
        let bdf = self.allocate(reserved)?;
        self.ports = number;
        Ok((bdf, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses of functions that ask for these (`-`: for none).
    fn slots(wanted: &[&str]) -> Result<Vec<String>, SlotError> {
        let wanted: Vec<Option<Bdf>> = wanted.iter().map(|text| text.parse().ok()).collect();
        let mut slots = SlotAllocator::default();
        wanted.iter().flatten().try_for_each(|bdf| slots.reserve(*bdf))?;
        wanted.iter().map(|bdf| slots.allocate(*bdf).map(|bdf| bdf.to_string())).collect()
    }

    #[test]
    fn functions_get_the_address_they_ask_for_or_a_device_of_their_own() {
        let all = slots(&["-", "02.0", "-", "1f.1", "01.0", "-", "1f.0"]).unwrap();
        let expected =
            ["00:03.0", "00:02.0", "00:04.0", "00:1f.1", "00:01.0", "00:05.0", "00:1f.0"];
        assert_eq!(all, expected);
        assert_eq!(slots(&[]), Ok(vec![]));
    }

    #[test]
    fn impossible_addresses_are_refused() {
        let bdf = |text: &str| text.parse::<Bdf>().unwrap();
        for (wanted, error) in [
            (&["-", "00.0"][..], SlotError::Bridge(bdf("00.0"))),
            (&["00.1"], SlotError::Bridge(bdf("00.1"))),
            (&["01:01.0"], SlotError::NoBus(bdf("01:01.0"))),
            (&["02.0", "02.0"], SlotError::Taken(bdf("02.0"))),
            (&["02.1", "-"], SlotError::NoFunction0(bdf("02.1"))),
            (&["-"; 32], SlotError::Full),
        ] {
            assert!(error.help().is_some());
            assert_eq!(slots(wanted), Err(error));
        }
        assert_eq!(slots(&["-"; 31]).map(|slots| slots.len()), Ok(31));
    }

    #[test]
    fn ports_have_addresses_as_functions_have_and_numbers() {
        let mut slots = SlotAllocator::default();
        let bdf = |text: &str| text.parse::<Bdf>().unwrap();
        slots.reserve(bdf("02.0")).unwrap();
        assert_eq!(slots.allocate_port(None), Ok((bdf("01.0"), 1)));
        assert_eq!(slots.allocate_port(Some(bdf("02.0"))), Ok((bdf("02.0"), 2)));
        for number in 3..=RootPort::MAX {
            assert_eq!(slots.allocate_port(None).unwrap().1, number);
        }
        assert_eq!(slots.allocate_port(None), Err(SlotError::NoPort));
        assert_eq!(slots.allocate(None), Ok(bdf("08.0")));
        assert!(SlotError::NoPort.help().is_some());
    }
}
