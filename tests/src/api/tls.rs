//! Certificates of the server: a CA of its own, and a leaf that can be exchanged while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::PrivateKeyDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// What every server of a cluster is called.
const NAMES: [&str; 5] =
    ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];

/// The CA and the leaf in use.
#[derive(Debug)]
pub(super) struct Tls {
    authority: Mutex<CertifiedIssuer<'static, KeyPair>>,
    extra: Vec<String>,
    leaf: Arc<Leaf>,
}

#[derive(Debug)]
struct Leaf(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Tls {
    /// A new CA; `extra` names of the server besides those of every cluster.
    pub(super) fn new(extra: &[String]) -> Self {
        let authority = authority();
        let leaf = Arc::new(Leaf(Mutex::new(certificate(&authority, extra))));
        Self { authority: Mutex::new(authority), extra: extra.to_vec(), leaf }
    }

    /// The CA's certificate.
    pub(super) fn authority(&self) -> String {
        self.authority.lock().unwrap_or_else(PoisonError::into_inner).pem()
    }

    /// Exchanges the leaf; connections that are open go on with the old one.
    pub(super) fn rotate(&self) {
        let authority = self.authority.lock().unwrap_or_else(PoisonError::into_inner);
        *self.leaf.0.lock().unwrap_or_else(PoisonError::into_inner) = certificate(&authority, &self.extra);
    }

    /// Exchanges the CA as well.
    pub(super) fn rotate_authority(&self) {
        *self.authority.lock().unwrap_or_else(PoisonError::into_inner) = authority();
        self.rotate();
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let versions = builder.with_safe_default_protocol_versions().expect("versions of the provider");
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Leaf>::clone(&self.leaf);
        let mut config = versions.with_no_client_auth().with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.distinguished_name.push(DnType::CommonName, "mesh-test-api CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("a CA")
}

fn certificate(authority: &CertifiedIssuer<'static, KeyPair>, extra: &[String]) -> Arc<CertifiedKey> {
    let names: Vec<_> = NAMES.iter().map(|&name| name.to_owned()).chain(extra.iter().cloned()).collect();
    let mut params = CertificateParams::new(names).expect("names of a server");
    params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a PKCS #8 key");
    let signing = aws_lc_rs::sign::any_supported_type(&private).expect("a key of the provider");
    Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing))
}
