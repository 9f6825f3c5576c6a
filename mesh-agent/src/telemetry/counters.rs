//! Counters with one writer each: a worker counts in its own, the control thread adds up.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};

use super::Verdicts;
use crate::model::{Reason, RelayStatus, Shares, Transport, Volume};

/// CLOCK_MONOTONIC in nanoseconds, by which workers beat and the kernel judges them.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| Duration::from(t).as_nanos() as u64)
}

/// A counter with one writer: a plain load and store, no locked instruction.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds; only ever from one thread.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Overwrites; only ever from one thread.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The value, from any thread.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Relayed connections of one pod, direction and worker.
#[derive(Debug, Default)]
pub struct DirectionCounters {
    /// Accepted.
    pub opened: Count,
    /// Ended.
    pub closed: Count,
    /// Ended with a reason other than `ok`.
    pub failed: Count,
    /// Bytes from downstream to upstream.
    pub to_upstream: Count,
    /// Bytes from upstream to downstream.
    pub to_downstream: Count,
    /// Connections of other agents, which carry those of apps.
    pub tunnels: Count,
    /// Of `opened`: those that came through such a connection, or say why it failed.
    pub tunneled: Count,
}

impl DirectionCounters {
    /// Connections that were accepted from the kernel, each once.
    pub fn accepted(&self) -> u64 {
        // First what is taken away: a connection that comes meanwhile must not be missing.
        let tunneled = self.tunneled.value();
        (self.opened.value() + self.tunnels.value()).saturating_sub(tunneled)
    }

    /// Adds the values to a sum over workers.
    pub fn add_to(&self, sum: &mut RelayStatus) {
        // Closed first: a connection that opens and ends meanwhile must not make the difference negative.
        let closed = self.closed.value();
        let opened = self.opened.value();
        sum.open += opened.saturating_sub(closed);
        sum.total += opened;
        sum.failed += self.failed.value();
        sum.to_upstream_bytes += self.to_upstream.value();
        sum.to_downstream_bytes += self.to_downstream.value();
    }
}

/// Connections of one pod and worker that went one way, in both directions.
#[derive(Debug, Default)]
pub struct TransportCounters {
    /// Made.
    pub connections: Count,
    /// Bytes of them, both ways.
    pub bytes: Count,
}

impl TransportCounters {
    fn volume(&self) -> Volume {
        Volume { connections: self.connections.value(), bytes: self.bytes.value() }
    }
}

/// What one worker counts for one pod.
#[derive(Debug, Default)]
pub struct PodCounters {
    /// By [`Transport::index`].
    pub transports: [TransportCounters; Transport::KINDS],
    /// Connections that the pod opened.
    pub outbound: DirectionCounters,
    /// Connections that the pod got.
    pub inbound: DirectionCounters,
}

impl PodCounters {
    /// Adds how much went which way.
    pub fn add_shares_to(&self, sum: &mut Shares) {
        let [local, mutual, plaintext] = self.transports.each_ref().map(TransportCounters::volume);
        sum.add(&Shares { mutual, local, plaintext });
    }
}

/// What one worker counts for itself.
#[derive(Debug)]
pub struct WorkerCounters {
    /// The CPU it is pinned to.
    pub cpu: u32,
    /// Connections accepted.
    pub accepted: Count,
    /// Connections ended.
    pub closed: Count,
    /// How late the last beat was, in nanoseconds.
    pub lag_ns: Count,
    /// CLOCK_MONOTONIC of the last beat, in nanoseconds.
    pub beat_ns: Count,
    /// Connections that waited for the agent of another node.
    pub peer_waits: Count,
    /// What policies refused or noted.
    pub verdicts: Verdicts,
    reasons: [Count; Reason::ALL.len()],
}

impl WorkerCounters {
    /// All zero.
    pub fn new(cpu: u32) -> Self {
        Self {
            cpu,
            accepted: Count::default(),
            closed: Count::default(),
            lag_ns: Count::default(),
            beat_ns: Count::default(),
            peer_waits: Count::default(),
            verdicts: Verdicts::default(),
            reasons: std::array::from_fn(|_| Count::default()),
        }
    }

    /// Time since the last beat, in nanoseconds; beyond [`mesh_common::WORKER_STALE_NS`] the kernel passes the worker over.
    pub fn beat_age_ns(&self) -> u64 {
        monotonic_ns().saturating_sub(self.beat_ns.value())
    }

    /// Counts an ended connection.
    pub fn ended(&self, reason: Reason) {
        if let Some(count) = self.reasons.get(reason as usize) {
            count.add(1);
        }
    }

    /// Ended connections by reason, without those that never occurred.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.iter().zip(&self.reasons).map(|(reason, count)| (*reason, count.value())).filter(|(_, n)| *n > 0)
    }
}
