//! Names in the cgroup tree, which whoever may make a cgroup chooses.

use super::names::{Role, role};
use crate::model::PodUid;

/// A path in the cgroup tree: what is in a pod is of that pod, and a pod is where pods may be.
pub fn cgroups(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let path: Vec<&str> = text.split('/').collect();
    let Some((last, above)) = path.split_last() else { return };
    match role(&path) {
        Role::Pod(uid) => {
            assert_eq!(PodUid::parse(uid.as_str()), Some(uid.clone()));
            assert!(last.replace('_', "-").contains(uid.as_str()), "{text:?} is {uid}");
            assert_eq!(role(above), Role::Way, "above {text:?}");
        }
        Role::Container(uid) => assert_eq!(role(above), Role::Pod(uid), "above {text:?}"),
        // What is a way, or nothing, above a kubelet's root may be anything.
        Role::Way | Role::Other => {}
    }
}
