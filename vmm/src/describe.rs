//! The plan as a person reads it (`--dry-run`).

use std::fmt::{self, Write};
use std::ops::Range;

use arch::layout;
use boot::fdt::{self, Node};
use devices::irq::Trigger;

use crate::assigned::Assigned;
use crate::build::Core;
use crate::cli::{ConsoleKind, Size};
use crate::plan::MachinePlan;

/// Describes the machine that would run.
pub fn describe(plan: &MachinePlan, core: &Core, tree: &Node) -> String {
    let mut text = String::new();
    // Writing into a String can't fail.
    let _ = write(&mut text, plan, core, tree);
    text
}

fn write(text: &mut String, plan: &MachinePlan, core: &Core, tree: &Node) -> fmt::Result {
    let pmu = if core.pmu { ", PMU" } else { "" };
    writeln!(
        text,
        "machine: {} vCPU(s), {}{pmu}, {} of RAM",
        plan.cpus,
        core.gic.version(),
        Size::from(plan.ram.size)
    )?;
    writeln!(text, "kernel: {}, {:?}", plan.kernel.name(), plan.kernel.packaging())?;
    writeln!(text, "command line: {}", plan.cmdline.as_str())?;

    writeln!(text, "\nmemory map (guest physical addresses):")?;
    let mut map = memory_map(plan, core);
    map.sort_by_key(|(range, _)| range.start);
    for (Range { start, end }, what) in map {
        writeln!(text, "  {start:#011x}-{:#011x}  {what}", end.saturating_sub(1))?;
    }

    writeln!(text, "\ninterrupts:")?;
    if plan.console == ConsoleKind::Stdio {
        writeln!(text, "  SPI {:<3}  serial, edge", layout::spi::SERIAL)?;
    }
    for device in plan.assigned.devices() {
        for (index, (spi, trigger)) in device.irqs().enumerate() {
            let how = match trigger {
                Trigger::Edge => "edge",
                Trigger::Level => "level, resampled",
            };
            writeln!(text, "  SPI {:<3}  {} interrupt {index}, {how}", spi.0, device.name())?;
        }
    }
    write_dropped(text, &plan.assigned)?;
    write!(text, "\ndevice tree:\n{}", fdt::to_dts(tree))
}

fn memory_map(plan: &MachinePlan, core: &Core) -> Vec<(Range<u64>, String)> {
    let mut map: Vec<(Range<u64>, String)> = core
        .gic
        .ranges()
        .into_iter()
        .map(|(what, range)| (range, what.to_owned()))
        .chain([
            (layout::RTC, "RTC (PL031)".to_owned()),
            (layout::PANIC, "panic device (pvpanic)".to_owned()),
        ])
        .collect();
    if plan.console == ConsoleKind::Stdio {
        map.push((layout::SERIAL, "serial console (ns16550a)".to_owned()));
    }
    for device in plan.assigned.devices() {
        for (index, (range, mapped)) in device.regions().enumerate() {
            let how = if mapped { "mapped" } else { "trapped" };
            map.push((range, format!("{} region {index}, {how}", device.name())));
        }
    }
    map.push((plan.ram.base..plan.ram.end(), "RAM".to_owned()));
    let boot = &plan.boot;
    map.push((boot.kernel.load..boot.kernel.end, "  kernel".to_owned()));
    map.push((boot.dtb..boot.dtb + boot::layout::DTB_MAX, "  device tree, at most".to_owned()));
    map.extend(boot.initrd.clone().map(|range| (range, "  initrd".to_owned())));
    map
}

fn write_dropped(text: &mut String, assigned: &Assigned) -> fmt::Result {
    for device in assigned.devices().iter().filter(|device| !device.dropped().is_empty()) {
        writeln!(text, "\nleft out of {}'s node:", device.name())?;
        for dropped in device.dropped() {
            writeln!(text, "  {}: {}", dropped.name, dropped.reason)?;
        }
    }
    Ok(())
}
