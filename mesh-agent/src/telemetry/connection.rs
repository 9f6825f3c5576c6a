//! The record of one relayed connection: opened once, ended once, counted live in between.

use std::{cell::Cell, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use super::{DirectionCounters, PodCounters, WorkerCounters};
use crate::model::{Identity, ObjectName, Reason};

/// Relative to the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The workload opened it.
    Outbound,
    /// The workload got it.
    Inbound,
}

impl Direction {
    /// As a log field.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

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
    /// Who the workload is, where that was proved to the other end.
    pub own: Option<Arc<Identity>>,
    /// Who the other end is, where it has proved that.
    pub peer: Option<Arc<Identity>>,
    /// The pod that the other end says it is.
    pub peer_pod: Option<ObjectName>,
    /// The trace that both agents log for a connection between them.
    pub trace: Option<u128>,
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

    /// Bytes went upstream.
    pub fn sent_upstream(&mut self, bytes: usize) {
        self.to_upstream += bytes as u64;
        self.counters().to_upstream.add(bytes as u64);
    }

    /// Bytes went downstream.
    pub fn sent_downstream(&mut self, bytes: usize) {
        self.to_downstream += bytes as u64;
        self.counters().to_downstream.add(bytes as u64);
    }

    /// Ends it.
    pub fn finish(mut self, reason: Reason) {
        self.end(reason);
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
