//! The report about what crossed the node's edge, as `GET /v1/policy/audit` answers it. Times are Unix seconds. Fields are
//! stable; new ones may be added.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{Direction, Identity, ObjectName, PlaintextReason, PodState, Reason};

/// Connections and their bytes, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Opened.
    pub connections: u64,
    /// Moved, both ways.
    pub bytes: u64,
}

impl Volume {
    /// Adds.
    pub const fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.bytes += other.bytes;
    }
}

/// How much went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Encrypted, both ends authenticated.
    pub mutual: Volume,
    /// Between two ends on this node.
    pub local: Volume,
    /// Across the node's edge, unencrypted, as far as the agent carried it.
    pub plaintext: Volume,
}

impl Shares {
    /// Adds each to each.
    pub const fn add(&mut self, other: &Self) {
        self.mutual.add(other.mutual);
        self.local.add(other.local);
        self.plaintext.add(other.plaintext);
    }

    /// All of it.
    pub const fn total(&self) -> Volume {
        let mut total = self.mutual;
        total.add(self.local);
        total.add(self.plaintext);
        total
    }
}

/// The other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    /// A known pod.
    Pod(ObjectName),
    /// Nobody known.
    Address(IpAddr),
    /// Several: there were more of them than are told apart.
    Others,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Others => f.write_str("(others)"),
        }
    }
}

/// Connections of one kind that crossed the node's edge in plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextFlow {
    /// Who opened them.
    pub direction: Direction,
    /// The pod of this node.
    pub pod: ObjectName,
    /// Its identity, if known.
    pub pod_identity: Option<Identity>,
    /// The other end.
    pub peer: Peer,
    /// Whose it is by the mesh's configuration; not proved, there was no certificate.
    pub peer_identity: Option<Identity>,
    /// The port that was called; 0 where several are summed up.
    pub port: u16,
    /// Why.
    pub reason: PlaintextReason,
    /// Opened in the period.
    pub connections: u64,
    /// Open now.
    pub open: u64,
    /// Bytes that the pod sent in the period.
    pub from_pod_bytes: u64,
    /// Bytes that the pod got in the period.
    pub to_pod_bytes: u64,
    /// When the first of them was opened; may be before the period.
    pub first_seen: u64,
    /// When a byte was last moved, or one opened.
    pub last_seen: u64,
}

/// Connections that passed without the agent: their number is the kernel's, their bytes nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unobserved {
    /// Who opened them.
    pub direction: Direction,
    /// The pod of this node.
    pub pod: ObjectName,
    /// Why the agent did not see them.
    pub reason: PlaintextReason,
    /// How many.
    pub connections: u64,
    /// Whether they passed before this agent started: then nobody knows when.
    pub before_start: bool,
}

/// From when to when something was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Its begin.
    pub from: u64,
    /// Its end; `None` while it goes on.
    pub until: Option<u64>,
}

/// Whether and since when a pod of this node is observed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The pod.
    pub pod: ObjectName,
    /// How far it is in the mesh.
    pub state: PodState,
    /// When it was observed, within the last hour. Empty: never, and nothing is known of its traffic.
    pub observed: Vec<Interval>,
}

/// Connections that were refused for want of permission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Seen from the pod of this node.
    pub direction: Direction,
    /// The pod of this node.
    pub pod: ObjectName,
    /// Who called, as far as proved, or known by its address.
    pub source_identity: Option<Identity>,
    /// From where; `None` where several are summed up.
    pub source_address: Option<IpAddr>,
    /// Who was called.
    pub destination: Peer,
    /// Its identity, if known.
    pub destination_identity: Option<Identity>,
    /// On which port.
    pub port: u16,
    /// Why not.
    pub reason: Reason,
    /// The object that decided, e.g. `AuthorizationPolicy shop/deny-all`, if one did.
    pub decided_by: Option<String>,
    /// How often.
    pub count: u64,
    /// The first of them that is counted.
    pub first_seen: u64,
    /// The last.
    pub last_seen: u64,
}

/// The report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The node.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// When the report was made.
    pub generated: u64,
    /// Begin of the period that was asked for: at most an hour ago, a whole minute.
    pub since: u64,
    /// When this agent started: of what was before, it knows nothing but the kernel's counters.
    pub agent_started: u64,
    /// What the agent saw in the period.
    pub shares: Shares,
    /// What crossed the node's edge in plaintext in the period, most bytes first.
    pub flows: Vec<PlaintextFlow>,
    /// Flows that were summed up in rows of peer `others`, since the agent started: there were too many of them.
    pub summed_up: u64,
    /// What the agent could not see.
    pub unobserved: Vec<Unobserved>,
    /// The pods of this node.
    pub coverage: Vec<Coverage>,
    /// What was refused since the agent started, latest first.
    pub refused: Vec<Refused>,
}
