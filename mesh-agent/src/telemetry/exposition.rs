//! Metrics as text: Prometheus' format 0.0.4 and OpenMetrics 1.0, as the one who asks prefers.

use std::fmt::Write;

/// How metrics are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, version 0.0.4.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// As an `Accept` header asks for it: OpenMetrics where it is named, whatever its weight.
    pub fn accepted(accept: &str) -> Self {
        let mut kinds = accept.split(',').filter_map(|kind| kind.split(';').next());
        if kinds.any(|kind| kind.trim().eq_ignore_ascii_case("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The `Content-Type` of it.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What a number is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, until what it counts begins anew. Its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// Metrics of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// The name.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// What they tell, one sentence without line breaks or backslashes.
    pub help: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
}

/// The text, as it grows.
#[derive(Debug)]
pub struct Exposition {
    text: String,
    format: Format,
}

impl Exposition {
    /// Empty.
    pub fn new(format: Format) -> Self {
        Self { text: String::with_capacity(16 * 1024), format }
    }

    /// Begins a family; its samples follow.
    pub fn family(&mut self, family: &'static Family) -> Samples<'_> {
        let (kind, base) = match family.kind {
            Kind::Counter => ("counter", family.name.strip_suffix("_total").unwrap_or(family.name)),
            Kind::Gauge => ("gauge", family.name),
        };
        // OpenMetrics names the family of a counter without its suffix.
        let name = if self.format == Format::OpenMetrics { base } else { family.name };
        let _ = writeln!(self.text, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
        Samples { text: &mut self.text, family }
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// Samples of one family.
#[derive(Debug)]
pub struct Samples<'a> {
    text: &'a mut String,
    family: &'static Family,
}

impl Samples<'_> {
    /// One sample: the values of the family's labels in their order, and the number.
    pub fn add(&mut self, labels: &[&str], number: f64) {
        self.text.push_str(self.family.name);
        let mut before = '{';
        for (name, value) in self.family.labels.iter().zip(labels) {
            let _ = write!(self.text, "{before}{name}=\"");
            escape(self.text, value);
            self.text.push('"');
            before = ',';
        }
        let _ = writeln!(self.text, "{} {number}", if before == ',' { "}" } else { "" });
    }

    /// The same with a count, which is written without rounding.
    pub fn count(&mut self, labels: &[&str], number: u64) {
        // Exact up to 2^53; beyond that the reader rounds anyway.
        self.add(labels, number as f64);
    }
}

/// A label's value: backslash, quote and line feed are escaped, in both formats.
fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNTED: Family =
        Family { name: "mesh_x_total", kind: Kind::Counter, help: "How often.", labels: &["a", "b"] };
    const PLAIN: Family = Family { name: "mesh_y_seconds", kind: Kind::Gauge, help: "How long.", labels: &[] };

    fn both(format: Format) -> String {
        let mut out = Exposition::new(format);
        out.family(&COUNTED).count(&["1", "say \"hi\" \\ to\nall"], 3);
        out.family(&PLAIN).add(&[], 0.25);
        out.finish()
    }

    #[test]
    fn the_formats_differ_in_the_names_of_counters_and_in_the_end() {
        let prometheus = both(Format::Prometheus);
        assert_eq!(
            prometheus,
            "# HELP mesh_x_total How often.\n# TYPE mesh_x_total counter\n\
             mesh_x_total{a=\"1\",b=\"say \\\"hi\\\" \\\\ to\\nall\"} 3\n\
             # HELP mesh_y_seconds How long.\n# TYPE mesh_y_seconds gauge\nmesh_y_seconds 0.25\n"
        );
        let open = both(Format::OpenMetrics);
        assert!(open.contains("# TYPE mesh_x counter\nmesh_x_total{a="), "{open}");
        assert!(open.ends_with("mesh_y_seconds 0.25\n# EOF\n"), "{open}");
    }

    #[test]
    fn the_one_who_asks_chooses() {
        // As Prometheus 3 asks.
        let asked = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(asked), Format::OpenMetrics);
        for asked in ["", "*/*", "text/plain", "application/openmetrics-text-not"] {
            assert_eq!(Format::accepted(asked), Format::Prometheus, "{asked}");
        }
    }
}
