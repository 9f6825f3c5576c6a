//! `mesh-agent policy audit`.

use std::{fmt::Write, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::ValueEnum;

use super::{Report, html, no_answer, words};
use crate::{
    admin::client,
    cli::{
        RunDir, duration,
        output::{
            table::{Cell, Table},
            text::{Paint, Tone, wrap},
            time, units,
        },
        status::section,
    },
    model::{Audit, PlaintextReason, PodState},
};

const EXAMPLES: &str = "\
Examples:
  mesh-agent policy audit
  mesh-agent policy audit --since 10m
  mesh-agent policy audit -o html --output audit.html       one page, to keep or to print
  mesh-agent policy audit -o json | jq '.flows[] | select(.reason == \"destination_not_meshed\")'

Exit codes: 0 the report was made, whatever it says, 1 it could not be written, 2 no agent answers.";

/// How the report looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For a terminal.
    Table,
    /// The admin socket's answer.
    Json,
    /// One self-contained page.
    Html,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    run_dir: RunDir,
    /// Format of the report
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// How far back, an hour at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = period)]
    since: Duration,
    /// Write it to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// No colours, as when standard output is not a terminal or NO_COLOR is set
    #[arg(long)]
    no_color: bool,
}

fn period(text: &str) -> Result<Duration, String> {
    let period = duration::parse_positive(text)?;
    if period > Duration::from_hours(1) {
        return Err("the agent remembers one hour".to_owned());
    }
    Ok(period)
}

pub(super) async fn report(args: &Args) -> anyhow::Result<Report> {
    let audit = match client::audit(&args.run_dir.run_dir, args.since).await {
        Ok(audit) => audit,
        Err(error) => return Ok(no_answer(&error, &args.run_dir.run_dir)),
    };
    let paint = Paint::for_stream(&std::io::stdout(), args.no_color || args.output.is_some());
    let out = match args.format {
        Format::Table => table(&audit, paint),
        Format::Json => serde_json::to_string_pretty(&audit)? + "\n",
        Format::Html => html::page(&audit),
    };
    let Some(path) = &args.output else { return Ok(Report { out, ..Report::default() }) };
    std::fs::write(path, out).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(Report { err: format!("written to {}\n", path.display()), ..Report::default() })
}

/// All of it for a terminal.
pub(super) fn table(audit: &Audit, paint: Paint) -> String {
    let mut out = format!("{}\n", paint.tone(&format!("node {}", audit.node), Tone::Bold));
    let Audit { since, generated, .. } = audit;
    let _ = writeln!(out, "  period   {} to {} UTC", time::utc(*since), time::utc(*generated));
    let _ = writeln!(out, "  agent    mesh-agent {}, started {} UTC", audit.version, time::utc(audit.agent_started));
    if let Some((from, until)) = words::blind_spot(audit) {
        let text = format!("no record from {} to {}, before the agent started", time::clock(from), time::clock(until));
        let _ = writeln!(out, "  gap      {}", paint.tone(&text, Tone::Warn));
    }
    shares(&mut out, audit, paint);
    flows(&mut out, audit, paint);
    unobserved(&mut out, audit, paint);
    coverage(&mut out, audit, paint);
    refused(&mut out, audit, paint);
    out
}

fn shares(out: &mut String, audit: &Audit, paint: Paint) {
    section(out, "SHARES", "of what the mesh carried", paint);
    let total = audit.shares.total();
    let mut table = Table::default().left(&["TRANSPORT"]).right(&["CONNECTIONS", "BYTES", "SHARE OF BYTES"]);
    for (name, _, volume) in words::parts(&audit.shares) {
        let percent = words::share(volume.bytes, total.bytes).map_or_else(|| "-".to_owned(), units::percent);
        let tone = if name == "plaintext" && volume.connections + volume.bytes > 0 { Tone::Warn } else { Tone::Plain };
        table.row(vec![
            Cell::new(name, tone),
            units::count(volume.connections).into(),
            units::bytes(volume.bytes).into(),
            percent.into(),
        ]);
    }
    table.render(out, 2, paint);
}

fn flows(out: &mut String, audit: &Audit, paint: Paint) {
    if audit.flows.is_empty() {
        return section(out, "PLAINTEXT", "none that the agent carried", paint);
    }
    section(out, "PLAINTEXT", "across the node's edge; bytes as seen from the pod", paint);
    let mut table = Table::default()
        .left(&["POD", "", "PEER"])
        .right(&["PORT", "CONNECTIONS", "OPEN", "SENT", "RECEIVED"])
        .left(&["LAST SEEN", "REASON"]);
    for flow in &audit.flows {
        table.row(vec![
            flow.pod.to_string().into(),
            words::arrow(flow.direction).into(),
            flow.peer.to_string().into(),
            port(flow.port).into(),
            units::count(flow.connections).into(),
            units::count(flow.open).into(),
            units::bytes(flow.from_pod_bytes).into(),
            units::bytes(flow.to_pod_bytes).into(),
            time::clock(flow.last_seen).into(),
            Cell::new(flow.reason.code(), Tone::Warn),
        ]);
    }
    table.render(out, 2, paint);
    legend(out, audit.flows.iter().map(|flow| flow.reason));
    if audit.summed_up > 0 {
        let text = format!(
            "{} connections were summed up as (others): too many peers to tell apart",
            units::count(audit.summed_up)
        );
        wrap(out, &text, 2, 110);
    }
}

fn unobserved(out: &mut String, audit: &Audit, paint: Paint) {
    if audit.unobserved.is_empty() {
        return section(out, "NOT OBSERVED", "no connection passed by the agent", paint);
    }
    section(out, "NOT OBSERVED", "connections that passed by the agent; their bytes are unknown", paint);
    let mut table = Table::default().left(&["POD", "DIRECTION"]).right(&["CONNECTIONS"]).left(&["WHEN", "REASON"]);
    for row in &audit.unobserved {
        table.row(vec![
            row.pod.to_string().into(),
            row.direction.name().into(),
            units::count(row.connections).into(),
            if row.before_start { "before the agent started" } else { "in the period" }.into(),
            Cell::new(row.reason.code(), Tone::Warn),
        ]);
    }
    table.render(out, 2, paint);
    legend(out, audit.unobserved.iter().map(|row| row.reason));
}

fn coverage(out: &mut String, audit: &Audit, paint: Paint) {
    section(out, "COVERAGE", "TCP of these pods; other protocols are not observed", paint);
    let mut table = Table::default().left(&["POD", "STATE", "OBSERVED"]);
    for pod in &audit.coverage {
        let observed = words::observed(audit, pod);
        let tone = if pod.state == PodState::Armed { Tone::Good } else { Tone::Warn };
        let observed =
            if observed.is_empty() { Cell::new("never: nothing is known", Tone::Warn) } else { Cell::from(observed) };
        table.row(vec![pod.pod.to_string().into(), Cell::new(words::state(pod.state), tone), observed]);
    }
    table.render(out, 2, paint);
}

fn refused(out: &mut String, audit: &Audit, paint: Paint) {
    if audit.refused.is_empty() {
        return section(out, "REFUSED", "nobody since the agent started", paint);
    }
    section(out, "REFUSED", "for want of permission, since the agent started", paint);
    let mut table = Table::default().left(&["SOURCE", "FROM", "DESTINATION"]).right(&["PORT", "COUNT"]);
    table = table.left(&["LAST SEEN", "REASON", "DECIDED BY"]);
    for row in &audit.refused {
        let source = row.source_identity.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
        let from = row.source_address.map(|address| address.to_string()).unwrap_or_default();
        table.row(vec![
            source.into(),
            from.into(),
            row.destination.to_string().into(),
            port(row.port).into(),
            units::count(row.count).into(),
            time::clock(row.last_seen).into(),
            row.reason.code().into(),
            row.decided_by.clone().unwrap_or_else(|| "-".to_owned()).into(),
        ]);
    }
    table.render(out, 2, paint);
}

/// 0 stands for several.
fn port(port: u16) -> String {
    if port == 0 { "*".to_owned() } else { port.to_string() }
}

/// What the reasons mean, each once.
fn legend(out: &mut String, reasons: impl Iterator<Item = PlaintextReason>) {
    let reasons: std::collections::BTreeSet<_> = reasons.collect();
    for reason in reasons {
        wrap(out, &format!("{}: {}", reason.code(), reason.what()), 2, 110);
    }
}
