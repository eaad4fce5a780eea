//! A guest that writes nothing to its console: what may be wrong is logged once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use boot::size::Size;

use crate::cli::SerialKind;

/// How long a guest may take to its first output: Linux takes less than a second.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Waits for the first output.
pub struct ConsoleTimeout {
    until: Instant,
    spoke: Arc<AtomicBool>,
    serial: Option<SerialKind>,
    shortage: Option<(u64, u64)>,
}

impl ConsoleTimeout {
    /// Waits from now on; `spoke` becomes true when the guest writes to its console, which is
    /// this serial port or hvc0. `shortage` tells how many bytes the kernel's file has of how many in memory, if it lacks many.
    pub fn new(
        spoke: Arc<AtomicBool>,
        serial: Option<SerialKind>,
        shortage: Option<(u64, u64)>,
    ) -> Self {
        Self { until: Instant::now() + TIMEOUT, spoke, serial, shortage }
    }

    /// How long until the next [`check`](Self::check), in ms.
    pub fn wait_ms(&self) -> i32 {
        let left = self.until.saturating_duration_since(Instant::now());
        // One more, for what is cut off.
        i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    }

    /// Logs what may be wrong when the time is over; `None` when there is no more to wait for.
    pub fn check(self) -> Option<Self> {
        if self.spoke.load(Ordering::Relaxed) {
            return None;
        }
        if Instant::now() < self.until {
            return Some(self);
        }
        log::warn!("{}", self.text());
        None
    }

    fn text(&self) -> String {
        let has = match self.serial {
            Some(SerialKind::Ns16550a) => {
                "CONFIG_SERIAL_8250_CONSOLE and CONFIG_SERIAL_OF_PLATFORM, and is ttyS0 its console \
                 (--cmdline console=ttyS0)? --cmdline earlycon shows what it says before that"
            }
            Some(SerialKind::Pl011) => {
                "CONFIG_SERIAL_AMBA_PL011_CONSOLE, and is ttyAMA0 its console (--cmdline \
                 console=ttyAMA0)? --cmdline earlycon shows what it says before that"
            }
            None => {
                "CONFIG_VIRTIO_CONSOLE and CONFIG_VIRTIO_PCI, and is hvc0 its console (--cmdline \
                 console=hvc0)? --console file:FILE --cmdline earlycon shows what it says before that"
            }
        };
        let mut text = format!(
            "the guest has written nothing to its console for {} s. Does its kernel have {has}",
            TIMEOUT.as_secs()
        );
        if let Some((has, takes)) = self.shortage {
            text += &format!(
                ". Its file has {:#} of the {:#} that the kernel takes in memory: it may be cut off",
                Size(has),
                Size(takes)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_with_output_in_time_is_left_alone() {
        let spoke = Arc::new(AtomicBool::new(false));
        let timeout = ConsoleTimeout::new(spoke.clone(), Some(SerialKind::Ns16550a), None);
        assert!((9_000..=10_001).contains(&timeout.wait_ms()));
        let timeout = timeout.check().unwrap();
        spoke.store(true, Ordering::Relaxed);
        assert!(timeout.check().is_none());
    }

    #[test]
    fn a_guest_without_output_is_logged_once() {
        let start = Instant::now();
        let of = |serial, shortage| ConsoleTimeout {
            until: start,
            spoke: Arc::default(),
            serial,
            shortage,
        };
        let timeout = of(Some(SerialKind::Pl011), None);
        assert_eq!(timeout.wait_ms(), 1);
        assert!(timeout.text().contains("ttyAMA0"));
        assert!(timeout.check().is_none());
        let shortage = Some((5 << 20, 9 << 20));
        let timeout = of(None, shortage);
        assert!(timeout.text().contains("hvc0"));
        assert!(timeout.text().ends_with(
            "has 5 MiB of the 9 MiB that the kernel takes in memory: it may be cut off"
        ));
    }
}
