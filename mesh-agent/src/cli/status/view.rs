//! The status for people.

use std::fmt::Write;

use super::pods;
use crate::{
    cli::output::{
        table::{Cell, Table},
        text::{Paint, Tone, printable, wrap},
        units,
    },
    model::{CertificateSummary, Problem, Reason, Severity, Shares, Status, Volume, WorkerStatus},
};

/// Columns of a terminal that prose is broken for.
const WIDTH: usize = 118;
/// Milliseconds without a beat after which a worker counts as stuck.
const STALE_BEAT_MS: u64 = mesh_common::WORKER_STALE_NS / 1_000_000;
/// Lag in microseconds from which a worker counts as overloaded.
const HIGH_LAG_US: u64 = mesh_common::WORKER_LAG_NS / 1_000;

/// The status with only one namespace's part of namespaces, pods and problems.
pub(super) fn only(status: &Status, namespace: &str) -> Status {
    let mut status = status.clone();
    status.namespaces.retain(|row| row.name == namespace);
    status.pods.retain(|pod| &*pod.name.namespace == namespace);
    status.problems.retain(|problem| concerns(problem, namespace));
    status
}

/// Whether the problem is of that namespace, or of none.
fn concerns(problem: &Problem, namespace: &str) -> bool {
    // `Kind name` or `Kind namespace/name`.
    let Some((kind, name)) = problem.object.split_once(' ') else { return true };
    match name.split_once('/') {
        Some((own, _)) => own == namespace,
        None => kind != "Namespace" || name == namespace,
    }
}

/// All of it as text. `hidden_problems` are those of other namespaces.
pub(super) fn render(status: &Status, hidden_problems: usize, wide: bool, paint: Paint) -> String {
    let mut out = String::new();
    header(&mut out, status, paint);
    if wide {
        hooks(&mut out, status, paint);
    }
    workers(&mut out, status, paint);
    namespaces(&mut out, status, paint);
    pods::render(&mut out, &status.pods, wide, paint);
    if wide {
        reasons(&mut out, status, paint);
        pods::counters(&mut out, &status.pods, paint);
    }
    problems(&mut out, status, hidden_problems, paint);
    out
}

/// Begins a section.
pub(in crate::cli) fn section(out: &mut String, title: &str, note: &str, paint: Paint) {
    let line = format!("\n{}  {}", paint.tone(title, Tone::Bold), paint.tone(note, Tone::Dim));
    out.push_str(if note.is_empty() { line.trim_end() } else { &line });
    out.push('\n');
}

fn header(out: &mut String, status: &Status, paint: Paint) {
    let (word, tone) = if status.healthy { ("healthy", Tone::Good) } else { ("UNHEALTHY", Tone::Bad) };
    let _ = writeln!(
        out,
        "{}  {}",
        paint.tone(&format!("mesh-agent {}", status.version), Tone::Bold),
        paint.tone(word, tone)
    );
    let node = &status.node;
    let zone = node.zone.as_ref().map(|zone| format!(", zone {zone}")).unwrap_or_default();
    line(out, "node", &format!("{}{zone}", node.name));
    line(
        out,
        "agent",
        &format!(
            "pid {}, up {}, RSS {}, direct {}",
            status.pid,
            units::seconds(status.uptime_seconds),
            units::bytes(status.rss_bytes),
            node.direct
        ),
    );
    for agent in &status.draining {
        let left =
            agent.open.map_or("it does not say what it has left".to_owned(), |open| format!("{open} connections left"));
        let version = &agent.version;
        line(out, "draining", &format!("{}, {left}", format!("pid {} {version}", agent.pid).trim_end()));
    }
    line(
        out,
        "source",
        &format!(
            "{}, read without error {} ago, snapshot {}",
            node.source,
            units::millis(node.source_age_ms),
            node.snapshot
        ),
    );
    traffic(out, &node.shares, paint);
    identities(out, &node.certificates, paint);
    if !node.addresses.is_empty() {
        let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        line(out, "exempt", &format!("node addresses exempt (health checks): {}", addresses.join(" ")));
    }
    let kernel = &status.kernel;
    line(out, "kernel", &format!("{}, ABI {}, pins {}", kernel.release, kernel.abi, kernel.pins));
    let missing: Vec<_> = kernel.hooks.iter().filter(|hook| !hook.armed).map(|hook| hook.program.as_str()).collect();
    let armed = kernel.hooks.len() - missing.len();
    let (names, tone) = match (kernel.hooks.is_empty(), missing.is_empty()) {
        (true, _) => (String::new(), Tone::Dim),
        (_, true) => {
            let names: Vec<_> = kernel.hooks.iter().map(|hook| hook.program.as_str()).collect();
            (format!(": {}", names.join(" ")), Tone::Plain)
        }
        _ => (format!(", MISSING: {}", missing.join(" ")), Tone::Bad),
    };
    let _ =
        writeln!(out, "  hooks    {}", paint.tone(&format!("{armed} of {} armed{names}", kernel.hooks.len()), tone));
}

/// What went which way, by bytes.
fn traffic(out: &mut String, shares: &Shares, paint: Paint) {
    let total = shares.total();
    if total.bytes == 0 {
        return line(out, "traffic", "none carried yet");
    }
    let part = |volume: Volume| units::percent(volume.bytes as f64 / total.bytes as f64);
    let (mutual, local, plaintext) = (part(shares.mutual), part(shares.local), part(shares.plaintext));
    let tone = if shares.plaintext.bytes > 0 { Tone::Warn } else { Tone::Plain };
    let plaintext = paint.tone(&format!("{plaintext} plaintext"), tone);
    let bytes = units::bytes(total.bytes);
    let _ = writeln!(out, "  traffic  {bytes}: {mutual} encrypted, {local} local, {plaintext}");
}

/// Who can prove who it is. Nothing where nobody was told to vouch for anybody.
fn identities(out: &mut String, certificates: &CertificateSummary, paint: Paint) {
    if certificates.authority.is_none() && certificates.identities == 0 {
        return;
    }
    let CertificateSummary { authority, identities, usable, next_rotation_s } = certificates;
    let tone = if usable < identities { Tone::Bad } else { Tone::Plain };
    let count = paint.tone(&format!("{usable} of {identities} with a certificate"), tone);
    let next = next_rotation_s.map(|seconds| format!(", next rotation in {}", units::seconds(seconds)));
    let (authority, tone) = match authority {
        None => ("no certificate authority".to_owned(), Tone::Bad),
        Some(authority) if authority.is_answering => {
            (format!("authority {} answers", authority.description), Tone::Plain)
        }
        Some(authority) => (format!("authority {} DOES NOT ANSWER", authority.description), Tone::Bad),
    };
    let _ = writeln!(out, "  identity {count}{}, {}", next.unwrap_or_default(), paint.tone(&authority, tone));
}

fn line(out: &mut String, name: &str, value: &str) {
    let _ = writeln!(out, "  {name:<8} {}", printable(value));
}

fn hooks(out: &mut String, status: &Status, paint: Paint) {
    section(out, "HOOKS", "", paint);
    let mut table = Table::default().left(&["PROGRAM", "STATE", "AT"]);
    for hook in &status.kernel.hooks {
        let state = if hook.armed { Cell::new("armed", Tone::Good) } else { Cell::new("missing", Tone::Bad) };
        table.row(vec![hook.program.clone().into(), state, hook.at.clone().into()]);
    }
    table.render(out, 2, paint);
}

fn workers(out: &mut String, status: &Status, paint: Paint) {
    section(out, "WORKERS", &balance(&status.workers), paint);
    let mut table = Table::default().right(&["WORKER", "CPU", "OPEN", "ACCEPTED", "SHARE", "LAG", "LAST BEAT"]);
    for worker in &status.workers {
        let tone_if = |bad: bool| if bad { Tone::Bad } else { Tone::Plain };
        table.row(vec![
            worker.worker.to_string().into(),
            worker.cpu.to_string().into(),
            units::count(worker.open).into(),
            units::count(worker.accepted).into(),
            units::percent(worker.share).into(),
            Cell::new(units::micros(worker.lag_us), tone_if(worker.lag_us >= HIGH_LAG_US)),
            Cell::new(units::millis(worker.beat_age_ms), tone_if(worker.beat_age_ms >= STALE_BEAT_MS)),
        ]);
    }
    table.render(out, 2, paint);
}

/// How evenly the workers share, in words.
fn balance(workers: &[WorkerStatus]) -> String {
    let accepted: u64 = workers.iter().map(|worker| worker.accepted).sum();
    let busiest = workers.iter().map(|worker| worker.share).fold(0.0, f64::max);
    if accepted == 0 || workers.len() < 2 {
        return String::new();
    }
    format!("the busiest took {:.2}x its even share", busiest * workers.len() as f64)
}

fn namespaces(out: &mut String, status: &Status, paint: Paint) {
    let enrolled = status.namespaces.iter().filter(|namespace| namespace.enrolled).count();
    if status.namespaces.is_empty() {
        return section(out, "NAMESPACES", "none", paint);
    }
    section(out, "NAMESPACES", &format!("{enrolled} of {} enrolled", status.namespaces.len()), paint);
    let mut table = Table::default().left(&["NAMESPACE", "MESH"]).right(&["PODS", "ARMED"]);
    for namespace in &status.namespaces {
        let mesh = if namespace.enrolled { Cell::new("enabled", Tone::Good) } else { Cell::new("disabled", Tone::Dim) };
        let partly = namespace.enrolled && namespace.armed < namespace.pods;
        table.row(vec![
            namespace.name.clone().into(),
            mesh,
            units::count(namespace.pods as u64).into(),
            Cell::new(units::count(namespace.armed as u64), if partly { Tone::Warn } else { Tone::Plain }),
        ]);
    }
    table.render(out, 2, paint);
}

fn reasons(out: &mut String, status: &Status, paint: Paint) {
    section(out, "REASONS", "of relayed connections that ended, since the agent started", paint);
    let mut table = Table::default().left(&["CODE"]).right(&["CONNECTIONS"]).left(&["WHAT"]);
    let mut sorted: Vec<_> = status.reasons.iter().filter(|(_, ended)| **ended > 0).collect();
    sorted.sort_by_key(|(reason, ended)| (std::cmp::Reverse(**ended), **reason));
    for (reason, ended) in sorted {
        let tone = if *reason == Reason::Ok { Tone::Plain } else { Tone::Warn };
        table.row(vec![Cell::new(reason.code(), tone), units::count(*ended).into(), reason.what().into()]);
    }
    table.render(out, 2, paint);
}

fn problems(out: &mut String, status: &Status, hidden: usize, paint: Paint) {
    let of = |severity| status.problems.iter().filter(|problem| problem.severity == severity).count();
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    let mut note = match (errors, warnings) {
        (0, 0) => "none".to_owned(),
        (_, 0) => plural(errors, "error"),
        (0, _) => plural(warnings, "warning"),
        _ => format!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
    };
    if hidden > 0 {
        let _ = write!(note, "; {hidden} more in other namespaces");
    }
    section(out, "PROBLEMS", &note, paint);
    let mut sorted: Vec<_> = status.problems.iter().collect();
    sorted.sort_by_key(|problem| std::cmp::Reverse(problem.severity));
    for problem in sorted {
        self::problem(out, problem, paint);
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn problem(out: &mut String, problem: &Problem, paint: Paint) {
    let (mark, tone) = match problem.severity {
        Severity::Error => ("✗", Tone::Bad),
        Severity::Warning => ("‼", Tone::Warn),
    };
    let _ = write!(out, "  {} {}", paint.tone(mark, tone), paint.tone(problem.reason.code(), tone));
    if !problem.object.is_empty() {
        let _ = write!(out, "  {}", paint.tone(&problem.object, Tone::Bold));
    }
    if !problem.field.is_empty() {
        let _ = write!(out, "  {}", printable(&problem.field));
    }
    out.push('\n');
    if problem.location.file.is_some() {
        let _ = writeln!(out, "    at {}", printable(&problem.location.to_string()));
    }
    wrap(out, &problem.message, 4, WIDTH);
    wrap(out, &format!("→ {}", problem.remedy), 4, WIDTH);
}
