use super::*;
use crate::pci::message::Delivery::{Masked, To};

/// Capability id 0x11, next at 0x50.
const HEADER: u32 = 0x5011;
const ON: [u8; 2] = [0, 0x80];
const ON_MASKED: [u8; 2] = [0, 0xc0];
const OFF: [u8; 2] = [0, 0];

/// With so many vectors: the table in BAR 4 at 0x2000, pending bits in BAR 2 at 0x1008.
fn msix(vectors: u32) -> Msix {
    Msix::new([HEADER | (vectors - 1) << 16, 0x2004, 0x100a], 0x18)
}

fn to(address: u64, data: u32) -> Delivery {
    To(MsiMessage { address, data, requester: 0x18 })
}

fn delivery(vector: u16, delivery: Delivery) -> Effect {
    Effect::Delivery { vector, delivery }
}

/// Writes a whole entry by dwords, vector control last.
fn program(msix: &mut Msix, vector: u64, dwords: [u32; 4]) -> Vec<Effect> {
    let at = (vector * 16..).step_by(4);
    at.zip(dwords).flat_map(|(at, dword)| msix.write_table(at, &dword.to_le_bytes())).collect()
}

fn pending(msix: &Msix, offset: u64) -> u64 {
    let mut data = [0xee; 8];
    msix.read_pending(offset, &mut data, |vector| vector % 2 == 1);
    u64::from_le_bytes(data)
}

#[test]
fn the_structure_says_where_things_are() {
    for (vectors, table, bits) in [(1, 16, 8), (64, 1024, 8), (65, 1040, 16), (2048, 32768, 256)] {
        let msix = msix(vectors);
        assert_eq!(u32::from(msix.capacity()), vectors);
        assert_eq!(msix.table(), TablePlace { bar: 4, offset: 0x2000, size: table });
        assert_eq!(msix.pending_bits(), TablePlace { bar: 2, offset: 0x1008, size: bits });
    }
    let table = msix(2).table();
    for (bar, offset, len, found) in [
        (4, 0x2000, 4, Some(0)),
        (4, 0x201c, 4, Some(0x1c)),
        (4, 0x201c, 8, None),
        (4, 0x1ffc, 4, None),
        (3, 0x2000, 4, None),
        (4, u64::MAX, 8, None),
        (4, 0x2020, 1, None),
    ] {
        assert_eq!(table.find(bar, offset, len), found, "{bar} {offset:#x} {len}");
    }
}

#[test]
fn all_but_enable_and_mask_is_read_only() {
    let mut msix = msix(3);
    let _ = (msix.write(0, &[0xff; 4]), msix.write(4, &[0xff; 4]), msix.write(8, &[0xff; 4]));
    let mut data = [0; 4];
    let expected = [HEADER | (2 | ENABLE | FUNCTION_MASK) << 16, 0x2004, 0x100a];
    for (offset, expected) in [0, 4, 8].into_iter().zip(expected) {
        msix.read(offset, &mut data);
        assert_eq!(u32::from_le_bytes(data), expected);
    }
    let mut byte = [0];
    msix.read(3, &mut byte);
    assert_eq!(byte, [0xc0]);
}

#[test]
fn a_guest_programs_masked_entries_and_unmasks_them_one_by_one() {
    let mut msix = msix(4);
    assert_eq!(msix.write(2, &ON_MASKED), [Effect::Enabled { vectors: 4 }]);
    assert_eq!(program(&mut msix, 1, [0x0809_0043, 0x1, 7, 0]), [], "all are masked");
    assert_eq!(program(&mut msix, 2, [0x0809_0040, 0x1, 8, 1]), []);
    assert_eq!(msix.write(2, &ON), [delivery(1, to(0x1_0809_0040, 7))]);
    assert_eq!(
        program(&mut msix, 2, [0x0809_0040, 0x1, 9, 0]),
        [delivery(2, to(0x1_0809_0040, 9))]
    );
    assert_eq!(msix.write_table(0x2c, &[1, 0, 0, 0]), [delivery(2, Masked)]);
    assert_eq!(msix.write(2, &ON_MASKED), [delivery(1, Masked)]);
    assert_eq!(msix.write(2, &OFF), [Effect::Disabled]);
    // What is in the table outlives being switched off.
    let on = [Effect::Enabled { vectors: 4 }, delivery(1, to(0x1_0809_0040, 7))];
    assert_eq!(msix.write(2, &ON), on);
}

#[test]
fn an_entry_changes_by_dwords_and_by_quadwords() {
    let mut msix = msix(2);
    let _ = (program(&mut msix, 1, [0x1000, 0, 1, 0]), msix.write(2, &ON));
    assert_eq!(msix.write_table(0x18, &[2, 0, 0, 0]), [delivery(1, to(0x1000, 2))]);
    let address = 0x2_0000_2000_u64.to_le_bytes();
    assert_eq!(msix.write_table(0x10, &address), [delivery(1, to(0x2_0000_2000, 2))]);
    assert_eq!(msix.write_table(0x10, &address), [], "nothing changed");
    assert_eq!(msix.write_table(0x18, &[3, 0, 0, 0, 1, 0, 0, 0]), [delivery(1, Masked)]);
    for (offset, expected) in [(0x10, 0x2_0000_2000_u64), (0x18, 0x1_0000_0003), (0x1c, 1)] {
        let mut data = [0xee; 8];
        msix.read_table(offset, &mut data);
        assert_eq!(u64::from_le_bytes(data), expected);
    }
}

#[test]
fn pending_bits_are_those_of_masked_vectors_that_signalled() {
    let mut msix = msix(70);
    assert_eq!(pending(&msix, 0), 0, "nothing is pending while it is off");
    let _ = msix.write(2, &ON);
    let all = 0xaaaa_aaaa_aaaa_aaaa;
    assert_eq!((pending(&msix, 0), pending(&msix, 8)), (all, 0x2a));
    let _ = program(&mut msix, 3, [0; 4]);
    assert_eq!(pending(&msix, 0), all & !(1 << 3));
    let mut byte = [0xff];
    msix.read_pending(8, &mut byte, |_| true);
    assert_eq!(byte, [0x3f]);
    msix.read_pending(u64::MAX / 4, &mut byte, |_| true);
    assert_eq!(byte, [0]);
}

#[test]
fn a_reset_masks_and_clears_all() {
    let mut msix = msix(2);
    let _ = (program(&mut msix, 0, [4, 4, 4, 0]), msix.write(2, &ON));
    assert_eq!(msix.reset(), [Effect::Disabled]);
    assert_eq!(msix.reset(), []);
    assert_eq!(msix.write(2, &ON), [Effect::Enabled { vectors: 2 }]);
    let mut data = [0xee; 8];
    msix.read_table(0, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn accesses_that_no_software_makes_are_ignored() {
    let mut msix = msix(1);
    let _ = msix.write(2, &ON);
    for (offset, size) in [
        (0, 1),
        (0, 2),
        (2, 4),
        (4, 8),
        (12, 8),
        (13, 2),
        (16, 4),
        (u64::MAX, 4),
        (u64::MAX - 7, 8),
    ] {
        assert_eq!(msix.write_table(offset, &[0; 8][..size]), [], "{offset:#x} {size}");
        msix.read_table(offset, &mut [0; 8][..size]);
    }
    for offset in 0..=u16::from(u8::MAX) {
        msix.read(offset, &mut [0; 4]);
    }
    let mut data = [0; 4];
    msix.read_table(12, &mut data);
    assert_eq!(data, [1, 0, 0, 0]);
}
