//! What a person says.

use super::*;

#[test]
fn options_replace_what_the_host_and_the_binding_say() {
    let fake = dmac(b"arm,pl330\0", &[("child/label", b"x\0"), ("child/odd", b"y\0")]);
    let options = NodeOptions {
        name: Some("mine".to_owned()),
        compatible: vec!["vendor,mine".to_owned()],
        clock_rates: vec![("0".to_owned(), 1)],
        drop: vec!["#dma-cells".to_owned(), "child/odd".to_owned()],
        ..NodeOptions::default()
    };
    let mut builder = unrefined(&fake, "dma@2c0a0000", &options);
    // The binding's names come before: the clock has one by now.
    (bindings::find(&builder.compatible).unwrap().refine)(&mut builder);
    let error = builder.apply_options(&options).unwrap_err();
    assert_eq!(error.help("1.dev"), "it has these: apb_pclk");
    let options = NodeOptions { clock_rates: vec![("apb_pclk".to_owned(), 1)], ..options };
    builder.apply_options(&options).unwrap();
    builder.check().unwrap();
    let nodes = builder.build(ONE, &[]);
    assert_eq!(nodes.device.name(), "mine@c000000");
    assert_eq!(nodes.device.get("compatible").cloned(), strings(&["vendor,mine"]));
    assert_eq!(nodes.clocks[0].get("clock-frequency").cloned(), numbers(&[1]));
    let reasons: Vec<_> = ["#dma-cells", "child/odd"].map(|path| disposition(&nodes, path)).into();
    let expected =
        ["drop=#dma-cells", "drop=child/odd"].map(|why| Disposition::Dropped(why.into()));
    assert_eq!(reasons, expected.iter().collect::<Vec<_>>());
    assert_eq!(disposition(&nodes, "child/label"), &Disposition::Kept);
}

#[test]
fn options_can_only_change_what_is_there() {
    let fake = dmac(b"arm,pl330\0", &[]);
    let none = NodeOptions::default();
    let cases = [
        NodeOptions { drop: vec!["iommus".to_owned()], ..none.clone() },
        NodeOptions { drop: vec!["child/label".to_owned()], ..none.clone() },
        NodeOptions { drop: vec![String::new()], ..none.clone() },
        NodeOptions { name: Some("a@1".to_owned()), ..none.clone() },
        NodeOptions { name: Some(String::new()), ..none.clone() },
        NodeOptions { clock_rates: vec![("core".to_owned(), 1)], ..none },
    ];
    for options in cases {
        let mut builder = builder(&fake, "dma@2c0a0000");
        let result = builder.apply_options(&options).and_then(|()| builder.check());
        assert!(result.is_err_and(|error| !error.help("1.dev").is_empty()), "{options:?}");
    }
}
