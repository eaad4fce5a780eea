//! Golden pairs: a host's device tree, and what a guest is told of one of its devices, or of several
//! that it is given together.
//!
//! `nodes/NAME.host.dts` begins with comments that name the devices; `nodes/NAME.guest.dts` is the
//! guest's tree with nothing else in it, behind what became of each of the host's properties. Each
//! pair shows something that boards have and that is easily done wrong. With `STRAIT_BLESS=1` the
//! guests' files are written anew, to be read again by a person.

mod board;

use std::fs;
use std::path::{Path, PathBuf};

use board::{Device, Unflattened, dtc, guest_nodes, guest_tree};
use boot::fdt::to_dts;
use devices::vfio::node::{Disposition, PropertyReport};

/// The words before a device's path.
const DEVICE: &str = "// device: ";

fn pairs() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nodes");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut hosts: Vec<PathBuf> =
        entries.filter(|path| path.to_str().unwrap().ends_with(".host.dts")).collect();
    hosts.sort();
    hosts
}

/// What became of each property, as comments.
fn comments(properties: &[PropertyReport]) -> String {
    let mut text = String::new();
    for (name, disposition) in [
        ("kept", Disposition::Kept),
        ("rewritten", Disposition::Rewritten),
        ("made", Disposition::Made),
    ] {
        for report in properties.iter().filter(|report| report.disposition == disposition) {
            text.push_str(&format!("// {name}: {}\n", report.path()));
        }
    }
    for report in properties {
        match &report.disposition {
            Disposition::Linked(devices) => {
                let devices = devices.join(", ");
                text.push_str(&format!("// kept: {}: refers to {devices}\n", report.path()));
            }
            Disposition::Dropped(reason) => {
                text.push_str(&format!("// dropped: {}: {reason}\n", report.path()));
            }
            Disposition::Kept | Disposition::Rewritten | Disposition::Made => {}
        }
    }
    text
}

#[test]
fn guest_nodes_are_those_that_were_reviewed() {
    let hosts = pairs();
    assert!(hosts.len() >= 10, "{hosts:?}");
    for path in hosts {
        let source = fs::read_to_string(&path).unwrap();
        let devices = source.lines().filter_map(|line| line.strip_prefix(DEVICE));
        let (blob, _) = dtc(&["-q", "-I", "dts", "-O", "dtb"], source.as_bytes());
        let board = Unflattened::of(&blob);
        let hosts = devices.map(|path| board.tree.node_at(path).unwrap());
        let hosts: Vec<_> =
            hosts.enumerate().map(|(n, node)| (node, format!("{}.device", n + 1))).collect();
        let devices: Vec<Device<'_>> =
            hosts.iter().map(|(node, name)| (node, name.as_str())).collect();
        let nodes = guest_nodes(&board.tree, &devices);
        assert!(!nodes.is_empty(), "{}", path.display());
        let comments: Vec<String> = nodes.iter().map(|nodes| comments(&nodes.properties)).collect();
        let comments = comments.join("\n");
        let tree = guest_tree(&nodes);
        let found = format!("{comments}\n{}", to_dts(&tree));
        let golden = PathBuf::from(path.to_str().unwrap().replace(".host.", ".guest."));
        if std::env::var_os("STRAIT_BLESS").is_some() {
            fs::write(&golden, &found).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert!(found == expected, "{} should be:\n{found}", golden.display());
        // It can be compiled.
        let (_, said) = dtc(&["-I", "dts", "-O", "dtb"], found.as_bytes());
        assert!(!said.contains("ERROR"), "{said}");
    }
}
