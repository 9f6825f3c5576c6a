//! A worker: one thread, one CPU, one runtime, sharing nothing that is hot.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::{Arc, Weak},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::{self, AbortHandle, LocalSet, spawn_local},
};

use super::{
    Attempt, Certificates, Error, Held, Kernel, Pod, PodListeners, accept,
    attempt::{self, OPEN_FOR},
    direct::Backend,
    pool::Pool,
    term::Relief,
    tls::{Handshakes, Offers},
    upstream::Sockets,
};
use crate::{
    model::{Identity, Mesh, OrigDst, Outcome, Reachable, Reason},
    policy::{self, Decision, Flow, Verdict},
    telemetry::{
        Connection, Direction, WorkerCounters,
        audit::{self, Feed, Shard},
    },
};

/// Destinations whose last answer a worker remembers; beyond that it asks the kernel to remember them anew.
const MAX_ANSWERED: usize = 4096;

/// What workers are told at their start.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long an upstream connect may take.
    pub connect_timeout: Duration,
    /// How long a TLS handshake may take, on either side.
    pub handshake_timeout: Duration,
    /// Whether decisions are cached in the kernel.
    pub direct: bool,
}

/// What a worker is told while it runs.
pub enum Command {
    /// A pod is about to be armed.
    Add(Arc<Pod>, PodListeners),
    /// A connection waits for its destination to answer.
    Attempt(Arc<Pod>, Attempt),
    /// A pod was disarmed; nothing more comes to its listeners.
    Close(Arc<Pod>),
    /// A pod's namespace is gone: its connections end with this reason.
    Abort(Arc<Pod>, Reason),
    /// The node's own addresses: what goes there does not leave the node.
    NodeAddresses(Arc<[IpAddr]>),
    /// Beats from now on. Answered after the first one.
    Begin(oneshot::Sender<()>),
    /// Another agent is about to take over: no decision is written to the kernel any more. Answered when that is so.
    Yield(oneshot::Sender<()>),
    /// It did not: everything as before.
    Resume,
    /// The listeners in a pod, to be made known to the kernel once more.
    Lend(Arc<Pod>, oneshot::Sender<PodListeners>),
    /// The other agent has taken over: what is there goes on, nothing new comes.
    Relieve(Relief),
    /// The agent stops: no more connections. Answered when the last one has ended.
    Drain(oneshot::Sender<()>),
    /// The agent has waited long enough: every connection ends.
    AbortAll(Reason),
}

/// The control thread's end of a worker.
pub struct WorkerHandle {
    /// Its counters.
    pub counters: Arc<WorkerCounters>,
    /// What it tells the audit; taken by whoever keeps that.
    pub audit: Option<Feed>,
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl WorkerHandle {
    /// Sends a command. A worker that has died is noticed by its missing beat.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Whether the thread still runs.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

/// A worker.
pub struct Worker {
    pub(super) index: u32,
    pub(super) config: Config,
    pub(super) kernel: RefCell<Box<dyn Kernel>>,
    pub(super) counters: Arc<WorkerCounters>,
    /// Upstream connections that wait for their downstream.
    pub(super) held: Arc<Held>,
    /// Who the pods are.
    pub(super) certificates: Arc<dyn Certificates>,
    /// Connections to other agents.
    pub(super) pool: Pool,
    /// Handshakes that other agents have begun.
    pub(super) handshakes: Rc<Handshakes>,
    /// What they are offered.
    offers: RefCell<Offers>,
    /// Since when destinations are known to answer, by slot.
    answered: RefCell<HashMap<(u32, OrigDst), Instant>>,
    /// What the kernel refuses for a moment because a policy forbade it: it must be asked again when policies change.
    forbidden: RefCell<Vec<(Weak<Pod>, OrigDst, Instant)>>,
    /// Scratch space of the outbound spine.
    pub(super) backends: RefCell<Vec<Backend>>,
    pub(super) audit: Rc<Shard>,
    /// Whether another agent is about to take over, or has.
    pub(super) has_yielded: Cell<bool>,
    node_addresses: RefCell<Arc<[IpAddr]>>,
    mesh: RefCell<Arc<Mesh>>,
    random: Cell<u64>,
    pub(super) pods: RefCell<HashMap<u32, Served>>,
    /// The task that beats.
    pub(super) beat: RefCell<Option<AbortHandle>>,
}

/// The tasks of one pod.
#[derive(Default)]
pub(super) struct Served {
    pub(super) listeners: Vec<Listening>,
    /// Open connections, by their task.
    pub(super) connections: HashMap<task::Id, Open>,
    /// Whether connections that carry others are to take no more of them.
    pub(super) closing: watch::Sender<bool>,
}

/// A listener and the task that accepts from it.
pub(super) struct Listening {
    pub(super) direction: Direction,
    pub(super) socket: Rc<TcpListener>,
    task: AbortHandle,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An open connection.
pub(super) struct Open {
    task: AbortHandle,
    /// What it ends with when it is aborted.
    otherwise: Rc<Cell<Reason>>,
    /// What was allowed, once that is known and where a change of policy may forbid it.
    flow: Option<Box<Flow>>,
}

impl Open {
    fn abort(&self, reason: Reason) {
        self.otherwise.set(reason);
        self.task.abort();
    }
}

/// Starts a worker on a CPU.
pub fn spawn(
    index: u32,
    cpu: usize,
    config: Config,
    kernel: Box<dyn Kernel + Send>,
    held: Arc<Held>,
    certificates: Arc<dyn Certificates>,
    mesh: watch::Receiver<Arc<Mesh>>,
) -> io::Result<WorkerHandle> {
    let counters = Arc::new(WorkerCounters::new(cpu as u32));
    let (commands, receiver) = mpsc::unbounded_channel();
    let own = Arc::clone(&counters);
    let (shard, feed) = audit::shard();
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        pin(cpu);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let worker = Rc::new(Worker {
            index,
            config,
            kernel: RefCell::new(kernel),
            counters: own,
            held,
            certificates,
            pool: Pool::default(),
            handshakes: Rc::default(),
            offers: RefCell::default(),
            answered: RefCell::default(),
            forbidden: RefCell::default(),
            backends: RefCell::default(),
            audit: Rc::new(shard),
            has_yielded: Cell::new(false),
            node_addresses: RefCell::new(Arc::from([])),
            mesh: RefCell::new(Arc::clone(&mesh.borrow())),
            random: Cell::new(u64::from(index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            pods: RefCell::default(),
            beat: RefCell::default(),
        });
        LocalSet::new().block_on(&runtime, worker.run(receiver, mesh));
        Ok(())
    })?;
    Ok(WorkerHandle { counters, audit: Some(feed), commands, thread: Some(thread) })
}

/// Pins this thread to a CPU. Where that is not allowed the worker runs anywhere, only slower.
fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    if let Err(error) = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
        tracing::warn!(cpu, %error, "a worker is not pinned to its CPU");
    }
}

impl Worker {
    async fn run(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>, mut mesh: watch::Receiver<Arc<Mesh>>) {
        loop {
            tokio::select! {
                // A pod is told of before its connections come, a snapshot before the pods in it.
                biased;
                Ok(()) = mesh.changed() => {
                    let mesh = Arc::clone(&mesh.borrow_and_update());
                    let before = self.mesh.replace(Arc::clone(&mesh));
                    if policy::may_differ(&before, &mesh) {
                        self.review(&mesh);
                    }
                }
                command = commands.recv() => match command {
                    Some(Command::Add(pod, listeners)) => self.add(&pod, listeners),
                    Some(Command::Attempt(pod, attempt)) => {
                        self.serve(&pod, attempt::run(Rc::clone(&self), Arc::clone(&pod), attempt));
                    }
                    Some(Command::Close(pod)) => self.close(&pod),
                    Some(Command::Abort(pod, reason)) => self.abort(pod.slot, reason),
                    Some(Command::NodeAddresses(addresses)) => *self.node_addresses.borrow_mut() = addresses,
                    Some(Command::Begin(begun)) => self.begin(begun),
                    Some(Command::Yield(yielded)) => {
                        self.has_yielded.set(true);
                        let _ = yielded.send(());
                    }
                    Some(Command::Resume) => self.has_yielded.set(false),
                    Some(Command::Lend(pod, answer)) => self.lend(&pod, answer),
                    Some(Command::Relieve(relief)) => {
                        self.stop_beating();
                        spawn_local(Self::relieve(self.clone(), relief));
                    }
                    Some(Command::Drain(drained)) => {
                        self.stop_beating();
                        let _ = self.kernel.borrow_mut().beat(self.index, None);
                        spawn_local(Self::drain(self.clone(), drained));
                    }
                    Some(Command::AbortAll(reason)) => {
                        let slots: Vec<u32> = self.pods.borrow().keys().copied().collect();
                        for slot in slots {
                            self.abort(slot, reason);
                        }
                    }
                    None => return,
                },
            }
        }
    }

    /// The snapshot to decide on.
    pub(super) fn mesh(&self) -> Arc<Mesh> {
        Arc::clone(&self.mesh.borrow())
    }

    /// The node's own addresses.
    pub(super) fn node_addresses(&self) -> Arc<[IpAddr]> {
        Arc::clone(&self.node_addresses.borrow())
    }

    /// A random number, for balancing only (xorshift64*).
    pub(super) fn random(&self) -> u32 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Opens the record of a connection.
    pub(super) fn open(&self, pod: &Arc<Pod>, direction: Direction, peer: SocketAddr) -> Connection {
        // There are as many counters as workers.
        let counters = pod.counters.get(self.index as usize).cloned().unwrap_or_default();
        let own = |served: &Served| Some(Rc::clone(&served.connections.get(&task::try_id()?)?.otherwise));
        let otherwise = self.pods.borrow().get(&pod.slot).and_then(own);
        Connection::open(counters, Arc::clone(&self.counters), pod.name.clone(), otherwise, direction, peer)
            .audited(Rc::clone(&self.audit))
    }

    /// Counts a connection that others come through.
    pub(super) fn tunnel_accepted(&self, pod: &Pod) {
        if let Some(counters) = pod.counters.get(self.index as usize) {
            counters.inbound.tunnels.add(1);
        }
    }

    /// Opens the record of a connection that came through another one, or of that one's failure.
    pub(super) fn open_tunneled(&self, pod: &Arc<Pod>, peer: SocketAddr) -> Connection {
        let record = self.open(pod, Direction::Inbound, peer);
        if let Some(counters) = pod.counters.get(self.index as usize) {
            counters.inbound.tunneled.add(1);
        }
        record
    }

    /// What is asked about the certificate of `own`. A pod may be called, or call, before its first one is there: then it
    /// is waited for.
    pub(super) async fn certified<T>(
        &self,
        own: &Identity,
        ask: impl Fn() -> Result<T, Error>,
        patience: Duration,
    ) -> Result<T, Error> {
        let wait = async {
            loop {
                let answer = ask();
                let Err(Error::Tunnel(Reason::CertificateMissing)) = answer else { return answer };
                // If it came just now, it is there.
                let Some(mut changes) = self.certificates.awaited(own) else { return ask() };
                let _ = changes.changed().await;
            }
        };
        tokio::time::timeout(patience, wait).await.unwrap_or(Err(Error::Tunnel(Reason::CertificateMissing)))
    }

    /// How the pod is to be called.
    pub(super) fn server_config(&self, pod: &Pod) -> Result<Arc<ServerConfig>, Error> {
        let mesh = self.mesh();
        let workload = mesh.workload(&pod.name).ok_or(Error::Tunnel(Reason::CertificateMissing))?;
        let config = self.certificates.server(&workload.identity).map_err(Error::Tunnel)?;
        Ok(self.offers.borrow_mut().of(pod.slot, &config))
    }

    /// Says when connections of the pod that carry others are to take no more of them.
    pub(super) fn closing(&self, pod: &Pod) -> watch::Receiver<bool> {
        self.pods.borrow().get(&pod.slot).map_or_else(|| watch::channel(true).1, |served| served.closing.subscribe())
    }

    /// A new trace, and the first span of it.
    pub(super) fn trace(&self) -> (u128, u64) {
        let word = || u64::from(self.random()) << 32 | u64::from(self.random());
        (u128::from(word()) << 64 | u128::from(word()), word())
    }

    /// Counts a connection that was never accepted, because its destination did not answer.
    pub(super) fn refused(&self, pod: &Pod, peer: SocketAddr, destination: OrigDst, error: &Error) {
        if let Some(counters) = pod.counters.get(self.index as usize) {
            counters.outbound.failed.add(1);
        }
        let reason = error.reason();
        self.counters.ended(reason);
        tracing::debug!(target: "access", direction = "outbound", workload = %pod.name, downstream = %peer,
            original = %destination, reason = reason.code(), %error, "connection refused");
    }

    /// Tells the kernel whether a destination answers.
    pub(super) fn set_reach(&self, pod: &Pod, destination: OrigDst, reachable: Reachable, valid: Duration) {
        let mut answered = self.answered.borrow_mut();
        if reachable == Reachable::Open {
            if answered.len() >= MAX_ANSWERED {
                answered.clear();
            }
            answered.insert((pod.slot, destination), Instant::now());
        } else {
            answered.remove(&(pod.slot, destination));
        }
        if let Err(error) = self.kernel.borrow_mut().set_reach(pod.slot, destination, reachable, valid) {
            tracing::debug!(pod = %pod.name, %destination, %error, "whether it answers is not remembered");
        }
    }

    /// Learns from a connection that was not held; writes only what the kernel does not know.
    pub(super) fn learn<T>(&self, pod: &Pod, destination: OrigDst, result: &Result<T, Error>) {
        match result {
            Ok(_) => {
                let fresh = |since: &Instant| since.elapsed() < OPEN_FOR / 4;
                if !self.answered.borrow().get(&(pod.slot, destination)).is_some_and(fresh) {
                    self.set_reach(pod, destination, Reachable::Open, OPEN_FOR);
                }
            }
            Err(_) => self.set_reach(pod, destination, Reachable::Unknown, Duration::ZERO),
        }
    }

    /// Runs a connection's task, to be aborted with its pod.
    pub(super) fn serve(self: &Rc<Self>, pod: &Arc<Pod>, task: impl Future<Output = ()> + 'static) {
        let mut pods = self.pods.borrow_mut();
        let Some(served) = pods.get_mut(&pod.slot) else { return };
        let task = spawn_local(until_its_end(task, Rc::clone(self), pod.slot)).abort_handle();
        let otherwise = Rc::new(Cell::new(Reason::Internal));
        served.connections.insert(task.id(), Open { task, otherwise, flow: None });
    }

    /// Notes what is worth it in a decision; a refusal as `refused`.
    pub(super) fn note(&self, mesh: &Mesh, flow: &Flow, decision: &Decision<'_>, refused: Outcome) {
        for verdict in policy::worth_noting(mesh, flow, decision, refused) {
            self.counters.verdicts.note(verdict);
        }
        if let Verdict::Denied { reason, by } = decision.verdict {
            self.was_refused(mesh, flow, reason, by);
        }
    }

    /// The connection of this task was allowed: a later snapshot may think otherwise.
    pub(super) fn follow(&self, pod: &Pod, flow: Flow) {
        let mut pods = self.pods.borrow_mut();
        let open = pods.get_mut(&pod.slot).and_then(|served| served.connections.get_mut(&task::try_id()?));
        if let Some(open) = open {
            open.flow = Some(Box::new(flow));
        }
    }

    /// The kernel will refuse this destination for `valid`, because a policy forbids it.
    pub(super) fn forbid(&self, pod: &Arc<Pod>, destination: OrigDst, valid: Duration) {
        let mut forbidden = self.forbidden.borrow_mut();
        let now = Instant::now();
        forbidden.retain(|(_, _, until)| *until > now);
        if forbidden.len() < MAX_ANSWERED {
            forbidden.push((Arc::downgrade(pod), destination, now + valid));
        }
    }

    /// Ends the connections that are no longer allowed, and lets those that were not ask again.
    fn review(&self, mesh: &Mesh) {
        for (pod, destination, until) in self.forbidden.take() {
            let left = until.saturating_duration_since(Instant::now());
            if let Some(pod) = pod.upgrade().filter(|_| !left.is_zero()) {
                // Not unknown: what waits would meet silence. This way it gets in and is decided about anew.
                self.set_reach(&pod, destination, Reachable::Open, left);
            }
        }
        for open in self.pods.borrow().values().flat_map(|served| served.connections.values()) {
            let Some(flow) = &open.flow else { continue };
            let decision = policy::review(mesh, flow);
            if !decision.verdict.is_allowed() {
                self.note(mesh, flow, &decision, Outcome::Ended);
                open.abort(Reason::PolicyChanged);
            }
        }
    }

    fn forget(&self, slot: u32) {
        let mut pods = self.pods.borrow_mut();
        let Some(served) = pods.get_mut(&slot) else { return };
        if let Some(id) = task::try_id() {
            served.connections.remove(&id);
        }
        if served.listeners.is_empty() && served.connections.is_empty() {
            pods.remove(&slot);
        }
    }

    fn add(self: &Rc<Self>, pod: &Arc<Pod>, listeners: PodListeners) {
        let start = |listener, direction| -> io::Result<Listening> {
            let socket = Rc::new(TcpListener::from_std(listener)?);
            let accepting = accept::run(Rc::clone(self), Arc::clone(pod), Rc::clone(&socket), direction);
            Ok(Listening { direction, socket, task: spawn_local(accepting).abort_handle() })
        };
        let started = [start(listeners.outbound, Direction::Outbound), start(listeners.inbound, Direction::Inbound)];
        let mut pods = self.pods.borrow_mut();
        let served = pods.entry(pod.slot).or_default();
        // Captured again before its last connections had ended: those go on closing, new ones do not.
        if *served.closing.borrow() {
            served.closing = watch::Sender::default();
        }
        for listener in started {
            match listener {
                Ok(listening) => served.listeners.push(listening),
                Err(error) => tracing::error!(pod = %pod.name, %error, "a listener cannot be registered"),
            }
        }
    }

    fn close(&self, pod: &Pod) {
        let mut pods = self.pods.borrow_mut();
        let Some(served) = pods.get_mut(&pod.slot) else { return };
        served.listeners.clear();
        served.closing.send_replace(true);
        self.forget_peers(pod.slot);
        if served.connections.is_empty() {
            pods.remove(&pod.slot);
        }
    }

    fn abort(&self, slot: u32, reason: Reason) {
        self.forget_peers(slot);
        let Some(served) = self.pods.borrow_mut().remove(&slot) else { return };
        for connection in served.connections.values() {
            connection.abort(reason);
        }
    }

    pub(super) fn forget_peers(&self, slot: u32) {
        self.pool.close(slot);
        self.offers.borrow_mut().forget(slot);
    }
}

/// A connection's task and what is done after it. Not an async block: that would have room for the task twice.
fn until_its_end<F: Future<Output = ()>>(task: F, worker: Rc<Worker>, slot: u32) -> impl Future<Output = ()> {
    task.map(move |()| worker.forget(slot))
}

/// Ends a connection: closed as its ends wanted, or reset.
pub(super) fn end(record: Connection, sockets: Sockets, result: Result<(), Error>) {
    match result {
        Ok(()) => {
            sockets.close();
            record.finish(Reason::Ok);
        }
        Err(error) => {
            tracing::debug!(%error, "connection failed");
            drop(sockets);
            record.finish(error.reason());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Accepted, inbound, outbound};
    use super::*;

    /// Of the task that is spawned for it.
    fn size<A, B, C, F: Future<Output = ()>>(_: fn(A, B, C) -> F) -> usize {
        fn of<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        of(until_its_end::<F>)
    }

    /// What a connection holds while it waits is its task; ten thousand idle ones are to fit in 60 MB with all else.
    #[test]
    fn a_connection_fits_in_two_kilobytes() {
        let outbound = size(outbound::serve as fn(Rc<Worker>, Arc<Pod>, Accepted) -> _);
        let inbound = size(inbound::serve as fn(Rc<Worker>, Arc<Pod>, Accepted) -> _);
        assert!(outbound <= 2048 && inbound <= 2048, "{outbound} {inbound}");
    }
}
