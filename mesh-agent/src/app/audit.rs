//! What the control thread reads into the audit's ledger, and the report it makes of it.

use std::sync::Arc;

use mesh_common::Counters;

use super::{
    control::Control,
    pods::{Enrolled, Stage},
    status,
};
use crate::{
    model::{Audit, ObjectName, RelayStatus, Shares, Volume},
    telemetry::{
        audit::{PodSample, UNSEEN},
        unix_now,
    },
};

impl Control {
    /// Reads what the kernel has counted: for bypasses, and for the audit.
    pub(super) fn watch(&mut self) {
        let counted: Vec<(ObjectName, Counters)> = self
            .pods
            .enrolled
            .iter()
            .filter_map(|(name, pod)| Some((name.clone(), self.datapath.counters(pod.slot).ok()?)))
            .collect();
        self.watch_bypasses(&counted);
        let enrolled = &self.pods.enrolled;
        let samples = counted.iter().filter_map(|(name, now)| Some((name, sample(enrolled.get(name)?, now))));
        self.ledger.sample(unix_now(), samples);
    }

    /// The report of the last `period` seconds.
    pub(super) fn audit(&mut self, period: u64) -> Audit {
        self.watch();
        let pods: Vec<_> = status::states(self).collect();
        let node = &self.mesh.node.name;
        self.ledger.report(unix_now(), period, node, env!("CARGO_PKG_VERSION"), &pods)
    }
}

fn sample(pod: &Enrolled, now: &Counters) -> PodSample {
    let since = now.since(&pod.base);
    PodSample {
        instance: Arc::as_ptr(&pod.pod) as u64,
        armed: pod.stage == Stage::Armed,
        shares: shares(pod, &since),
        unseen: unseen(&since),
        unseen_before: unseen(&pod.base),
    }
}

/// What went which way: relayed connections as the workers count them, direct ones as the kernel does; the bytes of those
/// when they are closed.
pub(super) fn shares(pod: &Enrolled, since: &Counters) -> Shares {
    let mut shares = Shares::default();
    for counters in &pod.pod.counters {
        counters.add_shares_to(&mut shares);
    }
    let bytes = since.direct_sent_bytes + since.direct_received_bytes;
    shares.local.add(Volume { connections: since.direct_opened, bytes });
    shares
}

/// In the order of [`UNSEEN`].
fn unseen(counters: &Counters) -> [u64; UNSEEN.len()] {
    [
        counters.out_excluded,
        counters.out_passed_unavailable,
        counters.out_passed_unredirectable,
        counters.out_no_address,
        counters.in_node,
        counters.in_excluded,
        counters.in_passed_unavailable,
    ]
}

/// Relayed connections of both directions.
pub(super) fn relayed(pod: &Enrolled) -> (RelayStatus, RelayStatus) {
    let (mut outbound, mut inbound) = (RelayStatus::default(), RelayStatus::default());
    for counters in &pod.pod.counters {
        counters.outbound.add_to(&mut outbound);
        counters.inbound.add_to(&mut inbound);
    }
    (outbound, inbound)
}
