//! A certificate authority in this memory: a root and an intermediate.

use std::sync::Arc;

use mesh_agent::{
    identity::{CertificateAuthority, Fetching, Refusal, Request, Svid, TrustBundle},
    model::{Identity, Reason},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

/// Vouches for whoever asks.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    intermediate: CertificateDer<'static>,
    /// Who is to be trusted: the authority's own root, until a test sends another bundle.
    pub bundle: watch::Sender<Arc<TrustBundle>>,
}

impl Authority {
    /// With new keys.
    pub fn new() -> Self {
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = signer("root").self_signed(&root_key).unwrap().der().clone();
        let params = signer("intermediate");
        let intermediate = params.signed_by(&key, &Issuer::new(signer("root"), root_key)).unwrap().der().clone();
        let bundle = watch::Sender::new(Arc::new(TrustBundle { roots: vec![root] }));
        Self { issuer: Issuer::new(params, key), intermediate, bundle }
    }

    /// A new certificate and key.
    ///
    /// # Errors
    /// The request could not be made or read.
    pub fn sign(&self, identity: &Identity) -> Result<Svid, Refusal> {
        let refused = |error: rcgen::Error| {
            let (reason, message) = (Reason::Internal, error.to_string());
            Refusal { reason, message, is_transient: false }
        };
        let request = Request::new(identity)?;
        let mut asked = CertificateSigningRequestParams::from_der(request.der()).map_err(refused)?;
        asked.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        asked.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = asked.signed_by(&self.issuer).map_err(refused)?;
        Ok(request.answered(vec![leaf.der().clone(), self.intermediate.clone()]))
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn signer(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl CertificateAuthority for Authority {
    fn fetch(&self, identity: &Identity) -> Fetching<'_> {
        let identity = identity.clone();
        Box::pin(async move { self.sign(&identity) })
    }

    fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }
}
