//! Configuration space by memory accesses (PCI Express 3.0, 7.2.2 "ECAM").

use std::sync::Arc;

use super::bridge::HostBridge;
use crate::bus::{Action, SharedDevice};

/// Bits of an ECAM offset: the register below, device and function from here, the bus from there.
const DEVFN_SHIFT: u32 = 12;
const BUS_SHIFT: u32 = 20;

/// The configuration space of the bridge's bus.
///
/// Where there is no function, reads are all ones and writes ignored. So are accesses that aren't
/// aligned to their size, which the specification leaves to the implementation; one of 8 bytes is
/// two of 4, the lower first.
pub(super) struct Ecam {
    bridge: Arc<HostBridge>,
}

impl Ecam {
    pub(super) fn new(bridge: Arc<HostBridge>) -> Self {
        Self { bridge }
    }
}

/// The function and the register at an offset for an access of `len` bytes.
fn decode(offset: u64, len: usize) -> Option<(u8, u16)> {
    let aligned = matches!(len, 1 | 2 | 4 | 8) && offset.is_multiple_of(len as u64);
    let devfn = (offset >> DEVFN_SHIFT & 0xff) as u8;
    let register = (offset & 0xfff) as u16;
    (aligned && offset >> BUS_SHIFT == 0).then_some((devfn, register))
}

impl SharedDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some((devfn, register)) = decode(offset, data.len()) else {
            data.fill(0xff);
            return;
        };
        for (part, register) in data.chunks_mut(4).zip((register..).step_by(4)) {
            self.bridge.read_config(devfn, register, part);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let Some((devfn, register)) = decode(offset, data.len()) {
            for (part, register) in data.chunks(4).zip((register..).step_by(4)) {
                self.bridge.write_config(devfn, register, part);
            }
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_a_function_and_a_register() {
        for (offset, len, decoded) in [
            (0, 4, Some((0, 0))),
            (0x1_0ffc, 4, Some((0x10, 0xffc))),
            (0xf_fffe, 2, Some((0xff, 0xffe))),
            (0xf_fff8, 8, Some((0xff, 0xff8))),
            (0x8003, 1, Some((8, 3))),
            (0x8001, 2, None),
            (0x8002, 4, None),
            (0x8004, 8, None),
            (0x8000, 3, None),
            (0x8000, 16, None),
            (0x10_0000, 4, None),
            (u64::MAX, 1, None),
        ] {
            assert_eq!(decode(offset, len), decoded, "{offset:#x} {len}");
        }
    }
}
