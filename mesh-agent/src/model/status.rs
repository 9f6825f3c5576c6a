//! What `mesh-agent status` shows: the answer of the admin socket, as the CLI reads it. Fields are stable; new ones may
//! be added.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{CertificateSummary, DrainingAgent, Mode, ObjectName, PodState, Problem, Reason, Shares, Verdicted};

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether nothing below is unhealthy.
    pub healthy: bool,
    /// The agent's version.
    pub version: String,
    /// The agent's process id.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Resident memory of the agent, in bytes.
    pub rss_bytes: u64,
    /// Agents that this one or its predecessors have relieved, and that have connections left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<DrainingAgent>,
    /// The node.
    pub node: NodeStatus,
    /// The kernel.
    pub kernel: KernelStatus,
    /// The workers.
    pub workers: Vec<WorkerStatus>,
    /// The namespaces.
    pub namespaces: Vec<NamespaceStatus>,
    /// The pods of this node.
    pub pods: Vec<PodStatus>,
    /// Connections that ended, by reason, since the agent started.
    pub reasons: BTreeMap<Reason, u64>,
    /// Connections that policies refused or noted, by who called whom.
    #[serde(default)]
    pub authorizations: Vec<AuthorizationStatus>,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// How often policies came to the same verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationStatus {
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdicted,
    /// How often, since the agent started.
    pub count: u64,
}

/// The node and where the agent's configuration comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its zone, if known.
    pub zone: Option<String>,
    /// Addresses whose connections pass as the node's own (kubelet probes).
    pub addresses: Vec<IpAddr>,
    /// The source, e.g. `manifests /etc/mesh`.
    pub source: String,
    /// Milliseconds since the source was last read without error.
    pub source_age_ms: u64,
    /// Number of publications of the snapshot.
    pub snapshot: u64,
    /// `on` or `off`: `--direct`.
    pub direct: String,
    /// What went encrypted, locally and in plaintext since the agent started, as far as it or the kernel carried it for the
    /// mesh.
    #[serde(default)]
    pub shares: Shares,
    /// The certificates of its workloads.
    #[serde(default)]
    pub certificates: CertificateSummary,
}

/// The kernel and the hooks in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelStatus {
    /// `uname -r`.
    pub release: String,
    /// Version of the programs' ABI.
    pub abi: u32,
    /// Where the pins are.
    pub pins: String,
    /// The hooks.
    pub hooks: Vec<HookStatus>,
}

/// A hook.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HookStatus {
    /// The program, e.g. `connect4`.
    pub program: String,
    /// Where it is attached, e.g. a cgroup or `4 network namespaces`.
    pub at: String,
    /// Whether the kernel says that it is attached.
    pub armed: bool,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its index, which is the index of its CPU among the agent's CPUs.
    pub worker: u32,
    /// The CPU it is pinned to.
    pub cpu: u32,
    /// Connections open.
    pub open: u64,
    /// Connections accepted since the agent started.
    pub accepted: u64,
    /// Share of all accepted connections, 0 to 1.
    pub share: f64,
    /// How late its event loop ran the last beat, in microseconds.
    pub lag_us: u64,
    /// Milliseconds since its last beat.
    pub beat_age_ms: u64,
    /// Connections that waited for the agent of another node, since the agent started.
    #[serde(default)]
    pub peer_waits: u64,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamespaceStatus {
    /// Its name.
    pub name: String,
    /// Whether it is enrolled.
    pub enrolled: bool,
    /// Pods of it on this node.
    pub pods: usize,
    /// Those that are armed.
    pub armed: usize,
}

/// Relayed connections of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Open now.
    pub open: u64,
    /// Since the agent started.
    pub total: u64,
    /// Ended with a reason other than `ok`.
    pub failed: u64,
    /// Bytes from downstream to upstream.
    pub to_upstream_bytes: u64,
    /// Bytes from upstream to downstream.
    pub to_downstream_bytes: u64,
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it should be captured.
    pub enrolled: bool,
    /// Whether it is.
    pub state: PodState,
    /// What becomes of plaintext to it while no agent answers.
    pub mode: Mode,
    /// What becomes of plaintext to a port that is not in `ports`, while the agent answers.
    #[serde(default)]
    pub default_mode: Mode,
    /// The same for single ports.
    #[serde(default)]
    pub ports: Vec<(u16, Mode)>,
    /// What went encrypted, locally and in plaintext since the agent took it over.
    #[serde(default)]
    pub shares: Shares,
    /// Relayed connections it opened.
    pub outbound: RelayStatus,
    /// Relayed connections it got.
    pub inbound: RelayStatus,
    /// Direct connections it opened: open now.
    pub direct_open: u64,
    /// Direct connections it opened: since it was armed.
    pub direct_total: u64,
    /// Bytes of its closed direct connections, both ways.
    pub direct_bytes: u64,
    /// Connections, both directions, that the mesh governed: redirected, direct or relayed.
    pub captured: u64,
    /// Connections that passed untouched, by exclusion, from the node, or for want of an agent.
    pub passed: u64,
    /// Of `passed`: those that should have been captured.
    pub bypassed: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Connections that the kernel handed over and the agent did not deal with.
    pub unaccounted: u64,
    /// All kernel counters by name ([`mesh_common::Counters::NAMES`]).
    pub counters: BTreeMap<String, u64>,
}
