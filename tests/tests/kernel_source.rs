//! The agent with an API server as its source: pods that run are captured and released by a word on their namespace, and
//! stay what they are when the server is away.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use mesh_agent::model::{Mode, PodState, Reason, Status};
use mesh_tests::{
    Agent, App, Node, Pod,
    agent::kernel_tier,
    api::ApiServer,
    eventually,
    kubelet::{Driver, Kubelet, PodCgroup, uid},
    node::NAMESPACE,
    require,
    socket::round_trip,
    wait::within,
};
use serde_json::{Value, json};

/// How long the agent may take to come back to a server that was away: its pauses grow with every attempt.
const RECONNECTED: Duration = Duration::from_mins(1);

/// A pod that runs: its object is there, and its processes are.
struct Running {
    pod: Arc<Pod>,
    _cgroup: PodCgroup,
}

/// A node with a server that is not in the mesh, and an API server. Fields are dropped in this order.
struct Fixture {
    kubelet: Kubelet,
    app: App,
    server: Arc<Pod>,
    api: ApiServer,
    node: Node,
    kubeconfig: String,
}

impl Fixture {
    fn new() -> Self {
        let node = Node::new();
        let server = node.pod("server");
        let app = App::echo(&server, 8080);
        let kubelet = Kubelet::on(Driver::Systemd, &node.namespace.path());
        // On the loopback of the node, where the agent is.
        let api = node.namespace.run(ApiServer::start);
        api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}}));
        let kubeconfig = node.folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig(api.admin())).unwrap();
        let kubeconfig = kubeconfig.display().to_string();
        let fixture = Self { kubelet, app, server, api, node, kubeconfig };
        fixture.annotate(&json!({}));
        fixture
    }

    /// Sets the annotations of the namespace.
    fn annotate(&self, annotations: &Value) {
        let metadata = json!({"name": NAMESPACE, "annotations": annotations});
        self.api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
    }

    /// Starts a pod of the namespace.
    fn run(&self, name: &str, annotations: &Value) -> Running {
        let uid = uid();
        let pod = self.node.pod(name);
        self.api.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": NAMESPACE, "uid": uid, "annotations": annotations},
            "spec": {"nodeName": self.node.name, "serviceAccountName": name, "containers": [{"name": "app", "image": "none:0"}]},
            "status": {"phase": "Running", "podIP": pod.v4, "podIPs": [{"ip": pod.v4}, {"ip": pod.v6}]},
        }));
        let mut cgroup = self.kubelet.pod(&uid);
        let sandbox = cgroup.container();
        cgroup.pause(&sandbox, Some(&pod.namespace));
        eventually("pause runs", || runs(&sandbox, "sleep").then_some(()));
        Running { pod, _cgroup: cgroup }
    }

    fn arguments(&self) -> [&str; 4] {
        ["--kubernetes", "--kubeconfig", &self.kubeconfig, "--direct=off"]
    }

    fn to(&self) -> SocketAddr {
        self.server.at(8080)
    }

    /// The API server is away.
    fn stop(&self) {
        self.api.stop();
    }

    fn resume(&self) {
        let api = &self.api;
        self.node.namespace.run(|| api.resume());
    }
}

fn runs(cgroup: &Path, comm: &str) -> bool {
    let first = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let pid = first.lines().next().unwrap_or_default();
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == comm)
}

/// Whether the status is bad for this reason.
fn tells(status: &Status, reason: Reason) -> bool {
    !status.healthy && status.problems.iter().any(|problem| problem.reason == reason)
}

#[test]
fn smoke_a_running_pod_joins_and_leaves_by_a_word_on_its_namespace() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    let client = fixture.run("client", &json!({}));
    let agent = Agent::start(&fixture.node, &fixture.arguments());
    assert_eq!(agent.pod("client").state, PodState::Off);
    round_trip(&client.pod, fixture.to()).unwrap();
    let status = agent.status();
    assert!(status.healthy, "{:?}", status.problems);
    assert!(status.node.source.starts_with("kubernetes https://127.0.0.1:"), "{}", status.node.source);
    assert_eq!(status.node.source_age_ms, 0);

    fixture.annotate(&json!({"mesh-agent.io/mesh": "enabled"}));
    agent.await_state("client", PodState::Armed);
    // It was not restarted, nor was its app told.
    round_trip(&client.pod, fixture.to()).unwrap();
    assert_eq!(agent.settled("client").outbound.total, 1);

    fixture.annotate(&json!({}));
    agent.await_state("client", PodState::Off);
    round_trip(&client.pod, fixture.to()).unwrap();
    let seen = fixture.app.seen();
    assert_eq!(seen.peer.ip(), client.pod.v4);
    assert_eq!(agent.pod("client").captured, 0, "it is out");

    // Again, with the server away: what was said last is in force, and is known to be old.
    fixture.annotate(&json!({"mesh-agent.io/mesh": "enabled"}));
    agent.await_state("client", PodState::Armed);
    fixture.stop();
    eventually("it is told", || tells(&agent.status(), Reason::SourceDisconnected).then_some(()));
    assert!(agent.status().node.source_age_ms > 0);
    round_trip(&client.pod, fixture.to()).unwrap();
    assert_eq!(agent.settled("client").outbound.total, 1);
    // What happens meanwhile is known as soon as it is back.
    fixture.annotate(&json!({}));
    fixture.resume();
    let released = || (agent.pod("client").state == PodState::Off).then_some(());
    within(RECONNECTED, "the pod is released", released);
    within(RECONNECTED, "nothing is wrong", || agent.status().healthy.then_some(()));
}

/// The kubelet removes what ran before the API server hears of its end.
#[test]
fn a_pod_that_has_ended_is_no_problem() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    fixture.annotate(&json!({"mesh-agent.io/mesh": "enabled"}));
    let agent = Agent::start(&fixture.node, &fixture.arguments());
    let job = fixture.run("job", &json!({}));
    agent.await_state("job", PodState::Armed);
    drop(job);
    agent.await_state("job", PodState::Waiting);
    let status = agent.status();
    assert!(status.healthy, "{:?}", status.problems);
}

#[test]
fn a_restart_while_the_server_is_away_opens_nothing() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    fixture.annotate(&json!({"mesh-agent.io/mesh": "enabled"}));
    let open = fixture.run("open", &json!({}));
    let closed = fixture.run("closed", &json!({"mesh-agent.io/mode": "strict"}));
    let agent = Agent::start(&fixture.node, &fixture.arguments());
    for pod in ["open", "closed"] {
        agent.await_state(pod, PodState::Armed);
    }
    round_trip(&closed.pod, fixture.to()).unwrap();
    agent.settled("closed");
    fixture.stop();
    agent.kill();

    let mut agent = Agent::spawn(&fixture.node, &fixture.arguments());
    // It runs and says what it waits for; it does not know yet whom it is to capture.
    let asked = || agent.run(&["status", "-o", "json"]).stdout;
    let status = within(RECONNECTED, "it is told that the server is away", || {
        let status: Status = serde_json::from_slice(&asked()).ok()?;
        tells(&status, Reason::SourceDisconnected).then_some(status)
    });
    assert_eq!((status.node.snapshot, status.pods.len()), (0, 0));
    // Nobody was released meanwhile: who fails open passes and is counted, who fails closed does not.
    round_trip(&open.pod, fixture.to()).unwrap();
    round_trip(&closed.pod, fixture.to()).unwrap_err();

    fixture.resume();
    agent.await_ready();
    for pod in ["open", "closed"] {
        agent.await_state(pod, PodState::Armed);
    }
    assert_eq!(agent.counter("open", "out_passed_unavailable"), 1);
    assert_eq!(agent.counter("closed", "out_refused_unavailable"), 1);
    round_trip(&closed.pod, fixture.to()).unwrap();
    assert_eq!(agent.settled("closed").outbound.total, 1);
}

#[test]
fn a_bad_word_that_the_agent_finds_when_it_starts_changes_nothing() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    fixture.annotate(&json!({"mesh-agent.io/mesh": "enabled", "mesh-agent.io/mode": "strict"}));
    let closed = fixture.run("closed", &json!({}));
    let open = fixture.run("open", &json!({"mesh-agent.io/mode": "permissive"}));
    let agent = Agent::start(&fixture.node, &fixture.arguments());
    for pod in ["open", "closed"] {
        agent.await_state(pod, PodState::Armed);
    }
    agent.kill();
    fixture.annotate(&json!({"mesh-agent.io/mesh": "on", "mesh-agent.io/mode": "very"}));
    let agent = Agent::start(&fixture.node, &fixture.arguments());
    for (pod, mode) in [("open", Mode::Permissive), ("closed", Mode::Strict)] {
        let status = agent.pod(pod);
        assert_eq!((status.state, status.mode), (PodState::Armed, mode), "{pod}");
    }
    for (pod, name) in [(&open.pod, "open"), (&closed.pod, "closed")] {
        round_trip(pod, fixture.to()).unwrap();
        assert_eq!(agent.settled(name).outbound.total, 1, "it is captured");
    }
    let status = agent.status();
    assert!(
        tells(&status, Reason::UnknownAnnotation) && tells(&status, Reason::SettingsUnread),
        "{:?}",
        status.problems
    );
    // The pods' owners are told what is wrong with the namespace.
    for name in ["open", "closed"] {
        let told = eventually("it is written at the pod", || {
            let pod = fixture.api.get("v1", "Pod", NAMESPACE, name)?;
            let status = pod["metadata"]["annotations"]["mesh-agent.io/status"].as_str()?.to_owned();
            status.contains("settings_unread").then_some(status)
        });
        assert!(told.contains("armed") && told.contains("mesh-agent.io/mesh"), "{told}");
    }
    // Without an agent, who is strict is closed, and who is not is open.
    agent.kill();
    round_trip(&closed.pod, fixture.to()).unwrap_err();
    round_trip(&open.pod, fixture.to()).unwrap();
    // Not even without a trace in the kernel, as after the node has been started anew: it is written at the pods.
    let cleaned = std::process::Command::new(mesh_tests::agent::binary())
        .args(["cleanup", "--force", "--run-dir"])
        .arg(fixture.node.folder.path().join("run"))
        .arg("--bpffs")
        .arg(fixture.node.folder.path().join("bpf"))
        .output()
        .unwrap();
    assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
    let agent = Agent::start(&fixture.node, &fixture.arguments());
    for (pod, mode) in [("open", Mode::Permissive), ("closed", Mode::Strict)] {
        let status = agent.pod(pod);
        assert_eq!((status.state, status.mode), (PodState::Armed, mode), "{pod}");
    }
    fixture.annotate(&json!({"mesh-agent.io/mesh": "disabled"}));
    for pod in ["open", "closed"] {
        agent.await_state(pod, PodState::Off);
    }
}
