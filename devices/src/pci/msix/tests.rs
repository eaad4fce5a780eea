use super::*;

/// Capability id 0x11, next at 0x50.
const HEADER: u32 = 0x5011;
const ON: [u8; 2] = [0, 0x80];
const ON_MASKED: [u8; 2] = [0, 0xc0];
const OFF: [u8; 2] = [0, 0];

/// With so many vectors: the table in BAR 4 at 0x2000, pending bits in BAR 2 at 0x1008.
fn msix(vectors: u32) -> Msix {
    Msix::new([HEADER | (vectors - 1) << 16, 0x2004, 0x100a], 0x18)
}

/// The message of each vector in use, by its address and data.
fn state(msix: &Msix) -> Vec<Option<(u64, u32)>> {
    let message = |vector| {
        let message = msix.message(vector)?;
        assert_eq!(message.requester, 0x18);
        Some((message.address, message.data))
    };
    (0..msix.enabled_vectors()).map(message).collect()
}

/// Writes a whole entry by dwords, vector control last; whether any of it changed the message.
fn program(msix: &mut Msix, vector: u64, dwords: [u32; 4]) -> bool {
    let at = (vector * 16..).step_by(4);
    let changed = at.zip(dwords).map(|(at, dword)| msix.write_table(at, &dword.to_le_bytes()));
    changed.collect::<Vec<_>>().iter().any(|changed| {
        assert!(changed.is_none_or(|changed| u64::from(changed) == vector));
        changed.is_some()
    })
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
        assert_eq!(msix.table(), MsixArea { bar: 4, offset: 0x2000, size: table });
        assert_eq!(msix.pending_bits(), MsixArea { bar: 2, offset: 0x1008, size: bits });
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
    assert!(msix.write(2, &ON_MASKED));
    assert_eq!(state(&msix), [None; 4]);
    assert!(!program(&mut msix, 1, [0x0809_0043, 0x1, 7, 0]), "all are masked");
    assert!(!program(&mut msix, 2, [0x0809_0040, 0x1, 8, 1]));
    assert!(msix.write(2, &ON));
    let [first, second] = [7, 9].map(|data| Some((0x1_0809_0040, data)));
    assert_eq!(state(&msix), [None, first, None, None]);
    assert!(program(&mut msix, 2, [0x0809_0040, 0x1, 9, 0]));
    assert_eq!(state(&msix), [None, first, second, None]);
    assert_eq!(msix.write_table(0x2c, &[1, 0, 0, 0]), Some(2));
    assert_eq!(state(&msix), [None, first, None, None]);
    assert!(msix.write(2, &ON_MASKED));
    assert_eq!(state(&msix), [None; 4]);
    assert!(!msix.write(2, &ON_MASKED), "nothing changed");
    assert!(msix.write(2, &OFF));
    assert_eq!(state(&msix), []);
    // The table stays while it is disabled.
    assert!(msix.write(2, &ON));
    assert_eq!(state(&msix), [None, first, None, None]);
}

#[test]
fn an_entry_changes_by_dwords_and_by_quadwords() {
    let mut msix = msix(2);
    let _ = (program(&mut msix, 1, [0x1000, 0, 1, 0]), msix.write(2, &ON));
    assert_eq!(msix.write_table(0x18, &[2, 0, 0, 0]), Some(1));
    assert_eq!(state(&msix), [None, Some((0x1000, 2))]);
    let address = 0x2_0000_2000_u64.to_le_bytes();
    assert_eq!(msix.write_table(0x10, &address), Some(1));
    assert_eq!(state(&msix), [None, Some((0x2_0000_2000, 2))]);
    assert_eq!(msix.write_table(0x10, &address), None, "nothing changed");
    assert_eq!(msix.write_table(0x18, &[3, 0, 0, 0, 1, 0, 0, 0]), Some(1));
    assert_eq!(state(&msix), [None, None]);
    for (offset, expected) in [(0x10, 0x2_0000_2000_u64), (0x18, 0x1_0000_0003), (0x1c, 1)] {
        let mut data = [0xee; 8];
        msix.read_table(offset, &mut data);
        assert_eq!(u64::from_le_bytes(data), expected);
    }
}

#[test]
fn pending_bits_are_those_of_masked_vectors_that_signalled() {
    let mut msix = msix(70);
    assert_eq!(pending(&msix, 0), 0, "nothing is pending while it is disabled");
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
    msix.reset();
    assert_eq!(state(&msix), []);
    assert!(msix.write(2, &ON));
    assert_eq!(state(&msix), [None; 2]);
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
        assert_eq!(msix.write_table(offset, &[0; 8][..size]), None, "{offset:#x} {size}");
        msix.read_table(offset, &mut [0; 8][..size]);
    }
    for offset in 0..=u16::from(u8::MAX) {
        msix.read(offset, &mut [0; 4]);
    }
    let mut data = [0; 4];
    msix.read_table(12, &mut data);
    assert_eq!(data, [1, 0, 0, 0]);
}
