//! An interrupt of a traced device: its name, and what passes its signals on.

use std::sync::Arc;

use devices::vfio::irq::IrqTap;
use devices::vfio::pci::{FunctionTaps, VectorTap};
use vmm_sys_util::eventfd::EventFd;

use super::record::Line;

/// An interrupt.
pub struct Tap {
    /// Its name.
    pub line: Line,
    kind: Kind,
}

enum Kind {
    Line(IrqTap),
    /// One of the vectors of a function's capability, by its number.
    Vector(Arc<[VectorTap]>, usize),
}

impl Tap {
    /// Those of a platform device.
    #[cold]
    pub fn of_device(taps: Vec<IrqTap>) -> Vec<Self> {
        (0..).zip(taps).map(|(number, tap)| Self::of_line("", number, tap)).collect()
    }

    /// Those of a PCI function.
    #[cold]
    pub fn of_function(taps: FunctionTaps) -> Vec<Self> {
        let FunctionTaps { intx, msi, msix } = taps;
        let mut all: Vec<_> = intx.map(|tap| Self::of_line("intx", 0, tap)).into_iter().collect();
        for (kind, taps) in [("msi", msi), ("msix", msix)] {
            let vector = |(number, index)| Self {
                line: Line { kind, number, ends: false },
                kind: Kind::Vector(taps.clone(), index),
            };
            all.extend((0..).zip(0..taps.len()).map(vector));
        }
        all
    }

    fn of_line(kind: &'static str, number: u32, tap: IrqTap) -> Self {
        let ends = tap.polled().1.is_some();
        Self { line: Line { kind, number, ends }, kind: Kind::Line(tap) }
    }

    /// What is to be polled: for the interrupt, and, of a level, for the guest's end of it.
    pub fn polled(&self) -> (Option<&EventFd>, Option<&EventFd>) {
        match &self.kind {
            Kind::Line(tap) => {
                let (fired, ended) = tap.polled();
                (Some(fired), ended)
            }
            Kind::Vector(taps, index) => (taps.get(*index).map(VectorTap::polled), None),
        }
    }

    /// Passes on that it was signalled, if it was; `note` is told first, how often.
    pub fn pass_fired(&self, note: impl FnOnce(u64)) {
        match &self.kind {
            Kind::Line(tap) => tap.pass_fired(note),
            Kind::Vector(taps, index) => {
                if let Some(tap) = taps.get(*index) {
                    tap.pass(note);
                }
            }
        }
    }

    /// Passes on that the guest has ended it, if it has; `note` is told first.
    pub fn pass_ended(&self, note: impl FnOnce()) {
        if let Kind::Line(tap) = &self.kind {
            tap.pass_ended(note);
        }
    }
}
