//! The cluster as an operator's commands see it: nodes, agents, namespaces, pods; the one annotation that they write; and
//! the way to an agent through the API server.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Namespace, Node, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    api::{ListParams, Patch, PatchParams},
    client::UpgradeConnectionError,
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Access,
    writeback::{PodStatus, STATUS},
};

/// The annotation, and label, by which the mesh is toggled.
pub const MESH: &str = "mesh-agent.io/mesh";
/// How agents' pods are labelled where nobody says otherwise.
pub const AGENTS: &str = "app.kubernetes.io/name=mesh-agent";
/// Objects of a page.
const PAGE: u32 = 500;

/// Why the cluster did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no client.
    #[error(transparent)]
    Client(#[from] super::Error),
    /// The server refused, or could not be reached.
    #[error("{what}: {}", explained(.cause))]
    Api {
        /// What was wanted.
        what: String,
        /// What came of it. All there is to say of it is in the message: as a source it would be said again, at length.
        cause: Box<kube::Error>,
    },
    /// The way to the agent's port is closed.
    #[error("port-forward to {pod}: {why}")]
    Forward {
        /// The agent's pod.
        pod: String,
        /// Why.
        why: String,
    },
}

impl Error {
    /// Whether the server said that this user may not.
    pub fn is_forbidden(&self) -> bool {
        self.code() == Some(403)
    }

    /// Whether the server said that there is no such object.
    pub fn is_missing(&self) -> bool {
        self.code() == Some(404)
    }

    /// With which the server refused.
    fn code(&self) -> Option<u16> {
        let Self::Api { cause, .. } = self else { return None };
        match &**cause {
            kube::Error::Api(status) => Some(status.code),
            // A port-forward: what is refused has no body.
            kube::Error::UpgradeConnection(UpgradeConnectionError::ProtocolSwitch(code)) => Some(code.as_u16()),
            _ => None,
        }
    }
}

fn explained(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => super::causes(other),
    }
}

fn wanted<T>(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Result<T, Error> {
    let what = what.into();
    move |cause| Err(Error::Api { what, cause: Box::new(cause) })
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSeen {
    /// Its name.
    pub name: String,
    /// Whether its kubelet says that it is ready.
    pub ready: bool,
}

/// A pod of a DaemonSet of agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it is of.
    pub node: String,
    /// Whether its readiness probe succeeds.
    pub ready: bool,
    /// Whether it is on its way out.
    pub terminating: bool,
}

/// A DaemonSet of agents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentSet {
    /// Namespace and name.
    pub name: String,
    /// Nodes that are to have an agent.
    pub desired: i32,
    /// Those whose agent is ready.
    pub ready: i32,
    /// Those whose agent is of the newest template.
    pub updated: i32,
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceSeen {
    /// Its name.
    pub name: String,
    /// What its annotation `mesh-agent.io/mesh` says.
    pub annotation: Option<String>,
    /// What its annotation or else its label says.
    pub mesh: Option<String>,
}

impl NamespaceSeen {
    /// Whether its pods are enrolled unless they say otherwise.
    pub fn is_enrolled(&self) -> bool {
        self.mesh.as_deref() == Some("enabled")
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSeen {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node; empty as long as it has none.
    pub node: String,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// Whether it has begun and not ended.
    pub running: bool,
    /// What its own annotation or else its label says.
    pub mesh: Option<String>,
    /// What its node's agent says.
    pub status: Option<PodStatus>,
}

impl PodSeen {
    /// Whether it is enrolled, in a namespace that is, or is not.
    pub fn is_enrolled(&self, namespace: bool) -> bool {
        self.mesh.as_deref().map_or(namespace, |mesh| mesh == "enabled")
    }
}

/// A connection to a port of a pod.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A cluster.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// Of which the API server need not answer yet.
    ///
    /// # Errors
    /// No server is known, or what is said about it cannot be used.
    pub async fn open(access: &Access) -> Result<Self, Error> {
        Ok(Self { client: access.client().await? })
    }

    /// All nodes, by name.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn nodes(&self) -> Result<Vec<NodeSeen>, Error> {
        let nodes = self.list(Api::<Node>::all(self.client.clone()), "nodes", ListParams::default()).await?;
        let seen = nodes.into_iter().map(|node| {
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
            NodeSeen { name: node.metadata.name.unwrap_or_default(), ready }
        });
        Ok(seen.collect())
    }

    /// Pods of agents, by their label.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn agents(&self, selector: &str) -> Result<Vec<AgentPod>, Error> {
        let params = ListParams::default().labels(selector);
        let pods = self.list(Api::<Pod>::all(self.client.clone()), "the agents' pods", params).await?;
        Ok(pods.into_iter().filter_map(agent).collect())
    }

    /// DaemonSets of agents, by their label.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn agent_sets(&self, selector: &str) -> Result<Vec<AgentSet>, Error> {
        let params = ListParams::default().labels(selector);
        let sets = self.list(Api::<DaemonSet>::all(self.client.clone()), "the agents' DaemonSets", params).await?;
        let seen = sets.into_iter().map(|set| {
            let status = set.status.unwrap_or_default();
            AgentSet {
                name: format!(
                    "{}/{}",
                    set.metadata.namespace.unwrap_or_default(),
                    set.metadata.name.unwrap_or_default()
                ),
                desired: status.desired_number_scheduled,
                ready: status.number_ready,
                updated: status.updated_number_scheduled.unwrap_or_default(),
            }
        });
        Ok(seen.collect())
    }

    /// All namespaces, by name.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn namespaces(&self) -> Result<Vec<NamespaceSeen>, Error> {
        let all = self.list(Api::<Namespace>::all(self.client.clone()), "namespaces", ListParams::default()).await?;
        Ok(all.into_iter().map(|namespace| seen_namespace(namespace.metadata)).collect())
    }

    /// One namespace.
    ///
    /// # Errors
    /// There is none of that name, or the server does not say.
    pub async fn namespace(&self, name: &str) -> Result<NamespaceSeen, Error> {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let namespace = namespaces.get_metadata(name).await.or_else(wanted(format!("namespace {name}")))?;
        Ok(seen_namespace(namespace.metadata))
    }

    /// The pods of a namespace.
    ///
    /// # Errors
    /// The server does not say.
    pub async fn pods(&self, namespace: &str) -> Result<Vec<PodSeen>, Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let pods = self.list(api, &format!("pods of {namespace}"), ListParams::default()).await?;
        Ok(pods.into_iter().map(seen_pod).collect())
    }

    /// Sets the annotation of a namespace, or removes it.
    ///
    /// # Errors
    /// The server would not have it.
    pub async fn annotate(&self, namespace: &str, value: Option<&str>) -> Result<(), Error> {
        let patch = Patch::Merge(json!({ "metadata": { "annotations": { MESH: value } } }));
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let patched = namespaces.patch_metadata(namespace, &PatchParams::default(), &patch).await;
        patched.map(drop).or_else(wanted(format!("the annotation of namespace {namespace}")))
    }

    /// Connects to a port of an agent's pod, through the API server and its node's kubelet: there it arrives over loopback.
    ///
    /// # Errors
    /// The server would not have it, or nobody listens there.
    pub async fn connect(&self, agent: &AgentPod, port: u16) -> Result<Box<dyn Stream>, Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &agent.namespace);
        let name = format!("{}/{}", agent.namespace, agent.name);
        let mut forwarder =
            pods.portforward(&agent.name, &[port]).await.or_else(wanted(format!("port-forward to {name}")))?;
        let none = || Error::Forward { pod: name, why: "no stream".to_owned() };
        let stream = forwarder.take_stream(port).ok_or_else(none)?;
        Ok(Box::new(stream))
    }

    async fn list<K>(&self, api: Api<K>, what: &str, params: ListParams) -> Result<Vec<K>, Error>
    where
        K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let mut params = params.limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = api.list(&params).await.or_else(wanted(what))?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

fn agent(pod: Pod) -> Option<AgentPod> {
    let status = pod.status.unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let conditions = status.conditions.unwrap_or_default();
    Some(AgentPod {
        namespace: pod.metadata.namespace?,
        name: pod.metadata.name?,
        node: pod.spec?.node_name?,
        ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
    })
}

fn seen_namespace(metadata: ObjectMeta) -> NamespaceSeen {
    let annotation = find(metadata.annotations.as_ref(), MESH);
    let mesh = annotation.clone().or_else(|| find(metadata.labels.as_ref(), MESH));
    NamespaceSeen { name: metadata.name.unwrap_or_default(), annotation, mesh }
}

fn seen_pod(pod: Pod) -> PodSeen {
    let metadata = pod.metadata;
    let spec = pod.spec.unwrap_or_default();
    let phase = pod.status.and_then(|status| status.phase);
    PodSeen {
        mesh: find(metadata.annotations.as_ref(), MESH).or_else(|| find(metadata.labels.as_ref(), MESH)),
        status: find(metadata.annotations.as_ref(), STATUS).as_deref().and_then(PodStatus::parse),
        namespace: metadata.namespace.unwrap_or_default(),
        name: metadata.name.unwrap_or_default(),
        node: spec.node_name.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or_default(),
        running: phase.as_deref() == Some("Running"),
    }
}

fn find(map: Option<&BTreeMap<String, String>>, key: &str) -> Option<String> {
    map?.get(key).cloned()
}
