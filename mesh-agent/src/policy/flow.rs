//! The question as the agent puts it: a connection to a workload of this node, asked when it is opened and again whenever
//! policies or identities change.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Decision, Peer, Verdict, admit_plaintext, authorize};
use crate::model::{
    Authorization, Condition, Identity, InboundPolicy, Mesh, ObjectName, Outcome, Reason, Verdicted, Workload,
};

/// The client's end of a connection.
#[derive(Clone, Debug)]
pub enum Client {
    /// A pod of this node, captured where it connects: the kernel vouches for it.
    Pod {
        /// The pod.
        name: ObjectName,
        /// Who it was when the connection was opened; while it is in the mesh, who it is then counts.
        identity: Arc<Identity>,
        /// Where it may connect from. The socket that is used is not always known, so all of them must be allowed.
        addresses: Arc<[IpAddr]>,
    },
    /// Whoever showed a certificate.
    Certified {
        /// Who it is.
        identity: Arc<Identity>,
        /// Where it calls from.
        address: IpAddr,
    },
    /// Nobody vouches for it, and it speaks in plaintext.
    Stranger {
        /// Where it calls from.
        address: IpAddr,
    },
}

impl Client {
    /// Who it is now.
    fn identity<'a>(&'a self, mesh: &'a Mesh) -> Option<&'a Identity> {
        match self {
            Self::Pod { name, identity, .. } => {
                Some(mesh.workload(name).map_or(&**identity, |workload| &*workload.identity))
            }
            Self::Certified { identity, .. } => Some(identity),
            Self::Stranger { .. } => None,
        }
    }

    /// Who it was when the connection was opened, for the record.
    pub fn known_as(&self) -> Option<&Arc<Identity>> {
        match self {
            Self::Pod { identity, .. } | Self::Certified { identity, .. } => Some(identity),
            Self::Stranger { .. } => None,
        }
    }
}

/// A connection to a workload of this node.
#[derive(Clone, Debug)]
pub struct Flow {
    /// Who connects.
    pub client: Client,
    /// The workload that is connected to.
    pub target: ObjectName,
    /// Its address and port.
    pub destination: SocketAddr,
}

/// Whether this agent decides who reaches the workload: it captures what comes to it.
pub fn is_governed(mesh: &Mesh, workload: &Workload) -> bool {
    workload.enrolled && !workload.host_network && workload.is_on(&mesh.node.name)
}

/// Whether the connection may be, on this snapshot. What this agent does not govern (any more) may.
pub fn review<'a>(mesh: &'a Mesh, flow: &Flow) -> Decision<'a> {
    match mesh.workload(&flow.target) {
        Some(target) if is_governed(mesh, target) => {
            decide(&target.policy, &flow.client, flow.client.identity(mesh), flow.destination)
        }
        _ => Decision::ALLOWED,
    }
}

/// Whether every such connection to a workload that this agent governs is allowed, and none is worth a note: then nobody
/// has to ask again until something changes.
pub fn is_unremarkable(mesh: &Mesh, client: &Client, target: &Workload, destination: SocketAddr) -> bool {
    let decision = decide(&target.policy, client, client.identity(mesh), destination);
    decision.verdict.is_allowed() && decision.dry_run.is_none() && decision.audited.is_none()
}

/// Whether anything in the difference of two snapshots can change what [`review`] answers.
pub fn may_differ(before: &Mesh, after: &Mesh) -> bool {
    before.policies != after.policies
}

fn decide<'a>(
    policy: &'a InboundPolicy,
    client: &Client,
    identity: Option<&Identity>,
    destination: SocketAddr,
) -> Decision<'a> {
    match client {
        Client::Pod { addresses, .. } => {
            authorize_any(policy, identity, of_family(addresses, destination), destination)
        }
        Client::Certified { address, .. } => authorize(policy, &Peer { identity, address: *address }, destination),
        Client::Stranger { address } => match admit_plaintext(policy, destination.port()) {
            Ok(()) => authorize(policy, &Peer { identity: None, address: *address }, destination),
            Err(reason) => Decision { verdict: Verdict::Denied { reason, by: None }, ..Decision::ALLOWED },
        },
    }
}

fn of_family(addresses: &[IpAddr], like: SocketAddr) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| address.is_ipv4() == like.is_ipv4())
}

/// Whether a peer that may use any of these addresses is allowed with all of them. Without one that is known, nobody is
/// allowed whom an address might forbid.
fn authorize_any<'a>(
    policy: &'a InboundPolicy,
    identity: Option<&Identity>,
    addresses: impl IntoIterator<Item = IpAddr>,
    destination: SocketAddr,
) -> Decision<'a> {
    let mut result: Option<Decision<'_>> = None;
    for address in addresses {
        let decision = authorize(policy, &Peer { identity, address }, destination);
        if !decision.verdict.is_allowed() {
            return decision;
        }
        // What an audit notes of any of them is to be noted.
        if result.is_none_or(|before| before.dry_run.is_none() && before.audited.is_none()) {
            result = Some(decision);
        }
    }
    result.unwrap_or_else(|| {
        let mut objects = policy.deny.iter().chain(&policy.allow);
        if let Some(object) = objects.find(|object| asks_for_address(object)) {
            let verdict = Verdict::Denied { reason: Reason::PolicyNoMatch, by: Some(&object.name) };
            return Decision { verdict, ..Decision::ALLOWED };
        }
        let address = if destination.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        authorize(policy, &Peer { identity, address }, destination)
    })
}

/// Whether the answer may depend on where somebody calls from.
fn asks_for_address(object: &Authorization) -> bool {
    object.rules.iter().any(|rule| {
        rule.from.iter().any(|source| !source.blocks.is_empty())
            || rule.when.iter().any(|condition| matches!(condition, Condition::SourceIp(_)))
    })
}

/// What is to be noted of a decision; a refusal as `refused`.
pub fn worth_noting(mesh: &Mesh, flow: &Flow, decision: &Decision<'_>, refused: Outcome) -> Vec<Verdicted> {
    let mut notes = Vec::new();
    let mut note = |outcome, reason, object: Option<&ObjectName>| {
        let Some(target) = mesh.workload(&flow.target) else { return };
        notes.push(Verdicted {
            outcome,
            reason,
            source: flow.client.identity(mesh).cloned(),
            target: flow.target.clone(),
            destination: Identity::clone(&target.identity),
            destination_port: flow.destination.port(),
            object: object.cloned(),
        });
    };
    if let Verdict::Denied { reason, by } = decision.verdict {
        note(refused, reason, by);
    }
    match decision.dry_run {
        Some(Verdict::Denied { reason, by }) => note(Outcome::WouldDeny, reason, by),
        Some(Verdict::Allowed { by }) => note(Outcome::WouldAllow, Reason::Ok, by),
        None => {}
    }
    if decision.audited.is_some() {
        note(Outcome::Audited, Reason::Ok, decision.audited);
    }
    notes
}
