//! What the formats of the audit have in common: shares and gaps, computed and in words.

use crate::{
    cli::output::time,
    model::{Audit, Coverage, Direction, PodState, Shares, Volume},
};

/// The parts of a whole, largest claim first: name, what it means, volume.
pub(super) fn parts(shares: &Shares) -> [(&'static str, &'static str, Volume); 3] {
    [
        ("encrypted", "Encrypted with mutual TLS; both ends proved who they are.", shares.mutual),
        ("local", "Between two ends on this node; no byte of it left the node.", shares.local),
        ("plaintext", "Across the node's edge as the apps wrote it, unencrypted by the mesh.", shares.plaintext),
    ]
}

/// `part` of `whole`, 0 to 1; `None` of nothing.
pub(super) fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// `to` or `from`, seen from the pod.
pub(super) fn arrow(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "to",
        Direction::Inbound => "from",
    }
}

/// How far a pod is in the mesh.
pub(super) fn state(state: PodState) -> &'static str {
    match state {
        PodState::Off => "not in the mesh",
        PodState::Armed => "in the mesh",
        PodState::Draining => "leaving the mesh",
        PodState::Failed => "enrolled, NOT captured",
        PodState::Waiting => "enrolled, not started yet",
        PodState::Remote => "on another node",
    }
}

/// When the pod was observed within the period of the report, in words; empty if never.
pub(super) fn observed(audit: &Audit, pod: &Coverage) -> String {
    let spans: Vec<(u64, u64)> = pod
        .observed
        .iter()
        .map(|interval| (interval.from.max(audit.since), interval.until.unwrap_or(audit.generated)))
        .filter(|(from, until)| from <= until)
        .collect();
    match spans.as_slice() {
        [(from, until)] if *from == audit.since && *until == audit.generated => "the whole period".to_owned(),
        spans => {
            let spans: Vec<_> = spans
                .iter()
                .map(|(from, until)| format!("{} to {}", time::clock(*from), time::clock(*until)))
                .collect();
            spans.join(", ")
        }
    }
}

/// Times in the period when no agent, or no agent that tells of it, observed anything.
pub(super) fn blind_spot(audit: &Audit) -> Option<(u64, u64)> {
    (audit.agent_started > audit.since).then_some((audit.since, audit.agent_started))
}

/// Connections that nobody saw the bytes of.
pub(super) fn unobserved(audit: &Audit) -> u64 {
    audit.unobserved.iter().map(|row| row.connections).sum()
}
