//! How an agent takes over from one that runs: it makes itself ready beside it, and only then asks for the pods.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{
    sync::oneshot,
    time::{Instant, interval, sleep, timeout},
};

use super::{
    certificates,
    control::{Control, Feeds, all},
    handover::request,
    process::Process,
};
use crate::{
    admin::{
        client::{self, Error},
        lock::{self, RunLock},
        other_socket_path,
        server::Server,
        socket_path,
    },
    model::{CertificateState, HandoverRequest, HandoverStep, Identity},
    proxy::Command,
};

/// How long an agent that is there may keep silent: it may be about to end, or about to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may ask for time before it lets go.
const LATER: Duration = Duration::from_secs(20);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether the running agent has certificates that this one waits for.
const LOOK: Duration = Duration::from_secs(2);

/// Who is in charge of a run folder.
pub(super) enum Charge {
    /// Nobody else.
    Own(RunLock),
    /// An agent that runs, and that knows of this one now.
    Anothers(Predecessor),
}

/// An agent that runs.
pub(super) struct Predecessor {
    process: Process,
    pins: String,
}

/// Takes charge of the run folder, or announces this process to the agent that is.
///
/// # Errors
/// The other agent does not answer, or will not be relieved by this one.
pub(super) async fn take_charge(run_dir: &Path, pins: &Path) -> anyhow::Result<Charge> {
    let pins = pins.display().to_string();
    let until = Instant::now() + PATIENCE;
    loop {
        let held = match RunLock::acquire(run_dir) {
            Ok(lock) => return Ok(Charge::Own(lock)),
            Err(error @ lock::Error::Held { .. }) => error,
            Err(error) => return Err(error.into()),
        };
        let said = request(HandoverStep::Announce, pins.clone());
        match timeout(PATIENCE, client::hand_over(&socket_path(run_dir), &said)).await {
            Ok(Ok(answer)) => {
                let process = Process::of(answer.pid)
                    .with_context(|| format!("{held}; its process is not visible: run in the node's pid namespace"))?;
                tracing::info!(
                    pid = answer.pid,
                    version = answer.version,
                    "another agent is running: taking over from it"
                );
                return Ok(Charge::Anothers(Predecessor { process, pins }));
            }
            Ok(Err(error)) if error.is_unknown() => {
                bail!("{held}; it is of a version that cannot hand over: stop it (SIGTERM), then start this one")
            }
            Ok(Err(Error::Refused { body, .. })) => bail!("{body}"),
            Ok(Err(Error::NoAgent { .. })) | Err(_) if Instant::now() < until => sleep(PAUSE).await,
            Ok(Err(Error::NoAgent { .. })) | Err(_) => bail!(
                "{held}; it does not answer, and nothing is taken from an agent that does not let go: if it is stuck, end \
                 it with SIGKILL (what it relays is reset, strict pods stay closed) and start this one again"
            ),
            Ok(Err(error)) => return Err(error.into()),
        }
    }
}

impl Predecessor {
    /// Makes the running agent let go.
    async fn take(&self, run_dir: &Path) -> anyhow::Result<()> {
        let until = Instant::now() + LATER;
        loop {
            match client::hand_over(&socket_path(run_dir), &self.request(HandoverStep::Take)).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_for_now() && Instant::now() < until => sleep(PAUSE).await,
                // It has ended meanwhile, and nobody is to let go of anything.
                Err(Error::NoAgent { .. }) if !self.process.is_alive() => return Ok(()),
                Err(error) => return Err(error).context("the running agent does not hand over"),
            }
        }
    }

    /// Tells it that it is relieved.
    async fn relieve(&self, run_dir: &Path) {
        let socket = other_socket_path(run_dir, self.process.pid);
        if let Err(error) = client::hand_over(&socket, &self.request(HandoverStep::Done)).await {
            tracing::warn!(pid = self.process.pid, %error, "the former agent was not told that it is relieved");
        }
    }

    fn request(&self, step: HandoverStep) -> HandoverRequest {
        request(step, self.pins.clone())
    }

    /// Whether it can vouch for one of them.
    async fn vouches_for(&self, run_dir: &Path, identities: &[Identity]) -> bool {
        let Ok(known) = client::certificates(run_dir).await else { return false };
        let mut valid = known.certificates.iter().filter(|certificate| certificate.state == CertificateState::Valid);
        valid.any(|certificate| identities.contains(&certificate.identity))
    }
}

impl Control {
    /// Everything that takes time, while the running agent serves the pods: the first whole snapshot, and the certificates.
    pub(super) async fn prepare(&mut self, predecessor: &Predecessor, feeds: &mut Feeds) -> anyhow::Result<()> {
        let mut changes = self.identities.changes();
        let mut look = interval(LOOK);
        loop {
            tokio::select! {
                changed = feeds.found.changed() => {
                    changed?;
                    let mesh = Arc::clone(&feeds.found.borrow_and_update());
                    if mesh.version > 0 {
                        self.publish(&mesh);
                    }
                }
                changed = changes.changed() => changed?,
                _ = look.tick() => self.answers.pulse.beat(),
            }
            let mesh = Arc::clone(&self.snapshots.borrow());
            // The running agent may know what is in files that cannot be read.
            if mesh.version == 0 || mesh.source.is_partial {
                continue;
            }
            let mut missing: Vec<Identity> = certificates::needed(&mesh).into_iter().collect();
            missing.retain(|identity| self.identities.client(identity).is_err());
            // Without a certificate that the running agent has, connections that succeed would fail.
            if missing.is_empty() || !predecessor.vouches_for(&self.options.run_dir, &missing).await {
                return Ok(());
            }
            tracing::debug!(missing = missing.len(), "waiting for certificates that the running agent has");
        }
    }

    /// Takes the pods over. If it fails, this process has to end: then the other one goes on.
    pub(super) async fn take_over(&mut self, predecessor: Predecessor) -> anyhow::Result<Server> {
        let run_dir = self.options.run_dir.clone();
        let started = Instant::now();
        predecessor.take(&run_dir).await?;
        // From here on, nobody but this process writes the maps.
        self.run_lock = Some(RunLock::acquire(&run_dir)?);
        self.datapath.own()?;
        self.predecessor = Some(predecessor.process);
        self.took_over = Some(std::time::Instant::now());
        self.pods.succeed(&self.datapath, true);
        self.begin().await;
        let Process { pid, started: since } = predecessor.process;
        self.datapath.succeed(pid, since, self.options.keepalive)?;
        self.datapath.attach()?;
        let mesh = Arc::clone(&self.snapshots.borrow());
        self.put_in_force(&mesh);
        self.pods.has_predecessor = false;
        self.datapath.set_workers(self.workers.len() as u32)?;
        let server = Server::replace(&run_dir)?;
        predecessor.relieve(&run_dir).await;
        tracing::info!(from = pid, took_ms = started.elapsed().as_millis() as u64, "took over");
        Ok(server)
    }

    /// The workers say from now on that they live.
    pub(super) async fn begin(&self) {
        let mut begun = Vec::new();
        for worker in &self.workers {
            let (done, wait) = oneshot::channel();
            worker.send(Command::Begin(done));
            begun.push(wait);
        }
        all(begun).await;
    }
}
