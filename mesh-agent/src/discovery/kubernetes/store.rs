//! What is in force of what the API server told: a bad object keeps its last good version. Pure.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, LazyLock},
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
    version: Version,
    /// `None`: it cannot be used.
    object: Option<Arc<Object>>,
    /// What is in force instead while no good version of it is known.
    otherwise: Option<Arc<Object>>,
    problems: Vec<Problem>,
}

/// What tells an object from others of its name, and its contents from other contents, as far as they are kept. Hashes: the
/// index has the object, and nothing of a large cluster is to be had twice. Keyed, so that nobody can make two alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    uid: u64,
    contents: u64,
}

impl Version {
    pub(super) fn of(uid: Option<&str>, contents: &impl Hash) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self { uid: KEYS.hash_one(uid), contents: KEYS.hash_one(contents) }
    }
}

impl Arrived {
    pub(super) fn new(served: Served, version: Version) -> Self {
        let Served { name, object, otherwise, problems } = served;
        Self { name, version, object, otherwise, problems }
    }
}

/// The objects of all kinds.
#[derive(Debug, Default)]
pub(super) struct Store {
    kinds: HashMap<Kind, Collection>,
    problems: BTreeMap<Key, Vec<Problem>>,
    /// Number of objects in force.
    in_force: usize,
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
    version: Version,
    state: State,
}

/// What is in force of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A good version of it, the last one.
    Good,
    /// What stands for it while no good version is known.
    Otherwise,
    /// Nothing.
    Nothing,
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
        let Arrived { name, version, object, otherwise, problems } = arrived;
        let collection = self.kinds.entry(kind).or_default();
        if let Some(listed) = &mut collection.listed {
            listed.insert(name.clone());
        }
        let before = collection.held.get(&name);
        if before.is_some_and(|before| before.version == version) {
            return;
        }
        let key = Key { kind, name: name.clone() };
        let was_good = before.is_some_and(|before| before.state == State::Good && before.version.uid == version.uid);
        let was_there = before.is_some_and(|before| before.state != State::Nothing);
        let (state, object) = match object {
            Some(object) => (State::Good, Some(object)),
            None if was_good => (State::Good, None),
            None => (if otherwise.is_some() { State::Otherwise } else { State::Nothing }, otherwise),
        };
        if let Some(object) = object {
            changes.push(Change::Put(Loaded { key: key.clone(), object, location: Location::default() }));
        } else if state == State::Nothing && was_there {
            changes.push(Change::Remove(key.clone()));
        }
        self.in_force += usize::from(state != State::Nothing);
        self.in_force -= usize::from(was_there);
        collection.held.insert(name, Held { version, state });
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
        if collection.held.remove(name).is_some_and(|held| held.state != State::Nothing) {
            changes.push(Change::Remove(key.clone()));
            self.in_force -= 1;
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
        self.in_force
    }

    /// Whether none of a kind is known.
    pub(super) fn is_empty(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_none_or(|kind| kind.held.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::{kubernetes::trim, parse, yaml::Node};

    /// A namespace whose annotation says this.
    fn arrived(uid: &str, mesh: &str) -> Arrived {
        let text = format!(r#"{{"metadata":{{"name":"shop","annotations":{{"mesh-agent.io/mesh":"{mesh}"}}}}}}"#);
        let node: Node = trim::read(text.as_bytes(), trim::Keep::All).unwrap();
        Arrived::new(parse::served(Kind::Namespace, &node).unwrap(), Version::of(Some(uid), &node))
    }

    #[derive(Default)]
    struct Stored {
        store: Store,
        changes: Vec<Change>,
    }

    impl Stored {
        fn put(&mut self, uid: &str, mesh: &str) -> &mut Self {
            self.store.put(Kind::Namespace, arrived(uid, mesh), &mut self.changes);
            self
        }

        /// What changed since the last look, how many are in force, and with how many problems.
        fn look(&mut self) -> (Vec<&'static str>, usize, usize) {
            let say = |change: Change| match change {
                Change::Put(_) => "put",
                Change::Remove(_) => "remove",
            };
            (self.changes.drain(..).map(say).collect(), self.store.len(), self.store.problems().count())
        }
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let mut stored = Stored::default();
        assert_eq!(stored.put("1", "enabled").look(), (vec!["put"], 1, 0));
        assert_eq!(stored.put("1", "enabled").look(), (vec![], 1, 0));
        assert_eq!(stored.put("1", "disabled").look(), (vec!["put"], 1, 0));
    }

    #[test]
    fn a_bad_version_keeps_the_good_one_of_the_same_object() {
        let mut stored = Stored::default();
        // What can be read of it.
        assert_eq!(stored.put("1", "perhaps").look(), (vec!["put"], 1, 1));
        assert_eq!(stored.put("1", "enabled").look(), (vec!["put"], 1, 0));
        assert_eq!(stored.put("1", "perhaps").look(), (vec![], 1, 1));
        assert_eq!(stored.put("1", "maybe").look(), (vec![], 1, 1));
        assert_eq!(stored.put("1", "enabled").look(), (vec!["put"], 1, 0));
        // Another object of that name.
        assert_eq!(stored.put("2", "perhaps").look(), (vec!["put"], 1, 1));
    }

    #[test]
    fn a_list_ends_what_is_not_in_it_and_a_broken_one_nothing() {
        let kind = Kind::Namespace;
        let mut stored = Stored::default();
        stored.put("1", "enabled").look();
        stored.store.list(kind);
        assert_eq!(stored.look(), (vec![], 1, 0));
        stored.put("1", "enabled");
        // It begins anew: what was in the first does not count.
        stored.store.list(kind);
        stored.store.synced(kind, &mut stored.changes);
        assert_eq!(stored.look(), (vec!["remove"], 0, 0));
        // Changes between lists end nothing.
        stored.put("1", "perhaps").store.synced(kind, &mut Vec::new());
        assert_eq!(stored.look(), (vec!["put"], 1, 1));
        stored.store.clear(kind, &mut stored.changes);
        assert_eq!(stored.look(), (vec!["remove"], 0, 0));
    }
}
