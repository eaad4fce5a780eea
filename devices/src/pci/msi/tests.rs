use super::*;
use crate::pci::message::Delivery::{Masked, To};

/// Capability id 5, next at 0x80.
const HEADER: u32 = 0x8005;

fn msi(control: u32) -> Msi {
    Msi::new(HEADER | control << 16, 0x18)
}

fn to(address: u64, data: u32) -> Delivery {
    To(MsiMessage { address, data, requester: 0x18 })
}

fn delivery(vector: u16, delivery: Delivery) -> Effect {
    Effect::Delivery { vector, delivery }
}

fn read32(msi: &Msi, offset: u16) -> u32 {
    let mut data = [0xee; 4];
    msi.read(offset, &mut data, |vector| vector % 2 == 1);
    u32::from_le_bytes(data)
}

#[test]
fn structures_have_the_sizes_of_the_specification() {
    for (control, size) in
        [(0, 0xa), (WIDE, 0xe), (MASKABLE, 0x14), (WIDE | MASKABLE, 0x18), (0xff7f, 0x14)]
    {
        assert_eq!(msi(control).size(), size);
    }
    for (control, vectors) in [(0, 1), (1 << 1, 2), (5 << 1, 32), (7 << 1, 32)] {
        assert_eq!(msi(control).capacity(), vectors);
    }
}

#[test]
fn a_plain_capability_is_programmed_and_switched_on_and_off() {
    let mut msi = msi(0);
    assert_eq!(read32(&msi, 0), HEADER);
    assert_eq!(msi.write(4, &0x0809_0043_u32.to_le_bytes()), []);
    assert_eq!(msi.write(8, &[7, 1, 0xff, 0xff]), []);
    assert_eq!((read32(&msi, 4), read32(&msi, 8)), (0x0809_0040, 0x0107));
    // Ids, the pointer and what there is can't be changed.
    let on = msi.write(0, &[0xff, 0xff, 1, 0xff]);
    assert_eq!(on, [Effect::Enabled { vectors: 1 }, delivery(0, to(0x0809_0040, 0x107))]);
    assert_eq!(read32(&msi, 0), HEADER | 1 << 16);
    assert_eq!(msi.write(2, &[1]), []);
    assert_eq!(msi.write(8, &[8, 1]), [delivery(0, to(0x0809_0040, 0x108))]);
    // There is neither mask nor pending.
    assert_eq!(msi.write(0xc, &[1, 0, 0, 0]), []);
    assert_eq!((read32(&msi, 0xc), read32(&msi, 0x10)), (0, 0));
    assert_eq!(msi.write(2, &[0, 0]), [Effect::Disabled]);
}

#[test]
fn vectors_are_in_the_low_bits_of_the_data() {
    let mut msi = msi(WIDE | 5 << 1);
    for (offset, value) in [(4, 0xffff_0000_u32), (8, 0x12), (0xc, 0xabcd)] {
        assert_eq!(msi.write(offset, &value.to_le_bytes()), []);
    }
    let at = 0x12_ffff_0000;
    let on = msi.write(2, &(2u16 << 4 | 1).to_le_bytes());
    let mut expected = vec![Effect::Enabled { vectors: 4 }];
    expected.extend((0u16..4).map(|v| delivery(v, to(at, 0xabcc + u32::from(v)))));
    assert_eq!(on, expected);
    // Another number begins anew.
    let fewer = msi.write(2, &1u16.to_le_bytes());
    let expected = [Effect::Disabled, Effect::Enabled { vectors: 1 }, delivery(0, to(at, 0xabcd))];
    assert_eq!(fewer, expected);
    // What is reserved counts as all there are.
    let all = msi.write(2, &(7u16 << 4 | 1).to_le_bytes());
    assert_eq!(all.get(1), Some(&Effect::Enabled { vectors: 32 }));
    assert_eq!(all.last(), Some(&delivery(31, to(at, 0xabdf))));
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let mut msi = msi(WIDE | MASKABLE | 2 << 1);
    assert_eq!(msi.write(0x10, &[0xff; 4]), []);
    // Only vectors that there are can be masked.
    assert_eq!(read32(&msi, 0x10), 0xf);
    assert_eq!(read32(&msi, 0x14), 0, "nothing is pending while it is off");
    assert_eq!(msi.write(2, &[2 << 4 | 1]), [Effect::Enabled { vectors: 4 }]);
    assert_eq!(read32(&msi, 0x14), 0b1010);
    assert_eq!(msi.write(0x10, &[0b0101]), [delivery(1, to(0, 1)), delivery(3, to(0, 3))]);
    assert_eq!(read32(&msi, 0x14), 0);
    assert_eq!(msi.write(0x10, &[0b0111]), [delivery(1, Masked)]);
    assert_eq!(read32(&msi, 0x14), 0b0010);
    assert_eq!(msi.write(0x14, &[0xff; 4]), [], "pending bits are read-only");
}

#[test]
fn without_upper_address_the_registers_move_up() {
    let mut msi = msi(MASKABLE);
    assert_eq!(msi.write(2, &[1]).len(), 2);
    assert_eq!(msi.write(8, &[5, 0]), [delivery(0, to(0, 5))]);
    assert_eq!(msi.write(0xc, &[1]), [delivery(0, Masked)]);
    assert_eq!((read32(&msi, 8), read32(&msi, 0xc), read32(&msi, 0x14)), (5, 1, 0));
}

#[test]
fn a_reset_switches_it_off_and_keeps_what_it_is() {
    let mut msi = msi(WIDE | MASKABLE);
    let _ = (msi.write(0x10, &[1]), msi.write(4, &[0xff; 4]), msi.write(2, &[1]));
    assert_eq!(msi.reset(), [Effect::Disabled]);
    assert_eq!(msi.reset(), []);
    assert_eq!((read32(&msi, 0), read32(&msi, 4)), (HEADER | (WIDE | MASKABLE) << 16, 0));
    assert_eq!(msi.write(2, &[1]).last(), Some(&delivery(0, to(0, 0))));
}

#[test]
fn any_access_is_defined() {
    for control in [0, WIDE, MASKABLE, WIDE | MASKABLE, 0xffff] {
        let mut msi = msi(control);
        for offset in 0..=u16::from(u8::MAX) {
            for size in [1, 2, 4] {
                let _ = msi.write(offset, &[0xff; 4][..size]);
                msi.read(offset, &mut [0; 4][..size], |_| true);
            }
        }
    }
}
