//! An ordered map whose copies share what they have in common.
//!
//! A B-tree of immutable nodes: whoever changes a copy makes the nodes anew on the way to what it changes, and only
//! those that another copy has, too. So a copy costs nothing, a change costs its path, and what differs between two
//! copies is found without looking at the rest.

use std::{cmp::Ordering, fmt, mem, slice, sync::Arc};

#[cfg(test)]
mod tests;

/// Most items of a node. What a change has to copy grows with it, the depth and the memory shrink.
const MOST: usize = 32;
/// A node with fewer is joined with its neighbour, if that has room.
const FEW: usize = MOST / 4;

/// An ordered map; cheap to clone.
pub struct SharedMap<K, V> {
    root: Option<Arc<Node<K, V>>>,
    len: usize,
}

#[derive(Clone)]
enum Node<K, V> {
    Leaf(Vec<(K, V)>),
    /// All of the same height. The keys of one are not below the key beside it, but for the first, and below the next.
    Branch(Vec<Child<K, V>>),
}

type Child<K, V> = (K, Arc<Node<K, V>>);

/// What differs: the key, what it led to before, and what it leads to now.
pub(super) type Difference<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

impl<K, V> SharedMap<K, V> {
    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the other is a copy of which nothing was changed since.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.root, &other.root) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    /// All entries, by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter() };
        if let Some(root) = &self.root {
            iter.descend(root);
        }
        iter
    }

    /// All keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord, V> SharedMap<K, V> {
    /// What the key leads to.
    pub fn get(&self, key: &K) -> Option<&V> {
        let mut node = self.root.as_deref()?;
        loop {
            match node {
                Node::Branch(children) => node = &children.get(place(children, key))?.1,
                Node::Leaf(entries) => {
                    let at = entries.binary_search_by(|(own, _)| own.cmp(key)).ok()?;
                    return entries.get(at).map(|(_, value)| value);
                }
            }
        }
    }

    /// Whether there is such an entry.
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// The entries from this key on.
    pub fn iter_from(&self, key: &K) -> Iter<'_, K, V> {
        let mut iter = Iter { above: Vec::new(), leaf: [].iter() };
        let mut next = self.root.as_deref();
        while let Some(node) = next.take() {
            match node {
                Node::Branch(children) => {
                    let mut rest = children.get(place(children, key)..).unwrap_or_default().iter();
                    next = rest.next().map(|(_, child)| &**child);
                    iter.above.push(rest);
                }
                Node::Leaf(entries) => {
                    let at = entries.partition_point(|(own, _)| own < key);
                    iter.leaf = entries.get(at..).unwrap_or_default().iter();
                }
            }
        }
        iter
    }
}

impl<K: Ord, V: PartialEq> SharedMap<K, V> {
    /// What differs from `before`, by key. What the two share is not looked at.
    pub fn differences<'a>(&'a self, before: &'a Self) -> Vec<Difference<'a, K, V>> {
        let mut differences = Vec::new();
        let mut old: Vec<Part<'a, K, V>> = before.root.iter().map(Part::Node).collect();
        let mut new: Vec<Part<'a, K, V>> = self.root.iter().map(Part::Node).collect();
        loop {
            let order = match (old.last(), new.last()) {
                (None, None) => return differences,
                (Some(Part::Node(a)), Some(Part::Node(b))) if Arc::ptr_eq(a, b) => {
                    old.pop();
                    new.pop();
                    continue;
                }
                (Some(Part::Node(a)), Some(Part::Node(b))) => a.height().cmp(&b.height()).reverse(),
                (Some(Part::Entry(a)), Some(Part::Entry(b))) => a.0.cmp(&b.0),
                // An entry before all of a node is of one side only; otherwise it has to be looked into the node.
                (Some(Part::Entry(a)), Some(Part::Node(b))) => {
                    if b.least().is_some_and(|least| a.0 < *least) {
                        Ordering::Less
                    } else {
                        Ordering::Greater
                    }
                }
                (Some(Part::Node(a)), Some(Part::Entry(b))) => {
                    if a.least().is_some_and(|least| b.0 < *least) {
                        Ordering::Greater
                    } else {
                        Ordering::Less
                    }
                }
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
            };
            // The side that comes first, or both.
            let old_part = if order.is_le() { old.pop() } else { None };
            let new_part = if order.is_ge() { new.pop() } else { None };
            let was = old_part.and_then(|part| part.open(&mut old));
            let is = new_part.and_then(|part| part.open(&mut new));
            match (was, is) {
                (Some((key, was)), Some((_, is))) if was != is => differences.push((key, Some(was), Some(is))),
                (Some((key, was)), None) => differences.push((key, Some(was), None)),
                (None, Some((key, is))) => differences.push((key, None, Some(is))),
                _ => {}
            }
        }
    }
}

impl<K: Ord + Clone, V: Clone> SharedMap<K, V> {
    /// Adds an entry, or replaces the one of this key and returns what it led to.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let Some(root) = &mut self.root else {
            self.root = Some(Arc::new(Node::Leaf(vec![(key, value)])));
            self.len = 1;
            return None;
        };
        let (replaced, beside) = root.insert(key, value);
        if let Some(beside) = beside {
            let own = Arc::clone(root);
            // The key beside the first is not looked at.
            *root = Arc::new(Node::Branch(vec![(beside.0.clone(), own), beside]));
        }
        self.len += usize::from(replaced.is_none());
        replaced
    }

    /// Removes an entry and returns what it led to.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        // What is not there leaves everything shared.
        if !self.contains_key(key) {
            return None;
        }
        let removed = self.root.as_mut()?.remove(key);
        self.len -= usize::from(removed.is_some());
        while let Some(root) = &self.root {
            match &**root {
                Node::Branch(children) if children.len() > 1 => break,
                Node::Leaf(entries) if !entries.is_empty() => break,
                Node::Branch(children) => self.root = children.first().map(|(_, child)| Arc::clone(child)),
                Node::Leaf(_) => self.root = None,
            }
        }
        removed
    }
}

/// Which of the children has the key, if any has.
fn place<K: Ord, V>(children: &[Child<K, V>], key: &K) -> usize {
    // Whatever is below the second belongs to the first.
    children.get(1..).unwrap_or_default().partition_point(|(least, _)| least <= key)
}

impl<K, V> Node<K, V> {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch(children) => children.len(),
        }
    }

    fn height(&self) -> usize {
        match self {
            Self::Leaf(_) => 0,
            Self::Branch(children) => 1 + children.first().map_or(0, |(_, child)| child.height()),
        }
    }

    fn least(&self) -> Option<&K> {
        match self {
            Self::Leaf(entries) => entries.first().map(|(key, _)| key),
            Self::Branch(children) => children.first()?.1.least(),
        }
    }
}

trait Insert<K, V> {
    /// Returns what was replaced, and the right half if it has become too large.
    fn insert(&mut self, key: K, value: V) -> (Option<V>, Option<Child<K, V>>);
    fn remove(&mut self, key: &K) -> Option<V>;
}

impl<K: Ord + Clone, V: Clone> Insert<K, V> for Arc<Node<K, V>> {
    fn insert(&mut self, key: K, value: V) -> (Option<V>, Option<Child<K, V>>) {
        match Arc::make_mut(self) {
            Node::Leaf(entries) => match entries.binary_search_by(|(own, _)| own.cmp(&key)) {
                Ok(at) => (entries.get_mut(at).map(|entry| mem::replace(entry, (key, value)).1), None),
                Err(at) => {
                    let right = put(entries, at, (key, value)).map(|right| beside(Node::Leaf(right)));
                    (None, right.flatten())
                }
            },
            Node::Branch(children) => {
                let at = place(children, &key);
                let Some((_, child)) = children.get_mut(at) else { return (None, None) };
                let (replaced, right) = child.insert(key, value);
                let right = right.and_then(|right| put(children, at + 1, right));
                let right = right.and_then(|right| Some((right.first()?.0.clone(), Self::new(Node::Branch(right)))));
                (replaced, right)
            }
        }
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        match Arc::make_mut(self) {
            Node::Leaf(entries) => {
                let at = entries.binary_search_by(|(own, _)| own.cmp(key)).ok()?;
                Some(entries.remove(at).1)
            }
            Node::Branch(children) => {
                let at = place(children, key);
                let removed = children.get_mut(at)?.1.remove(key);
                join(children, at);
                removed
            }
        }
    }
}

fn beside<K: Clone, V>(right: Node<K, V>) -> Option<Child<K, V>> {
    Some((right.least()?.clone(), Arc::new(right)))
}

/// Puts an item in its place; returns the right half if there are too many then.
fn put<T>(items: &mut Vec<T>, at: usize, item: T) -> Option<Vec<T>> {
    // Not more room than is needed: most nodes stay as they are.
    items.reserve_exact(1);
    items.insert(at, item);
    if items.len() <= MOST {
        return None;
    }
    // What is added in order fills the nodes.
    let middle = if at + 1 == items.len() { at } else { items.len() / 2 };
    let right = items.split_off(middle);
    items.shrink_to_fit();
    Some(right)
}

/// Drops a child that has become empty, joins one that has become small with its neighbour.
fn join<K: Ord + Clone, V: Clone>(children: &mut Vec<Child<K, V>>, at: usize) {
    let len = |at: usize| children.get(at).map_or(MOST, |(_, child)| child.len());
    if len(at) == 0 {
        children.remove(at);
        return;
    }
    let left = at.saturating_sub(1);
    if len(at) >= FEW || len(left) + len(left + 1) > MOST {
        return;
    }
    let (least, right) = children.remove(left + 1);
    let Some((_, left)) = children.get_mut(left) else { return };
    match (Arc::make_mut(left), Arc::unwrap_or_clone(right)) {
        (Node::Leaf(entries), Node::Leaf(right)) => entries.extend(right),
        (Node::Branch(children), Node::Branch(mut right)) => {
            // Its first child's key was not looked at; it may be above what the child has.
            if let Some(first) = right.first_mut() {
                first.0 = least;
            }
            children.extend(right);
        }
        // They are of the same height.
        _ => {}
    }
}

/// What is left to be compared.
enum Part<'a, K, V> {
    Node(&'a Arc<Node<K, V>>),
    Entry(&'a (K, V)),
}

impl<'a, K, V> Part<'a, K, V> {
    /// The entry; a node's parts are put back in its place.
    fn open(self, rest: &mut Vec<Self>) -> Option<(&'a K, &'a V)> {
        match self {
            Self::Entry((key, value)) => return Some((key, value)),
            Self::Node(node) => match &**node {
                Node::Leaf(entries) => rest.extend(entries.iter().rev().map(Self::Entry)),
                Node::Branch(children) => rest.extend(children.iter().rev().map(|(_, child)| Self::Node(child))),
            },
        }
        None
    }
}

/// The entries of a [`SharedMap`], by key.
pub struct Iter<'a, K, V> {
    above: Vec<slice::Iter<'a, Child<K, V>>>,
    leaf: slice::Iter<'a, (K, V)>,
}

impl<'a, K, V> Iter<'a, K, V> {
    fn descend(&mut self, mut node: &'a Node<K, V>) {
        loop {
            match node {
                Node::Leaf(entries) => {
                    self.leaf = entries.iter();
                    return;
                }
                Node::Branch(children) => {
                    let mut children = children.iter();
                    let Some((_, first)) = children.next() else { return };
                    self.above.push(children);
                    node = first;
                }
            }
        }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.leaf.next() {
                return Some((key, value));
            }
            let Some((_, node)) = self.above.last_mut()?.next() else {
                self.above.pop();
                continue;
            };
            self.descend(node);
        }
    }
}

impl<'a, K, V> IntoIterator for &'a SharedMap<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: self.root.clone(), len: self.len }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).is_empty()
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + Clone, V: Clone> Extend<(K, V)> for SharedMap<K, V> {
    fn extend<T: IntoIterator<Item = (K, V)>>(&mut self, entries: T) {
        for (key, value) in entries {
            self.insert(key, value);
        }
    }
}

impl<K: Ord + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(entries: T) -> Self {
        let mut map = Self::default();
        map.extend(entries);
        map
    }
}

impl<K: Ord + Clone, V: Clone, const N: usize> From<[(K, V); N]> for SharedMap<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}
