//! The guest's device tree, put together from what the parts say of themselves.

use arch::layout;
use boot::fdt::Node;
use boot::layout::BootLayout;
use devices::irq::Spi;
use devices::vfio::node::{Alias, alias};
use devices::{gpio, pvpanic, rtc, serial};

use crate::cli::SerialKind;

/// The label of the clock that emulated AMBA devices name.
const APB_CLOCK: &str = "apb_pclk";

/// Its rate in Hz; nothing depends on it.
const APB_CLOCK_HZ: u32 = 24_000_000;

/// What the tree describes.
pub struct Parts<'a> {
    /// The nodes of memory, vCPUs, and what they have of their own: timers, PSCI, PMU.
    pub cpus: Vec<Node>,
    /// The interrupt controller's node.
    pub gic: Node,
    /// Its label.
    pub gic_label: &'static str,
    /// The kernel command line.
    pub cmdline: &'a str,
    /// Where kernel, initrd and tree lie.
    pub boot: &'a BootLayout,
    /// Its serial port, if it has one.
    pub serial: Option<SerialKind>,
    /// The node of its flash, if it has any.
    pub flash: Option<Node>,
    /// Whether it has a power button.
    pub power_button: bool,
    /// The nodes of assigned devices.
    pub assigned: Vec<Node>,
    /// The clocks to which they refer.
    pub clocks: Vec<Node>,
    /// The firmware that they refer to, if they do.
    pub firmware: Vec<Node>,
    /// All aliases, among them its [own](own_aliases).
    pub aliases: &'a [Alias],
    /// The PCI host's node.
    pub pci: Option<Node>,
    /// Randomness for the guest.
    pub seed: &'a Seed,
}

/// What the guest seeds its address-space layout and its random numbers with.
pub struct Seed {
    /// For `kaslr-seed`.
    pub kaslr: u64,
    /// For `rng-seed`.
    pub rng: [u8; 32],
}

/// The whole tree.
///
/// Overlays refer to its nodes by their labels: `gic`, `clocks`, `apb_pclk`, `its` or `v2m` and `pcie`
/// where there are PCI functions, `gpio` with a power button, `scmi_clocks`, `scmi_resets` and
/// `scmi_power_domains` with SCMI, and those of assigned devices, which are their names in sysfs as labels are
/// written.
pub fn root(parts: Parts<'_>) -> Node {
    let mut root = Node::new("")
        .string("compatible", "linux,dummy-virt")
        .string("model", "strait")
        .u32("#address-cells", 2)
        .u32("#size-cells", 2)
        .refs("interrupt-parent", [parts.gic_label])
        .child(alias::node(parts.aliases))
        .child(chosen(&parts))
        .with_children(parts.cpus);
    let clocks = Node::new("clocks").label("clocks").child(apb_clock()).with_children(parts.clocks);
    root = root.child(parts.gic).child(clocks);
    root = root.with_children(parts.serial.map(serial_node));
    let rtc = rtc::node(layout::RTC.start, size(&layout::RTC), Spi(layout::spi::RTC), APB_CLOCK);
    root.child(rtc)
        .child(pvpanic::node(layout::PVPANIC.start, size(&layout::PVPANIC)))
        .with_children(parts.flash)
        .with_children(parts.power_button.then(power_button_nodes).into_iter().flatten())
        .with_children(parts.firmware)
        .with_children(parts.assigned)
        .with_children(parts.pci)
}

/// The aliases of what a guest has without any device, by name and path: else a driver that counts
/// for itself gave it the number of an assigned one. `console` says whether there is a serial console.
pub fn own_aliases(console: bool) -> Vec<(&'static str, String)> {
    let serial = console.then(|| ("serial0", serial_path()));
    serial.into_iter().chain([("rtc0", format!("/rtc@{:x}", layout::RTC.start))]).collect()
}

/// The serial port's node.
fn serial_node(kind: SerialKind) -> Node {
    let (base, size, spi) = (layout::SERIAL.start, size(&layout::SERIAL), Spi(layout::spi::SERIAL));
    match kind {
        SerialKind::Ns16550a => serial::ns16550a_node(base, size, spi),
        SerialKind::Pl011 => serial::pl011_node(base, size, spi, APB_CLOCK),
    }
}

/// The power button's node, and that of the GPIO controller that it is on.
fn power_button_nodes() -> [Node; 2] {
    let (base, size, spi) = (layout::GPIO.start, size(&layout::GPIO), Spi(layout::spi::GPIO));
    [gpio::node(base, size, spi, APB_CLOCK), gpio::power_button_node()]
}

/// The path of the serial port.
fn serial_path() -> String {
    format!("/serial@{:x}", layout::SERIAL.start)
}

/// The `chosen` node (dt-schema, chosen.yaml).
fn chosen(parts: &Parts<'_>) -> Node {
    let mut chosen = Node::new("chosen").string("bootargs", parts.cmdline);
    if parts.serial.is_some() {
        chosen = chosen.string("stdout-path", serial_path());
    }
    if let Some(initrd) = &parts.boot.initrd {
        chosen = chosen.u64("linux,initrd-start", initrd.start).u64("linux,initrd-end", initrd.end);
    }
    chosen.u64("kaslr-seed", parts.seed.kaslr).bytes("rng-seed", parts.seed.rng)
}

fn apb_clock() -> Node {
    Node::new("apb-pclk")
        .label(APB_CLOCK)
        .string("compatible", "fixed-clock")
        .u32("#clock-cells", 0)
        .u32("clock-frequency", APB_CLOCK_HZ)
        .string("clock-output-names", "apb_pclk")
}

fn size(range: &std::ops::Range<u64>) -> u64 {
    range.end - range.start
}
