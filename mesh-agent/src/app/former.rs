//! How the pods of this node were when this agent started, of what the kernel has and where the pods are.

use std::sync::Arc;

use super::networks::Networks;
use crate::{
    datapath::Datapath,
    model::{Former, Left},
};

/// Asks the kernel.
pub(super) fn former(datapath: &Datapath, networks: &Networks) -> Former {
    if !datapath.adopted() {
        return Former::default();
    }
    let armed = datapath.armed().into_iter();
    let mut former = Former { is_known: true, ..Former::default() };
    former.by_netns.extend(armed.filter_map(|pod| Some((pod.netns?, pod.left))));
    let pending = datapath.about_to_be_armed();
    for (uid, cgroup, inode) in networks.found() {
        let armed = inode.and_then(|inode| former.by_netns.get(&inode).cloned());
        let marked = || pending.get(&cgroup).map(|mode| Left { mode: *mode, exclusions: Arc::default() });
        if let Some(left) = armed.or_else(marked) {
            former.by_uid.insert(uid.clone(), left);
        }
    }
    former
}
