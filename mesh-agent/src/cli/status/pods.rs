//! The pods' part of the status.

use std::fmt::Write;

use super::view::section;
use crate::{
    cli::output::{
        table::{Cell, Table},
        text::{Paint, Tone, wrap},
        units,
    },
    model::{Mode, PodState, PodStatus, RelayStatus, Shares},
};

/// The table of pods. Direct and relayed connections are told apart in `wide`, and shown as one share otherwise.
pub(super) fn render(out: &mut String, pods: &[PodStatus], wide: bool, paint: Paint) {
    let enrolled = pods.iter().filter(|pod| pod.enrolled).count();
    let armed = pods.iter().filter(|pod| pod.state == PodState::Armed).count();
    if pods.is_empty() {
        return section(out, "PODS", "none", paint);
    }
    section(out, "PODS", &format!("{enrolled} of {} enrolled, {armed} armed", pods.len()), paint);
    if wide {
        all_columns(pods).render(out, 2, paint);
        out.push_str("  UP: bytes toward the server, DOWN: toward the client, of relayed connections\n");
    } else {
        main_columns(pods).render(out, 2, paint);
        footnotes(out, pods);
    }
}

fn main_columns(pods: &[PodStatus]) -> Table {
    let mut table = Table::default()
        .left(&["POD", "STATE"])
        .right(&["OPEN", "TOTAL", "DIRECT", "BYTES"])
        .right(&["CAPTURED", "PASSED", "REFUSED", "UNACC"]);
    for pod in pods {
        let total = pod.outbound.total + pod.inbound.total + pod.direct_total;
        let row = vec![
            pod.name.to_string().into(),
            state(pod),
            number(pod.outbound.open + pod.inbound.open + pod.direct_open),
            number(total),
            direct_share(pod.direct_total, total),
            size(relayed_bytes(&pod.outbound) + relayed_bytes(&pod.inbound) + pod.direct_bytes),
            number(pod.captured),
            passed(pod),
            refused(pod),
            trouble(pod.unaccounted),
        ];
        table.row(if is_untouched(pod) { faded(pod) } else { row });
    }
    table
}

/// Explains marks of the main table that are rare enough to need it.
fn footnotes(out: &mut String, pods: &[PodStatus]) {
    if pods.iter().any(|pod| pod.bypassed > 0) {
        out.push_str("  (n!) n of the passed connections should have been captured\n");
    }
    if pods.iter().any(|pod| pod.unaccounted > 0) {
        out.push_str("  UNACC: handed over by the kernel, and not dealt with by the agent\n");
    }
}

fn all_columns(pods: &[PodStatus]) -> Table {
    let mut table = Table::default()
        .left(&["POD", "ADDRESSES", "STATE", "MODE"])
        .right(&["OUT OPEN", "OUT TOTAL", "OUT FAILED", "OUT UP", "OUT DOWN"])
        .right(&["IN OPEN", "IN TOTAL", "IN FAILED", "IN UP", "IN DOWN"])
        .right(&["DIRECT OPEN", "DIRECT TOTAL", "DIRECT BYTES"])
        .right(&["CAPTURED", "PASSED", "BYPASSED", "REFUSED", "UNACCOUNTED"])
        .right(&["ENCRYPTED", "LOCAL", "PLAINTEXT"]);
    for pod in pods {
        let addresses: Vec<_> = pod.addresses.iter().map(ToString::to_string).collect();
        let mut row = vec![pod.name.to_string().into(), addresses.join(",").into(), state(pod), mode(pod)];
        if is_untouched(pod) {
            table.row(row);
            continue;
        }
        for relay in [&pod.outbound, &pod.inbound] {
            row.extend([
                number(relay.open),
                number(relay.total),
                number(relay.failed),
                size(relay.to_upstream_bytes),
                size(relay.to_downstream_bytes),
            ]);
        }
        row.extend([number(pod.direct_open), number(pod.direct_total), size(pod.direct_bytes)]);
        row.extend([number(pod.captured), number(pod.passed), trouble(pod.bypassed)]);
        row.extend([refused(pod), trouble(pod.unaccounted)]);
        row.extend(shares(&pod.shares));
        table.row(row);
    }
    table
}

/// The kernel's counters that are not zero, a paragraph per pod.
pub(super) fn counters(out: &mut String, pods: &[PodStatus], paint: Paint) {
    section(out, "COUNTERS", "of the kernel, those that are not zero", paint);
    for pod in pods {
        let set: Vec<_> = pod
            .counters
            .iter()
            .filter(|(_, value)| **value > 0)
            .map(|(name, value)| format!("{name}={}", units::count(*value)))
            .collect();
        if !set.is_empty() {
            let _ = writeln!(out, "  {}", paint.tone(&pod.name.to_string(), Tone::Bold));
            wrap(out, &set.join(" "), 4, 118);
        }
    }
}

/// Never enrolled, or not on this node: there are no numbers.
fn is_untouched(pod: &PodStatus) -> bool {
    matches!(pod.state, PodState::Off | PodState::Remote)
        && pod.captured + pod.passed + pod.refused + pod.unaccounted == 0
        && pod.outbound.total + pod.inbound.total + pod.direct_total == 0
}

fn faded(pod: &PodStatus) -> Vec<Cell> {
    vec![Cell::new(pod.name.to_string(), Tone::Dim), state(pod)]
}

fn state(pod: &PodStatus) -> Cell {
    let (text, tone) = match pod.state {
        PodState::Off if pod.enrolled => ("NOT ARMED", Tone::Bad),
        PodState::Off => ("off", Tone::Dim),
        PodState::Armed => ("armed", Tone::Good),
        PodState::Draining => ("draining", Tone::Warn),
        PodState::Failed => ("FAILED", Tone::Bad),
        PodState::Waiting => ("waiting", Tone::Dim),
        PodState::Remote => ("remote", Tone::Dim),
    };
    Cell::new(text, tone)
}

/// What becomes of plaintext, with the ports that differ: `permissive, strict 8080 8443`.
fn mode(pod: &PodStatus) -> Cell {
    let mut text = word(pod.default_mode).to_owned();
    for other in [Mode::Permissive, Mode::Strict, Mode::Disabled].into_iter().filter(|mode| *mode != pod.default_mode) {
        let ports = pod.ports.iter().filter(|(_, mode)| *mode == other).map(|(port, _)| format!(" {port}"));
        let ports: String = ports.collect();
        if !ports.is_empty() {
            let _ = write!(text, ", {}{ports}", word(other));
        }
    }
    text.into()
}

fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Permissive => "permissive",
        Mode::Strict => "strict",
        Mode::Disabled => "disabled",
    }
}

/// By bytes.
fn shares(shares: &Shares) -> [Cell; 3] {
    let total = shares.total().bytes;
    let part = |bytes: u64, tone| match total {
        0 => Cell::new("-", Tone::Dim),
        total => Cell::new(units::percent(bytes as f64 / total as f64), if bytes == 0 { Tone::Dim } else { tone }),
    };
    let Shares { mutual, local, plaintext } = shares;
    [part(mutual.bytes, Tone::Good), part(local.bytes, Tone::Plain), part(plaintext.bytes, Tone::Warn)]
}

fn passed(pod: &PodStatus) -> Cell {
    if pod.bypassed == 0 {
        return number(pod.passed);
    }
    Cell::new(format!("{} ({}!)", units::count(pod.passed), units::count(pod.bypassed)), Tone::Bad)
}

fn number(value: u64) -> Cell {
    Cell::new(units::count(value), if value == 0 { Tone::Dim } else { Tone::Plain })
}

fn trouble(value: u64) -> Cell {
    Cell::new(units::count(value), if value == 0 { Tone::Dim } else { Tone::Bad })
}

fn refused(pod: &PodStatus) -> Cell {
    Cell::new(units::count(pod.refused), if pod.refused == 0 { Tone::Dim } else { Tone::Warn })
}

fn size(value: u64) -> Cell {
    Cell::new(units::bytes(value), if value == 0 { Tone::Dim } else { Tone::Plain })
}

fn direct_share(direct: u64, total: u64) -> Cell {
    if total == 0 { Cell::new("-", Tone::Dim) } else { units::percent(direct as f64 / total as f64).into() }
}

fn relayed_bytes(relay: &RelayStatus) -> u64 {
    relay.to_upstream_bytes + relay.to_downstream_bytes
}
