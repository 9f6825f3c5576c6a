//! From manifests to snapshots.
mod annotations;
mod field;
mod object;
mod parse;
mod yaml;
