//! Verdicts worth a note, counted by who called whom and which object decided.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::model::Verdicted;

/// Most different ones that are counted apart: callers without an identity cannot make more, but it is bounded all the
/// same.
const MOST: usize = 4096;
/// Most lines of log in a [`WINDOW`]; what is beyond that is counted and not written.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);

/// The counts of one thread. Refusals are rare, so a lock will do.
#[derive(Debug, Default)]
pub struct Verdicts(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<Verdicted, u64>,
    window: Option<Instant>,
    lines: u32,
    unwritten: u64,
}

impl Verdicts {
    /// Counts one, and writes it to the log.
    pub fn note(&self, verdict: Verdicted) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unwritten = state.may_write();
        if let Some(unwritten) = unwritten {
            write(&verdict, unwritten);
        }
        let is_full = state.counts.len() >= MOST;
        match state.counts.get_mut(&verdict) {
            Some(count) => *count += 1,
            None if is_full => {}
            None => {
                state.counts.insert(verdict, 1);
            }
        }
    }

    /// Adds the counts to a sum over threads.
    pub fn add_to(&self, sum: &mut BTreeMap<Verdicted, u64>) {
        for (verdict, n) in &self.0.lock().unwrap_or_else(PoisonError::into_inner).counts {
            *sum.entry(verdict.clone()).or_default() += n;
        }
    }
}

impl State {
    /// Whether another line may be written; then, how many were not since the last one.
    fn may_write(&mut self) -> Option<u64> {
        if self.window.is_none_or(|since| since.elapsed() >= WINDOW) {
            self.window = Some(Instant::now());
            self.lines = 0;
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines > LINES {
            self.unwritten += 1;
            return None;
        }
        Some(std::mem::take(&mut self.unwritten))
    }
}

fn write(verdict: &Verdicted, unwritten: u64) {
    let Verdicted { outcome, reason, source, target, destination, destination_port, object } = verdict;
    tracing::info!(
        target: "access",
        outcome = outcome.name(),
        reason = reason.code(),
        source = source.as_ref().map(tracing::field::display),
        workload = %target,
        destination = %destination,
        port = destination_port,
        object = object.as_ref().map(tracing::field::display),
        unwritten = (unwritten > 0).then_some(unwritten),
        "authorization"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Outcome, Reason};

    fn verdict(port: u16) -> Verdicted {
        Verdicted {
            outcome: Outcome::Denied,
            reason: Reason::PolicyNoMatch,
            source: None,
            target: ObjectName::new("shop", "web-0"),
            destination: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
            destination_port: port,
            object: None,
        }
    }

    #[test]
    fn the_same_are_counted_together_and_the_number_of_others_is_bounded() {
        let verdicts = Verdicts::default();
        for port in (0..5000).chain([7, 7]) {
            verdicts.note(verdict(port));
        }
        let mut sum = BTreeMap::from([(verdict(7), 10)]);
        verdicts.add_to(&mut sum);
        assert_eq!(sum.len(), MOST);
        assert_eq!(sum[&verdict(7)], 13);
    }

    #[test]
    fn a_flood_does_not_fill_the_log() {
        let mut state = State::default();
        let written = (0..1000).filter(|_| state.may_write().is_some()).count();
        assert_eq!(written, LINES as usize);
        state.window = Instant::now().checked_sub(WINDOW);
        assert_eq!(state.may_write(), Some(900));
    }
}
