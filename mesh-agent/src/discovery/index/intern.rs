//! What many objects have in common is kept once.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use crate::{
    discovery::{
        Site,
        object::{Labels, Loaded, Object, Pod, Settings, Slice},
    },
    model::{Exclusions, Identity},
};

/// Values of which each is kept once, as long as somebody uses it.
#[derive(Debug)]
pub(super) struct Pool<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// At this size it is looked for those that nobody uses any more.
    sweep_at: usize,
}

/// Smaller pools are not swept.
const SMALL: usize = 64;

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: SMALL }
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    /// The one that is kept, which is this one if none is.
    pub(super) fn intern(&mut self, value: &Arc<T>) -> Arc<T> {
        if let Some(known) = self.known.get(&**value) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            // In proportion: what is looked at was put in since.
            self.sweep_at = SMALL.max(self.known.len() * 2);
        }
        self.known.insert(Arc::clone(value));
        Arc::clone(value)
    }
}

/// One pool for each kind of what objects have in common.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: Pool<str>,
    labels: Pool<[(Arc<str>, Arc<str>)]>,
    settings: Pool<Settings>,
    pub(super) identities: Pool<Identity>,
    pub(super) exclusions: Pool<Exclusions>,
}

impl Interner {
    /// The object with what it shares, and without what is of no use on this node.
    pub(super) fn trim(&mut self, mut loaded: Loaded, site: &Site) -> Loaded {
        loaded.key.name.namespace = self.texts.intern(&loaded.key.name.namespace);
        // Whoever keeps the object itself has decided so.
        match Arc::get_mut(&mut loaded.object) {
            Some(Object::Pod(pod)) => self.trim_pod(pod, site),
            Some(Object::Service(service)) => {
                service.addresses.shrink_to_fit();
                service.ports.shrink_to_fit();
                service.ports.iter_mut().for_each(|(_, name)| self.text(name));
            }
            Some(Object::EndpointSlice(slice)) => self.trim_slice(slice),
            Some(Object::Node(node)) => {
                node.addresses.shrink_to_fit();
                node.zone.iter_mut().for_each(|zone| self.text(zone));
            }
            _ => {}
        }
        loaded
    }

    fn trim_pod(&mut self, pod: &mut Pod, site: &Site) {
        pod.settings = self.settings.intern(&pod.settings);
        pod.labels = self.labels(&pod.labels);
        self.text(&mut pod.service_account);
        pod.node.iter_mut().for_each(|node| self.text(node));
        pod.addresses.shrink_to_fit();
        if !pod.is_on(&site.node) {
            // It is looked for here only.
            pod.uid = None;
        }
    }

    fn trim_slice(&mut self, slice: &mut Slice) {
        slice.service.iter_mut().for_each(|service| self.text(service));
        slice.ports.shrink_to_fit();
        slice.ports.iter_mut().for_each(|(name, _)| self.text(name));
        slice.endpoints.shrink_to_fit();
        for endpoint in &mut slice.endpoints {
            endpoint.node.iter_mut().for_each(|node| self.text(node));
            endpoint.zone.iter_mut().for_each(|zone| self.text(zone));
        }
    }

    fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.known.get(&**labels) {
            return Arc::clone(known);
        }
        let own = labels.iter().map(|(key, value)| (self.texts.intern(key), self.texts.intern(value)));
        let own = own.collect();
        self.labels.intern(&own)
    }

    fn text(&mut self, text: &mut Arc<str>) {
        *text = self.texts.intern(text);
    }
}
