//! Which authority an agent has.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{Embedded, Error, Istio, IstioConfig, Lifetimes, Spire};
use crate::identity::CertificateAuthority;

/// Which authority it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// In the agent.
    Embedded {
        /// The folder that its root is in.
        folder: PathBuf,
        /// How long the certificates of workloads are valid.
        lifetime: Duration,
    },
    /// Across the network: `mesh-agent ca`, or Istio's.
    Istio(IstioConfig),
    /// The SPIFFE Workload API at this address, e.g. `unix:///run/spire/sockets/agent.sock`.
    Spire(String),
}

/// What [`connect`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which authority.
    pub choice: Choice,
    /// Of all identities.
    pub trust_domain: String,
}

/// Opens the authority. To be called within a tokio runtime, in which files, streams and rotations are then followed
/// until it is dropped. One across the network need not answer yet.
///
/// # Errors
/// A file or an option cannot be used; the error names it, and the remedy.
pub fn connect(config: &Config) -> Result<Arc<dyn CertificateAuthority>, Error> {
    Ok(match &config.choice {
        Choice::Embedded { folder, lifetime } => {
            let lifetimes = Lifetimes { leaf: *lifetime, ..Lifetimes::default() };
            Arc::new(Embedded::open(folder, &config.trust_domain, lifetimes)?)
        }
        Choice::Istio(istio) => Arc::new(Istio::new(istio)?),
        Choice::Spire(endpoint) => Arc::new(Spire::new(endpoint, &config.trust_domain)?),
    })
}
