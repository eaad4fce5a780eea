//! What a device of a guest costs for a unit of its work, beside what it may cost.

use std::fmt::Write;

use serde::Serialize;

/// A figure with its limit, such as the instructions of the whole machine for a packet.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured, with its unit.
    pub what: String,
    /// What it takes.
    pub measured: f64,
    /// What it may take at most.
    pub limit: f64,
}

impl Figure {
    /// Whether it takes more than it may; nonsense does.
    pub fn is_missed(&self) -> bool {
        self.measured.is_nan() || self.measured > self.limit
    }
}

/// A line for each.
pub(super) fn render(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for figure in figures {
        let Figure { what, measured, limit } = figure;
        let verdict = if figure.is_missed() { "MISSED" } else { "kept" };
        // Small figures are counts for a unit, of which fractions matter.
        let digits = if *limit < 10.0 { 2 } else { 0 };
        let _ = writeln!(text, "{what:<width$}  {measured:>8.digits$}  ≤ {limit:>6}  {verdict}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_above_its_limit_is_a_miss() {
        let of = |measured| Figure { what: "packet".into(), measured, limit: 5.0 };
        assert!(!of(5.0).is_missed() && of(5.1).is_missed() && of(f64::NAN).is_missed());
        assert_eq!(render(&[of(5.1)]), "packet      5.10  ≤      5  MISSED\n");
    }
}
