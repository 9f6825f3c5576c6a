//! From changes of objects and the snapshot before to the next snapshot. Pure.
//!
//! A round takes in what has changed, and follows it to what it touches: from a pod to its addresses and to the services
//! that have endpoints there, from a namespace or a policy to its pods. Nothing else is looked at, and what comes out the
//! same stays the very same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use super::{
    Site,
    object::{Key, Kind, Loaded, Object},
};
use crate::model::{Mesh, Node, ObjectName, Problem, Service, SourceState, Target, Workload, words};

mod alike;
mod claims;
mod intern;
mod objects;
mod policies;
mod problems;
mod services;
#[cfg(test)]
mod soundness;
#[cfg(test)]
mod tests;
mod unread;
mod workloads;

use alike::Alike;
use problems::Cause;

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

/// The objects in force, the snapshot that was made of them, and what the next one needs to find what a change touches.
#[derive(Debug)]
pub(super) struct Index {
    site: Site,
    mesh: Arc<Mesh>,
    objects: objects::Objects,
    services: HashMap<services::Name, Arc<Service>>,
    policies: policies::Policies,
    claims: claims::Claims,
    netns: workloads::Owners,
    problems: problems::Problems,
    interner: intern::Interner,
    generations: Counter,
    lists: Counter,
}

/// What a round has to look at.
#[derive(Debug, Default)]
struct Touched {
    pods: BTreeSet<ObjectName>,
    services: BTreeSet<ObjectName>,
    /// Whether they exist, and are enrolled.
    namespaces: BTreeSet<Arc<str>>,
    /// Namespaces with other policies.
    policies: BTreeSet<Arc<str>>,
    /// Addresses that may stand for something else.
    addresses: BTreeSet<IpAddr>,
    /// Addresses of which the pod was replaced.
    moved: BTreeSet<IpAddr>,
    /// Nodes in another zone.
    zones: BTreeSet<Arc<str>>,
    /// Whether a pod of this node names no network namespace any more.
    netns: bool,
}

impl Index {
    pub(super) fn new(site: Site) -> Self {
        let first = site.first_generation;
        Self {
            mesh: Arc::default(),
            objects: objects::Objects::default(),
            services: HashMap::new(),
            policies: policies::Policies::new(&site),
            claims: claims::Claims::default(),
            netns: workloads::Owners::default(),
            problems: problems::Problems::default(),
            interner: intern::Interner::default(),
            generations: Counter(first),
            lists: Counter(first),
            site,
        }
    }

    /// The snapshot before, with another state of the source.
    pub(super) fn refresh(&mut self, source: SourceState) -> Arc<Mesh> {
        self.mesh = Arc::new(Mesh { source, ..Mesh::clone(&self.mesh) });
        Arc::clone(&self.mesh)
    }

    /// Takes in what has changed and makes the next snapshot; `None` if it says the same as the one before. Of several
    /// changes of an object the last one counts. Where only one can have what several claim, who has it keeps it; else the
    /// first gets it, by where it was read, and by its key where that is the same.
    pub(super) fn apply(
        &mut self,
        changes: impl IntoIterator<Item = Change>,
        surroundings: &Surroundings,
    ) -> Option<Arc<Mesh>> {
        let before = Arc::clone(&self.mesh);
        let mut touched = Touched::default();
        for change in changes {
            self.take_in(change, &before, &mut touched);
        }
        let mut next = Mesh::clone(&before);
        next.source = surroundings.source.clone();
        self.problems.give(&surroundings.problems);
        if before.version == 0 || touched.zones.contains(&self.site.node) {
            next.node = self.own_node();
        }
        self.look_at_netns(&surroundings.netns, &before, &mut next, &mut touched);
        self.settle(&before, &mut touched);
        self.follow_policies(&mut touched);
        self.rebuild_namespaces(&mut next, &touched);
        let has_other_policies = self.rebuild_workloads(&before, &mut next, &mut touched);
        self.note_conflicts(&before, &next, &touched);
        self.retarget_pods(&before, &mut next, &touched);
        self.rebuild_services(&before, &mut next, &mut touched);
        self.raise_generations(&before, &mut next, &touched);
        if let Some(problems) = self.problems.changed() {
            next.problems = problems;
        }
        next.policies += u64::from(before.version == 0 || has_other_policies);
        next.version += 1;
        if before.version > 0 && alike::is_same(&before, &next) {
            return None;
        }
        self.mesh = Arc::new(next);
        Some(Arc::clone(&self.mesh))
    }

    fn take_in(&mut self, change: Change, before: &Mesh, touched: &mut Touched) {
        let (key, old) = match change {
            Change::Put(loaded) => {
                let loaded = self.interner.trim(loaded, &self.site);
                (loaded.key.clone(), self.objects.put(loaded))
            }
            Change::Remove(key) => {
                let old = self.objects.remove(&key);
                (key, old)
            }
        };
        let new = self.objects.get(&key);
        if old == new {
            return;
        }
        let object = |loaded: &Option<Loaded>| loaded.as_ref().map(|loaded| Arc::clone(&loaded.object));
        match key.kind {
            Kind::Namespace => {
                touched.namespaces.insert(Arc::clone(&key.name.name));
                touched.policies.insert(Arc::clone(&key.name.name));
            }
            Kind::Pod => {
                self.claims.change(&key, claims::claimed(old.as_ref()), claims::claimed(new.as_ref()), before);
                touched.netns |= self.netns.change(&key.name, object(&new).as_deref(), &self.site.node);
                touched.namespaces.insert(Arc::clone(&key.name.namespace));
                touched.pods.insert(key.name);
            }
            Kind::Service => {
                self.claims.change(&key, claims::claimed(old.as_ref()), claims::claimed(new.as_ref()), before);
                touched.services.insert(key.name);
            }
            Kind::EndpointSlice => {
                let service = |object: &Arc<Object>| match &**object {
                    Object::EndpointSlice(slice) => slice.service.clone(),
                    _ => None,
                };
                let services = [object(&old), object(&new)].into_iter().flatten().filter_map(|object| service(&object));
                let named = |name| ObjectName { namespace: Arc::clone(&key.name.namespace), name };
                touched.services.extend(services.map(named));
            }
            Kind::Node => {
                let zone = |object: Option<Arc<Object>>| match object.as_deref() {
                    Some(Object::Node(spec)) => spec.zone.clone(),
                    _ => None,
                };
                if key.name.name == self.site.node || zone(object(&old)) != zone(object(&new)) {
                    touched.zones.insert(key.name.name);
                }
            }
            Kind::PeerAuthentication | Kind::AuthorizationPolicy => {
                touched.policies.insert(key.name.namespace);
            }
            Kind::ServiceAccount => {}
        }
    }

    /// This node, as its Node object describes it.
    fn own_node(&self) -> Node {
        let name = ObjectName { namespace: Arc::default(), name: Arc::clone(&self.site.node) };
        let (zone, addresses) = match self.objects.object(Kind::Node, &name).map(|object| &**object) {
            Some(Object::Node(spec)) => (spec.zone.clone(), spec.addresses.clone()),
            _ => Default::default(),
        };
        Node { name: Arc::clone(&self.site.node), zone, addresses }
    }

    /// Finds the pods of this node behind whose path is another network namespace, or none any more.
    fn look_at_netns(
        &mut self,
        netns: &Arc<BTreeMap<PathBuf, u64>>,
        before: &Mesh,
        next: &mut Mesh,
        touched: &mut Touched,
    ) {
        if Arc::ptr_eq(netns, &before.netns) || *netns == before.netns {
            return;
        }
        next.netns = Arc::clone(netns);
        touched.pods.extend(self.netns.claimants().cloned());
        for workload in before.local.values() {
            let Some(path) = &workload.netns else { continue };
            if before.netns.get(path) != netns.get(path) {
                touched.moved.extend(&workload.addresses);
            }
        }
    }

    /// Settles who has what only one can have.
    fn settle(&mut self, before: &Mesh, touched: &mut Touched) {
        let (addresses, concerned) = self.claims.settle(&self.objects, before, &mut self.problems);
        touched.addresses.extend(addresses);
        for key in concerned {
            match key.kind {
                Kind::Pod => touched.pods.insert(key.name),
                _ => touched.services.insert(key.name),
            };
        }
        if touched.netns || self.netns.concerns(touched.pods.iter()) {
            let is_own = |address, key: &Key| self.claims.is_of(address, key, before);
            self.netns.settle(&self.objects, before, &self.site.node, is_own);
            touched.pods.extend(self.netns.claimants().cloned());
        }
    }

    /// From policies to the pods of their namespace, or to all.
    fn follow_policies(&mut self, touched: &mut Touched) {
        for namespace in &touched.policies {
            let wrong = self.policies.reload(namespace, &self.objects);
            self.problems.set(Cause::Policies(Arc::clone(namespace)), wrong);
            if self.policies.is_root(namespace) {
                touched.pods.extend(self.objects.names(Kind::Pod).cloned());
            } else {
                touched.pods.extend(self.objects.names_in(Kind::Pod, namespace).cloned());
            }
        }
    }

    fn rebuild_namespaces(&self, next: &mut Mesh, touched: &Touched) {
        for namespace in &touched.namespaces {
            let name = ObjectName { namespace: Arc::default(), name: Arc::clone(namespace) };
            let enrolled = match self.objects.object(Kind::Namespace, &name).map(|object| &**object) {
                Some(Object::Namespace(settings)) => Some(settings.mesh.unwrap_or(false)),
                _ => self.objects.has_live_pods(namespace).then_some(false),
            };
            match enrolled {
                Some(enrolled) => next.namespaces.insert(Arc::clone(namespace), enrolled),
                None => next.namespaces.remove(namespace),
            };
        }
    }

    /// Returns whether what is open between workloads that were there before may be decided otherwise now.
    fn rebuild_workloads(&mut self, before: &Mesh, next: &mut Mesh, touched: &mut Touched) -> bool {
        let mut has_other_policies = false;
        let netns = Arc::clone(&next.netns);
        for name in &touched.pods {
            let key = Key { kind: Kind::Pod, name: name.clone() };
            let mut join = workloads::Join {
                site: &self.site,
                objects: &self.objects,
                policies: &mut self.policies,
                interner: &mut self.interner,
                owners: &self.netns,
                netns: &netns,
            };
            let claims = &self.claims;
            let (now, wrong) = match self.objects.get(&key) {
                Some(loaded) => join.workload(&loaded, |address| claims.is_of(address, &key, before)),
                None => (None, Vec::new()),
            };
            self.problems.set(Cause::Pod(name.clone()), wrong);
            let known = before.workloads.get(name);
            if known.map(|known| &**known) == now.as_ref() {
                continue;
            }
            let addresses = |workload: Option<&Workload>| workload.map(|w| w.addresses.clone()).unwrap_or_default();
            touched.moved.extend(addresses(known.map(|known| &**known)).into_iter().chain(addresses(now.as_ref())));
            has_other_policies |= match (known, &now) {
                (Some(known), Some(now)) => alike::may_be_decided_otherwise(known, now, &self.site.node),
                _ => false,
            };
            match now {
                Some(now) => next.put(Arc::new(now)),
                None => next.remove(name),
            }
        }
        touched.addresses.extend(&touched.moved);
        has_other_policies
    }

    /// Objects that contradict each other are reported where there are workloads.
    fn note_conflicts(&mut self, before: &Mesh, next: &Mesh, touched: &Touched) {
        let namespaces: BTreeSet<_> =
            touched.pods.iter().map(|pod| &pod.namespace).chain(&touched.policies).cloned().collect();
        for namespace in namespaces {
            let has_pods = next.pods_of(&namespace).next().is_some();
            let wrong = if has_pods { self.policies.conflicts_of_namespace(&namespace) } else { Vec::new() };
            self.problems.set(Cause::Namespace(namespace), wrong);
        }
        let has_pods = !next.workloads.is_empty();
        let is_first = has_pods == before.workloads.is_empty();
        if is_first || touched.policies.iter().any(|namespace| self.policies.is_root(namespace)) {
            let wrong = if has_pods { self.policies.conflicts_of_mesh() } else { Vec::new() };
            self.problems.set(Cause::Mesh, wrong);
        }
    }

    /// What is no service's: services have yet to be joined with the pods at these addresses.
    fn retarget_pods(&self, before: &Mesh, next: &mut Mesh, touched: &Touched) {
        for address in &touched.addresses {
            let owner = self.claims.owner(*address, before).filter(|owner| owner.kind == Kind::Pod);
            match owner.and_then(|owner| next.workloads.get(&owner.name).cloned()) {
                Some(workload) => next.destinations.insert(*address, Target::Workload(workload)),
                None if self.is_service(*address, before) => None,
                None => next.destinations.remove(address),
            };
        }
    }

    fn is_service(&self, address: IpAddr, before: &Mesh) -> bool {
        let is_now = self.claims.owner(address, before).is_some_and(|owner| owner.kind == Kind::Service);
        is_now && matches!(before.destination(address), Some(Target::Service(_)))
    }

    fn rebuild_services(&mut self, before: &Mesh, next: &mut Mesh, touched: &mut Touched) {
        for address in &touched.moved {
            touched.services.extend(self.objects.services_at(*address));
        }
        self.follow_zones(before, next, touched);
        for name in &touched.services {
            let key = Key { kind: Kind::Service, name: name.clone() };
            let object = self.objects.object(Kind::Service, name).cloned();
            for is_ipv6 in [false, true] {
                let name = services::Name { name: name.clone(), is_ipv6 };
                let known = self.services.get(&name).cloned();
                let now = match object.as_deref() {
                    Some(Object::Service(spec)) => {
                        let own = spec.addresses.iter().copied().filter(|address| address.is_ipv6() == is_ipv6);
                        let own: Vec<_> = own.filter(|address| self.claims.is_of(*address, &key, before)).collect();
                        let alike = Alike { before: &before.netns, now: &next.netns };
                        let join = services::Join { objects: &self.objects, mesh: next, alike };
                        (!own.is_empty()).then(|| join.service(&name, spec, own, known.as_ref(), &mut self.lists))
                    }
                    _ => None,
                };
                let all = known.iter().chain(&now).flat_map(|service| service.addresses.iter().copied());
                touched.addresses.extend(all);
                for address in known.iter().flat_map(|service| &service.addresses) {
                    // It may be another's already.
                    if claims::holder(next, *address).as_ref() == Some(&key) {
                        next.destinations.remove(address);
                    }
                }
                if let Some(service) = &now {
                    let target = |address: &IpAddr| (*address, Target::Service(Arc::clone(service)));
                    next.destinations.extend(service.addresses.iter().map(target));
                }
                match now {
                    Some(now) => self.services.insert(name, now),
                    None => self.services.remove(&name),
                };
            }
        }
    }

    /// From nodes in another zone to the services with endpoints there. Nodes hardly ever move: it is looked for them.
    fn follow_zones(&self, before: &Mesh, next: &Mesh, touched: &mut Touched) {
        if touched.zones.is_empty() {
            return;
        }
        if (&before.node.name, &before.node.zone) != (&next.node.name, &next.node.zone) {
            touched.services.extend(self.objects.names(Kind::Service).cloned());
            return;
        }
        for slice in self.objects.all_of(Kind::EndpointSlice) {
            let Object::EndpointSlice(spec) = &*slice.object else { continue };
            let is_there = spec.endpoints.iter().any(|endpoint| {
                let is_on = endpoint.node.as_ref().is_none_or(|node| touched.zones.contains(node));
                endpoint.zone.is_none() && is_on
            });
            if let Some(service) = spec.service.as_ref().filter(|_| is_there) {
                let namespace = Arc::clone(&slice.key.name.namespace);
                touched.services.insert(ObjectName { namespace, name: Arc::clone(service) });
            }
        }
    }

    /// Gives every slot of which an address changed, came or went a new generation.
    fn raise_generations(&mut self, before: &Mesh, next: &mut Mesh, touched: &Touched) {
        let alike = Alike { before: &before.netns, now: &next.netns };
        let is_stale = |address: &&IpAddr| !alike.targets(before.destination(**address), next.destination(**address));
        let stale: BTreeSet<u32> = touched.addresses.iter().filter(is_stale).copied().map(slot).collect();
        for slot in stale {
            next.generations.insert(slot, self.generations.next());
        }
    }
}

/// Slot of an address among the kernel's generations.
fn slot(address: IpAddr) -> u32 {
    mesh_common::generation_slot(&words(address))
}
