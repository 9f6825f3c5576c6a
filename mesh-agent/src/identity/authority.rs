//! The seam to whoever vouches for identities.

use std::{future::Future, pin::Pin, sync::Arc};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use zeroize::Zeroize as _;

use crate::model::{Identity, Reason};

/// An X.509-SVID (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>) and its key.
#[derive(Debug)]
pub struct Svid {
    /// Whose it is.
    pub identity: Identity,
    /// Leaf first, then intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// In memory only; zeroized when dropped.
    pub key: PrivateKeyDer<'static>,
}

impl Drop for Svid {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// Who is trusted to vouch for identities of the trust domain: the roots, old and new ones side by side while they change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundle {
    /// Self-signed certificates.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Why no certificate was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct Refusal {
    /// The stable code.
    pub reason: Reason,
    /// What exactly.
    pub message: String,
    /// Whether asking again later, unchanged, can help.
    pub is_transient: bool,
}

/// The answer of a certificate authority, on its way.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<Svid, Refusal>> + Send + 'a>>;

/// Whoever vouches for identities: the embedded authority, one across the network, or the SPIFFE Workload API.
pub trait CertificateAuthority: Send + Sync {
    /// A new certificate and key for a workload of this node.
    fn fetch(&self, identity: &Identity) -> Fetching<'_>;

    /// Who is to be trusted, now and as it changes. Empty until it is known.
    fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>>;
}
