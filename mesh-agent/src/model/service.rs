//! Services and their endpoints.

use std::{net::IpAddr, sync::Arc};

use super::{ObjectName, Workload};

/// Which endpoints of a service are preferred (`spec.trafficDistribution`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// Absent: all alike.
    #[default]
    Any,
    /// `PreferSameZone`, and its older name `PreferClose`.
    PreferSameZone,
    /// `PreferSameNode`.
    PreferSameNode,
}

/// One endpoint of a service port, out of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// `conditions.ready`, true if absent.
    pub ready: bool,
    /// `conditions.serving && terminating`: used only when no endpoint is ready.
    pub draining: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// The pod at that address, if the mesh knows one.
    pub workload: Option<Arc<Workload>>,
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `port`.
    pub port: u16,
    /// `name`, empty if absent.
    pub name: Arc<str>,
    /// Endpoints to choose from, already reduced to the usable ones ([`crate::balance::candidates`]): ready ones, of
    /// the same node or zone where the service prefers that.
    pub endpoints: Arc<[Endpoint]>,
    /// Identifies this very list of endpoints to the kernel's cache; another list, another id. Never 0.
    pub list: u32,
}

/// A service with cluster addresses of one family. A dual-stack service is two of these, so that the endpoints of a port
/// are always of the family that the client's socket can reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.clusterIPs` (or `clusterIP`), without `None`.
    pub addresses: Vec<IpAddr>,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// `spec.trafficDistribution`.
    pub distribution: TrafficDistribution,
}
