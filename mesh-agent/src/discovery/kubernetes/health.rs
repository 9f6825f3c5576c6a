//! How the watches stand, and what is to be told of that.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use super::{failure::Failure, resource::Resource};
use crate::{
    discovery::object::Kind,
    model::{Location, Problem, Reason, Severity},
};

/// How a watch stands.
#[derive(Clone, Debug)]
struct State {
    plural: &'static str,
    /// Its objects were all told once.
    is_complete: bool,
    is_absent: bool,
    is_followed: bool,
    /// Until when it was followed.
    until: Option<Instant>,
    failure: Option<Failure>,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Health {
    node: Arc<str>,
    kinds: BTreeMap<Kind, State>,
    has_waited: bool,
}

impl Health {
    pub(super) fn new(resources: &[Resource], node: Arc<str>) -> Self {
        let state = |resource: &Resource| State {
            plural: resource.plural(),
            is_complete: false,
            is_absent: false,
            is_followed: false,
            until: None,
            failure: None,
        };
        let kinds = resources.iter().map(|resource| (resource.kind, state(resource))).collect();
        Self { node, kinds, has_waited: false }
    }

    // What has become of a watch; each returns whether that is to be told.

    pub(super) fn synced(&mut self, kind: Kind) -> bool {
        self.of(kind, |state| {
            state.is_complete = true;
            state.is_absent = false;
        });
        self.following(kind)
    }

    pub(super) fn absent(&mut self, kind: Kind) -> bool {
        self.of(kind, |state| {
            state.is_complete = true;
            state.is_absent = true;
        });
        self.following(kind)
    }

    pub(super) fn following(&mut self, kind: Kind) -> bool {
        self.of(kind, |state| {
            state.is_followed = true;
            state.failure = None;
        });
        true
    }

    pub(super) fn lost(&mut self, kind: Kind) -> bool {
        self.of(kind, |state| {
            state.is_followed = false;
            state.until = Some(Instant::now());
        });
        true
    }

    pub(super) fn broken(&mut self, kind: Kind, failure: Failure) -> bool {
        let Some(state) = self.kinds.get_mut(&kind) else { return false };
        if state.is_followed {
            // Absent until now, and no longer known to be.
            state.is_followed = false;
            state.until = Some(Instant::now());
        }
        let is_news = state.failure.as_ref() != Some(&failure);
        if is_news {
            tracing::warn!(kind = state.plural, %failure, reason = failure.reason().code(), "cannot be followed");
        }
        state.failure = Some(failure);
        is_news
    }

    fn of(&mut self, kind: Kind, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.kinds.get_mut(&kind) {
            change(state);
        }
    }

    /// It has taken long enough to tell what is missing.
    pub(super) fn waited(&mut self) {
        self.has_waited = true;
    }

    pub(super) fn has_waited(&self) -> bool {
        self.has_waited || self.is_complete()
    }

    /// Every kind has been told once, or is known not to be there.
    pub(super) fn is_complete(&self) -> bool {
        self.kinds.values().all(|state| state.is_complete)
    }

    /// Something is wrong.
    pub(super) fn is_troubled(&self) -> bool {
        self.kinds.values().any(|state| state.failure.is_some())
    }

    /// Every change is seen.
    pub(super) fn is_followed(&self) -> bool {
        self.kinds.values().all(|state| state.is_followed)
    }

    /// Up to when every change was seen; `None` if never.
    pub(super) fn read_at(&self) -> Option<Instant> {
        let now = Instant::now();
        if !self.is_complete() {
            return None;
        }
        let until = self.kinds.values().map(|state| if state.is_followed { Some(now) } else { state.until });
        until.min().flatten()
    }

    /// Kinds that the server does not have.
    pub(super) fn absentees(&self) -> Vec<&'static str> {
        self.kinds.iter().filter(|(_, state)| state.is_absent).map(|(kind, _)| kind.name()).collect()
    }

    /// What is wrong with the watches.
    pub(super) fn problems(&self, has_own_node: bool) -> Vec<Problem> {
        let broken = self.kinds.values().filter_map(|state| {
            let failure = state.failure.as_ref()?;
            let what = if state.is_complete { "the last state stays in force" } else { "nothing is known of them yet" };
            Some(problem(failure.reason(), format!("Watch {}", state.plural), format!("{failure}; {what}")))
        });
        let mut problems: Vec<_> = broken.collect();
        let missing: Vec<_> =
            self.kinds.values().filter(|state| !state.is_complete).map(|state| state.plural).collect();
        if self.has_waited && !missing.is_empty() {
            let message = format!("waits for the first list of {}", missing.join(", "));
            problems.push(problem(Reason::SourceIncomplete, "Source".into(), message));
        }
        let knows_nodes = self.kinds.get(&Kind::Node).is_some_and(|state| state.is_complete);
        if knows_nodes && !has_own_node {
            let message = format!("the cluster has no Node {:?}", &*self.node);
            problems.push(problem(Reason::NodeUnknown, format!("Node {}", self.node), message));
        }
        problems
    }
}

fn problem(reason: Reason, object: String, message: String) -> Problem {
    Problem {
        reason,
        severity: Severity::Error,
        location: Location::default(),
        object,
        field: String::new(),
        message,
        remedy: reason.remedy().into(),
    }
}
