//! A node's interrupts: to which controller each goes, and how that tells it from others
//! (Devicetree Specification, 2.4 "Interrupts and Interrupt Mapping").

use super::HostTree;
use super::error::HostError;
use super::node::HostNode;
use super::reference::Reference;

/// Controllers are looked for over at most this many nodes; Linux unflattens no deeper trees.
const STEPS_MAX: usize = 64;

/// Where a binding of the GIC has an interrupt's flags (arm,gic.yaml, arm,gic-v3.yaml): behind its
/// type and number.
const GIC_FLAGS: usize = 2;

/// The bits of the flags that say how the line signals (dt-bindings/interrupt-controller/irq.h).
const SENSE: u32 = 0xf;

/// How a line signals, by the bits of its flags: rising edge 1, falling edge 2, high level 4, low
/// level 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    /// By an edge.
    Edge,
    /// By a level.
    Level,
}

impl HostTree {
    /// The interrupts of a node, in order: those of `interrupts-extended`, else of `interrupts`.
    ///
    /// # Errors
    ///
    /// There is no controller, or a file is malformed.
    pub fn interrupts(&self, node: &HostNode) -> Result<Vec<Reference>, HostError> {
        if node.has("interrupts-extended") {
            let all = self.references(node, "interrupts-extended", Some("#interrupt-cells"))?;
            return Ok(all.into_iter().flatten().collect());
        }
        let Some(cells) = node.cells("interrupts")? else { return Ok(Vec::new()) };
        let controller = self.interrupt_parent(node)?;
        let wanted = controller.u32("#interrupt-cells")?.unwrap_or(1);
        let each = usize::try_from(wanted).unwrap_or_default();
        if each == 0 || !cells.len().is_multiple_of(each) {
            return Err(HostError::Length {
                path: node.file("interrupts"),
                expected: "interrupts of as many cells as their controller says",
                length: cells.len().saturating_mul(4),
            });
        }
        let reference = |arguments: &[u32]| Reference {
            provider: controller.clone(),
            arguments: arguments.to_vec(),
        };
        Ok(cells.chunks_exact(each).map(reference).collect())
    }

    /// The controller of those interrupts that don't say one, as Linux finds it
    /// (`of_irq_find_parent`): the nearest node with `#interrupt-cells` on the way that
    /// `interrupt-parent` leads, and where there is none, up.
    fn interrupt_parent(&self, node: &HostNode) -> Result<HostNode, HostError> {
        let missing = || HostError::NoCells {
            path: node.file("interrupt-parent"),
            from: node.file("interrupts"),
        };
        let mut here = node.clone();
        for _ in 0..STEPS_MAX {
            let next = match here.u32("interrupt-parent")? {
                Some(phandle) => self.by_phandle(phandle)?,
                None => self.parent(&here)?,
            };
            here = next.ok_or_else(missing)?;
            if here.has("#interrupt-cells") {
                return Ok(here);
            }
        }
        Err(missing())
    }
}

impl Reference {
    /// How the interrupt that it refers to signals, as far as it can be told without knowing the
    /// controller: by the last of two cells, or the third as the GIC's bindings have it.
    pub fn sense(&self) -> Option<Sense> {
        let flags = match self.arguments.as_slice() {
            [_, flags] => flags,
            more => more.get(GIC_FLAGS)?,
        };
        match flags & SENSE {
            1..=3 => Some(Sense::Edge),
            4 | 8 => Some(Sense::Level),
            _ => None,
        }
    }
}
