use super::*;

/// A configuration space with these standard capabilities, at their offsets with their next, and
/// these extended headers.
fn config(size: usize, standard: &[(u16, u8, u8)], extended: &[(u16, u32)]) -> ConfigSnapshot {
    let mut bytes = vec![0; size];
    let mut put = |offset: u16, byte| bytes[usize::from(offset)] = byte;
    put(STATUS, 0x10);
    put(CAPABILITY_LIST, standard.first().map_or(0, |(offset, ..)| offset.to_le_bytes()[0]));
    for (offset, id, next) in standard {
        put(*offset, *id);
        put(*offset + 1, *next);
    }
    for (offset, header) in extended {
        for (offset, byte) in (*offset..).zip(header.to_le_bytes()) {
            put(offset, byte);
        }
    }
    ConfigSnapshot::new(bytes)
}

/// An extended capability's header.
fn header(id: u16, next: u16) -> u32 {
    u32::from(next) << 20 | 1 << 16 | u32::from(id)
}

/// What a guest finds.
fn after(config: &ConfigSnapshot) -> Vec<Capability> {
    let fixed = fixed_bytes(config, &all(config));
    let byte = |offset| fixed.get(offset).unwrap_or(config.u8(offset));
    all(&ConfigSnapshot::new((0..config.size()).map(byte).collect()))
}

fn ids(capabilities: &[Capability]) -> Vec<CapabilityId> {
    capabilities.iter().map(|c| c.id).collect()
}

#[test]
fn hidden_capabilities_are_removed_wherever_they_are_in_the_lists() {
    let (msi, pm, agp) = (0x05, 0x01, 0x02);
    let (aer, sriov, ats, dsn) = (0x01, 0x10, 0x0f, 0x03);
    type Case<'a> = (&'a [u8], &'a [u16]);
    let cases: [Case<'_>; 9] = [
        (&[pm, msi], &[aer, dsn]),
        (&[agp, pm, msi], &[sriov, aer]),
        (&[pm, agp, msi], &[aer, sriov, dsn]),
        (&[pm, msi, agp], &[aer, sriov]),
        (&[agp], &[sriov]),
        (&[agp, agp], &[ats, sriov]),
        (&[], &[]),
        (&[0x77, pm], &[0x77, aer]),
        (&[agp, pm, agp], &[ats, sriov, aer, ats]),
    ];
    for (standard, extended) in cases {
        let last = standard.len();
        let standard: Vec<_> = (1..)
            .zip(standard)
            .map(|(n, id)| {
                let place = 0x30 + 0x10 * n;
                let next = if usize::from(n) == last { 0 } else { place + 0x10 };
                (u16::from(place), *id, next)
            })
            .collect();
        let last = extended.len();
        let headers: Vec<_> = (0..)
            .zip(extended)
            .map(|(n, id)| {
                let place = 0x100 + 0x40 * n;
                let next = if usize::from(n) + 1 == last { 0 } else { place + 0x40 };
                (place, header(*id, next))
            })
            .collect();
        let config = config(4096, &standard, &headers);
        let before = all(&config);
        assert_eq!(before.len(), standard.len() + headers.len());
        let wanted: Vec<_> = before.into_iter().filter(|c| c.hidden.is_none()).collect();
        assert_eq!(after(&config), wanted, "{standard:x?} {extended:x?}");
    }
}

#[test]
fn a_hidden_first_extended_capability_becomes_an_empty_header() {
    let config = config(4096, &[], &[(0x100, header(0x10, 0x140)), (0x140, header(1, 0))]);
    let fixed = fixed_bytes(&config, &all(&config));
    let first = [0x100, 0x101, 0x102, 0x103].map(|offset| fixed.get(offset));
    assert_eq!(first, [0, 0, 0, 0x14].map(Some));
    let open: Vec<u16> = (0x40..4096).filter(|offset| fixed.get(*offset).is_none()).collect();
    assert_eq!(open, (0x144..0x16c).collect::<Vec<_>>());
}

#[test]
fn lists_that_loop_or_leave_their_space_end_there() {
    let pm = CapabilityId::Standard(1);
    // Loops, into the header, unaligned, and out of this space.
    for (next, expected) in
        [(0x40, vec![pm]), (0x08, vec![pm]), (0x42, vec![pm]), (0x44, vec![pm, pm])]
    {
        let config = config(256, &[(0x40, 1, next), (0x44, 1, 0x40)], &[]);
        assert_eq!(ids(&all(&config)), expected, "{next:#x}");
        assert_eq!(ids(&after(&config)), expected, "{next:#x}");
    }
    let aer = CapabilityId::Extended(1);
    for (next, expected) in
        [(0x100, vec![aer]), (0x80, vec![aer]), (0xffc, vec![aer]), (0x104, vec![aer, aer])]
    {
        let config = config(4096, &[], &[(0x100, header(1, next)), (0x104, header(1, 0x100))]);
        assert_eq!(ids(&all(&config)), expected, "{next:#x}");
        assert_eq!(ids(&after(&config)), expected, "{next:#x}");
    }
}

#[test]
fn without_the_status_bit_or_extended_space_there_are_none() {
    let mut none = config(256, &[(0x40, 1, 0)], &[]);
    assert_eq!(all(&none).len(), 1);
    none = ConfigSnapshot::new((0..256).map(|o| if o == 6 { 0 } else { none.u8(o) }).collect());
    assert_eq!(all(&none), []);
    assert_eq!(all(&ConfigSnapshot::new(vec![0xff; 4096])), []);
    assert_eq!(all(&ConfigSnapshot::new(Vec::new())), []);
}

#[test]
fn in_random_bytes_no_hidden_capability_is_found() {
    let mut state = 1_u32;
    for _ in 0..2000 {
        let bytes = (0..4096).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Few values, so that lists are long.
            (state >> 24).to_le_bytes()[0] & 0x5f
        });
        let mut bytes: Vec<u8> = bytes.collect();
        bytes[usize::from(STATUS)] = 0x10;
        let config = ConfigSnapshot::new(bytes);
        let hidden = after(&config).into_iter().find(|c| c.hidden.is_some());
        assert_eq!(hidden, None);
    }
}
