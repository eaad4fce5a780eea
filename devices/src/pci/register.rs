//! Accesses to registers that are kept as bytes.

/// Copies what lies at `offset` of `registers`; beyond their end is zero.
pub(super) fn read(registers: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| registers.get(offset..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

/// The dword `old` after `data` was written `offset` bytes into it; what lies beyond it is ignored.
pub(super) fn merge(old: u32, offset: usize, data: &[u8]) -> u32 {
    let mut bytes = old.to_le_bytes();
    for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
        *to = *from;
    }
    u32::from_le_bytes(bytes)
}

/// `old` with the bits of `mask` from `new`.
pub(super) fn change(old: u32, new: u32, mask: u32) -> u32 {
    old & !mask | new & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_end_with_the_registers() {
        for (offset, expected) in [(0, [1, 2]), (1, [2, 3]), (2, [3, 0]), (3, [0, 0])] {
            let mut data = [0xff; 2];
            read(&[1, 2, 3], offset, &mut data);
            assert_eq!(data, expected);
        }
        let mut data = [0xff];
        read(&[1], u64::MAX, &mut data);
        assert_eq!(data, [0]);
    }

    #[test]
    fn a_part_of_a_dword_is_written() {
        assert_eq!(merge(0x4433_2211, 0, &[0xaa]), 0x4433_22aa);
        assert_eq!(merge(0x4433_2211, 2, &[0xaa, 0xbb]), 0xbbaa_2211);
        assert_eq!(merge(0x4433_2211, 3, &[0xaa, 0xbb]), 0xaa33_2211);
        assert_eq!(merge(0x4433_2211, 4, &[0xaa]), 0x4433_2211);
        assert_eq!(change(0xffff_0000, 0x0f0f_0f0f, 0xff00_00ff), 0x0fff_000f);
    }
}
