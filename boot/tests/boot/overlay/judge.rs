//! What libfdt (fdtoverlay) makes of the same overlays.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use boot::fdt::{to_blob, to_dts};

use super::{applied, base};
use crate::support::dtb::Parsed;
use crate::support::dtc::compile;
use crate::support::scratch::Scratch;

/// What libfdt makes of the same.
fn judged(overlays: &[&[u8]]) -> Parsed {
    let scratch = Scratch::new();
    let before = scratch.write("base.dtb", compile(&to_dts(&base())));
    let after = scratch.path().join("after.dtb");
    let overlays = overlays.iter().enumerate();
    let files: Vec<_> =
        overlays.map(|(n, blob)| scratch.write(&format!("{n}.dtbo"), blob)).collect();
    let mut command = Command::new("fdtoverlay");
    let output = command.arg("-i").arg(&before).arg("-o").arg(&after).args(&files).output();
    let output = output.expect("these tests need fdtoverlay: apt install device-tree-compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut parsed = Parsed::read(&fs::read(&after).unwrap());
    parsed.children.retain(|child| child.name != "__symbols__");
    parsed
}

/// The path of every phandle.
pub fn paths(node: &Parsed, path: &str, into: &mut BTreeMap<u32, String>) {
    if let Some(phandle) = node.phandle() {
        assert_eq!(into.insert(phandle, path.to_owned()), None, "phandle {phandle} twice");
    }
    for child in &node.children {
        paths(child, &format!("{path}/{}", child.name), into);
    }
}

/// Asserts that two trees say the same, whatever the order and the phandles.
fn assert_same(ours: &Parsed, theirs: &Parsed, path: &str, phandles: &[BTreeMap<u32, String>; 2]) {
    let sorted = |node: &Parsed| {
        let plain = node.properties.iter().filter(|(name, _)| name != "phandle");
        plain.cloned().collect::<BTreeMap<_, _>>()
    };
    let (mine, other) = (sorted(ours), sorted(theirs));
    let names = |map: &BTreeMap<String, Vec<u8>>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&mine), names(&other), "properties of {path}");
    for (name, bytes) in &mine {
        assert!(same(bytes, &other[name], phandles), "{path}:{name} {bytes:x?} {:x?}", other[name]);
    }
    assert_eq!(ours.children.len(), theirs.children.len(), "children of {path}");
    for child in &ours.children {
        let twin = theirs.children.iter().find(|twin| twin.name == child.name);
        let twin = twin.unwrap_or_else(|| panic!("{path}/{}", child.name));
        assert_same(child, twin, &format!("{path}/{}", child.name), phandles);
    }
}

/// Whether values are the same but for phandles, which must be those of the same nodes.
fn same(mine: &[u8], other: &[u8], [ours, theirs]: &[BTreeMap<u32, String>; 2]) -> bool {
    let mut at = 0;
    while at < mine.len().max(other.len()) {
        let cell = |bytes: &[u8]| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let refer = cell(mine)
            .zip(cell(other))
            .is_some_and(|(a, b)| ours.contains_key(&a) && ours.get(&a) == theirs.get(&b));
        match refer {
            true => at += 4,
            false if mine.get(at) == other.get(at) => at += 1,
            false => return false,
        }
    }
    true
}

/// Asserts that libfdt makes the same of these overlays.
pub fn assert_agreed(overlays: &[&[u8]]) {
    let ours = Parsed::read(&to_blob(&applied(overlays).unwrap()).unwrap());
    let theirs = judged(overlays);
    let mut phandles = [BTreeMap::new(), BTreeMap::new()];
    paths(&ours, "", &mut phandles[0]);
    paths(&theirs, "", &mut phandles[1]);
    assert_same(&ours, &theirs, "", &phandles);
}
