//! The control loop: snapshots in, the kernel and the workers kept in line, questions answered, the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::WORKER_STALE_NS;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use super::{
    Options,
    answers::{Answers, Question},
    certificates,
    networks::Networks,
    pages,
    pods::Pods,
    process::Process,
    revoke::Revocations,
    status::{self, Watched},
};
use crate::{
    admin::{lock::RunLock, server::Source},
    datapath::{Attempt, Datapath},
    explain,
    identity::Identities,
    kubernetes::writeback,
    model::{Mesh, PodUid, Reason, SourceState},
    net::netns,
    node, policy,
    proxy::{self, Command, Held, WorkerHandle},
    route::transport::Here,
    sys,
    telemetry::{audit::Ledger, unix_now},
};

/// How often pods and hooks are looked after.
const TEND: Duration = Duration::from_secs(1);
/// How often the node's addresses are looked at, and those in the namespace of each pod: once in this many rounds of
/// [`TEND`].
const ADDRESSES_EVERY: u32 = 5;
/// How often that is done for some of the pods. Not for all at once: a pod that has just been found must not wait for it.
const ADDRESSES_STEP: Duration = Duration::from_millis(50);
/// How many pods are marked as pending before it is looked again whether others run already.
const MARKS: usize = 4;
/// How long after a take-over what the former agent has approved may be on its way: one lost SYN is repeated within it.
const ON_THE_WAY: Duration = Duration::from_secs(2);
/// How long at least certificates of workloads that have left are kept.
const FAREWELL: Duration = Duration::from_secs(1);
/// After the drain deadline, how long aborted connections have to send their RST.
const AFTERMATH: Duration = Duration::from_millis(300);

/// What was started before it.
pub(super) struct Parts {
    pub(super) datapath: Datapath,
    pub(super) workers: Vec<WorkerHandle>,
    pub(super) held: Arc<Held>,
    pub(super) identities: Arc<Identities>,
    pub(super) revocations: Revocations,
    pub(super) feed: Option<writeback::Feed>,
    pub(super) close_http: oneshot::Sender<()>,
    pub(super) networks: Networks,
}

/// Everything that the control thread owns.
pub(super) struct Control {
    pub(super) options: Options,
    pub(super) datapath: Datapath,
    pub(super) workers: Vec<WorkerHandle>,
    pub(super) pods: Pods,
    pub(super) mesh: Arc<Mesh>,
    pub(super) source: SourceState,
    pub(super) node_addresses: Vec<IpAddr>,
    pub(super) started: Instant,
    /// Whether what the start took has been given back.
    pub(super) has_settled: bool,
    /// Certificates of workloads that have left are kept until then.
    leavers_until: Option<Instant>,
    pub(super) watched: BTreeMap<crate::model::ObjectName, Watched>,
    pub(super) revocations: Revocations,
    pub(super) ledger: Ledger,
    pub(super) answers: Arc<Answers>,
    /// Where the API server is told of the pods, if there is one.
    pub(super) feed: Option<writeback::Feed>,
    /// Ends the HTTP listener: another agent has taken over.
    pub(super) close_http: Option<oneshot::Sender<()>>,
    /// Keeps other agents off the run folder; `None` once another has taken over.
    pub(super) run_lock: Option<RunLock>,
    /// Who is about to take over.
    pub(super) newcomer: Option<Process>,
    /// From whom this agent has taken over.
    pub(super) predecessor: Option<Process>,
    /// When that was.
    pub(super) took_over: Option<Instant>,
    /// The successor is being told what became of connections.
    pub(super) telling: Option<JoinHandle<()>>,
    /// Since a signal: when what is open then is reset.
    pub(super) leaving: Option<Instant>,
    pub(super) held: Arc<Held>,
    pub(super) identities: Arc<Identities>,
    pub(super) snapshots: watch::Sender<Arc<Mesh>>,
    /// When generations are to be raised, if they were not at once: the kernel has those of another agent.
    pub(super) generations_due: Option<Instant>,
}

/// What reaches the control loop from elsewhere.
pub(super) struct Feeds {
    /// Snapshots.
    pub(super) found: watch::Receiver<Arc<Mesh>>,
    /// Pods in the cgroup tree.
    pub(super) pods: mpsc::UnboundedReceiver<node::Event>,
    /// Questions of the admin socket.
    pub(super) asked: mpsc::Receiver<Question>,
    /// Whoever wants the agent to stop.
    pub(super) signals: Signals,
}

/// SIGTERM and SIGINT.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Why the agent is in charge no more.
enum Left {
    /// It was told to stop.
    Stopped,
    /// Another one is about to take over.
    Yielded(Process),
}

impl Control {
    pub(super) fn new(
        options: Options,
        parts: Parts,
        snapshots: watch::Sender<Arc<Mesh>>,
        answers: Arc<Answers>,
        run_lock: Option<RunLock>,
    ) -> Self {
        let Parts { datapath, mut workers, held, identities, revocations, feed, close_http, networks } = parts;
        let pods = Pods::new(&datapath, networks, options.direct, options.keepalive, Arc::clone(&held));
        let feeds = workers.iter_mut().filter_map(|worker| worker.audit.take()).collect();
        Self {
            options,
            datapath,
            workers,
            pods,
            mesh: Arc::new(Mesh::default()),
            source: SourceState::default(),
            node_addresses: Vec::new(),
            started: Instant::now(),
            has_settled: false,
            leavers_until: None,
            watched: BTreeMap::new(),
            revocations,
            ledger: Ledger::new(feeds, unix_now()),
            held,
            identities,
            snapshots,
            generations_due: None,
            answers,
            feed,
            close_http: Some(close_http),
            run_lock,
            newcomer: None,
            predecessor: None,
            took_over: None,
            telling: None,
            leaving: None,
        }
    }

    /// Runs until a signal, or until another agent takes over; then drains.
    pub(super) async fn run(mut self, mut feeds: Feeds) -> anyhow::Result<()> {
        loop {
            match self.reign(&mut feeds).await? {
                Left::Stopped => {
                    self.drain(&mut feeds).await;
                    return Ok(());
                }
                Left::Yielded(to) => {
                    if self.await_relief(to, &mut feeds).await || !self.resume().await? {
                        self.retire(&mut feeds).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn reign(&mut self, feeds: &mut Feeds) -> anyhow::Result<Left> {
        let mut tend = tokio::time::interval(TEND);
        tend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut attempts = self.datapath.attempts()?;
        let mut step = tokio::time::interval(ADDRESSES_STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut round = 0_u32;
        let mut next: Option<Instant> = None;
        loop {
            let settled = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = feeds.signals.next() => if self.is_to_stop() {
                    return Ok(Left::Stopped);
                },
                waiting = attempts.next() => waiting?.into_iter().for_each(|attempt| self.try_for(attempt)),
                Some(event) = feeds.pods.recv() => {
                    // All that has happened by now is one change.
                    let more = std::iter::from_fn(|| feeds.pods.try_recv().ok());
                    let found = std::iter::once(event).chain(more);
                    let about = found.filter_map(|event| self.pods.networks.note(event)).collect();
                    next = self.react(&about);
                }
                () = std::future::ready(()), if !self.pods.to_mark.is_empty() => {
                    let mesh = Arc::clone(&self.mesh);
                    self.pods.mark_some(&mut self.datapath, &mesh, MARKS);
                }
                changed = feeds.found.changed() => {
                    changed?;
                    let mesh = Arc::clone(&feeds.found.borrow_and_update());
                    if mesh.version == 0 {
                        // Only what is wrong: what an earlier agent armed stays until it is known what is wanted.
                        self.mesh = mesh;
                        continue;
                    }
                    if self.put_in_force(&mesh) {
                        next = self.pods.tend(&mut self.datapath, &self.workers);
                    }
                }
                () = settled => next = self.pods.tend(&mut self.datapath, &self.workers),
                Some(question) = feeds.asked.recv() => {
                    // How the source stands changes without a publication.
                    self.source = feeds.found.borrow().source.clone();
                    if let Some(to) = self.answer(question).await {
                        return Ok(Left::Yielded(to));
                    }
                }
                _ = step.tick() => {
                    let mesh = Arc::clone(&self.mesh);
                    let share = ADDRESSES_STEP.div_duration_f64(TEND * ADDRESSES_EVERY);
                    self.pods.refresh_addresses(&mut self.datapath, &mesh, share);
                }
                _ = tend.tick() => {
                    round = round.wrapping_add(1);
                    self.look_after(round);
                    next = self.pods.tend(&mut self.datapath, &self.workers);
                    if self.is_left_alone() {
                        return Ok(Left::Stopped);
                    }
                }
            }
        }
    }

    /// The order matters: first the kernel forgets what the former state allowed, then workers decide on the new one,
    /// then pods are disarmed and armed. Only what differs is looked at: most changes are of other nodes. Returns whether
    /// pods of this node were.
    pub(super) fn put_in_force(&mut self, mesh: &Arc<Mesh>) -> bool {
        let first = self.mesh.version == 0;
        if first && self.predecessor.is_some() {
            // What the former agent has approved is on its way; what it decided is forgotten, and nothing can be decided
            // anew until the generations are current.
            self.generations_due = Some(Instant::now() + ON_THE_WAY);
        } else if !self.make_current(mesh) {
            return false;
        }
        let before = std::mem::replace(&mut self.mesh, Arc::clone(mesh));
        let concerns_pods = first || !mesh.local.is_same(&before.local) || mesh.netns != before.netns;
        if concerns_pods {
            // Workers act on the former snapshot for a moment: whoever leaves is somebody until then.
            let mut wanted = certificates::needed(mesh);
            wanted.extend(certificates::needed(&before));
            self.identities.want(&wanted);
            self.leavers_until = Some(Instant::now() + FAREWELL);
        }
        self.snapshots.send_replace(Arc::clone(mesh));
        if first || mesh.node != before.node {
            self.refresh_node_addresses();
        }
        if concerns_pods {
            // Namespaces that are gone first: another of the same name may be there already.
            self.pods.tend(&mut self.datapath, &self.workers);
            self.pods.reconcile(&mut self.datapath, &self.workers, mesh);
        }
        // After the agent's own connections, which workers end.
        if policy::may_differ(&before, mesh) {
            self.revocations.review(mesh);
        }
        if first || self.pods.holds_others {
            self.pods.forget_others(&mut self.datapath, mesh);
        }
        if first {
            self.answers.ready();
            tracing::info!(
                node = %mesh.node.name,
                pods = self.pods.enrolled.len(),
                adopted = self.datapath.adopted(),
                direct = self.options.direct,
                "ready"
            );
        }
        concerns_pods
    }

    /// Raises the generations in the kernel; what was decided on the former state is void.
    fn make_current(&mut self, mesh: &Mesh) -> bool {
        let result = if self.mesh.version > 0 && self.generations_due.is_none() {
            let differences = mesh.generations.differences(&self.mesh.generations);
            let changed = differences.into_iter().map(|(slot, _, now)| (*slot, now.copied().unwrap_or(0)));
            self.datapath.set_generations(changed)
        } else {
            // The kernel may hold those of another agent.
            let known = self.datapath.generations();
            let wanted = (0..).zip(known).filter_map(|(slot, known)| {
                let wanted = mesh.generation(slot);
                (wanted != known).then_some((slot, wanted))
            });
            self.datapath.set_generations(wanted)
        };
        match result {
            Ok(()) => self.generations_due = None,
            Err(error) => {
                tracing::error!(%error, "generations cannot be written; the former snapshot stays in force");
                return false;
            }
        }
        true
    }

    /// Lets the workers decide on it.
    pub(super) fn publish(&self, mesh: &Arc<Mesh>) {
        self.identities.want(&certificates::needed(mesh));
        self.snapshots.send_replace(Arc::clone(mesh));
    }

    /// Pods have come or gone, or their networks.
    fn react(&mut self, about: &BTreeSet<PodUid>) -> Option<Instant> {
        // Before the first snapshot nobody knows whom it concerns.
        if self.mesh.version == 0 {
            return None;
        }
        let mesh = Arc::clone(&self.mesh);
        self.pods.react(&mut self.datapath, &self.workers, &mesh, about);
        self.pods.tend(&mut self.datapath, &self.workers)
    }

    /// A connection waits for its destination to answer: its worker finds out.
    fn try_for(&self, attempt: Attempt) {
        let Some(pod) = self.pods.enrolled.values().find(|pod| pod.slot.0 == attempt.slot) else { return };
        let index = attempt.cpu as usize % self.workers.len().max(1);
        // One that stands still would leave the connection without an answer.
        let mut from_there = self.workers.iter().cycle().skip(index).take(self.workers.len());
        let Some(worker) = from_there.find(|worker| beats(worker)).or_else(|| self.workers.get(index)) else { return };
        let Attempt { downstream, destination, chosen, .. } = attempt;
        worker.send(Command::Attempt(Arc::clone(&pod.pod), proxy::Attempt { downstream, destination, chosen }));
    }

    fn look_after(&mut self, round: u32) {
        let mesh = Arc::clone(&self.mesh);
        // Pods that could not be armed are tried again; for the others nothing has changed and nothing is written.
        self.pods.reconcile(&mut self.datapath, &self.workers, &mesh);
        if round.is_multiple_of(ADDRESSES_EVERY) {
            self.refresh_node_addresses();
        }
        if self.generations_due.is_some_and(|due| due <= Instant::now()) {
            self.make_current(&mesh);
        }
        self.look_after_the_relieved();
        self.watch();
        self.held.sweep();
        self.tell_the_server();
        self.answers.pulse.beat();
        self.settle();
        if self.leavers_until.take_if(|until| *until <= Instant::now()).is_some() {
            self.identities.want(&certificates::needed(&self.mesh));
        }
    }

    /// Once, after the first snapshot is in force: the kernel's type information and the first lists of objects have left
    /// holes in the heap that may never be filled again.
    fn settle(&mut self) {
        if self.mesh.version > 0 && !std::mem::replace(&mut self.has_settled, true) {
            sys::return_free_memory();
        }
    }

    /// The node's own addresses: of the namespace that the agent runs in, of its Node object, and those it was told.
    fn refresh_node_addresses(&mut self) {
        let mut addresses = netns::addresses().unwrap_or_default();
        addresses.extend(self.mesh.node.addresses.iter().chain(&self.options.node_addresses));
        addresses.sort_unstable();
        addresses.dedup();
        if addresses == self.node_addresses {
            return;
        }
        match self.datapath.set_node_addresses(&addresses) {
            Ok(()) => {
                for worker in &self.workers {
                    worker.send(Command::NodeAddresses(addresses.as_slice().into()));
                }
                self.node_addresses = addresses;
            }
            Err(error) => tracing::error!(%error, "the node's addresses cannot be written"),
        }
    }

    /// The hooks stop redirecting, open connections have until the deadline. The pins stay: strict pods stay closed.
    async fn drain(&mut self, feeds: &mut Feeds) {
        let deadline = *self.leaving.get_or_insert_with(|| Instant::now() + self.options.drain_deadline);
        self.answers.pulse.drain();
        tracing::info!(open = self.open(), deadline_s = self.options.drain_deadline.as_secs_f64(), "draining");
        let mut drained = Vec::new();
        for worker in &self.workers {
            let (done, wait) = oneshot::channel();
            worker.send(Command::Drain(done));
            drained.push(wait);
        }
        let all = all(drained);
        tokio::pin!(all);
        let mut tend = tokio::time::interval(TEND);
        loop {
            tokio::select! {
                () = &mut all => break,
                () = feeds.signals.next() => break,
                () = tokio::time::sleep_until(deadline.into()) => {
                    self.abort_all().await;
                    break;
                }
                Some(question) = feeds.asked.recv() => drop(self.answer(question).await),
                // Unless another agent has taken over by now.
                _ = tend.tick(), if self.run_lock.is_some() => {
                    self.look_after_the_relieved();
                    self.pods.tend(&mut self.datapath, &self.workers);
                    self.held.sweep();
                }
            }
        }
        self.stopped().await;
    }

    /// Relayed connections that are open.
    pub(super) fn open(&self) -> u64 {
        self.answers.draining().open.unwrap_or(0)
    }

    pub(super) async fn abort_all(&self) {
        tracing::warn!(reason = Reason::Drained.code(), "the drain deadline has passed; the rest is reset");
        for worker in &self.workers {
            worker.send(Command::AbortAll(Reason::Drained));
        }
        tokio::time::sleep(AFTERMATH).await;
    }

    /// Answers; the process that is to take over from now on, if that was the question.
    pub(super) async fn answer(&mut self, question: Question) -> Option<Process> {
        // Who asked may have gone.
        match question {
            Question::Status(answer) => drop(answer.send(status::of(self).await)),
            Question::Audit(period, answer) => drop(answer.send(self.audit(period))),
            Question::Networks(namespace, answer) => drop(answer.send(pages::networks(self, namespace.as_deref()))),
            Question::Readiness(answer) => drop(answer.send(pages::waiting_for(self))),
            Question::Explain(query, answer) => {
                let here = Here { mesh: &self.mesh, node_addresses: &self.node_addresses };
                let site = explain::Site { here, direct: self.options.direct };
                drop(answer.send(explain::explain(site, &query).map_err(|error| error.to_string())));
            }
            Question::HandOver(request, pid, answer) => return self.hand_over(&request, pid, answer).await,
        }
        None
    }
}

/// Whether the worker gives a sign of life, as the kernel takes it.
fn beats(worker: &WorkerHandle) -> bool {
    worker.counters.beat_age_ns() <= WORKER_STALE_NS
}

/// Waits until all are told.
pub(super) async fn all(waits: Vec<oneshot::Receiver<()>>) {
    for wait in waits {
        let _ = wait.await;
    }
}
