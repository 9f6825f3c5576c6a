//! Chains that were verified already. Those whom a node talks to come back, and two thirds of the signatures that a
//! handshake verifies are those of their chains, the same each time.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::pki_types::{CertificateDer, UnixTime};

use super::leaf::{self, Validity};

/// Most chains, of about 100 bytes each. A node's own identities are among them, once per role.
const MOST: usize = 8192;

/// In which role a chain was shown: purposes differ (RFC 5280, 4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Role {
    Client = 1,
    Server = 2,
}

/// What a chain is known by: its role and every byte of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn new(role: Role, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&[role as u8]);
        for certificate in std::iter::once(leaf).chain(intermediates) {
            context.update(&(certificate.len() as u64).to_be_bytes());
            context.update(certificate);
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }
}

/// Chains that lead to the roots of one trust bundle, each with the time for which that is so. Only what has been verified
/// comes in: a stranger cannot fill it. That the other end has the key to its chain is proved each time.
#[derive(Debug, Default)]
pub(super) struct Known(RwLock<HashMap<Key, Validity>>);

impl Known {
    /// Whether the chain was verified, and all of it is valid now.
    pub(super) fn has(&self, key: &Key, now: UnixTime) -> bool {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known.get(key).is_some_and(|validity| validity.includes(now))
    }

    /// The chain has been verified. What cannot be read, or is never valid as a whole, is verified each time.
    pub(super) fn insert(&self, key: Key, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) {
        let all = std::iter::once(leaf).chain(intermediates).map(leaf::validity);
        let together = all.reduce(|one, other| {
            let (one, other) = (one?, other?);
            Some(Validity { from: one.from.max(other.from), until: one.until.min(other.until) })
        });
        if let Some(Some(validity)) = together {
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            // Rotated ones stay until here. All of it at once is simple, and costs one verification each.
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(key, validity);
        }
    }
}
