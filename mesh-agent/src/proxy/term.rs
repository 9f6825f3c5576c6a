//! A worker's term of office: how it begins, and how it ends, with nobody to follow or with another agent that has taken
//! over.

use std::{
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::WORKER_BEAT_MS;
use tokio::{net::TcpListener, sync::oneshot, task::spawn_local};

use super::{Pod, PodListeners, Worker};
use crate::telemetry::{Direction, monotonic_ns};

/// How long handshakes that were steered to a listener may take after the kernel steers new ones elsewhere: two lost
/// packets of a handshake are repeated within it.
const HANDSHAKES: Duration = Duration::from_secs(3);
/// How long other agents have to acknowledge that their connections end, once those carry nothing.
const FAREWELL: Duration = Duration::from_secs(1);
/// How often it is looked whether connections have ended.
const LOOK: Duration = Duration::from_millis(10);

/// How a relieved worker tells how far it is.
pub struct Relief {
    /// Nothing more can come.
    pub settled: oneshot::Sender<()>,
    /// The last connection has ended.
    pub ended: oneshot::Sender<()>,
}

impl Worker {
    pub(super) fn begin(self: &Rc<Self>, begun: oneshot::Sender<()>) {
        self.stop_beating();
        self.beat_now(Duration::ZERO);
        *self.beat.borrow_mut() = Some(spawn_local(Self::beat(Rc::clone(self))).abort_handle());
        let _ = begun.send(());
    }

    pub(super) fn stop_beating(&self) {
        if let Some(task) = self.beat.take() {
            task.abort();
        }
    }

    /// Beats at a steady rate and says how late it was: a loop that is late is one that is overloaded.
    async fn beat(self: Rc<Self>) {
        let period = Duration::from_millis(WORKER_BEAT_MS);
        let mut due = tokio::time::Instant::now() + period;
        loop {
            tokio::time::sleep_until(due).await;
            self.beat_now(due.elapsed());
            due = tokio::time::Instant::now() + period;
        }
    }

    fn beat_now(&self, lag: Duration) {
        let now = monotonic_ns();
        let lag = lag.as_nanos() as u64;
        self.counters.beat_ns.set(now);
        self.counters.lag_ns.set(lag);
        if let Err(error) = self.kernel.borrow_mut().beat(self.index, Some((now, lag))) {
            tracing::error!(worker = self.index, %error, "the worker cannot beat");
        }
    }

    /// The pod's listeners, once more: the same sockets.
    pub(super) fn lend(&self, pod: &Arc<Pod>, answer: oneshot::Sender<PodListeners>) {
        let pods = self.pods.borrow();
        let Some(served) = pods.get(&pod.slot) else { return };
        let again = |direction: Direction| {
            let listening = served.listeners.iter().rev().find(|listening| listening.direction == direction)?;
            duplicate(&listening.socket)
                .inspect_err(|error| tracing::error!(pod = %pod.name, %error, "a listener"))
                .ok()
        };
        if let (Some(outbound), Some(inbound)) = (again(Direction::Outbound), again(Direction::Inbound)) {
            let _ = answer.send(PodListeners { outbound, inbound });
        }
    }

    /// The kernel steers nothing here any more; what it did is accepted, and may go on as long as it likes. The beat is
    /// not withdrawn: it is that of the other agent's worker by now.
    pub(super) async fn relieve(self: Rc<Self>, relief: Relief) {
        for served in self.pods.borrow().values() {
            served.closing.send_replace(true);
        }
        tokio::time::sleep(HANDSHAKES).await;
        self.stop_listening();
        let _ = relief.settled.send(());
        while !self.held.is_idle() {
            tokio::time::sleep(LOOK).await;
        }
        self.end().await;
        let _ = relief.ended.send(());
    }

    /// Nobody follows.
    pub(super) async fn drain(self: Rc<Self>, drained: oneshot::Sender<()>) {
        // What was redirected before the last beat was withdrawn is in the accept queues by now, or will be at once.
        tokio::time::sleep(Duration::from_millis(WORKER_BEAT_MS)).await;
        self.stop_listening();
        self.end().await;
        let _ = drained.send(());
    }

    fn stop_listening(&self) {
        for served in self.pods.borrow_mut().values_mut() {
            served.listeners.clear();
            served.closing.send_replace(true);
        }
    }

    /// Waits for the last connection of an app, and then for the last words of those that carried them.
    async fn end(&self) {
        while self.counters.accepted.value() > self.counters.closed.value() {
            tokio::time::sleep(LOOK).await;
        }
        let slots: Vec<u32> = self.pods.borrow().keys().copied().collect();
        for slot in slots {
            self.forget_peers(slot);
        }
        let until = Instant::now() + FAREWELL;
        while Instant::now() < until && self.pods.borrow().values().any(|served| !served.connections.is_empty()) {
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A descriptor of its own for the same socket.
fn duplicate(listener: &TcpListener) -> std::io::Result<std::net::TcpListener> {
    listener.as_fd().try_clone_to_owned().map(Into::into)
}
