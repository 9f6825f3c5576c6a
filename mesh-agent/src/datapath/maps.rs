//! Typed handles of the pinned maps.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage, SockMap},
};
use mesh_common::{
    Address, Agent, Approval, Backend, BackendKey, CidrKey, Counters, Decision, DecisionKey, Draining, Endpoint,
    FLOW_DIRECT, FLOW_OUTBOUND, FLOW_UPSTREAM, Flow, Inbound, Pending, PortKey, REACH_OPEN, REACH_REFUSED, Reach,
    Tuple, WAY_DIRECT, WAY_RELAY, WAY_SERVICE, Worker, Workload,
};

use super::{Error, Pins};
use crate::model::{OrigDst, Reachable, address};

/// What the control thread writes and reads.
pub(super) struct ControlMaps {
    pub(super) agent: Array<MapData, Agent>,
    pub(super) draining: HashMap<MapData, u32, Draining>,
    pub(super) workloads: HashMap<MapData, u64, Workload>,
    pub(super) pending: HashMap<MapData, u64, Pending>,
    pub(super) addresses: HashMap<MapData, Address, Inbound>,
    pub(super) node_addresses: HashMap<MapData, Address, u32>,
    pub(super) excluded_ports: HashMap<MapData, PortKey, u32>,
    pub(super) excluded_cidrs: LpmTrie<MapData, CidrKey, u32>,
    pub(super) listeners: SockMap<MapData>,
    pub(super) generations: Array<MapData, u32>,
    pub(super) counters: PerCpuArray<MapData, Counters>,
    pub(super) flows: SkStorage<MapData, Flow>,
    decisions: HashMap<MapData, DecisionKey, Decision>,
    approved: HashMap<MapData, Tuple, Approval>,
}

impl ControlMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            agent: open(pins, "AGENT")?,
            draining: open(pins, "DRAINING")?,
            workloads: open(pins, "WORKLOADS")?,
            pending: open(pins, "PENDING")?,
            addresses: open(pins, "ADDRESSES")?,
            node_addresses: open(pins, "NODE_ADDRESSES")?,
            excluded_ports: open(pins, "EXCLUDED_PORTS")?,
            excluded_cidrs: open(pins, "EXCLUDED_CIDRS")?,
            listeners: open(pins, "LISTENERS")?,
            generations: open(pins, "GENERATIONS")?,
            counters: open(pins, "COUNTERS")?,
            flows: open(pins, "FLOWS")?,
            decisions: open(pins, "DECISIONS")?,
            approved: open(pins, "APPROVED")?,
        })
    }

    /// Forgets what an earlier agent decided.
    pub(super) fn flush_decisions(&mut self) -> Result<(), Error> {
        flush(&mut self.decisions)
    }

    /// Forgets whose connections were on their way when an earlier agent ended.
    pub(super) fn flush_approvals(&mut self) -> Result<(), Error> {
        flush(&mut self.approved)
    }
}

fn flush<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) -> Result<(), Error> {
    let keys: Vec<K> = map.keys().filter_map(Result::ok).collect();
    for key in keys {
        match map.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Opens a pinned map as its type.
fn open<T: TryFrom<Map, Error = MapError>>(pins: &Pins, name: &str) -> Result<T, Error> {
    let data = MapData::from_pin(pins.map(name))?;
    Ok(T::try_from(Map::from_map_data(data)?)?)
}

/// What an accepted socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalFlow {
    /// What the app asked for.
    pub destination: OrigDst,
    /// The backend that the connect hook has drawn already, if any.
    pub chosen: Option<SocketAddr>,
    /// Whether its handshake was held until the destination had answered.
    pub held: bool,
}

/// How a destination is to be reached without the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedBackend {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Whether it can be reached directly; otherwise the agent is told that it was drawn.
    pub direct: bool,
}

/// A decision for the kernel's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CachedWay<'a> {
    /// The destination itself is a pod of this node.
    Pod,
    /// One of these, drawn per connection; `list` identifies this very list.
    Service {
        /// Id of the list, never reused for another one.
        list: u32,
        /// The backends.
        backends: &'a [CachedBackend],
    },
}

/// What a worker reads and writes, by handles of its own.
pub struct WorkerMaps {
    flows: SkStorage<MapData, Flow>,
    decisions: HashMap<MapData, DecisionKey, Decision>,
    backends: HashMap<MapData, BackendKey, Backend>,
    reach: HashMap<MapData, DecisionKey, Reach>,
    workers: Array<MapData, Worker>,
}

impl WorkerMaps {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            flows: open(pins, "FLOWS")?,
            decisions: open(pins, "DECISIONS")?,
            backends: open(pins, "BACKENDS")?,
            reach: open(pins, "REACH")?,
            workers: open(pins, "WORKERS")?,
        })
    }

    /// What the accepted socket's client asked for. `None` if it was not captured: it dialled the agent's port itself.
    pub fn original(&self, socket: &impl AsFd) -> Option<OriginalFlow> {
        let flow = self.flows.get(&socket.as_fd().as_raw_fd(), 0).ok()?;
        if flow.kind != FLOW_OUTBOUND {
            return None;
        }
        Some(OriginalFlow {
            destination: OrigDst(socket_address(&flow.original)),
            chosen: known(&flow.chosen),
            held: flow.held != 0,
        })
    }

    /// Lets the app at the other end of `socket`, not connected yet, see `client` as its peer.
    pub fn show_client(&mut self, socket: &impl AsFd, client: SocketAddr) -> Result<(), Error> {
        let flow = Flow { kind: FLOW_UPSTREAM, original: endpoint(client), ..Flow::default() };
        Ok(self.flows.insert(&socket.as_fd().as_raw_fd(), flow, 0)?)
    }

    /// Writes a decision of the source in `slot` about `destination`, void unless both generations are current.
    pub fn remember(
        &mut self,
        slot: u32,
        source_generation: u32,
        destination: SocketAddr,
        generation: u32,
        way: &CachedWay<'_>,
    ) -> Result<(), Error> {
        let mut decision = Decision { way: WAY_DIRECT, source_generation, generation, count: 0, service: 0 };
        if let CachedWay::Service { list, backends } = way {
            for (index, backend) in (0..).zip(*backends) {
                let way = if backend.direct { WAY_DIRECT } else { WAY_RELAY };
                let value = Backend { endpoint: endpoint(backend.endpoint), way };
                self.backends.insert(BackendKey { service: *list, index }, value, 0)?;
            }
            decision = Decision { way: WAY_SERVICE, count: backends.len() as u32, service: *list, ..decision };
        }
        let asked = endpoint(destination);
        Ok(self.decisions.insert(DecisionKey { slot, port: asked.port, address: asked.address }, decision, 0)?)
    }

    /// Says whether `destination` answers the source in `slot`, for as long as `until_ns` (CLOCK_MONOTONIC).
    pub fn set_reach(
        &mut self,
        slot: u32,
        destination: SocketAddr,
        reachable: Reachable,
        until_ns: u64,
    ) -> Result<(), Error> {
        let asked = endpoint(destination);
        let key = DecisionKey { slot, port: asked.port, address: asked.address };
        let (state, errno) = match reachable {
            Reachable::Open => (REACH_OPEN, 0),
            Reachable::Refused(errno) => (REACH_REFUSED, errno as u32),
            Reachable::Unknown => (0, 0),
        };
        Ok(self.reach.insert(key, Reach { until_ns, state, errno }, 0)?)
    }

    /// Says that worker `index` lives, and how late its loop ran. `None`: it takes no more connections.
    pub fn beat(&mut self, index: u32, beat: Option<(u64, u64)>) -> Result<(), Error> {
        let (beat_ns, lag_ns) = beat.unwrap_or_default();
        Ok(self.workers.set(index, Worker { beat_ns, lag_ns }, 0)?)
    }
}

/// Whether a value of the storage of sockets is that of a client that goes direct.
pub fn is_direct(value: &[u8]) -> bool {
    // `kind` comes first in `Flow`.
    value.len() == size_of::<Flow>() && value.first_chunk().is_some_and(|kind| u32::from_ne_bytes(*kind) == FLOW_DIRECT)
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint { address: address::words(address.ip()), port: address.port().into() }
}

pub(super) fn socket_address(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(address::from_words(endpoint.address), endpoint.port as u16)
}

pub(super) fn known(endpoint: &Endpoint) -> Option<SocketAddr> {
    (endpoint.port != 0).then(|| socket_address(endpoint))
}

/// The address as the maps write it.
pub(super) fn words(address: IpAddr) -> Address {
    address::words(address)
}
