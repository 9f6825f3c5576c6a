//! What the HTTP listener tells of the agent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use mesh_common::WORKER_STALE_NS;
use tokio::{sync::Mutex, time::timeout};

use super::{
    answers::{Answers, Question},
    control::Control,
    pods::{Stage, may_be_armed},
    status,
};
use crate::{
    admin::{http::Pages, query, server::Source},
    model::{PodNetwork, Status, Workload},
    net::tcp_counters,
    proxy::WorkerHandle,
    telemetry::{Format, WorkerCounters, metrics, unix_now},
};

/// How long the control loop may take to answer, or to come round.
const PATIENCE: Duration = Duration::from_secs(5);
/// How old a status may be that anybody may ask for: what it costs is bounded so.
const FRESH: Duration = Duration::from_secs(1);

/// The pulse of the control loop, in milliseconds since its start.
#[derive(Debug)]
pub(super) struct Pulse {
    started: Instant,
    beat: AtomicU64,
}

/// The beat of a control loop that has ended its rounds on purpose: it drains.
const DRAINING: u64 = u64::MAX;

impl Default for Pulse {
    fn default() -> Self {
        Self { started: Instant::now(), beat: AtomicU64::new(0) }
    }
}

impl Pulse {
    /// The loop came round.
    pub(super) fn beat(&self) {
        self.beat.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// There will be no more rounds: what is open goes on until its end.
    pub(super) fn drain(&self) {
        self.beat.store(DRAINING, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.beat.load(Ordering::Relaxed) == DRAINING
    }

    fn age(&self) -> Duration {
        let beat = self.beat.load(Ordering::Relaxed);
        self.started.elapsed().saturating_sub(Duration::from_millis(beat))
    }
}

/// The agent's pages.
pub(super) struct AgentPages {
    answers: Arc<Answers>,
    workers: Vec<Arc<WorkerCounters>>,
    recent: Mutex<Option<(Instant, Arc<Status>)>>,
}

impl AgentPages {
    pub(super) fn new(answers: Arc<Answers>, workers: &[WorkerHandle]) -> Self {
        let workers = workers.iter().map(|worker| Arc::clone(&worker.counters)).collect();
        Self { answers, workers, recent: Mutex::new(None) }
    }

    /// The status, at most [`FRESH`] old. Who asks meanwhile waits for the same one.
    async fn recent(&self) -> Arc<Status> {
        let mut recent = self.recent.lock().await;
        if let Some((_, status)) = recent.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Arc::clone(status);
        }
        let status = Arc::new(self.answers.status().await);
        *recent = Some((Instant::now(), Arc::clone(&status)));
        status
    }
}

impl Pages for AgentPages {
    async fn stuck(&self) -> Vec<String> {
        let pulse = &self.answers.pulse;
        let mut stuck = Vec::new();
        if pulse.is_draining() {
            return stuck;
        }
        if pulse.age() > PATIENCE {
            stuck.push(format!("the control loop has not come round for {} s", pulse.age().as_secs()));
        }
        for (index, worker) in self.workers.iter().enumerate() {
            let age = worker.beat_age_ns();
            if worker.beat_ns.value() > 0 && age > WORKER_STALE_NS {
                stuck.push(format!("worker {index} has not beaten for {} ms", age / 1_000_000));
            }
        }
        stuck
    }

    async fn waiting_for(&self) -> Vec<String> {
        if self.answers.pulse.is_draining() {
            return vec!["its end: it drains".to_owned()];
        }
        let asked = self.answers.ask(Question::Readiness);
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| vec!["the control loop, which does not answer".to_owned()])
    }

    async fn metrics(&self, format: Format) -> String {
        let status = self.recent().await;
        metrics::write(format, &status, &self.answers.certificates(), unix_now())
    }

    async fn json(&self, path: &str, query: &str) -> Option<Vec<u8>> {
        match path {
            "/v1/status" => serde_json::to_vec(&*self.recent().await).ok(),
            "/v1/networks" => {
                let namespace = query::value(query, "namespace");
                let networks = self.answers.ask(|answer| Question::Networks(namespace, answer)).await;
                serde_json::to_vec(&networks).ok()
            }
            _ => None,
        }
    }
}

/// TCP in the networks of this node's pods, enrolled or not.
pub(super) fn networks(control: &Control, namespace: Option<&str>) -> Vec<PodNetwork> {
    let mesh = &control.mesh;
    let here = mesh.local.values().filter(|workload| !workload.host_network);
    let here = here.filter(|workload| namespace.is_none_or(|namespace| *workload.name.namespace == *namespace));
    let sample = |workload: &std::sync::Arc<Workload>| {
        let netns = control.pods.networks.of(workload)?.open().ok()?;
        let mut sample = netns.run(tcp_counters::sample).ok()?;
        sample.refused = refused(control, workload);
        Some(PodNetwork { name: workload.name.clone(), sample })
    };
    here.filter_map(sample).collect()
}

/// Connections of the pod that the kernel refused for the mesh.
fn refused(control: &Control, workload: &Workload) -> u64 {
    let counters = control.pods.enrolled.get(&workload.name).and_then(|pod| control.datapath.counters(pod.slot).ok());
    counters.map_or(0, |counters| status::refused(&counters))
}

/// What the agent is not ready for: the configuration, its hooks, and every pod that can be armed.
pub(super) fn waiting_for(control: &Control) -> Vec<String> {
    let mesh = &control.mesh;
    let mut waiting = Vec::new();
    if mesh.version == 0 {
        waiting.push("the first snapshot".to_owned());
    }
    let hooks = status::hooks(control);
    waiting.extend(hooks.iter().filter(|hook| !hook.armed).map(|hook| format!("hook {}", hook.program)));
    let unarmed = mesh.local.values().filter(|workload| {
        let is_armed = control.pods.enrolled.get(&workload.name).is_some_and(|pod| pod.stage == Stage::Armed);
        may_be_armed(mesh, workload) && control.pods.should_be_armed(mesh, workload) && !is_armed
    });
    waiting.extend(unarmed.map(|workload| {
        let problem = control.pods.failed.get(&workload.name).map(|problem| format!(": {}", problem.message));
        format!("pod {}{}", workload.name, problem.unwrap_or_default())
    }));
    waiting
}
