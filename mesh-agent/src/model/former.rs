//! What an earlier agent left in the kernel of the pods of this node: how they were, where nothing better can be read.

use std::{collections::HashMap, sync::Arc};

use super::{Exclusions, Mode, PodUid};

/// How a pod was armed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Strict or permissive: the kernel knows no more of it.
    pub mode: Mode,
    /// What was not captured.
    pub exclusions: Arc<Exclusions>,
}

/// The pods that were armed when this agent started, or about to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// Whether there was an earlier agent: then a pod that is not here was not in the mesh.
    pub is_known: bool,
    /// By the inode of their network namespace.
    pub by_netns: HashMap<u64, Left>,
    /// By their UID, those that were found in the cgroup tree.
    pub by_uid: HashMap<PodUid, Left>,
}
