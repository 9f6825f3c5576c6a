//! The authority within the agent: for a machine, or several that share a folder, without an authority to call.

use std::{
    path::Path,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use rustls::pki_types::PrivateKeyDer;
use tokio::{sync::watch, task::JoinHandle};

use super::{Authority, Error, Lifetimes, csr};
use crate::{
    identity::{CertificateAuthority, Fetching, Refusal, Svid, TrustBundle},
    model::{Identity, Reason},
};

/// How often the folder is looked at: this much later than one agent, another knows of a new root.
const REFRESH: Duration = Duration::from_secs(5);

/// A [`CertificateAuthority`] in process. Agents that are given the same folder trust one another.
pub struct Embedded {
    authority: Arc<Authority>,
    refreshing: JoinHandle<()>,
}

impl Embedded {
    /// Opens the folder. To be called within a tokio runtime, which then looks at the folder every few seconds.
    pub fn open(folder: &Path, trust_domain: &str, lifetimes: Lifetimes) -> Result<Self, Error> {
        let authority = Arc::new(Authority::open(folder, trust_domain, lifetimes, SystemTime::now())?);
        let refreshing = tokio::spawn(refresh(Arc::downgrade(&authority), REFRESH));
        Ok(Self { authority, refreshing })
    }

    fn issue(&self, identity: &Identity) -> Result<Svid, Refusal> {
        let (key, request) = csr::make(identity).map_err(|error| Refusal {
            reason: Reason::Internal,
            message: format!("cannot make a key: {error}"),
            is_transient: true,
        })?;
        let issued = self.authority.sign(&request, identity, None, SystemTime::now())?;
        Ok(Svid { identity: identity.clone(), chain: issued.chain, key: PrivateKeyDer::Pkcs8(key) })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.refreshing.abort();
    }
}

impl CertificateAuthority for Embedded {
    fn fetch(&self, identity: &Identity) -> Fetching<'_> {
        let issued = self.issue(identity);
        Box::pin(std::future::ready(issued))
    }

    fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.authority.bundle()
    }
}

/// Refreshes an authority until nobody holds it.
pub(super) async fn refresh(authority: Weak<Authority>, every: Duration) {
    let mut failed = false;
    loop {
        tokio::time::sleep(every).await;
        let Some(authority) = authority.upgrade() else { return };
        match authority.refresh(SystemTime::now()) {
            Ok(()) => failed = false,
            // Once: it is tried again every few seconds.
            Err(error) if !failed => {
                tracing::warn!(%error, "the authority's folder cannot be used; what was read last stays in force");
                failed = true;
            }
            Err(_) => {}
        }
    }
}
