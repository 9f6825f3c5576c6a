//! The immutable snapshot that decisions are made on.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{ObjectName, Problem, Service, SharedMap, Workload, words};

/// This node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `--node-name`.
    pub name: Arc<str>,
    /// `topology.kubernetes.io/zone` of its Node object.
    pub zone: Option<Arc<str>>,
    /// Addresses of its Node object.
    pub addresses: Vec<IpAddr>,
}

/// What an address stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A pod.
    Workload(Arc<Workload>),
    /// A service's cluster address.
    Service(Arc<Service>),
}

/// Where the snapshot comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// What it is, e.g. `manifests /etc/mesh`.
    pub description: Arc<str>,
    /// When it was last read without error.
    pub read_at: Option<Instant>,
    /// It tells what changes: what it said is true now, whenever that was.
    pub is_followed: bool,
    /// There may be pods that it does not name: what would say so cannot be read, and never could.
    pub is_partial: bool,
    /// Kinds that are read and that it does not have.
    pub absent: Vec<&'static str>,
    /// Files in force.
    pub files: usize,
    /// Objects in force.
    pub objects: usize,
    /// Documents of kinds that the agent does not read.
    pub ignored: usize,
}

impl SourceState {
    /// How old what it said is.
    pub fn age(&self) -> Duration {
        let read_at = self.read_at.filter(|_| !self.is_followed);
        read_at.map_or(Duration::ZERO, |at| at.elapsed())
    }
}

impl fmt::Display for SourceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)?;
        if self.absent.is_empty() { Ok(()) } else { write!(f, ", without {}", self.absent.join(", ")) }
    }
}

/// Everything known, at one instant. To copy it costs nothing, and what did not change is shared with the one before.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// Counts publications.
    pub version: u64,
    /// This node.
    pub node: Node,
    /// Namespaces and whether they are enrolled.
    pub namespaces: SharedMap<Arc<str>, bool>,
    /// All pods, by name. [`Mesh::put`] and [`Mesh::remove`] change them.
    pub workloads: SharedMap<ObjectName, Arc<Workload>>,
    /// Those of this node.
    pub local: SharedMap<ObjectName, Arc<Workload>>,
    /// All known addresses, of pods and services.
    pub destinations: SharedMap<IpAddr, Target>,
    /// What the kernel's `GENERATIONS` must hold, by slot; slots not named hold 0. That of an address rises whenever
    /// anything that a decision about it may rest on changes: the pod, its enrolment, mode or node; the service, its
    /// endpoints or their pods.
    pub generations: SharedMap<u32, u32>,
    /// Rises whenever the policy, the identity or the enrolment of a workload of this node changes that was there before,
    /// or such a workload comes to the node or leaves it: what is open may no longer be allowed.
    pub policies: u64,
    /// Network namespaces that pods name and that exist, by path, with their inode: another inode behind the same path
    /// is another namespace.
    pub netns: Arc<BTreeMap<PathBuf, u64>>,
    /// Objects that could not be used, or not as they are.
    pub problems: Arc<[Problem]>,
    /// Where all this was read. Its `read_at` advances without a publication.
    pub source: SourceState,
}

impl Mesh {
    /// Adds a pod, or replaces the one of its name.
    pub fn put(&mut self, workload: Arc<Workload>) {
        if workload.is_on(&self.node.name) {
            self.local.insert(workload.name.clone(), Arc::clone(&workload));
        } else {
            self.local.remove(&workload.name);
        }
        self.workloads.insert(workload.name.clone(), workload);
    }

    /// Removes a pod.
    pub fn remove(&mut self, name: &ObjectName) {
        self.local.remove(name);
        self.workloads.remove(name);
    }

    /// A pod. Those of this node are found first: most that is asked is about them.
    pub fn workload(&self, name: &ObjectName) -> Option<&Arc<Workload>> {
        self.local.get(name).or_else(|| self.workloads.get(name))
    }

    /// The pods of a namespace.
    pub fn pods_of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Workload>> {
        let from = ObjectName::new(namespace, "");
        let all = self.workloads.iter_from(&from).map(|(_, workload)| workload);
        all.take_while(move |workload| workload.name.namespace == from.namespace)
    }

    /// What an address stands for, if known.
    pub fn destination(&self, address: IpAddr) -> Option<&Target> {
        self.destinations.get(&address)
    }

    /// The pod at an address, if known.
    pub fn workload_at(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        match self.destination(address)? {
            Target::Workload(workload) => Some(workload),
            Target::Service(_) => None,
        }
    }

    /// The pod that a socket address belongs to, if known.
    pub fn workload_of(&self, address: SocketAddr) -> Option<&Arc<Workload>> {
        self.workload_at(address.ip())
    }

    /// Current generation of a slot, as the kernel counts it.
    pub fn generation(&self, slot: u32) -> u32 {
        self.generations.get(&slot).copied().unwrap_or(0)
    }

    /// Current generation of what is known of an address.
    pub fn generation_of(&self, address: IpAddr) -> u32 {
        self.generation(mesh_common::generation_slot(&words(address)))
    }
}
