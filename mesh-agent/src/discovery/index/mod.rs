//! From the objects in force and the snapshot before to the next snapshot. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use super::{
    Site,
    object::{Key, Kind, Loaded, Object, ServiceSpec},
};
use crate::model::{
    Destination, Endpoint, Mesh, Node, ObjectName, Problem, Reason, Service, Severity, SourceState, Target, Workload,
    words,
};

mod claims;
mod policies;
mod services;
#[cfg(test)]
mod soundness;
#[cfg(test)]
mod tests;
mod workloads;

/// What has become of an object.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// It is new, or another than before.
    Put(Loaded),
    /// It is no more.
    Remove(Key),
}

/// What a source says beside its objects. What has not changed is best given as the very same.
#[derive(Clone, Debug, Default)]
pub(super) struct Surroundings {
    /// What is wrong already before anything is joined.
    pub(super) problems: Arc<[Problem]>,
    /// Named network namespaces that exist, with their inode.
    pub(super) netns: Arc<BTreeMap<PathBuf, u64>>,
    pub(super) source: SourceState,
}

/// All that a snapshot is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Input {
    /// In the order of files and documents.
    pub(super) objects: Vec<Loaded>,
    /// What is wrong already before anything is joined.
    pub(super) problems: Vec<Problem>,
    /// Named network namespaces that exist, with their inode.
    pub(super) netns: BTreeMap<PathBuf, u64>,
    pub(super) source: SourceState,
}

/// Numbers that are never given twice, and never 0.
#[derive(Debug)]
struct Counter(u32);

impl Counter {
    fn next(&mut self) -> u32 {
        let next = self.0.max(1);
        self.0 = next.wrapping_add(1);
        next
    }
}

/// The snapshot before, and the counters.
#[derive(Debug)]
pub(super) struct Index {
    site: Site,
    objects: BTreeMap<Key, Loaded>,
    mesh: Arc<Mesh>,
    services: HashMap<services::Name, Arc<Service>>,
    policies: policies::Interned,
    generations: Counter,
    lists: Counter,
}

impl Index {
    pub(super) fn new(site: Site) -> Self {
        let first = site.first_generation;
        Self {
            site,
            objects: BTreeMap::new(),
            mesh: Arc::default(),
            services: HashMap::new(),
            policies: policies::Interned::new(),
            generations: Counter(first),
            lists: Counter(first),
        }
    }

    /// The snapshot before, with another state of the source.
    pub(super) fn refresh(&mut self, source: SourceState) -> Arc<Mesh> {
        self.mesh = Arc::new(Mesh { source, ..Mesh::clone(&self.mesh) });
        Arc::clone(&self.mesh)
    }

    /// Takes in what has changed and makes the next snapshot; `None` if it says the same as the one before. Of several
    /// changes of an object the last one counts. An object that is put comes before others by its location, and by its key
    /// where that is the same: who comes first has what only one can have.
    pub(super) fn apply(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        surroundings: &Surroundings,
    ) -> Option<Arc<Mesh>> {
        for change in changes {
            match change {
                Change::Put(loaded) => self.objects.insert(loaded.key.clone(), loaded),
                Change::Remove(key) => self.objects.remove(&key),
            };
        }
        let mut objects: Vec<_> = self.objects.values().cloned().collect();
        objects.sort_by(|a, b| (&a.location.file, a.location.line).cmp(&(&b.location.file, b.location.line)));
        self.update(Input {
            objects,
            problems: surroundings.problems.to_vec(),
            netns: BTreeMap::clone(&surroundings.netns),
            source: surroundings.source.clone(),
        })
    }

    /// Makes the next snapshot; `None` if it says the same as the one before.
    fn update(&mut self, input: Input) -> Option<Arc<Mesh>> {
        let before = Arc::clone(&self.mesh);
        let mut problems = input.problems.clone();
        let owners = own_addresses(&input, &before, &mut problems);
        let mut addresses: HashMap<&ObjectName, Vec<IpAddr>> = HashMap::new();
        for (loaded, pod) in workloads::live_pods(&input) {
            let own = workloads::claimed(pod).iter().filter(|address| owners.get(*address) == Some(&&loaded.key));
            addresses.insert(&loaded.key.name, own.copied().collect());
        }
        let workloads = workloads::build(&input, &before, &self.site, &addresses, &self.policies, &mut problems);
        self.policies = workloads.policies;

        let node = own_node(&input, &self.site.node);
        let mut targets = HashMap::new();
        let at_address: HashMap<IpAddr, Arc<Workload>> = workloads
            .by_name
            .values()
            .filter(|workload| !workload.host_network)
            .flat_map(|workload| workload.addresses.iter().map(|address| (*address, Arc::clone(workload))))
            .collect();
        self.services = self.services(&input, &node, &at_address, &owners);
        for service in self.services.values() {
            targets.extend(service.addresses.iter().map(|address| (*address, Target::Service(Arc::clone(service)))));
        }
        targets.extend(at_address.into_iter().map(|(address, workload)| (address, Target::Workload(workload))));
        drop(owners);

        let policies_differ = before.version == 0 || have_other_policies(&before, &workloads.by_name);
        let (destinations, generations) = self.generations(targets, &before, &input);
        problems.sort_by(|a, b| (&a.location.file, a.location.line).cmp(&(&b.location.file, b.location.line)));
        let mesh = Mesh {
            version: before.version + 1,
            node,
            namespaces: workloads.namespaces,
            workloads: workloads.by_name,
            destinations,
            generations,
            policies: before.policies + u64::from(policies_differ),
            netns: input.netns,
            problems,
            source: input.source,
        };
        if before.version > 0 && is_same(&before, &mesh) {
            return None;
        }
        self.mesh = Arc::new(mesh);
        Some(Arc::clone(&self.mesh))
    }

    fn services(
        &mut self,
        input: &Input,
        node: &Node,
        workloads: &HashMap<IpAddr, Arc<Workload>>,
        owners: &HashMap<IpAddr, &Key>,
    ) -> HashMap<services::Name, Arc<Service>> {
        let join = services::Join::new(input, node, workloads);
        let before = Arc::clone(&self.mesh);
        let alike = |a: &[Endpoint], b: &[Endpoint]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| are_endpoints_alike(a, b, &before, input))
        };
        let mut services = HashMap::new();
        for (loaded, spec) in service_specs(input) {
            for is_ipv6 in [false, true] {
                let is_own = |address: &&IpAddr| owners.get(*address) == Some(&&loaded.key);
                let own = spec.addresses.iter().filter(|address| address.is_ipv6() == is_ipv6).filter(is_own);
                let addresses: Vec<_> = own.copied().collect();
                if addresses.is_empty() {
                    continue;
                }
                let name = services::Name { name: loaded.key.name.clone(), is_ipv6 };
                let known = self.services.get(&name);
                let service = join.service(&name, spec, addresses, known, &alike, &mut self.lists);
                services.insert(name, service);
            }
        }
        services
    }

    /// Gives every slot of which an address changed, came or went a new generation, and every address its slot's.
    fn generations(
        &mut self,
        targets: HashMap<IpAddr, Target>,
        before: &Mesh,
        input: &Input,
    ) -> (HashMap<IpAddr, Destination>, HashMap<u32, u32>) {
        let mut stale = BTreeSet::new();
        for (address, target) in &targets {
            let known = before.destinations.get(address);
            if !known.is_some_and(|known| are_targets_alike(&known.target, target, before, input)) {
                stale.insert(slot(*address));
            }
        }
        stale.extend(before.destinations.keys().filter(|address| !targets.contains_key(*address)).copied().map(slot));

        let mut generations = before.generations.clone();
        for slot in stale {
            generations.insert(slot, self.generations.next());
        }
        let destination = |(address, target)| {
            let generation = generations.get(&slot(address)).copied().unwrap_or(0);
            (address, Destination { target, generation })
        };
        (targets.into_iter().map(destination).collect(), generations)
    }
}

/// Slot of an address among the kernel's generations.
fn slot(address: IpAddr) -> u32 {
    mesh_common::generation_slot(&words(address))
}

fn service_specs(input: &Input) -> impl Iterator<Item = (&Loaded, &ServiceSpec)> {
    input.objects.iter().filter_map(|loaded| match &*loaded.object {
        Object::Service(spec) => Some((loaded, spec)),
        _ => None,
    })
}

/// This node, as its Node object describes it.
fn own_node(input: &Input, name: &Arc<str>) -> Node {
    let own = input.objects.iter().find_map(|loaded| match &*loaded.object {
        Object::Node(spec) if loaded.key.name.name == *name => Some(spec),
        _ => None,
    });
    let (zone, addresses) = own.map(|spec| (spec.zone.clone(), spec.addresses.clone())).unwrap_or_default();
    Node { name: Arc::clone(name), zone, addresses }
}

/// Which pod or service each address belongs to.
fn own_addresses<'a>(input: &'a Input, before: &Mesh, problems: &mut Vec<Problem>) -> HashMap<IpAddr, &'a Key> {
    let mut claims: Vec<(IpAddr, &Loaded)> = Vec::new();
    for loaded in &input.objects {
        let addresses = match &*loaded.object {
            Object::Pod(pod) if !pod.finished => workloads::claimed(pod),
            Object::Service(spec) => &spec.addresses,
            _ => continue,
        };
        claims.extend(addresses.iter().map(|address| (*address, loaded)));
    }
    let held = |address: &IpAddr, loaded: &&Loaded| match before.destination(*address).map(|known| &known.target) {
        Some(Target::Workload(workload)) => loaded.key.kind == Kind::Pod && workload.name == loaded.key.name,
        Some(Target::Service(service)) => loaded.key.kind == Kind::Service && service.name == loaded.key.name,
        None => false,
    };
    let owners = claims::settle(&claims, held);
    for (at, (address, loaded)) in claims.iter().enumerate() {
        let owner = owners.get(address).filter(|owner| **owner != at).and_then(|owner| claims.get(*owner));
        if let Some((_, owner)) = owner {
            let field = if loaded.key.kind == Kind::Pod { "status.podIPs" } else { "spec.clusterIPs" };
            let message = format!("{address} is already the address of {} ({})", owner.key, owner.location);
            problems.push(problem(Reason::DuplicateAddress, loaded, field, message));
        }
    }
    owners.into_iter().filter_map(|(address, at)| Some((address, &claims.get(at)?.1.key))).collect()
}

fn problem(reason: Reason, loaded: &Loaded, field: &str, message: String) -> Problem {
    Problem {
        reason,
        severity: Severity::Error,
        location: loaded.location.clone(),
        object: loaded.key.to_string(),
        field: field.into(),
        message,
        remedy: reason.remedy().into(),
    }
}

/// Whether what is open between workloads that were there before may be decided otherwise now.
fn have_other_policies(before: &Mesh, workloads: &BTreeMap<ObjectName, Arc<Workload>>) -> bool {
    before.workloads.values().any(|before| {
        workloads.get(&before.name).is_some_and(|now| {
            !Arc::ptr_eq(before, now)
                && (before.policy != now.policy
                    || before.identity != now.identity
                    || before.enrolled != now.enrolled
                    || before.node != now.node)
        })
    })
}

/// Whether a decision about the one would be the same about the other: where it was read does not matter, but which
/// namespace its path leads to does.
fn are_workloads_alike(a: &Workload, b: &Workload, before: &Mesh, input: &Input) -> bool {
    let Workload {
        name,
        identity,
        node,
        addresses,
        netns,
        uid,
        host_network,
        enrolled,
        mode,
        policy,
        exclusions,
        location: _,
    } = a;
    let inode = |netns: &BTreeMap<PathBuf, u64>| a.netns.as_ref().and_then(|path| netns.get(path).copied());
    *name == b.name
        && *identity == b.identity
        && *node == b.node
        && *addresses == b.addresses
        && *netns == b.netns
        && *uid == b.uid
        && *host_network == b.host_network
        && *enrolled == b.enrolled
        && *mode == b.mode
        && *policy == b.policy
        && *exclusions == b.exclusions
        && inode(&before.netns) == inode(&input.netns)
}

fn are_endpoints_alike(a: &Endpoint, b: &Endpoint, before: &Mesh, input: &Input) -> bool {
    let Endpoint { address, port, ready, draining, node, zone, workload } = a;
    let are_workloads_alike = match (workload, &b.workload) {
        (None, None) => true,
        (Some(a), Some(b)) => are_workloads_alike(a, b, before, input),
        _ => false,
    };
    *address == b.address
        && *port == b.port
        && *ready == b.ready
        && *draining == b.draining
        && *node == b.node
        && *zone == b.zone
        && are_workloads_alike
}

fn are_targets_alike(a: &Target, b: &Target, before: &Mesh, input: &Input) -> bool {
    match (a, b) {
        (Target::Workload(a), Target::Workload(b)) => are_workloads_alike(a, b, before, input),
        // An unchanged service is the very same.
        (Target::Service(a), Target::Service(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

/// Whether nobody could tell the two apart.
fn is_same(a: &Mesh, b: &Mesh) -> bool {
    let counts = |mesh: &Mesh| (mesh.source.files, mesh.source.objects, mesh.source.ignored);
    a.node == b.node
        && a.namespaces == b.namespaces
        && a.workloads == b.workloads
        && a.generations == b.generations
        && a.netns == b.netns
        && a.problems == b.problems
        && counts(a) == counts(b)
}
