//! What a node's place in the host's tree means: addresses, coherence, clocks.

use boot::fdt::host::{BusCells, BusDmaLimit, BusRange, HostTree, Ranges};

use crate::support::scratch::Scratch;

fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

fn tree(board: &Scratch) -> HostTree {
    HostTree::at(&board.path().join("base")).unwrap()
}

/// A device two buses down: `soc` maps two windows, `bus` passes its addresses on.
fn board() -> Scratch {
    let board = Scratch::new();
    for (file, content) in [
        ("#address-cells", cells(&[2])),
        ("#size-cells", cells(&[2])),
        ("soc/#address-cells", cells(&[1])),
        ("soc/#size-cells", cells(&[1])),
        (
            "soc/ranges",
            cells(&[0x1000_0000, 1, 0x2000_0000, 0x1000, 0x4000_0000, 0, 0x5000_0000, 0x10]),
        ),
        ("soc/bus/#address-cells", cells(&[1])),
        ("soc/bus/#size-cells", cells(&[1])),
        ("soc/bus/ranges", Vec::new()),
        ("soc/bus/dma@10000100/reg", cells(&[0x1000_0100, 0x100, 0x4000_0000, 0x20])),
        ("spi/#address-cells", cells(&[1])),
        ("spi/#size-cells", cells(&[0])),
        ("spi/flash@3/reg", cells(&[3])),
    ] {
        board.write(&format!("base/{file}"), content);
    }
    board
}

#[test]
fn addresses_are_translated_bus_by_bus() {
    let board = board();
    let tree = tree(&board);
    let device = tree.node_at("/soc/bus/dma@10000100").unwrap();
    let cells = tree.bus_cells(&device).unwrap();
    assert_eq!(cells, BusCells { address: 1, size: 1 });
    let reg = device.reg(cells).unwrap();
    assert_eq!(reg, [0x1000_0100..0x1000_0200, 0x4000_0000..0x4000_0020]);
    assert_eq!(tree.translate(&device, 0x1000_0100).unwrap(), 0x1_2000_0100);
    assert_eq!(tree.translate(&device, 0x4000_000f).unwrap(), 0x5000_000f);
    let error = tree.translate(&device, 0x4000_0010).unwrap_err().to_string();
    assert!(error.ends_with("/soc doesn't let the CPU reach its address 0x40000010"), "{error}");
    let flash = tree.node_at("/spi/flash@3").unwrap();
    let reg = flash.reg(tree.bus_cells(&flash).unwrap()).unwrap();
    assert!(matches!(reg.as_slice(), [only] if *only == (3..3)), "{reg:?}");
    assert!(tree.translate(&flash, 3).is_err(), "a number on SPI is no address");
    let soc = tree.node_at("/soc").unwrap();
    assert_eq!(tree.translate(&soc, 0x77).unwrap(), 0x77, "the root's addresses are the CPU's");
    let first = BusRange { child: 0x1000_0000, parent: 0x1_2000_0000, size: 0x1000 };
    let Ranges::Entries(entries) = soc.ranges(2).unwrap() else { panic!() };
    assert_eq!(entries[0], first);
}

#[test]
fn numbers_that_do_not_fit_are_errors_that_name_the_file() {
    for (file, content, text) in [
        ("soc/bus/dma@10000100/reg", cells(&[1, 2, 3]), "reg has no numbers of 1 cells"),
        ("soc/bus/#address-cells", cells(&[3]), "reg has no numbers of 3 cells"),
        ("soc/bus/#size-cells", cells(&[u32::MAX]), "reg has no numbers of 4294967295 cells"),
        ("soc/ranges", cells(&[1, 2, 3]), "ranges has no numbers of 1 cells"),
        ("soc/bus/ranges", vec![1, 2], "ranges should hold 32-bit cells"),
    ] {
        let board = board();
        board.write(&format!("base/{file}"), content);
        let tree = tree(&board);
        let device = tree.node_at("/soc/bus/dma@10000100").unwrap();
        let error = device
            .reg(tree.bus_cells(&device).unwrap())
            .and_then(|_| tree.translate(&device, 0x1000_0100))
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{file}: {error}");
    }
}

#[test]
fn a_bus_whose_addresses_and_sizes_have_no_cells_has_an_end() {
    for (file, content) in [("reg", cells(&[1])), ("ranges", cells(&[1, 2, 3]))] {
        let board = Scratch::new();
        for node in ["bus", "bus/dev@1"] {
            board.write(&format!("base/{node}/#address-cells"), cells(&[0]));
            board.write(&format!("base/{node}/#size-cells"), cells(&[0]));
        }
        board.write(&format!("base/bus/dev@1/{file}"), content);
        let tree = tree(&board);
        let device = tree.node_at("/bus/dev@1").unwrap();
        let cells = tree.bus_cells(&device).unwrap();
        let error = match file {
            "reg" => device.reg(cells).map(drop),
            _ => device.ranges(cells.address).map(drop),
        };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(file) && error.contains("#size-cells it has none"), "{error}");
        assert_eq!(device.child_cells().unwrap(), BusCells { address: 0, size: 0 });
    }
    // Nothing in them is no entries, as anywhere.
    let board = Scratch::new();
    board.write("base/#address-cells", cells(&[0]));
    board.write("base/#size-cells", cells(&[0]));
    board.write("base/dev/reg", Vec::new());
    let tree = tree(&board);
    let device = tree.node_at("/dev").unwrap();
    assert_eq!(device.reg(tree.bus_cells(&device).unwrap()).unwrap(), []);
}

#[test]
fn coherence_is_the_nearest_that_says_so() {
    // What the device, its bus and its bus's bus have.
    let cases: [(&[&str], bool); 6] = [
        (&[], false),
        (&["soc/bus/dma@10000100/dma-coherent"], true),
        (&["soc/dma-coherent"], true),
        (&["soc/dma-coherent", "soc/bus/dma-noncoherent"], false),
        (&["soc/dma-coherent", "soc/bus/dma@10000100/dma-noncoherent"], false),
        (&["soc/dma-noncoherent", "soc/bus/dma-coherent"], true),
    ];
    for (files, expected) in cases {
        let board = board();
        for file in files {
            board.write(&format!("base/{file}"), "");
        }
        let tree = tree(&board);
        let device = tree.node_at("/soc/bus/dma@10000100").unwrap();
        assert_eq!(tree.is_dma_coherent(&device).unwrap(), expected, "{files:?}");
    }
    // Memory reached by way of another bus than the one it is on.
    let board = board();
    for (file, content) in [
        ("soc/dma-coherent", Vec::new()),
        ("mbus/phandle", cells(&[5])),
        ("mbus/#interconnect-cells", cells(&[1])),
        ("soc/bus/dma@10000100/interconnects", cells(&[5, 1, 5, 2])),
        ("soc/bus/dma@10000100/interconnect-names", b"write\0dma-mem\0".to_vec()),
    ] {
        board.write(&format!("base/{file}"), content);
    }
    let tree = tree(&board);
    let device = tree.node_at("/soc/bus/dma@10000100").unwrap();
    assert!(!tree.is_dma_coherent(&device).unwrap());
}

/// What buses have as their `dma-ranges`: their paths with a `/` behind, and the cells.
type DmaRanges<'a> = &'a [(&'a str, &'a [u32])];

/// What the device can address, on a board whose buses have these `dma-ranges`.
fn reach(files: DmaRanges<'_>) -> Option<BusDmaLimit> {
    let board = board();
    for (bus, ranges) in files {
        board.write(&format!("base/{bus}dma-ranges"), cells(ranges));
    }
    let tree = tree(&board);
    let device = tree.node_at("/soc/bus/dma@10000100").unwrap();
    tree.bus_dma_limit(&device).unwrap()
}

#[test]
fn a_device_reaches_what_every_bus_passes_on() {
    // `bus`: address, address above, size, a cell each; `soc`: the second of two cells.
    type Case<'a> = (DmaRanges<'a>, Option<(&'a str, &'a [(u64, u64)])>);
    let cases: [Case<'_>; 13] = [
        (&[], None),
        (&[("soc/bus/", &[])], None),
        // The lower 2 GiB.
        (&[("soc/bus/", &[0, 0, 0x8000_0000])], Some(("/soc/bus", &[(0, 0x7fff_ffff)]))),
        (
            &[("soc/", &[0, 0, 0, 0x8000_0000]), ("soc/bus/", &[])],
            Some(("/soc", &[(0, 0x7fff_ffff)])),
        ),
        (&[("soc/", &[0, 0, 0, 0x8000_0000])], Some(("/soc", &[(0, 0x7fff_ffff)]))),
        // What it issues counts, not what becomes of that.
        (&[("soc/bus/", &[0, 0x8000_0000, 0x4000_0000])], Some(("/soc/bus", &[(0, 0x3fff_ffff)]))),
        // Both, the second in the first one's addresses.
        (
            &[
                ("soc/bus/", &[0, 0x8000_0000, 0x4000_0000, 0xa000_0000, 0x1000, 0x1000]),
                ("soc/", &[0x9000_0000, 0, 0, 0x8000_0000]),
            ],
            Some(("/soc/bus", &[(0x1000_0000, 0x3fff_ffff)])),
        ),
        // Neighbours are one.
        (
            &[("soc/bus/", &[0x1000, 0, 0x1000, 0, 0x5000, 0x1000, 0x3000, 0, 1, 5, 5, 0])],
            Some(("/soc/bus", &[(0, 0x1fff), (0x3000, 0x3000)])),
        ),
        // Of what the next bus doesn't pass on nothing is reached.
        (
            &[("soc/bus/", &[0, 0, 0x1000]), ("soc/", &[0x1000, 0, 0, 0x1000])],
            Some(("/soc/bus", &[])),
        ),
        // The root's own, in its addresses.
        (
            &[("soc/bus/", &[]), ("soc/", &[]), ("", &[0, 0, 0, 0, 2, 0])],
            Some(("/", &[(0, 0x1_ffff_ffff)])),
        ),
        // Above a bus without any, another without any ends it, as in Linux.
        (&[("", &[0, 0, 0, 0, 2, 0])], None),
        (
            &[("soc/bus/", &[0, 0, u32::MAX]), ("", &[0, 0, 0, 0, 0, 5])],
            Some(("/soc/bus", &[(0, 0xffff_fffe)])),
        ),
        (&[("soc/", &[0, 0, 0, 0])], Some(("/soc", &[]))),
    ];
    for (files, expected) in cases {
        let expected = expected.map(|(bus, ranges)| BusDmaLimit {
            bus: bus.to_owned(),
            ranges: ranges.iter().map(|(start, end)| *start..=*end).collect(),
        });
        assert_eq!(reach(files), expected, "{files:x?}");
    }
}

#[test]
fn a_pci_host_s_memory_space_is_what_its_functions_reach() {
    let board = Scratch::new();
    board.write("base/#address-cells", cells(&[2]));
    board.write("base/#size-cells", cells(&[2]));
    board.write("base/pcie/#address-cells", cells(&[3]));
    board.write("base/pcie/#size-cells", cells(&[2]));
    board.write("base/pcie/device_type", "pci\0");
    let ranges = [
        // I/O, 64-bit memory, 32-bit memory.
        [0x0100_0000, 0, 0, 0, 0, 0, 0x1_0000],
        [0x4300_0000, 1, 0, 1, 0, 0, 0xffef_0000],
        [0x0200_0000, 0, 0x4000_0000, 0, 0x4000_0000, 0, 0x4000_0000],
    ];
    board.write("base/pcie/dma-ranges", cells(ranges.as_flattened()));
    let tree = tree(&board);
    let reach = tree.bus_dma_limit_below(&tree.node_at("/pcie").unwrap()).unwrap().unwrap();
    assert_eq!(reach.ranges, [0x4000_0000..=0x7fff_ffff, 0x1_0000_0000..=0x1_ffee_ffff]);
}

#[test]
fn dma_ranges_that_are_malformed_or_endless_are_errors() {
    let many: Vec<u32> = (0..257).flat_map(|n| [n << 16, n << 16, 1]).collect();
    let cut: Vec<u32> = (0..129).flat_map(|n| [n << 16, 0, 0x1_0000]).collect();
    let two = [0, 0, 0, 0x8000, 0x8000, 0, 0x8000, 0x8000];
    let cases: [(DmaRanges<'_>, &str); 3] = [
        (&[("soc/bus/", &[1, 2])], "dma-ranges has no numbers of 1 cells"),
        (&[("soc/bus/", &many)], "has more than 256 entries"),
        (&[("soc/bus/", &cut), ("soc/", &two)], "has more than 256 entries"),
    ];
    for (files, expected) in cases {
        let board = board();
        for (bus, ranges) in files {
            board.write(&format!("base/{bus}dma-ranges"), cells(ranges));
        }
        let tree = tree(&board);
        let device = tree.node_at("/soc/bus/dma@10000100").unwrap();
        let error = tree.bus_dma_limit(&device).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// The rate of the device's only clock.
fn rate(board: &Scratch) -> Option<u32> {
    let tree = tree(board);
    let device = tree.node_at("/soc/bus/dma@10000100").unwrap();
    let clocks = tree.references(&device, "clocks", Some("#clock-cells")).unwrap();
    let reference = clocks.into_iter().flatten().next().unwrap();
    tree.clock_rate(&reference, &board.path().join("clk")).unwrap()
}

#[test]
fn rates_come_from_fixed_clocks_and_what_is_made_of_them() {
    type Files<'a> = &'a [(&'a str, Vec<u8>)];
    let fixed: Files<'_> = &[
        ("osc/phandle", cells(&[1])),
        ("osc/compatible", b"fixed-clock\0".to_vec()),
        ("osc/#clock-cells", cells(&[0])),
        ("osc/clock-frequency", cells(&[24_000_000])),
        ("pll/phandle", cells(&[2])),
        ("pll/compatible", b"fixed-factor-clock\0".to_vec()),
        ("pll/#clock-cells", cells(&[0])),
        ("pll/clocks", cells(&[1])),
        ("pll/clock-mult", cells(&[50])),
        ("pll/clock-div", cells(&[3])),
    ];
    let cases: [(Files<'_>, Option<u32>); 6] = [
        (&[], Some(400_000_000)),
        (&[("pll/clock-div", cells(&[0]))], None),
        (&[("pll/clock-mult", cells(&[u32::MAX]))], None),
        (&[("pll/clocks", cells(&[2]))], None),
        (&[("pll/clocks", cells(&[0]))], None),
        (&[("osc/compatible", b"vendor,pll\0".to_vec())], None),
    ];
    for (changes, expected) in cases {
        let board = board();
        board.write("base/soc/bus/dma@10000100/clocks", cells(&[2]));
        for (file, content) in fixed.iter().chain(changes) {
            board.write(&format!("base/{file}"), content);
        }
        assert_eq!(rate(&board), expected, "{changes:?}");
    }
}

#[test]
fn rates_of_clocks_with_names_come_from_debugfs() {
    // The reference, what the provider says, and the directory that has the rate.
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let cases: [(&[u32], Files<'_>, Option<&str>); 8] = [
        (&[3], &[("#clock-cells", &[0; 4])], Some("cru")),
        (&[3], &[("#clock-cells", &[0; 4]), ("clock-output-names", b"xin24\0")], Some("xin24")),
        (&[3, 1], &[("clock-output-names", b"a\0b\0")], Some("b")),
        (&[3, 2], &[("clock-output-names", b"a\0b\0")], None),
        (
            &[3, 7],
            &[("clock-output-names", b"a\0b\0"), ("clock-indices", &[0, 0, 0, 5, 0, 0, 0, 7])],
            Some("b"),
        ),
        (
            &[3, 6],
            &[("clock-output-names", b"a\0b\0"), ("clock-indices", &[0, 0, 0, 5, 0, 0, 0, 7])],
            None,
        ),
        (&[3, 1], &[], None),
        (&[3], &[("#clock-cells", &[0; 4]), ("clock-output-names", b"../cru\0")], None),
    ];
    for (reference, provider, name) in cases {
        let board = board();
        board.write("base/soc/bus/dma@10000100/clocks", cells(reference));
        board.write("base/cru@1/phandle", cells(&[3]));
        board.write("base/cru@1/#clock-cells", cells(&[1]));
        for (file, content) in provider {
            board.write(&format!("base/cru@1/{file}"), content);
        }
        assert_eq!(rate(&board), None, "{provider:?}");
        board.write("cru/clk_rate", "99\n");
        for other in ["a", "b", "cru", "xin24"].iter().filter(|other| Some(**other) != name) {
            board.write(&format!("clk/{other}/clk_rate"), "1\n");
        }
        if let Some(name) = name {
            board.write(&format!("clk/{name}/clk_rate"), "125000000\n");
            assert_eq!(rate(&board), Some(125_000_000), "{provider:?}");
            board.write(&format!("clk/{name}/clk_rate"), "0\n");
        }
        assert_eq!(rate(&board), None, "{provider:?}");
    }
}
