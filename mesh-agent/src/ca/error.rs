//! Why an authority, or a client of one, cannot start.

use std::{io, path::PathBuf};

use crate::kubernetes::why;

/// Names the flag or file, and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {doing} {}: {source}; check that it exists and that the agent may", .path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file has the wrong content.
    #[error("cannot use {}: {why}; {remedy}", .path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An option has an impossible value.
    #[error("{flag}: {why}; {remedy}")]
    Option {
        /// The option.
        flag: &'static str,
        /// What is wrong with it.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The API server does not do it.
    #[error(
        "cannot {doing}: {}; check that the API server can be reached and that the authority may (docs/IDENTITY.md)",
        why(.source)
    )]
    Api {
        /// What was tried.
        doing: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// There is no API server.
    #[error(transparent)]
    Access(#[from] crate::kubernetes::Error),
    /// Making a key or a certificate failed.
    #[error("cannot make keys or certificates: {0}; please report it")]
    Crypto(String),
}
