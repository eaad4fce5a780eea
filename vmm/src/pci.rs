//! The PCI host of a guest that is given PCI functions.

use std::sync::{Arc, Mutex};

use arch::gic::{self, Gic, Version};
use arch::{Vm, layout};
use boot::fdt::Node;
use devices::bus::Bus;
use devices::pci::{self, Apertures, Function, HostBridge, Intx, Newcomer, Seat};

use crate::allocator::Allocator;
use crate::error::Error;

/// The functions that a guest is given, with their seats.
#[derive(Default)]
pub struct PciPlan {
    functions: Vec<Seated>,
    /// Above everything else in the guest's address space (GPA).
    above: u64,
}

/// A function with its seat.
pub struct Seated {
    /// Its name.
    pub name: String,
    /// Where it is, and where its interrupt pin leads.
    pub seat: Seat,
}

impl PciPlan {
    /// Gives functions their seats, and an interrupt of its own to each that has a pin. All else has
    /// its place.
    ///
    /// # Errors
    ///
    /// A function can't be where it is wanted, or there are no more interrupts.
    #[cold]
    pub fn new(newcomers: Vec<Newcomer>, allocator: &mut Allocator) -> Result<Self, Error> {
        let wanted: Vec<_> = newcomers.iter().map(|newcomer| newcomer.address).collect();
        let addresses = pci::assign(&wanted).map_err(|(index, error)| {
            let name = newcomers.get(index).map_or("", |newcomer| newcomer.name.as_str());
            Error::new(format!("{name} can't be a function of the guest: {error}"))
                .maybe_help(error.help())
        })?;
        let seated =
            newcomers.into_iter().zip(addresses).map(|(Newcomer { name, pin, .. }, bdf)| {
                let intx = pin.map(|pin| {
                    allocator.allocate_spi().map(|spi| Intx { pin, spi }).ok_or_else(|| {
                Error::new(format!(
                    "{name} can't be assigned: the guest's interrupt controller has no more \
                     interrupts"
                ))
            })
                });
                Ok(Seated { seat: Seat { bdf, intx: intx.transpose()? }, name })
            });
        let functions = seated.collect::<Result<Vec<_>, Error>>()?;
        Ok(Self { functions, above: allocator.end() })
    }

    /// The functions, in the order given.
    pub fn functions(&self) -> &[Seated] {
        &self.functions
    }

    /// Whether there are none, and so no host.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }

    /// Makes the host's bridge for a guest with this interrupt controller. Before the guest runs.
    #[cold]
    pub fn host(&self, vm: &Vm, gic: &Gic) -> HostBridge {
        if !gic.has_its() {
            log::warn!("{}", without_messages(gic));
        }
        let memory64 = layout::pci_mmio64(self.above, vm.ipa_bits());
        if memory64.is_none() {
            log::info!("the guest has no room for a PCI window above 4 GiB");
        }
        let apertures = Apertures {
            ecam: layout::PCI_ECAM,
            memory32: layout::PCI_MMIO32,
            memory64,
            io: layout::PCI_IO,
        };
        let seats = self.functions.iter().map(|seated| seated.seat).collect();
        HostBridge::new(apertures, seats)
    }
}

/// What a guest whose controller takes no messages has of PCI functions.
pub fn without_messages(gic: &Gic) -> String {
    let why = match gic.version() {
        Version::V2 => "a GICv2 takes",
        Version::V3 => {
            "without an ITS (--gic 3,its=off, or this host's KVM lacks it), a GICv3 takes"
        }
    };
    format!(
        "{why} no message-signalled interrupts: PCI functions signal by their interrupt pins only"
    )
}

/// The bridge's node.
pub fn node(bridge: &HostBridge, gic: &Gic) -> Node {
    bridge.node(gic::LABEL, gic.has_its().then_some(gic::ITS_LABEL))
}

/// Puts the functions in their seats, in order, and shows the host to the guest; answers its bridge.
/// The GIC must be complete, and no interrupt armed.
///
/// # Errors
///
/// KVM refused, or something else is in its place.
#[cold]
pub fn attach(
    mut bridge: HostBridge,
    functions: Vec<Arc<Mutex<dyn Function>>>,
    gic: &Gic,
    bus: &mut Bus,
) -> Result<Arc<HostBridge>, Error> {
    let seats = bridge.seats().to_vec();
    gic.set_level_sensitive(seats.iter().filter_map(|seat| Some(seat.intx?.spi.0)))?;
    for (seat, function) in seats.iter().zip(functions) {
        bridge.install(seat.bdf, function);
    }
    let bridge = Arc::new(bridge);
    for (name, range, device) in bridge.devices() {
        bus.add(name, range, device)?;
    }
    Ok(bridge)
}

#[cfg(test)]
mod tests {
    use boot::layout::Ram;
    use devices::irq::Spi;
    use devices::pci::Pin;

    use super::*;

    const RAM: Ram = Ram { base: layout::RAM_START, size: 1 << 30 };

    fn newcomer(name: &str, address: Option<&str>, pin: u8) -> Newcomer {
        let address = address.map(|text| text.parse().unwrap());
        Newcomer { name: name.into(), address, pin: Pin::from_register(pin) }
    }

    #[test]
    fn each_function_has_a_seat_and_each_pin_an_interrupt() {
        let mut allocator = Allocator::new(RAM, true);
        let newcomers =
            vec![newcomer("a", None, 1), newcomer("b", Some("02.0"), 0), newcomer("c", None, 2)];
        let plan = PciPlan::new(newcomers, &mut allocator).unwrap();
        let seats: Vec<_> = plan
            .functions()
            .iter()
            .map(|Seated { name, seat }| {
                let intx = seat.intx.map(|intx| (intx.pin.number(), intx.spi));
                (name.as_str(), seat.bdf.to_string(), intx)
            })
            .collect();
        let first = layout::spi::PLATFORM;
        let expected = [
            ("a", "00:01.0".to_owned(), Some((1, Spi(first)))),
            ("b", "00:02.0".to_owned(), None),
            ("c", "00:03.0".to_owned(), Some((2, Spi(first + 1)))),
        ];
        assert_eq!(seats, expected);
        assert_eq!(allocator.spi_count(), first + 2);
    }

    #[test]
    fn a_function_without_a_seat_is_named_with_what_mends_it() {
        let mut allocator = Allocator::new(RAM, true);
        let newcomers = vec![newcomer("a", Some("02.0"), 1), newcomer("b", Some("02.0"), 1)];
        let report = PciPlan::new(newcomers, &mut allocator).err().unwrap().report();
        assert!(report.contains("b can't be") && report.contains("00:02.0"), "{report}");
        assert!(report.contains("help: another addr="), "{report}");
        while allocator.allocate_spi().is_some() {}
        let report =
            PciPlan::new(vec![newcomer("a", None, 1)], &mut allocator).err().unwrap().report();
        assert!(report.contains("no more interrupts"), "{report}");
        assert!(PciPlan::new(vec![newcomer("a", None, 0)], &mut allocator).is_ok());
    }
}
