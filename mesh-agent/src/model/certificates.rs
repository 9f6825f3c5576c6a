//! The certificates of the node as a whole.

use serde::{Deserialize, Serialize};

use super::{CertificateState, CertificateStatus};

/// Who vouches for the identities, and whether it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityStatus {
    /// What it is, e.g. `embedded` or an address.
    pub description: String,
    /// Whether the last attempt to get a certificate from it succeeded.
    pub is_answering: bool,
    /// Why not.
    pub last_error: Option<String>,
}

/// All certificates of the node, as `GET /v1/policy/certificates` answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    /// When this was said, Unix seconds.
    pub now: u64,
    /// Who vouches for them; `None` where nobody was told to.
    pub authority: Option<AuthorityStatus>,
    /// One per identity, by identity.
    pub certificates: Vec<CertificateStatus>,
}

impl Certificates {
    /// The next time that one is renewed, Unix seconds.
    pub fn next_rotation(&self) -> Option<u64> {
        self.certificates.iter().map(|certificate| certificate.next_rotation).filter(|at| *at > 0).min()
    }

    /// How many are usable.
    pub fn usable(&self) -> usize {
        self.certificates.iter().filter(|certificate| certificate.state == CertificateState::Valid).count()
    }

    /// In short, for the status.
    pub fn summary(&self) -> CertificateSummary {
        CertificateSummary {
            authority: self.authority.clone(),
            identities: self.certificates.len(),
            usable: self.usable(),
            next_rotation_s: self.next_rotation().map(|at| at.saturating_sub(self.now)),
        }
    }
}

/// The certificates of the node in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateSummary {
    /// Who vouches for them; `None` where nobody was told to.
    pub authority: Option<AuthorityStatus>,
    /// Identities of workloads of this node.
    pub identities: usize,
    /// Those that can prove who they are.
    pub usable: usize,
    /// Seconds until the next renewal; `None` without a certificate.
    pub next_rotation_s: Option<u64>,
}
