//! The mesh on a real cluster of nodes: the chart's own output, with one image that all nodes have. It says which cluster,
//! and what it does; without the variables that name cluster and image it fails, and is no part of the other tiers.
//!
//! Nothing is pulled, no name is looked up, pods call addresses of pods. What it makes it removes, unless
//! `MESH_TEST_KEEP` is set.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

mod cluster;

use std::{panic::AssertUnwindSafe, time::Instant};

use cluster::{Cluster, say, text, until};
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use mesh_tests::{
    agent, chart,
    rollout::{
        APPS, HTTP_PORT, Load, OUTSIDE, PORT, STATUS, SYSTEM, metric, namespace, node_pod, node_root_pod, pod, strict,
        toggle, values,
    },
};
use serde_json::{Value, json};

const MUTUAL: &str = "transport=\"mutual\"";
const TRANSPORT: &str = "mesh_pod_transport_connections_total";
/// Pods that are started at once.
const AT_ONCE: usize = 10;

#[test]
fn the_mesh_on_a_cluster_of_nodes() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let cluster = Cluster::open().await;
        let mut suite = Suite { cluster, values: Value::Null, definitions: Vec::new() };
        suite.refuse_if_installed().await;
        let outcome = AssertUnwindSafe(suite.run()).catch_unwind().await;
        if outcome.is_err() {
            say("FAILED; what there is to know:");
            suite.cluster.tell_all(&[SYSTEM, APPS, OUTSIDE]).await;
        }
        if std::env::var_os("MESH_TEST_KEEP").is_none() {
            let removed = AssertUnwindSafe(suite.remove()).catch_unwind().await;
            assert!(outcome.is_err() || removed.is_ok(), "not all of it could be removed");
        }
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        say("all of it holds");
    });
}

struct Suite {
    cluster: Cluster,
    values: Value,
    /// Definitions that were not there before.
    definitions: Vec<Value>,
}

impl Suite {
    async fn run(&mut self) {
        self.prepare().await;
        self.install().await;
        let server = self.start_apps().await;
        self.captures_running_pods(&server).await;
        self.is_mutual_between_nodes().await;
        self.strict_refuses_plaintext(&server).await;
        self.toggles().await;
        self.obeys_its_operator().await;
        self.agents_are_replaced_under_load().await;
        self.leaves_nothing_behind().await;
    }

    /// Another installation is not to be disturbed.
    async fn refuse_if_installed(&self) {
        for object in chart::objects(SYSTEM, &chart::plain_values()).expect("the chart") {
            let what = format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
            let found = self.cluster.find(&object).await;
            assert!(found.is_none(), "{what} is there already: remove it, or use another cluster");
        }
    }

    fn program<'a>(words: &[&'a str]) -> Vec<&'a str> {
        std::iter::once("/mesh-test-app").chain(words.iter().copied()).collect()
    }

    /// What kind of nodes and network these are.
    async fn prepare(&mut self) {
        for name in [APPS, OUTSIDE] {
            self.cluster.apply(&namespace(name)).await;
        }
        let mut mount_bpffs = false;
        let mut api_server = None;
        for node in &self.cluster.nodes {
            let check = ["/mesh-agent", "check", "-o", "json"];
            let (_, report) = self.cluster.run(&node_root_pod("check", node, &self.cluster.image, &check)).await;
            let report: Value = serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}:\n{report}"));
            for check in report["checks"].as_array().into_iter().flatten() {
                say(&format!("{node}: {}: {} {} {}", check["name"], check["outcome"], check["found"], check["remedy"]));
                mount_bpffs |= check["name"] == "bpffs" && check["outcome"] != "ok";
            }
            for (name, on_node) in [("api-by-pod", false), ("api-by-node", true)] {
                // The shell that would fill in the variables is not there; the kubelet does it.
                let program =
                    Self::program(&["connect", "--to", "$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)"]);
                let make = if on_node {
                    node_pod(name, node, &self.cluster.image, &program)
                } else {
                    pod(OUTSIDE, name, node, &self.cluster.image, &program)
                };
                let (code, said) = self.cluster.run(&make).await;
                say(&format!("{node}: {name}: exit code {code} {}", said.trim()));
                if code != 0 {
                    api_server = self.cluster.api_server().await;
                }
            }
        }
        say(&format!("a bpffs is to be mounted: {mount_bpffs}; instead of the API server's Service: {api_server:?}"));
        let api_server = api_server.as_ref().map(|(host, port)| (host.as_str(), port.as_str()));
        self.values = values(&self.cluster.image, mount_bpffs, api_server);
        if let Ok(settings) = std::env::var("MESH_TEST_VALUES") {
            for setting in settings.split(',') {
                chart::set(&mut self.values, setting).expect("MESH_TEST_VALUES");
            }
        }
    }

    async fn install(&mut self) {
        say("installing");
        for definition in chart::definitions().expect("definitions") {
            if self.cluster.find(&definition).await.is_none() {
                self.cluster.apply(&definition).await;
                self.definitions.push(definition);
            }
        }
        for definition in &self.definitions {
            until("the definition is established", async || {
                let found = self.cluster.find(definition).await?;
                let conditions = found["status"]["conditions"].as_array()?;
                conditions.iter().any(|one| one["type"] == "Established" && one["status"] == "True").then_some(())
            })
            .await;
        }
        for object in chart::objects(SYSTEM, &self.values).expect("the chart") {
            self.cluster.apply(&object).await;
        }
        self.rolled_out().await;
        say("the authority and all agents are ready");
    }

    /// Waits until what was applied last runs everywhere.
    async fn rolled_out(&self) {
        for (kind, name, wanted) in [
            ("Deployment", "mesh-agent-ca", ["replicas", "updatedReplicas", "readyReplicas"]),
            ("DaemonSet", "mesh-agent", ["desiredNumberScheduled", "updatedNumberScheduled", "numberReady"]),
        ] {
            let object =
                json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"namespace": SYSTEM, "name": name}});
            until(&format!("{kind} {name} is rolled out"), async || {
                let found = self.cluster.find(&object).await?;
                let status = &found["status"];
                let [all, updated, ready] = wanted.map(|field| status[field].as_u64().unwrap_or_default());
                let is_current = status["observedGeneration"] == found["metadata"]["generation"];
                let old = self.agents().await.len() as u64 > all && kind == "DaemonSet";
                (is_current && all > 0 && updated == all && ready == all && !old).then_some(())
            })
            .await;
        }
    }

    async fn agents(&self) -> Vec<Pod> {
        let labels = ListParams::default().labels("app.kubernetes.io/name=mesh-agent");
        Api::<Pod>::namespaced(self.cluster.client.clone(), SYSTEM).list(&labels).await.expect("pods").items
    }

    /// A server on one node and a client on the other that calls it from now to the end.
    async fn start_apps(&self) -> String {
        let [near, far] = &self.cluster.nodes;
        let server = pod(APPS, "server", far, &self.cluster.image, &Self::program(&["serve"]));
        self.cluster.start(&server).await;
        let address = format!("{}:{PORT}", self.cluster.running(&server).await);
        let client = pod(APPS, "client", near, &self.cluster.image, &Self::program(&["load", "--to", &address]));
        self.cluster.start(&client).await;
        self.cluster.running(&client).await;
        say(&format!("a client on {near} calls {address} on {far}, without the mesh"));
        let load = self.after_more_load(&Load::default()).await;
        assert_eq!(load.failed, 0, "before the mesh has anything to do with it: {load:?}");
        address
    }

    async fn load(&self) -> Load {
        until("the client says how it goes", async || Load::last(&self.cluster.log(APPS, "client", 3).await)).await
    }

    /// Waits until a hundred more requests were answered, of each kind.
    async fn after_more_load(&self, before: &Load) -> Load {
        until("the client's requests are answered", async || {
            let load = self.load().await;
            (load.ok >= before.ok + 100 && load.kept >= before.kept + 100).then_some(load)
        })
        .await
    }

    /// Requests go on after a change, and none has failed for it, though two nodes come to know of it one after the other.
    async fn goes_on(&self, before: &Load, what: &str) -> Load {
        let now = self.load().await;
        let later = self.after_more_load(&now).await;
        let (answered, failed) = (later.ok - before.ok, later.failed - before.failed);
        say(&format!("{what}: {answered} requests answered, {failed} failed {}", later.last_error));
        assert_eq!(failed, 0, "{what} has cost requests: {before:?} {later:?}");
        later
    }

    async fn enrol(&self, on: bool) {
        self.cluster.merge(&namespace(APPS), &toggle(on)).await;
        for name in ["client", "server"] {
            until(&format!("{name} is {}", if on { "armed" } else { "out of the mesh" }), async || {
                let pod = self.cluster.pod(APPS, name).await;
                let said = pod.metadata.annotations.unwrap_or_default().remove(STATUS);
                let is_armed = said.as_deref().is_some_and(|said| said.contains("\"armed\""));
                (if on { is_armed } else { said.is_none() }).then_some(())
            })
            .await;
        }
    }

    /// The mutual connections that each node's agent has counted.
    async fn mutual(&self) -> [f64; 2] {
        let mut counts = [0.0; 2];
        for (count, node) in counts.iter_mut().zip(&self.cluster.nodes) {
            let to = format!("127.0.0.1:{HTTP_PORT}");
            let program = Self::program(&["get", "--to", &to, "--path", "/metrics"]);
            let (code, text) = self.cluster.run(&node_pod("metrics", node, &self.cluster.image, &program)).await;
            assert_eq!(code, 0, "{node}: {text}");
            *count = metric(&text, TRANSPORT, &[MUTUAL, &format!("workload_namespace=\"{APPS}\"")]);
        }
        say(&format!("mutual TLS connections counted on {:?}: {counts:?}", self.cluster.nodes));
        counts
    }

    async fn captures_running_pods(&self, _server: &str) {
        say("enrolling the namespace of pods that run");
        let before = self.load().await;
        let uids =
            [self.cluster.pod(APPS, "client").await.metadata.uid, self.cluster.pod(APPS, "server").await.metadata.uid];
        self.enrol(true).await;
        self.goes_on(&before, "enrolling").await;
        for (name, uid) in ["client", "server"].into_iter().zip(uids) {
            let pod = self.cluster.pod(APPS, name).await;
            assert_eq!(pod.metadata.uid, uid, "{name} was replaced");
            let containers = pod.status.and_then(|status| status.container_statuses).unwrap_or_default();
            assert!(containers.iter().all(|container| container.restart_count == 0), "{name} was restarted");
        }
        say("both are captured; nothing was restarted");
    }

    async fn is_mutual_between_nodes(&self) {
        let before = self.mutual().await;
        self.after_more_load(&self.load().await).await;
        let after = self.mutual().await;
        for (node, (before, after)) in self.cluster.nodes.iter().zip(before.into_iter().zip(after)) {
            assert!(after > before, "{node} has counted no mutual TLS connection while requests went on");
        }
    }

    async fn ask(&self, namespace: &str, server: &str) -> (i32, String) {
        let near = &self.cluster.nodes[0];
        let program = Self::program(&["get", "--to", server]);
        self.cluster.run(&pod(namespace, "ask", near, &self.cluster.image, &program)).await
    }

    async fn strict_refuses_plaintext(&self, server: &str) {
        let (code, said) = self.ask(OUTSIDE, server).await;
        assert_eq!(code, 0, "without a policy a stranger's plaintext is let in: {said}");
        self.cluster.apply(&strict()).await;
        let before = self.load().await;
        until("plaintext of a stranger is refused", async || {
            let (code, said) = self.ask(OUTSIDE, server).await;
            say(&format!("a stranger asks: exit code {code} {}", said.trim()));
            (code != 0).then_some(())
        })
        .await;
        until("a new pod of the mesh is let in", async || {
            let (code, said) = self.ask(APPS, server).await;
            say(&format!("a new pod of the mesh asks: exit code {code} {}", said.trim()));
            (code == 0).then_some(())
        })
        .await;
        self.arms_pods_before_they_connect(server).await;
        let load = self.after_more_load(&before).await;
        assert_eq!(load.failed, before.failed, "strict has cost requests of the mesh: {load:?}");
        self.cluster.delete(&strict()).await;
        until("plaintext is let in again", async || (self.ask(OUTSIDE, server).await.0 == 0).then_some(())).await;
        say("strict refuses plaintext and nothing else");
    }

    /// New pods whose first act is a request, to a strict server: it is answered only if they were armed by then.
    async fn arms_pods_before_they_connect(&self, server: &str) {
        let program = Self::program(&["get", "--to", server]);
        let pods: Vec<_> = (0..AT_ONCE)
            .map(|number| {
                let node = &self.cluster.nodes[number % 2];
                pod(APPS, &format!("first-{number}"), node, &self.cluster.image, &program)
            })
            .collect();
        for pod in &pods {
            self.cluster.start(pod).await;
        }
        for pod in &pods {
            let (code, said) = self.cluster.ended(pod).await;
            assert_eq!(code, 0, "{}: its first request was not answered: {said}", pod["metadata"]["name"]);
        }
        say(&format!("{AT_ONCE} pods, started at once, were armed before their first request"));
    }

    /// Runs the agent's command line as an operator does.
    async fn operate(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = std::process::Command::new(agent::binary());
        command.args(arguments).args(["--kubeconfig", &self.cluster.kubeconfig]);
        let begun = Instant::now();
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("it ends");
        let output = output.expect("the agent's command line");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        say(&format!(
            "{}: {:?} after {:.1?}\n{}",
            arguments.join(" "),
            output.status.code(),
            begun.elapsed(),
            said.trim()
        ));
        (output.status.code(), said)
    }

    async fn obeys_its_operator(&self) {
        let (code, said) = self.operate(&["status", "--cluster"]).await;
        assert_eq!(code, Some(0), "the cluster is healthy: {said}");
        for node in &self.cluster.nodes {
            assert!(said.contains(node.as_str()), "{node} is told of: {said}");
        }
        let before = self.load().await;
        let (code, said) = self.operate(&["disable", APPS, "--wait"]).await;
        assert_eq!(code, Some(0), "{said}");
        let load = self.goes_on(&before, "disable --wait").await;
        // How long round trips take says more about what else these nodes do than about the mesh.
        let slower = ["--max-latency-increase", "100000"];
        let enable = [&["enable", APPS, "--auto-rollback", "--observe", "10s"][..], &slower].concat();
        let (code, said) = self.operate(&enable).await;
        assert_eq!(code, Some(0), "{said}");
        self.goes_on(&load, "enable --auto-rollback").await;
    }

    async fn toggles(&self) {
        for round in 0..3 {
            say(&format!("toggling, round {round}"));
            let before = self.load().await;
            self.enrol(false).await;
            let load = self.goes_on(&before, "leaving the mesh").await;
            self.enrol(true).await;
            self.goes_on(&load, "entering it again").await;
        }
        say("toggled three times under load");
        self.is_mutual_between_nodes().await;
    }

    async fn agents_are_replaced_under_load(&self) {
        let before = self.load().await;
        let uid = |pod: &Pod| pod.metadata.uid.clone();
        let old: Vec<_> = self.agents().await.iter().map(uid).collect();
        say("replacing all agents");
        let object = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"namespace": SYSTEM, "name": "mesh-agent"}});
        let restart =
            json!({"spec": {"template": {"metadata": {"annotations": {"mesh-cluster-test/restarted": "1"}}}}});
        self.cluster.merge(&object, &restart).await;
        until("every agent is a new one", async || {
            let agents = self.agents().await;
            (agents.len() == old.len() && agents.iter().all(|pod| !old.contains(&uid(pod)))).then_some(())
        })
        .await;
        self.rolled_out().await;
        let load = self.after_more_load(&self.load().await).await;
        say(&format!(
            "while all agents were replaced: {} requests, {} failed; the connection that stays was opened {} times again",
            load.ok - before.ok,
            load.failed - before.failed,
            load.reopened - before.reopened
        ));
        assert_eq!(load.failed, before.failed, "replacing the agents has cost requests: {load:?}");
        self.is_mutual_between_nodes().await;
    }

    async fn leaves_nothing_behind(&mut self) {
        say("uninstalling");
        let before = self.load().await;
        self.enrol(false).await;
        let mut values = self.values.clone();
        chart::set(&mut values, "uninstall=true").expect("a value");
        let objects = chart::objects(SYSTEM, &values).expect("the chart");
        let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
        self.cluster.apply(daemon_set).await;
        self.rolled_out().await;
        for pod in self.agents().await {
            let name = pod.metadata.name.unwrap_or_default();
            until("the node is cleaned", async || {
                let log = self.cluster.log(SYSTEM, &name, 100).await;
                (log.contains("removed") || log.contains("nothing to clean")).then_some(())
            })
            .await;
        }
        self.uninstall().await;
        for node in &self.cluster.nodes {
            let pins = format!("/sys/fs/bpf/{node}/mesh-agent");
            let run = format!("/host/run/mesh-agent/{node}/admin.sock");
            let program = Self::program(&["absent", &pins, "/sys/fs/bpf/mesh-agent", &run]);
            let (code, said) = self.cluster.run(&node_root_pod("absent", node, &self.cluster.image, &program)).await;
            assert_eq!(code, 0, "{node}: {said}");
            let check = ["/mesh-agent", "check", "-o", "json"];
            let (_, report) = self.cluster.run(&node_root_pod("check", node, &self.cluster.image, &check)).await;
            let report: Value = serde_json::from_str(&report).expect("a report");
            let hooks =
                report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == "other programs");
            let hooks = hooks.expect("a check of the hooks");
            assert!(!text(&hooks["found"]).contains("mesh-agents"), "{node}: hooks are left: {hooks}");
        }
        for name in ["client", "server"] {
            let annotations = self.cluster.pod(APPS, name).await.metadata.annotations.unwrap_or_default();
            assert!(!annotations.contains_key(STATUS), "{name}: {annotations:?}");
        }
        self.goes_on(&before, "uninstalling").await;
        say("no pin, no hook, no annotation is left; the pods go on");
    }

    async fn uninstall(&self) {
        let mut objects = chart::objects(SYSTEM, &self.values).expect("the chart");
        objects.reverse();
        for object in &objects {
            self.cluster.delete(object).await;
        }
        for object in &objects {
            self.cluster.gone(object).await;
        }
    }

    /// All that the suite has made, whatever came of it.
    async fn remove(&self) {
        say("removing what the test has made");
        if self.values.is_object() {
            self.cluster.merge(&namespace(APPS), &toggle(false)).await;
            self.uninstall().await;
        }
        for definition in &self.definitions {
            self.cluster.delete(definition).await;
        }
        for name in [APPS, OUTSIDE] {
            let pods = Api::<Pod>::namespaced(self.cluster.client.clone(), name);
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let _ = pods.delete_collection(&now, &ListParams::default()).await;
            self.cluster.delete(&namespace(name)).await;
            self.cluster.gone(&namespace(name)).await;
        }
    }
}
