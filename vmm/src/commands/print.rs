//! How commands' answers are printed: each is one value, which is printed as JSON or as text.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::error::Error;
use crate::output;

/// Prints an answer as JSON or as text.
///
/// # Errors
///
/// Standard output can't be written.
#[cold]
pub fn print(json: bool, answer: &(impl Serialize + Display)) -> Result<(), Error> {
    let text = if json {
        serde_json::to_string_pretty(answer).map_err(|e| Error::chain(&e))?
    } else {
        answer.to_string()
    };
    output::print(&format!("{}\n", text.trim_end()))
}

/// Rows of cells, printed so that the columns line up.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new<S: Into<String>>(headings: impl IntoIterator<Item = S>) -> Self {
        let mut table = Self::default();
        table.row(headings);
        table
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

/// The rows as lines; the last cell of each is as long as it is.
impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for row in &self.rows {
            let cells = row.iter().zip(&widths);
            let line: String = cells.map(|(cell, width)| format!("{cell:width$}  ")).collect();
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_where_their_text_does() {
        let mut table = Table::new(["NAME", "BUS", "STATE"]);
        table.row(["a", "platform", "fine"]);
        table.row(["longer", "pci", ""]);
        assert_eq!(
            table.to_string(),
            "NAME    BUS       STATE\na       platform  fine\nlonger  pci\n"
        );
    }
}
