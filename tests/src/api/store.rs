//! What the server remembers: objects as serialised text, one counter of versions for all, and per collection the log of
//! changes that watches, pages of old lists and exact lists are served from.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::{entry::Entry, kinds::Kind};

/// Changes kept per collection unless compacted before; a real watch cache is of this order.
const LOG: usize = 100_000;

/// Where an object is within its collection. Cluster-wide objects have an empty namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// Namespace.
    pub(super) namespace: String,
    /// Name.
    pub(super) name: String,
}

impl Key {
    /// Of a namespace and a name.
    pub(super) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// One step in the life of a collection.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) key: Key,
    pub(super) before: Option<Arc<Entry>>,
    /// None when deleted.
    pub(super) after: Option<Arc<Entry>>,
}

#[derive(Debug, Default)]
struct Collection {
    objects: BTreeMap<Key, Arc<Entry>>,
    log: VecDeque<Change>,
    /// Version of the last change.
    changed: u64,
    /// Versions up to this one cannot be listed or watched from any more.
    compacted: u64,
}

/// All collections.
#[derive(Debug)]
pub(super) struct Store {
    version: u64,
    collections: HashMap<String, Collection>,
    moved: watch::Sender<u64>,
}

/// A version that is no longer there; holds the oldest that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooOld(pub(super) u64);

impl Store {
    pub(super) fn new() -> Self {
        Self { version: 1, collections: HashMap::new(), moved: watch::Sender::new(1) }
    }

    /// The version of the last change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Tells of every new version.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Moves the counter on without a change, as changes elsewhere in a real cluster do. Never back.
    pub(super) fn advance_to(&mut self, version: u64) {
        self.version = self.version.max(version);
        self.moved.send_replace(self.version);
    }

    pub(super) fn get(&self, collection: &str, key: &Key) -> Option<&Arc<Entry>> {
        self.collections.get(collection)?.objects.get(key)
    }

    pub(super) fn contains_namespace(&self, collection: &str, namespace: &str) -> bool {
        self.objects(collection, Some(namespace), None).next().is_some()
    }

    /// Objects in order of their keys: of one namespace or of all, from `start` on (inclusive).
    pub(super) fn objects<'a>(
        &'a self,
        collection: &str,
        namespace: Option<&'a str>,
        start: Option<&Key>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Entry>)> + use<'a> {
        let first = start.cloned().unwrap_or_else(|| Key::new(namespace.unwrap_or_default(), ""));
        self.collections
            .get(collection)
            .map(|collection| collection.objects.range((Bound::Included(first), Bound::Unbounded)))
            .into_iter()
            .flatten()
            .take_while(move |(key, _)| namespace.is_none_or(|namespace| key.namespace == namespace))
    }

    /// As [`Self::objects`], as they were at `version`.
    pub(super) fn objects_at(
        &self,
        collection: &str,
        namespace: Option<&str>,
        start: Option<&Key>,
        version: u64,
    ) -> Result<Vec<Arc<Entry>>, TooOld> {
        let mut then: BTreeMap<&Key, Option<&Arc<Entry>>> = BTreeMap::new();
        if let Some(collection) = self.collections.get(collection) {
            if version < collection.compacted {
                return Err(TooOld(collection.compacted));
            }
            for change in collection.log.iter().rev().take_while(|change| change.version > version) {
                then.insert(&change.key, change.before.as_ref());
            }
        }
        let wanted = |key: &Key| {
            namespace.is_none_or(|namespace| key.namespace == namespace) && start.is_none_or(|start| key >= start)
        };
        let mut found: BTreeMap<&Key, &Arc<Entry>> =
            self.objects(collection, namespace, start).filter(|(key, _)| !then.contains_key(key)).collect();
        found.extend(then.into_iter().filter(|(key, _)| wanted(key)).filter_map(|(key, entry)| Some((key, entry?))));
        Ok(found.into_values().cloned().collect())
    }

    /// Changes after `version`, oldest first.
    pub(super) fn since(&self, collection: &str, version: u64) -> Result<Vec<Change>, TooOld> {
        let Some(collection) = self.collections.get(collection) else { return Ok(Vec::new()) };
        if version < collection.compacted {
            return Err(TooOld(collection.compacted));
        }
        let first = collection.log.partition_point(|change| change.version <= version);
        Ok(collection.log.range(first..).cloned().collect())
    }

    /// The version of the last change of a collection.
    pub(super) fn changed(&self, collection: &str) -> u64 {
        self.collections.get(collection).map_or(0, |collection| collection.changed)
    }

    /// Writes an object under the next version, which it gets as its own.
    pub(super) fn put(&mut self, kind: &Kind, object: &mut Value) -> Arc<Entry> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.insert(kind, object)
    }

    /// Writes an object with the version it carries; the counter follows where that is higher.
    pub(super) fn load(&mut self, kind: &Kind, object: &Value) {
        let carried = object["metadata"]["resourceVersion"].as_str().and_then(|version| version.parse().ok());
        self.version = self.version.max(carried.unwrap_or(0));
        self.insert(kind, object);
    }

    fn insert(&mut self, kind: &Kind, object: &Value) -> Arc<Entry> {
        let entry = Arc::new(Entry::new(kind, self.version, object));
        let collection = self.collections.entry(kind.collection.clone()).or_default();
        let before = collection.objects.insert(entry.key.clone(), Arc::clone(&entry));
        self.record(
            kind,
            Change { version: entry.version, key: entry.key.clone(), before, after: Some(Arc::clone(&entry)) },
        );
        entry
    }

    /// Removes an object under the next version.
    pub(super) fn remove(&mut self, kind: &Kind, key: &Key) -> Option<Arc<Entry>> {
        let before = self.collections.get_mut(&kind.collection)?.objects.remove(key)?;
        self.version += 1;
        let version = self.version;
        self.record(kind, Change { version, key: key.clone(), before: Some(Arc::clone(&before)), after: None });
        Some(before)
    }

    fn record(&mut self, kind: &Kind, change: Change) {
        let collection = self.collections.entry(kind.collection.clone()).or_default();
        collection.changed = change.version;
        collection.log.push_back(change);
        while collection.log.len() > LOG {
            if let Some(dropped) = collection.log.pop_front() {
                collection.compacted = dropped.version;
            }
        }
        self.moved.send_replace(self.version);
    }

    /// Forgets all changes so far: a client that is not up to date has to read all again.
    pub(super) fn compact(&mut self) {
        for collection in self.collections.values_mut() {
            collection.log.clear();
            collection.compacted = self.version;
        }
    }

    /// Number of objects and of bytes they take.
    pub(super) fn size(&self) -> (usize, usize) {
        let entries = || self.collections.values().flat_map(|collection| collection.objects.values());
        (entries().count(), entries().map(|entry| Bytes::len(&entry.json)).sum())
    }
}
