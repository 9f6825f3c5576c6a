//! The server's own certificate, and whose client certificates it accepts.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rcgen::{KeyPair, SanType};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::PrivateKeyDer,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};

use crate::{
    ca::{Authority, Error, certificate::Validity, roots::wants_intermediate},
    identity::TrustBundle,
    model::Identity,
};

/// What the server is called.
#[derive(Clone, Debug)]
pub struct Names {
    /// Host names and addresses that callers know it by.
    pub hosts: Vec<String>,
    /// Its SPIFFE ID.
    pub identity: Identity,
}

impl Names {
    fn in_certificate(&self) -> Result<Vec<SanType>, Error> {
        let host = |host: &String| match host.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => host.as_str().try_into().map(SanType::DnsName),
        };
        let identity = self.identity.to_string().try_into().map(SanType::URI);
        let names = self.hosts.iter().map(host).chain([identity]).collect::<Result<_, _>>();
        names.map_err(|error| Error::Option {
            flag: "--name",
            why: error.to_string(),
            remedy: "give host names and IP addresses",
        })
    }
}

/// The configuration in force.
pub(super) struct Tls {
    names: Vec<SanType>,
    current: RwLock<(Arc<ServerConfig>, Validity, Arc<TrustBundle>)>,
}

impl Tls {
    pub(super) fn new(authority: &Authority, names: &Names, now: SystemTime) -> Result<Self, Error> {
        let names = names.in_certificate()?;
        let current = RwLock::new(make(authority, &names, now)?);
        Ok(Self { names, current })
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Makes another certificate if it is time, or if others are trusted than before.
    pub(super) fn refresh(&self, authority: &Authority, now: SystemTime) -> Result<(), Error> {
        let is_good = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            !wants_intermediate(&current.1, now) && current.2 == *authority.bundle().borrow()
        };
        if !is_good {
            let made = make(authority, &self.names, now)?;
            *self.current.write().unwrap_or_else(PoisonError::into_inner) = made;
        }
        Ok(())
    }
}

fn make(
    authority: &Authority,
    names: &[SanType],
    now: SystemTime,
) -> Result<(Arc<ServerConfig>, Validity, Arc<TrustBundle>), Error> {
    let key = KeyPair::generate().map_err(|error| Error::Crypto(error.to_string()))?;
    let issued = authority.sign_own(names.to_vec(), &key, now).map_err(|refusal| Error::Crypto(refusal.to_string()))?;
    let bundle = Arc::clone(&authority.bundle().borrow());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let build = || {
        let mut roots = RootCertStore::empty();
        for root in &bundle.roots {
            roots.add(root.clone()).map_err(|error| error.to_string())?;
        }
        // A token does as well: not every caller has a certificate yet.
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| error.to_string())?;
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| error.to_string())?;
        let config = config.with_client_cert_verifier(clients);
        let mut config = config
            .with_single_cert(issued.chain, PrivateKeyDer::Pkcs8(key.into()))
            .map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would bring a client certificate along that nobody verifies again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok::<_, String>(config)
    };
    let config = build().map_err(Error::Crypto)?;
    Ok((Arc::new(config), issued.validity, bundle))
}
