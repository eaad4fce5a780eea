//! Where functions go on the guest's buses, and how their interrupt pins are wired.

use std::sync::Arc;

use boot::help::Help;
use devices::pci::{Bdf, InterruptPin, Intx, RootPort, Slot, SlotAllocator, SlotError};

use crate::allocator::Allocator;
use crate::error::Error;

/// A root port with its interrupt.
pub struct PlacedPort {
    /// The port.
    pub port: Arc<RootPort>,
    /// Its slot.
    pub slot: Slot,
}

/// Reserves the address that is asked for, if any.
pub fn reserve(name: &str, address: Option<Bdf>, slots: &mut SlotAllocator) -> Result<(), Error> {
    address.map_or(Ok(()), |bdf| slots.reserve(bdf)).map_err(|error| no_slot(name, &error))
}

/// Allocates the slot of a function with this pin.
///
/// # Errors
///
/// There is no such slot, or no interrupt for the pin.
pub fn allocate(
    name: &str,
    address: Option<Bdf>,
    pin: Option<InterruptPin>,
    slots: &mut SlotAllocator,
    allocator: &mut Allocator,
) -> Result<Slot, Error> {
    let bdf = slots.allocate(address).map_err(|error| no_slot(name, &error))?;
    Ok(Slot { bdf, intx: wire(name, pin, allocator)?, port: None })
}

/// Allocates the slot of a function with this pin behind a root port of its own, and the port's, which has the
/// address that is asked for.
#[cold]
pub fn place_behind_port(
    name: &str,
    address: Option<Bdf>,
    pin: Option<InterruptPin>,
    slots: &mut SlotAllocator,
    allocator: &mut Allocator,
) -> Result<(Slot, PlacedPort), Error> {
    let (at, number) = slots.allocate_port(address).map_err(|error| no_slot(name, &error))?;
    let port = RootPort::new(at, number, pin).map_err(|error| {
        Error::new(format!("{name} can't be in a hot-plug slot: eventfd: {error}"))
            .help("ulimit -n 4096")
    })?;
    let own = Slot { bdf: at, intx: wire(name, Some(port.pin()), allocator)?, port: None };
    let slot =
        Slot { bdf: Bdf::from_devfn(number, 0), intx: wire(name, pin, allocator)?, port: Some(at) };
    Ok((slot, PlacedPort { port: Arc::new(port), slot: own }))
}

/// Allocates the interrupt of a pin, if there is one.
fn wire(
    name: &str,
    pin: Option<InterruptPin>,
    allocator: &mut Allocator,
) -> Result<Option<Intx>, Error> {
    let Some(pin) = pin else { return Ok(None) };
    let spi = allocator.allocate_spi().ok_or_else(|| {
        Error::new(format!(
            "{name} can't be assigned: the guest's interrupt controller has no more interrupts"
        ))
    })?;
    Ok(Some(Intx { pin, spi }))
}

fn no_slot(name: &str, error: &SlotError) -> Error {
    Error::new(format!("{name} can't be a function of the guest: {error}")).maybe_help(error.help())
}

#[cfg(test)]
mod tests {
    use arch::layout::{self, RAM_START};
    use boot::layout::Ram;
    use devices::irq::Spi;

    use super::*;

    const RAM: Ram = Ram { base: RAM_START, size: 1 << 30 };

    /// The slots of functions that ask for these addresses, with these interrupt pins.
    fn slots(
        functions: &[(&str, Option<&str>, u8)],
        allocator: &mut Allocator,
    ) -> Result<Vec<Slot>, Error> {
        let mut slots = SlotAllocator::default();
        let address = |text: Option<&str>| text.map(|text| text.parse::<Bdf>().unwrap());
        for (name, wanted, _) in functions {
            reserve(name, address(*wanted), &mut slots)?;
        }
        let allocate = |(name, wanted, pin): &(&str, Option<&str>, u8)| {
            let pin = InterruptPin::from_register(*pin);
            allocate(name, address(*wanted), pin, &mut slots, allocator)
        };
        functions.iter().map(allocate).collect()
    }

    #[test]
    fn each_function_has_a_slot_and_each_pin_an_interrupt() {
        let mut allocator = Allocator::new(RAM, true);
        let functions = [("a", None, 1), ("b", Some("02.0"), 0), ("c", None, 2)];
        let slots = slots(&functions, &mut allocator).unwrap();
        let slots: Vec<_> = slots
            .iter()
            .map(|Slot { bdf, intx, .. }| {
                (bdf.to_string(), intx.map(|intx| (intx.pin.number(), intx.spi)))
            })
            .collect();
        let first = layout::spi::PLATFORM;
        let expected = [
            ("00:01.0".to_owned(), Some((1, Spi(first)))),
            ("00:02.0".to_owned(), None),
            ("00:03.0".to_owned(), Some((2, Spi(first + 1)))),
        ];
        assert_eq!(slots, expected);
        assert_eq!(allocator.spi_count(), first + 2);
    }

    #[test]
    fn a_function_in_a_hot_plug_slot_has_a_port_with_an_interrupt_of_its_own() {
        let mut allocator = Allocator::new(RAM, true);
        let mut slots = SlotAllocator::default();
        let mut place = |pin| {
            let pin = InterruptPin::from_register(pin);
            place_behind_port("a", None, pin, &mut slots, &mut allocator).unwrap()
        };
        let first = layout::spi::PLATFORM;
        let pins = |slot: Slot| slot.intx.map(|intx| (intx.pin.number(), intx.spi));
        for (pin, bus, of_port, of_function) in [
            (1, 1, Some((2, Spi(first))), Some((1, Spi(first + 1)))),
            (0, 2, Some((1, Spi(first + 2))), None),
            (3, 3, Some((1, Spi(first + 3))), Some((3, Spi(first + 4)))),
        ] {
            let (slot, port) = place(pin);
            assert_eq!((slot.bdf.to_string(), pins(slot)), (format!("0{bus}:00.0"), of_function));
            assert_eq!(
                (port.slot.bdf.to_string(), pins(port.slot)),
                (format!("00:0{bus}.0"), of_port)
            );
            assert_eq!((slot.port, port.port.bdf()), (Some(port.slot.bdf), port.slot.bdf));
        }
    }

    #[test]
    fn a_function_without_a_slot_is_named_with_what_mends_it() {
        let mut allocator = Allocator::new(RAM, true);
        let report = |functions: &[(&str, Option<&str>, u8)], allocator: &mut Allocator| {
            slots(functions, allocator).unwrap_err().report()
        };
        let same = report(&[("a", Some("02.0"), 1), ("b", Some("02.0"), 1)], &mut allocator);
        assert!(same.contains("b can't be") && same.contains("00:02.0"), "{same}");
        assert!(same.contains("help: another addr="), "{same}");
        while allocator.allocate_spi().is_some() {}
        let full = report(&[("a", None, 1)], &mut allocator);
        assert!(full.contains("no more interrupts"), "{full}");
        assert!(slots(&[("a", None, 0)], &mut allocator).is_ok());
    }
}
