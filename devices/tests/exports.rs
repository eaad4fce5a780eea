//! Nodes for other VMMs: those of a board, compared with ones written by hand in the form of each
//! VMM's documentation.

mod board;

use std::fs;
use std::path::Path;

use board::{Unflattened, dtc, exported};
use boot::help::Help;
use devices::vfio::export::{ExportError, Format};

/// The devices of the board that is written by hand.
const DEVICES: [(&str, &str); 2] =
    [("/axi/ethernet@ff0e0000", "ff0e0000.ethernet"), ("/axi/serial@ff010000", "ff010000.serial")];

/// What a file among the exports holds.
fn file(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exports");
    fs::read_to_string(directory.join(name)).unwrap()
}

/// The board that is written by hand.
fn board() -> Unflattened {
    Unflattened::of(&dtc(&["-q", "-I", "dts", "-O", "dtb"], file("board.dts").as_bytes()).0)
}

/// A source as dtc understands it: without labels, comments and order.
fn compiled(source: &str) -> String {
    let (blob, _) = dtc(&["-@", "-q", "-I", "dts", "-O", "dtb"], source.as_bytes());
    let (text, _) = dtc(&["-q", "-s", "-I", "dtb", "-O", "dts"], &blob);
    String::from_utf8(text).unwrap()
}

#[test]
fn exports_are_as_written_by_hand() {
    let board = board();
    let nodes = DEVICES.map(|(path, _)| board.tree.node_at(path).unwrap());
    let devices = [(&nodes[0], DEVICES[0].1), (&nodes[1], DEVICES[1].1)];
    for format in Format::ALL {
        let name = format.name();
        let source = exported(format, &board, &devices, &[]).unwrap();
        assert_eq!(compiled(&source), compiled(&file(&format!("{name}.dts"))), "{name}");
    }
}

#[test]
fn comments_say_how_an_export_is_used() {
    let board = board();
    let nodes = DEVICES.map(|(path, _)| board.tree.node_at(path).unwrap());
    let devices = [(&nodes[0], DEVICES[0].1), (&nodes[1], DEVICES[1].1)];
    let comments = |format| exported(format, &board, &devices, &[Some(0x1000_0000)]).unwrap();
    let crosvm = comments(Format::Crosvm);
    let option = "--vfio /sys/bus/platform/devices/ff010000.serial,dt-symbol=ff010000_serial";
    assert!(crosvm.contains(option), "{crosvm}");
    let xen = comments(Format::Xen);
    for line in [
        r#"fdt set /axi/serial@ff010000 xen,passthrough"#,
        r#"dtdev = [ "/axi/ethernet@ff0e0000", "/axi/serial@ff010000" ]"#,
        "irqs = [ 95, 96, 54 ]",
        r#"iomem = [ "0xff0e0,1@0x10000", "0xff010,1@0x10000" ]"#,
    ] {
        assert!(xen.contains(&format!("//   {line}\n")), "{line}: {xen}");
    }
    for source in [crosvm, xen, comments(Format::Qemu)] {
        let mut comments = source.lines().filter(|line| line.starts_with("//"));
        assert!(comments.all(|line| line.len() <= 110), "{source}");
    }
}

#[test]
fn what_a_vmm_cannot_give_is_refused() {
    let source = file("board.dts").replace("interrupts = <0 22 1>", "interrupts = <1 22 1>");
    let board = Unflattened::of(&dtc(&["-q", "-I", "dts", "-O", "dtb"], source.as_bytes()).0);
    let [ethernet, serial] = DEVICES.map(|(path, _)| board.tree.node_at(path).unwrap());
    let (ethernet, serial) = ((&ethernet, "1.ethernet"), (&serial, "2.serial"));
    let refused = |format, device, gpa| {
        let error = exported(format, &board, &[device], &[gpa]).unwrap_err();
        (error.to_string(), error.help().unwrap_or_default())
    };
    let (error, _) = refused(Format::Xen, serial, None);
    assert!(error.contains("interrupt 0 goes to /interrupt-controller@f9010000"), "{error}");
    let (error, help) = refused(Format::Xen, ethernet, Some(0x1000_0010));
    assert!(error.contains("0x10000010") && help.contains("addr=0x10000000"), "{error} {help}");
    let large = file("board.dts").replace("<0xff0e0000 0x1000>", "<0xf0000000 0x4000000>");
    let board = Unflattened::of(&dtc(&["-q", "-I", "dts", "-O", "dtb"], large.as_bytes()).0);
    let ethernet = board.tree.node_at("/axi/ethernet@ff0e0000").unwrap();
    let error = exported(Format::Qemu, &board, &[(&ethernet, "1.ethernet")], &[]).unwrap_err();
    assert!(matches!(error, ExportError::Full { .. }), "{error}");
    assert!(exported(Format::Qemu, &board, &[(&ethernet, "x")], &[Some(1 << 32)]).is_ok());
}
