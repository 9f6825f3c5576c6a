//! The status of a cluster, from what the API server and the agents say. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Answers;
use crate::{
    kubernetes::cluster::{AgentPod, AgentSet, NamespaceSeen, NodeSeen, PodSeen},
    model::{PodState, Severity, Status},
};

/// What was found out.
pub(super) struct Seen {
    pub(super) nodes: Vec<NodeSeen>,
    pub(super) sets: Vec<AgentSet>,
    pub(super) answers: Answers<Status>,
    pub(super) namespaces: Vec<NamespaceSeen>,
    /// Of enrolled namespaces.
    pub(super) pods: Vec<PodSeen>,
    pub(super) notes: Vec<String>,
}

/// All of it. Fields are stable; new ones may be added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct ClusterStatus {
    /// Whether nothing below is unhealthy.
    pub(super) healthy: bool,
    /// Version of this command.
    pub(super) version: String,
    /// Agents by their version.
    pub(super) versions: BTreeMap<String, usize>,
    /// The DaemonSets of agents.
    pub(super) sets: Vec<SetStatus>,
    /// The nodes.
    pub(super) nodes: Vec<NodeStatus>,
    /// Enrolled namespaces.
    pub(super) namespaces: Vec<NamespaceStatus>,
    /// Pods that are enrolled and not captured.
    pub(super) uncaptured: Vec<Uncaptured>,
    /// What restricts the above.
    pub(super) notes: Vec<String>,
}

/// A DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SetStatus {
    pub(super) name: String,
    pub(super) desired: i32,
    pub(super) ready: i32,
    pub(super) updated: i32,
}

/// Who says how a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Says {
    /// Its agent.
    Agent,
    /// The API server: the agent did not answer.
    Server,
    /// Nobody: it has no agent.
    Nobody,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct NodeStatus {
    pub(super) name: String,
    /// Whether its kubelet says so; `None`: nodes may not be read.
    pub(super) ready: Option<bool>,
    pub(super) says: Says,
    /// Namespace and name of the agent's pod.
    pub(super) agent: Option<String>,
    pub(super) healthy: bool,
    pub(super) version: Option<String>,
    pub(super) uptime_seconds: Option<u64>,
    /// How old the configuration in force may be.
    pub(super) source_age_ms: Option<u64>,
    /// Enrolled pods, and those of them that are captured.
    pub(super) pods: usize,
    pub(super) armed: usize,
    /// What is wrong with it.
    pub(super) problems: Vec<String>,
}

/// An enrolled namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NamespaceStatus {
    pub(super) name: String,
    /// Running pods that are enrolled, and those of them that are captured.
    pub(super) pods: usize,
    pub(super) armed: usize,
}

/// A pod that is enrolled and not captured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Uncaptured {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    /// The reason code; `unconfirmed` where nobody has said anything about it.
    pub(super) reason: String,
    pub(super) message: String,
}

/// An enrolled pod and what is known of it.
struct Known {
    node: String,
    /// `Err`: why it is not captured, as code and words.
    captured: Result<(), (String, String)>,
}

/// Puts it together.
pub(super) fn report(seen: &Seen) -> ClusterStatus {
    let pods = pods(seen);
    let nodes: Vec<NodeStatus> = node_names(seen, &pods).into_iter().map(|name| node(seen, &pods, name)).collect();
    let mut versions = BTreeMap::new();
    for version in nodes.iter().filter_map(|node| node.version.clone()) {
        *versions.entry(version).or_default() += 1;
    }
    let uncaptured: Vec<Uncaptured> = pods.iter().filter_map(uncaptured).collect();
    let mut notes = seen.notes.clone();
    if let Some(why) = &seen.answers.forbidden {
        notes.push(format!("agents were not asked; annotations and probes say what there is to say: {why}"));
    }
    let set = |set: &AgentSet| SetStatus {
        name: set.name.clone(),
        desired: set.desired,
        ready: set.ready,
        updated: set.updated,
    };
    ClusterStatus {
        healthy: uncaptured.is_empty() && nodes.iter().all(|node| node.healthy),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        versions,
        sets: seen.sets.iter().map(set).collect(),
        namespaces: seen
            .namespaces
            .iter()
            .filter(|own| own.is_enrolled())
            .map(|own| namespace(&own.name, &pods))
            .collect(),
        nodes,
        uncaptured,
        notes,
    }
}

/// Enrolled pods that run: as their agents see them, and where those do not answer as their annotations say.
fn pods(seen: &Seen) -> BTreeMap<(String, String), Known> {
    let mut known = BTreeMap::new();
    let enrolled = |pod: &&PodSeen| pod.running && pod.is_enrolled(true) && !pod.node.is_empty();
    for pod in seen.pods.iter().filter(enrolled) {
        let captured = by_annotation(pod);
        known.insert((pod.namespace.clone(), pod.name.clone()), Known { node: pod.node.clone(), captured });
    }
    for (agent, status) in &seen.answers.agents {
        let Ok(status) = status else { continue };
        for pod in status.pods.iter().filter(|pod| pod.enrolled && pod.state != PodState::Waiting) {
            let captured = if pod.state == PodState::Armed { Ok(()) } else { Err(why(status, &pod.name.to_string())) };
            let key = (pod.name.namespace.to_string(), pod.name.name.to_string());
            known.insert(key, Known { node: agent.node.clone(), captured });
        }
    }
    known
}

fn by_annotation(pod: &PodSeen) -> Result<(), (String, String)> {
    if pod.host_network {
        return Err(("host_network".to_owned(), "it uses its node's network".to_owned()));
    }
    match &pod.status {
        Some(status) if status.state == PodState::Armed => Ok(()),
        Some(status) => {
            let reason = status.reason.clone().unwrap_or_else(|| "unconfirmed".to_owned());
            Err((reason, status.message.clone().unwrap_or_default()))
        }
        None => Err(("unconfirmed".to_owned(), "no agent has said that it is captured".to_owned())),
    }
}

/// The worst problem that an agent knows of a pod.
fn why(status: &Status, pod: &str) -> (String, String) {
    let object = format!("Pod {pod}");
    let problems = status.problems.iter().filter(|problem| problem.object == object);
    let worst = problems.max_by_key(|problem| problem.severity);
    worst.map_or_else(
        || ("unconfirmed".to_owned(), "its agent has not captured it yet".to_owned()),
        |problem| (problem.reason.code().to_owned(), problem.message.clone()),
    )
}

fn node_names<'a>(seen: &'a Seen, pods: &'a BTreeMap<(String, String), Known>) -> BTreeSet<&'a str> {
    let nodes = seen.nodes.iter().map(|node| node.name.as_str());
    let agents = seen.answers.agents.iter().map(|(agent, _)| agent.node.as_str());
    nodes.chain(agents).chain(pods.values().map(|pod| pod.node.as_str())).collect()
}

fn node(seen: &Seen, pods: &BTreeMap<(String, String), Known>, name: &str) -> NodeStatus {
    let own = || pods.values().filter(|pod| pod.node == name);
    let (enrolled, armed) = (own().count(), own().filter(|pod| pod.captured.is_ok()).count());
    let agent = seen.answers.agents.iter().find(|(agent, _)| agent.node == name);
    let blank = NodeStatus {
        name: name.to_owned(),
        ready: seen.nodes.iter().find(|node| node.name == name).map(|node| node.ready),
        says: Says::Nobody,
        agent: agent.map(|(AgentPod { namespace, name, .. }, _)| format!("{namespace}/{name}")),
        // Without pods that are to be captured nothing is missing.
        healthy: enrolled == 0,
        version: None,
        uptime_seconds: None,
        source_age_ms: None,
        pods: enrolled,
        armed,
        problems: Vec::new(),
    };
    match agent {
        None => NodeStatus { problems: vec!["no agent".to_owned()], ..blank },
        Some((_, Ok(status))) => {
            let errors = status.problems.iter().filter(|problem| problem.severity == Severity::Error);
            NodeStatus {
                says: Says::Agent,
                healthy: status.healthy,
                version: Some(status.version.clone()),
                uptime_seconds: Some(status.uptime_seconds),
                source_age_ms: Some(status.node.source_age_ms),
                problems: errors.map(|problem| format!("{} {}", problem.reason.code(), problem.object)).collect(),
                ..blank
            }
        }
        Some((agent, Err(why))) => {
            let unready = (!agent.ready).then(|| "its agent is not ready".to_owned());
            // What nobody may ask is not the agent's fault.
            let silent = seen.answers.forbidden.is_none().then(|| format!("its agent does not answer: {why}"));
            let healthy = agent.ready && silent.is_none();
            NodeStatus { says: Says::Server, healthy, problems: unready.into_iter().chain(silent).collect(), ..blank }
        }
    }
}

fn namespace(name: &str, pods: &BTreeMap<(String, String), Known>) -> NamespaceStatus {
    let own = || pods.iter().filter(|((namespace, _), _)| namespace == name);
    let armed = own().filter(|(_, pod)| pod.captured.is_ok()).count();
    NamespaceStatus { name: name.to_owned(), pods: own().count(), armed }
}

fn uncaptured(((namespace, name), pod): (&(String, String), &Known)) -> Option<Uncaptured> {
    let (reason, message) = pod.captured.as_ref().err()?.clone();
    Some(Uncaptured { namespace: namespace.clone(), name: name.clone(), node: pod.node.clone(), reason, message })
}
