//! What is no overlay, or lies, is an error.

use boot::fdt::to_blob;
use boot::help::Help;

use super::{applied, overlay};
use crate::support::dtc::compile;

#[test]
fn what_is_no_overlay_is_refused_with_what_to_do() {
    let fragmentless = compile("/dts-v1/; / { a { b; }; };");
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
        compile(&format!(
            r#"/dts-v1/; / {{ fragment@0 {{ target-path = "/chosen";
               __overlay__ {{ a = <5 6>; }}; }}; stray {{ phandle = <9>; }}; {fixups} }};"#
        ))
    };
    for (fixups, text) in [
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:a:5"; };"#, "is invalid"),
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:a:8"; };"#, "is invalid"),
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:b:0"; };"#, "is invalid"),
        (r#"__fixups__ { gic = "/fragment@1:a:0"; };"#, "is invalid"),
        (r#"__fixups__ { gic = "nonsense"; };"#, "is invalid"),
        (r#"__fixups__ { gic = <1 2>; };"#, "is invalid"),
        (r#"__fixups__ { gic = "/fragment@0/__overlay__:a:99999999999"; };"#, "is invalid"),
        ("__local_fixups__ { fragment@0 { __overlay__ { a = <4>; }; }; };", "phandle 0x6"),
        ("__local_fixups__ { fragment@0 { __overlay__ { b = <0>; }; }; };", "is invalid"),
        ("__local_fixups__ { fragment@0 { __overlay__ { a = [00]; }; }; };", "is invalid"),
        ("__local_fixups__ { fragment@7 { __overlay__ { a = <0>; }; }; };", "is invalid"),
    ] {
        let result = applied(&[&with(fixups)]);
        match result {
            // Five bytes in is within the value: unaligned, but a place.
            Ok(_) => assert!(fixups.contains(":a:5"), "{fixups}"),
            Err(error) => assert!(error.to_string().contains(text), "{fixups}: {error}"),
        }
    }
    // A node outside of the fragments never gets into the tree.
    let stray = compile(
        r#"/dts-v1/; / { fragment@0 { target-path = "/chosen"; __overlay__ { a = <9>; }; };
           stray { phandle = <9>; };
           __local_fixups__ { fragment@0 { __overlay__ { a = <0>; }; }; }; };"#,
    );
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
