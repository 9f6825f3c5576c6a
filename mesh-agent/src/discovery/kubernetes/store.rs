//! What is in force of what the API server told: a bad object keeps its last good version. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::{
    discovery::{
        index::Change,
        object::{Key, Kind, Loaded, Object},
        parse::Served,
    },
    model::{Location, ObjectName, Problem},
};

/// An object as it was told.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    name: ObjectName,
    /// Stands for `metadata.uid`: another object of the same name has another.
    uid: u64,
    /// `None`: it cannot be used.
    object: Option<Arc<Object>>,
    /// What is in force instead while no good version of it is known.
    otherwise: Option<Arc<Object>>,
    problems: Vec<Problem>,
}

impl Arrived {
    pub(super) fn new(served: Served, uid: Option<Box<str>>) -> Self {
        let Served { name, object, otherwise, problems } = served;
        let mut hasher = DefaultHasher::new();
        uid.hash(&mut hasher);
        Self { name, uid: hasher.finish(), object, otherwise, problems }
    }
}

/// The objects of all kinds.
#[derive(Debug, Default)]
pub(super) struct Store {
    kinds: HashMap<Kind, Collection>,
    problems: BTreeMap<Key, Vec<Problem>>,
    /// Whether the problems are others than those that were looked at last.
    has_other_problems: bool,
}

#[derive(Debug, Default)]
struct Collection {
    held: HashMap<ObjectName, Held>,
    /// While a list is being told: what was in it so far.
    listed: Option<HashSet<ObjectName>>,
}

#[derive(Debug)]
struct Held {
    uid: u64,
    object: Option<Arc<Object>>,
    /// It was read from the object itself.
    is_good: bool,
}

impl Store {
    /// A list begins.
    pub(super) fn list(&mut self, kind: Kind) {
        self.kinds.entry(kind).or_default().listed = Some(HashSet::new());
    }

    /// The list is complete: what was not in it is no more.
    pub(super) fn synced(&mut self, kind: Kind, changes: &mut Vec<Change>) {
        let collection = self.kinds.entry(kind).or_default();
        let Some(listed) = collection.listed.take() else { return };
        let gone: Vec<_> = collection.held.keys().filter(|name| !listed.contains(*name)).cloned().collect();
        for name in gone {
            self.delete(kind, &name, changes);
        }
    }

    /// All objects of the kind are no more.
    pub(super) fn clear(&mut self, kind: Kind, changes: &mut Vec<Change>) {
        self.list(kind);
        self.synced(kind, changes);
    }

    /// Takes in an object.
    pub(super) fn put(&mut self, kind: Kind, arrived: Arrived, changes: &mut Vec<Change>) {
        let Arrived { name, uid, object, otherwise, problems } = arrived;
        let collection = self.kinds.entry(kind).or_default();
        if let Some(listed) = &mut collection.listed {
            listed.insert(name.clone());
        }
        let before = collection.held.get(&name);
        let (object, is_good) = match (object, before) {
            (Some(object), _) => (Some(object), true),
            (None, Some(before)) if before.is_good && before.uid == uid => (before.object.clone(), true),
            (None, _) => (otherwise, false),
        };
        let key = Key { kind, name: name.clone() };
        let object = match (before.and_then(|before| before.object.as_ref()), object) {
            // The very same, so that whoever compares has it easy.
            (Some(before), Some(object)) if **before == *object => Some(Arc::clone(before)),
            (_, Some(object)) => {
                let loaded = Loaded { key: key.clone(), object: Arc::clone(&object), location: Location::default() };
                changes.push(Change::Put(loaded));
                Some(object)
            }
            (Some(_), None) => {
                changes.push(Change::Remove(key.clone()));
                None
            }
            (None, None) => None,
        };
        collection.held.insert(name, Held { uid, object, is_good });
        self.has_other_problems |= if problems.is_empty() {
            self.problems.remove(&key).is_some()
        } else {
            self.problems.insert(key, problems.clone()).as_ref() != Some(&problems)
        };
    }

    /// An object is no more.
    pub(super) fn delete(&mut self, kind: Kind, name: &ObjectName, changes: &mut Vec<Change>) {
        let collection = self.kinds.entry(kind).or_default();
        let key = Key { kind, name: name.clone() };
        if collection.held.remove(name).is_some_and(|held| held.object.is_some()) {
            changes.push(Change::Remove(key.clone()));
        }
        self.has_other_problems |= self.problems.remove(&key).is_some();
    }

    /// Whether the problems are others than at the last call.
    pub(super) fn has_other_problems(&mut self) -> bool {
        std::mem::take(&mut self.has_other_problems)
    }

    /// What is wrong with objects, in their order.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// Number of objects in force.
    pub(super) fn len(&self) -> usize {
        self.kinds.values().flat_map(|kind| kind.held.values()).filter(|held| held.object.is_some()).count()
    }

    /// Whether none of a kind is known.
    pub(super) fn is_empty(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_none_or(|kind| kind.held.is_empty())
    }
}
