//! How an agent hands over to another one that has been started beside it: to whom, when it lets go, and what it does
//! afterwards, or if the other one fails.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::ABI_VERSION;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    answers::Question,
    control::{Control, Feeds, all},
    process::Process,
};
use crate::{
    admin::{
        client,
        lock::{self, RunLock},
        server, socket_path,
    },
    datapath,
    model::{HandoverAccount, HandoverAnswer, HandoverRefusal, HandoverRequest, HandoverStep},
    proxy::{Command, Relief},
};

/// How often it is looked whether the newcomer lives, while it has the maps and nobody has the pods.
const LOOK: Duration = Duration::from_millis(20);
/// How long the newcomer may take from having the maps to serving all pods. It has done what takes time before.
const HALFWAY: Duration = Duration::from_secs(20);
/// How often a relieved agent gives up what nobody came for.
const SWEEP: Duration = Duration::from_secs(1);

/// How long after a take-over the former agent may take to tell what came to it.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the successor has to listen to the last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<HandoverAnswer, HandoverRefusal>>;

/// How this agent introduces itself.
pub(super) fn answer() -> HandoverAnswer {
    HandoverAnswer { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() }
}

/// A step, as this agent says it.
pub(super) fn request(step: HandoverStep, pins: String) -> HandoverRequest {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    HandoverRequest { step, version, abi: ABI_VERSION, pins, accounts: Vec::new() }
}

impl Control {
    /// Whether a signal is to be obeyed at once: not while another agent is about to take over, which is to find the pods
    /// served. A second signal is.
    pub(super) fn is_to_stop(&mut self) -> bool {
        if self.leaving.is_some() || !self.newcomer.is_some_and(Process::is_alive) {
            return true;
        }
        tracing::info!(newcomer = self.newcomer.map(|newcomer| newcomer.pid), "told to stop; awaiting relief first");
        self.leaving = Some(Instant::now() + self.options.drain_deadline);
        false
    }

    /// Whether relief was awaited after a signal and does not come: half of the time is for what is open.
    pub(super) fn is_left_alone(&self) -> bool {
        self.leaving.is_some_and(|deadline| {
            let is_late = deadline.saturating_duration_since(Instant::now()) < self.options.drain_deadline / 2;
            is_late || !self.newcomer.is_some_and(Process::is_alive)
        })
    }

    /// Goes on in a hand-over; the process that is to take over from now on, if it is that far.
    pub(super) async fn hand_over(&mut self, said: &HandoverRequest, pid: u32, tell: Answer) -> Option<Process> {
        let result = match said.step {
            HandoverStep::Announce => self.meet(said, pid).map(|()| None),
            HandoverStep::Take => self.yield_to(pid).await.map(Some),
            // Of an agent that drains already: there is nobody to take over, and nothing to resume.
            HandoverStep::Done if self.run_lock.is_none() => {
                self.tell_accounts();
                Ok(None)
            }
            HandoverStep::Done => Err(HandoverRefusal::Never("nothing was taken over".to_owned())),
            HandoverStep::Settled => self.hear_accounts(&said.accounts, pid).map(|()| None),
        };
        let (result, to) = match result {
            Ok(to) => (Ok(answer()), to),
            Err(refusal) => (Err(refusal), None),
        };
        let _ = tell.send(result);
        to
    }

    fn meet(&mut self, said: &HandoverRequest, pid: u32) -> Result<(), HandoverRefusal> {
        let (own, own_pid) = (env!("CARGO_PKG_VERSION"), std::process::id());
        let pins = self.datapath.pins().directory().display().to_string();
        if said.abi != ABI_VERSION {
            return Err(HandoverRefusal::Never(format!(
                "the running agent (pid {own_pid}, version {own}) has ABI {ABI_VERSION}, this one (version {}) has ABI {}: \
                 they cannot take over from each other; stop the running one (SIGTERM), run mesh-agent cleanup, then \
                 start this one",
                said.version, said.abi
            )));
        }
        if said.pins != pins {
            return Err(HandoverRefusal::Never(format!(
                "another agent is running (pid {own_pid}), with its pins in {pins}, not in {}; give this one the same \
                 --bpffs to take over from it, or its own --run-dir and --bpffs",
                said.pins
            )));
        }
        let newcomer = Process::of(pid).ok_or_else(|| {
            HandoverRefusal::Never(format!(
                "the running agent (pid {own_pid}) cannot see the process of this one: both have to be in the node's pid \
                 namespace"
            ))
        })?;
        if let Some(other) = self.newcomer.filter(|other| *other != newcomer && other.is_alive()) {
            let why = format!("another agent (pid {}) is about to take over from the one that runs", other.pid);
            return Err(HandoverRefusal::Never(why));
        }
        tracing::info!(pid, version = said.version, "another agent is there to take over");
        self.newcomer = Some(newcomer);
        Ok(())
    }

    /// Lets go of everything that two agents may not have at once. What is accepted goes on, and so does accepting: the
    /// listeners are this agent's until the other one has put its own in their place, pod by pod.
    async fn yield_to(&mut self, pid: u32) -> Result<Process, HandoverRefusal> {
        let Some(newcomer) = self.newcomer.filter(|newcomer| newcomer.pid == pid && newcomer.is_alive()) else {
            return Err(HandoverRefusal::Never("who takes over has to announce itself first".to_owned()));
        };
        if !self.pods.are_settled() || self.pods.await_accounts() {
            return Err(HandoverRefusal::Later("pods are on their way from another agent, or out".to_owned()));
        }
        let mut yielded = Vec::new();
        for worker in &self.workers {
            let (done, wait) = oneshot::channel();
            worker.send(Command::Yield(done));
            yielded.push(wait);
        }
        all(yielded).await;
        if let Err(error) = server::make_room(&self.options.run_dir) {
            for worker in &self.workers {
                worker.send(Command::Resume);
            }
            return Err(HandoverRefusal::Never(format!("the running agent cannot rename its socket: {error}")));
        }
        self.datapath.disown();
        self.run_lock = None;
        tracing::info!(pid, "handing over");
        Ok(newcomer)
    }

    /// Halfway. True when this agent is relieved, false when the newcomer has failed.
    pub(super) async fn await_relief(&mut self, to: Process, feeds: &mut Feeds) -> bool {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patience = Some(Instant::now() + HALFWAY);
        loop {
            tokio::select! {
                biased;
                () = feeds.signals.next() => {
                    self.leaving.get_or_insert_with(|| Instant::now() + self.options.drain_deadline);
                }
                Some(question) = feeds.asked.recv() => match question {
                    Question::HandOver(said, pid, tell) if said.step == HandoverStep::Done && pid == to.pid => {
                        let _ = tell.send(Ok(answer()));
                        return true;
                    }
                    question => drop(self.answer(question).await),
                },
                Ok(()) = feeds.found.changed() => self.follow(feeds),
                Some(event) = feeds.pods.recv() => drop(self.pods.networks.note(event)),
                _ = look.tick() => {
                    self.answers.pulse.beat();
                    if !to.is_alive() {
                        return false;
                    }
                    // Nobody else would notice: probes are answered by this agent still.
                    if patience.is_some_and(|until| until < Instant::now()) {
                        patience = None;
                        tracing::error!(pid = to.pid, "who was to take over is stuck, and is killed");
                        if let Err(error) = to.kill() {
                            tracing::error!(pid = to.pid, %error, "it cannot be killed");
                        }
                    }
                }
            }
        }
    }

    /// Policies and identities apply to what is open, whoever serves the pods.
    fn follow(&self, feeds: &mut Feeds) {
        let mesh = Arc::clone(&feeds.found.borrow_and_update());
        if mesh.version > 0 {
            self.publish(&mesh);
        }
    }

    /// The newcomer is gone before it had taken over: this agent is in charge again. False if yet another one is, which
    /// whoever has the locks is.
    pub(super) async fn resume(&mut self) -> anyhow::Result<bool> {
        match RunLock::acquire(&self.options.run_dir) {
            Ok(lock) => self.run_lock = Some(lock),
            Err(lock::Error::Held { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        match self.datapath.own() {
            Ok(()) => {}
            Err(datapath::Error::Held { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        tracing::warn!(newcomer = self.newcomer.map(|newcomer| newcomer.pid), "who was to take over is gone; going on");
        self.newcomer = None;
        server::come_back(&self.options.run_dir)?;
        self.datapath.remain(self.workers.len() as u32, self.options.keepalive)?;
        self.datapath.attach()?;
        self.generations_due = Some(Instant::now());
        self.pods.succeed(&self.datapath, false);
        self.pods.arm_again(&mut self.datapath, &self.workers).await?;
        for worker in &self.workers {
            worker.send(Command::Resume);
        }
        let mesh = Arc::clone(&self.snapshots.borrow());
        if mesh.version > 0 {
            self.put_in_force(&mesh);
            self.pods.forget_others(&mut self.datapath, &mesh);
        }
        Ok(true)
    }

    /// Relieved: what is open goes on until it ends by itself, or until the drain deadline after a signal.
    pub(super) async fn retire(&mut self, feeds: &mut Feeds) {
        tracing::info!(open = self.open(), "relieved");
        self.answers.pulse.drain();
        if let Some(close) = self.close_http.take() {
            let _ = close.send(());
        }
        let (mut settled, mut ended) = (Vec::new(), Vec::new());
        for worker in &self.workers {
            let (tell_settled, is_settled) = oneshot::channel();
            let (tell_ended, has_ended) = oneshot::channel();
            worker.send(Command::Relieve(Relief { settled: tell_settled, ended: tell_ended }));
            settled.push(is_settled);
            ended.push(has_ended);
        }
        let (settled, ended) = (all(settled), all(ended));
        tokio::pin!(settled, ended);
        let mut is_settled = false;
        let mut sweep = interval(SWEEP);
        loop {
            let deadline = self.leaving;
            let is_over = async {
                match deadline {
                    Some(deadline) => sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = feeds.signals.next() => {
                    if self.leaving.is_some() {
                        break;
                    }
                    self.leaving = Some(Instant::now() + self.options.drain_deadline);
                    tracing::info!(open = self.open(), "draining");
                }
                () = is_over => {
                    self.abort_all().await;
                    break;
                }
                () = &mut settled, if !is_settled => {
                    is_settled = true;
                    self.tell_accounts();
                }
                () = &mut ended, if is_settled => break,
                Some(question) = feeds.asked.recv() => drop(self.answer(question).await),
                Ok(()) = feeds.found.changed() => self.follow(feeds),
                Some(_) = feeds.pods.recv() => {}
                _ = sweep.tick() => self.held.sweep(),
            }
        }
        if self.options.stay && self.leaving.is_none() {
            tracing::info!("nothing is open any more; waiting to be stopped");
            feeds.signals.next().await;
        }
        self.stopped().await;
    }

    /// Tells the successor up to where the kernel's counts are explained.
    fn tell_accounts(&mut self) {
        let account = |pod: &super::pods::Enrolled| HandoverAccount { cookie: pod.cookie, explained: pod.explained() };
        let mut said = request(HandoverStep::Settled, String::new());
        said.accounts = self.pods.enrolled.values().map(account).collect();
        let socket = socket_path(&self.options.run_dir);
        // A task of its own: the successor may be asking this agent at the same time.
        self.telling = Some(tokio::spawn(async move {
            if let Err(error) = client::hand_over(&socket, &said).await {
                tracing::debug!(%error, "the successor was not told what became of connections");
            }
        }));
    }

    /// The last words.
    pub(super) async fn stopped(&mut self) {
        if let Some(telling) = self.telling.take() {
            let _ = timeout(LAST_WORDS, telling).await;
        }
        tracing::info!("stopped");
    }

    fn hear_accounts(&mut self, accounts: &[HandoverAccount], pid: u32) -> Result<(), HandoverRefusal> {
        if self.predecessor.is_none_or(|predecessor| predecessor.pid != pid) {
            return Err(HandoverRefusal::Never("this agent has not taken over from that one".to_owned()));
        }
        self.pods.hear_accounts(accounts);
        Ok(())
    }

    /// Notices relieved agents that have ended.
    pub(super) fn look_after_the_relieved(&mut self) {
        for (tgid, former) in self.datapath.draining() {
            let mesh_common::Draining { pid, started, .. } = former;
            if (Process { pid, started }).is_alive() {
                continue;
            }
            if let Err(error) = self.datapath.forget_draining(tgid) {
                tracing::error!(pid, %error, "a relieved agent that has ended cannot be forgotten");
            }
        }
        let is_silent = self.took_over.is_some_and(|at| at.elapsed() > SILENCE);
        if self.predecessor.is_some_and(|predecessor| is_silent || !predecessor.is_alive()) {
            self.predecessor = None;
            self.pods.give_up_accounts(&self.datapath);
        }
    }
}
