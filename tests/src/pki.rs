//! Certificates for tests: an authority, and what the proxy asks for.

use std::{
    collections::HashMap,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_agent::{
    model::{Identity, Reason},
    proxy::Certificates,
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    date_time_ymd,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
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
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// A certificate and its key.
pub type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }
}

impl Authority {
    /// The authority whose root is in this folder, as agents have it that are given the folder.
    pub fn open(folder: &Path) -> Self {
        let read = |name| std::fs::read_to_string(folder.join(name)).unwrap();
        let key = KeyPair::from_pem(&read("root-key.pem")).unwrap();
        let pem = read("root-cert.pem");
        let root = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        Self { issuer: Issuer::from_ca_cert_pem(&pem, key).unwrap(), root }
    }

    /// A certificate for an identity.
    pub fn issue(&self, identity: &Identity) -> Own {
        self.issue_named(&identity.to_string(), 1975..4096)
    }

    /// A certificate with this URI as its name, valid from the beginning of a year to that of another.
    pub fn issue_named(&self, uri: &str, years: Range<i32>) -> Own {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(years.start, 1, 1);
        params.not_after = date_time_ymd(years.end, 1, 1);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    /// Verifies what this authority has issued.
    pub fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
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
        config.enable_secret_extraction = true;
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
