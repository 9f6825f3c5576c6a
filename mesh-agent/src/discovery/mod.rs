//! From manifests to snapshots.
mod annotations;
mod field;
mod netns;
mod object;
mod parse;
mod yaml;

pub use netns::network_namespaces;
