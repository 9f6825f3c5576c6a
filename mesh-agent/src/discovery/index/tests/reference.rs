//! The same snapshots, made anew from all objects each time: simple, and slow.

use super::super::{
    alike::{self, Alike},
    claims, intern, objects, policies,
    problems::{in_order, in_order_of_place, problem},
    services, workloads,
};
use super::*;
use crate::model::Reason;

/// Remembers the snapshot before, and nothing else that it could follow changes with.
pub(super) struct Reference {
    site: Site,
    pub(super) mesh: Mesh,
    services: HashMap<services::Name, Arc<Service>>,
    generations: Counter,
    lists: Counter,
}

impl Reference {
    pub(super) fn new(site: Site) -> Self {
        let first = site.first_generation;
        let (generations, lists) = (Counter(first), Counter(first));
        Self { site, mesh: Mesh::default(), services: HashMap::new(), generations, lists }
    }

    /// Makes the next snapshot of all objects; false if it says the same as the one before.
    pub(super) fn update(&mut self, mut all: Vec<Loaded>, surroundings: &Surroundings) -> bool {
        in_order_of_place(&mut all);
        let before = self.mesh.clone();
        let mut objects = objects::Objects::default();
        for loaded in &all {
            objects.put(loaded.clone());
        }
        let mut problems = surroundings.problems.to_vec();
        let owners = owners(&all, &before, &mut problems);
        let mut next = Mesh {
            version: before.version + 1,
            node: self.node(&all),
            policies: before.policies,
            generations: before.generations.clone(),
            netns: Arc::clone(&surroundings.netns),
            source: surroundings.source.clone(),
            ..Mesh::default()
        };
        self.workloads(&all, &objects, &before, &owners, &mut next, &mut problems);
        for workload in next.workloads.values() {
            let target = |address: &IpAddr| (*address, Target::Workload(Arc::clone(workload)));
            next.destinations.extend(workload.addresses.iter().map(target));
        }
        self.services = self.services(&all, &objects, &owners, &before, &next);
        for service in self.services.values() {
            let target = |address: &IpAddr| (*address, Target::Service(Arc::clone(service)));
            next.destinations.extend(service.addresses.iter().map(target));
        }
        let here = &self.site.node;
        let differs = before.workloads.values().any(|known| {
            let now = next.workloads.get(&known.name);
            now.is_some_and(|now| alike::may_be_decided_otherwise(known, now, here))
        });
        next.policies += u64::from(before.version == 0 || differs);
        self.raise_generations(&before, &mut next);
        next.problems = in_order(problems);
        let is_same = before.version > 0 && alike::is_same(&before, &next);
        if !is_same {
            self.mesh = next;
        }
        !is_same
    }

    fn node(&self, all: &[Loaded]) -> Node {
        let own = all.iter().find_map(|loaded| match &*loaded.object {
            Object::Node(spec) if loaded.key.name.name == self.site.node => Some(spec),
            _ => None,
        });
        let (zone, addresses) = own.map(|spec| (spec.zone.clone(), spec.addresses.clone())).unwrap_or_default();
        Node { name: Arc::clone(&self.site.node), zone, addresses }
    }

    fn workloads(
        &self,
        all: &[Loaded],
        objects: &objects::Objects,
        before: &Mesh,
        owners: &HashMap<IpAddr, Key>,
        next: &mut Mesh,
        problems: &mut Vec<Problem>,
    ) {
        let mut policies = policies::Policies::new(&self.site);
        let mut netns = workloads::Owners::default();
        let namespaces: BTreeSet<Arc<str>> = all
            .iter()
            .map(
                |loaded| {
                    if loaded.key.kind.is_namespaced() { &loaded.key.name.namespace } else { &loaded.key.name.name }
                },
            )
            .cloned()
            .collect();
        for namespace in &namespaces {
            problems.extend(policies.reload(namespace, objects));
        }
        for loaded in all {
            let name = &loaded.key.name;
            match &*loaded.object {
                Object::Namespace(own) => {
                    next.namespaces.insert(Arc::clone(&name.name), own.mesh.unwrap_or(false));
                }
                Object::Pod(pod) if !pod.finished => {
                    netns.change(name, Some(&loaded.object), &self.site.node);
                    if !objects.names(Kind::Namespace).any(|own| own.name == name.namespace) {
                        next.namespaces.insert(Arc::clone(&name.namespace), false);
                    }
                }
                _ => {}
            }
        }
        netns.settle(objects, before, &self.site.node, |address, key| owners.get(&address) == Some(key));
        let mut join = workloads::Join {
            site: &self.site,
            objects,
            policies: &mut policies,
            interner: &mut intern::Interner::default(),
            owners: &netns,
            netns: &Arc::clone(&next.netns),
        };
        let mut found = Vec::new();
        for loaded in all.iter().filter(|loaded| loaded.key.kind == Kind::Pod) {
            let (workload, wrong) = join.workload(loaded, |address| owners.get(&address) == Some(&loaded.key));
            problems.extend(wrong);
            found.extend(workload);
        }
        for workload in found {
            problems.extend(policies.conflicts_of_mesh());
            problems.extend(policies.conflicts_of_namespace(&workload.name.namespace));
            match before.workloads.get(&workload.name) {
                Some(known) if **known == workload => next.put(Arc::clone(known)),
                _ => next.put(Arc::new(workload)),
            }
        }
    }

    fn services(
        &mut self,
        all: &[Loaded],
        objects: &objects::Objects,
        owners: &HashMap<IpAddr, Key>,
        before: &Mesh,
        next: &Mesh,
    ) -> HashMap<services::Name, Arc<Service>> {
        let alike = Alike { before: &before.netns, now: &next.netns };
        let join = services::Join { objects, mesh: next, alike };
        let mut services = HashMap::new();
        for loaded in all {
            let Object::Service(spec) = &*loaded.object else { continue };
            for is_ipv6 in [false, true] {
                let is_own = |address: &&IpAddr| owners.get(*address) == Some(&loaded.key);
                let own = spec.addresses.iter().filter(|address| address.is_ipv6() == is_ipv6).filter(is_own);
                let own: Vec<_> = own.copied().collect();
                if own.is_empty() {
                    continue;
                }
                let name = services::Name { name: loaded.key.name.clone(), is_ipv6 };
                let service = join.service(&name, spec, own, self.services.get(&name), &mut self.lists);
                services.insert(name, service);
            }
        }
        services
    }

    fn raise_generations(&mut self, before: &Mesh, next: &mut Mesh) {
        let alike = Alike { before: &before.netns, now: &next.netns };
        let addresses: BTreeSet<IpAddr> = before.destinations.keys().chain(next.destinations.keys()).copied().collect();
        let is_stale = |address: &IpAddr| !alike.targets(before.destination(*address), next.destination(*address));
        let stale: BTreeSet<u32> = addresses.into_iter().filter(is_stale).map(slot).collect();
        for slot in stale {
            next.generations.insert(slot, self.generations.next());
        }
    }
}

/// Which pod or service each address belongs to.
fn owners(all: &[Loaded], before: &Mesh, problems: &mut Vec<Problem>) -> HashMap<IpAddr, Key> {
    let claims: Vec<(IpAddr, &Loaded)> = all
        .iter()
        .flat_map(|loaded| claims::claimed(Some(loaded)).iter().map(move |address| (*address, loaded)))
        .collect();
    let held = |address: &IpAddr, loaded: &&Loaded| claims::holder(before, *address).as_ref() == Some(&loaded.key);
    let owners = claims::settle(&claims, held);
    for (at, (address, loaded)) in claims.iter().enumerate() {
        let owner = owners[address];
        if owner != at {
            let owner = claims[owner].1;
            let field = if loaded.key.kind == Kind::Pod { "status.podIPs" } else { "spec.clusterIPs" };
            let message = format!("{address} is already the address of {} ({})", owner.key, owner.location);
            problems.push(problem(Reason::DuplicateAddress, loaded, field, message));
        }
    }
    owners.into_iter().map(|(address, at)| (address, claims[at].1.key.clone())).collect()
}
