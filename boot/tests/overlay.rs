//! Overlays, compiled by dtc and judged by fdtoverlay (libfdt).

mod dtb;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use boot::fdt::overlay::{Overlay, OverlayError, apply};
use boot::fdt::{Cell, Node, Value, to_blob, to_dts};
use dtb::Parsed;

/// Compiles source with symbols. dtc must be installed.
fn dtc(source: &str) -> Vec<u8> {
    let mut child = Command::new("dtc")
        .args(["-q", "-@", "-I", "dts", "-O", "dtb"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests need dtc: apt install device-tree-compiler");
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{source}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn overlay(body: &str) -> Vec<u8> {
    dtc(&format!("/dts-v1/;\n/plugin/;\n{body}"))
}

/// A guest's tree in small.
fn base() -> Node {
    Node::new("")
        .refs("interrupt-parent", ["gic"])
        .child(Node::new("chosen").string("bootargs", "quiet"))
        .child(Node::at("intc", 0x800_0000).label("gic").flag("interrupt-controller"))
        .child(
            Node::new("clocks")
                .label("clocks")
                .child(Node::new("apb-pclk").label("apb_pclk").u32("#clock-cells", 0)),
        )
        .child(
            Node::at("dma-controller", 0xc00_0000)
                .label("_2c0a0000_dma")
                .phandle(0x8003)
                .reg([(0xc00_0000, 0x1000)])
                .refs("clocks", ["apb_pclk"])
                .child(Node::at("channel", 1).u32("reg", 1)),
        )
}

/// The tree with these overlays.
fn applied(overlays: &[&[u8]]) -> Result<Node, OverlayError> {
    let mut root = base();
    let overlays = overlays.iter().enumerate();
    let overlays: Vec<Overlay> = overlays
        .map(|(n, blob)| Overlay::read(format!("{n}.dtbo"), blob))
        .collect::<Result<_, _>>()?;
    apply(&mut root, &overlays)?;
    Ok(root)
}

fn at<'a>(root: &'a Node, path: &str) -> &'a Node {
    path.split('/').filter(|name| !name.is_empty()).fold(root, |node, name| {
        let found = node.children().iter().find(|child| child.name() == name);
        found.unwrap_or_else(|| panic!("no {path} in\n{}", to_dts(root)))
    })
}

/// What libfdt makes of the same.
fn judged(overlays: &[&[u8]]) -> Parsed {
    let directory = std::env::temp_dir().join(format!(
        "strait-overlay-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&directory).unwrap();
    let (before, after) = (directory.join("base.dtb"), directory.join("after.dtb"));
    std::fs::write(&before, dtc(&to_dts(&base()))).unwrap();
    let files: Vec<_> = (0..overlays.len()).map(|n| directory.join(format!("{n}.dtbo"))).collect();
    for (file, blob) in files.iter().zip(overlays) {
        std::fs::write(file, blob).unwrap();
    }
    let mut command = Command::new("fdtoverlay");
    let output = command.arg("-i").arg(&before).arg("-o").arg(&after).args(&files).output();
    let output = output.expect("these tests need fdtoverlay: apt install device-tree-compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut parsed = Parsed::read(&std::fs::read(&after).unwrap());
    std::fs::remove_dir_all(&directory).unwrap();
    parsed.children.retain(|child| child.name != "__symbols__");
    parsed
}

/// The path of every phandle.
fn paths(node: &Parsed, path: &str, into: &mut BTreeMap<u32, String>) {
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
fn assert_agreed(overlays: &[&[u8]]) {
    let ours = Parsed::read(&to_blob(&applied(overlays).unwrap()).unwrap());
    let theirs = judged(overlays);
    let mut phandles = [BTreeMap::new(), BTreeMap::new()];
    paths(&ours, "", &mut phandles[0]);
    paths(&theirs, "", &mut phandles[1]);
    assert_same(&ours, &theirs, "", &phandles);
}

#[test]
fn properties_and_nodes_are_replaced_and_added_by_symbol_and_path() {
    let blob = overlay(
        r#"
        &_2c0a0000_dma { status = "okay"; reg = <1 2 3 4>; channel@1 { label = "one"; }; };
        &{/chosen} { bootargs = "loud"; };
        &clocks { osc: osc { #clock-cells = <0>; clock-frequency = <1000>; }; };
        "#,
    );
    let root = applied(&[&blob]).unwrap();
    let device = at(&root, "dma-controller@c000000");
    assert_eq!(device.get("status"), Some(&Value::Strings(vec!["okay".into()])));
    assert_eq!(device.get("reg"), Some(&Value::Cells([1, 2, 3, 4].map(Cell::U32).into())));
    assert_eq!(device.get_phandle(), Some(0x8003), "its own stays");
    let channel = at(device, "channel@1");
    assert_eq!(channel.get("reg"), Some(&Value::Cells(vec![Cell::U32(1)])));
    assert_eq!(channel.get("label"), Some(&Value::Strings(vec!["one".into()])));
    assert_eq!(at(&root, "chosen").get("bootargs"), Some(&Value::Strings(vec!["loud".into()])));
    assert_eq!(at(&root, "clocks/osc").get_label().unwrap().as_str(), "osc");
    assert_agreed(&[&blob]);
}

#[test]
fn what_has_no_effect_is_told() {
    let blob = overlay(
        r#"
        &_2c0a0000_dma { /delete-property/ reg; /delete-node/ channel@1; };
        &clocks { apb-pclk { /delete-property/ clock-frequency; }; new { }; old: older { }; };
        &{/chosen} { /delete-property/ bootargs; };
        &{/} { here { beside; below { }; }; };
        &gic { /delete-property/ status; also; };
        "#,
    );
    let mut root = base();
    let told = apply(&mut root, &[Overlay::read("x.dtbo", &blob).unwrap()]).unwrap();
    let nodes: Vec<&str> = told.iter().map(|no_effect| no_effect.node.as_str()).collect();
    assert_eq!(nodes, ["&_2c0a0000_dma", "&clocks/apb-pclk", "/chosen"]);
    let text = told[0].to_string();
    for wanted in ["x.dtbo", "&_2c0a0000_dma", "/delete-property/", "drop="] {
        assert!(text.contains(wanted), "{text}");
    }
    // So they stay.
    let device = at(&root, "dma-controller@c000000");
    assert!(device.get("reg").is_some() && at(device, "channel@1").get("reg").is_some());
}

#[test]
fn references_lead_where_they_should_from_any_place_in_a_value() {
    let blob = overlay(
        r#"
        &clocks { osc: osc { #clock-cells = <0>; self = <&osc>; }; };
        &_2c0a0000_dma {
            clocks = <&osc>, <&apb_pclk>, <&osc>;
            interrupt-parent = <&gic>;
            odd = "a", <&gic 5>, [01], <&osc>, "z";
        };
        "#,
    );
    let root = applied(&[&blob]).unwrap();
    let device = at(&root, "dma-controller@c000000");
    let labels = ["osc", "apb_pclk", "osc"].map(|label| Cell::Ref(label.into()));
    assert_eq!(device.get("clocks"), Some(&Value::Cells(labels.into())));
    assert_agreed(&[&blob]);
    // The source can be compiled again.
    dtc(&to_dts(&root));
}

/// As those of Raspberry Pi's firmware are: parameters, which only that firmware understands, and a
/// fragment that they would wake.
const RASPBERRY_PI: &str = r#"
    / {
        compatible = "brcm,bcm2835";
        fragment@0 {
            target = <&_2c0a0000_dma>;
            frag0: __overlay__ {
                #address-cells = <1>;
                #size-cells = <0>;
                status = "okay";
                clocks = <&osc>;
                channel@2 { reg = <2>; };
            };
        };
        fragment@1 {
            target = <&clocks>;
            __overlay__ {
                osc: osc { compatible = "fixed-clock"; #clock-cells = <0>; clock-frequency = <16>; };
            };
        };
        fragment@2 {
            target = <&_2c0a0000_dma>;
            __dormant__ { status = "disabled"; };
        };
        __overrides__ {
            speed = <&osc>,"clock-frequency:0";
            off = <0>,"-0+2";
        };
    };
"#;

/// As those that crosvm takes are: whole devices for the root, with what they refer to.
const CROSVM: &str = r#"
    / {
        fragment@sensor {
            target-path = "/";
            __overlay__ {
                #address-cells = <2>;
                #size-cells = <2>;
                sensor: sensor@90000000 {
                    compatible = "vendor,sensor";
                    reg = <0x0 0x90000000 0x0 0x10000>;
                    interrupt-parent = <&gic>;
                    interrupts = <0 0xf 4>;
                    supply = <&power &_2c0a0000_dma>;
                };
                power: regulator { compatible = "regulator-fixed"; regulator-name = "on"; };
            };
        };
    };
"#;

#[test]
fn overlays_as_other_projects_write_them_do_what_they_do_there() {
    let [pi, crosvm] = [RASPBERRY_PI, CROSVM].map(overlay);
    let root = applied(&[&pi, &crosvm]).unwrap();
    let device = at(&root, "dma-controller@c000000");
    assert_eq!(device.get("status"), Some(&Value::Strings(vec!["okay".into()])));
    assert_eq!(device.get("clocks"), Some(&Value::Cells(vec![Cell::Ref("osc".into())])));
    let supply = at(&root, "sensor@90000000").get("supply");
    let labels = ["power", "_2c0a0000_dma"].map(|label| Cell::Ref(label.into()));
    assert_eq!(supply, Some(&Value::Cells(labels.into())));
    assert!(root.get("compatible").is_none(), "what the overlay is for isn't what the guest is");
    assert!(!root.children().iter().any(|child| child.name() == "__overrides__"));
    // fdtoverlay doesn't take the label of a fragment's content beside what refers elsewhere.
    assert_agreed(&[&crosvm]);
}

#[test]
fn an_overlay_sees_the_symbols_of_those_before_it() {
    let first = overlay("&clocks { osc: osc { #clock-cells = <0>; }; };");
    let second = overlay("&_2c0a0000_dma { clocks = <&osc>; }; &osc { clock-frequency = <7>; };");
    let root = applied(&[&first, &second]).unwrap();
    assert_eq!(
        at(&root, "clocks/osc").get("clock-frequency"),
        Some(&Value::Cells(vec![Cell::U32(7)]))
    );
    assert_agreed(&[&first, &second]);
    let error = applied(&[&second]).unwrap_err();
    assert!(error.to_string().contains("&osc"), "{error}");
    assert!(error.help().unwrap().contains("_2c0a0000_dma apb_pclk clocks gic"), "{error:?}");
}

#[test]
fn a_node_that_two_overlays_name_differently_is_one_node() {
    let first = overlay("&{/clocks} { a: osc { x = <&a>; }; };");
    let second = overlay("&{/clocks} { b: osc { y = <&b>; }; };");
    // The same symbol for another node: the later one wins.
    let third = overlay("&{/clocks} { a: other { z = <&a>; }; };");
    let fourth = overlay("&{/chosen} { all = <&a &b>; };");
    let root = applied(&[&first, &second, &third, &fourth]).unwrap();
    assert_eq!(at(&root, "clocks").children().len(), 3);
    // Not judged: libfdt gives the node the second overlay's phandle and forgets the first's.
    let parsed = Parsed::read(&to_blob(&root).unwrap());
    let mut phandles = BTreeMap::new();
    paths(&parsed, "", &mut phandles);
    let clocks = parsed.children.iter().find(|child| child.name == "clocks").unwrap();
    let leads = |node: &Parsed, property: &str| -> Vec<&str> {
        let (cells, _) = node.get(property).unwrap().as_chunks();
        cells.iter().map(|cell| phandles[&u32::from_be_bytes(*cell)].as_str()).collect()
    };
    assert_eq!(leads(&clocks.children[1], "x"), ["/clocks/osc"]);
    assert_eq!(leads(&clocks.children[1], "y"), ["/clocks/osc"]);
    assert_eq!(leads(&clocks.children[2], "z"), ["/clocks/other"]);
    assert_eq!(leads(&parsed.children[0], "all"), ["/clocks/other", "/clocks/osc"]);
}

#[test]
fn what_is_no_overlay_is_refused_with_what_to_do() {
    let fragmentless = dtc("/dts-v1/; / { a { b; }; };");
    let nowhere = overlay("&{/none} { a; };");
    let cases: [(&[u8], &str, Option<&str>); 4] = [
        (b"/dts-v1/; /plugin/;", "can't be read: it isn't a device tree blob", Some("dtc -@")),
        (&fragmentless, "can't be read: it has no fragment", Some("/plugin/;")),
        (
            &nowhere,
            "can't be applied: the guest's device tree has no node /none",
            Some("--dry-run"),
        ),
        (&nowhere[..100], "can't be read: it ends within its blocks", None),
    ];
    for (blob, text, help) in cases {
        let error = applied(&[blob]).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert_eq!(help.is_some(), error.help().is_some(), "{error:?}");
        assert!(error.help().unwrap_or_default().contains(help.unwrap_or_default()), "{error:?}");
    }
}

#[test]
fn references_that_lie_are_refused() {
    // As an overlay may be made by hand: dtc wouldn't.
    let with = |fixups: &str| {
        dtc(&format!(
            r#"/dts-v1/; / {{ fragment@0 {{ target-path = "/chosen";
               __overlay__ {{ a = <5 6>; }}; }}; stray {{ phandle = <9>; }}; {fixups} }};"#
        ))
    };
    for (fixups, text) in [
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:a:5"; };"#, "is no place"),
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:a:8"; };"#, "is no place"),
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:b:0"; };"#, "is no place"),
        (r#"__fixups__ { gic = "/fragment@1:a:0"; };"#, "is no place"),
        (r#"__fixups__ { gic = "nonsense"; };"#, "is no place"),
        (r#"__fixups__ { gic = <1 2>; };"#, "is no place"),
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:a:99999999999"; };"#, "is no place"),
        ("__local_fixups__ { fragment@0 { __overlay__ { a = <4>; }; }; };", "phandle 0x6"),
        ("__local_fixups__ { fragment@0 { __overlay__ { b = <0>; }; }; };", "is no place"),
        ("__local_fixups__ { fragment@0 { __overlay__ { a = [00]; }; }; };", "is no place"),
        ("__local_fixups__ { fragment@7 { __overlay__ { a = <0>; }; }; };", "is no place"),
    ] {
        let result = applied(&[&with(fixups)]);
        match result {
            // Five bytes in is within the value: unaligned, but a place.
            Ok(_) => assert!(fixups.contains(":a:5"), "{fixups}"),
            Err(error) => assert!(error.to_string().contains(text), "{fixups}: {error}"),
        }
    }
    // A node outside of the fragments never gets into the tree.
    let stray =
        dtc(r#"/dts-v1/; / { fragment@0 { target-path = "/chosen"; __overlay__ { a = <9>; }; };
           stray { phandle = <9>; };
           __local_fixups__ { fragment@0 { __overlay__ { a = <0>; }; }; }; };"#);
    let error = applied(&[&stray]).unwrap_err();
    assert!(error.to_string().contains("outside of its fragments"), "{error}");
}

#[test]
fn no_damage_to_an_overlay_is_worse_than_an_error() {
    let blob = overlay(
        r#"&clocks { osc: osc { a = <&osc>; }; }; &_2c0a0000_dma { clocks = <&osc &gic>; };"#,
    );
    for at in 0..blob.len() {
        for byte in [0, 1, 2, 4, 9, b'/', b':', 0xff] {
            let mut damaged = blob.clone();
            damaged[at] = byte;
            if let Ok(root) = applied(&[&damaged]) {
                let _ = to_blob(&root);
            }
        }
    }
}

/// Marsaglia's xorshift64: the same overlays in every run.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn one_of<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// The source of an overlay; the symbols it defines are added to `symbols`.
    fn overlay(&mut self, number: usize, symbols: &mut Vec<String>) -> String {
        let mut own = Vec::new();
        let mut source = String::new();
        let mut fragments = Vec::new();
        for _ in 0..1 + self.below(3) {
            let target = match self.below(3) {
                0 => self
                    .one_of(&["{/}", "{/clocks}", "{/chosen}", "{/dma-controller@c000000}"])
                    .to_owned(),
                _ => symbols[self.below(symbols.len())].clone(),
            };
            let mut body = String::new();
            self.body(number, 0, &mut own, &mut body);
            fragments.push((target, body));
        }
        for (target, body) in fragments {
            let all: Vec<String> = symbols.iter().chain(&own).cloned().collect();
            let mut body = body;
            while let Some(at) = body.find("&?") {
                let name = format!("&{}", all[self.below(all.len())]);
                body.replace_range(at..at + 2, &name);
            }
            writeln!(source, "&{target} {{ {body} }};").unwrap();
        }
        symbols.extend(own);
        source
    }

    fn body(&mut self, number: usize, depth: usize, own: &mut Vec<String>, out: &mut String) {
        for _ in 0..self.below(4) {
            let name = self.one_of(&["a", "b,c", "#d-cells", "clocks", "status", "reg"]);
            let word = self.below(1 << 30) + (1 << 30);
            let length = self.below(40) + 1;
            let text = "x".repeat(length);
            // No property twice in one node: dtc refuses that.
            if out.rsplit('{').next().is_some_and(|last| last.contains(&format!("{name} ="))) {
                continue;
            }
            match self.below(6) {
                0 => writeln!(out, "{name} = <{word:#x} {word:#x}>;"),
                1 => writeln!(out, "{name} = <&?>;"),
                2 => writeln!(out, "{name} = <{word:#x} &? &?>;"),
                3 => writeln!(out, "{name} = \"{text}\";"),
                4 => writeln!(out, "{name} = \"{text}\", <&? {word:#x}>, [ff], <&?>;"),
                _ => writeln!(out, "{name} = [{:02x} 80 ff];", word & 0xff),
            }
            .unwrap();
        }
        for child in 0..if depth < 3 { self.below(3) } else { 0 } {
            // Some of these are in the tree already, or in another fragment: merged, and without a
            // label, since libfdt forgets the label that the other may have.
            let known =
                self.one_of(&["n", "channel@1", "apb-pclk", "longer-than-most-names-of-nodes@1"]);
            let (label, name) = match self.below(2) {
                0 if child == 0 => (String::new(), known.to_owned()),
                0 => (String::new(), format!("{known}{child}")),
                _ => {
                    let own_name = format!("l{number}_{}", own.len());
                    own.push(own_name.clone());
                    (format!("{own_name}: "), format!("n{own_name}"))
                }
            };
            let mut inner = String::new();
            self.body(number, depth + 1, own, &mut inner);
            writeln!(out, "{label}{name} {{ {inner} }};").unwrap();
        }
    }
}

#[test]
fn random_overlays_come_out_as_libfdt_has_them() {
    let mut random = Xorshift(0x0d7b_0d7b_0d7b_0d7b);
    let mut labels = 0;
    for _ in 0..120 {
        let mut symbols: Vec<String> =
            ["gic", "clocks", "apb_pclk", "_2c0a0000_dma"].map(str::to_owned).into();
        let sources: Vec<String> =
            (0..1 + random.below(3)).map(|n| random.overlay(n, &mut symbols)).collect();
        labels += symbols.len() - 4;
        let blobs: Vec<Vec<u8>> = sources.iter().map(|source| overlay(source)).collect();
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        assert_agreed(&blobs);
    }
    assert!(labels > 200, "the overlays are too small to show anything: {labels} labels");
}

/// An overlay as nobody's dtc makes it: what `more` has beside one fragment for `/` with `content`.
fn made(content: Node, more: Node) -> Vec<u8> {
    let fragment = Node::new("f").string("target-path", "/").child(content);
    to_blob(&Node::new("").child(fragment).child(more)).unwrap()
}

#[test]
fn the_time_that_an_overlay_takes_grows_with_its_size() {
    // Half as much as fits the 2 MiB of a device tree, or the nodes of an overlay. Where the
    // time grew with the square, the first case took hours.
    const PATIENCE: Duration = Duration::from_secs(30);
    const MANY: u32 = 30_000;
    const NODES: u32 = 8_000;
    let overlay = || Node::new("__overlay__");
    let fixups = |places: Vec<String>| Node::new("__fixups__").strings("gic", places);
    let place = |offset: u32| format!("/f/__overlay__:a:{offset}");
    let own = |offsets: Vec<u32>| {
        let offsets = Node::new("f").child(overlay().cells("a", offsets));
        Node::new("__local_fixups__").child(offsets)
    };
    let nodes = |phandles: u32| {
        let nodes = (1..=NODES).map(|n| match n <= phandles {
            true => Node::new(format!("n{n}")).phandle(n),
            false => Node::new(format!("n{n}")),
        });
        overlay().with_children(nodes)
    };
    let flags = (0..5000).fold(overlay(), |node, n| node.flag(&format!("p{n}")));
    let fragments = (0..2000).map(|n| {
        let content = overlay().child(Node::new(format!("n{n}")));
        Node::new(format!("f{n}")).cells("target", [u32::MAX]).child(content)
    });
    let targets = (0..2000).map(|n| format!("/f{n}:target:0")).collect();
    let cases = [
        (
            "references in one property",
            made(overlay().cells("a", 0..MANY), fixups((0..MANY).map(|n| place(4 * n)).collect())),
        ),
        (
            "references to itself in one property",
            made(
                overlay().phandle(5).cells("a", (0..MANY).map(|_| 5_u32)),
                own((0..MANY).map(|n| 4 * n).collect()),
            ),
        ),
        ("properties of one node", made(flags, Node::new("x"))),
        ("nodes in one", made(nodes(0), Node::new("x"))),
        ("nodes with phandles in one", made(nodes(NODES), Node::new("x"))),
        (
            "symbols",
            made(
                nodes(0),
                (1..=4000).fold(Node::new("__symbols__"), |node, n| {
                    node.string(&format!("s{n}"), format!("/f/__overlay__/n{n}"))
                }),
            ),
        ),
        (
            "fragments",
            to_blob(&Node::new("").with_children(fragments).child(fixups(targets))).unwrap(),
        ),
    ];
    for (what, blob) in cases {
        assert!(blob.len() < 2 << 20, "{what}: {} bytes", blob.len());
        let started = Instant::now();
        let root = applied(&[&blob]).unwrap_or_else(|error| panic!("{what}: {error}"));
        to_blob(&root).unwrap();
        let took = started.elapsed();
        assert!(took < PATIENCE, "{what}: {took:?}");
    }
}

#[test]
fn an_overlay_of_more_parts_than_boards_have_is_refused() {
    let nodes = (0..20_000).map(|n| Node::new(format!("n{n}")));
    let fragments = (0..3000).map(|n| {
        let overlay = Node::new("__overlay__");
        Node::new(format!("f{n}")).string("target-path", "/").child(overlay)
    });
    let cases = [
        (made(Node::new("__overlay__").with_children(nodes), Node::new("x")), "16384 nodes"),
        (to_blob(&Node::new("").with_children(fragments)).unwrap(), "2048 fragments"),
        (made(Node::new("__overlay__"), deep_fixup()), "is no place"),
    ];
    for (blob, expected) in cases {
        let error = applied(&[&blob]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A fixup for a path that is deeper than any tree.
fn deep_fixup() -> Node {
    let path = "/a".repeat(500_000);
    Node::new("__fixups__").string("gic", format!("{path}:a:0"))
}
