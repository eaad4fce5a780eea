//! pvpanic, by which a guest's kernel reports that it panicked (QEMU docs/specs/pvpanic.rst).

use boot::fdt::Node;

use crate::bus::{Action, MmioDevice};
use crate::ratelimit::LogLimit;

/// The guest's kernel panicked.
const PANICKED: u8 = 1 << 0;

/// The guest's kernel panicked, and its crash kernel takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// The device: one byte that reads as the supported events, and to which the guest writes an event.
#[derive(Debug)]
pub struct PvPanic {
    log: LogLimit,
}

impl Default for PvPanic {
    fn default() -> Self {
        Self { log: LogLimit::new("pvpanic") }
    }
}

impl MmioDevice for PvPanic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (0, Some(first)) = (offset, data.first_mut()) {
            *first = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let event = if offset == 0 { data.first().copied().unwrap_or(0) } else { 0 };
        if event & PANICKED != 0 {
            return Action::Crash;
        }
        if event & CRASH_LOADED != 0 {
            self.log.warn(format_args!("the guest's kernel panicked and runs its crash kernel"));
        }
        Action::None
    }
}

/// Its node at `base` (Documentation/devicetree/bindings/misc/pvpanic-mmio.txt).
pub fn node(base: u64, size: u64) -> Node {
    Node::at("pvpanic", base).string("compatible", "qemu,pvpanic-mmio").reg([(base, size)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_panic_crashes_the_machine() {
        for (offset, event, action) in [
            (0, 1, Action::Crash),
            (0, 3, Action::Crash),
            (0, 2, Action::None),
            (0, 0, Action::None),
            (0, 0x80, Action::None),
            (1, 1, Action::None),
        ] {
            assert_eq!(
                PvPanic::default().write(offset, &[event]),
                action,
                "{event:#x} at {offset}"
            );
        }
    }

    #[test]
    fn it_reads_as_the_supported_events() {
        let mut data = [0xff; 4];
        PvPanic::default().read(0, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        PvPanic::default().read(1, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
