//! From manifests to snapshots.
//!
//! [`file::Manifests`] watches a folder. Each change goes the same way: `folder` reads what changed, `yaml` and `parse`
//! make objects and problems of it, `store` settles which version of each is in force, `index` joins them to the next
//! [`crate::model::Mesh`]. All but `folder`, `watch`, `netns` and `file` is pure.

mod annotations;
mod field;
pub mod file;
mod folder;
mod index;
mod netns;
mod object;
mod parse;
mod store;
mod watch;
mod yaml;

pub use netns::network_namespaces;
