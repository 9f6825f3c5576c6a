//! Pods and their namespaces to workloads.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    claims,
    intern::Interner,
    objects::Objects,
    policies::Policies,
    problems::{in_order_of_place, problem},
    unread::Unread,
};
use crate::{
    discovery::{
        Site,
        object::{Key, Kind, Loaded, Object, Pod},
    },
    model::{Identity, InboundPolicy, Left, Mesh, ObjectName, Problem, Reason, Workload},
};

/// All that pods are joined with.
pub(super) struct Join<'a> {
    pub(super) site: &'a Site,
    pub(super) objects: &'a Objects,
    pub(super) policies: &'a mut Policies,
    pub(super) interner: &'a mut Interner,
    pub(super) owners: &'a Owners,
    /// The network namespaces that exist.
    pub(super) netns: &'a BTreeMap<PathBuf, u64>,
}

impl Join<'_> {
    /// The workload of a pod that lives, and what is wrong with it. `is_own` says which addresses are its own.
    pub(super) fn workload(
        &mut self,
        loaded: &Loaded,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> (Option<Workload>, Vec<Problem>) {
        let Object::Pod(pod) = &*loaded.object else { return (None, Vec::new()) };
        let mut addresses: Vec<_> = claimed(pod).iter().copied().filter(|address| is_own(*address)).collect();
        addresses.shrink_to_fit();
        if pod.finished || has_lost_all(pod, |address| addresses.contains(&address)) {
            return (None, Vec::new());
        }
        let name = &loaded.key.name;
        let namespace = ObjectName { namespace: Arc::default(), name: Arc::clone(&name.namespace) };
        let inherited = match self.objects.object(Kind::Namespace, &namespace).map(|object| &**object) {
            Some(Object::Namespace(settings)) => Arc::clone(settings),
            _ => Arc::default(),
        };
        let unread = Unread { own: &pod.settings, inherited: &inherited, left: self.left(pod) };
        let (policy, mut problems) = self.policies.of(loaded, pod, unread.modes());
        let mut workload = self.join(loaded, pod, addresses, policy, &unread);
        if workload.is_on(&self.site.node) {
            problems.extend(unread.problem(loaded, &workload));
        }
        if !workload.is_on(&self.site.node) {
            workload.netns = None;
            workload.uid = None;
        }
        let owner = workload.netns.as_deref().and_then(|path| self.owners.of(path)).filter(|owner| *owner != name);
        if let Some(owner) = owner {
            problems.push(shared_netns(loaded, pod, owner));
            workload.netns = None;
        } else if workload.enrolled && workload.is_on(&self.site.node) {
            problems.extend(cannot_be_captured(loaded, pod, &workload, self.netns));
        }
        (Some(workload), problems)
    }

    /// How the pod was before its annotations could not be read, as far as that is known.
    fn left(&self, pod: &Pod) -> Option<Left> {
        let told = || pod.settings.told.map(|mode| Left { mode, exclusions: Arc::default() });
        if pod.host_network || !pod.is_on(&self.site.node) {
            return told();
        }
        let former = &self.site.former;
        let left = match &pod.settings.netns {
            Some(netns) => self.netns.get(&netns.path).and_then(|inode| former.by_netns.get(inode)),
            None => pod.uid.as_ref().and_then(|uid| former.by_uid.get(uid)),
        };
        // What is in force says more than what was written about it.
        left.cloned().or_else(|| told().filter(|_| !former.is_known))
    }

    fn join(
        &mut self,
        loaded: &Loaded,
        pod: &Pod,
        addresses: Vec<IpAddr>,
        policy: Arc<InboundPolicy>,
        unread: &Unread<'_>,
    ) -> Workload {
        let name = &loaded.key.name;
        let own = &*pod.settings;
        let mode = policy.kernel_mode();
        let identity = Identity {
            trust_domain: Arc::clone(&self.site.trust_domain),
            namespace: Arc::clone(&name.namespace),
            service_account: Arc::clone(&pod.service_account),
        };
        let exclusions = unread.exclusions();
        Workload {
            name: name.clone(),
            identity: self.interner.identities.intern(&Arc::new(identity)),
            node: pod.node.clone(),
            addresses,
            netns: own.netns.as_ref().filter(|_| !pod.host_network).map(|netns| netns.path.clone()),
            uid: pod.uid.clone(),
            host_network: pod.host_network,
            enrolled: unread.is_enrolled(mode),
            mode,
            policy,
            exclusions: self.interner.exclusions.intern(&Arc::new(exclusions)),
            location: loaded.location.clone(),
        }
    }
}

/// One that lost all its addresses to others: there is nothing left that could be told to be its own.
fn has_lost_all(pod: &Pod, is_own: impl Fn(IpAddr) -> bool) -> bool {
    !pod.host_network && !pod.addresses.is_empty() && !pod.addresses.iter().any(|address| is_own(*address))
}

/// The addresses that a pod claims for itself; one of the node's network has none of its own.
pub(super) fn claimed(pod: &Pod) -> &[IpAddr] {
    if pod.host_network { &[] } else { &pod.addresses }
}

/// The pod of this node that each named network namespace belongs to.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Pods of this node that name one.
    claimants: BTreeSet<ObjectName>,
    owners: HashMap<PathBuf, ObjectName>,
}

impl Owners {
    /// A pod was replaced. Returns whether it names no network namespace any more.
    pub(super) fn change(&mut self, name: &ObjectName, now: Option<&Object>, node: &str) -> bool {
        if netns_here(now, node).is_some() {
            self.claimants.insert(name.clone());
            return false;
        }
        self.claimants.remove(name)
    }

    /// Settles whose they are now. `is_own` says which addresses are a pod's own.
    pub(super) fn settle(
        &mut self,
        objects: &Objects,
        before: &Mesh,
        node: &str,
        is_own: impl Fn(IpAddr, &Key) -> bool,
    ) {
        let key = |name: &ObjectName| Key { kind: Kind::Pod, name: name.clone() };
        let mut pods: Vec<Loaded> = self.claimants.iter().filter_map(|name| objects.get(&key(name))).collect();
        pods.retain(|loaded| match &*loaded.object {
            Object::Pod(pod) => !has_lost_all(pod, |address| is_own(address, &loaded.key)),
            _ => false,
        });
        in_order_of_place(&mut pods);
        let claims: Vec<(&Path, &ObjectName)> =
            pods.iter().filter_map(|pod| Some((netns_here(Some(&pod.object), node)?, &pod.key.name))).collect();
        let held = |path: &&Path, name: &&ObjectName| {
            before.workloads.get(*name).is_some_and(|workload| workload.netns.as_deref() == Some(*path))
        };
        let owners = claims::settle(&claims, held);
        let owner = |(path, at): (&Path, usize)| Some((path.to_owned(), claims.get(at)?.1.clone()));
        self.owners = owners.into_iter().filter_map(owner).collect();
    }

    /// Pods of this node that name a network namespace.
    pub(super) fn claimants(&self) -> impl Iterator<Item = &ObjectName> {
        self.claimants.iter()
    }

    /// Whether one of the pods is such.
    pub(super) fn concerns<'a>(&self, mut pods: impl Iterator<Item = &'a ObjectName>) -> bool {
        !self.claimants.is_empty() && pods.any(|pod| self.claimants.contains(pod))
    }

    fn of(&self, path: &Path) -> Option<&ObjectName> {
        self.owners.get(path)
    }
}

/// The network namespace that a pod names, if it lives on `node`.
fn netns_here<'a>(object: Option<&'a Object>, node: &str) -> Option<&'a Path> {
    match object {
        Some(Object::Pod(pod)) if !pod.finished && !pod.host_network && pod.is_on(node) => {
            pod.settings.netns.as_ref().map(|netns| netns.path.as_path())
        }
        _ => None,
    }
}

const NETNS_FIELD: &str = "metadata.annotations[mesh-agent.io/netns]";

fn shared_netns(loaded: &Loaded, pod: &Pod, owner: &ObjectName) -> Problem {
    let message = format!("the network namespace is already the one of Pod {owner}");
    let mut problem = problem(Reason::BadField, loaded, NETNS_FIELD, message);
    problem.remedy = "Give each pod its own network namespace.".into();
    at_netns(problem, pod)
}

/// Why an enrolled pod of this node cannot be captured, if so.
fn cannot_be_captured(
    loaded: &Loaded,
    pod: &Pod,
    workload: &Workload,
    netns: &BTreeMap<PathBuf, u64>,
) -> Option<Problem> {
    if pod.host_network {
        let message = "true: the pod has no network of its own to capture".into();
        return Some(problem(Reason::HostNetwork, loaded, "spec.hostNetwork", message));
    }
    let Some(path) = &workload.netns else {
        if workload.uid.is_some() {
            // It is found by that, or said not to be, by those who look for it.
            return None;
        }
        let message = "is missing: the agent cannot tell which network namespace is the pod's".into();
        return Some(problem(Reason::NetnsUnnamed, loaded, NETNS_FIELD, message));
    };
    if netns.contains_key(path) {
        return None;
    }
    let message = format!("{:?} is not a network namespace, or does not exist", path.display().to_string());
    Some(at_netns(problem(Reason::NetnsMissing, loaded, NETNS_FIELD, message), pod))
}

fn at_netns(mut problem: Problem, pod: &Pod) -> Problem {
    problem.location.line = pod.settings.netns.as_ref().map_or(problem.location.line, |netns| netns.line);
    problem
}
