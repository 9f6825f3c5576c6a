//! From figures by round to rows, and how they are shown.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::suites::{Figures, unit};

/// All figures of a run.
pub(super) struct Report {
    /// Configurations and what each is compared with.
    configs: Vec<(String, String)>,
    /// In the order of their first appearance.
    metrics: Vec<String>,
    values: BTreeMap<(String, String), Vec<f64>>,
}

/// One line of the JSON file.
#[derive(Debug, PartialEq, Serialize)]
struct Row<'a> {
    config: &'a str,
    metric: &'a str,
    unit: &'a str,
    n: usize,
    median: f64,
    min: f64,
    max: f64,
    /// To the median of the same metric without a mesh, if that was measured and is not zero.
    ratio: Option<f64>,
}

impl Report {
    /// No figures yet.
    pub(super) fn new(configs: Vec<(String, String)>) -> Self {
        Self { configs, metrics: Vec::new(), values: BTreeMap::new() }
    }

    /// Adds a round of a configuration.
    pub(super) fn add(&mut self, config: &str, figures: Figures) {
        for (metric, value) in figures.0 {
            if !self.metrics.contains(&metric) {
                self.metrics.push(metric.clone());
            }
            self.values.entry((config.to_owned(), metric)).or_default().push(value);
        }
    }

    /// Whether there is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn row<'a>(&'a self, config: &'a str, baseline: &str, metric: &'a str) -> Option<Row<'a>> {
        let values = self.values.get(&(config.to_owned(), metric.to_owned()))?;
        let median = median(values)?;
        // How busy the machine was with other things is not a property of a configuration.
        let baseline = if unit(metric) == "CPUs" { "" } else { baseline };
        let base = self.values.get(&(baseline.to_owned(), metric.to_owned())).and_then(|values| self::median(values));
        Some(Row {
            config,
            metric,
            unit: unit(metric),
            n: values.len(),
            median,
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            ratio: base.filter(|base| *base != 0.0).map(|base| median / base),
        })
    }

    /// One JSON object per line, by configuration.
    ///
    /// # Errors
    /// The file can't be written.
    pub(super) fn write_json(&self, path: &Path) -> Result<()> {
        let mut file = BufWriter::new(File::create(path).with_context(|| path.display().to_string())?);
        for (config, baseline) in &self.configs {
            for row in self.metrics.iter().filter_map(|metric| self.row(config, baseline, metric)) {
                serde_json::to_writer(&mut file, &row)?;
                writeln!(file)?;
            }
        }
        file.flush().with_context(|| path.display().to_string())
    }

    /// A Markdown table: a line per metric, a column per configuration, in each cell the median, the least and the most
    /// in brackets, and how many times the baseline it is.
    pub(super) fn markdown(&self) -> String {
        let mut lines = vec![
            ["metric".to_owned(), "unit".into()]
                .into_iter()
                .chain(self.configs.iter().map(|(name, _)| name.clone()))
                .collect::<Vec<_>>(),
        ];
        for metric in &self.metrics {
            let cells = self.configs.iter().map(|(config, baseline)| {
                self.row(config, baseline, metric).map_or_else(|| "–".to_owned(), |row| cell(&row, config == baseline))
            });
            lines.push([metric.clone(), unit(metric).to_owned()].into_iter().chain(cells).collect());
        }
        align(&lines)
    }
}

fn cell(row: &Row<'_>, is_baseline: bool) -> String {
    let mut cell = short(row.median);
    if row.n > 1 {
        let _infallible = write!(cell, " [{}–{}]", short(row.min), short(row.max));
    }
    if let Some(ratio) = row.ratio.filter(|_| !is_baseline) {
        let _infallible = write!(cell, " ×{ratio:.2}");
    }
    cell
}

/// Three or more significant digits, no exponent.
fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Lines of cells, the first being the heading, as an aligned Markdown table.
pub(crate) fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            let _infallible = write!(text, "| {cell:<width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in &widths {
                let _infallible = write!(text, "|{:-<1$}", "", width + 2);
            }
            text.push_str("|\n");
        }
    }
    text
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle.wrapping_sub(1)), sorted.get(middle)) {
        (Some(below), Some(above)) if sorted.len().is_multiple_of(2) => Some(below.midpoint(*above)),
        (_, above) => above.copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut report = Report::new(vec![("direct".into(), "direct".into()), ("mesh".into(), "direct".into())]);
        for (config, rps) in [("direct", 100.0), ("mesh", 60.0), ("direct", 300.0), ("mesh", 90.0), ("direct", 200.0)] {
            report.add(config, Figures(vec![("http.c64.rps".into(), rps), ("http.c64.proxy_us_req".into(), 0.0)]));
        }
        report
    }

    #[test]
    fn a_row_has_median_extremes_and_the_ratio_of_medians() {
        let report = report();
        let row = report.row("mesh", "direct", "http.c64.rps").unwrap();
        assert_eq!((row.n, row.median, row.min, row.max, row.ratio), (2, 75.0, 60.0, 90.0, Some(0.375)));
        assert_eq!(row.unit, "req/s");
    }

    #[test]
    fn nothing_is_compared_with_zero_or_with_what_was_not_measured() {
        let report = report();
        assert_eq!(report.row("mesh", "direct", "http.c64.proxy_us_req").unwrap().ratio, None);
        assert_eq!(report.row("mesh", "direct-cross", "http.c64.rps").unwrap().ratio, None);
        assert_eq!(report.row("other", "direct", "http.c64.rps"), None);
    }

    #[test]
    fn the_json_file_has_one_object_a_line_with_the_documented_keys() {
        let path = std::env::temp_dir().join(format!("xtask-report-{}.json", std::process::id()));
        report().write_json(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text.lines().count(), 4);
        for line in text.lines() {
            let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
            let mut keys: Vec<_> = row.keys().map(String::as_str).collect();
            keys.sort_unstable();
            assert_eq!(keys, ["config", "max", "median", "metric", "min", "n", "ratio", "unit"]);
        }
    }

    #[test]
    fn the_table_is_aligned_and_says_what_is_a_multiple_of_what() {
        let table = report().markdown();
        let widths: Vec<_> = table.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| Some(width) == widths.first()), "{table}");
        assert!(table.contains("| 75.0 [60.0–90.0] ×0.38 |"), "{table}");
        assert!(table.contains("| 200 [100–300] "), "{table}");
    }
}
