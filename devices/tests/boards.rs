//! Every device of many boards: the nodes that guests get of them are sound.
//!
//! The boards' compiled device trees are in the directory that `STRAIT_BOARDS` names, one
//! `VENDOR-BOARD.dtb` each; `cargo model test` provides them, made of Linux' own sources.

mod board;

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use board::{Device, Unflattened, builders, dtc, exported, guest_nodes, guest_tree};
use boot::fdt::host::HostNode;
use boot::fdt::{Cell, FIRST_PHANDLE, Node, Value, from_blob, to_blob};
use devices::vfio::export::{ExportDevice, ExportError, Format, export};
use devices::vfio::node::{Disposition, PropertyReport};

/// Set by `cargo model test --soak`: each device is tried by itself, not one of each kind.
const SOAK: &str = "STRAIT_SOAK";

/// How many boards and how many vendors are the least that shows anything.
const BOARDS: usize = 25;
const VENDORS: usize = 10;

#[test]
fn every_device_of_every_board_gets_a_sound_node() {
    let directory = std::env::var_os("STRAIT_BOARDS").expect("cargo model test sets STRAIT_BOARDS");
    let mut paths: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "dtb"));
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let vendors: BTreeSet<String> =
        paths.iter().map(|path| name(path).split('-').next().unwrap().to_owned()).collect();
    assert!(paths.len() >= BOARDS && vendors.len() >= VENDORS, "{paths:?}");
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let (devices, alone, links) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let exports = Format::ALL.map(|_| AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = check_board(&name(path), &fs::read(path).unwrap());
                    assert!(found.devices > 0, "{path:?} has no devices");
                    devices.fetch_add(found.devices, Ordering::Relaxed);
                    alone.fetch_add(found.alone, Ordering::Relaxed);
                    links.fetch_add(found.links, Ordering::Relaxed);
                    for (all, found) in exports.iter().zip(found.exports) {
                        all.fetch_add(found, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (devices, links) = (devices.into_inner(), links.into_inner());
    println!("{devices} devices of {} boards of {} vendors", paths.len(), vendors.len());
    println!("{} of them were tried by themselves, too", alone.into_inner());
    println!("{links} properties refer from one to another where a guest has all of a board's");
    assert!(links > 0);
    for (format, count) in Format::ALL.into_iter().zip(exports.map(AtomicUsize::into_inner)) {
        println!("{count} of them are exported for {}", format.name());
        assert!(count * 5 > devices * 4, "{}", format.name());
    }
}

/// What a board has.
struct Found {
    devices: usize,
    /// How many of them were tried by themselves.
    alone: usize,
    /// The devices that are exported, in each format.
    exports: [usize; Format::ALL.len()],
    /// Properties that refer from one device to another.
    links: usize,
}

/// Checks all of a board's devices, one of each kind by itself and all in one guest, and counts them.
fn check_board(name: &str, blob: &[u8]) -> Found {
    let board = Unflattened::of(blob);
    let devices = board.devices();
    let names: Vec<String> = (0..devices.len()).map(|number| format!("{number}.device")).collect();
    let devices: Vec<Device<'_>> = devices.iter().zip(names.iter().map(String::as_str)).collect();
    let is_soak = std::env::var_os(SOAK).is_some();
    let (mut kinds, mut alone) = (BTreeSet::new(), 0);
    for device in &devices {
        if !kinds.insert(kind(device.0)) && !is_soak {
            continue;
        }
        alone += 1;
        let place = format!("{name}: {}", board.tree.path(device.0));
        let links = check_guest(&board, &place, std::slice::from_ref(device));
        assert_eq!(links, 0, "{place}: there is nothing else to refer to");
    }
    let links = check_guest(&board, &format!("{name}: all devices"), &devices);
    let builders = builders(&board, &devices);
    let exports = Format::ALL.map(|format| {
        let possible = devices.iter().zip(&builders).filter(|(_, (device, builder))| {
            let device = ExportDevice { name: device, builder, gpas: Vec::new() };
            is_exported(format, &board, &device)
        });
        let possible: Vec<Device<'_>> = possible.map(|(device, _)| *device).collect();
        check_exports(name, &board, format, &possible);
        possible.len()
    });
    Found { devices: devices.len(), alone, exports, links }
}

/// What devices have in common of which one is tried by itself: what they are compatible with, and which
/// properties they and the nodes below them have.
fn kind(node: &HostNode) -> Vec<u8> {
    let mut kind = Vec::new();
    for property in node.properties() {
        kind.extend_from_slice(property.name.as_bytes());
        kind.push(0);
        if property.name == "compatible" {
            kind.extend_from_slice(&property.bytes);
        }
    }
    for child in node.children() {
        kind.push(b'{');
        kind.append(&mut self::kind(child));
        kind.push(b'}');
    }
    kind
}

/// Whether a device can be exported in this format.
fn is_exported(format: Format, board: &Unflattened, device: &ExportDevice<'_>) -> bool {
    match export(format, &board.tree, std::slice::from_ref(device)) {
        Ok(_) => true,
        Err(
            ExportError::Address { .. } | ExportError::Interrupt { .. } | ExportError::Full { .. },
        ) => false,
        Err(error) => panic!("{}: {error}", device.name),
    }
}

/// Exports devices in sources that dtc takes.
fn check_exports(name: &str, board: &Unflattened, format: Format, devices: &[Device<'_>]) {
    // QEMU has no room for all of a board together.
    let together = if format == Format::Qemu { 8 } else { devices.len().max(1) };
    for devices in devices.chunks(together) {
        match exported(format, board, devices, &[]) {
            Ok(source) => drop(dtc(&["-@", "-I", "dts", "-O", "dtb"], source.as_bytes())),
            Err(error) => assert!(matches!(error, ExportError::Full { .. }), "{name}: {error}"),
        }
    }
}

/// Checks what a guest that is given these devices is told of them, and says how many properties
/// refer from one to another.
fn check_guest(board: &Unflattened, place: &str, devices: &[Device<'_>]) -> usize {
    let nodes = guest_nodes(&board.tree, devices);
    for ((host, _), nodes) in devices.iter().zip(&nodes) {
        check_properties(&format!("{place}: {}", host.name()), host, &nodes.properties);
    }
    let tree = guest_tree(&nodes);
    let blob = to_blob(&tree).unwrap_or_else(|error| panic!("{place}: {error}"));
    let read = from_blob(&blob).unwrap();
    check_references(place, &tree, &read);
    // dtc follows all lists of references that the specification and Linux have.
    let (_, said) = dtc(&["-I", "dtb", "-O", "dtb"], &blob);
    let broken = said.lines().find(|line| {
        line.contains("ERROR")
            || line.contains("not a phandle reference")
            || line.contains("Missing property '#")
            || line.contains("Bad phandle")
            || line.contains("Invalid phandle")
            || line.contains("aliases property")
            || line.contains("dma-ranges")
    });
    assert_eq!(broken, None, "{place}");
    let reports = nodes.iter().flat_map(|nodes| &nodes.properties);
    reports.filter(|report| matches!(report.disposition, Disposition::Linked(_))).count()
}

/// Each property of the host's is accounted for once, and nothing that it doesn't have.
fn check_properties(place: &str, host: &HostNode, properties: &[PropertyReport]) {
    let mut expected = BTreeSet::new();
    let gone: BTreeSet<&str> =
        properties.iter().filter(|a| a.property.is_none()).map(|a| a.node.as_str()).collect();
    collect(host, "", &gone, &mut expected);
    let mut seen = BTreeSet::new();
    for PropertyReport { node, property, disposition } in properties {
        let Some(property) = property else { continue };
        let path = (node.clone(), property.clone());
        assert!(seen.insert(path.clone()), "{place}: {path:?} twice");
        assert_eq!(
            *disposition == Disposition::Made,
            !expected.contains(&path),
            "{place}: {path:?} {disposition:?}"
        );
        if let Disposition::Dropped(reason) = disposition {
            assert!(reason.len() > 10 && !reason.contains("no use for it"), "{place}: {path:?}");
        }
    }
    let missing: Vec<_> = expected.difference(&seen).collect();
    assert!(missing.is_empty(), "{place}: nothing said of {missing:?}");
}

/// The properties in and below a node, but for nodes that are gone as a whole.
fn collect(
    host: &HostNode,
    path: &str,
    gone: &BTreeSet<&str>,
    into: &mut BTreeSet<(String, String)>,
) {
    into.extend(host.properties().iter().map(|p| (path.to_owned(), p.name.clone())));
    for child in host.children() {
        let below = if path.is_empty() {
            child.name().to_owned()
        } else {
            format!("{path}/{}", child.name())
        };
        if !gone.contains(below.as_str()) {
            collect(child, &below, gone, into);
        }
    }
}

/// Every reference is to a node that is there, and no number of the host's is one of the guest's
/// own phandles.
fn check_references(place: &str, tree: &Node, read: &Node) {
    let mut phandles = BTreeSet::new();
    gather(read, &mut phandles);
    let mut pairs = vec![(tree, read)];
    while let Some((made, read)) = pairs.pop() {
        for (property, number) in made.properties().iter().zip(read.properties()) {
            let (Value::Cells(made), Some(bytes)) = (&property.value, number.value.to_bytes())
            else {
                continue;
            };
            for (cell, bytes) in made.iter().zip(bytes.as_chunks().0) {
                let number = u32::from_be_bytes(*bytes);
                match cell {
                    Cell::Ref(label) => {
                        assert!(phandles.contains(&number), "{place}: {label} leads nowhere");
                    }
                    Cell::U32(_) => assert!(
                        number < FIRST_PHANDLE || !phandles.contains(&number),
                        "{place}: {} holds a phandle by accident",
                        property.name
                    ),
                }
            }
        }
        pairs.extend(made.children().iter().zip(read.children()));
    }
}

fn gather(node: &Node, phandles: &mut BTreeSet<u32>) {
    phandles.extend(node.get_phandle());
    node.children().iter().for_each(|child| gather(child, phandles));
}
