//! The figures as a person reads them.

use std::fmt::Write;

use super::{Costs, Dma, Figure, Report, figure};

/// What strait may cost at most, and what it should cost one day.
struct Budget {
    what: &'static str,
    limit: f64,
    goal: Option<f64>,
    unit: &'static str,
    /// The figure in the budget's unit.
    of: fn(&Costs) -> Option<f64>,
}

const BUDGETS: [Budget; 5] = [
    Budget {
        what: "power-off: wall",
        limit: 1.3,
        goal: Some(1.15),
        unit: "ms",
        of: |costs| Some(float(costs.power_off_wall) / 1e6),
    },
    Budget {
        what: "largest RSS",
        limit: 2.2,
        goal: None,
        unit: "MB",
        of: |costs| Some(float(costs.power_off_rss) * 1024.0 / 1e6),
    },
    // Of the model's kernel: 0.98 of what kvmtool takes.
    Budget {
        what: "kernel+initrd: wall",
        limit: 34.3,
        goal: None,
        unit: "ms",
        of: |costs| Some(float(costs.boot_wall) / 1e6),
    },
    // What kvmtool takes on the same kernel.
    Budget {
        what: "MMIO exit",
        limit: 5213.0,
        goal: Some(4850.0),
        unit: "instr",
        of: |costs| costs.mmio_exit.map(float),
    },
    Budget {
        what: "binary",
        limit: 2.8,
        goal: None,
        unit: "MB",
        of: |costs| Some(float(costs.binary) / 1e6),
    },
];

/// What a guest's transfers per second must be at least, relative to the host's own.
const DMA_RATIO: f64 = 0.98;

/// Figures are far below 2^53, where floats stop being exact.
pub(super) fn float(figure: u64) -> f64 {
    f64::from(u32::try_from(figure).unwrap_or(u32::MAX))
}

/// Whether strait costs more than it may.
pub(super) fn missed(report: &Report) -> bool {
    let strait = report.vmms.first();
    let costs = strait.is_some_and(|costs| BUDGETS.iter().any(|budget| budget.is_missed(costs)));
    costs || is_slow(&report.dma) || report.devices.iter().any(Figure::is_missed)
}

/// Whether DMA is slower than it may be; nonsense is.
fn is_slow(dma: &Dma) -> bool {
    dma.ratio().is_nan() || dma.ratio() < DMA_RATIO
}

impl Budget {
    fn is_missed(&self, costs: &Costs) -> bool {
        (self.of)(costs).is_some_and(|figure| figure > self.limit)
    }

    fn cell(&self, figure: Option<f64>) -> String {
        match figure {
            Some(figure) if self.unit == "instr" => format!("{figure:.0}"),
            Some(figure) => format!("{figure:.2} {}", self.unit),
            None => "-".into(),
        }
    }
}

/// The table: a row per VMM, then the budgets and whether strait keeps them.
pub(super) fn render(report: &Report) -> String {
    let mut rows = vec![row("", BUDGETS.iter().map(|budget| budget.what.to_owned()))];
    for costs in &report.vmms {
        rows.push(row(&costs.name, BUDGETS.iter().map(|b| b.cell((b.of)(costs)))));
    }
    rows.push(row("strait must", BUDGETS.iter().map(|b| format!("≤ {}", b.cell(Some(b.limit))))));
    rows.push(row(
        "and should",
        BUDGETS
            .iter()
            .map(|b| b.goal.map_or("-".into(), |goal| format!("≤ {}", b.cell(Some(goal))))),
    ));
    if let Some(strait) = report.vmms.first() {
        let verdict = |b: &Budget| if b.is_missed(strait) { "MISSED" } else { "kept" };
        rows.push(row("", BUDGETS.iter().map(|b| verdict(b).to_owned())));
    }
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max();
            let width = width.unwrap_or(0);
            let _ = if column == 0 {
                write!(text, "{cell:<width$}")
            } else {
                write!(text, "  {cell:>width$}")
            };
        }
        text.push('\n');
    }
    let Dma { native, guest } = report.dma;
    let verdict = if is_slow(&report.dma) { "MISSED" } else { "kept" };
    let _ = writeln!(
        text,
        "\n{}\nDMA of a PL330, transfers a second and channel: {native:.0} by the host's own driver, \
         {guest:.0} by a\nguest's: {:.3} times as many, must be ≥ {DMA_RATIO}: {verdict}\n\n\
         One instruction is one nanosecond. A hypercall that KVM answers itself takes {}.",
        figure::render(&report.devices),
        report.dma.ratio(),
        report.hypercall
    );
    text
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(power_off_wall: u64) -> Report {
        let strait = Costs {
            name: "strait".into(),
            power_off_wall,
            power_off_cpu: 1_000_000,
            power_off_rss: 2000,
            boot_wall: 33_000_000,
            mmio_exit: Some(5000),
            binary: 1_500_000,
        };
        let peer =
            Costs { name: "other".into(), mmio_exit: None, binary: 9_000_000, ..strait.clone() };
        Report {
            vmms: vec![strait, peer],
            hypercall: 1061,
            dma: Dma { native: 75e3, guest: 74e3 },
            devices: Vec::new(),
        }
    }

    #[test]
    fn only_straits_own_figures_are_held_against_the_budgets() {
        assert!(!missed(&report(1_299_999)));
        assert!(missed(&report(1_300_001)));
    }

    #[test]
    fn dma_slower_than_the_host_s_by_more_than_two_percent_is_a_miss() {
        for (native, guest, misses) in [
            (1000.0, 980.0, false),
            (1000.0, 1020.0, false),
            (1000.0, 979.0, true),
            (0.0, 0.0, true),
        ] {
            let report = Report { dma: Dma { native, guest }, ..report(1_200_000) };
            assert_eq!(missed(&report), misses, "{native} {guest}");
            assert_eq!(render(&report).contains("MISSED"), misses, "{native} {guest}");
        }
    }

    #[test]
    fn a_missed_budget_is_named_in_the_table() {
        assert!(render(&report(1_300_001)).contains("MISSED"));
        let kept = render(&report(1_200_000));
        assert!(
            !kept.contains("MISSED") && kept.contains("1.20 ms") && kept.contains('-'),
            "{kept}"
        );
    }
}
