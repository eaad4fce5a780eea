//! What becomes of a function's message-signalled interrupts when their registers are written.

use crate::irq::MsiMessage;

/// What a signal of a vector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Pending until the vector is unmasked.
    Masked,
    /// This message.
    To(MsiMessage),
}

/// What a write to the registers of a capability changed: to be carried out in order by whoever has
/// the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The function uses vectors 0 to `vectors` - 1 from here on, all of them masked.
    Enabled {
        /// How many there are.
        vectors: u16,
    },
    /// It uses none any more, and what was pending is forgotten.
    Disabled,
    /// Signals of a vector become something else.
    Delivery {
        /// Which vector.
        vector: u16,
        /// What they become.
        delivery: Delivery,
    },
}

/// The effects of getting from one state to another, each given as the deliveries of all vectors, or
/// `None` if the capability is off.
pub(super) fn effects(before: Option<&[Delivery]>, after: Option<&[Delivery]>) -> Vec<Effect> {
    let Some(after) = after else {
        return if before.is_some() { vec![Effect::Disabled] } else { Vec::new() };
    };
    let mut effects = Vec::new();
    let before = match before {
        Some(before) if before.len() == after.len() => before,
        // Another number of vectors: all begins anew.
        other => {
            if other.is_some() {
                effects.push(Effect::Disabled);
            }
            effects
                .push(Effect::Enabled { vectors: u16::try_from(after.len()).unwrap_or(u16::MAX) });
            &[]
        }
    };
    let before = before.iter().copied().chain(std::iter::repeat(Delivery::Masked));
    let changed =
        (0..).zip(after.iter().zip(before)).filter(|(_, (after, before))| *after != before);
    effects.extend(
        changed.map(|(vector, (delivery, _))| Effect::Delivery { vector, delivery: *delivery }),
    );
    effects
}

#[cfg(test)]
mod tests {
    use super::Delivery::{Masked, To};
    use super::*;

    #[test]
    fn effects_are_what_differs() {
        let to = |data| To(MsiMessage { address: 0x1000, data, requester: 8 });
        let delivery = |vector, delivery| Effect::Delivery { vector, delivery };
        let enabled = |vectors| Effect::Enabled { vectors };
        let (one, two) = (to(1), to(2));
        // Before, after, effects.
        type Case<'a> = (Option<&'a [Delivery]>, Option<&'a [Delivery]>, &'a [Effect]);
        let cases: [Case<'_>; 8] = [
            (None, None, &[]),
            (None, Some(&[Masked, one]), &[enabled(2), delivery(1, one)]),
            (Some(&[Masked, one]), None, &[Effect::Disabled]),
            (Some(&[Masked, one]), Some(&[Masked, one]), &[]),
            (Some(&[Masked, one]), Some(&[Masked, two]), &[delivery(1, two)]),
            (Some(&[Masked, one]), Some(&[two, Masked]), &[delivery(0, two), delivery(1, Masked)]),
            (
                Some(&[one]),
                Some(&[one, two]),
                &[Effect::Disabled, enabled(2), delivery(0, one), delivery(1, two)],
            ),
            (Some(&[one]), Some(&[Masked]), &[delivery(0, Masked)]),
        ];
        for (before, after, expected) in cases {
            assert_eq!(effects(before, after), expected, "{before:?} {after:?}");
        }
    }
}
