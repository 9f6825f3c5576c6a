//! Which pods run on this node, and where their network is: found in the cgroup tree, whatever the CNI and the container
//! runtime.
//!
//! The kubelet makes a pod's cgroup before anything of it runs, and the name of the cgroup holds the pod's UID. The
//! runtime makes the pod's network namespace next, then the cgroup of the sandbox, and only after that those of the
//! pod's containers. So the first process in a container's cgroup that is in another network namespace than the node's
//! tells which namespace is the pod's, before any container of it has started.
//!
//! [`Finder`] watches the tree (`tree`), reads names (`names`, pure) and looks at processes (`process`).

mod error;
mod finder;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod names;
mod process;
mod tree;

pub use error::Error;
pub use finder::Finder;

use std::sync::Arc;

use crate::{model::PodUid, net::netns::Netns};

/// What the finder has found out about a pod.
#[derive(Clone, Debug)]
pub enum Event {
    /// The kubelet has made its cgroup; nothing of it runs yet, unless this is the first look at the tree.
    Created {
        /// The pod.
        uid: PodUid,
        /// Id of its cgroup: `bpf_get_current_ancestor_cgroup_id()` of every task in it or below, at its level.
        cgroup: u64,
    },
    /// Its network namespace is known. Comes again, with another one, if the pod gets a new sandbox.
    Found {
        /// The pod.
        uid: PodUid,
        /// The namespace. Not held by any process of the pod: it lives as long as this does.
        netns: Arc<Netns>,
    },
    /// Its processes stay in the node's namespace: it has none of its own.
    OnHost {
        /// The pod.
        uid: PodUid,
    },
    /// Its cgroup is gone, and everything in it.
    Gone {
        /// The pod.
        uid: PodUid,
    },
    /// Everything that was there when the finder started has been told.
    Settled,
}
