//! Faults on order: which requests, what happens to them, how often.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

pub use super::body::Pace;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is answered later.
    Delay(Duration),
    /// A `Status` with this code, and `Retry-After` in seconds.
    Refuse {
        /// HTTP code.
        code: u16,
        /// Header `Retry-After`.
        retry_after: Option<u32>,
    },
    /// The answer comes at a pace, or breaks off.
    Slow(Pace),
    /// The connection (or HTTP/2 stream) is broken without an answer.
    Break,
    /// Never an answer.
    Silence,
}

/// A fault: an effect on the requests that match. Empty text matches all.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Verb as RBAC names it, or the method in lower case for paths that are no resource.
    pub verb: String,
    /// What the path contains.
    pub path: String,
    /// What happens.
    pub effect: Effect,
    /// To how many requests; none is to all.
    pub times: Option<u32>,
}

impl Fault {
    /// To all requests with this verb and a path that contains this.
    pub fn new(verb: &str, path: &str, effect: Effect) -> Self {
        Self { verb: verb.to_owned(), path: path.to_owned(), effect, times: None }
    }

    /// To so many requests only.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times: Some(times), ..self }
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(super) fn add(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The effect on a request: that of the first fault that matches.
    pub(super) fn strike(&self, verb: &str, path: &str) -> Option<Effect> {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let matches = |fault: &&mut Fault| {
            (fault.verb.is_empty() || fault.verb == verb) && path.contains(&fault.path) && fault.times != Some(0)
        };
        let fault = faults.iter_mut().find(matches)?;
        if let Some(times) = &mut fault.times {
            *times -= 1;
        }
        Some(fault.effect)
    }
}

/// A request that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Verb as RBAC names it, or the method in lower case.
    pub verb: String,
    /// Path without the query.
    pub path: String,
    /// The query, as it came.
    pub query: String,
}

/// All requests since the last look.
#[derive(Debug, Default)]
pub(super) struct Requests(Mutex<Vec<Received>>);

impl Requests {
    pub(super) fn record(&self, verb: &str, path: &str, query: &str) {
        let received = Received { verb: verb.to_owned(), path: path.to_owned(), query: query.to_owned() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(received);
    }

    pub(super) fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn all(&self) -> Vec<Received> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
