//! How a guest reaches the host bridge: configuration space by ECAM (PCI Express 3.0, 7.2.2), and the
//! apertures behind which BARs are.

use std::ops::Range;
use std::sync::Arc;

use super::address::Bdf;
use super::apertures::{Apertures, ECAM, IO, MEMORY32, MEMORY64};
use super::bars::AddressSpace;
use super::bridge::HostBridge;
use crate::bus::{Action, SharedDevice};

/// Bits of an ECAM offset: the register below, device and function from here, the bus from there.
const DEVFN_SHIFT: u32 = 12;
const BUS_SHIFT: u32 = 20;

impl HostBridge {
    /// Its devices for the bus: a name, the addresses (GPA) and the device.
    #[cold]
    pub fn devices(self: &Arc<Self>) -> Vec<(&'static str, Range<u64>, Arc<dyn SharedDevice>)> {
        let aperture = |space, first| -> Arc<dyn SharedDevice> {
            Arc::new(Aperture { bridge: self.clone(), space, first })
        };
        let Apertures { ecam, memory32, memory64, io } = self.apertures();
        let memory = |range: &Range<u64>| aperture(AddressSpace::Memory, range.start);
        let mut devices: Vec<(_, _, Arc<dyn SharedDevice>)> = vec![
            (ECAM, ecam.clone(), Arc::new(Ecam { bridge: self.clone() })),
            (MEMORY32, memory32.clone(), memory(memory32)),
            (IO, io.clone(), aperture(AddressSpace::Io, 0)),
        ];
        devices.extend(memory64.iter().map(|range| (MEMORY64, range.clone(), memory(range))));
        devices
    }
}

/// The configuration space of the bridge's buses.
///
/// Where there is no function, reads are all ones and writes ignored. So are accesses that aren't
/// aligned to their size, which the specification leaves to the implementation. An access of 8 bytes
/// is two of 4, the lower first.
struct Ecam {
    bridge: Arc<HostBridge>,
}

/// The function and the register at an ECAM offset for an access of `len` bytes.
fn decode(offset: u64, len: usize) -> Option<(Bdf, u16)> {
    let aligned = matches!(len, 1 | 2 | 4 | 8) && offset.is_multiple_of(len as u64);
    let bus = u8::try_from(offset >> BUS_SHIFT).ok().filter(|_| aligned)?;
    let devfn = (offset >> DEVFN_SHIFT & 0xff) as u8;
    let register = (offset & 0xfff) as u16;
    Some((Bdf::from_devfn(bus, devfn), register))
}

impl SharedDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some((function, register)) = decode(offset, data.len()) else {
            data.fill(0xff);
            return;
        };
        for (part, register) in data.chunks_mut(4).zip((register..).step_by(4)) {
            self.bridge.read_config(function, register, part);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let Some((function, register)) = decode(offset, data.len()) {
            for (part, register) in data.chunks(4).zip((register..).step_by(4)) {
                self.bridge.write_config(function, register, part);
            }
        }
        Action::None
    }
}

/// Addresses that the bridge forwards to the BARs of functions.
///
/// Where no BAR is, reads are all ones, as behind any bridge, and writes are ignored.
struct Aperture {
    bridge: Arc<HostBridge>,
    space: AddressSpace,
    /// The bus address of offset 0.
    first: u64,
}

impl SharedDevice for Aperture {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_a_function_and_a_register() {
        for (offset, len, decoded) in [
            (0, 4, Some((0, 0, 0))),
            (0x1_0ffc, 4, Some((0, 0x10, 0xffc))),
            (0xf_fffe, 2, Some((0, 0xff, 0xffe))),
            (0xf_fff8, 8, Some((0, 0xff, 0xff8))),
            (0x8003, 1, Some((0, 8, 3))),
            (0x10_0000, 4, Some((1, 0, 0))),
            (0xfff_fffe, 2, Some((0xff, 0xff, 0xffe))),
            (0x8001, 2, None),
            (0x8002, 4, None),
            (0x8004, 8, None),
            (0x8000, 3, None),
            (0x8000, 16, None),
            (0x1000_0000, 4, None),
            (u64::MAX, 1, None),
        ] {
            let decoded =
                decoded.map(|(bus, devfn, register)| (Bdf::from_devfn(bus, devfn), register));
            assert_eq!(decode(offset, len), decoded, "{offset:#x} {len}");
        }
    }
}
