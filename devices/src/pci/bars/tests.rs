use super::*;

const BOTH: u16 = COMMAND_IO | COMMAND_MEMORY;

fn memory(size: u64, is_64: bool, prefetchable: bool) -> Option<Bar> {
    Some(Bar::Memory { size, is_64, prefetchable })
}

/// A function with one of each kind.
fn bars() -> Bars {
    let bars = [
        memory(0x1000, false, false),
        Some(Bar::Io { size: 0x20 }),
        memory(1 << 34, true, true),
        None,
        memory(0x10, true, false),
        None,
    ];
    Bars::new(bars, Some(0x8000)).unwrap()
}

fn read32(bars: &Bars, offset: u16) -> u32 {
    let mut data = [0xee; 4];
    bars.read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn sizes_are_found_by_writing_ones() {
    let mut bars = bars();
    // The register, what it reads at first, and after all ones.
    for (offset, first, ones) in [
        (0x10, 0, 0xffff_f000),
        (0x14, 1, 0xffff_ffe1),
        (0x18, 0xc, 0xc),
        (0x1c, 0, 0xffff_fffc),
        (0x20, 4, 0xffff_fff4),
        (0x24, 0, 0xffff_ffff),
        (0x28, 0, 0),
        (0x30, 0, 0xffff_8001),
        (0x34, 0, 0),
    ] {
        assert_eq!(read32(&bars, offset), first, "{offset:#x}");
        bars.write(offset, &[0xff; 4]);
        assert_eq!(read32(&bars, offset), ones, "{offset:#x}");
    }
}

#[test]
fn a_register_may_be_written_in_parts() {
    let mut bars = bars();
    bars.write(0x13, &[0x20]);
    bars.write(0x11, &[0x3f]);
    bars.write(0x10, &[0xff]);
    bars.write(0x12, &[0x45]);
    assert_eq!(read32(&bars, 0x10), 0x2045_3000);
    bars.write(0x12, &[0x11, 0x22]);
    let mut data = [0; 2];
    bars.read(0x12, &mut data);
    assert_eq!(data, [0x11, 0x22]);
    let mut data = [0; 1];
    bars.read(0x11, &mut data);
    assert_eq!(data, [0x30]);
    // Beyond the dword is ignored.
    bars.write(0x13, &[0x33, 0xff, 0xff]);
    assert_eq!((read32(&bars, 0x10), read32(&bars, 0x14)), (0x3311_3000, 1));
}

#[test]
fn windows_are_where_registers_decode_and_only_if_they_do() {
    let mut bars = bars();
    for (offset, value) in [
        (0x10, 0x2000_0fff_u32),
        (0x14, 0x1003),
        (0x18, 0xffff_ffff),
        (0x1c, 0x80),
        (0x20, 0x3000_0010),
        (0x30, 0x2100_0000),
    ] {
        bars.write(offset, &value.to_le_bytes());
    }
    assert_eq!(bars.decoded(), []);
    let window = |bar, space, start, size| BarRange { bar, space, range: start..start + size };
    let io = window(1, AddressSpace::Io, 0x1000, 0x20);
    bars.set_command(0xfff8 | COMMAND_IO);
    assert_eq!(bars.decoded(), std::slice::from_ref(&io));
    let mut memory = vec![
        window(0, AddressSpace::Memory, 0x2000_0000, 0x1000),
        window(2, AddressSpace::Memory, 0x80_0000_0000, 1 << 34),
        window(4, AddressSpace::Memory, 0x3000_0010, 0x10),
    ];
    bars.set_command(COMMAND_MEMORY);
    assert_eq!(bars.decoded(), memory);
    // The ROM has a bit of its own beside.
    bars.write(0x30, &[1]);
    memory.push(window(6, AddressSpace::Memory, 0x2100_0000, 0x8000));
    assert_eq!(bars.decoded(), memory);
    memory.insert(1, io);
    bars.set_command(BOTH);
    assert_eq!(bars.decoded(), memory);
    bars.reset();
    bars.set_command(BOTH);
    let zero: Vec<_> = bars.decoded().iter().map(|window| window.range.start).collect();
    assert_eq!(zero, [0; 4]);
    assert_eq!(read32(&bars, 0x18), 0xc);
}

#[test]
fn addresses_at_the_very_end_do_not_wrap() {
    let mut bars = bars();
    for offset in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
        bars.write(offset, &[0xff; 4]);
    }
    bars.set_command(BOTH);
    for BarRange { range, .. } in bars.decoded() {
        assert!(range.start < range.end, "{range:x?}");
    }
}

#[test]
fn registers_that_cannot_be_are_refused() {
    let io = |size| Some(Bar::Io { size });
    for bar in [
        memory(0, false, false),
        memory(8, false, false),
        memory(0x1800, false, false),
        memory(1 << 32, false, false),
        memory(u64::MAX, true, false),
        io(0),
        io(2),
        io(1 << 17),
    ] {
        let size = bar.unwrap().size();
        let error = Bars::new([None, bar, None, None, None, None], None).unwrap_err();
        assert_eq!(error, BarError::Size { bar: 1, size });
    }
    for size in [0, 0x400, 0x1800, 1 << 32] {
        let error = Bars::new([None; 6], Some(size)).unwrap_err();
        assert_eq!(error, BarError::Size { bar: 6, size });
    }
    let wide = memory(0x1000, true, false);
    let last = Bars::new([None, None, None, None, None, wide], None);
    assert_eq!(last.unwrap_err(), BarError::NoUpperHalf(5));
    let followed = Bars::new([wide, io(4), None, None, None, None], None);
    assert_eq!(followed.unwrap_err(), BarError::NoUpperHalf(0));
}

#[test]
fn the_largest_and_the_smallest_are_possible() {
    let bars = [memory(1 << 63, true, true), None, memory(1 << 31, false, false), None, None, None];
    let mut bars = Bars::new(bars, Some(1 << 31)).unwrap();
    bars.write(0x14, &[0xff; 4]);
    bars.write(0x18, &[0xff; 4]);
    assert_eq!((read32(&bars, 0x14), read32(&bars, 0x18)), (0x8000_0000, 0x8000_0000));
    Bars::new([memory(16, false, false), Some(Bar::Io { size: 4 }), None, None, None, None], None)
        .unwrap();
}

#[test]
fn only_these_registers_are_covered() {
    let covered: Vec<u16> = (0..0x100).step_by(4).filter(|offset| Bars::covers(*offset)).collect();
    assert_eq!(covered, [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30]);
}
