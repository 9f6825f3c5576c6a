//! From manifests, or from what the API server says, to snapshots.
//!
//! [`file::Manifests`] watches a folder. Each change goes the same way: `folder` reads what changed, `yaml` and `parse`
//! make objects and problems of it, `store` settles which version of each is in force, `index` follows what that changes to
//! the next [`crate::model::Mesh`]. All but `folder`, `watch`, `netns` and `file` is pure. [`kubernetes::Cluster`] watches an
//! API server; its objects go through the same parser and the same index.

mod annotations;
pub mod feed;
mod field;
pub mod file;
mod folder;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod index;
pub mod kubernetes;
mod netns;
mod object;
mod parse;
mod security;
mod store;
mod watch;
mod yaml;

pub use netns::network_namespaces;

use std::sync::Arc;

use crate::model::Former;

/// The namespace whose policies are for the whole mesh, where no other is configured: Istio's, so that peers of both kinds
/// obey the same objects.
pub const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";

/// Where this agent stands: what a source of objects needs to know to make snapshots for it.
#[derive(Clone, Debug)]
pub struct Site {
    /// This node.
    pub node: Arc<str>,
    /// The trust domain of all identities.
    pub trust_domain: Arc<str>,
    /// The namespace whose policies are for the whole mesh.
    pub root_namespace: Arc<str>,
    /// The first generation and the first id of a list: above all that the kernel may still hold.
    pub first_generation: u32,
    /// How the pods of this node were when this agent started.
    pub former: Arc<Former>,
}

#[cfg(test)]
impl Site {
    /// Of the node `here`.
    fn here(first_generation: u32) -> Self {
        Self {
            node: "here".into(),
            trust_domain: crate::model::DEFAULT_TRUST_DOMAIN.into(),
            root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
            first_generation,
            former: Arc::default(),
        }
    }
}
