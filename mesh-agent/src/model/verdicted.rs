//! A verdict of a policy, as it is counted.

use serde::{Deserialize, Serialize};

use super::{Identity, ObjectName, Reason};

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The connection was refused.
    Denied,
    /// It was open, and was ended.
    Ended,
    /// It was allowed; were the dry runs in force, it would have been refused.
    WouldDeny,
    /// It was refused; were the dry runs in force, it would have been allowed.
    WouldAllow,
    /// An `AUDIT` object matched.
    Audited,
}

impl Outcome {
    /// As a log field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Ended => "ended",
            Self::WouldDeny => "would_deny",
            Self::WouldAllow => "would_allow",
            Self::Audited => "audited",
        }
    }
}

/// A verdict: who called whom, what came of it and which object decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Verdicted {
    /// What came of it.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Who called, if anybody vouches for it.
    pub source: Option<Identity>,
    /// The workload that was called.
    pub target: ObjectName,
    /// Its identity.
    pub destination: Identity,
    /// Its port.
    pub destination_port: u16,
    /// The AuthorizationPolicy that decided, if one did.
    pub object: Option<ObjectName>,
}
