//! The host bridge's node (Documentation/devicetree/bindings/pci/host-generic-pci.yaml; IEEE 1275,
//! "PCI Bus Binding", revision 2.1).

use std::ops::Range;

use boot::fdt::{Cell, Label, Node};

use super::apertures::Apertures;
use super::config::halves;
use super::slots::{Intx, Slot};
use crate::irq::Trigger;

/// The space codes of an address' first cell, `phys.hi`: I/O, 32-bit memory, 64-bit memory
/// (PCI Bus Binding, 2.2.1.1). No window is called prefetchable: a prefetchable BAR may lie in one
/// that isn't, not the other way round.
const IO: u32 = 1 << 24;
const MEMORY32: u32 = 2 << 24;
const MEMORY64: u32 = 3 << 24;

/// What of `phys.hi` tells functions of one bus apart, and of the interrupt pins.
const FUNCTION_MASK: u32 = 0xff00;
const PIN_MASK: u32 = 7;

/// The type of an `interrupts` entry: shared.
const SPI: u32 = 0;

/// The requester IDs of a bus.
const REQUESTERS: u32 = 0x100;

/// How much of ECAM a bus has, in bytes (PCI Express Base 5.0, 7.2.2).
const BUS_SIZE: u64 = 1 << 20;

/// What takes functions' messages, by the label of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsiController<'a> {
    /// An ITS, which tells functions apart.
    Its(&'a str),
    /// A GICv2m frame, which doesn't.
    Gicv2m(&'a str),
}

/// The node of a host bridge with these apertures and slots. `gic` is the label of the interrupt
/// controller, whose node has two address cells; without `messages` functions have no
/// message-signalled interrupts.
///
/// It has `dma-coherent`, as all of these functions are on the host: VFIO takes no device whose IOMMU
/// can't make its accesses coherent, and maps all memory so (Linux, `drivers/vfio/vfio_main.c`,
/// IOMMU_CAP_CACHE_COHERENCY); a function of another process is as coherent as that process.
#[cold]
pub fn host_node(
    apertures: &Apertures,
    slots: impl Iterator<Item = Slot>,
    gic: &str,
    messages: Option<MsiController<'_>>,
) -> Node {
    let Apertures { ecam, memory32, memory64, io } = apertures;
    let mut ranges = Vec::new();
    ranges.extend(range(IO, 0, io));
    ranges.extend(range(MEMORY32, memory32.start, memory32));
    if let Some(memory64) = memory64 {
        ranges.extend(range(MEMORY64, memory64.start, memory64));
    }
    let node = Node::at("pcie", ecam.start)
        .label("pcie")
        .string("compatible", "pci-host-ecam-generic")
        .string("device_type", "pci")
        .reg([(ecam.start, ecam.end.saturating_sub(ecam.start))])
        .cells("bus-range", [0, buses(ecam).saturating_sub(1)])
        .u32("linux,pci-domain", 0)
        .u32("#address-cells", 3)
        .u32("#size-cells", 2)
        .cells("ranges", ranges)
        .flag("dma-coherent");
    with_msi(with_pins(node, slots, gic), messages, buses(ecam))
}

/// The number of buses whose configuration space this is.
fn buses(ecam: &Range<u64>) -> u32 {
    u32::try_from(ecam.end.saturating_sub(ecam.start) / BUS_SIZE).unwrap_or(u32::MAX)
}

/// Adds the wiring of interrupt pins, if any function has one.
fn with_pins(node: Node, slots: impl Iterator<Item = Slot>, gic: &str) -> Node {
    let lines = slots.filter_map(|slot| Some((slot, slot.intx?)));
    let map: Vec<Cell> = lines.flat_map(|(slot, intx)| line(slot, intx, gic)).collect();
    if map.is_empty() {
        return node;
    }
    node.u32("#interrupt-cells", 1)
        .cells("interrupt-map-mask", [FUNCTION_MASK, 0, 0, PIN_MASK])
        .cells("interrupt-map", map)
}

/// An entry of `interrupt-map`: the address of the function, or of the port before it, whose pins are those of
/// device 0 behind it; the pin; and the controller, its address (none) and interrupt.
fn line(slot: Slot, Intx { pin, spi }: Intx, gic: &str) -> [Cell; 10] {
    let function = u32::from(slot.port.unwrap_or(slot.bdf).requester_id()) << 8;
    let own = [function, 0, 0, u32::from(pin.number())].map(Cell::U32);
    let parent = [0, 0, SPI, spi.0, Trigger::Level.dt_flags()].map(Cell::U32);
    let [hi, mid, lo, pin] = own;
    let [address_hi, address_lo, kind, number, flags] = parent;
    let gic = Cell::Ref(Label::new(gic));
    [hi, mid, lo, pin, gic, address_hi, address_lo, kind, number, flags]
}

/// Adds where functions' messages go (Documentation/devicetree/bindings/pci/pci-msi.txt): at an ITS a
/// function's requester ID is its DeviceID.
fn with_msi(node: Node, messages: Option<MsiController<'_>>, buses: u32) -> Node {
    match messages {
        Some(MsiController::Its(its)) => {
            let its = Cell::Ref(Label::new(its));
            let requesters = REQUESTERS.saturating_mul(buses);
            node.cells("msi-map", [Cell::U32(0), its, Cell::U32(0), Cell::U32(requesters)])
        }
        Some(MsiController::Gicv2m(frame)) => node.refs("msi-parent", [frame]),
        None => node,
    }
}

/// An entry of `ranges`: bus addresses of a space from `first`, where the CPU has `range`.
fn range(space: u32, first: u64, range: &Range<u64>) -> [u32; 7] {
    let [bus_lo, bus_hi] = halves(first);
    let [cpu_lo, cpu_hi] = halves(range.start);
    let [size_lo, size_hi] = halves(range.end.saturating_sub(range.start));
    [space, bus_hi, bus_lo, cpu_hi, cpu_lo, size_hi, size_lo]
}

#[cfg(test)]
mod tests {
    use boot::fdt::subtree_to_dts;

    use super::super::address::{Bdf, InterruptPin};
    use super::*;
    use crate::irq::Spi;

    /// The source of a host bridge's node.
    fn source(
        memory64: Option<Range<u64>>,
        slots: &[(&str, Option<(u8, u32)>)],
        messages: Option<MsiController<'_>>,
    ) -> String {
        let places = slots.iter().map(|(bdf, _)| bdf.parse::<Bdf>().unwrap());
        let buses = 1 + places.map(|bdf| u64::from(bdf.bus())).max().unwrap_or(0);
        let slots = slots.iter().map(|(bdf, intx)| {
            let pin = |pin| InterruptPin::from_register(pin).unwrap();
            let intx = intx.map(|(number, spi)| Intx { pin: pin(number), spi: Spi(spi) });
            let behind: Bdf = bdf.parse().unwrap();
            let port = (behind.bus() != 0).then(|| "1f.0".parse().unwrap());
            Slot { bdf: behind, intx, port }
        });
        let apertures = Apertures {
            ecam: 0x3f80_0000..0x3f80_0000 + buses * (1 << 20),
            memory32: 0x2000_0000..0x3f00_0000,
            memory64,
            io: 0x3f00_0000..0x3f01_0000,
        };
        subtree_to_dts(&host_node(&apertures, slots, "gic", messages))
    }

    const SLOTS: [(&str, Option<(u8, u32)>); 3] =
        [("01.0", Some((1, 64))), ("02.0", None), ("1f.1", Some((2, 65)))];

    /// What the source says of a property, with single spaces.
    fn property(dts: &str, name: &str) -> Option<String> {
        let words = dts.split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, value) = words.split_once(&format!("; {name} = "))?;
        value.split_once(';').map(|(value, _)| value.to_owned())
    }

    #[test]
    fn the_node_says_where_all_is() {
        let dts = source(Some(1 << 39..1 << 40), &SLOTS, Some(MsiController::Its("its")));
        assert!(dts.contains("pcie@3f800000 {") && dts.contains("dma-coherent;"), "{dts}");
        for (name, value) in [
            ("reg", "<0x0 0x3f800000 0x0 0x100000>"),
            ("bus-range", "<0x0 0x0>"),
            (
                "ranges",
                "<0x1000000 0x0 0x0 0x0 0x3f000000 0x0 0x10000 \
                 0x2000000 0x0 0x20000000 0x0 0x20000000 0x0 0x1f000000 \
                 0x3000000 0x80 0x0 0x80 0x0 0x80 0x0>",
            ),
            ("msi-map", "<0x0 &its 0x0 0x100>"),
            ("interrupt-map-mask", "<0xff00 0x0 0x0 0x7>"),
            (
                "interrupt-map",
                "<0x800 0x0 0x0 0x1 &gic 0x0 0x0 0x0 0x40 0x4 \
                 0xf900 0x0 0x0 0x2 &gic 0x0 0x0 0x0 0x41 0x4>",
            ),
        ] {
            assert_eq!(property(&dts, name).as_deref(), Some(value), "{dts}");
        }
    }

    #[test]
    fn a_frame_takes_the_messages_of_all_functions() {
        let dts = source(None, &SLOTS, Some(MsiController::Gicv2m("v2m")));
        assert_eq!(property(&dts, "msi-parent").as_deref(), Some("<&v2m>"), "{dts}");
        assert_eq!(property(&dts, "msi-map"), None, "{dts}");
    }

    #[test]
    fn a_function_behind_a_port_has_its_pins() {
        let slots = [("02.0", None), ("1f.0", Some((2, 64))), ("01:00.0", Some((1, 65)))];
        let dts = source(None, &slots, Some(MsiController::Its("its")));
        for (name, value) in [
            ("reg", "<0x0 0x3f800000 0x0 0x200000>"),
            ("bus-range", "<0x0 0x1>"),
            ("msi-map", "<0x0 &its 0x0 0x200>"),
            (
                "interrupt-map",
                "<0xf800 0x0 0x0 0x2 &gic 0x0 0x0 0x0 0x40 0x4 \
                 0xf800 0x0 0x0 0x1 &gic 0x0 0x0 0x0 0x41 0x4>",
            ),
        ] {
            assert_eq!(property(&dts, name).as_deref(), Some(value), "{dts}");
        }
    }

    #[test]
    fn what_there_is_not_is_not_described() {
        let dts = source(None, &SLOTS, None);
        assert_eq!((property(&dts, "msi-map"), property(&dts, "msi-parent")), (None, None));
        assert!(!dts.contains("0x3000000"), "{dts}");
        let dts = source(None, &[], Some(MsiController::Its("its")));
        assert!(!dts.contains("interrupt"), "{dts}");
    }
}
