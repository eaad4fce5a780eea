//! The Arm PL330 ("CoreLink DMA-330") DMA controller: a manager thread and up to eight channel
//! threads that run programs from memory. Its reference manual (TRM) is ARM DDI 0424.

mod copy;
mod node;
mod program;
mod quiesce;
mod registers;
mod selftest;

use std::time::Duration;

use super::Binding;
use crate::vfio::node::NodeBuilder;
use crate::vfio::quiesce::QuiesceError;
use crate::vfio::region::RegisterAccess;
use crate::vfio::selftest::{SelfTest, SelfTestError, TestReport};

/// How long each thread may take to stop: it has to see its outstanding transfers through, at most
/// a few hundred beats on the bus.
const PATIENCE: Duration = Duration::from_millis(20);

/// The binding of the PL330.
#[derive(Debug)]
pub struct Pl330;

impl Binding for Pl330 {
    fn name(&self) -> &'static str {
        "PL330"
    }

    fn compatible(&self) -> &'static [&'static str] {
        &["arm,pl330"]
    }

    fn kernel_option(&self) -> Option<&'static str> {
        Some("CONFIG_PL330_DMA")
    }

    fn quiesce(&self, regions: &[&dyn RegisterAccess]) -> Result<(), QuiesceError> {
        let registers = regions.first().ok_or(QuiesceError::NoRegion(0))?;
        quiesce::quiesce(*registers, PATIENCE)
    }

    fn refine(&self, builder: &mut NodeBuilder) {
        node::refine(builder);
    }

    fn self_test(&self, test: &mut SelfTest) -> Option<Result<TestReport, SelfTestError>> {
        Some(selftest::test(test))
    }
}
