//! A node's interrupts: to which controller each goes, and how that tells it from others
//! (Devicetree Specification, 2.4 "Interrupts and Interrupt Mapping").

use super::HostTree;
use super::error::HostError;
use super::node::HostNode;
use super::reference::Reference;
use crate::fdt::node::MAX_DEPTH;

/// Where a binding of the GIC has an interrupt's flags (arm,gic.yaml, arm,gic-v3.yaml): behind its
/// type and number.
const GIC_FLAGS: usize = 2;

/// The bits of the flags that say the trigger type (dt-bindings/interrupt-controller/irq.h).
const IRQ_TYPE_SENSE_MASK: u32 = 0xf;

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
        for _ in 0..MAX_DEPTH {
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
    /// Whether the interrupt that it refers to is level-triggered, as far as it can be told without
    /// knowing the controller: by the last of two cells, or the third as the GIC's bindings have it.
    pub fn is_level_triggered(&self) -> Option<bool> {
        let flags = match self.arguments.as_slice() {
            [_, flags] => flags,
            more => more.get(GIC_FLAGS)?,
        };
        match flags & IRQ_TYPE_SENSE_MASK {
            // IRQ_TYPE_EDGE_RISING, IRQ_TYPE_EDGE_FALLING, or both.
            1..=3 => Some(false),
            // IRQ_TYPE_LEVEL_HIGH, IRQ_TYPE_LEVEL_LOW.
            4 | 8 => Some(true),
            _ => None,
        }
    }
}
