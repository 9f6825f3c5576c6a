//! What the audit is told of a connection: how its bytes go, between whom.

use std::{net::SocketAddr, sync::Arc};

use super::{Pod, Worker};
use crate::{
    model::{Mesh, ObjectName, OrigDst, Peer, Reason},
    policy::{Client, Flow},
    route::transport::{self, Here},
    telemetry::{Connection, Direction, audit::RefusalKey, unix_now},
};

impl Worker {
    /// Who is at the two ends, by their addresses: nothing is proved.
    fn identify(&self, pod: &Pod, record: &mut Connection, other: SocketAddr) {
        let mesh = self.mesh();
        record.own = mesh.workload(&pod.name).map(|workload| Arc::clone(&workload.identity));
        if let Some(peer) = mesh.workload_of(other) {
            record.peer = Some(Arc::clone(&peer.identity));
            record.peer_pod = Some(peer.name.clone());
        }
    }

    /// An outbound connection is established to `upstream`, and its bytes go as the app writes them.
    pub(super) fn goes_unencrypted(&self, pod: &Pod, record: &mut Connection, upstream: SocketAddr) {
        record.upstream = Some(upstream);
        self.identify(pod, record, upstream);
        let (mesh, own) = (self.mesh(), self.node_addresses());
        record.goes(transport::outbound(Here { mesh: &mesh, node_addresses: &own }, upstream).without_tls());
    }

    /// An inbound connection that comes as its caller wrote it is established.
    pub(super) fn comes_unencrypted(&self, pod: &Pod, record: &mut Connection, peer: SocketAddr, to: OrigDst) {
        self.identify(pod, record, peer);
        let (mesh, own) = (self.mesh(), self.node_addresses());
        let here = Here { mesh: &mesh, node_addresses: &own };
        let workload = mesh.workload(&pod.name).map(AsRef::as_ref);
        record.goes(transport::inbound(here, peer.ip(), workload, to.0.port()).without_tls());
    }

    /// A connection was refused, or ended because a change of policy forbids it.
    pub(super) fn was_refused(&self, mesh: &Mesh, flow: &Flow, reason: Reason, by: Option<&ObjectName>) {
        let (direction, pod, address) = match &flow.client {
            // The agent does not know which of its addresses the pod would have used.
            Client::Pod { name, .. } => (Direction::Outbound, name, None),
            Client::Certified { address, .. } | Client::Stranger { address } => {
                (Direction::Inbound, &flow.target, Some(address.to_canonical()))
            }
        };
        let known_there = || mesh.workload_at(address?).map(|workload| &workload.identity);
        let key = RefusalKey {
            direction,
            pod: pod.clone(),
            source_identity: flow.client.known_as().or_else(known_there).cloned(),
            source_address: address,
            destination: Peer::Pod(flow.target.clone()),
            destination_identity: mesh.workload(&flow.target).map(|workload| Arc::clone(&workload.identity)),
            port: flow.destination.port(),
            reason,
            decided_by: by.map(|object| format!("AuthorizationPolicy {object}").into()),
        };
        self.audit.refuse(key, unix_now);
    }
}
