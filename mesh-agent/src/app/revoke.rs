//! Direct connections that are no longer allowed: no agent is in their path, so that the kernel has to end them.
//!
//! Which connections are direct is in the storage of the client's socket, where the connect hook left it. So what was not
//! captured (excluded, from the node, older than enrolment) is never touched.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    time::Duration,
};

use crate::{
    datapath,
    model::{Mesh, ObjectName, Outcome, Reason},
    net::{
        netns::Netns,
        sock_diag::{Connection, SockDiag},
    },
    policy::{self, Client, Flow},
    telemetry::Verdicts,
};

/// After this everything is looked at once more: a connection may have been on its way between the former decision and the
/// table of sockets.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The control thread's end of the thread that ends connections.
pub(super) struct Revocations {
    snapshots: Sender<Arc<Mesh>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    verdicts: Verdicts,
    ended: AtomicU64,
    cannot: AtomicBool,
}

impl Revocations {
    /// Starts the thread. `flows` is the map in which the connect hook notes what it did with a socket.
    pub(super) fn start(flows: OwnedFd) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (snapshots, receiver) = mpsc::channel();
        let own = Arc::clone(&shared);
        let home = Netns::open(Path::new("/proc/self/ns/net"))?;
        let can = SockDiag::open().and_then(|table| table.can_destroy());
        if !matches!(can, Ok(true)) {
            tracing::warn!(?can, reason = Reason::ConnectionsKept.code(), "direct connections cannot be ended");
            shared.cannot.store(true, Ordering::Relaxed);
        }
        std::thread::Builder::new().name("revocations".into()).spawn(move || run(&receiver, &home, &flows, &own))?;
        Ok(Self { snapshots, shared })
    }

    /// Policies or identities have changed.
    pub(super) fn review(&self, mesh: &Arc<Mesh>) {
        // The thread ends only with this.
        let _ = self.snapshots.send(Arc::clone(mesh));
    }

    /// Connections that were ended.
    pub(super) fn ended(&self) -> u64 {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// What was noted of them.
    pub(super) fn verdicts(&self) -> &Verdicts {
        &self.shared.verdicts
    }

    /// Whether the kernel cannot do it.
    pub(super) fn cannot(&self) -> bool {
        self.shared.cannot.load(Ordering::Relaxed)
    }
}

fn run(snapshots: &Receiver<Arc<Mesh>>, home: &Netns, flows: &OwnedFd, shared: &Shared) {
    let mut again: Option<Arc<Mesh>> = None;
    loop {
        let received = match &again {
            Some(_) => snapshots.recv_timeout(SECOND_LOOK),
            None => snapshots.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let (mesh, is_first_look) = match (received, again.take()) {
            // Only the latest counts.
            (Ok(mesh), _) => (snapshots.try_iter().last().unwrap_or(mesh), true),
            (Err(RecvTimeoutError::Timeout), Some(mesh)) => (mesh, false),
            (Err(_), _) => return,
        };
        review(&mesh, flows, shared);
        // A namespace that a thread is in does not end with its pod.
        if let Err(error) = home.enter() {
            tracing::warn!(%error, "a thread stays in the network namespace of a pod");
        }
        again = is_first_look.then_some(mesh);
    }
}

fn review(mesh: &Mesh, flows: &OwnedFd, shared: &Shared) {
    for (name, path) in clients(mesh) {
        if let Err(error) = review_client(mesh, &name, &path, flows, shared) {
            // It may just have gone.
            let is_gone = error.kind() == io::ErrorKind::NotFound;
            if !is_gone {
                tracing::warn!(pod = %name, %error, "its direct connections cannot be looked at");
            }
        }
    }
}

/// Pods of this node, enrolled or not any more: what they opened while they were is still direct.
fn clients(mesh: &Mesh) -> impl Iterator<Item = (ObjectName, PathBuf)> {
    mesh.local.values().filter_map(|workload| Some((workload.name.clone(), workload.netns.clone()?)))
}

fn review_client(mesh: &Mesh, name: &ObjectName, path: &Path, flows: &OwnedFd, shared: &Shared) -> io::Result<()> {
    Netns::open(path)?.enter()?;
    let table = SockDiag::open()?;
    for connection in table.connections(flows.as_fd(), &datapath::is_direct)? {
        let Some(flow) = flow(mesh, name, &connection) else { continue };
        let decision = policy::review(mesh, &flow);
        if decision.verdict.is_allowed() {
            continue;
        }
        match table.destroy(&connection) {
            Ok(()) => {
                shared.ended.fetch_add(1, Ordering::Relaxed);
                for verdict in policy::worth_noting(mesh, &flow, &decision, Outcome::Ended) {
                    shared.verdicts.note(verdict);
                }
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::Unsupported {
                    shared.cannot.store(true, Ordering::Relaxed);
                }
                tracing::error!(pod = %name, remote = %connection.remote, %error, "a direct connection cannot be ended");
            }
        }
    }
    Ok(())
}

fn flow(mesh: &Mesh, name: &ObjectName, connection: &Connection) -> Option<Flow> {
    let source = mesh.workloads.get(name)?;
    let target = mesh.workload_of(connection.remote)?;
    let client = Client::Pod {
        name: name.clone(),
        identity: Arc::clone(&source.identity),
        addresses: [connection.local.ip()].into(),
    };
    Some(Flow { client, target: target.name.clone(), destination: connection.remote })
}
