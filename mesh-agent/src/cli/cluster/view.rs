//! The status of a cluster for people.

use std::fmt::Write;

use super::report::{ClusterStatus, NodeStatus, Says};
use crate::cli::{
    output::{
        table::{Cell, Table},
        text::{Paint, Tone, wrap},
        units,
    },
    status::section,
};

/// Columns of a terminal that prose is broken for.
const WIDTH: usize = 118;
/// Rows of pods that are shown unless all are asked for.
const ROWS: usize = 50;

/// All of it as text.
pub(super) fn render(status: &ClusterStatus, wide: bool, paint: Paint) -> String {
    let mut out = String::new();
    let (word, tone) = if status.healthy { ("healthy", Tone::Good) } else { ("UNHEALTHY", Tone::Bad) };
    let title = paint.tone(&format!("mesh-agent {}, cluster", status.version), Tone::Bold);
    let _ = writeln!(out, "{title}  {}", paint.tone(word, tone));
    for set in &status.sets {
        let _ = writeln!(
            out,
            "  daemonset {}: {} of {} ready, {} up to date",
            set.name, set.ready, set.desired, set.updated
        );
    }
    let versions: Vec<String> =
        status.versions.iter().map(|(version, nodes)| format!("{version} on {nodes}")).collect();
    let skew = if versions.len() > 1 { Tone::Warn } else { Tone::Plain };
    if !versions.is_empty() {
        let _ = writeln!(out, "  versions  {}", paint.tone(&versions.join(", "), skew));
    }
    nodes(&mut out, &status.nodes, paint);
    namespaces(&mut out, status, paint);
    uncaptured(&mut out, status, wide, paint);
    for note in &status.notes {
        out.push('\n');
        wrap(&mut out, &format!("note: {note}"), 2, WIDTH);
    }
    out
}

fn nodes(out: &mut String, nodes: &[NodeStatus], paint: Paint) {
    let without = nodes.iter().filter(|node| node.says == Says::Nobody).count();
    let note = if without == 0 { String::new() } else { format!("{without} without an agent") };
    section(out, "NODES", &note, paint);
    let mut table = Table::default()
        .left(&["NODE", "AGENT", "VERSION"])
        .right(&["UP", "SOURCE AGE", "PODS", "ARMED"])
        .left(&["PROBLEMS"]);
    for node in nodes {
        let (word, tone) = match (node.says, node.healthy) {
            (Says::Nobody, true) => ("none", Tone::Dim),
            (Says::Nobody, false) => ("NONE", Tone::Bad),
            (Says::Agent, true) => ("healthy", Tone::Good),
            (Says::Server, true) => ("ready", Tone::Plain),
            (Says::Agent, false) => ("UNHEALTHY", Tone::Bad),
            (Says::Server, false) => ("SILENT", Tone::Bad),
        };
        let name = if node.ready == Some(false) { format!("{} (not ready)", node.name) } else { node.name.clone() };
        let armed = if node.armed < node.pods { Tone::Bad } else { Tone::Plain };
        table.row(vec![
            name.into(),
            Cell::new(word, tone),
            node.version.clone().unwrap_or_else(|| "-".to_owned()).into(),
            node.uptime_seconds.map_or_else(|| "-".to_owned(), units::seconds).into(),
            node.source_age_ms.map_or_else(|| "-".to_owned(), units::millis).into(),
            units::count(node.pods as u64).into(),
            Cell::new(units::count(node.armed as u64), armed),
            node.problems.join("; ").into(),
        ]);
    }
    table.render(out, 2, paint);
}

fn namespaces(out: &mut String, status: &ClusterStatus, paint: Paint) {
    if status.namespaces.is_empty() {
        return section(out, "ENROLLED NAMESPACES", "none", paint);
    }
    section(out, "ENROLLED NAMESPACES", "", paint);
    let mut table = Table::default().left(&["NAMESPACE"]).right(&["PODS", "ARMED"]);
    for namespace in &status.namespaces {
        let tone = if namespace.armed < namespace.pods { Tone::Bad } else { Tone::Plain };
        let armed = Cell::new(units::count(namespace.armed as u64), tone);
        table.row(vec![namespace.name.clone().into(), units::count(namespace.pods as u64).into(), armed]);
    }
    table.render(out, 2, paint);
}

fn uncaptured(out: &mut String, status: &ClusterStatus, wide: bool, paint: Paint) {
    let pods = &status.uncaptured;
    if pods.is_empty() {
        return section(out, "NOT CAPTURED", "none", paint);
    }
    section(out, "NOT CAPTURED", &units::count(pods.len() as u64), paint);
    let mut table = Table::default().left(&["POD", "NODE", "REASON", "WHY"]);
    let rows = if wide { pods.len() } else { ROWS };
    for pod in pods.iter().take(rows) {
        table.row(vec![
            format!("{}/{}", pod.namespace, pod.name).into(),
            pod.node.clone().into(),
            Cell::new(pod.reason.clone(), Tone::Bad),
            pod.message.clone().into(),
        ]);
    }
    table.render(out, 2, paint);
    if pods.len() > rows {
        let _ = writeln!(out, "  and {} more: -o wide", pods.len() - rows);
    }
}
