//! What the authority's HTTP listener tells.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    admin::http::Pages,
    ca::{Authority, cluster::Pods, server::Counts},
    telemetry::{
        Exposition, Family, Format,
        Kind::{self, Counter, Gauge},
    },
};

const fn family(name: &'static str, kind: Kind, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind, help, labels }
}

static SIGNED: Family = family("mesh_ca_signed_total", Counter, &[], "Certificates signed.");
static REFUSED: Family = family("mesh_ca_refused_total", Counter, &["reason"], "Calls refused.");
static PODS: Family = family("mesh_ca_pods", Gauge, &[], "Pods with a node that have not ended.");
static KEPT: Family = family(
    "mesh_ca_bundle_published",
    Gauge,
    &[],
    "Whether root and trust bundle were as they should be at the last look.",
);
static ROOT: Family =
    family("mesh_ca_root_expiry_timestamp_seconds", Gauge, &[], "When the last of the roots that are trusted expires.");
static SIGNER: Family =
    family("mesh_ca_signer_expiry_timestamp_seconds", Gauge, &[], "When the certificate that signs expires.");

/// What there is once the root is known.
pub(super) struct Opened {
    pub(super) authority: Arc<Authority>,
    pub(super) counts: Arc<Counts>,
    pub(super) is_kept: Arc<AtomicBool>,
}

/// How far the authority has come.
pub(super) struct Progress {
    pods: Arc<Pods>,
    opened: OnceLock<Opened>,
}

impl Progress {
    pub(super) fn new(pods: Arc<Pods>) -> Self {
        Self { pods, opened: OnceLock::new() }
    }

    /// The root is known.
    pub(super) fn open(&self, opened: Opened) {
        // There is one start.
        let _first = self.opened.set(opened);
    }
}

impl Pages for Progress {
    /// One thread does everything: if it is stuck, nobody answers.
    async fn stuck(&self) -> Vec<String> {
        Vec::new()
    }

    /// What is known stays known: without the API server a replica is as good as any other.
    async fn waiting_for(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        if self.opened.get().is_none() {
            waiting.push("the root".to_owned());
        }
        if self.pods.known().is_none() {
            waiting.push("the pods of the cluster".to_owned());
        }
        waiting
    }

    async fn metrics(&self, format: Format) -> String {
        let mut text = Exposition::new(format);
        text.family(&PODS).count(&[], self.pods.known().unwrap_or_default() as u64);
        if let Some(Opened { authority, counts, is_kept }) = self.opened.get() {
            text.family(&SIGNED).count(&[], counts.signed());
            let mut refused = text.family(&REFUSED);
            for (reason, count) in counts.refused() {
                refused.count(&[reason.code()], count);
            }
            text.family(&KEPT).count(&[], u64::from(is_kept.load(Ordering::Relaxed)));
            text.family(&ROOT).add(&[], authority.root_expiry().map_or(0.0, seconds));
            text.family(&SIGNER).add(&[], seconds(authority.signer_expiry()));
        }
        text.finish()
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let documented = std::fs::read_to_string(path).unwrap();
        for family in [&SIGNED, &REFUSED, &PODS, &KEPT, &ROOT, &SIGNER] {
            assert!(documented.contains(&format!("`{}`", family.name)), "{}", family.name);
        }
    }
}
