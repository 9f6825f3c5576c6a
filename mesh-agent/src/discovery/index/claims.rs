//! Who gets what only one can have: an address, a network namespace.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::IpAddr,
};

use super::{
    objects::Objects,
    problems::{Cause, Problems, problem},
    workloads,
};
use crate::{
    discovery::object::{Key, Kind, Loaded, Object},
    model::{Mesh, Problem, Reason, Target},
};

/// Gives each key to one of those who claim it: to the one who `holds` it already, else to the first.
/// Returns positions in `claims`.
pub(super) fn settle<K: Copy + Eq + Hash, C>(claims: &[(K, C)], holds: impl Fn(&K, &C) -> bool) -> HashMap<K, usize> {
    let mut owners = HashMap::new();
    for (at, (key, _)) in claims.iter().enumerate().filter(|(_, (key, claimant))| holds(key, claimant)) {
        owners.entry(*key).or_insert(at);
    }
    for (at, (key, _)) in claims.iter().enumerate() {
        owners.entry(*key).or_insert(at);
    }
    owners
}

/// Whose the addresses are. Where only one claims an address, the snapshot says who.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Who claims an address that others claim, too.
    contested: BTreeMap<IpAddr, Vec<Key>>,
    /// Who claims the addresses of which that has changed in this round.
    open: BTreeMap<IpAddr, Vec<Key>>,
    /// Whose they are now.
    settled: BTreeMap<IpAddr, Option<Key>>,
}

impl Claims {
    /// A pod or a service was replaced. `before` is the snapshot before.
    pub(super) fn change(&mut self, key: &Key, old: &[IpAddr], new: &[IpAddr], before: &Mesh) {
        for address in old {
            let claims = self.claims(*address, before);
            if let Some(at) = claims.iter().position(|claimant| claimant == key) {
                claims.remove(at);
            }
        }
        for address in new {
            self.claims(*address, before).push(key.clone());
        }
    }

    fn claims(&mut self, address: IpAddr, before: &Mesh) -> &mut Vec<Key> {
        let contested = &self.contested;
        self.open.entry(address).or_insert_with(|| match contested.get(&address) {
            Some(claims) => claims.clone(),
            None => holder(before, address).into_iter().collect(),
        })
    }

    /// Settles what was changed. Returns the addresses, and everybody who claims one or had it.
    pub(super) fn settle(
        &mut self,
        objects: &Objects,
        before: &Mesh,
        problems: &mut Problems,
    ) -> (Vec<IpAddr>, Vec<Key>) {
        self.settled.clear();
        let (mut addresses, mut concerned) = (Vec::new(), Vec::new());
        for (address, mut claims) in std::mem::take(&mut self.open) {
            claims.sort_by(|a, b| objects.order(a).cmp(&objects.order(b)));
            let held = holder(before, address);
            let owner = claims.iter().position(|claimant| held.as_ref() == Some(claimant)).unwrap_or(0);
            let wrong = claims.iter().enumerate().filter(|(at, _)| *at != owner);
            let wrong = wrong.filter_map(|(_, key)| duplicate(objects, address, key, claims.get(owner)?)).collect();
            problems.set(Cause::Address(address), wrong);
            self.settled.insert(address, claims.get(owner).cloned());
            addresses.push(address);
            concerned.extend(claims.iter().cloned().chain(held));
            if claims.len() > 1 {
                self.contested.insert(address, claims);
            } else {
                self.contested.remove(&address);
            }
        }
        (addresses, concerned)
    }

    /// Whether an address is this pod's or service's.
    pub(super) fn is_of(&self, address: IpAddr, key: &Key, before: &Mesh) -> bool {
        match self.settled.get(&address) {
            Some(owner) => owner.as_ref() == Some(key),
            None => holder(before, address).as_ref() == Some(key),
        }
    }

    /// Whose an address is.
    pub(super) fn owner(&self, address: IpAddr, before: &Mesh) -> Option<Key> {
        self.settled.get(&address).map_or_else(|| holder(before, address), Clone::clone)
    }
}

/// Who has the address in a snapshot.
pub(super) fn holder(mesh: &Mesh, address: IpAddr) -> Option<Key> {
    Some(match mesh.destination(address)? {
        Target::Workload(workload) => Key { kind: Kind::Pod, name: workload.name.clone() },
        Target::Service(service) => Key { kind: Kind::Service, name: service.name.clone() },
    })
}

/// The addresses that an object claims for itself.
pub(super) fn claimed(object: Option<&Loaded>) -> &[IpAddr] {
    match object.map(|loaded| &*loaded.object) {
        Some(Object::Pod(pod)) if !pod.finished => workloads::claimed(pod),
        Some(Object::Service(spec)) => &spec.addresses,
        _ => &[],
    }
}

fn duplicate(objects: &Objects, address: IpAddr, key: &Key, owner: &Key) -> Option<Problem> {
    let (loaded, owner) = (objects.get(key)?, objects.get(owner)?);
    let field = if key.kind == Kind::Pod { "status.podIPs" } else { "spec.clusterIPs" };
    let message = format!("{address} is already the address of {} ({})", owner.key, owner.location);
    Some(problem(Reason::DuplicateAddress, &loaded, field, message))
}
