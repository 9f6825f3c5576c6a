//! What a client measured.

use std::time::Duration;

use serde::Serialize;

/// Latencies of single requests, kept one by one: percentiles are exact.
pub(crate) struct Tally {
    latencies: Vec<u32>,
    total: u64,
    errors: u64,
    first_error: Option<String>,
}

/// One line of JSON. Latencies are in microseconds.
#[derive(Serialize)]
pub(crate) struct Report {
    /// Seconds that were measured, without the warm-up.
    secs: f64,
    /// Requests that began in those seconds and were answered.
    n: usize,
    /// Requests answered, the warm-up included: what the CPU time of a whole run was spent on.
    total: u64,
    /// Requests that failed, the warm-up included.
    errors: u64,
    /// Why the first of them did.
    first_error: Option<String>,
    rps: f64,
    mean_us: f64,
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl Tally {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self { latencies: Vec::with_capacity(1 << 20), total: 0, errors: 0, first_error: None }
    }

    /// An answered request; `latency` if it counts, that is after the warm-up.
    pub(crate) fn answered(&mut self, latency: Option<Duration>) {
        self.total += 1;
        if let Some(latency) = latency {
            self.latencies.push(u32::try_from(latency.as_nanos()).unwrap_or(u32::MAX));
        }
    }

    /// A failed request.
    pub(crate) fn failed(&mut self, why: impl FnOnce() -> String) {
        self.errors += 1;
        self.first_error.get_or_insert_with(why);
    }

    /// Failed requests so far.
    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    /// The result over `secs` measured seconds.
    pub(crate) fn report(mut self, secs: f64) -> Report {
        self.latencies.sort_unstable();
        let n = self.latencies.len();
        let sum: f64 = self.latencies.iter().map(|&ns| f64::from(ns)).sum();
        let at = |share: f64| {
            let index = ((share * n as f64) as usize).min(n.saturating_sub(1));
            self.latencies.get(index).map_or(0.0, |&ns| f64::from(ns) / 1e3)
        };
        Report {
            secs,
            n,
            total: self.total,
            errors: self.errors,
            rps: n as f64 / secs,
            mean_us: if n == 0 { 0.0 } else { sum / n as f64 / 1e3 },
            p50_us: at(0.50),
            p90_us: at(0.90),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
            first_error: self.first_error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_and_leave_the_warm_up_out() {
        let mut tally = Tally::new();
        tally.answered(None);
        for us in (1..=100).rev() {
            tally.answered(Some(Duration::from_micros(us)));
        }
        tally.failed(|| "first".into());
        tally.failed(|| "second".into());
        let report = tally.report(2.0);
        assert_eq!((report.n, report.total, report.errors), (100, 101, 2));
        assert_eq!((report.p50_us, report.p99_us, report.max_us), (51.0, 100.0, 100.0));
        assert_eq!((report.mean_us, report.rps), (50.5, 50.0));
        assert_eq!(report.first_error.as_deref(), Some("first"));
    }

    #[test]
    fn nothing_measured_is_zero_not_nonsense() {
        let report = Tally::new().report(1.0);
        assert_eq!((report.n, report.p50_us, report.mean_us), (0, 0.0, 0.0));
    }
}
