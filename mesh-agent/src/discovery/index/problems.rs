//! What is wrong, by what it comes of.

use std::{collections::BTreeMap, net::IpAddr, path::Path, sync::Arc};

use crate::{
    discovery::object::Loaded,
    model::{ObjectName, Problem, Reason, Severity},
};

/// What problems come of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// Several claim the address.
    Address(IpAddr),
    /// Policies of the whole mesh, where there are workloads.
    Mesh,
    /// Policies of a namespace, where that has workloads.
    Namespace(Arc<str>),
    /// Policies of a namespace by themselves.
    Policies(Arc<str>),
    Pod(ObjectName),
}

/// All problems.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// What was wrong before anything was joined.
    given: Arc<[Problem]>,
    by_cause: BTreeMap<Cause, Vec<Problem>>,
    has_changed: bool,
}

impl Problems {
    pub(super) fn give(&mut self, given: &Arc<[Problem]>) {
        if !Arc::ptr_eq(&self.given, given) {
            self.has_changed |= self.given != *given;
            self.given = Arc::clone(given);
        }
    }

    /// What comes of something now, in place of what came of it before.
    pub(super) fn set(&mut self, cause: Cause, problems: Vec<Problem>) {
        let known = self.by_cause.get(&cause).map_or(&[][..], Vec::as_slice);
        if *known == *problems {
            return;
        }
        self.has_changed = true;
        if problems.is_empty() {
            self.by_cause.remove(&cause);
        } else {
            self.by_cause.insert(cause, problems);
        }
    }

    /// All of them, if there are others than when this was last asked.
    pub(super) fn changed(&mut self) -> Option<Arc<[Problem]>> {
        if !std::mem::take(&mut self.has_changed) {
            return None;
        }
        Some(in_order(self.given.iter().chain(self.by_cause.values().flatten()).cloned().collect()))
    }
}

/// By place. That two objects contradict each other is said once, for however many workloads they do.
pub(super) fn in_order(mut problems: Vec<Problem>) -> Arc<[Problem]> {
    type Order<'a> = (Option<&'a Path>, usize, Reason, [&'a str; 4]);
    fn order(problem: &Problem) -> Order<'_> {
        let Problem { reason, severity: _, location, object, field, message, remedy } = problem;
        (location.file.as_ref().map(|file| file.as_path()), location.line, *reason, [object, field, message, remedy])
    }
    problems.sort_by(|a, b| order(a).cmp(&order(b)));
    problems.dedup_by(|a, b| a.reason == Reason::PolicyConflict && a == b);
    problems.into()
}

/// A problem of an object.
pub(super) fn problem(reason: Reason, loaded: &Loaded, field: &str, message: String) -> Problem {
    Problem {
        reason,
        severity: Severity::Error,
        location: loaded.location.clone(),
        object: loaded.key.to_string(),
        field: field.into(),
        message,
        remedy: reason.remedy().into(),
    }
}

/// By where they were read.
pub(super) fn in_order_of_place(objects: &mut [Loaded]) {
    let place = |loaded: &Loaded| (loaded.location.file.clone(), loaded.location.line, loaded.key.clone());
    objects.sort_by_cached_key(place);
}
