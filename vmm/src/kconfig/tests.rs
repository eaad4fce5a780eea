use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use boot::fdt::{Node, from_blob};

use super::*;

/// A tree in a directory of its own, gone when dropped.
struct Sources(PathBuf);

impl Sources {
    fn new(files: &[(&str, &str)]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("strait-kconfig-{}-{number}", std::process::id());
        let sources = Self(std::env::temp_dir().join(name));
        for (name, text) in files {
            let path = sources.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        sources
    }

    fn ask(&self, query: &Query) -> Vec<Answer> {
        Tree::read(&self.0).unwrap().ask(query)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A tree with a network controller of two files, a DMA controller on the AMBA bus, and a clock.
fn sources() -> Sources {
    Sources::new(&[
        ("Kconfig", "source \"arch/$(SRCARCH)/Kconfig\"\nsource \"drivers/Kconfig\"\n"),
        (
            "arch/arm64/Kconfig",
            "config ARM64\n\tdef_bool y\n\tselect ARM_AMBA\n\tselect HAS_IOMEM\n\
             config ARCH_ZYNQMP\n\tbool \"ZynqMP\"\n\thelp\n\t  config NOT_ONE\n\n\t  depends on X\n\
             config HAS_IOMEM\n\tbool\n\
             config ARM_AMBA\n\tbool\n",
        ),
        (
            "drivers/Kconfig",
            "menu \"Drivers\"\n\tdepends on HAS_IOMEM\n\
             config DMADEVICES\n\tbool \"DMA\"\n\
             if DMADEVICES\n\
             config PL330_DMA\n\ttristate \"PL330\"\n\tselect DMA_ENGINE\n\tdepends on ARM_AMBA\n\
             config DMA_ENGINE\n\tbool\n\
             endif\n\
             config PHYLIB\n\ttristate\n\
             config SOME_PHY\n\ttristate \"a PHY\"\n\tselect PHYLIB\n\
             source \"drivers/net/Kconfig\"\nendmenu\n",
        ),
        (
            "drivers/net/Kconfig",
            "menuconfig NETDEVICES\n\tbool \"net\"\n\tdefault y if UML\n\
             if NETDEVICES\n\
             config MACB\n\ttristate \"GEM\" if ARM64\n\
             \tdepends on COMPILE_TEST || \\\n\t\t(ARCH_ZYNQMP && !S390 && MISSING!=y)\n\
             \tdepends on PHYLIB && (ARM || ARM64=y)\n\
             \tselect CRC32 if !NO_CRC\n\
             config MACB_PTP\n\tbool \"PTP\"\n\tdepends on MACB\n\
             endif\n",
        ),
        ("drivers/Makefile", "obj-y += dma/ net/\nobj-$(CONFIG_COMMON_CLK) += clk/\n"),
        ("drivers/dma/Makefile", "obj-$(CONFIG_PL330_DMA) += pl330.o # here\n"),
        (
            "drivers/dma/pl330.c",
            "static const struct amba_id ids[] = {\n\t{\n\t\t.id\t= 0x00041330,\n\t\t.mask\t= 0x000fffff,\n\t},",
        ),
        (
            "drivers/net/Makefile",
            "macb-y\t:= macb_main.o \\\n\tother.o\nmacb-$(CONFIG_MACB_PTP) += macb_ptp.o\n\
             obj-$(CONFIG_MACB) += macb.o\n",
        ),
        (
            "drivers/net/macb_main.c",
            "\t{ .compatible = \"cdns,gem\" },\n\t.of_match_table = ids,\n",
        ),
        ("drivers/net/macb_ptp.c", "\t.compatible=\"cdns,ptp\", .of_match_table"),
        (
            "drivers/net/other.c",
            "of_device_is_compatible(np, \"cdns,gem\"); { .compatible = \"cdns,gem\" },",
        ),
        ("drivers/clk/Makefile", "obj-y += clk.o\n"),
        (
            "drivers/clk/clk.c",
            "CLK_OF_DECLARE(fixed, \"fixed-clock\", setup);\n\
             OF_EARLYCON_DECLARE(pl011, \"arm,pl011\", early);\n",
        ),
    ])
}

fn compatible(strings: &[&str]) -> Query {
    let compatible = strings.iter().map(|string| (*string).to_owned()).collect();
    Query { compatible, ..Query::default() }
}

#[test]
fn a_driver_is_found_with_what_it_needs() {
    let answers = sources().ask(&compatible(&["cdns,zynqmp-gem", "cdns,gem"]));
    let expected = Answer {
        matched: "cdns,gem".into(),
        file: "drivers/net/macb_main.c".into(),
        option: Some("CONFIG_MACB".into()),
        options: ["NETDEVICES", "ARCH_ZYNQMP", "SOME_PHY", "MACB"]
            .map(|symbol| format!("CONFIG_{symbol}"))
            .to_vec(),
        selects: vec!["CONFIG_CRC32".into()],
    };
    assert_eq!(answers, [expected]);
    let options = |strings| sources().ask(&compatible(strings)).pop().unwrap().options;
    assert_eq!(options(&["cdns,ptp"]).last().unwrap(), "CONFIG_MACB_PTP");
    assert!(options(&["cdns,ptp"]).contains(&"CONFIG_MACB".to_owned()));
    assert_eq!(sources().ask(&compatible(&["arm,pl011", "not,known"])), []);
}

#[test]
fn amba_ids_modules_and_declared_drivers_are_found() {
    let tree = sources();
    let query = Query { amba_id: Some(0x0024_1330), ..Query::default() };
    let [pl330] = &tree.ask(&query)[..] else { panic!() };
    assert_eq!(pl330.options, ["CONFIG_DMADEVICES", "CONFIG_PL330_DMA"]);
    assert_eq!(pl330.selects, ["CONFIG_DMA_ENGINE"]);
    let query = Query { modules: vec!["macb".into()], ..Query::default() };
    assert_eq!(tree.ask(&query)[0].option.as_deref(), Some("CONFIG_MACB"));
    // Of a directory that an option enters, and that has no other.
    let [clock] = &tree.ask(&compatible(&["fixed-clock"]))[..] else { panic!() };
    assert_eq!(clock.option.as_deref(), Some("CONFIG_COMMON_CLK"));
}

#[test]
fn the_alternative_that_needs_least_is_taken() {
    let exists = |name: &str| name != "X86";
    for (text, expected) in [
        ("A && B", Some("A B")),
        ("EXTCON || !EXTCON", Some("")),
        ("AGP || AGP=n", Some("")),
        ("X86 || (A && B)", Some("A B")),
        ("X86 && A", None),
        ("COMPILE_TEST", None),
        ("A = y && (B!=n || C) # said", Some("A B")),
        ("\"$(CC)\" = \"gcc\" || $(success,a b)", Some("")),
        ("((A", Some("A")),
        ("", None),
    ] {
        let found = expression::needs(text, &exists).map(|needed| needed.join(" "));
        assert_eq!(found.as_deref(), expected, "{text}");
    }
}

#[test]
fn what_is_no_tree_is_refused() {
    let empty = Sources::new(&[("Kconfig", "source \"../../etc/passwd\"\nsource \"Kconfig\"\n")]);
    assert!(Tree::read(&empty.0).is_err());
    assert!(Tree::read(&empty.0.join("nowhere")).is_err());
    let odd = Sources::new(&[
        (
            "Kconfig",
            "endif\nendmenu\ndepends on (\nconfig A\n\tbool \"a\"\n\tdepends on ((((! || A\n",
        ),
        ("drivers/Makefile", "=\na-y := a.o\nb-y := a.o b.o\na-y += b.o\n"),
        ("drivers/a.c", ".compatible = \"x\" .compatible = \" .compatible"),
    ]);
    assert_eq!(odd.ask(&compatible(&["x"])), []);
}

/// The devices of many boards, in Linux' own sources: `STRAIT_LINUX` names them, `STRAIT_BOARDS` the
/// boards' compiled trees.
#[test]
#[ignore = "reads a tree of Linux' sources"]
fn devices_of_many_boards_have_their_options() {
    let directory = |name| PathBuf::from(std::env::var_os(name).unwrap());
    let tree = Tree::read(&directory("STRAIT_LINUX")).unwrap();
    let (mut devices, mut known) = (0_u32, 0_u32);
    let mut unknown: BTreeMap<String, u32> = BTreeMap::new();
    for entry in fs::read_dir(directory("STRAIT_BOARDS")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ending| ending != "dtb") {
            continue;
        }
        let root = from_blob(&fs::read(path).unwrap()).unwrap();
        let mut pending = vec![&root];
        while let Some(node) = pending.pop() {
            pending.extend(node.children());
            let interrupts = ["interrupts", "interrupts-extended"];
            if node.get("reg").is_none() || interrupts.iter().all(|name| node.get(name).is_none()) {
                continue;
            }
            let query = query_of(node);
            devices += 1;
            if tree.ask(&query).is_empty() {
                *unknown.entry(query.compatible.join(" ")).or_default() += 1;
            } else {
                known += 1;
            }
        }
    }
    let mut unknown: Vec<_> = unknown.into_iter().collect();
    unknown.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let most = &unknown[..unknown.len().min(40)];
    let said = format!("{known} of {devices} devices get an answer; most of the others: {most:?}");
    // Not by print!, which the crate's lints refuse.
    std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
    assert!(known * 10 > devices * 8);
}

fn query_of(node: &Node) -> Query {
    let bytes = node.get("compatible").and_then(|value| value.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let compatible: Vec<String> =
        text.split('\0').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    Query::of_compatible(compatible)
}
