//! Aligned columns.

use super::text::{Paint, Tone, printable};

const GAP: &str = "  ";

/// A cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in a tone.
    pub(crate) fn new(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

struct Column {
    title: &'static str,
    right: bool,
}

/// A table; columns in the order they are added.
#[derive(Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Adds columns of text.
    pub(crate) fn left(mut self, titles: &[&'static str]) -> Self {
        self.columns.extend(titles.iter().map(|title| Column { title, right: false }));
        self
    }

    /// Adds columns of numbers.
    pub(crate) fn right(mut self, titles: &[&'static str]) -> Self {
        self.columns.extend(titles.iter().map(|title| Column { title, right: true }));
        self
    }

    /// Adds a row; missing cells stay empty.
    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Appends the table to `out`, each line after `indent` spaces and without spaces at its end.
    pub(crate) fn render(&self, out: &mut String, indent: usize, paint: Paint) {
        let widths = self.widths();
        let titles = self.columns.iter().map(|column| Cell::new(column.title, Tone::Bold)).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = " ".repeat(indent);
            let mut owed = String::new();
            for ((column, width), cell) in self.columns.iter().zip(&widths).zip(row) {
                let padding = " ".repeat(width.saturating_sub(printable(&cell.text).chars().count()));
                line.push_str(&std::mem::take(&mut owed));
                if column.right {
                    line.push_str(&padding);
                    owed.push_str(GAP);
                } else {
                    owed = padding + GAP;
                }
                line.push_str(&paint.tone(&cell.text, cell.tone));
            }
            out.push_str(line.trim_end_matches(' '));
            out.push('\n');
        }
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<_> = self.columns.iter().map(|column| column.title.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(printable(&cell.text).chars().count());
            }
        }
        widths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_have_no_trailing_spaces() {
        let mut table = Table::default().left(&["POD"]).right(&["OPEN"]).left(&["STATE", "NOTE"]);
        table.row(vec!["a/long-name".into(), "7".into(), "armed".into()]);
        table.row(vec!["b".into(), "12,345".into(), "off".into(), "→ mended".into()]);
        let mut out = String::new();
        table.render(&mut out, 1, Paint::PLAIN);
        let expected = [
            " POD            OPEN  STATE  NOTE",
            " a/long-name       7  armed",
            " b            12,345  off    → mended",
            "",
        ];
        assert_eq!(out, expected.join("\n"));
    }
}
