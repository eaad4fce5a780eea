//! The figures as a person reads them.

use std::fmt::Write;

use super::{Costs, Report};

/// What strait may cost at most.
struct Budget {
    what: &'static str,
    limit: f64,
    unit: &'static str,
    /// The figure in the budget's unit.
    of: fn(&Costs) -> Option<f64>,
}

const BUDGETS: [Budget; 5] = [
    Budget {
        what: "power-off: CPU",
        limit: 1.3,
        unit: "ms",
        of: |costs| Some(float(costs.power_off_cpu) / 1e6),
    },
    Budget {
        what: "largest RSS",
        limit: 3.5,
        unit: "MB",
        of: |costs| Some(float(costs.power_off_rss) * 1024.0 / 1e6),
    },
    // Of the model's kernel, which leaves out tracing. With it, as in the kernel on which other VMMs
    // were measured (kvmtool: 141.3 ms), a boot takes 107 ms longer.
    Budget {
        what: "kernel+initrd: wall",
        limit: 36.0,
        unit: "ms",
        of: |costs| Some(float(costs.boot_wall) / 1e6),
    },
    // What kvmtool takes on the same kernel.
    Budget {
        what: "MMIO exit",
        limit: 5213.0,
        unit: "instr",
        of: |costs| costs.mmio_exit.map(float),
    },
    Budget { what: "binary", limit: 2.0, unit: "MB", of: |costs| Some(float(costs.binary) / 1e6) },
];

/// Figures are far below 2^53, where floats stop being exact.
fn float(figure: u64) -> f64 {
    f64::from(u32::try_from(figure).unwrap_or(u32::MAX))
}

/// Whether strait costs more than it may.
pub(super) fn missed(report: &Report) -> bool {
    report.vmms.first().is_some_and(|strait| BUDGETS.iter().any(|budget| budget.is_missed(strait)))
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
    let _ = writeln!(
        text,
        "\nOne instruction is one nanosecond. A hypercall that KVM answers itself takes {}; DMA of an\n\
         assigned PL330 in a guest is {:.2} times as fast as by the host's own driver (by the clock on\n\
         the wall, so it varies).",
        report.hypercall, report.dma_throughput
    );
    text
}

fn row(name: &str, cells: impl Iterator<Item = String>) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(cells).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(power_off_cpu: u64) -> Report {
        let strait = Costs {
            name: "strait".into(),
            power_off_cpu,
            power_off_rss: 3000,
            boot_wall: 33_000_000,
            mmio_exit: Some(5000),
            binary: 1_500_000,
        };
        let peer =
            Costs { name: "other".into(), mmio_exit: None, binary: 9_000_000, ..strait.clone() };
        Report { vmms: vec![strait, peer], hypercall: 1061, dma_throughput: 1.0 }
    }

    #[test]
    fn only_straits_own_figures_are_held_against_the_budgets() {
        assert!(!missed(&report(1_299_999)));
        assert!(missed(&report(1_300_001)));
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
