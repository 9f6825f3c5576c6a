//! Lengths of time, and what is said of them.

use std::time::Duration;

use serde_json::{Value, json};

/// Lengths of time that were measured.
#[derive(Debug, Default)]
pub(crate) struct Tally(Vec<Duration>);

impl Tally {
    /// One more.
    pub(crate) fn add(&mut self, length: Duration) {
        self.0.push(length);
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Percentiles, in microseconds; zero of nothing.
    pub(crate) fn summary(&mut self) -> Value {
        self.0.sort_unstable();
        let at = |share: f64| {
            let index = (share * self.0.len() as f64).ceil() as usize;
            self.0.get(index.saturating_sub(1)).map_or(0, Duration::as_micros)
        };
        json!({"p50": at(0.5) as u64, "p90": at(0.9) as u64, "p99": at(0.99) as u64, "max": at(1.0) as u64})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let mut tally = Tally::default();
        assert_eq!(tally.summary(), json!({"p50": 0, "p90": 0, "p99": 0, "max": 0}));
        (1..=200).rev().for_each(|micros| tally.add(Duration::from_micros(micros)));
        assert_eq!(tally.summary(), json!({"p50": 100, "p90": 180, "p99": 198, "max": 200}));
        assert_eq!(tally.count(), 200);
    }
}
