//! What can go wrong with watching the node.

use std::{io, path::PathBuf};

/// Why the pods of this node cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gives no inotify instance.
    #[error("inotify: {0}; raise fs.inotify.max_user_instances")]
    Inotify(io::Error),
    /// The cgroup tree cannot be read.
    #[error("cannot read the cgroup tree {path}: {source}; name its root with --cgroup")]
    Tree {
        /// Its root.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent's own network namespace cannot be told.
    #[error("cannot read the agent's own network namespace: {0}; is /proc mounted?")]
    OwnNamespace(io::Error),
}
