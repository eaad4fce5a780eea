//! Which drivers for the firmware's clocks, resets and power domains (SCMI) a Linux kernel has built in:
//! without them, its other drivers wait for what they name.
//!
//! A kernel doesn't tell. But drivers have names and `compatible` strings, and compilers put such at
//! multiples of 8 bytes (GCC's `.rodata.str1.8`; `struct of_device_id` has a pointer). Where one doesn't,
//! the driver isn't found, and the guest has what any kernel takes.

use std::io::Read;

/// What is read at a time, in bytes.
const CHUNK: usize = 64 << 10;

/// No less than the longest string, and a multiple of 8.
const OVERLAP: usize = 32;

/// The strings: of the transport without which there is nothing, and of each driver.
const TRANSPORT: &[u8] = b"arm,scmi-smc\0";
const DRIVERS: [&[u8]; 3] = [b"scmi-clocks\0", b"scmi-reset\0", b"scmi-power-domain\0"];

/// The drivers that a kernel has built in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScmiDrivers {
    /// Of clocks (`CONFIG_COMMON_CLK_SCMI`).
    pub clocks: bool,
    /// Of resets (`CONFIG_RESET_SCMI`).
    pub resets: bool,
    /// Of power domains (`CONFIG_ARM_SCMI_POWER_DOMAIN`).
    pub power_domains: bool,
}

impl ScmiDrivers {
    /// All of them.
    pub const ALL: Self = Self { clocks: true, resets: true, power_domains: true };

    /// Those of an image; of one that can't be read, what was found before.
    pub(super) fn of(mut image: impl Read) -> Self {
        let mut buffer = vec![0; CHUNK];
        let (mut kept, mut transport, mut found) = (0, false, [false; 3]);
        while let Some(free) = buffer.get_mut(kept..) {
            let Ok(read @ 1..) = image.read(free) else { break };
            let end = kept + read;
            let mut rest = buffer.get(..end).unwrap_or_default();
            while let Some((word, after)) = rest.split_first_chunk() {
                // Nearly all of an image is neither.
                if matches!(word, b"arm,scmi" | [b's', b'c', b'm', b'i', b'-', ..]) {
                    transport |= rest.starts_with(TRANSPORT);
                    for (found, name) in found.iter_mut().zip(DRIVERS) {
                        *found |= rest.starts_with(name);
                    }
                }
                rest = after;
            }
            let start = end.saturating_sub(OVERLAP) & !7;
            buffer.copy_within(start..end, 0);
            kept = end - start;
        }
        let [clocks, resets, power_domains] = found.map(|found| found && transport);
        Self { clocks, resets, power_domains }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out so many bytes at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.1.min(buffer.len());
            (&mut self.0).take(count as u64).read(buffer)
        }
    }

    fn image(strings: &[(usize, &[u8])]) -> Vec<u8> {
        let mut image = vec![0; 200_000];
        for (at, string) in strings {
            image[*at..at + string.len()].copy_from_slice(string);
        }
        image
    }

    #[test]
    fn drivers_are_found_by_their_strings_wherever_reads_end() {
        let [clocks, _, power] = DRIVERS;
        for at in [0, 8, 65_528, 65_520, 65_536, 131_056, 199_976] {
            let image = image(&[(at, power), (100_000, TRANSPORT), (150_000, clocks)]);
            let expected = ScmiDrivers { resets: false, ..ScmiDrivers::ALL };
            for step in [1000, 4096, 5001, usize::MAX] {
                assert_eq!(ScmiDrivers::of(Slow(&image, step)), expected, "{at} {step}");
            }
        }
    }

    #[test]
    fn without_the_transport_there_are_none() {
        let [clocks, ..] = DRIVERS;
        let mailbox: &[u8] = b"arm,scmi\0";
        for other in [mailbox, b"arm,scmi-smc-param\0", b"arm,scmi-shmem\0"] {
            let image = image(&[(8, clocks), (80, other)]);
            assert_eq!(ScmiDrivers::of(&image[..]), ScmiDrivers::default());
        }
        assert_eq!(ScmiDrivers::of(&[][..]), ScmiDrivers::default());
    }
}
