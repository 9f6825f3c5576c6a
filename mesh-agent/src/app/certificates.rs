//! The certificates of this node's workloads, as the workers see them: those that [`Identities`] keeps.

use std::{collections::BTreeSet, sync::Arc};

use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use tokio::sync::watch;

use crate::{
    identity::Identities,
    model::{Identity, Mesh, Reason},
    policy,
    proxy::Certificates,
};

/// The workers' handle.
pub(super) struct Kept(pub(super) Arc<Identities>);

impl Certificates for Kept {
    fn client(&self, own: &Identity) -> Result<Arc<ClientConfig>, Reason> {
        self.0.client(own)
    }

    fn server(&self, own: &Identity) -> Result<Arc<ServerConfig>, Reason> {
        self.0.server(own)
    }

    fn awaited(&self, own: &Identity) -> Option<watch::Receiver<u64>> {
        self.0.awaited(own)
    }

    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Identity> {
        self.0.peer(chain)
    }
}

/// Whose certificates this node needs: those of the workloads that this agent governs, and nobody else's.
pub(super) fn needed(mesh: &Mesh) -> BTreeSet<Identity> {
    let own = mesh.local.values().filter(|workload| policy::is_governed(mesh, workload));
    own.map(|workload| Identity::clone(&workload.identity)).collect()
}
