//! The objects in force, and which of them belong together.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    discovery::object::{Key, Kind, Loaded, Object, Slice},
    model::{Location, ObjectName},
};

/// All objects, by kind, namespace and name.
#[derive(Debug, Default)]
pub(super) struct Objects {
    all: BTreeMap<Key, InForce>,
    /// The slices of each service, by the service's name.
    slices: BTreeMap<ObjectName, BTreeSet<Arc<str>>>,
    /// The slices that name an address, of those that belong to a service.
    naming: BTreeSet<(IpAddr, Arc<ObjectName>)>,
    /// Live pods in each namespace that has any.
    live: BTreeMap<Arc<str>, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct InForce {
    object: Arc<Object>,
    location: Location,
}

impl Objects {
    /// Puts an object in force and returns the one that was.
    pub(super) fn put(&mut self, loaded: Loaded) -> Option<Loaded> {
        let Loaded { key, object, location } = loaded;
        let before = self.all.insert(key.clone(), InForce { object: Arc::clone(&object), location });
        let before = before.map(|before| before.loaded(&key));
        self.relate(&key, before.as_ref().map(|before| &*before.object), Some(&object));
        before
    }

    /// Removes an object and returns it.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Loaded> {
        let before = self.all.remove(key)?.loaded(key);
        self.relate(key, Some(&before.object), None);
        Some(before)
    }

    /// An object.
    pub(super) fn get(&self, key: &Key) -> Option<Loaded> {
        self.all.get(key).map(|found| found.loaded(key))
    }

    /// The object of that kind and name, without where it was read.
    pub(super) fn object(&self, kind: Kind, name: &ObjectName) -> Option<&Arc<Object>> {
        self.all.get(&Key { kind, name: name.clone() }).map(|found| &found.object)
    }

    /// What decides who comes first.
    pub(super) fn order<'a>(&'a self, key: &'a Key) -> impl Ord + 'a {
        let location = self.all.get(key).map(|found| (&found.location.file, found.location.line));
        (location, key)
    }

    /// All of a kind.
    pub(super) fn all_of(&self, kind: Kind) -> impl Iterator<Item = Loaded> {
        self.names(kind).filter_map(move |name| self.get(&Key { kind, name: name.clone() }))
    }

    /// All of a kind in a namespace.
    pub(super) fn in_namespace(&self, kind: Kind, namespace: &str) -> impl Iterator<Item = Loaded> {
        self.names_in(kind, namespace).filter_map(move |name| self.get(&Key { kind, name: name.clone() }))
    }

    /// The names of a kind.
    pub(super) fn names(&self, kind: Kind) -> impl Iterator<Item = &ObjectName> {
        self.names_from(kind, "")
    }

    /// The names of a kind in a namespace.
    pub(super) fn names_in(&self, kind: Kind, namespace: &str) -> impl Iterator<Item = &ObjectName> {
        self.names_from(kind, namespace).take_while(move |name| *name.namespace == *namespace)
    }

    fn names_from(&self, kind: Kind, namespace: &str) -> impl Iterator<Item = &ObjectName> {
        let from = Key { kind, name: ObjectName::new(namespace, "") };
        self.all.range(from..).map(|(key, _)| key).take_while(move |key| key.kind == kind).map(|key| &key.name)
    }

    /// The slices of a service, in the order in which they were read.
    pub(super) fn slices_of(&self, service: &ObjectName) -> Vec<Arc<Object>> {
        let names = self.slices.get(service).into_iter().flatten();
        let key = |name: &Arc<str>| Key {
            kind: Kind::EndpointSlice,
            name: ObjectName { namespace: Arc::clone(&service.namespace), name: Arc::clone(name) },
        };
        let mut slices: Vec<Loaded> = names.filter_map(|name| self.get(&key(name))).collect();
        slices.sort_by(|a, b| {
            (&a.location.file, a.location.line, &a.key).cmp(&(&b.location.file, b.location.line, &b.key))
        });
        slices.into_iter().map(|slice| slice.object).collect()
    }

    /// The services that have an endpoint at an address.
    pub(super) fn services_at(&self, address: IpAddr) -> impl Iterator<Item = ObjectName> {
        let from = (address, Arc::new(ObjectName::new("", "")));
        let naming = self.naming.range(from..).take_while(move |(at, _)| *at == address);
        naming.filter_map(|(_, slice)| match &**self.object(Kind::EndpointSlice, slice)? {
            Object::EndpointSlice(Slice { service: Some(service), .. }) => {
                Some(ObjectName { namespace: Arc::clone(&slice.namespace), name: Arc::clone(service) })
            }
            _ => None,
        })
    }

    /// Whether a namespace has pods that live.
    pub(super) fn has_live_pods(&self, namespace: &str) -> bool {
        self.live.contains_key(namespace)
    }

    fn relate(&mut self, key: &Key, before: Option<&Object>, now: Option<&Object>) {
        match key.kind {
            Kind::EndpointSlice => self.relate_slice(&key.name, slice(before), slice(now)),
            Kind::Pod => {
                let lives = |object: Option<&Object>| matches!(object, Some(Object::Pod(pod)) if !pod.finished);
                let namespace = &key.name.namespace;
                match (lives(before), lives(now)) {
                    (false, true) => *self.live.entry(Arc::clone(namespace)).or_default() += 1,
                    (true, false) => {
                        let left = self.live.remove(namespace).unwrap_or(0);
                        if left > 1 {
                            self.live.insert(Arc::clone(namespace), left - 1);
                        }
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn relate_slice(&mut self, name: &ObjectName, before: Option<&Slice>, now: Option<&Slice>) {
        let service = |slice: &Slice| {
            let service = slice.service.as_ref()?;
            Some(ObjectName { namespace: Arc::clone(&name.namespace), name: Arc::clone(service) })
        };
        let (old, new) = (before.and_then(service), now.and_then(service));
        if old != new {
            if let Some(old) = &old
                && let Some(slices) = self.slices.get_mut(old)
            {
                slices.remove(&name.name);
                if slices.is_empty() {
                    self.slices.remove(old);
                }
            }
            if let Some(new) = &new {
                self.slices.entry(new.clone()).or_default().insert(Arc::clone(&name.name));
            }
        }
        let addresses = |slice: Option<&Slice>| -> BTreeSet<IpAddr> {
            let named = slice.filter(|slice| slice.service.is_some());
            named.into_iter().flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address)).collect()
        };
        let (old, new) = (addresses(before), addresses(now));
        let name = Arc::new(name.clone());
        for address in old.difference(&new) {
            self.naming.remove(&(*address, Arc::clone(&name)));
        }
        self.naming.extend(new.difference(&old).map(|address| (*address, Arc::clone(&name))));
    }
}

impl InForce {
    fn loaded(&self, key: &Key) -> Loaded {
        Loaded { key: key.clone(), object: Arc::clone(&self.object), location: self.location.clone() }
    }
}

fn slice(object: Option<&Object>) -> Option<&Slice> {
    match object {
        Some(Object::EndpointSlice(slice)) => Some(slice),
        _ => None,
    }
}
