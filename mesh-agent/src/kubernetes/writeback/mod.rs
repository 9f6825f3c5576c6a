//! What the agent writes to the API server about the pods of its node: the annotation `mesh-agent.io/status` of those that
//! are enrolled, and Events about those with problems. Nothing else is ever written, and nothing while nothing changes.
//!
//! What is to be written is decided here, purely; `actor` does it.

mod actor;
mod bucket;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use actor::{Feed, start};
use serde::{Deserialize, Serialize};

use crate::model::{Mode, ObjectName, PodState, PodUid, Reason};

/// The annotation.
pub const STATUS: &str = "mesh-agent.io/status";

/// Longest message in an annotation, in bytes.
const MAX_MESSAGE: usize = 256;

/// What the agent knows of a pod of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The pod.
    pub name: ObjectName,
    /// By which it is told from another one of that name.
    pub uid: Option<PodUid>,
    /// Whether it is to be captured.
    pub enrolled: bool,
    /// Whether it is.
    pub state: PodState,
    /// What becomes of plaintext to it.
    pub mode: Mode,
    /// What is wrong with it.
    pub problem: Option<(Reason, String)>,
}

/// The annotation's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// `armed`, or `failed`.
    pub state: PodState,
    /// `permissive`, `strict` or `disabled`.
    pub mode: Mode,
    /// Since when all of this is so, RFC 3339.
    pub since: String,
    /// The code of what is wrong, if something is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl PodStatus {
    /// Reads the annotation; `None` for what no agent has written.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// As it is written.
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    fn says_the_same(&self, other: &Self) -> bool {
        Self { since: String::new(), ..self.clone() } == Self { since: String::new(), ..other.clone() }
    }
}

/// What the API server holds of a pod, as far as the agent knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    uid: Option<String>,
    /// The annotation; what cannot be read counts as another one.
    annotation: Option<String>,
}

/// One patch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    name: ObjectName,
    uid: Option<PodUid>,
    /// The new annotation; `None` removes it.
    annotation: Option<String>,
}

/// What the annotation of a pod is to say. Nothing of pods that are not enrolled; and nothing of those that are not there
/// yet, so that a pod that starts costs one write and not two.
fn wanted(report: &Report, now: &str) -> Option<PodStatus> {
    let is_told = matches!(report.state, PodState::Armed | PodState::Failed);
    let problem = report.problem.as_ref();
    (report.enrolled && is_told).then(|| PodStatus {
        state: report.state,
        mode: report.mode,
        since: now.to_owned(),
        reason: problem.map(|(reason, _)| reason.code().to_owned()),
        message: problem.map(|(_, message)| shortened(message)),
    })
}

fn shortened(message: &str) -> String {
    let mut end = message.len().min(MAX_MESSAGE);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.get(..end).unwrap_or_default().to_owned()
}

/// What has to be written so that the API server holds what the reports say. Pods without a report are left alone.
fn changes(reports: &[Report], held: &BTreeMap<ObjectName, Held>, now: &str) -> Vec<Change> {
    let change = |report: &Report| {
        // What is held of another pod of the same name says nothing about this one.
        let is_same = |held: &&Held| match (&held.uid, &report.uid) {
            (Some(held), Some(uid)) => held == uid.as_str() || !is_object_uid(uid),
            _ => true,
        };
        let held = held.get(&report.name).filter(is_same).and_then(|held| held.annotation.as_deref());
        let wanted = wanted(report, now);
        let is_waiting = report.enrolled && report.state == PodState::Waiting;
        let is_said = match (&wanted, held) {
            (None, None) => true,
            (None, Some(_)) => is_waiting,
            (Some(_), None) => false,
            (Some(wanted), Some(held)) => PodStatus::parse(held).is_some_and(|held| held.says_the_same(wanted)),
        };
        let annotation = wanted.map(|wanted| wanted.text());
        (!is_said).then(|| Change { name: report.name.clone(), uid: report.uid.clone(), annotation })
    };
    reports.iter().filter_map(change).collect()
}

/// Whether it is `metadata.uid`, and not the hash of a static pod's configuration, which the kubelet alone knows it by.
fn is_object_uid(uid: &PodUid) -> bool {
    uid.as_str().contains('-')
}

/// The problems that an Event is to be made of: those that were not told lately.
fn news<'a>(
    reports: &'a [Report],
    was_told: &'a impl Fn(&ObjectName, Reason) -> bool,
) -> impl Iterator<Item = (&'a Report, Reason, &'a str)> {
    reports.iter().filter_map(|report| {
        let (reason, message) = report.problem.as_ref()?;
        (!was_told(&report.name, *reason)).then_some((report, *reason, message.as_str()))
    })
}
