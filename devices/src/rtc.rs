//! The real-time clock: a PL031 over vm-superio.

use boot::fdt::{Label, Node};
use vm_superio::{Rtc as Pl031, rtc_pl031::NoEvents};

use crate::bus::{Action, MmioDevice};
use crate::irq::{Spi, Trigger};

/// A PL031 that tells the host's time. Its alarm interrupt never fires.
pub struct Rtc(Pl031<NoEvents>);

impl Rtc {
    /// A clock that starts at the host's time.
    pub fn new() -> Self {
        Self(Pl031::new())
    }
}

impl Default for Rtc {
    fn default() -> Self {
        Self::new()
    }
}

impl MmioDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (u16::try_from(offset), <&mut [u8; 4]>::try_from(&mut *data)) {
            (Ok(offset), Ok(word)) => self.0.read(offset, word),
            // Its registers are words (DDI 0224C, 3.2); other accesses read as zero.
            _ => data.fill(0),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        if let (Ok(offset), Ok(word)) = (u16::try_from(offset), <&[u8; 4]>::try_from(data)) {
            self.0.write(offset, word);
        }
        Action::None
    }
}

/// Its node at `base` (Documentation/devicetree/bindings/rtc/arm,pl031.yaml); `clock` is the
/// label of the bus clock's node.
pub fn node(base: u64, size: u64, spi: Spi, clock: impl Into<Label>) -> Node {
    Node::at("rtc", base)
        .strings("compatible", ["arm,pl031", "arm,primecell"])
        .reg([(base, size)])
        .cells("interrupts", [0, spi.0, Trigger::Level.dt_flags()])
        .refs("clocks", [clock])
        .string("clock-names", "apb_pclk")
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_data_register_tells_the_hosts_time() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut data = [0; 4];
        Rtc::new().read(0, &mut data);
        assert!(u64::from(u32::from_le_bytes(data)).abs_diff(now) <= 1);
    }

    #[test]
    fn only_words_are_answered() {
        for len in [1, 2, 8] {
            let mut data = vec![0xff; len];
            Rtc::new().read(0, &mut data);
            assert!(data.iter().all(|b| *b == 0), "{len} bytes");
        }
    }

    #[test]
    fn a_guest_can_set_the_clock() {
        let mut rtc = Rtc::new();
        assert_eq!(rtc.write(8, &1000u32.to_le_bytes()), Action::None);
        let mut data = [0; 4];
        rtc.read(0, &mut data);
        assert!((1000..=1001).contains(&u32::from_le_bytes(data)));
    }
}
