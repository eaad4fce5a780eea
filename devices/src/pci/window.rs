//! What the host bridge forwards: accesses to the BARs of the functions behind it.

use std::sync::Arc;

use super::bridge::HostBridge;
use super::function::Space;
use crate::bus::{Action, SharedDevice};

/// A stretch of the guest's address space behind which there are functions.
///
/// Where no function answers, reads are all ones, as a bridge's are when nobody does, and writes are
/// ignored.
pub(super) struct Forwarder {
    bridge: Arc<HostBridge>,
    space: Space,
    /// The bus address of offset 0.
    first: u64,
}

impl Forwarder {
    pub(super) fn new(bridge: Arc<HostBridge>, space: Space, first: u64) -> Self {
        Self { bridge, space, first }
    }
}

impl SharedDevice for Forwarder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.first.saturating_add(offset);
        let answered = self.bridge.access(self.space, address, data.len(), |function, bar, at| {
            function.read_bar(bar, at, data);
        });
        if !answered {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let address = self.first.saturating_add(offset);
        self.bridge.access(self.space, address, data.len(), |function, bar, at| {
            function.write_bar(bar, at, data);
        });
        Action::None
    }
}
