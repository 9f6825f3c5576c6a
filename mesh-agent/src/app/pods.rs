//! The pods of this node on their way into the mesh and out of it: which are armed, and in what order that happens.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    io,
    net::{IpAddr, TcpListener},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_common::{Counters, INBOUND_PORT, OUTBOUND_PORT};

use super::{networks::Networks, pending::Pending};
use crate::{
    datapath::{Armed, Datapath, Listeners, Slot, WorkloadConfig},
    model::{Exclusions, Identity, Location, Mesh, ObjectName, PodUid, Problem, Reason, Severity, SharedMap, Workload},
    net::{
        listen::{limbo, listen},
        netns,
    },
    proxy::{Command, Held, Pod, PodListeners, WorkerHandle},
};

/// After disarming, how long redirected connections have to reach their listener: they are on the pod's own loopback.
const SETTLE: Duration = Duration::from_millis(200);

/// A pod that is armed, or was.
pub(super) struct Enrolled {
    pub(super) pod: Arc<Pod>,
    /// What it was found by in the cgroup tree, if it was.
    pub(super) uid: Option<PodUid>,
    pub(super) cookie: u64,
    pub(super) slot: Slot,
    pub(super) config: WorkloadConfig,
    /// Who it is as a source of decisions: as another, it may be refused what was cached.
    identity: Arc<Identity>,
    pub(super) stage: Stage,
    /// It ran already when it was enrolled: until it was armed it went on as it did before.
    pub(super) has_joined: bool,
    /// Where held SYNs go, as long as the listeners are open.
    pub(super) limbo: Option<TcpListener>,
    /// What the kernel had counted when this agent took the pod over.
    pub(super) base: Counters,
    /// Of what it has counted since: what came to the former agent still. `None` until that one has said so.
    pub(super) elsewhere: Option<u64>,
}

/// How far on its way out a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Armed,
    /// Disarmed; the listeners are open until then.
    Settling(Instant),
    /// Nothing more can come; open connections go on.
    Closed,
}

impl Enrolled {
    pub(super) fn is_settling(&self) -> bool {
        matches!(self.stage, Stage::Settling(_))
    }

    /// Whether its cgroup is there, if it was found by that.
    fn is_on(&self, networks: &Networks) -> bool {
        self.uid.as_ref().is_none_or(|uid| networks.seen(uid).is_some())
    }

    /// Relayed connections that are open.
    pub(super) fn open(&self) -> u64 {
        let mut sum = crate::model::RelayStatus::default();
        for counters in &self.pod.counters {
            counters.outbound.add_to(&mut sum);
            counters.inbound.add_to(&mut sum);
        }
        sum.open
    }
}

/// All of them.
pub(super) struct Pods {
    pub(super) enrolled: BTreeMap<ObjectName, Enrolled>,
    /// Why a pod that should be armed is not.
    pub(super) failed: BTreeMap<ObjectName, Problem>,
    /// Where the pods are.
    pub(super) networks: Networks,
    /// Slots of pods whose cgroup is there and that are not armed yet.
    pub(super) pending: HashMap<PodUid, Pending>,
    /// Those that may have to be marked as pending: after those that have to be armed.
    pub(super) to_mark: VecDeque<Arc<Workload>>,
    /// Workloads of this node that are known by their UID, of these.
    pub(super) by_uid: HashMap<PodUid, Arc<Workload>>,
    /// Of these, those that ran already when they were enrolled.
    joined: HashSet<PodUid>,
    local: SharedMap<ObjectName, Arc<Workload>>,
    /// The last pod whose addresses were looked at.
    refreshed: Option<ObjectName>,
    pub(super) adopted: HashMap<u64, Slot>,
    /// Whether what is adopted was another agent's until just now.
    pub(super) has_predecessor: bool,
    /// Whether pods of an earlier agent are kept as they are, since what is said of them cannot be read.
    pub(super) holds_others: bool,
    pub(super) generation: u32,
    keepalive: Duration,
    direct: bool,
    /// Connections that are to come in when their destination has answered.
    held: Arc<Held>,
}

impl Pods {
    pub(super) fn new(
        datapath: &Datapath,
        networks: Networks,
        direct: bool,
        keepalive: Duration,
        held: Arc<Held>,
    ) -> Self {
        let adopted = if datapath.adopted() { datapath.slots() } else { HashMap::new() };
        Self {
            enrolled: BTreeMap::new(),
            failed: BTreeMap::new(),
            networks,
            pending: HashMap::new(),
            to_mark: VecDeque::new(),
            by_uid: HashMap::new(),
            joined: HashSet::new(),
            local: SharedMap::default(),
            refreshed: None,
            adopted,
            has_predecessor: false,
            holds_others: false,
            generation: 0,
            keepalive,
            direct,
            held,
        }
    }

    /// Brings the kernel in line with the snapshot: disarms first, then arms.
    pub(super) fn reconcile(&mut self, datapath: &mut Datapath, workers: &[WorkerHandle], mesh: &Mesh) {
        let wanted: BTreeMap<&ObjectName, &Arc<Workload>> =
            mesh.local.iter().filter(|(_, workload)| self.should_be_armed(mesh, workload)).collect();
        let leaving: Vec<ObjectName> = self
            .enrolled
            .iter()
            .filter(|(name, pod)| {
                pod.stage == Stage::Armed
                    && !wanted.get(name).is_some_and(|workload| self.is_in_its_network(workload, pod))
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in leaving {
            self.disarm(datapath, &name);
        }
        self.failed.retain(|name, _| wanted.contains_key(name));
        if !self.local.is_same(&mesh.local) {
            self.local = mesh.local.clone();
            let found_by_uid = |workload: &Arc<Workload>| Some((workload.uid.clone()?, Arc::clone(workload)));
            let by_uid: HashMap<_, _> = mesh.local.values().filter_map(found_by_uid).collect();
            let former = std::mem::replace(&mut self.by_uid, by_uid);
            self.note_joined(&former);
            self.networks.retain_ended(|uid| self.by_uid.contains_key(uid));
        }
        self.mark_all(datapath, mesh);
        for workload in wanted.into_values() {
            self.arm_or_report(datapath, workers, workload);
        }
    }

    /// Notes which pods have been enrolled while they ran, since `former`.
    fn note_joined(&mut self, former: &HashMap<PodUid, Arc<Workload>>) {
        let by_uid = &self.by_uid;
        self.joined.retain(|uid| by_uid.contains_key(uid));
        let ran = |uid: &PodUid| {
            former.get(uid).is_some_and(|workload| !workload.enrolled && self.networks.of(workload).is_some())
        };
        let joined = by_uid.iter().filter(|(uid, workload)| workload.enrolled && ran(uid));
        self.joined.extend(joined.map(|(uid, _)| uid.clone()));
    }

    /// The same for pods of which something was found, and no others: they are in a hurry.
    pub(super) fn react(
        &mut self,
        datapath: &mut Datapath,
        workers: &[WorkerHandle],
        mesh: &Mesh,
        found: &BTreeSet<PodUid>,
    ) {
        let workloads: Vec<_> = found.iter().filter_map(|uid| self.by_uid.get(uid).cloned()).collect();
        // Those that run before those that will.
        for workload in
            workloads.iter().filter(|workload| self.should_be_armed(mesh, workload)).cloned().collect::<Vec<_>>()
        {
            let is_elsewhere = self
                .enrolled
                .get(&workload.name)
                .is_some_and(|pod| pod.stage == Stage::Armed && !self.is_in_its_network(&workload, pod));
            if is_elsewhere {
                self.disarm(datapath, &workload.name);
            }
            self.arm_or_report(datapath, workers, &workload);
        }
        self.to_mark.extend(workloads);
    }

    fn arm_or_report(&mut self, datapath: &mut Datapath, workers: &[WorkerHandle], workload: &Workload) {
        let name = &workload.name;
        match self.arm(datapath, workers, workload) {
            Ok(()) => {
                self.failed.remove(name);
                self.unmark(datapath, workload);
            }
            Err(error) => {
                let problem = arm_problem(workload, &error);
                if self.failed.insert(name.clone(), problem.clone()).as_ref() != Some(&problem) {
                    tracing::error!(pod = %name, error = format!("{error:#}"), reason = problem.reason.code(), "cannot arm");
                }
            }
        }
    }

    /// What earlier agents armed and nobody wants any more goes, once the first snapshot has been put in force. What that
    /// may not name stays as it is without an agent until it is known what is said of it.
    pub(super) fn forget_others(&mut self, datapath: &mut Datapath, mesh: &Mesh) {
        let mut keep: HashSet<u64> = self.enrolled.values().map(|pod| pod.cookie).collect();
        let held = if mesh.source.is_partial { self.unnamed(datapath, &keep, mesh) } else { Vec::new() };
        if !held.is_empty() {
            tracing::warn!(pods = held.len(), "pods of an earlier agent are kept: what is said of them cannot be read");
        }
        self.holds_others = !held.is_empty();
        keep.extend(&held);
        if let Err(error) = datapath.forget_others(|cookie| keep.contains(&cookie)) {
            tracing::warn!(%error, "what an earlier agent left cannot be removed");
        }
        if !self.holds_others {
            self.unmark_others(datapath);
        }
        self.adopted.retain(|cookie, _| held.contains(cookie));
    }

    /// The armed namespaces, by cookie, that are there, are none of `own`, and not those of pods that the snapshot names.
    fn unnamed(&self, datapath: &Datapath, own: &HashSet<u64>, mesh: &Mesh) -> Vec<u64> {
        let inode = |workload: &Arc<Workload>| self.networks.of(workload)?.inode();
        let named: HashSet<u64> = mesh.local.values().filter_map(inode).collect();
        let is_unnamed = |pod: &Armed| pod.netns.is_some_and(|inode| !named.contains(&inode));
        let others = datapath.armed().into_iter().filter(|pod| !own.contains(&pod.cookie));
        others.filter(is_unnamed).map(|pod| pod.cookie).collect()
    }

    fn arm(&mut self, datapath: &mut Datapath, workers: &[WorkerHandle], workload: &Workload) -> anyhow::Result<()> {
        let Some(network) = self.networks.of(workload) else { return Ok(()) };
        match self.enrolled.get(&workload.name) {
            Some(pod) if pod.stage == Stage::Armed => return self.update(datapath, workload),
            // It comes back while it was leaving: its listeners are open still.
            Some(pod) if pod.is_settling() && network.is(&pod.pod.netns) && pod.pod.netns.is_still_there() => {
                return self.update(datapath, workload);
            }
            Some(_) | None => {}
        }
        let netns = network.open()?;
        let count = workers.len();
        let keepalive = self.keepalive;
        let found = netns.run(|| inspect(count, keepalive))?;
        if let Some(other) =
            self.enrolled.values().find(|pod| pod.cookie == found.cookie && pod.pod.name != workload.name)
        {
            anyhow::bail!("its network namespace is that of pod {}", other.pod.name);
        }
        // A pod that left and still has connections keeps its slot and its counters; one that was replaced does not.
        let before = self.enrolled.remove(&workload.name);
        // What came to it before is to be told by the agent that had it, if there is one.
        let is_shared = self.has_predecessor && self.adopted.contains_key(&found.cookie);
        let mut elsewhere = (!is_shared).then_some(0);
        let (slot, base, pod) = match before {
            Some(before) if before.cookie == found.cookie => {
                elsewhere = before.elsewhere;
                (before.slot, before.base, before.pod)
            }
            before => {
                if let Some(replaced) = before {
                    retire(datapath, workers, &replaced);
                }
                let (slot, base) = self.slot(datapath, workload, found.cookie)?;
                (slot, base, Arc::new(Pod::new(workload.name.clone(), slot.0, netns, count)))
            }
        };
        let mut config = self.config(workload, found.cookie, &found.addresses);
        config.generation = self.next_generation();
        pod.set_generation(config.generation);
        pod.set_addresses(&config.addresses);
        let set = datapath.set_listeners(slot, &found.listeners);
        let listeners = found.listeners;
        for ((worker, outbound), inbound) in workers.iter().zip(listeners.outbound).zip(listeners.inbound) {
            worker.send(Command::Add(Arc::clone(&pod), PodListeners { outbound, inbound }));
        }
        let (stage, limbo) = (Stage::Armed, Some(listeners.limbo));
        let uid = if workload.netns.is_some() { None } else { workload.uid.clone() };
        let has_joined = uid.as_ref().is_some_and(|uid| self.joined.contains(uid));
        let enrolled = Enrolled {
            pod,
            uid,
            cookie: found.cookie,
            slot,
            config,
            identity: Arc::clone(&workload.identity),
            stage,
            has_joined,
            limbo,
            base,
            elsewhere,
        };
        if let Err(error) = set.and_then(|()| datapath.arm(slot, enrolled.pod.netns.file(), &enrolled.config)) {
            retire(datapath, workers, &enrolled);
            return Err(error.into());
        }
        let mode = enrolled.config.mode;
        tracing::info!(pod = %workload.name, netns = %enrolled.pod.netns.path().display(), slot = slot.0, ?mode, "armed");
        self.enrolled.insert(workload.name.clone(), enrolled);
        Ok(())
    }

    fn is_in_its_network(&self, workload: &Workload, pod: &Enrolled) -> bool {
        self.networks.of(workload).is_some_and(|network| network.is(&pod.pod.netns))
    }

    /// Enrolled, of this node, and with a network namespace of its own that is there.
    pub(super) fn should_be_armed(&self, mesh: &Mesh, workload: &Workload) -> bool {
        may_be_armed(mesh, workload) && self.networks.of(workload).is_some()
    }

    /// Writes the configuration of a pod that has its listeners, if it has changed.
    fn update(&mut self, datapath: &mut Datapath, workload: &Workload) -> anyhow::Result<()> {
        let Some(known) = self.enrolled.get(&workload.name) else { return Ok(()) };
        let mut config = self.config(workload, known.cookie, &known.config.addresses);
        let unchanged = WorkloadConfig { generation: known.config.generation, ..config.clone() };
        let is_same = unchanged == known.config && known.identity == workload.identity;
        if known.stage == Stage::Armed && is_same {
            return Ok(());
        }
        config.generation = self.next_generation();
        let Some(known) = self.enrolled.get_mut(&workload.name) else { return Ok(()) };
        known.pod.set_generation(config.generation);
        known.pod.set_addresses(&config.addresses);
        datapath.arm(known.slot, known.pod.netns.file(), &config)?;
        tracing::info!(pod = %workload.name, mode = ?config.mode, "armed anew");
        known.config = config;
        known.identity = Arc::clone(&workload.identity);
        known.stage = Stage::Armed;
        Ok(())
    }

    fn slot(&mut self, datapath: &mut Datapath, workload: &Workload, cookie: u64) -> anyhow::Result<(Slot, Counters)> {
        if let Some(slot) = self.adopted.get(&cookie) {
            return Ok((*slot, datapath.counters(*slot)?));
        }
        match workload.uid.as_ref().and_then(|uid| self.pending.get(uid)) {
            Some(pending) => Ok((pending.slot, Counters::default())),
            None => self.new_slot(datapath),
        }
    }

    /// A slot that nobody has, all of its counters 0.
    pub(super) fn new_slot(&mut self, datapath: &mut Datapath) -> anyhow::Result<(Slot, Counters)> {
        let enrolled = self.enrolled.values().map(|pod| pod.slot);
        let pending = self.pending.values().map(|pending| pending.slot);
        let taken: HashSet<Slot> = enrolled.chain(pending).chain(self.adopted.values().copied()).collect();
        let slot = datapath.free_slot(|slot| taken.contains(&slot))?;
        datapath.reset_counters(slot)?;
        Ok((slot, Counters::default()))
    }

    /// What the kernel is to know; its generation is set when it is written.
    fn config(&self, workload: &Workload, cookie: u64, found: &[IpAddr]) -> WorkloadConfig {
        // The addresses of the Pod object first: the first of a family is the one that apps are shown.
        let mut addresses = workload.addresses.clone();
        addresses.retain(|address| found.contains(address));
        addresses.extend(found.iter().filter(|address| !workload.addresses.contains(address)));
        WorkloadConfig {
            cookie,
            addresses,
            mode: workload.mode,
            exclusions: Exclusions::clone(&workload.exclusions),
            direct: self.direct,
            generation: 0,
        }
    }

    fn disarm(&mut self, datapath: &mut Datapath, name: &ObjectName) {
        let Some(pod) = self.enrolled.get_mut(name) else { return };
        if let Err(error) = datapath.disarm(pod.slot, pod.cookie) {
            tracing::error!(pod = %name, %error, "cannot disarm");
        }
        tracing::info!(pod = %name, open = pod.open(), "disarmed");
        pod.stage = Stage::Settling(Instant::now() + SETTLE);
    }

    /// Closes what has settled, forgets what has ended, notices namespaces that are gone. Returns when to come again.
    pub(super) fn tend(&mut self, datapath: &mut Datapath, workers: &[WorkerHandle]) -> Option<Instant> {
        let now = Instant::now();
        for (name, pod) in &mut self.enrolled {
            match pod.stage {
                Stage::Armed | Stage::Settling(_) if !pod.pod.netns.is_still_there() || !pod.is_on(&self.networks) => {
                    retire(datapath, workers, pod);
                    pod.limbo = None;
                    pod.stage = Stage::Closed;
                }
                // What is held comes when its app asks the next time.
                Stage::Settling(until) if until <= now && self.held.concerns(pod.slot.0) => {
                    pod.stage = Stage::Settling(now + SETTLE);
                }
                Stage::Settling(until) if until <= now => {
                    if let Err(error) = datapath.forget(pod.slot, pod.cookie) {
                        tracing::error!(pod = %name, %error, "cannot be forgotten");
                    }
                    for worker in workers {
                        worker.send(Command::Close(Arc::clone(&pod.pod)));
                    }
                    pod.limbo = None;
                    pod.stage = Stage::Closed;
                }
                _ => {}
            }
        }
        self.enrolled.retain(|_, pod| pod.stage != Stage::Closed || pod.open() > 0);
        self.enrolled
            .values()
            .filter_map(|pod| if let Stage::Settling(until) = pod.stage { Some(until) } else { None })
            .min()
    }

    /// Looks for addresses that pods have got or lost since; at this share of the pods, the others in turn.
    pub(super) fn refresh_addresses(&mut self, datapath: &mut Datapath, mesh: &Mesh, share: f64) {
        let count = (self.enrolled.len() as f64 * share).ceil() as usize;
        let after = self.refreshed.take().map_or(Bound::Unbounded, Bound::Excluded);
        let names: Vec<ObjectName> =
            self.enrolled.range((after, Bound::Unbounded)).map(|(name, _)| name.clone()).take(count).collect();
        // At the end it begins anew.
        self.refreshed = names.last().cloned().filter(|_| names.len() == count);
        for name in names {
            let Some(pod) = self.enrolled.get_mut(&name).filter(|pod| pod.stage == Stage::Armed) else { continue };
            let Ok(mut found) = pod.pod.netns.run(netns::addresses) else { continue };
            let mut known = pod.config.addresses.clone();
            found.sort_unstable();
            known.sort_unstable();
            if found == known {
                continue;
            }
            let cookie = pod.cookie;
            let Some(workload) = mesh.workloads.get(&name) else { continue };
            let mut config = self.config(workload, cookie, &found);
            config.generation = self.next_generation();
            let Some(pod) = self.enrolled.get_mut(&name) else { continue };
            pod.pod.set_generation(config.generation);
            pod.pod.set_addresses(&config.addresses);
            if let Err(error) = datapath.arm(pod.slot, pod.pod.netns.file(), &config) {
                tracing::error!(pod = %name, %error, "its new addresses are not captured");
            }
            pod.config = config;
        }
    }

    pub(super) fn next_generation(&mut self) -> u32 {
        self.generation += 1;
        self.generation
    }
}

/// A pod's network namespace is gone or another one's, or it could not be armed: it is forgotten at once, and its
/// connections end.
fn retire(datapath: &mut Datapath, workers: &[WorkerHandle], pod: &Enrolled) {
    let name = &pod.pod.name;
    tracing::info!(pod = %name, "no longer captured; its connections end");
    let result = datapath.disarm(pod.slot, pod.cookie).and_then(|()| datapath.forget(pod.slot, pod.cookie));
    if let Err(error) = result {
        tracing::error!(pod = %name, %error, "cannot disarm");
    }
    for worker in workers {
        worker.send(Command::Abort(Arc::clone(&pod.pod), Reason::WorkloadGone));
    }
}

/// What is made and found in a namespace.
struct Found {
    cookie: u64,
    addresses: Vec<IpAddr>,
    listeners: Listeners,
}

fn inspect(workers: usize, keepalive: Duration) -> io::Result<Found> {
    let make = |port| (0..workers).map(|_| listen(port, keepalive)).collect::<io::Result<Vec<_>>>();
    let listeners = Listeners { outbound: make(OUTBOUND_PORT)?, inbound: make(INBOUND_PORT)?, limbo: limbo()? };
    Ok(Found { cookie: netns::cookie()?, addresses: netns::addresses()?, listeners })
}

/// Enrolled, of this node, and not on the node's own network.
pub(super) fn may_be_armed(mesh: &Mesh, workload: &Workload) -> bool {
    workload.enrolled && workload.is_on(&mesh.node.name) && !workload.host_network
}

fn arm_problem(workload: &Workload, error: &anyhow::Error) -> Problem {
    let too_many = error.downcast_ref().is_some_and(|error| matches!(error, crate::datapath::Error::NoSlot(_)));
    let reason = if too_many { Reason::TooManyWorkloads } else { Reason::ArmFailed };
    Problem {
        reason,
        severity: Severity::Error,
        location: Location { file: workload.location.file.clone(), line: workload.location.line },
        object: format!("Pod {}", workload.name),
        field: String::new(),
        message: format!("not captured: {error:#}"),
        remedy: reason.remedy().to_owned(),
    }
}
