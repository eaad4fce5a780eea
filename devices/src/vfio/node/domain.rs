//! Resets and power domains of the host's that a device's nodes name.

use boot::fdt::Label;

/// What a reference is to, beside clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DomainKind {
    Reset,
    Power,
}

impl DomainKind {
    /// What the property of this name is a list of, of the node at this path. Nodes below have no resets:
    /// only the device as a whole can be reset.
    pub(super) fn of(path: &str, property: &str) -> Option<Self> {
        match property {
            "resets" if path.is_empty() => Some(Self::Reset),
            "power-domains" => Some(Self::Power),
            _ => None,
        }
    }

    /// The property, and the one that goes with it.
    pub(super) fn properties(self) -> [&'static str; 2] {
        match self {
            Self::Reset => ["resets", "reset-names"],
            Self::Power => ["power-domains", "power-domain-names"],
        }
    }
}

/// A reset or a power domain of the host's that a node names.
#[derive(Clone, Debug)]
pub(super) struct NamedDomain {
    pub(super) kind: DomainKind,
    /// What stands for it in the guest's node until it has a number.
    pub(super) label: Label,
    /// The path of the node below the device's.
    pub(super) node: String,
    /// The name of the node that provides it.
    pub(super) provider: String,
    /// Why a guest hasn't it, where it has none by SCMI.
    pub(super) reason: String,
}
