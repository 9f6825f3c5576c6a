//! Who gets what only one can have: an address, a network namespace.

use std::{collections::HashMap, hash::Hash};

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
