//! Whether a chain that somebody sent is worth anything.

use std::{sync::Arc, time::SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::WebPkiClientVerifier,
};

use super::certificate;
use crate::{identity::TrustBundle, model::Identity};

/// All roots of a bundle that can be used.
pub(super) fn store(bundle: &TrustBundle) -> RootCertStore {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(bundle.roots.iter().cloned());
    store
}

/// Whether `chain` proves `identity`, is of `key`, and whoever trusts `bundle` believes it.
///
/// # Errors
/// What is wrong.
pub(super) fn svid(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'_>,
    identity: &Identity,
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(), String> {
    let Some((leaf, intermediates)) = chain.split_first() else { return Err("there is no certificate".to_owned()) };
    let proved = certificate::identity_of(leaf)?;
    if proved != *identity {
        return Err(format!("it is the certificate of {proved}"));
    }
    let key = KeyPair::try_from(key).map_err(|error| format!("the key: {error}"))?;
    if certificate::read(leaf)?.public_key().raw != key.subject_public_key_info() {
        return Err("it is of another key".to_owned());
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store(bundle)), provider)
        .build()
        .map_err(|error| format!("the trust bundle: {error}"))?;
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    verifier.verify_client_cert(leaf, intermediates, now).map(drop).map_err(|error| error.to_string())
}
