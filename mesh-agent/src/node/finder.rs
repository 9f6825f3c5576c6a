//! From what happens in the cgroup tree to what is known of each pod.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::mpsc::UnboundedSender,
    time::{Instant, sleep_until},
};

use super::{
    Error, Event,
    names::Role,
    process::{self, Look},
    tree::{Change, Tree},
};
use crate::{
    model::PodUid,
    net::netns::{Netns, NetnsId},
};

/// How soon a pod is looked at again whose first process is still in the node's namespace, by how long it has been.
/// A runtime's process is there for up to 20 ms.
const PACE: [(Duration, Duration); 3] = [
    (Duration::from_millis(100), Duration::from_millis(1)),
    (Duration::from_secs(2), Duration::from_millis(10)),
    (Duration::from_secs(30), Duration::from_millis(250)),
];
/// When a pod whose processes are all in the node's namespace is said to be there for good. It is found nevertheless
/// should it leave.
const SETTLED: Duration = Duration::from_millis(500);
/// How often the tree is looked at where the kernel cannot be asked to tell.
const RESCAN: Duration = Duration::from_millis(100);
/// The same otherwise: what no event has told shall not be missed for good.
const SLOW_RESCAN: Duration = Duration::from_secs(30);

/// Finds the pods of this node.
pub struct Finder {
    tree: Tree,
    /// Network namespaces that are no pod's.
    node: Vec<NetnsId>,
    pods: HashMap<PodUid, Pod>,
    /// Those to be looked at, and when.
    due: BTreeSet<(Instant, PodUid)>,
    events: UnboundedSender<Event>,
    /// Whether somebody has been told that processes cannot be looked at.
    is_blind: bool,
}

/// What is known of a pod.
#[derive(Debug)]
struct Pod {
    folder: PathBuf,
    /// By inode: in the order in which they were made.
    containers: BTreeMap<u64, Container>,
    found: Option<Bound>,
    on_host: bool,
}

#[derive(Debug)]
struct Container {
    folder: PathBuf,
    /// Since when there is a process in it, in the node's namespace.
    on_node_since: Option<Instant>,
    /// Nothing is expected of it before something happens in it.
    is_done: bool,
    /// It was made when nothing of the pod ran: it may be a new sandbox, in another namespace than the former.
    may_move: bool,
}

/// A namespace and the container whose process told.
#[derive(Debug)]
struct Bound {
    id: NetnsId,
    container: u64,
}

impl Finder {
    /// Watches the cgroup v2 tree below `root`. Events go to `events`, which the caller reads.
    ///
    /// The node's network namespaces are the one that this thread is in, and that of process 1.
    ///
    /// # Errors
    /// There is no such tree, or it cannot be watched.
    pub fn new(root: &Path, events: UnboundedSender<Event>) -> Result<Self, Error> {
        let own = Netns::of_process("thread-self").map_err(Error::OwnNamespace)?.id();
        // Without a look at it the agent's own has to do.
        let init = Netns::of_process("1").ok().map(|netns| netns.id());
        let node = std::iter::once(own).chain(init.filter(|init| *init != own)).collect();
        Self::with_node(root, node, events)
    }

    fn with_node(root: &Path, node: Vec<NetnsId>, events: UnboundedSender<Event>) -> Result<Self, Error> {
        let tree = Tree::new(root)?;
        Ok(Self { tree, node, pods: HashMap::new(), due: BTreeSet::new(), events, is_blind: false })
    }

    /// Runs until nobody reads the events any more.
    pub async fn run(mut self) {
        self.settle();
        self.tell(Event::Settled);
        let mut rescan = Instant::now();
        loop {
            let events = self.events.clone();
            let pause = if self.tree.unwatched().is_some() { RESCAN } else { SLOW_RESCAN };
            let due = self.due.first().map(|(due, _)| *due);
            tokio::select! {
                biased;
                () = events.closed() => return,
                () = self.tree.wait() => {}
                () = wait_until(due) => {}
                () = sleep_until(rescan + pause) => {
                    self.tree.rescan();
                    rescan = Instant::now();
                }
            }
            self.settle();
        }
    }

    /// Takes in all changes and looks at all that are due.
    fn settle(&mut self) {
        for change in self.tree.changes() {
            self.take_in(change);
        }
        let now = Instant::now();
        while let Some((due, _)) = self.due.first()
            && *due <= now
            && let Some((_, uid)) = self.due.pop_first()
        {
            self.look(&uid, now);
        }
    }

    fn take_in(&mut self, change: Change) {
        match change {
            Change::Came(folder, Role::Pod(uid)) => self.pod_came(uid, folder),
            Change::Went(folder, Role::Pod(uid)) => self.pod_went(&uid, &folder),
            Change::Came(folder, Role::Container(uid)) => self.container_came(uid, folder),
            Change::Went(folder, Role::Container(uid)) => self.container_went(uid, &folder),
            Change::Came(..) | Change::Went(..) => {}
            Change::Stirred(folder, uid) => {
                if let Some(container) = self.pod_at(&uid, &folder).and_then(|pod| pod.container_mut(&folder)) {
                    container.is_done = false;
                    container.on_node_since = None;
                    self.due.insert((Instant::now(), uid));
                }
            }
        }
    }

    fn pod_came(&mut self, uid: PodUid, folder: PathBuf) {
        let Some(cgroup) = self.tree.inode(&folder) else { return };
        tracing::debug!(%uid, cgroup, "the kubelet made a pod's cgroup");
        let pod = Pod { folder, containers: BTreeMap::new(), found: None, on_host: false };
        // In the place of another of the same UID: in another QoS class, which the kubelet does not do to a living pod.
        self.pods.insert(uid.clone(), pod);
        self.tell(Event::Created { uid, cgroup });
    }

    fn pod_went(&mut self, uid: &PodUid, folder: &Path) {
        if self.pods.get(uid).is_some_and(|pod| pod.folder == folder) {
            tracing::debug!(%uid, "a pod's cgroup is gone");
            self.pods.remove(uid);
            self.tell(Event::Gone { uid: uid.clone() });
        }
    }

    fn container_came(&mut self, uid: PodUid, folder: PathBuf) {
        let Some(inode) = self.tree.inode(&folder) else { return };
        let Some(pod) = self.pod_at(&uid, &folder) else { return };
        let may_move = !pod.is_told();
        pod.containers.insert(inode, Container { folder, on_node_since: None, is_done: false, may_move });
        self.due.insert((Instant::now(), uid));
    }

    fn container_went(&mut self, uid: PodUid, folder: &Path) {
        let Some(pod) = self.pod_at(&uid, folder) else { return };
        pod.containers.retain(|_, container| container.folder != folder);
        // If it was the sandbox, the others tell which namespace is the pod's now.
        self.due.insert((Instant::now(), uid));
    }

    /// The pod, if this is the folder of a container of it.
    fn pod_at(&mut self, uid: &PodUid, container: &Path) -> Option<&mut Pod> {
        self.pods.get_mut(uid).filter(|pod| container.parent() == Some(&pod.folder))
    }

    /// Looks at a pod's processes, and says when to look again.
    fn look(&mut self, uid: &PodUid, now: Instant) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        match pod.look(&self.node, now) {
            Verdict::Nothing => {}
            Verdict::Again(at) => {
                self.due.insert((at, uid.clone()));
            }
            Verdict::OnHost(again) => {
                if !std::mem::replace(&mut pod.on_host, true) {
                    tracing::debug!(%uid, "the pod has no network namespace of its own");
                    self.tell(Event::OnHost { uid: uid.clone() });
                }
                self.due.extend(again.map(|at| (at, uid.clone())));
            }
            Verdict::Found(netns) => {
                pod.on_host = false;
                tracing::debug!(%uid, at = %netns.path().display(), "found a pod's network namespace");
                self.tell(Event::Found { uid: uid.clone(), netns: Arc::new(netns) });
            }
            Verdict::Hidden(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    tracing::error!(
                        %error,
                        "processes of pods cannot be looked at: the agent needs the node's pid namespace and CAP_SYS_PTRACE"
                    );
                }
                self.due.insert((now + RESCAN, uid.clone()));
            }
        }
    }

    fn tell(&self, event: Event) {
        // Nobody reads any more: `run` ends soon.
        let _ = self.events.send(event);
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// What came of looking at a pod.
enum Verdict {
    /// Known already, or nothing to be seen before something happens.
    Nothing,
    Again(Instant),
    OnHost(Option<Instant>),
    Found(Netns),
    Hidden(std::io::Error),
}

impl Pod {
    fn container_mut(&mut self, folder: &Path) -> Option<&mut Container> {
        self.containers.values_mut().find(|container| container.folder == folder)
    }

    /// Whether the container that told the namespace has a process still.
    fn is_told(&self) -> bool {
        let teller = self.found.as_ref().and_then(|found| self.containers.get(&found.container));
        teller.is_some_and(|container| process::is_populated(&container.folder))
    }

    fn look(&mut self, node: &[NetnsId], now: Instant) -> Verdict {
        if self.is_told() {
            return Verdict::Nothing;
        }
        let (mut is_on_host, mut again) = (false, None);
        for (inode, container) in self.containers.iter_mut().filter(|(_, container)| !container.is_done) {
            match process::look(&container.folder, node) {
                // Its events tell of the first process.
                Look::Empty => container.is_done = true,
                Look::Hidden(error) => return Verdict::Hidden(error),
                Look::Found(netns) => {
                    let is_known = self.found.as_ref().is_some_and(|found| found.id == netns.id());
                    if !is_known && !container.may_move {
                        // It has made a namespace of its own, and outlives its sandbox by a moment.
                        container.is_done = true;
                        continue;
                    }
                    self.found = Some(Bound { id: netns.id(), container: *inode });
                    self.containers.values_mut().for_each(|container| container.may_move = false);
                    return if is_known { Verdict::Nothing } else { Verdict::Found(netns) };
                }
                Look::OnNode => {
                    let age = now - *container.on_node_since.get_or_insert(now);
                    is_on_host |= age >= SETTLED;
                    let pace = PACE.iter().find(|(until, _)| age < *until).map(|(_, pace)| now + *pace);
                    container.is_done = pace.is_none();
                    again = again.into_iter().chain(pace).min();
                }
            }
        }
        match (is_on_host && self.found.is_none(), again) {
            (true, again) => Verdict::OnHost(again),
            (false, Some(at)) => Verdict::Again(at),
            (false, None) => Verdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests;
