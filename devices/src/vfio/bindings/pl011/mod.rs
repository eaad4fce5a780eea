//! The Arm PL011 ("PrimeCell UART"). Its reference manual (TRM) is ARM DDI 0183.

mod node;
mod quiesce;

use std::time::Duration;

use super::Binding;
use crate::vfio::node::NodeBuilder;
use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::RegisterAccess;

/// How long what is being sent may take to leave: the whole FIFO at 9600 baud.
const PATIENCE: Duration = Duration::from_millis(40);

/// The binding of the PL011.
#[derive(Debug)]
pub struct Pl011;

impl Binding for Pl011 {
    fn name(&self) -> &'static str {
        "PL011"
    }

    fn compatible(&self) -> &'static [&'static str] {
        &["arm,pl011"]
    }

    fn kernel_option(&self) -> Option<&'static str> {
        Some("CONFIG_SERIAL_AMBA_PL011")
    }

    fn quiesce(&self, regions: &[&dyn RegisterAccess]) -> Result<(), QuiesceError> {
        let registers = regions.first().ok_or(QuiesceError::NoRegion(0))?;
        quiesce::quiesce(*registers, PATIENCE)
    }

    fn refine(&self, builder: &mut NodeBuilder) {
        node::refine(builder);
    }
}
