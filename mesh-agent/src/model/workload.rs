//! Pods, as far as the data path cares.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Identity, InboundPolicy, Location};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the kubelet calls a pod: its `metadata.uid`, or for a static pod the hash of its configuration, which is what its
/// cgroup is named after.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// A UUID as RFC 9562 writes it, or 32 hexadecimal digits; lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let is_uid = match text.len() {
            36 => text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => is_digit(byte),
            }),
            32 => text.bytes().all(is_digit),
            _ => false,
        };
        is_uid.then(|| Self(text.into()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of plaintext from strangers, and of everything while no agent answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It passes (fail open).
    #[default]
    Permissive,
    /// It is refused (fail closed).
    Strict,
    /// It passes, and the workload is not called by mutual TLS either.
    Disabled,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
            Self::Disabled => "disabled",
        })
    }
}

/// What is not captured, by annotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Exclusions {
    /// `mesh-agent.io/exclude-outbound-ports`, sorted.
    pub outbound_ports: Vec<u16>,
    /// `mesh-agent.io/exclude-inbound-ports`, sorted.
    pub inbound_ports: Vec<u16>,
    /// `mesh-agent.io/exclude-outbound-cidrs`.
    pub outbound_cidrs: Vec<IpNet>,
    /// `mesh-agent.io/exclude-inbound-cidrs`.
    pub inbound_cidrs: Vec<IpNet>,
}

/// How far a pod has come into the mesh. Anything but `Armed` and `Waiting` of an enrolled pod is unhealthy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// Not enrolled: its connections are not touched.
    Off,
    /// Enrolled and captured.
    Armed,
    /// Was enrolled: nothing new is captured, open relayed connections go on.
    Draining,
    /// Enrolled, and not captured: see its problems.
    Failed,
    /// Enrolled, and not there yet: it will be armed before its first container runs.
    Waiting,
    /// Enrolled, on another node.
    Remote,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Namespace and name.
    pub name: ObjectName,
    /// Of its trust domain, namespace and `spec.serviceAccountName` (`default` if absent).
    pub identity: Arc<Identity>,
    /// `spec.nodeName`, if any. A manifest pod without one belongs to this node.
    pub node: Option<Arc<str>>,
    /// `status.podIPs`. May be empty: then they are read inside its network namespace.
    pub addresses: Vec<IpAddr>,
    /// From `mesh-agent.io/netns`, resolved to a path. Only pods of this node have one.
    pub netns: Option<PathBuf>,
    /// By which its cgroup is known, and so its network namespace where no annotation names it.
    pub uid: Option<PodUid>,
    /// `spec.hostNetwork`: cannot be captured.
    pub host_network: bool,
    /// By its own annotation or label, else by its namespace's.
    pub enrolled: bool,
    /// What the kernel does for it while no agent answers ([`InboundPolicy::kernel_mode`]).
    pub mode: Mode,
    /// What is allowed to reach it.
    pub policy: Arc<InboundPolicy>,
    /// By its own annotations, else by its namespace's.
    pub exclusions: Arc<Exclusions>,
    /// Where it was read.
    pub location: Location,
}

impl Workload {
    /// A pod without an address that is not enrolled.
    pub fn new(name: ObjectName, identity: Arc<Identity>) -> Self {
        Self {
            name,
            identity,
            node: None,
            addresses: Vec::new(),
            netns: None,
            uid: None,
            host_network: false,
            enrolled: false,
            mode: Mode::default(),
            policy: Arc::default(),
            exclusions: Arc::default(),
            location: Location::default(),
        }
    }

    /// Whether it runs on `node` (or names no node, as in manifests).
    pub fn is_on(&self, node: &str) -> bool {
        self.node.as_deref().is_none_or(|own| own == node)
    }
}
