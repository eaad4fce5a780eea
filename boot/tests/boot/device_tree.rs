//! Trees as blobs and as source, judged by an independent reader and by dtc.

use std::collections::BTreeMap;

use boot::fdt::{
    BlobError, Cell, FIRST_PHANDLE, Label, Node, Value, from_blob, is_node_name, is_property_name,
    to_blob, to_dts,
};

use crate::support::cpu_time::cpu_time;
use crate::support::dtb::Parsed;
use crate::support::dtc::dtc;
use crate::support::random::Xorshift;

/// Asserts that `parsed` says what `node` does, whatever the phandles are.
fn assert_same(node: &Node, parsed: &Parsed, phandles: &BTreeMap<Label, u32>) {
    assert_eq!(node.name(), parsed.name);
    let expected: Vec<(String, Vec<u8>)> =
        node.properties().iter().map(|p| (p.name.clone(), encode(&p.value, phandles))).collect();
    let found: Vec<(String, Vec<u8>)> =
        parsed.properties.iter().filter(|(name, _)| name != "phandle").cloned().collect();
    assert_eq!(found, expected, "properties of {}", node.name());
    assert_eq!(node.children().len(), parsed.children.len(), "children of {}", node.name());
    for (child, parsed) in node.children().iter().zip(&parsed.children) {
        assert_same(child, parsed, phandles);
    }
}

fn encode(value: &Value, phandles: &BTreeMap<Label, u32>) -> Vec<u8> {
    match value {
        Value::Empty => Vec::new(),
        Value::Bytes(bytes) => bytes.clone(),
        Value::Strings(strings) => {
            strings.iter().flat_map(|s| [s.as_bytes(), &[0]].concat()).collect()
        }
        Value::Cells(cells) => cells
            .iter()
            .flat_map(|cell| match cell {
                Cell::U32(number) => number.to_be_bytes(),
                Cell::Ref(label) => phandles[label].to_be_bytes(),
            })
            .collect(),
        Value::Mixed(parts) => parts.iter().flat_map(|part| encode(part, phandles)).collect(),
    }
}

/// The phandles that the labelled nodes of `node` have in `parsed`.
fn phandles(node: &Node, parsed: &Parsed, into: &mut BTreeMap<Label, u32>) {
    if let (Some(label), Some(phandle)) = (node.get_label(), parsed.phandle()) {
        assert!(!into.values().any(|other| *other == phandle), "phandle {phandle} twice");
        into.insert(label.clone(), phandle);
    }
    for (child, parsed) in node.children().iter().zip(&parsed.children) {
        phandles(child, parsed, into);
    }
}

/// Asserts that blob and source both are the tree, to the reader and to dtc.
fn assert_faithful(root: &Node) {
    let blob = to_blob(root).unwrap();
    let compiled = dtc(&["-I", "dts", "-O", "dtb"], to_dts(root).as_bytes());
    let through_dtc = dtc(&["-I", "dtb", "-O", "dtb"], &blob);
    for blob in [&blob, &compiled, &through_dtc] {
        let parsed = Parsed::read(blob);
        let mut numbers = BTreeMap::new();
        phandles(root, &parsed, &mut numbers);
        assert_same(root, &parsed, &numbers);
        // What is read is the same again, down to the numbers.
        let again = to_blob(&from_blob(blob).unwrap()).unwrap();
        let again = Parsed::read(&again);
        assert_same(root, &again, &numbers);
    }
}

/// Trees at random.
impl Xorshift {
    fn name(&mut self, first: &[u8], rest: &[u8], longest: usize) -> String {
        let mut name = String::from(char::from(first[self.below(first.len())]));
        for _ in 0..self.below(longest) {
            name.push(char::from(rest[self.below(rest.len())]));
        }
        name
    }

    fn value(&mut self, labels: &[Label]) -> Value {
        match self.below(6) {
            5 => Value::Mixed((0..self.below(4)).map(|_| self.value(labels)).collect()),
            0 => Value::Empty,
            1 => Value::Bytes(
                (0..1 + self.below(40)).map(|_| self.word().to_be_bytes()[0]).collect(),
            ),
            2 => {
                let characters: Vec<char> =
                    "a Z0,\"\\\n\t\r\u{1}\u{7f}/*&<>\u{e9}\u{6c34}".chars().collect();
                let mut string = || {
                    let length = self.below(12);
                    (0..length).map(|_| characters[self.below(characters.len())]).collect()
                };
                Value::Strings(vec![string(), string(), string()])
            }
            3 if !labels.is_empty() => {
                let label = labels[self.below(labels.len())].clone();
                Value::Cells(vec![label.into(), self.word().into()])
            }
            _ => Value::Cells((0..1 + self.below(20)).map(|_| self.word().into()).collect()),
        }
    }

    /// A node with properties and children; it may refer to nodes made before it.
    fn node(&mut self, name: String, depth: usize, labels: &mut Vec<Label>) -> Node {
        const LETTERS: &[u8] = b"abcxyzABCXYZ";
        const NODE: &[u8] = b"abcXYZ019,._+-";
        const PROPERTY: &[u8] = b"abcXYZ019,._+?#-";
        let mut node = Node::new(name);
        for index in 0..self.below(6) {
            let name = format!("{}{index}", self.name(PROPERTY, PROPERTY, 29));
            let value = self.value(labels);
            node.set(&name, value);
        }
        if depth > 0 && self.below(2) == 0 {
            let label = Label::new(format!("l{}", labels.len()));
            node = node.label(label.clone());
            labels.push(label);
            if self.below(3) == 0 {
                node = node.phandle(u32::try_from(labels.len()).unwrap() * 3);
            }
        }
        for index in 0..if depth < 6 { self.below(5) } else { 0 } {
            let name = format!("{}{index}", self.name(LETTERS, NODE, 28));
            let name = if self.below(2) == 0 { name } else { format!("{name}@{:x}", self.word()) };
            let child = self.node(name, depth + 1, labels);
            node.children_mut().push(child);
        }
        node
    }
}

#[test]
fn random_trees_survive_blob_and_source() {
    let mut random = Xorshift(0x2c0a_0000_2c0e_0000);
    let mut nodes = 0;
    for _ in 0..150 {
        let mut labels = Vec::new();
        let root = random.node(String::new(), 0, &mut labels);
        nodes += labels.len();
        assert_faithful(&root);
    }
    assert!(nodes > 500, "the trees are too small to show anything: {nodes} labels");
}

#[test]
fn names_of_every_length_and_the_deepest_tree_survive() {
    let mut root = Node::new("");
    for length in [1, 2, 30, 31, 32, 33, 64, 200] {
        root = root.child(Node::new("n".repeat(length)).u32(&"p".repeat(length), 1));
    }
    let mut deep = Node::new("deepest");
    for _ in 0..62 {
        deep = Node::new("down").child(deep);
    }
    assert_faithful(&root.child(deep.clone()));
    let error = to_blob(&Node::new("").child(Node::new("down").child(deep))).unwrap_err();
    let BlobError::TooDeep { path } = &error else { panic!("{error:?}") };
    assert!(path.ends_with("/down/deepest"), "{path}");
}

#[test]
fn phandles_are_given_in_tree_order_and_only_where_needed() {
    let root = Node::new("")
        .refs("interrupt-parent", ["gic"])
        .child(Node::new("a").label("unused").u32("phandle", 77))
        .child(Node::new("b").label("clk").u32("linux,phandle", 78))
        .child(Node::new("c").label("gic").refs("clocks", ["clk", "gic", "clk"]));
    let parsed = Parsed::read(&to_blob(&root).unwrap());
    let numbers: Vec<Option<u32>> = parsed.children.iter().map(Parsed::phandle).collect();
    let [first, second] = [FIRST_PHANDLE, FIRST_PHANDLE + 1];
    assert_eq!(numbers, [None, Some(first), Some(second)]);
    assert_eq!(parsed.get("interrupt-parent").unwrap(), second.to_be_bytes());
    let clocks = [first, second, first].map(u32::to_be_bytes).concat();
    assert_eq!(parsed.children[2].get("clocks").unwrap(), clocks);
    assert_eq!(parsed.children[1].get("linux,phandle"), None);
}

#[test]
fn a_phandle_of_its_own_stays_and_is_nobody_elses() {
    let tree = |own: [u32; 2]| {
        Node::new("")
            .refs("all", ["a", "b", "c"])
            .child(Node::new("a").label("a").phandle(own[0]))
            .child(Node::new("b").label("b"))
            .child(Node::new("c").label("c").phandle(own[1]))
    };
    let parsed = Parsed::read(&to_blob(&tree([FIRST_PHANDLE, 7])).unwrap());
    let numbers: Vec<Option<u32>> = parsed.children.iter().map(Parsed::phandle).collect();
    assert_eq!(numbers, [Some(FIRST_PHANDLE), Some(FIRST_PHANDLE + 1), Some(7)]);
    assert_faithful(&tree([FIRST_PHANDLE, 7]));
    for (own, text) in [
        ([7, 7], "device tree: /a and /c both have the phandle 0x7"),
        ([7, 0], "device tree node /c can't have the phandle 0x0"),
        ([u32::MAX, 7], "device tree node /a can't have the phandle 0xffffffff"),
    ] {
        assert_eq!(to_blob(&tree(own)).unwrap_err().to_string(), text);
    }
}

#[test]
fn what_a_blob_cannot_hold_is_an_error_that_names_it() {
    let root = || Node::new("").child(Node::new("soc").label("soc"));
    let many = |name: &str| {
        (0..20)
            .map(|n| Node::at("cpu", n))
            .chain([Node::new(name)])
            .fold(Node::new("cpus"), Node::child)
    };
    assert!(to_blob(&root().child(many("cpu@14"))).is_ok());
    for (tree, text) in [
        (
            root().child(Node::new("dma").refs("clocks", ["clk"])),
            "device tree node /dma: clocks refers to &clk, which no node has",
        ),
        (
            root().child(Node::new("bus").child(Node::new("x").label("soc"))),
            "device tree: /soc and /bus/x both have the label soc",
        ),
        (root().child(Node::new("soc")), "device tree node / has two children named \"soc\""),
        (root().child(many("cpu@5")), "device tree node /cpus has two children named \"cpu@5\""),
        (root().child(Node::new("a b")), "device tree node /a b can't be named \"a b\""),
        (root().child(Node::new("a/b")), "device tree node /a/b can't be named \"a/b\""),
        (root().child(Node::new("")), "device tree node / can't be named \"\""),
        (Node::new("root"), "device tree node / can't be named \"root\""),
        (
            root().child(Node::new("a").flag("b c")),
            "device tree node /a: a property can't be named \"b c\"",
        ),
        (
            root().child(Node::new("a").flag("b\0")),
            "device tree node /a: a property can't be named \"b\\0\"",
        ),
        (
            root().child(Node::new("a").string("s", "x\0y")),
            "device tree node /a: a string of s holds a NUL",
        ),
    ] {
        assert_eq!(to_blob(&tree).unwrap_err().to_string(), text);
    }
}

#[test]
fn the_names_that_are_allowed_are_those_that_can_be_written() {
    for name in [
        "",
        "a",
        "#clock-cells",
        "a?b+c_d.e,f-9",
        "a b",
        "a@b",
        "\u{e9}",
        &"x".repeat(31),
        &"x".repeat(32),
        "1-wire",
        "@1",
        "a@",
        "a@b@c",
        "usb@1,fe/",
    ] {
        let written = to_blob(&Node::new("").flag(name));
        assert_eq!(written.is_ok(), is_property_name(name), "{name:?}");
        let written = to_blob(&Node::new("").child(Node::new(name)));
        assert_eq!(written.is_ok(), is_node_name(name), "{name:?}");
    }
}

#[test]
fn thousands_of_siblings_and_references_take_no_time_to_speak_of() {
    let root = (0..20_000_u64).fold(Node::new(""), |root, n| {
        let clock = Node::at("clock", n).label(format!("c{n}").as_str());
        root.child(clock.refs("clocks", [format!("c{}", 19_999 - n).as_str()]))
    });
    let started = cpu_time();
    let blob = to_blob(&root).unwrap();
    // Quadratic passes over this take minutes.
    assert!((cpu_time() - started).as_secs() < 10);
    assert_eq!(Parsed::read(&blob).children[19_999].phandle(), Some(FIRST_PHANDLE + 19_999));
}
