//! Whether a connection would be allowed, and how it would go, as `GET /v1/policy/explain` answers it. Fields are stable;
//! new ones may be added.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Identity, Mode, Reason, Transport};

/// One end of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// What was asked for, e.g. `Pod shop/cart-0`, `Service shop/cart`, `ServiceAccount shop/cart` or an address.
    pub name: String,
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// Its identity, if it has one.
    pub identity: Option<Identity>,
    /// The node it is on, if known.
    pub node: Option<String>,
    /// Whether it is in the mesh; `None` where that is not known or means nothing.
    pub enrolled: Option<bool>,
}

/// Who carries the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The kernel alone, once a decision is remembered.
    Direct,
    /// An agent.
    Relayed,
    /// No agent: the mesh does not touch it.
    Untouched,
}

impl Way {
    /// As a column.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::Untouched => "untouched",
        }
    }
}

/// What becomes of a connection to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Who is connected to.
    pub endpoint: Party,
    /// On which port.
    pub port: u16,
    /// What becomes of plaintext there, if the endpoint is enrolled.
    pub mode: Option<Mode>,
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why not; `ok` if it is.
    pub reason: Reason,
    /// The object that decides, if one does.
    pub decided_by: Option<String>,
    /// What would be decided if dry runs were in force, where that is something else, a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// Who carries the bytes.
    pub way: Way,
    /// Why that way, a sentence.
    pub way_why: String,
    /// Whether it is encrypted.
    #[serde(flatten)]
    pub transport: Transport,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Who calls.
    pub source: Party,
    /// Who is called.
    pub destination: Party,
    /// On which port.
    pub port: u16,
    /// Whether it is allowed, to every endpoint.
    pub allowed: bool,
    /// Why not; `ok` if it is.
    pub reason: Reason,
    /// Every endpoint that may be chosen.
    pub paths: Vec<Path>,
    /// What else matters, a sentence each.
    pub notes: Vec<String>,
}
