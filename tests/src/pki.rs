//! Certificates for tests: an authority, and what the proxy asks for.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_agent::{
    model::{Identity, Reason},
    proxy::Certificates,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer, X509Certificate},
};

/// Nobody vouches for anybody.
pub struct Nobody;

impl Certificates for Nobody {
    fn client(&self, _: &Identity) -> Result<Arc<ClientConfig>, Reason> {
        Err(Reason::CertificateMissing)
    }

    fn server(&self, _: &Identity) -> Result<Arc<ServerConfig>, Reason> {
        Err(Reason::CertificateMissing)
    }

    fn peer(&self, _: &[CertificateDer<'_>]) -> Option<Identity> {
        None
    }
}

/// Somebody who vouches for identities.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }
}

impl Authority {
    /// A certificate for an identity.
    pub fn issue(&self, identity: &Identity) -> Own {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// Verifies what this authority has issued.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap()
    }

    /// To call others with this certificate, or with none; whoever this authority has vouched for is trusted.
    pub fn client(&self, own: Option<Own>) -> ClientConfig {
        let verifier = Arc::new(AnyName(self.verifier()));
        let builder = ClientConfig::builder().dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match own {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = false;
        config
    }

    /// To be called with this certificate.
    pub fn server(&self, (chain, key): Own) -> ServerConfig {
        let mut config =
            ServerConfig::builder().with_client_cert_verifier(self.verifier()).with_single_cert(chain, key).unwrap();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        config
    }
}

/// Servers are verified as clients are: they have no DNS name.
#[derive(Debug)]
struct AnyName(Arc<dyn ClientCertVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_client_cert(leaf, intermediates, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

type Configs = (Arc<ClientConfig>, Arc<ServerConfig>);

/// The certificates of a node: for every identity that asks, unless there is an authority of another mind.
pub struct Store {
    authority: Arc<Authority>,
    configs: Mutex<HashMap<Identity, Configs>>,
}

impl Store {
    /// Nothing issued yet.
    pub fn new(authority: &Arc<Authority>) -> Arc<Self> {
        Arc::new(Self { authority: Arc::clone(authority), configs: Mutex::default() })
    }

    /// New certificates for all from now on.
    pub fn rotate(&self) {
        self.configs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn configs(&self, own: &Identity) -> Configs {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        let (client, server) = configs.entry(own.clone()).or_insert_with(|| {
            let (chain, key) = self.authority.issue(own);
            let client = self.authority.client(Some((chain.clone(), key.clone_key())));
            (Arc::new(client), Arc::new(self.authority.server((chain, key))))
        });
        (Arc::clone(client), Arc::clone(server))
    }
}

impl Certificates for Store {
    fn client(&self, own: &Identity) -> Result<Arc<ClientConfig>, Reason> {
        Ok(self.configs(own).0)
    }

    fn server(&self, own: &Identity) -> Result<Arc<ServerConfig>, Reason> {
        Ok(self.configs(own).1)
    }

    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Identity> {
        let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
        leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => names.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => uri.parse().ok(),
                _ => None,
            }),
            _ => None,
        })
    }
}
