//! Before and after, by what the kernel counts in the pods' network namespaces. Pure.

use std::collections::BTreeMap;

use crate::model::{NetworkSample, ObjectName, PodNetwork};

/// Connections that a window must have for its share of failures to mean anything.
const ENOUGH: u64 = 20;
/// Rises of the round trip time below this are noise, in microseconds.
const NOISE_US: f64 = 500.0;

/// How much worse it may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    /// Of the share of failed connections, in percentage points.
    pub(super) error_points: f64,
    /// Of the round trip time, in percent.
    pub(super) latency_percent: f64,
}

/// What happened in a window, in all pods together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Window {
    /// Connections that were begun or accepted, or that the mesh refused.
    pub(super) connections: u64,
    /// Those that came to nothing, were reset or were refused.
    pub(super) failures: u64,
    /// Mean round trip time of open connections, in microseconds.
    pub(super) round_trip_us: Option<f64>,
}

impl Window {
    /// Failed connections in percent.
    pub(super) fn failed_percent(&self) -> f64 {
        self.failures as f64 * 100.0 / self.connections.max(1) as f64
    }
}

/// Sums up samples that were taken one after the other. Pods that were not there all the time are left out.
pub(super) fn window(samples: &[Vec<PodNetwork>]) -> Window {
    let by_name = |sample: &Vec<PodNetwork>| -> BTreeMap<ObjectName, NetworkSample> {
        sample.iter().map(|pod| (pod.name.clone(), pod.sample)).collect()
    };
    let (Some(first), Some(last)) = (samples.first().map(by_name), samples.last().map(by_name)) else {
        return Window::default();
    };
    let mut window = Window::default();
    for (name, now) in &last {
        let Some(before) = first.get(name) else { continue };
        // A new sandbox has new counters.
        if now.active_opens < before.active_opens || now.passive_opens < before.passive_opens {
            continue;
        }
        let refused = now.refused.saturating_sub(before.refused);
        let opened = now.active_opens - before.active_opens + now.passive_opens - before.passive_opens;
        let failed = (now.attempt_fails + now.established_resets)
            .saturating_sub(before.attempt_fails + before.established_resets);
        window.connections += opened + refused;
        window.failures += failed + refused;
    }
    let all = || samples.iter().flatten();
    let count: u64 = all().map(|pod| pod.sample.round_trips).sum();
    let sum: u64 = all().map(|pod| pod.sample.round_trips_us).sum();
    window.round_trip_us = (count > 0).then(|| sum as f64 / count as f64);
    window
}

/// What is worse than allowed, in words; and what could not be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) worse: Vec<String>,
    pub(super) unknown: Vec<String>,
}

/// Compares.
pub(super) fn compare(before: &Window, after: &Window, limits: Limits) -> Verdict {
    let mut verdict = Verdict::default();
    let (was, is) = (before.failed_percent(), after.failed_percent());
    if after.connections < ENOUGH {
        verdict.unknown.push(format!("failures: only {} connections since", after.connections));
    } else if before.connections < ENOUGH && is - was <= limits.error_points {
        verdict.unknown.push(format!("failures: only {} connections before", before.connections));
    } else if is - was > limits.error_points {
        verdict.worse.push(format!(
            "{is:.2} % of connections fail, {was:.2} % did before: more than {} points worse",
            limits.error_points
        ));
    }
    match (before.round_trip_us, after.round_trip_us) {
        (Some(was), Some(is)) if is - was > NOISE_US && is > was * (1.0 + limits.latency_percent / 100.0) => {
            verdict.worse.push(format!(
                "round trips take {:.2} ms, they took {:.2} ms before: more than {} % longer",
                is / 1e3,
                was / 1e3,
                limits.latency_percent
            ));
        }
        (Some(_), Some(_)) => {}
        _ => verdict.unknown.push("round trips: no connection was open".to_owned()),
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { error_points: 1.0, latency_percent: 50.0 };

    fn sample(pod: &str, opens: u64, fails: u64, round_trip: u64) -> PodNetwork {
        let sample = NetworkSample {
            active_opens: opens,
            attempt_fails: fails,
            round_trips_us: round_trip,
            round_trips: u64::from(round_trip > 0),
            ..NetworkSample::default()
        };
        PodNetwork { name: ObjectName::new("shop", pod), sample }
    }

    #[test]
    fn a_window_is_what_came_between_in_pods_that_were_there() {
        let first = vec![sample("a", 100, 10, 200), sample("restarted", 900, 9, 0), sample("gone", 5, 5, 0)];
        let last = vec![sample("a", 200, 15, 400), sample("restarted", 3, 3, 0), sample("new", 70, 70, 0)];
        let window = window(&[first, last]);
        assert_eq!((window.connections, window.failures), (100, 5));
        assert_eq!(window.round_trip_us, Some(300.0));
    }

    #[test]
    fn what_the_mesh_refuses_counts_as_failed() {
        let mut after = sample("a", 100, 0, 0);
        after.sample.refused = 100;
        let window = window(&[vec![sample("a", 0, 0, 0)], vec![after]]);
        assert_eq!((window.connections, window.failures), (200, 100));
        let verdict = compare(&Window { connections: 100, ..Window::default() }, &window, LIMITS);
        assert_eq!(verdict.worse.len(), 1, "{verdict:?}");
    }

    #[test]
    fn worse_is_only_what_exceeds_a_limit_and_is_no_noise() {
        let of = |failures, round_trip| Window { connections: 1000, failures, round_trip_us: Some(round_trip) };
        for (before, after, worse) in [
            (of(10, 1000.0), of(20, 1400.0), 0),
            (of(10, 1000.0), of(21, 1000.0), 1),
            (of(10, 1000.0), of(10, 1600.0), 1),
            (of(10, 100.0), of(0, 500.0), 0),
            (of(10, 1000.0), of(500, 9000.0), 2),
        ] {
            let verdict = compare(&before, &after, LIMITS);
            assert_eq!(verdict.worse.len(), worse, "{before:?} {after:?}: {verdict:?}");
            assert_eq!(verdict.unknown, [] as [&str; 0]);
        }
    }

    #[test]
    fn without_traffic_nothing_is_claimed() {
        let verdict = compare(&Window::default(), &Window::default(), LIMITS);
        assert_eq!((verdict.worse.len(), verdict.unknown.len()), (0, 2));
        // Nothing before, and failures now: that is worse all the same.
        let failing = Window { connections: 100, failures: 50, round_trip_us: None };
        assert_eq!(compare(&Window::default(), &failing, LIMITS).worse.len(), 1);
    }
}
