use super::*;

/// Capability id 5, next at 0x80.
const HEADER: u32 = 0x8005;

fn msi(control: u32) -> Msi {
    Msi::new(HEADER | control << 16, 0x18)
}

/// The message of each vector in use, by its address and data.
fn state(msi: &Msi) -> Vec<Option<(u64, u32)>> {
    let message = |vector| {
        let message = msi.message(vector)?;
        assert_eq!(message.requester, 0x18);
        Some((message.address, message.data))
    };
    (0..msi.enabled_vectors()).map(message).collect()
}

fn read32(msi: &Msi, offset: u16) -> u32 {
    let mut data = [0xee; 4];
    msi.read(offset, &mut data, |vector| vector % 2 == 1);
    u32::from_le_bytes(data)
}

#[test]
fn structures_have_the_sizes_of_the_specification() {
    for (control, size) in [
        (0, 0xa),
        (ADDRESS_64, 0xe),
        (MASKABLE, 0x14),
        (ADDRESS_64 | MASKABLE, 0x18),
        (0xff7f, 0x14),
    ] {
        assert_eq!(msi(control).size(), size);
    }
    for (control, vectors) in [(0, 1), (1 << 1, 2), (5 << 1, 32), (7 << 1, 32)] {
        assert_eq!(msi(control).capacity(), vectors);
    }
}

#[test]
fn a_plain_capability_is_programmed_enabled_and_disabled() {
    let mut msi = msi(0);
    assert_eq!(read32(&msi, 0), HEADER);
    assert!(!msi.write(4, &0x0809_0043_u32.to_le_bytes()));
    assert!(!msi.write(8, &[7, 1, 0xff, 0xff]));
    assert_eq!((read32(&msi, 4), read32(&msi, 8)), (0x0809_0040, 0x0107));
    assert_eq!(state(&msi), []);
    // Ids, the pointer and the capabilities can't be changed.
    assert!(msi.write(0, &[0xff, 0xff, 1, 0xff]));
    assert_eq!(state(&msi), [Some((0x0809_0040, 0x107))]);
    assert_eq!(read32(&msi, 0), HEADER | 1 << 16);
    assert!(!msi.write(2, &[1]), "nothing changed");
    assert!(msi.write(8, &[8, 1]));
    assert_eq!(state(&msi), [Some((0x0809_0040, 0x108))]);
    // There is neither mask nor pending.
    assert!(!msi.write(0xc, &[1, 0, 0, 0]));
    assert_eq!((read32(&msi, 0xc), read32(&msi, 0x10)), (0, 0));
    assert!(msi.write(2, &[0, 0]));
    assert_eq!(state(&msi), []);
}

#[test]
fn vectors_are_in_the_low_bits_of_the_data() {
    let mut msi = msi(ADDRESS_64 | 5 << 1);
    for (offset, value) in [(4, 0xffff_0000_u32), (8, 0x12), (0xc, 0xabcd)] {
        assert!(!msi.write(offset, &value.to_le_bytes()));
    }
    let messages = |data: std::ops::RangeInclusive<u32>| {
        data.map(|data| Some((0x12_ffff_0000, data))).collect::<Vec<_>>()
    };
    assert!(msi.write(2, &(2u16 << 4 | 1).to_le_bytes()));
    assert_eq!(state(&msi), messages(0xabcc..=0xabcf));
    assert!(msi.write(2, &1u16.to_le_bytes()));
    assert_eq!(state(&msi), messages(0xabcd..=0xabcd));
    // A reserved number is as many as there are.
    assert!(msi.write(2, &(7u16 << 4 | 1).to_le_bytes()));
    assert_eq!(state(&msi), messages(0xabc0..=0xabdf));
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let mut msi = msi(ADDRESS_64 | MASKABLE | 2 << 1);
    assert!(!msi.write(0x10, &[0xff; 4]));
    // Only existing vectors can be masked.
    assert_eq!(read32(&msi, 0x10), 0xf);
    assert_eq!(read32(&msi, 0x14), 0, "nothing is pending while it is disabled");
    assert!(msi.write(2, &[2 << 4 | 1]));
    assert_eq!(state(&msi), [None; 4]);
    assert_eq!(read32(&msi, 0x14), 0b1010);
    assert!(msi.write(0x10, &[0b0101]));
    assert_eq!(state(&msi), [None, Some((0, 1)), None, Some((0, 3))]);
    assert_eq!(read32(&msi, 0x14), 0);
    assert!(msi.write(0x10, &[0b0111]));
    assert_eq!(state(&msi), [None, None, None, Some((0, 3))]);
    assert_eq!(read32(&msi, 0x14), 0b0010);
    assert!(!msi.write(0x14, &[0xff; 4]), "pending bits are read-only");
}

#[test]
fn without_upper_address_the_registers_move_up() {
    let mut msi = msi(MASKABLE);
    assert!(msi.write(2, &[1]));
    assert!(msi.write(8, &[5, 0]));
    assert_eq!(state(&msi), [Some((0, 5))]);
    assert!(msi.write(0xc, &[1]));
    assert_eq!(state(&msi), [None]);
    assert_eq!((read32(&msi, 8), read32(&msi, 0xc), read32(&msi, 0x14)), (5, 1, 0));
}

#[test]
fn a_reset_disables_it_and_keeps_its_capabilities() {
    let mut msi = msi(ADDRESS_64 | MASKABLE);
    let _ = (msi.write(0x10, &[1]), msi.write(4, &[0xff; 4]), msi.write(2, &[1]));
    msi.reset();
    assert_eq!(state(&msi), []);
    assert_eq!((read32(&msi, 0), read32(&msi, 4)), (HEADER | (ADDRESS_64 | MASKABLE) << 16, 0));
    assert!(msi.write(2, &[1]));
    assert_eq!(state(&msi), [Some((0, 0))]);
}

#[test]
fn any_access_is_defined() {
    for control in [0, ADDRESS_64, MASKABLE, ADDRESS_64 | MASKABLE, 0xffff] {
        let mut msi = msi(control);
        for offset in 0..=u16::from(u8::MAX) {
            for size in [1, 2, 4] {
                let _ = msi.write(offset, &[0xff; 4][..size]);
                msi.read(offset, &mut [0; 4][..size], |_| true);
                let _ = (msi.message(offset), msi.message(u16::MAX));
            }
        }
    }
}
