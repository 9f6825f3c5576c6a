//! The objects as they are read: what we use of each kind, defaults applied, nothing joined yet.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;

use crate::model::{Authorization, Location, Mode, ObjectName, PodUid, TrafficDistribution};

/// A kind that the agent reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Namespace,
    Pod,
    Service,
    EndpointSlice,
    ServiceAccount,
    Node,
    PeerAuthentication,
    AuthorizationPolicy,
}

impl Kind {
    pub(super) const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Pod,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceAccount,
        Self::Node,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceAccount => "ServiceAccount",
            Self::Node => "Node",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
        }
    }

    /// The versions that are read, the one to be named first.
    pub(super) const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::PeerAuthentication | Self::AuthorizationPolicy => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            _ => &["v1"],
        }
    }

    pub(super) const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

/// Identifies an object. The namespace of a cluster-wide one is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) name: ObjectName,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_namespaced() {
            write!(f, "{} {}", self.kind.name(), self.name)
        } else {
            write!(f, "{} {}", self.kind.name(), self.name.name)
        }
    }
}

/// What the annotations `mesh-agent.io/*` of an object say; `None` where they say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Settings {
    pub(super) mesh: Option<bool>,
    pub(super) mode: Option<Mode>,
    pub(super) outbound_ports: Option<Vec<u16>>,
    pub(super) inbound_ports: Option<Vec<u16>>,
    pub(super) outbound_cidrs: Option<Vec<IpNet>>,
    pub(super) inbound_cidrs: Option<Vec<IpNet>>,
    pub(super) netns: Option<Netns>,
    /// Of an AuthorizationPolicy: not to be enforced.
    pub(super) audit: bool,
    /// Of a Pod: the mode that the annotation by which an agent says how it stands names. Only pods in the mesh have it.
    pub(super) told: Option<Mode>,
    /// Not all of it could be read.
    pub(super) doubt: Option<Doubt>,
}

/// What could not be read of an object's annotations: what they do not say may be in what is meant there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Doubt {
    /// The first field that could not be read.
    pub(super) field: Arc<str>,
    /// It is unknown, too, whether it is in the mesh.
    pub(super) of_mesh: bool,
}

/// A network namespace and the line that names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Netns {
    pub(super) path: PathBuf,
    pub(super) line: usize,
}

/// Keys and values. Most pods have the same as others have.
pub(super) type Labels = Arc<[(Arc<str>, Arc<str>)]>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) settings: Arc<Settings>,
    /// What its cgroup is named after.
    pub(super) uid: Option<PodUid>,
    /// Sorted by key.
    pub(super) labels: Labels,
    pub(super) service_account: Arc<str>,
    pub(super) node: Option<Arc<str>>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) host_network: bool,
    /// `status.phase` is Succeeded or Failed: it has given its address back.
    pub(super) finished: bool,
}

impl Pod {
    /// Whether it runs on `node` (or names no node, as in manifests).
    pub(super) fn is_on(&self, node: &str) -> bool {
        self.node.as_deref().is_none_or(|own| own == node)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceSpec {
    pub(super) addresses: Vec<IpAddr>,
    /// Number and name of the TCP ports.
    pub(super) ports: Vec<(u16, Arc<str>)>,
    pub(super) distribution: TrafficDistribution,
    /// `internalTrafficPolicy: Local`: only endpoints of this node, or none.
    pub(super) local_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// Name of its service, of the same namespace. A slice without one serves no service that we know.
    pub(super) service: Option<Arc<str>>,
    /// Name and number of the TCP ports.
    pub(super) ports: Vec<(Arc<str>, u16)>,
    pub(super) endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SliceEndpoint {
    pub(super) address: IpAddr,
    pub(super) ready: bool,
    pub(super) draining: bool,
    pub(super) node: Option<Arc<str>>,
    pub(super) zone: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeSpec {
    pub(super) zone: Option<Arc<str>>,
    pub(super) addresses: Vec<IpAddr>,
}

/// Labels that a workload has to have; none select all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selector(pub(super) Labels);

impl Selector {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a workload with these labels, sorted by key, is selected.
    pub(super) fn selects(&self, labels: &[(Arc<str>, Arc<str>)]) -> bool {
        self.0.iter().all(|wanted| labels.binary_search(wanted).is_ok())
    }
}

/// `None` stands for `UNSET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerAuthentication {
    pub(super) selector: Selector,
    pub(super) mode: Option<Mode>,
    pub(super) ports: Vec<(u16, Option<Mode>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AuthorizationPolicy {
    pub(super) selector: Selector,
    /// By `targetRefs`: not for workloads.
    pub(super) is_attached: bool,
    pub(super) authorization: Arc<Authorization>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Namespace(Arc<Settings>),
    Pod(Pod),
    Service(ServiceSpec),
    EndpointSlice(Slice),
    ServiceAccount,
    Node(NodeSpec),
    PeerAuthentication(PeerAuthentication),
    AuthorizationPolicy(AuthorizationPolicy),
}

/// An object in force and where it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) key: Key,
    pub(super) object: Arc<Object>,
    pub(super) location: Location,
}
