use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Edit {
    Insert(u16, u8),
    Remove(u16),
    /// A run of them, so that nodes fill, split, empty and join.
    InsertFrom(u16, u8),
    RemoveFrom(u16, u8),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let key = 0..2000_u16;
    let edit = prop_oneof![
        (key.clone(), any::<u8>()).prop_map(|(key, value)| Edit::Insert(key, value)),
        key.clone().prop_map(Edit::Remove),
        (key.clone(), any::<u8>()).prop_map(|(key, count)| Edit::InsertFrom(key, count)),
        (key, any::<u8>()).prop_map(|(key, count)| Edit::RemoveFrom(key, count)),
    ];
    prop::collection::vec(edit, 0..40)
}

fn apply(edit: Edit, map: &mut SharedMap<u16, u8>, plain: &mut BTreeMap<u16, u8>) {
    match edit {
        Edit::Insert(key, value) => assert_eq!(map.insert(key, value), plain.insert(key, value)),
        Edit::Remove(key) => assert_eq!(map.remove(&key), plain.remove(&key)),
        Edit::InsertFrom(from, count) => {
            for n in 0..u16::from(count) {
                assert_eq!(map.insert(from + n * 2, count), plain.insert(from + n * 2, count));
            }
        }
        Edit::RemoveFrom(from, count) => {
            for n in 0..u16::from(count) {
                assert_eq!(map.remove(&(from + n)), plain.remove(&(from + n)));
            }
        }
    }
}

/// Nodes are neither empty nor too large, all leaves are equally deep, and keys are where they are looked for.
fn check(node: &Node<u16, u8>, from: Option<u16>, until: Option<u16>) -> usize {
    assert!((1..=MOST).contains(&node.len()));
    match node {
        Node::Leaf(entries) => {
            assert!(entries.is_sorted_by(|a, b| a.0 < b.0));
            let is_within = |key: u16| from.is_none_or(|from| from <= key) && until.is_none_or(|until| key < until);
            assert!(entries.iter().all(|(key, _)| is_within(*key)));
            0
        }
        Node::Branch(children) => {
            let mut heights = Vec::new();
            for (at, (least, child)) in children.iter().enumerate() {
                let from = if at == 0 { from } else { Some(*least) };
                let until = children.get(at + 1).map(|(least, _)| *least).or(until);
                heights.push(check(child, from, until));
            }
            assert!(heights.iter().all(|height| *height == heights[0]));
            heights[0] + 1
        }
    }
}

/// Nodes of the one that the other does not have.
fn unshared(map: &SharedMap<u16, u8>, other: &SharedMap<u16, u8>) -> usize {
    fn all<'a>(node: &'a Arc<Node<u16, u8>>, found: &mut Vec<&'a Arc<Node<u16, u8>>>) {
        found.push(node);
        if let Node::Branch(children) = &**node {
            for (_, child) in children {
                all(child, found);
            }
        }
    }
    let (mut own, mut others) = (Vec::new(), Vec::new());
    map.root.iter().for_each(|root| all(root, &mut own));
    other.root.iter().for_each(|root| all(root, &mut others));
    own.iter().filter(|node| !others.iter().any(|other| Arc::ptr_eq(node, other))).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn it_is_the_map_of_the_standard_library(first in edits(), second in edits(), from in 0..2600_u16) {
        let (mut map, mut plain) = (SharedMap::default(), BTreeMap::new());
        for edit in first {
            apply(edit, &mut map, &mut plain);
        }
        let (before, plain_before) = (map.clone(), plain.clone());
        for edit in second {
            apply(edit, &mut map, &mut plain);
        }
        for (map, plain) in [(&map, &plain), (&before, &plain_before)] {
            prop_assert_eq!(map.len(), plain.len());
            prop_assert!(map.iter().eq(plain));
            prop_assert!(map.iter_from(&from).eq(plain.range(from..)));
            prop_assert_eq!(map.get(&from), plain.get(&from));
            map.root.iter().for_each(|root| { check(root, None, None); });
        }
        let keys: std::collections::BTreeSet<u16> = plain.keys().chain(plain_before.keys()).copied().collect();
        let expected: Vec<_> = keys
            .iter()
            .map(|key| (key, plain_before.get(key), plain.get(key)))
            .filter(|(_, was, is)| was != is)
            .collect();
        prop_assert_eq!(map.differences(&before), expected);
        prop_assert_eq!(map == before, plain == plain_before);
    }
}

#[test]
fn a_change_copies_its_path_and_nothing_else() {
    let map: SharedMap<u16, u8> = (0..50_000).map(|key| (key, 0)).collect();
    let full = 50_000 / MOST;
    assert!(unshared(&map, &SharedMap::default()) < full + full / 10, "what is added in order fills the nodes");
    for change in
        [|map: &mut SharedMap<u16, u8>| map.insert(777, 1), |map: &mut SharedMap<u16, u8>| map.remove(&40_000)]
    {
        let mut changed = map.clone();
        assert!(changed.is_same(&map));
        change(&mut changed);
        assert!(!changed.is_same(&map));
        assert!(unshared(&changed, &map) <= 4);
        assert_eq!(changed.differences(&map).len(), 1);
    }
    let mut unchanged = map.clone();
    assert_eq!(unchanged.remove(&60_000), None);
    assert!(unchanged.is_same(&map));
}
