//! The Cadence GEM, a gigabit Ethernet controller, of AMD's Zynq, SiFive's, Microchip's and others'
//! SoCs. Its registers are in AMD's UG1087 and UG585, beside others.

mod quiesce;
mod registers;
mod selftest;

use std::time::Duration;

use super::Binding;
use crate::vfio::quiesce::QuiesceError;

/// The binding of the GEM.
pub(super) const BINDING: Binding = Binding {
    name: NAME,
    // Documentation/devicetree/bindings/net/cdns,macb.yaml; those of the MACB are left out.
    compatible: &[
        "cdns,gem",
        "cdns,zynq-gem",
        "cdns,zynqmp-gem",
        "microchip,mpfs-macb",
        "sifive,fu540-c000-gem",
        "xlnx,versal-gem",
        "xlnx,zynq-gem",
        "xlnx,zynqmp-gem",
    ],
    kernel_option: Some("CONFIG_MACB"),
    registers: registers::TABLE,
    quiesce: |regions| {
        let registers = regions.first().ok_or(QuiesceError::NoRegion(0))?;
        quiesce::stop(*registers, STOP_TIMEOUT)
    },
    refine: |_| {},
    self_test: Some(selftest::run),
};

/// The controller's usual name.
const NAME: &str = "Cadence GEM";

/// How long it may take to end the frame that is being sent: the longest at 10 Mbit/s.
const STOP_TIMEOUT: Duration = Duration::from_millis(20);
