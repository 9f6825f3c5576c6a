//! The agents and the authority as they are deployed: with the arguments, the accounts, the roles and the capabilities of
//! the chart, and no others.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use mesh_agent::model::PodState;
use mesh_tests::{
    Agent, App, Cluster, Node, Pod,
    agent::{binary, kernel_tier},
    api::{ApiServer, Effect, Fault, Options},
    chart, eventually,
    kubelet::{Driver, Kubelet, PodCgroup, uid},
    node::NAMESPACE,
    permissions, require, rollout, socket, sys,
};
use serde_json::{Value, json};

/// The first node's end of the link: where API server and authority are.
const HERE: &str = "172.31.77.1";
const SYSTEM: &str = rollout::SYSTEM;
const HOUR: Duration = Duration::from_hours(1);

fn shipped() -> Vec<Value> {
    chart::objects(SYSTEM, &chart::plain_values()).unwrap()
}

fn workload(kind: &str, name: &str) -> Value {
    let objects = shipped();
    let found = objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap()["spec"]["template"]["spec"]["containers"][0].clone()
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The capabilities that the chart gives the agent.
fn capabilities() -> Vec<String> {
    words(&workload("DaemonSet", "mesh-agent")["securityContext"]["capabilities"]["add"])
}

/// A command line of the chart, with other values for some of its options.
fn command(kind: &str, name: &str, others: &[(&str, String)]) -> Command {
    let mut command = Command::new(binary());
    let is_other = |word: &String| others.iter().any(|(option, _)| word.split('=').next() == Some(*option));
    command.args(words(&workload(kind, name)["args"]).iter().filter(|word| !is_other(word)));
    command.args(others.iter().map(|(option, value)| format!("{option}={value}")));
    command
}

/// An API server with all that is deployed, and two nodes with a pod each. Fields are dropped in this order.
struct Fixture {
    agents: Vec<Agent>,
    authority: Authority,
    cgroups: Vec<PodCgroup>,
    _kubelets: Vec<Kubelet>,
    pods: Vec<Arc<Pod>>,
    server: ApiServer,
    cluster: Cluster,
}

struct Authority(Child);

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pod(namespace: &str, name: &str, account: &str, node: &str, uid: &str, address: IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "uid": uid},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "a", "image": "i"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

fn api_server(cluster: &Cluster) -> ApiServer {
    let listen = SocketAddr::new(HERE.parse().unwrap(), 0);
    let options = Options { listen, names: vec![HERE.to_owned()], ..Options::default() };
    let server = cluster.one.namespace.run(|| ApiServer::with(options));
    for object in shipped() {
        // The others are for the kubelet and the scheduler.
        let kind = object["kind"].as_str().unwrap();
        if ["Namespace", "ServiceAccount", "Service"].contains(&kind) || kind.contains("Role") {
            server.put(object);
        }
    }
    for definition in chart::definitions().unwrap() {
        server.put(definition);
    }
    server.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": SYSTEM, "name": "mesh-agent-ca-1", "labels": {"kubernetes.io/service-name": "mesh-agent-ca"},
        },
        "addressType": "IPv4", "ports": [{"name": "grpc", "port": 15012, "protocol": "TCP"}],
        "endpoints": [{"addresses": [HERE], "conditions": {"ready": true}}],
    }));
    server.put(json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "annotations": {rollout::TOGGLE: "enabled"}}, "status": {"phase": "Active"},
    }));
    for (number, node) in (1..).zip(cluster.nodes()) {
        let address = format!("172.31.77.{number}");
        server.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        }));
        server.put(pod(SYSTEM, &format!("agent-{number}"), "mesh-agent", &node.name, &uid(), address.parse().unwrap()));
    }
    let address = HERE.parse().unwrap();
    server.put(pod(SYSTEM, "ca-1", "mesh-agent-ca", &cluster.one.name, &uid(), address));
    server
}

/// What the kubelet brings to a pod of the system: a kubeconfig with the account's token.
fn kubeconfig(server: &ApiServer, cluster: &Cluster, account: &str, pod: &str) -> PathBuf {
    let token = server.token(SYSTEM, account, Some(pod), &[], HOUR);
    let path = cluster.one.folder.path().join(format!("{pod}.kubeconfig"));
    fs::write(&path, server.kubeconfig(&token)).unwrap();
    path
}

fn start_authority(server: &ApiServer, cluster: &Cluster, extra: &[&str]) -> Authority {
    let others = [
        ("--listen", format!("{HERE}:15012")),
        // It has no network of its own here, and the port is the agent's.
        ("--http-address", "none".to_owned()),
        ("--kubeconfig", kubeconfig(server, cluster, "mesh-agent-ca", "ca-1").display().to_string()),
        ("--namespace", SYSTEM.to_owned()),
    ];
    let mut command = command("Deployment", "mesh-agent-ca", &others);
    let log = File::options().create(true).append(true).open(cluster.one.folder.path().join("ca.log")).unwrap();
    command.args(extra).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // As in the chart: none.
    let start = || {
        sys::keep_capabilities(&[]);
        command.spawn()
    };
    Authority(cluster.one.namespace.run(start).unwrap())
}

fn bundle(server: &ApiServer) -> Option<String> {
    let map = server.get("v1", "ConfigMap", SYSTEM, "mesh-agent-ca-bundle")?;
    map["data"]["bundle.pem"].as_str().map(str::to_owned)
}

/// An agent as the chart has it, with these capabilities.
fn start_agent(server: &ApiServer, cluster: &Cluster, number: usize, capabilities: &[String]) -> Agent {
    let node: &Node = cluster.nodes()[number - 1];
    let name = format!("agent-{number}");
    let folder = node.folder.path();
    let token = server.token(SYSTEM, "mesh-agent", Some(&name), &["mesh-agent-ca"], HOUR);
    fs::write(folder.join("token"), token).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    let others = [
        ("--ca-bundle", path("bundle.pem")),
        ("--ca-token", path("token")),
        ("--log", "mesh_agent=debug,info".to_owned()),
        ("--kubeconfig", kubeconfig(server, cluster, "mesh-agent", &name).display().to_string()),
        ("--node-name", node.name.clone()),
        ("--run-dir", path("run")),
        ("--bpffs", path("bpf")),
    ];
    let kept: Vec<_> = capabilities.iter().map(String::as_str).collect();
    Agent::spawn_with(node, command("DaemonSet", "mesh-agent", &others), || sys::keep_capabilities(&kept))
}

impl Fixture {
    fn start() -> Self {
        let cluster = Cluster::new();
        let server = api_server(&cluster);
        // One agent is told that lists are not streamed, as by older servers: it lists.
        for path in ["/namespaces", "/nodes", "/peerauthentications", "/authorizationpolicies"] {
            server.fault(Fault::new("watch", path, Effect::Refuse { code: 422, retry_after: None }).times(1));
        }
        let authority = start_authority(&server, &cluster, &[]);
        let mut agents: Vec<_> =
            [1, 2].into_iter().map(|number| start_agent(&server, &cluster, number, &capabilities())).collect();
        // The kubelet brings the bundle a little later than the agent starts.
        let text = eventually("the authority publishes its root", || bundle(&server));
        let (mut kubelets, mut cgroups, mut pods) = (Vec::new(), Vec::new(), Vec::new());
        for (node, name) in cluster.nodes().into_iter().zip(["client", "server"]) {
            fs::write(node.folder.path().join("bundle.pem"), &text).unwrap();
            let (of, uid) = (node.pod(name), uid());
            server.put(pod(NAMESPACE, name, "default", &node.name, &uid, of.v4.into()));
            let kubelet = Kubelet::on(Driver::Cgroupfs, &node.namespace.path());
            let mut cgroup = kubelet.pod(&uid);
            let sandbox = cgroup.container();
            cgroup.pause(&sandbox, Some(&of.namespace));
            kubelets.push(kubelet);
            cgroups.push(cgroup);
            pods.push(of);
        }
        agents.iter_mut().for_each(Agent::await_ready);
        agents[0].await_state("client", PodState::Armed);
        agents[1].await_state("server", PodState::Armed);
        Self { agents, authority, cgroups, _kubelets: kubelets, pods, server, cluster }
    }

    /// What the metrics of a node say of connections by mutual TLS.
    fn mutual(&self, number: usize) -> f64 {
        let mut ask = Command::new(env!("CARGO_BIN_EXE_mesh-test-app"));
        ask.args(["get", "--to", &format!("127.0.0.1:{}", rollout::HTTP_PORT), "--path", "/metrics"]);
        let output = self.cluster.nodes()[number - 1].namespace.run(|| ask.output()).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        rollout::metric(&text, "mesh_pod_transport_connections_total", &["transport=\"mutual\""])
    }

    fn annotation(&self, name: &str) -> Option<String> {
        let pod = self.server.get("v1", "Pod", NAMESPACE, name)?;
        pod["metadata"]["annotations"][rollout::STATUS].as_str().map(str::to_owned)
    }
}

/// All that is granted is needed for what is done here, and nothing is needed that is not granted; the same of
/// capabilities, but for whether each is needed, which is below.
#[test]
fn what_is_deployed_suffices_and_is_not_too_much() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let mut fixture = Fixture::start();
    let app = App::echo(&fixture.pods[1], 8080);
    socket::round_trip(&fixture.pods[0], fixture.pods[1].at(8080)).unwrap();
    assert_eq!(app.seen().peer.ip(), fixture.pods[0].v4);
    for number in [1, 2] {
        eventually("the connection was by mutual TLS", || (fixture.mutual(number) > 0.0).then_some(()));
    }
    for agent in &fixture.agents {
        // As the kubelet asks: a process in the cgroup of the agent, as this one is.
        let probe = agent.run(&["probe"]);
        assert!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
    }
    for name in ["client", "server"] {
        eventually("its status is written", || fixture.annotation(name).filter(|said| said.contains("armed")));
    }
    // Something to tell about: a pod that cannot be captured.
    let node = &fixture.cluster.one.name;
    let mut odd = pod(NAMESPACE, "odd", "default", node, &uid(), HERE.parse().unwrap());
    odd["spec"]["hostNetwork"] = true.into();
    fixture.server.put(odd);
    let user = |account: &str| format!("system:serviceaccount:{SYSTEM}:{account}");
    eventually("an Event is written", || {
        let decided = fixture.server.decided(&user("mesh-agent"));
        decided.iter().any(|done| done.resource == "events").then_some(())
    });
    // Another root: the Secret and the ConfigMap are written again.
    let before = bundle(&fixture.server);
    fixture.authority = start_authority(&fixture.server, &fixture.cluster, &["--new-root"]);
    eventually("the next root is published", || (bundle(&fixture.server) != before).then_some(()));
    // Leaving the mesh takes the annotation away.
    fixture.server.put(json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}, "status": {"phase": "Active"},
    }));
    eventually("its status is removed", || fixture.annotation("client").is_none().then_some(()));
    for account in ["mesh-agent", "mesh-agent-ca"] {
        let decided = fixture.server.decided(&user(account));
        assert!(!decided.is_empty(), "{account} has asked for nothing");
        assert_eq!(permissions::refused(&decided), Vec::<String>::new(), "{account} lacks");
        let unused = permissions::unused(&permissions::grants(&shipped(), account), &decided);
        assert_eq!(unused, Vec::<String>::new(), "{account} does not need");
    }
    drop(fixture.cgroups);
}

/// Without any one of its capabilities the agent does not do its work, and `check` says which it is.
#[test]
fn each_capability_is_needed() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let all = capabilities();
    for missing in &all {
        let kept: Vec<_> = all.iter().filter(|name| *name != missing).map(String::as_str).collect();
        let check = thread::scope(|scope| {
            let checking = scope.spawn(|| {
                sys::keep_capabilities(&kept);
                Command::new(binary()).args(["check", "-o", "json"]).output().unwrap()
            });
            checking.join().unwrap()
        });
        assert!(!check.status.success(), "without {missing}");
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(said.contains(&format!("missing CAP_{missing}")), "without {missing}: {said}");

        let node = Node::new();
        let (pod, uid) = (node.pod("client"), uid());
        let scheduled = mesh_tests::manifest::scheduled(NAMESPACE, "client", &uid, &[]);
        let scheduled = scheduled.replace("phase: Pending", &format!("phase: Running\n  podIP: {}", pod.v4));
        node.write("pods.yaml", &(mesh_tests::manifest::namespace(NAMESPACE, &[("mesh", "enabled")]) + &scheduled));
        let kubelet = Kubelet::on(Driver::Cgroupfs, &node.namespace.path());
        let mut cgroup = kubelet.pod(&uid);
        let sandbox = cgroup.container();
        cgroup.pause(&sandbox, Some(&pod.namespace));
        let mut agent = Agent::spawn_with(&node, Agent::command(&node, &[]), || sys::keep_capabilities(&kept));
        eventually(&format!("without {missing} the agent ends, or says that it cannot capture"), || {
            if !agent.is_running() {
                return Some(());
            }
            (agent.is_ready() && agent.pod("client").state == PodState::Failed).then_some(())
        });
    }
}
