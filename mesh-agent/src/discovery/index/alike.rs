//! Whether a decision about the one would be the same about the other.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use crate::model::{Endpoint, Mesh, Target, Workload};

type Inodes = BTreeMap<PathBuf, u64>;

/// Compares what was with what is, with the network namespaces that there were and are.
#[derive(Clone, Copy)]
pub(super) struct Alike<'a> {
    pub(super) before: &'a Inodes,
    pub(super) now: &'a Inodes,
}

impl Alike<'_> {
    /// Where it was read does not matter, but which namespace its path leads to does.
    pub(super) fn workloads(self, a: &Workload, b: &Workload) -> bool {
        let Workload {
            name,
            identity,
            node,
            addresses,
            netns,
            uid,
            host_network,
            enrolled,
            mode,
            policy,
            exclusions,
            location: _,
        } = a;
        let inode = |inodes: &Inodes| netns.as_ref().and_then(|path| inodes.get(path).copied());
        *name == b.name
            && *identity == b.identity
            && *node == b.node
            && *addresses == b.addresses
            && *netns == b.netns
            && *uid == b.uid
            && *host_network == b.host_network
            && *enrolled == b.enrolled
            && *mode == b.mode
            && *policy == b.policy
            && *exclusions == b.exclusions
            && inode(self.before) == inode(self.now)
    }

    pub(super) fn lists(self, a: &[Endpoint], b: &[Endpoint]) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.endpoints(a, b))
    }

    fn endpoints(self, a: &Endpoint, b: &Endpoint) -> bool {
        let Endpoint { address, port, ready, draining, node, zone, workload } = a;
        let are_workloads_alike = match (workload, &b.workload) {
            (None, None) => true,
            (Some(a), Some(b)) => self.workloads(a, b),
            _ => false,
        };
        *address == b.address
            && *port == b.port
            && *ready == b.ready
            && *draining == b.draining
            && *node == b.node
            && *zone == b.zone
            && are_workloads_alike
    }

    pub(super) fn targets(self, a: Option<&Target>, b: Option<&Target>) -> bool {
        match (a, b) {
            (None, None) => true,
            (Some(Target::Workload(a)), Some(Target::Workload(b))) => self.workloads(a, b),
            // An unchanged service is the very same.
            (Some(Target::Service(a)), Some(Target::Service(b))) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// Whether what is open to or from a workload of this node may be decided otherwise than before.
pub(super) fn may_be_decided_otherwise(before: &Workload, now: &Workload, node: &str) -> bool {
    let is_here = before.is_on(node) || now.is_on(node);
    let differs = before.policy != now.policy
        || before.identity != now.identity
        || before.enrolled != now.enrolled
        || before.node != now.node;
    is_here && differs
}

/// Whether nobody could tell the two snapshots apart.
pub(super) fn is_same(a: &Mesh, b: &Mesh) -> bool {
    let counts = |mesh: &Mesh| (mesh.source.files, mesh.source.objects, mesh.source.ignored);
    a.node == b.node
        && a.namespaces == b.namespaces
        && a.workloads == b.workloads
        && a.generations == b.generations
        && (Arc::ptr_eq(&a.netns, &b.netns) || a.netns == b.netns)
        && (Arc::ptr_eq(&a.problems, &b.problems) || a.problems == b.problems)
        && counts(a) == counts(b)
}
