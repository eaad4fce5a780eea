//! What a guest is told of a device: the plan accounts for it, a person changes it.

use std::fs;

use serde_json::Value;
use tests::harness::{
    Board, DmaTest, Failure, Host, Launch, PLATFORM_DMA, TestResult, compile_overlay, overlay,
};
use tests::setup::workspace;

const NAME: &str = PLATFORM_DMA[0];

/// The plan of a run with these arguments.
fn plan(host: &Host, arguments: &str) -> Result<Value, Failure> {
    let run = format!("strait run --kernel /k/model --dry-run --json {arguments}");
    let text = host.sh(&run)?;
    Ok(serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}:\n{text}")))
}

/// What strait refuses these arguments with.
fn refusal(host: &Host, arguments: &str) -> Result<String, Failure> {
    let answer = host.run(&format!("strait run --kernel /k/model --dry-run {arguments}"))?;
    assert_ne!(answer.status, 0, "{arguments}");
    Ok(answer.errors)
}

#[test]
fn the_plan_lists_every_host_property_once() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(NAME)?;
    let plan = plan(&host, &format!("--vfio-platform {NAME}"))?;
    let device = &plan["devices"][0];
    assert_eq!(device["name"], NAME);
    assert_eq!(device["binding"], "PL330");
    assert_eq!(device["regions"][0]["access"], "mapped");
    assert_eq!(device["interrupts"].as_array().map(Vec::len), Some(9));
    assert_eq!(device["interrupts"][8]["trigger"], "level");
    let node = format!("/sys/bus/platform/devices/{NAME}/of_node");
    let mut expected: Vec<String> =
        host.sh(&format!("ls {node}"))?.lines().map(str::to_owned).collect();
    expected.retain(|name| name != "name" && name != "phandle");
    let properties = device["properties"].as_array().expect("a list");
    let of_fate = |fates: &[&str]| -> Vec<String> {
        let fitting =
            properties.iter().filter(|p| fates.iter().any(|fate| p["disposition"] == *fate));
        let mut paths: Vec<String> =
            fitting.map(|p| p["path"].as_str().unwrap_or_default().to_owned()).collect();
        paths.sort();
        paths
    };
    assert_eq!(of_fate(&["kept", "rewritten", "dropped"]), expected);
    assert_eq!(of_fate(&["dropped"]), ["iommus"]);
    let dropped = properties.iter().filter(|p| p["disposition"] == "dropped");
    assert!(dropped.into_iter().all(|p| p["reason"].as_str().is_some_and(|r| !r.is_empty())));
    let text =
        host.sh(&format!("strait run --kernel /k/model --dry-run --vfio-platform {NAME}"))?;
    for wanted in ["2c0a0000.dma, a PL330:", "dropped   iommus: the host's IOMMU", "clocks {"] {
        assert!(text.contains(wanted), "no {wanted} in:\n{text}");
    }
    Ok(())
}

#[test]
fn options_set_address_name_alias_and_clock_rate() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(NAME)?;
    let options =
        "addr=host,node-name=dmac,alias=dma7,clock-rate=apb_pclk:1000000,drop=dma-coherent";
    let mut guest = host.guest(&format!("--vfio-platform {NAME},{options}"))?;
    let node = "/proc/device-tree/dmac@2c0a0000";
    assert_eq!(guest.run(&format!("[ -e {node}/dma-coherent ]"))?.0, 1);
    for (alias, path) in
        [("serial0", "/serial@9000000"), ("rtc0", "/rtc@9010000"), ("dma7", "/dmac@2c0a0000")]
    {
        let found = guest.sh(&format!("tr -d '\\0' </proc/device-tree/aliases/{alias}"))?;
        assert_eq!(found.trim(), path, "{alias}");
        guest.sh(&format!("[ -d /proc/device-tree{path} ]"))?;
    }
    let rate = guest.sh("cat /sys/kernel/debug/clk/apb_pclk.0/clk_rate")?;
    assert_eq!(rate.trim(), "1000000");
    assert!(guest.interrupts()?.of("2c0a0000.dmac").len() > 8);
    guest.sh("dmesg | grep 'Loaded driver for PL330'")?;
    assert_eq!(guest.power_off()?, 0);
    Ok(())
}

#[test]
fn overlapping_addresses_are_refused_naming_both_owners() -> TestResult {
    let host = Board::new().boot()?;
    PLATFORM_DMA.iter().try_for_each(|name| host.bind(name))?;
    let [first, second] = PLATFORM_DMA;
    let cases = [
        (format!("--vfio-platform {first},addr=0x40000000"), "RAM is"),
        (format!("--vfio-platform {first},addr=0x8000000"), "the interrupt controller is"),
        (format!("--vfio-platform {first},addr=0x9000000"), "the serial console is"),
        (
            format!("--vfio-platform {first},addr=0x2c0b0000 --vfio-platform {second},addr=host"),
            "where region 0 of 2c0a0000.dma is, at 0x2c0b0000-0x2c0b0fff",
        ),
        (format!("--vfio-platform {first},addr=0x2c0a0100"), "no multiple of the host's pages"),
        (format!("--vfio-platform {first},addr=auto:auto"), "has 1 regions"),
    ];
    for (arguments, expected) in cases {
        let errors = refusal(&host, &arguments)?;
        assert!(errors.contains(expected) && errors.contains("dma"), "{arguments}:\n{errors}");
        assert!(errors.contains("  help: "), "{errors}");
    }
    // An address that no page begins at is no obstacle where nothing is mapped.
    plan(&host, &format!("--vfio-platform {first},addr=0x2c0a0100,mmap=off"))?;
    Ok(())
}

#[test]
fn unfitting_device_options_are_refused_naming_the_choices() -> TestResult {
    let host = Board::new().boot()?;
    host.bind(NAME)?;
    for (options, expected) in [
        ("drop=phys", "no phys to drop"),
        ("clock-rate=core:1", "it has these: apb_pclk"),
        ("node-name=a@1", "can't be named"),
        ("alias=serial0", "/serial@9000000 has it"),
        ("alias=DMA", "an alias can't be"),
        ("colour=red", "addr, quiesce, mmap, node-name, scmi, clock-rate"),
    ] {
        let errors = refusal(&host, &format!("--vfio-platform {NAME},{options}"))?;
        assert!(errors.contains(expected), "{options}:\n{errors}");
    }
    // A name has commas as some boards' do: what is behind one is no option for that.
    let errors = refusal(&host, "--vfio-platform 2c0b0000.qcom,dma,mmap=off")?;
    assert!(errors.contains("2c0b0000.qcom,dma"), "{errors}");
    assert!(!errors.contains("option"), "{errors}");
    let answer = host.run("strait run --kernel /k/model --json")?;
    assert_eq!(answer.status, 2);
    Ok(())
}

#[test]
fn overlays_change_the_guest_tree() -> TestResult {
    let change = overlay(
        "&_2c0a0000_dma { clocks = <&osc>; interrupt-parent = <&gic>; label = \"mine\"; };
         &clocks { osc: osc { compatible = \"fixed-clock\"; #clock-cells = <0>;
                              clock-frequency = <12345678>; }; };
         &{/chosen} { strait,test = \"first\"; };",
    );
    let more = overlay("&osc { clock-accuracy = <50>; }; &{/chosen} { strait,test = \"last\"; };");
    let deletes = overlay("&_2c0a0000_dma { /delete-property/ dma-coherent; };");
    let example = workspace::root().join("resources/examples/clock.dtso");
    let example = compile_overlay(&fs::read_to_string(example).expect("an example"));
    let board = Board::new()
        .file("tmp/clock.dtbo", example)
        .file("tmp/none.dtbo", deletes)
        .file("tmp/a.dtbo", change)
        .file("tmp/b.dtbo", more);
    let host = board.file("tmp/source.dts", "/dts-v1/; /plugin/;").boot()?;
    host.bind(NAME)?;
    let overlays = "--dtb-overlay /tmp/a.dtbo --dtb-overlay /tmp/b.dtbo";
    let mut guest = host.guest(&format!("--vfio-platform {NAME} {overlays}"))?;
    let text = |guest: &mut tests::harness::Guest, path: &str| {
        guest.sh(&format!("tr '\\0' ' ' </proc/device-tree/{path}"))
    };
    assert_eq!(text(&mut guest, "chosen/strait,test")?.trim(), "last");
    assert_eq!(text(&mut guest, "dma-controller@c000000/label")?.trim(), "mine");
    assert_eq!(guest.sh("cat /sys/kernel/debug/clk/osc/clk_rate")?.trim(), "12345678");
    assert_eq!(guest.sh("cat /sys/kernel/debug/clk/osc/clk_accuracy")?.trim(), "50");
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    // What dtc has lost of one is said, with what does it.
    let answer = host.run(&format!(
        "strait run --kernel /k/model --dry-run --vfio-platform {NAME} --dtb-overlay /tmp/none.dtbo"
    ))?;
    assert_eq!(answer.status, 0, "{}", answer.errors);
    for wanted in ["/tmp/none.dtbo changes nothing of &_2c0a0000_dma", "drop="] {
        assert!(answer.errors.contains(wanted), "{}", answer.errors);
    }
    let plan = host.sh(&format!(
        "strait run --kernel /k/model --dry-run --vfio-platform {NAME} --dtb-overlay /tmp/clock.dtbo"
    ))?;
    assert!(plan.contains("clock-frequency = <0xb71b00>;"), "no 12 MHz in:\n{plan}");
    // One that doesn't fit is refused, whatever is wrong with it.
    for (arguments, expected) in [
        ("--dtb-overlay /tmp/b.dtbo", "it refers to &osc"),
        ("--dtb-overlay /tmp/source.dts", "dtc -@ -I dts -O dtb"),
        ("--dtb-overlay /tmp/none", "dtb-overlay /tmp/none doesn't exist"),
        ("--dtb-overlay /tmp", "is a directory"),
    ] {
        let errors = refusal(&host, arguments)?;
        assert!(errors.contains(expected), "{arguments}:\n{errors}");
    }
    Ok(())
}

#[test]
fn dma_ranges_of_host_buses_are_enforced() -> TestResult {
    let host = Board::new().boot()?;
    PLATFORM_DMA.iter().try_for_each(|name| host.bind(name))?;
    // The host's tree, on other buses.
    let base = "/sys/firmware/devicetree/base";
    host.sh(&format!("cp -r {base} /tmp/base && mount -o bind /tmp/base {base}"))?;
    // Of the root bus: address, address above and size of two cells each.
    let limit = |start: u32, size: u32| {
        let entry = [0, start, 0, start, 0, size].map(u32::to_be_bytes);
        let bytes: String =
            entry.as_flattened().iter().map(|byte| format!("\\x{byte:02x}")).collect();
        host.sh(&format!("printf '{bytes}' >/tmp/base/dma-ranges"))
    };
    // None of RAM, and too little of it.
    limit(0, 0x4000_0000)?;
    let device = format!("--vfio-platform {NAME}");
    let errors = refusal(&host, &device)?;
    let expected = "is out of reach: the bus / lets 2c0a0000.dma address 0x0-0x3fffffff only";
    assert!(errors.contains(expected), "{errors}");
    limit(0, 0x4800_0000)?;
    let errors = refusal(&host, &device)?;
    assert!(errors.contains("less memory: --memory 128M"), "{errors}");
    host.sh(&format!("strait run --kernel /k/model --dry-run {device} --memory 128M"))?;
    // A half: what is in the other is copied, and arrives.
    limit(0, 0x5000_0000)?;
    let mut guest = host.launch(&Launch::model().memory("512M").with(&device))?;
    let bus = "/proc/device-tree/bus-2c0a0000_dma";
    let ranges = guest.sh(&format!("hexdump -ve '4/1 \"%02x\" \" \"' {bus}/dma-ranges"))?;
    assert_eq!(ranges.trim(), "00000000 00000000 00000000 00000000 00000000 50000000");
    guest.sh(&format!("[ -e {bus}/dma-controller@c000000/reg ]"))?;
    guest.sh("dmesg | grep -i 'software IO TLB: mapped'")?;
    DmaTest::default().pass(&mut guest)?;
    assert_eq!(guest.power_off()?, 0);
    // An interrupt that two devices have.
    let [first, second] = PLATFORM_DMA.map(|name| format!("/sys/bus/platform/devices/{name}"));
    host.sh(&format!("cat {first}/of_node/interrupts >{second}/of_node/interrupts"))?;
    let both = PLATFORM_DMA.map(|name| format!("--vfio-platform {name}")).join(" ");
    let errors = refusal(&host, &both)?;
    assert!(errors.contains("2c0b0000.dma can't be assigned beside 2c0a0000.dma"), "{errors}");
    Ok(())
}
