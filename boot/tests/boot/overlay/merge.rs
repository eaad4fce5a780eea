//! What overlays change.

use boot::help::Help;
use std::collections::BTreeMap;

use boot::fdt::overlay::{Overlay, apply};
use boot::fdt::{Cell, Node, Value, to_blob, to_dts};

use super::judge::{assert_agreed, paths};
use super::{applied, base, overlay};
use crate::support::dtb::Parsed;
use crate::support::dtc::compile;

fn at<'a>(root: &'a Node, path: &str) -> &'a Node {
    path.split('/').filter(|name| !name.is_empty()).fold(root, |node, name| {
        let found = node.children().iter().find(|child| child.name() == name);
        found.unwrap_or_else(|| panic!("no {path} in\n{}", to_dts(root)))
    })
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
    compile(&to_dts(&root));
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
