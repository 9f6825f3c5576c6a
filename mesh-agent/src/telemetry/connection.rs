//! The record of one relayed connection: opened once, ended once, counted live in between.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    DirectionCounters, PodCounters, WorkerCounters,
    audit::{Flow, FlowKey, Shard},
};
use crate::model::{Direction, Identity, ObjectName, Peer, Reason, Transport};

/// How the bytes travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// As they are.
    #[default]
    Plain,
    /// In HTTP/2 over mutual TLS.
    Hbone,
}

impl Wire {
    /// As a log field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Hbone => "hbone",
        }
    }
}

/// A relayed connection. Ended by [`Connection::finish`], or by being dropped.
#[derive(Debug)]
pub struct Connection {
    pod: Arc<PodCounters>,
    worker: Arc<WorkerCounters>,
    workload: ObjectName,
    direction: Direction,
    downstream: SocketAddr,
    /// What was asked for, once known.
    pub original: Option<SocketAddr>,
    /// What was connected to, once known.
    pub upstream: Option<SocketAddr>,
    /// How the bytes travel between nodes.
    pub wire: Wire,
    /// Who the workload is, once known.
    pub own: Option<Arc<Identity>>,
    /// Who the other end is: proved where it goes by mutual TLS, otherwise what its address stands for.
    pub peer: Option<Arc<Identity>>,
    /// The pod at the other end: what it says it is, or whose address it has.
    pub peer_pod: Option<ObjectName>,
    /// The trace that both agents log for a connection between them.
    pub trace: Option<u128>,
    transport: Option<Transport>,
    audit: Option<Rc<Shard>>,
    /// Where its bytes are counted if they go in plaintext.
    flow: Option<Arc<Flow>>,
    started: Instant,
    to_upstream: u64,
    to_downstream: u64,
    /// What it ends with if it is dropped: an aborted task does not get to say why.
    otherwise: Option<Rc<Cell<Reason>>>,
    ended: bool,
}

impl Connection {
    /// Opens the record of a connection that was just accepted.
    pub fn open(
        pod: Arc<PodCounters>,
        worker: Arc<WorkerCounters>,
        workload: ObjectName,
        otherwise: Option<Rc<Cell<Reason>>>,
        direction: Direction,
        downstream: SocketAddr,
    ) -> Self {
        let connection = Self {
            pod,
            worker,
            workload,
            direction,
            downstream,
            original: None,
            upstream: None,
            wire: Wire::default(),
            own: None,
            peer: None,
            peer_pod: None,
            trace: None,
            transport: None,
            audit: None,
            flow: None,
            started: Instant::now(),
            to_upstream: 0,
            to_downstream: 0,
            otherwise,
            ended: false,
        };
        connection.counters().opened.add(1);
        connection.worker.accepted.add(1);
        connection
    }

    /// With the audit that is to know if it goes in plaintext.
    pub fn audited(mut self, audit: Rc<Shard>) -> Self {
        self.audit = Some(audit);
        self
    }

    /// Says how its bytes go: when it is established, before the first of them, once. Identities are to be set before.
    pub fn goes(&mut self, transport: Transport) {
        self.transport = Some(transport);
        if let Some(counters) = self.pod.transports.get(transport.index()) {
            counters.connections.add(1);
        }
        let Some((reason, audit)) = transport.plaintext_reason().zip(self.audit.as_ref()) else { return };
        let key = FlowKey {
            direction: self.direction,
            pod: self.workload.clone(),
            peer: self.other_end(),
            port: self.called().map_or(0, |called| called.port()),
            reason,
        };
        self.flow = Some(audit.open(key, (self.own.as_ref(), self.peer.as_ref()), unix_now));
    }

    /// Bytes went upstream.
    pub fn sent_upstream(&mut self, bytes: usize) {
        self.to_upstream += bytes as u64;
        self.counters().to_upstream.add(bytes as u64);
        self.moved(bytes as u64, self.direction == Direction::Outbound);
    }

    /// Bytes went downstream.
    pub fn sent_downstream(&mut self, bytes: usize) {
        self.to_downstream += bytes as u64;
        self.counters().to_downstream.add(bytes as u64);
        self.moved(bytes as u64, self.direction == Direction::Inbound);
    }

    fn moved(&self, bytes: u64, is_from_pod: bool) {
        let Some(transport) = self.transport else { return };
        if let Some(counters) = self.pod.transports.get(transport.index()) {
            counters.bytes.add(bytes);
        }
        if let Some(flow) = &self.flow {
            let count = if is_from_pod { &flow.from_pod } else { &flow.to_pod };
            count.add(bytes);
        }
    }

    /// Ends it.
    pub fn finish(mut self, reason: Reason) {
        self.end(reason);
    }

    /// What was called, as far as known: an endpoint rather than a service.
    fn called(&self) -> Option<SocketAddr> {
        self.upstream.or(self.original)
    }

    fn other_end(&self) -> Peer {
        let address = || match self.direction {
            Direction::Outbound => self.called().unwrap_or(self.downstream).ip(),
            Direction::Inbound => self.downstream.ip(),
        };
        self.peer_pod.clone().map_or_else(|| Peer::Address(IpAddr::to_canonical(&address())), Peer::Pod)
    }

    fn counters(&self) -> &DirectionCounters {
        match self.direction {
            Direction::Outbound => &self.pod.outbound,
            Direction::Inbound => &self.pod.inbound,
        }
    }

    fn end(&mut self, reason: Reason) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        if let Some(flow) = &self.flow {
            flow.closed.add(1);
        }
        let counters = self.counters();
        counters.closed.add(1);
        if reason != Reason::Ok {
            counters.failed.add(1);
        }
        self.worker.closed.add(1);
        self.worker.ended(reason);
        tracing::debug!(
            target: "access",
            direction = self.direction.name(),
            workload = %self.workload,
            downstream = %self.downstream,
            original = self.original.map(tracing::field::display),
            upstream = self.upstream.map(tracing::field::display),
            transport = self.transport.map(Transport::name),
            plaintext_reason = self.transport.and_then(Transport::plaintext_reason).map(tracing::field::display),
            wire = self.wire.name(),
            own = self.own.as_ref().map(tracing::field::display),
            peer = self.peer.as_ref().map(tracing::field::display),
            peer_pod = self.peer_pod.as_ref().map(tracing::field::display),
            trace = self.trace.map(|trace| tracing::field::display(format!("{trace:032x}"))),
            reason = reason.code(),
            to_upstream_bytes = self.to_upstream,
            to_downstream_bytes = self.to_downstream,
            duration_us = self.started.elapsed().as_micros() as u64,
            "connection"
        );
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.end(self.otherwise.as_ref().map_or(Reason::Internal, |reason| reason.get()));
    }
}

/// Now, in Unix seconds; 0 before 1970.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
