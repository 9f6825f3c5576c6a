//! The TLS configurations of an identity.

use std::sync::Arc;

use rustls::{
    ClientConfig, Error, ServerConfig,
    client::{ClientSessionStore, Resumption, Tls12Resumption},
    compress::CompressionCache,
    crypto::{CryptoProvider, aws_lc_rs},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::TLS13,
};

use super::{sessions::Sessions, tickets::Tickets, verify::Peers};

/// Most tickets kept for the connections of all identities of the node.
const SESSIONS: usize = 4096;
/// What a server gives each client: one for the connection after this one, one for another beside it.
const TICKETS_PER_CONNECTION: usize = 2;

/// What all configurations of the node have in common.
pub struct Settings {
    /// Whose identities these are, and the others'.
    pub trust_domain: Arc<str>,
    /// Protocols that are offered to servers, the preferred one first (RFC 7301).
    pub alpn_client: Vec<Vec<u8>>,
    /// Protocols that are accepted from clients, the preferred one first. A client that offers none is let in.
    pub alpn_server: Vec<Vec<u8>>,
    /// The cryptography.
    pub provider: Arc<CryptoProvider>,
    /// The time of day.
    pub clock: Arc<dyn TimeProvider>,
}

impl Settings {
    /// With [`provider`] and the system's clock.
    pub fn new(trust_domain: Arc<str>, alpn_client: Vec<Vec<u8>>, alpn_server: Vec<Vec<u8>>) -> Self {
        let (provider, clock) = (Arc::new(provider()), Arc::new(DefaultTimeProvider));
        Self { trust_domain, alpn_client, alpn_server, provider, clock }
    }
}

/// AWS-LC. Keys are exchanged by X25519MLKEM768, so that who records today has nothing to decrypt tomorrow; by an elliptic
/// curve with those who cannot.
pub fn provider() -> CryptoProvider {
    use aws_lc_rs::{cipher_suite, kx_group};
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
        ..aws_lc_rs::default_provider()
    }
}

/// Both configurations of one certificate under one trust bundle. Sessions are resumed within them only: other keys, other
/// tickets.
#[derive(Clone)]
pub(super) struct Configs {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
}

/// Makes configurations. They share what is alike: provider, clock, verifier and roots.
pub(super) struct Maker {
    pub(super) settings: Settings,
    sessions: Arc<Sessions>,
}

impl Maker {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, sessions: Sessions::new(SESSIONS) }
    }

    pub(super) fn make(&self, own: &Arc<CertifiedKey>, peers: &Arc<Peers>) -> Result<Configs, Error> {
        let own = Arc::new(SingleCertAndKey::from(own.clone()));
        let Settings { provider, clock, .. } = &self.settings;

        let mut client = ClientConfig::builder_with_details(provider.clone(), clock.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(peers.clone())
            .with_client_cert_resolver(own.clone());
        client.alpn_protocols.clone_from(&self.settings.alpn_client);
        client.enable_sni = false;
        // The proxy seals and opens records itself, after the handshake.
        client.enable_secret_extraction = true;
        let sessions: Arc<dyn ClientSessionStore> = Arc::new(self.sessions.store());
        client.resumption = Resumption::store(sessions).tls12_resumption(Tls12Resumption::Disabled);
        client.cert_compression_cache = Arc::new(CompressionCache::Disabled);

        let mut server = ServerConfig::builder_with_details(provider.clone(), clock.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(peers.clone())
            .with_cert_resolver(own);
        server.alpn_protocols.clone_from(&self.settings.alpn_server);
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = Arc::new(Tickets::new(clock.clone()));
        server.send_tls13_tickets = TICKETS_PER_CONNECTION;
        server.cert_compression_cache = Arc::new(CompressionCache::Disabled);

        Ok(Configs { client: Arc::new(client), server: Arc::new(server) })
    }
}
