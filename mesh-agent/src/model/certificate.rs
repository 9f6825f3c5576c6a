//! What is known of a workload's certificate, for those who ask. Times are seconds since 1970 (UTC).

use serde::{Deserialize, Serialize};

use super::{Identity, Reason};

/// A certificate of this node, or the lack of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// Whose it is.
    pub identity: Identity,
    /// Whether it can be used now.
    pub state: CertificateState,
    /// Serial number of the leaf, hexadecimal with colons.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Since when it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued: Option<u64>,
    /// Until when it is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// When the next one is asked for: the planned rotation, or the next attempt after a refusal.
    pub next_rotation: u64,
    /// Leaf first, then intermediates.
    #[serde(default)]
    pub chain: Vec<ChainLink>,
    /// Why the last request failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<CertificateRefusal>,
}

/// Whether a certificate can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// It is over.
    Expired,
    /// None was given yet.
    Missing,
    /// There is one, but no root is known to verify others with.
    TrustUnknown,
    /// It is in use.
    Valid,
}

/// A certificate of a chain, or a root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainLink {
    /// Its subject, as RFC 4514 writes it; for a leaf that has none, its SPIFFE ID.
    pub subject: String,
    /// SHA-256 of its DER, hexadecimal.
    pub fingerprint: String,
    /// Since when it is valid.
    pub issued: u64,
    /// Until when it is valid.
    pub expires: u64,
}

/// Why no certificate was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRefusal {
    /// The stable code.
    pub reason: Reason,
    /// What exactly.
    pub message: String,
    /// How many requests failed in a row.
    pub attempts: u32,
}
