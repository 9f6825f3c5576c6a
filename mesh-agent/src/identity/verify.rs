//! Whom we trust: the other end of a connection has to be an X.509-SVID of the trust domain, vouched for by a current root.
//! Which one, is for the proxy to compare.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{
    TrustBundle,
    known::{Key, Known, Role},
    leaf::{self, NotAnSvid},
};

/// Longest chain that is looked at, leaf included: what a stranger can make us verify.
pub(super) const MAX_CHAIN: usize = 8;

/// A trust bundle, ready to verify with. Shared by all configurations that were made while it was in force.
#[derive(Debug)]
pub(super) struct Trust {
    /// What it was made of.
    pub(super) bundle: Arc<TrustBundle>,
    /// `None` if no root is valid now.
    pub(super) peers: Option<Arc<Peers>>,
    /// Roots that were left out since they cannot be read, and why.
    pub(super) unreadable: Vec<String>,
    /// When a root begins or ceases to be valid: from then on it has to be made anew.
    pub(super) until: Option<UnixTime>,
}

impl Trust {
    /// Of those roots of the bundle that are valid now.
    pub(super) fn new(
        bundle: Arc<TrustBundle>,
        trust_domain: &Arc<str>,
        provider: &Arc<CryptoProvider>,
        now: UnixTime,
    ) -> Self {
        let (mut roots, mut unreadable, mut until) = (RootCertStore::empty(), Vec::new(), None::<UnixTime>);
        for root in &bundle.roots {
            let Some(validity) = leaf::validity(root) else {
                unreadable.push("it is not an X.509 certificate".to_owned());
                continue;
            };
            // Trust anchors have no validity in RFC 5280; a root that is over is nevertheless not one to believe.
            if validity.includes(now) {
                unreadable.extend(roots.add(root.clone()).err().map(|error| error.to_string()));
            }
            let after = UnixTime::since_unix_epoch(std::time::Duration::from_secs(validity.until.as_secs() + 1));
            let change = [validity.from, after].into_iter().filter(|change| *change > now).min();
            until = [until, change].into_iter().flatten().min();
        }
        let peers = Peers::new(roots, trust_domain, provider).map(Arc::new);
        Self { bundle, peers, unreadable, until }
    }
}

/// Verifies both ends alike.
#[derive(Debug)]
pub(super) struct Peers {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
    trust_domain: Arc<str>,
    /// Of these roots and this trust domain.
    known: Known,
}

impl Peers {
    /// `None` without roots.
    fn new(roots: RootCertStore, trust_domain: &Arc<str>, provider: &Arc<CryptoProvider>) -> Option<Self> {
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            // Names of authorities help a client to choose among certificates. Ours have one, and strangers need not know.
            .clear_root_hint_subjects()
            .build()
            .ok()?;
        let algorithms = provider.signature_verification_algorithms;
        Some(Self { roots, clients, algorithms, trust_domain: trust_domain.clone(), known: Known::default() })
    }

    /// Verifies a chain of our own, in both roles, as others will.
    pub(super) fn verify_own(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        self.verify(Role::Server, leaf, intermediates, now)?;
        self.verify(Role::Client, leaf, intermediates, now)
    }

    fn verify(
        &self,
        role: Role,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if intermediates.len() >= MAX_CHAIN {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let key = Key::new(role, leaf, intermediates);
        if self.known.has(&key, now) {
            return Ok(());
        }
        match role {
            Role::Client => self.clients.verify_client_cert(leaf, intermediates, now).map(drop)?,
            Role::Server => {
                let (parsed, algorithms) = (ParsedCertificate::try_from(leaf)?, self.algorithms.all);
                verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
            }
        }
        self.verify_identity(leaf)?;
        self.known.insert(key, leaf, intermediates);
        Ok(())
    }

    /// After its chain: what is looked at is signed by whom we trust.
    fn verify_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let refused = |why: NotAnSvid| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))));
        let identity = leaf::read(leaf).map_err(refused)?.identity;
        if identity.trust_domain == self.trust_domain {
            Ok(())
        } else {
            let trust_domain = self.trust_domain.to_string();
            Err(refused(NotAnSvid::TrustDomain { identity, trust_domain }))
        }
    }
}

impl ServerCertVerifier for Peers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(Role::Server, end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // Not compiled in, so never asked for.
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Peers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(Role::Client, end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
