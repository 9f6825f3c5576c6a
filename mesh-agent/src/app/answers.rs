//! The admin server's way to the control loop.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{mpsc, oneshot};

use super::{SetLogFilter, ShowCertificates, pages::Pulse};
use crate::{
    admin::server::Source,
    explain::Query,
    model::{
        Audit, Certificates, DrainingAgent, Explanation, HandoverAnswer, HandoverRefusal, HandoverRequest, PodNetwork,
        Status,
    },
    telemetry::{WorkerCounters, unix_now},
};

/// What the control loop is asked.
pub(super) enum Question {
    /// How everything stands.
    Status(oneshot::Sender<Status>),
    /// What crossed the node's edge within so many seconds.
    Audit(u64, oneshot::Sender<Audit>),
    /// TCP in the networks of this node's pods; of one namespace, or of all.
    Networks(Option<String>, oneshot::Sender<Vec<PodNetwork>>),
    /// What the agent is not ready for.
    Readiness(oneshot::Sender<Vec<String>>),
    /// What would become of a connection.
    Explain(Query, oneshot::Sender<Result<Explanation, String>>),
    /// To go on in a hand-over, by the process with that number.
    HandOver(HandoverRequest, u32, oneshot::Sender<Result<HandoverAnswer, HandoverRefusal>>),
}

/// The admin server's way to the control loop.
pub(super) struct Answers {
    ask: mpsc::Sender<Question>,
    set_log_filter: SetLogFilter,
    show_certificates: ShowCertificates,
    workers: Vec<Arc<WorkerCounters>>,
    ready: AtomicBool,
    pub(super) pulse: Pulse,
}

impl Answers {
    pub(super) fn new(
        ask: mpsc::Sender<Question>,
        set_log_filter: SetLogFilter,
        show_certificates: ShowCertificates,
        workers: Vec<Arc<WorkerCounters>>,
    ) -> Self {
        let pulse = Pulse::default();
        Self { ask, set_log_filter, show_certificates, workers, ready: AtomicBool::new(false), pulse }
    }

    pub(super) fn ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub(super) async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> T {
        let (answer, wait) = oneshot::channel();
        let _ = self.ask.send(question(answer)).await;
        match wait.await {
            Ok(answer) => answer,
            // The control loop has ended; so will this task, at once.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Source for Answers {
    async fn status(&self) -> Status {
        self.ask(Question::Status).await
    }

    async fn audit(&self, period: u64) -> Audit {
        self.ask(|answer| Question::Audit(period, answer)).await
    }

    async fn explain(&self, source: String, destination: String, port: u16) -> Result<Explanation, String> {
        self.ask(|answer| Question::Explain(Query { source, destination, port }, answer)).await
    }

    async fn hand_over(&self, request: HandoverRequest, pid: u32) -> Result<HandoverAnswer, HandoverRefusal> {
        self.ask(|answer| Question::HandOver(request, pid, answer)).await
    }

    fn draining(&self) -> DrainingAgent {
        let open = self.workers.iter().map(|worker| {
            // Closed first: one that comes and goes meanwhile must not make the difference negative.
            let closed = worker.closed.value();
            worker.accepted.value().saturating_sub(closed)
        });
        let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
        DrainingAgent { pid, version, open: Some(open.sum()) }
    }

    fn certificates(&self) -> Certificates {
        let mut certificates = (self.show_certificates)();
        certificates.now = unix_now();
        certificates
    }

    fn waiting_for(&self) -> Vec<String> {
        if self.ready.load(Ordering::Acquire) { Vec::new() } else { vec!["the first snapshot".to_owned()] }
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        (self.set_log_filter)(filter)
    }
}
