//! Documents that must name what the code defines.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::Problem;

/// Map names, counters and reason codes that their document leaves out. A document that is not written yet is only
/// told of.
pub(crate) fn check(root: &Path, problems: &mut Vec<Problem>) -> Result<()> {
    let reasons = root.join("mesh-agent/src/model/reason.rs");
    let reasons = fs::read_to_string(&reasons).with_context(|| format!("cannot read {}", reasons.display()))?;
    document(root, "docs/DATAPATH.md", &mesh_common::maps::NAMES, problems);
    document(root, "docs/OPERATIONS.md", mesh_common::Counters::NAMES, problems);
    document(root, "docs/OPERATIONS.md", &reason_codes(&reasons), problems);
    Ok(())
}

fn document(root: &Path, path: &str, names: &[&str], problems: &mut Vec<Problem>) {
    let Ok(text) = fs::read_to_string(root.join(path)) else {
        println!(
            "{path}: not written yet; it must name {} things, from `{}` on",
            names.len(),
            names.first().unwrap_or(&"")
        );
        return;
    };
    for name in missing(&text, names) {
        problems.push(Problem { place: path.to_owned(), what: format!("does not name `{name}`") });
    }
}

/// Names that are not in the text as code.
fn missing<'a>(text: &'a str, names: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    names.iter().copied().filter(move |name| !text.contains(&format!("`{name}`")))
}

/// The codes in the `reasons!` table, whose lines are `Variant "code" Side "what" "remedy";`.
fn reason_codes(source: &str) -> Vec<&str> {
    let table = source.split_once("\nreasons! {").map_or("", |(_, table)| table);
    let lines = table.lines().take_while(|line| *line != "}").map(str::trim).filter(|line| !line.starts_with("//"));
    lines.filter_map(|line| line.split('"').nth(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::root;

    #[test]
    fn all_reason_codes_are_found() {
        let source = fs::read_to_string(root().join("mesh-agent/src/model/reason.rs")).unwrap();
        let codes = reason_codes(&source);
        assert!(codes.contains(&"ok") && codes.contains(&"upstream_refused"), "{codes:?}");
        assert!(codes.iter().all(|code| code.chars().all(|c| c.is_ascii_lowercase() || c == '_')), "{codes:?}");
    }

    #[test]
    fn a_name_within_another_is_not_named() {
        assert_eq!(missing("`FLOWS_MAX` and `AGENT`", &["FLOWS", "AGENT"]).collect::<Vec<_>>(), ["FLOWS"]);
    }
}
