//! A client of the cluster, and how one waits for things there.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    core::v1::{Event, Node, Pod},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Config,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams, Patch, PatchParams,
        PostParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;

/// Names the kubeconfig of the cluster's administrator.
const KUBECONFIG: &str = "MESH_TEST_KUBECONFIG";
/// Names the image, which all nodes have.
const IMAGE: &str = "MESH_TEST_IMAGE";
/// How long things on a cluster may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Who writes.
const MANAGER: &str = "mesh-cluster-test";

/// Kinds that are written, with their plurals, and whether they are in namespaces.
const KINDS: [(&str, &str, &str, bool); 15] = [
    ("v1", "Namespace", "namespaces", false),
    ("v1", "Pod", "pods", true),
    ("v1", "Service", "services", true),
    ("v1", "ServiceAccount", "serviceaccounts", true),
    ("apps/v1", "DaemonSet", "daemonsets", true),
    ("apps/v1", "Deployment", "deployments", true),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", true),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", false),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", false),
    ("rbac.authorization.k8s.io/v1", "Role", "roles", true),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings", true),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", false),
    ("security.istio.io/v1", "PeerAuthentication", "peerauthentications", true),
    ("security.istio.io/v1", "AuthorizationPolicy", "authorizationpolicies", true),
];

/// Says what is being done: a run takes minutes.
pub(crate) fn say(what: &str) {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let seconds = START.get_or_init(Instant::now).elapsed().as_secs_f64();
    // Straight to the descriptor: the harness captures the rest.
    let _ = writeln!(std::io::stderr(), "[{seconds:7.1} s] {what}");
}

/// The cluster.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) image: String,
    /// Of its administrator.
    pub(crate) kubeconfig: String,
    /// Names of two nodes that are ready.
    pub(crate) nodes: [String; 2],
}

impl Cluster {
    pub(crate) async fn open() -> Self {
        let variable = |name: &str, what: &str| {
            std::env::var(name)
                .unwrap_or_else(|_| panic!("the tests on a cluster need {name}: {what}; see docs/TESTING.md"))
        };
        let path = variable(KUBECONFIG, "the kubeconfig of an administrator of a cluster with two nodes");
        let image = variable(IMAGE, "the image of `cargo xtask image --with-tests`, on every node already");
        let kubeconfig = Kubeconfig::read_from(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.expect("a configuration");
        say(&format!("target: the cluster {} of {path}; image {image}", config.cluster_url));
        let client = Client::try_from(config).expect("a client");
        let version = client.apiserver_version().await.expect("the API server answers");
        say(&format!("Kubernetes {}", version.git_version));
        let ready = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.expect("nodes");
        let is_ready = |node: &Node| {
            let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
        };
        let mut names: Vec<_> =
            ready.items.iter().filter(|node| is_ready(node)).filter_map(|node| node.metadata.name.clone()).collect();
        names.sort();
        say(&format!("nodes: {}", names.join(" ")));
        let Ok(nodes) = <[String; 2]>::try_from(names.into_iter().take(2).collect::<Vec<_>>()) else {
            panic!("it has fewer than two nodes that are ready")
        };
        Self { client, image, kubeconfig: path, nodes }
    }

    fn api_of(&self, object: &Value) -> Api<DynamicObject> {
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let known = KINDS.iter().find(|(of, named, ..)| (*of, *named) == (version, kind));
        let (_, _, plural, is_namespaced) = known.unwrap_or_else(|| panic!("{version} {kind} is not in the table"));
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        if *is_namespaced {
            Api::namespaced_with(self.client.clone(), text(&object["metadata"]["namespace"]), &resource)
        } else {
            Api::all_with(self.client.clone(), &resource)
        }
    }

    pub(crate) async fn find(&self, object: &Value) -> Option<Value> {
        let found = self.api_of(object).get_opt(text(&object["metadata"]["name"])).await;
        found
            .unwrap_or_else(|error| panic!("{}: {error}", shown(object)))
            .map(|object| serde_json::to_value(object).expect("JSON"))
    }

    /// Writes it as Helm does: what is there is made the same.
    pub(crate) async fn apply(&self, object: &Value) {
        let params = PatchParams { force: true, ..PatchParams::apply(MANAGER) };
        let applied =
            self.api_of(object).patch(text(&object["metadata"]["name"]), &params, &Patch::Apply(object)).await;
        if let Err(error) = applied {
            panic!("{} is not accepted: {error}", shown(object));
        }
    }

    pub(crate) async fn merge(&self, object: &Value, patch: &Value) {
        let (api, params) = (self.api_of(object), PatchParams::default());
        let merged = api.patch(text(&object["metadata"]["name"]), &params, &Patch::Merge(patch)).await;
        merged.unwrap_or_else(|error| panic!("{}: {error}", shown(object)));
    }

    /// Creates a pod. A new namespace has no service account for a moment, and then refuses pods.
    pub(crate) async fn start(&self, pod: &Value) {
        let object: DynamicObject = serde_json::from_value(pod.clone()).expect("an object");
        until(&format!("{} is accepted", shown(pod)), async || {
            match self.api_of(pod).create(&PostParams::default(), &object).await {
                Ok(_) => Some(()),
                Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("serviceaccount") => {
                    None
                }
                Err(error) => panic!("{} is not accepted: {error}", shown(pod)),
            }
        })
        .await;
    }

    pub(crate) async fn delete(&self, object: &Value) {
        match self.api_of(object).delete(text(&object["metadata"]["name"]), &DeleteParams::background()).await {
            Ok(_) => {}
            // Gone, or its kind is.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => panic!("{} cannot be deleted: {error}", shown(object)),
        }
    }

    pub(crate) async fn gone(&self, object: &Value) {
        until(&format!("{} is gone", shown(object)), async || self.find(object).await.is_none().then_some(())).await;
    }

    pub(crate) async fn pod(&self, namespace: &str, name: &str) -> Pod {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        pods.get(name).await.unwrap_or_else(|error| panic!("pod {namespace}/{name}: {error}"))
    }

    /// Waits until a pod runs and has an address.
    pub(crate) async fn running(&self, pod: &Value) -> String {
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        until(&format!("pod {namespace}/{name} runs"), async || {
            let pod = self.pod(namespace, name).await;
            complain_if_stuck(&pod);
            let status = pod.status?;
            let is_running = status.phase.as_deref() == Some("Running");
            status.pod_ip.filter(|address| is_running && !address.is_empty())
        })
        .await
    }

    pub(crate) async fn log(&self, namespace: &str, name: &str, lines: i64) -> String {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let params = LogParams { tail_lines: Some(lines), ..LogParams::default() };
        pods.logs(name, &params).await.unwrap_or_else(|error| format!("(no log: {error})"))
    }

    /// Runs a pod to its end; its exit code and what it said.
    pub(crate) async fn run(&self, pod: &Value) -> (i32, String) {
        self.delete(pod).await;
        self.gone(pod).await;
        self.start(pod).await;
        self.ended(pod).await
    }

    /// Waits until a pod has ended, and removes it; its exit code and what it said.
    pub(crate) async fn ended(&self, pod: &Value) -> (i32, String) {
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let code = until(&format!("pod {namespace}/{name} ends"), async || {
            let pod = self.pod(namespace, name).await;
            complain_if_stuck(&pod);
            let containers = pod.status?.container_statuses?;
            Some(containers.first()?.state.as_ref()?.terminated.as_ref()?.exit_code)
        })
        .await;
        let log = self.log(namespace, name, 5000).await;
        self.delete(pod).await;
        (code, log)
    }

    /// Where the API server really is, beside its Service.
    pub(crate) async fn api_server(&self) -> Option<(String, String)> {
        let slices = Api::<EndpointSlice>::namespaced(self.client.clone(), "default");
        let slice = slices.get("kubernetes").await.ok()?;
        let address = slice.endpoints.unwrap_or_default().first()?.addresses.first()?.clone();
        let port = slice.ports?.first()?.port?;
        Some((address, port.to_string()))
    }

    /// All that helps to find out what went wrong.
    pub(crate) async fn tell_all(&self, namespaces: &[&str]) {
        for namespace in namespaces {
            let events = Api::<Event>::namespaced(self.client.clone(), namespace).list(&ListParams::default()).await;
            for event in events.map(|list| list.items).unwrap_or_default() {
                let what = event.involved_object;
                let (kind, name) = (what.kind.unwrap_or_default(), what.name.unwrap_or_default());
                let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
                say(&format!("event {namespace}: {kind} {name}: {reason}: {message}"));
            }
            let pods = Api::<Pod>::namespaced(self.client.clone(), namespace).list(&ListParams::default()).await;
            for pod in pods.map(|list| list.items).unwrap_or_default() {
                let name = pod.metadata.name.clone().unwrap_or_default();
                let status = serde_json::to_string(&pod.status).unwrap_or_default();
                say(&format!("pod {namespace}/{name}: {:?}\n{status}", pod.metadata.annotations));
                say(&format!("log of {namespace}/{name}:\n{}", self.log(namespace, &name, 300).await));
                let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
                let previous = LogParams { previous: true, tail_lines: Some(100), ..LogParams::default() };
                if let Ok(log) = pods.logs(&name, &previous).await {
                    say(&format!("log of {namespace}/{name} before it was restarted:\n{log}"));
                }
            }
        }
    }
}

/// What will not mend itself is said at once.
fn complain_if_stuck(pod: &Pod) {
    const HOPELESS: [&str; 6] = [
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "ImageInspectError",
    ];
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    for waiting in statuses.into_iter().flatten().filter_map(|status| status.state.as_ref()?.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        assert!(!HOPELESS.contains(&reason), "pod {name}: {reason}: {:?}", waiting.message);
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn shown(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!("{} {}/{}", text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
}

/// Asks until `ask` has what it wants, and says what is waited for.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    let mut said = 0;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        let waited = begun.elapsed();
        assert!(waited < PATIENCE, "not within {PATIENCE:?}: {what}");
        if waited.as_secs() / 15 > said {
            said = waited.as_secs() / 15;
            say(&format!("waiting: {what}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}
