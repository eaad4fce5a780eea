//! GICv2m: a frame of registers that makes message-signalled interrupts SPIs of a GICv2 (Arm Server
//! Base System Architecture, DEN0029, appendix "GICv2m architecture").
//!
//! A message is a write of the SPI's INTID to MSI_SETSPI_NS, and an edge on that SPI. Those of PCI
//! functions never get here: the hypervisor has their eventfds signal the SPI ([`Frame::spi`]).

use std::ops::Range;
use std::sync::Arc;

use boot::fdt::Node;

use crate::bus::{Action, SharedDevice};
use crate::irq::{EdgeInterrupts, FIRST_SPI, MsiMessage, Spi};
use crate::ratelimit::LogLimit;

/// The label of the frame's node, for `msi-parent`.
pub const LABEL: &str = "v2m";

/// The size of the frame in bytes.
pub const SIZE: u64 = 0x1000;

/// The registers: offsets from the start of the frame.
const MSI_TYPER: u64 = 0x008;
const MSI_SETSPI_NS: u64 = 0x040;
const MSI_IIDR: u64 = 0xfcc;

/// MSI_TYPER has the first INTID in bits 25 to 16, the number of SPIs in 9 to 0.
const TYPER_FIRST_SHIFT: u32 = 16;

/// MSI_IIDR: a product of nobody who has a JEP106 code, architecture version 0, which is GICv2m.
const IIDR: u32 = 0;

/// Where a frame is, and which SPIs it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    base: u64,
    spis: Range<u32>,
}

/// Why a message is none that the frame takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoMessage {
    /// It goes elsewhere.
    #[error("its address is {address:#x}, and messages are written to {doorbell:#x}")]
    Address {
        /// Where it goes (GPA).
        address: u64,
        /// Where it should (GPA).
        doorbell: u64,
    },
    /// It names an interrupt that isn't the frame's.
    #[error("its data is {data:#x}, and messages are interrupts {first} to {last}")]
    Interrupt {
        /// What is written.
        data: u32,
        /// The frame's first INTID.
        first: u32,
        /// Its last INTID.
        last: u32,
    },
}

impl Frame {
    /// A frame at `base` (GPA) with these SPIs; `None` if there are none.
    pub fn new(base: u64, spis: Range<u32>) -> Option<Self> {
        (!spis.is_empty()).then_some(Self { base, spis })
    }

    /// Its addresses (GPA).
    pub fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(SIZE)
    }

    /// Its SPIs, by number.
    pub fn spis(&self) -> Range<u32> {
        self.spis.clone()
    }

    /// How many SPIs, and so messages, it has.
    pub fn count(&self) -> u32 {
        self.spis.end.saturating_sub(self.spis.start)
    }

    /// The SPI that a message signals.
    ///
    /// # Errors
    ///
    /// It isn't the frame's.
    pub fn spi(&self, message: MsiMessage) -> Result<Spi, NoMessage> {
        let MsiMessage { address, data, .. } = message;
        let doorbell = self.base.saturating_add(MSI_SETSPI_NS);
        if address != doorbell {
            return Err(NoMessage::Address { address, doorbell });
        }
        self.spi_of(data)
    }

    /// The SPI that is signalled by a write of `data`. The register has the INTID in bits 9 to 0, and
    /// the rest is reserved: whoever sets it means something else.
    fn spi_of(&self, data: u32) -> Result<Spi, NoMessage> {
        let spi = data.checked_sub(FIRST_SPI).filter(|spi| self.spis.contains(spi));
        spi.map(Spi).ok_or(NoMessage::Interrupt {
            data,
            first: self.first_intid(),
            last: self.spis.end.saturating_add(FIRST_SPI - 1),
        })
    }

    fn first_intid(&self) -> u32 {
        self.spis.start.saturating_add(FIRST_SPI)
    }

    /// Its node, a child of the interrupt controller's
    /// (Documentation/devicetree/bindings/interrupt-controller/arm,gic.yaml, `^v2m@`).
    pub fn node(&self) -> Node {
        Node::at("v2m", self.base)
            .label(LABEL)
            .string("compatible", "arm,gic-v2m-frame")
            .flag("msi-controller")
            .reg([(self.base, SIZE)])
            .u32("arm,msi-base-spi", self.first_intid())
            .u32("arm,msi-num-spis", self.count())
    }
}

/// The registers of a frame.
pub struct Registers {
    frame: Frame,
    interrupts: Arc<dyn EdgeInterrupts>,
    log: LogLimit,
}

impl Registers {
    /// Those of `frame`, whose SPIs are signalled by `interrupts`.
    pub fn new(frame: Frame, interrupts: Arc<dyn EdgeInterrupts>) -> Self {
        Self { frame, interrupts, log: LogLimit::new("GICv2m frame") }
    }
}

impl SharedDevice for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            MSI_TYPER => self.frame.first_intid() << TYPER_FIRST_SHIFT | self.frame.count(),
            MSI_IIDR => IIDR,
            // Write-only, or reserved.
            _ => 0,
        };
        data.fill(0);
        // Registers have 32 bits.
        if let Some(data) = data.first_chunk_mut() {
            *data = value.to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let data = match *data {
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => return Action::None,
        };
        // The others are read-only.
        if offset == MSI_SETSPI_NS {
            match self.frame.spi_of(data) {
                Ok(spi) => self.interrupts.pulse(spi),
                Err(error) => self.log.warn(format_args!("no message: {error}")),
            }
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use boot::fdt::subtree_to_dts;

    use super::*;

    const BASE: u64 = 0x0802_0000;

    #[derive(Default)]
    struct Pulses(Mutex<Vec<u32>>);

    impl EdgeInterrupts for Pulses {
        fn pulse(&self, spi: Spi) {
            self.0.lock().unwrap().push(spi.0);
        }
    }

    fn frame() -> Frame {
        Frame::new(BASE, 96..160).unwrap()
    }

    fn registers() -> (Registers, Arc<Pulses>) {
        let pulses = Arc::new(Pulses::default());
        (Registers::new(frame(), pulses.clone()), pulses)
    }

    fn read(registers: &Registers, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        registers.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_registers_tell_first_and_number_of_the_spis() {
        let (registers, _) = registers();
        assert_eq!(read(&registers, MSI_TYPER), 128 << 16 | 64);
        for offset in (0..SIZE).step_by(4).filter(|offset| *offset != MSI_TYPER) {
            assert_eq!(read(&registers, offset), 0, "{offset:#x}");
        }
        let mut long = [0xff; 8];
        registers.read(MSI_TYPER, &mut long);
        assert_eq!(u64::from_le_bytes(long), 128 << 16 | 64);
        let mut short = [0xff; 1];
        registers.read(MSI_TYPER, &mut short);
        assert_eq!(short, [0]);
    }

    #[test]
    fn an_intid_of_the_frame_pulses_its_spi() {
        let (registers, pulses) = registers();
        for (data, spi) in [(128u32, 96), (191, 159), (128, 96)] {
            assert_eq!(registers.write(MSI_SETSPI_NS, &data.to_le_bytes()), Action::None);
            assert_eq!(pulses.0.lock().unwrap().pop(), Some(spi));
        }
        let _ = registers.write(MSI_SETSPI_NS, &130u16.to_le_bytes());
        assert_eq!(pulses.0.lock().unwrap().pop(), Some(98));
    }

    #[test]
    fn other_writes_pulse_nothing() {
        let (registers, pulses) = registers();
        // SGIs, PPIs, the serial port's SPI, those beside the frame's, reserved bits.
        for data in [0u32, 15, 27, 32, 127, 192, 1019, 1023, 128 | 1 << 10, 128 | 1 << 31, !0] {
            let _ = registers.write(MSI_SETSPI_NS, &data.to_le_bytes());
        }
        for offset in (0..SIZE).filter(|offset| *offset != MSI_SETSPI_NS) {
            let _ = registers.write(offset, &128u32.to_le_bytes());
        }
        let _ = registers.write(MSI_SETSPI_NS, &[128]);
        let _ = registers.write(MSI_SETSPI_NS, &128u64.to_le_bytes());
        assert!(pulses.0.lock().unwrap().is_empty());
    }

    #[test]
    fn a_message_reaches_only_spis_of_the_frame() {
        let frame = frame();
        let doorbell = BASE + MSI_SETSPI_NS;
        let spi = |address, data| frame.spi(MsiMessage { address, data, requester: 8 });
        assert_eq!(spi(doorbell, 128), Ok(Spi(96)));
        assert_eq!(spi(doorbell, 191), Ok(Spi(159)));
        for data in [0, 31, 32, 127, 192, 128 | 1 << 10, 128 | 1 << 16, u32::MAX] {
            let expected = NoMessage::Interrupt { data, first: 128, last: 191 };
            assert_eq!(spi(doorbell, data), Err(expected), "{data:#x}");
        }
        for address in [0, BASE, doorbell + 1, doorbell | 1 << 32, 0x0808_0040, u64::MAX] {
            let expected = NoMessage::Address { address, doorbell };
            assert_eq!(spi(address, 128), Err(expected), "{address:#x}");
        }
    }

    #[test]
    fn its_node_is_as_the_binding_has_it() {
        let dts = subtree_to_dts(&frame().node());
        let words = dts.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = "v2m: v2m@8020000 { compatible = \"arm,gic-v2m-frame\"; msi-controller; \
                        reg = <0x0 0x8020000 0x0 0x1000>; arm,msi-base-spi = <0x80>; \
                        arm,msi-num-spis = <0x40>; };";
        assert_eq!(words, expected);
    }

    #[test]
    fn a_frame_has_spis() {
        assert_eq!(Frame::new(BASE, 96..96), None);
        assert_eq!(frame().count(), 64);
    }
}
