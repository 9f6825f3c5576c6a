//! The source `--kubernetes` against the test server: what it publishes, and the objects it is told.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use mesh_agent::{
    discovery::{
        Site,
        kubernetes::{Cluster, Timing},
    },
    kubernetes::Access,
    model::{Mesh, ObjectName, Problem, Reason, Workload},
};
use mesh_tests::{
    api::{ApiServer, Options, Received, User},
    wait::eventually,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};

/// The node that the source is on.
pub(crate) const NODE: &str = "node1";
/// A generous end of all waiting.
const PATIENCE: Duration = Duration::from_mins(1);

/// As patient as a test can be.
pub(crate) const TIMING: Timing = Timing {
    first_retry: Duration::from_millis(20),
    most_retry: Duration::from_millis(200),
    absent: Duration::from_millis(100),
    watch: Duration::from_mins(5),
    silence: Duration::from_mins(2),
    patience: Duration::from_millis(500),
};

/// A source, and the server it follows.
pub(crate) struct Fixture {
    pub(crate) server: ApiServer,
    pub(crate) mesh: watch::Receiver<Arc<Mesh>>,
    folder: TempDir,
    source: JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.source.abort();
    }
}

impl Fixture {
    /// On a server with the namespace `shop`, enrolled, and this node.
    pub(crate) fn new() -> Self {
        Self::with(|_| {}, TIMING)
    }

    /// The same after something was done to the server.
    pub(crate) fn with(prepare: impl FnOnce(&ApiServer), timing: Timing) -> Self {
        let server = server();
        prepare(&server);
        Self::on(server, timing)
    }

    /// On this server.
    pub(crate) fn on(server: ApiServer, timing: Timing) -> Self {
        let folder = TempDir::new().expect("a folder");
        std::fs::write(folder.path().join("token"), TOKEN).expect("a file");
        let kubeconfig = folder.path().join("kubeconfig");
        let of = |name: &str| folder.path().join(name);
        server.write_kubeconfig_with(&kubeconfig, &of("token"), &of("ca.crt")).expect("files");
        let site = Site {
            node: NODE.into(),
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            first_generation: 1,
            former: Arc::default(),
        };
        let cluster = Cluster::with(Access { kubeconfig: Some(kubeconfig), context: None }, site, timing);
        let (publish, mesh) = watch::channel(Arc::new(Mesh::default()));
        let source = tokio::spawn(async move { cluster.run(publish).await.expect("a client") });
        Self { server, mesh, folder, source }
    }

    /// Where its token is.
    pub(crate) fn token(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// Where the CA of its server is.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// Waits for a snapshot of which this holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Mesh) -> bool) -> Arc<Mesh> {
        // What is published without notice is looked for, too.
        let look = async {
            loop {
                let mesh = Arc::clone(&self.mesh.borrow_and_update());
                if holds(&mesh) {
                    return mesh;
                }
                let _ = tokio::time::timeout(Duration::from_millis(20), self.mesh.changed()).await;
            }
        };
        let found = tokio::time::timeout(PATIENCE, look).await;
        found.unwrap_or_else(|_| panic!("{what}: {:#?}", self.mesh.borrow()))
    }

    /// Waits for the first snapshot, and until every watch is open.
    pub(crate) async fn synced(&mut self) -> Arc<Mesh> {
        self.until("a snapshot", |mesh| mesh.version > 0 && mesh.source.is_followed).await
    }
}

/// The token of the agent's user.
pub(crate) const TOKEN: &str = "the-agent";

/// A server with the namespace `shop`, enrolled, this node, and a user who may do what the agent has to.
pub(crate) fn server() -> ApiServer {
    server_with(Options::default())
}

/// The same, of another kind of server.
pub(crate) fn server_with(options: Options) -> ApiServer {
    let server = ApiServer::with(options);
    server.put(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "annotations": {"mesh-agent.io/mesh": "enabled"}},
    }));
    server.put(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": "z1"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.16.0.1"}, {"type": "Hostname", "address": NODE}]},
    }));
    permit(&server, &["peerauthentications", "authorizationpolicies"]);
    server.add_user(
        TOKEN,
        User { name: "mesh-agent".to_owned(), groups: vec!["system:authenticated".to_owned()], ..User::default() },
    );
    server
}

/// Lets the agent read what it reads, and of the policies these.
pub(crate) fn permit(server: &ApiServer, policies: &[&str]) {
    server.put(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "mesh-agent"},
        "rules": [
            {"apiGroups": [""], "resources": ["namespaces", "nodes", "pods", "services"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            {"apiGroups": ["security.istio.io"], "resources": policies, "verbs": ["list", "watch"]},
        ],
    }));
    server.put(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mesh-agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "mesh-agent"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "mesh-agent"}],
    }));
}

/// A pod of `shop` as the kubelet would have it; `uid` ends its UID.
pub(crate) fn pod(name: &str, uid: u32, node: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": "shop", "uid": uid_of(uid), "labels": {"app": name},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "apiVersion": "v1"}],
        },
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": [{"name": "app", "image": "none:0"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

/// The UID that a number stands for.
pub(crate) fn uid_of(number: u32) -> String {
    format!("{number:08x}-0000-4000-8000-000000000000")
}

/// A service of `shop` with a port 80.
pub(crate) fn service(name: &str, spec: &Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "ClusterIP", "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]},
    });
    merge(&mut object["spec"], spec);
    object
}

/// A slice of a service of `shop`, whose name begins with that.
pub(crate) fn slice(service: &str, suffix: &str, endpoints: &Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{service}-{suffix}"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": endpoints,
    })
}

fn merge(into: &mut Value, from: &Value) {
    for (key, value) in from.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

/// The definition of a policy kind, as Istio's, without its schema.
pub(crate) fn definition(kind: &str, plural: &str) -> Value {
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.security.istio.io")},
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced", "conversion": {"strategy": "None"},
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase(), "listKind": format!("{kind}List")},
            "versions": [version("v1", true)],
        },
    })
}

/// Defines both policy kinds, and waits until they are served.
pub(crate) fn define(server: &ApiServer) {
    for (kind, plural) in
        [("PeerAuthentication", "peerauthentications"), ("AuthorizationPolicy", "authorizationpolicies")]
    {
        server.put(definition(kind, plural));
        eventually("the kind is served", || server.serves("security.istio.io/v1", kind).then_some(()));
    }
}

/// A pod of `shop` in a snapshot.
pub(crate) fn find<'a>(mesh: &'a Mesh, name: &str) -> Option<&'a Arc<Workload>> {
    mesh.workloads.get(&ObjectName::new("shop", name))
}

/// Problems of a snapshot with a reason.
pub(crate) fn problems(mesh: &Mesh, reason: Reason) -> Vec<&Problem> {
    mesh.problems.iter().filter(|problem| problem.reason == reason).collect()
}

/// Those that begin with all there is.
pub(crate) fn lists(requests: &[Received]) -> Vec<&Received> {
    let is_list = |request: &&Received| request.verb == "list" || request.query.contains("sendInitialEvents=true");
    requests.iter().filter(is_list).collect()
}

/// Runs a test.
pub(crate) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}
