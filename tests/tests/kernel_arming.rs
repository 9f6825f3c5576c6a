//! Pods are armed by their UID, before their first container runs.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

/// The least time, of eight pod starts recorded on a kubelet 1.36 with containerd, from the first instruction of the
/// sandbox' pause process to that of the app.
const BEFORE_APP: Duration = Duration::from_millis(140);

use mesh_agent::model::{PodState, PodStatus, Problem, Reason, Severity, Status};
use mesh_tests::{
    Agent, App, Node, Pod,
    agent::kernel_tier,
    eventually,
    kubelet::{Driver, Kubelet, PodCgroup, uid},
    manifest,
    node::NAMESPACE,
    require,
    wait::within,
};
use nix::sys::signal::{Signal, kill};

/// A node, a server that is not enrolled, and a kubelet. Fields are dropped in this order.
struct Fixture {
    agent: Agent,
    kubelet: Kubelet,
    app: App,
    server: Arc<Pod>,
    node: Node,
}

impl Fixture {
    fn new(driver: Driver, annotations: manifest::Annotations<'_>, pods: &[(String, String)]) -> Self {
        let node = Node::new();
        let server = node.pod("server");
        let app = App::echo(&server, 8080);
        let mut all = vec![("mesh", "enabled")];
        all.extend_from_slice(annotations);
        write(&node, &server, &all, pods);
        let kubelet = Kubelet::on(driver, &node.namespace.path());
        let agent = node.start_with(&["--direct=off"]);
        Self { agent, kubelet, app, server, node }
    }

    fn to(&self) -> SocketAddr {
        self.server.at(8080)
    }
}

/// Writes the namespace, the server and the pods.
fn write(node: &Node, server: &Pod, annotations: manifest::Annotations<'_>, pods: &[(String, String)]) {
    let mut text = manifest::namespace(NAMESPACE, annotations) + &server.manifest(&[("mesh", "disabled")]);
    for (name, uid) in pods {
        text += &manifest::scheduled(NAMESPACE, name, uid, &[]);
    }
    node.write("pods.yaml", &text);
}

/// One of the pods and its UID.
fn named(name: &str) -> (String, String) {
    (name.to_owned(), uid())
}

/// An app whose first act is connect().
fn connect_at_once(to: SocketAddr) -> String {
    format!("bash -c 'exec 3<>/dev/tcp/{}/{} && exec sleep 1000'", to.ip(), to.port())
}

/// Starts a pod's sandbox as a runtime does, up to where its pause process runs.
fn start_sandbox(cgroup: &mut PodCgroup, pod: &Pod) {
    let sandbox = cgroup.container();
    cgroup.pause(&sandbox, Some(&pod.namespace));
    eventually("pause runs", || runs(&sandbox, "sleep").then_some(()));
}

/// Starts a pod's app. A runtime runs some programs of its own for that, one after the other: a busy machine delays
/// them as it delays the agent.
fn start_app(cgroup: &mut PodCgroup, pod: &Pod, app: &str) {
    for _program in ["runc create", "runc init", "runc start", "runc state"] {
        assert!(Command::new("true").status().unwrap().success());
    }
    let container = cgroup.container();
    cgroup.run(&container, Some(&pod.namespace), app);
}

/// Whether the first process in a cgroup is called so.
fn runs(cgroup: &Path, comm: &str) -> bool {
    let first = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let pid = first.lines().next().unwrap_or_default();
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == comm)
}

fn seen(pod: &PodStatus) -> u64 {
    pod.counters["out_seen"]
}

#[test]
fn smoke_a_pod_is_armed_by_its_uid_and_forgotten_with_its_cgroup() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pods = [named("client")];
    let fixture = Fixture::new(Driver::Systemd, &[], &pods);
    let status = fixture.agent.pod("client");
    assert_eq!(status.state, PodState::Waiting);
    assert!(fixture.agent.status().healthy, "{:?}", fixture.agent.status().problems);
    let pod = fixture.node.pod("client");
    let mut cgroup = fixture.kubelet.pod(&pods[0].1);
    let sandbox = cgroup.container();
    cgroup.pause(&sandbox, Some(&pod.namespace));
    fixture.agent.await_state("client", PodState::Armed);
    // Its addresses are those found in its namespace: its object has none.
    assert_eq!(fixture.agent.pod("client").addresses.len(), 2);
    mesh_tests::socket::round_trip(&pod, fixture.to()).unwrap();
    assert_eq!(fixture.agent.settled("client").outbound.total, 1);
    assert_eq!(fixture.app.seen().peer.ip(), pod.v4);
    // The app's containers, and the agent, may come and go.
    let app = cgroup.container();
    cgroup.pause(&app, Some(&pod.namespace));
    mesh_tests::socket::round_trip(&pod, fixture.to()).unwrap();
    eventually("its connection is captured", || (fixture.agent.pod("client").outbound.total == 2).then_some(()));
    cgroup.stop(&app);
    fixture.agent.assert_all_accounted();
    drop(cgroup);
    fixture.agent.await_state("client", PodState::Waiting);
    assert!(fixture.agent.status().healthy, "{:?}", fixture.agent.status().problems);
}

#[test]
fn a_new_agent_takes_armed_pods_over() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pods = [named("client")];
    let Fixture { agent, kubelet, app: _app, server, node } = Fixture::new(Driver::Cgroupfs, &[], &pods);
    let pod = node.pod("client");
    let mut cgroup = kubelet.pod(&pods[0].1);
    start_sandbox(&mut cgroup, &pod);
    agent.await_state("client", PodState::Armed);
    mesh_tests::socket::round_trip(&pod, server.at(8080)).unwrap();
    agent.kill();
    // While nobody looks it stays armed, and passes.
    mesh_tests::socket::round_trip(&pod, server.at(8080)).unwrap();
    let agent = node.start_with(&["--direct=off"]);
    agent.await_state("client", PodState::Armed);
    mesh_tests::socket::round_trip(&pod, server.at(8080)).unwrap();
    let counters = agent.settled("client").counters;
    let of = |name: &str| counters[name];
    assert_eq!((of("out_redirected"), of("out_passed_unavailable"), of("out_passed_unarmed")), (2, 1, 0));
}

#[test]
fn what_connects_before_it_is_armed_is_counted_and_refused_if_strict() {
    if !require("kernel", kernel_tier) {
        return;
    }
    for strict in [false, true] {
        let pods = [named("client"), named("other")];
        let mode = [("mode", "strict")];
        let fixture = Fixture::new(Driver::Systemd, if strict { &mode } else { &[] }, &pods);
        let pod = fixture.node.pod("client");
        let mut cgroup = fixture.kubelet.pod(&pods[0].1);
        // The agent has seen the cgroup; then it is late.
        eventually("the agent knows of it", || fixture.agent.log().contains("the kubelet made").then_some(()));
        assert_eq!(fixture.agent.pod("client").state, PodState::Waiting);
        kill(fixture.agent.pid(), Signal::SIGSTOP).unwrap();
        start_sandbox(&mut cgroup, &pod);
        start_app(&mut cgroup, &pod, &connect_at_once(fixture.to()));
        if strict {
            // Refused: bash ends.
            cgroup.await_end();
        } else {
            assert_eq!(fixture.app.seen().peer.ip(), pod.v4);
        }
        kill(fixture.agent.pid(), Signal::SIGCONT).unwrap();
        fixture.agent.await_state("client", PodState::Armed);
        let counter = if strict { "out_refused_unarmed" } else { "out_passed_unarmed" };
        eventually("it is counted", || (fixture.agent.counter("client", counter) == 1).then_some(()));
        let status = fixture.agent.status();
        assert!(!status.healthy);
        assert!(
            status.problems.iter().any(|problem| problem.reason == Reason::CaptureUnarmed),
            "{:?}",
            status.problems
        );
        assert!(fixture.app.try_seen().is_none());
        // Armed now.
        mesh_tests::socket::round_trip(&pod, fixture.to()).unwrap();
        assert_eq!(fixture.agent.settled("client").outbound.total, 1);
    }
}

#[test]
fn what_a_busy_pod_connects_to_while_it_joins_is_told_and_no_failure() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pods = [named("client")];
    let fixture = Fixture::new(Driver::Systemd, &[], &pods);
    let pod = fixture.node.pod("client");
    let mut cgroup = fixture.kubelet.pod(&pods[0].1);
    start_sandbox(&mut cgroup, &pod);
    fixture.agent.await_state("client", PodState::Armed);
    let to = fixture.to();
    let connects = format!(
        "bash -c 'while exec 3<>/dev/tcp/{}/{}; do echo hello >&3; read -u 3 _back; exec 3>&-; done'",
        to.ip(),
        to.port()
    );
    start_app(&mut cgroup, &pod, &connects);
    within(Duration::from_mins(2), "it connects between its being enrolled and its being armed", || {
        write(&fixture.node, &fixture.server, &[("mesh", "disabled")], &pods);
        fixture.agent.await_state("client", PodState::Off);
        write(&fixture.node, &fixture.server, &[("mesh", "enabled")], &pods);
        fixture.agent.await_state("client", PodState::Armed);
        (fixture.agent.counter("client", "out_passed_unarmed") > 0).then_some(())
    });
    let assert_is_warning = || {
        let Status { healthy, problems, .. } = fixture.agent.status();
        assert!(healthy, "{problems:?}");
        let told: Vec<_> = problems.iter().filter(|problem| problem.reason == Reason::CaptureUnarmed).collect();
        assert!(matches!(told[..], [Problem { severity: Severity::Warning, .. }]), "{problems:?}");
    };
    assert_is_warning();
    // Neither is it one as it leaves.
    let open = mesh_tests::socket::connect(&pod, to).unwrap();
    mesh_tests::socket::exchange(&open, "kept").unwrap();
    write(&fixture.node, &fixture.server, &[("mesh", "disabled")], &pods);
    fixture.agent.await_state("client", PodState::Draining);
    assert_is_warning();
}

#[test]
fn of_two_hundred_strict_pods_that_connect_at_once_none_passes_unseen() {
    const PODS: usize = 200;
    if !require("kernel", kernel_tier) {
        return;
    }
    let names: Vec<_> = (0..PODS).map(|at| named(&format!("pod-{at}"))).collect();
    let fixture = Fixture::new(Driver::Systemd, &[("mode", "strict")], &names);
    let pods: Vec<Arc<Pod>> = (0..PODS).map(|_| fixture.node.pod("burst")).collect();
    let app = connect_at_once(fixture.to());
    let mut cgroups: Vec<_> = names.iter().map(|(_, uid)| fixture.kubelet.pod(uid)).collect();
    let mut waiting = VecDeque::new();
    for at in 0..PODS {
        start_sandbox(&mut cgroups[at], &pods[at]);
        waiting.push_back((Instant::now(), at));
        while waiting.front().is_some_and(|(since, _)| since.elapsed() >= BEFORE_APP) {
            let (_, at) = waiting.pop_front().unwrap();
            start_app(&mut cgroups[at], &pods[at], &app);
        }
    }
    for (since, at) in waiting {
        eventually("a recorded kubelet would be ready", || (since.elapsed() >= BEFORE_APP).then_some(()));
        start_app(&mut cgroups[at], &pods[at], &app);
    }
    let pods = within(Duration::from_mins(1), "all have connected", || {
        let pods: Vec<_> = fixture.agent.status().pods.into_iter().filter(|pod| pod.enrolled).collect();
        (pods.iter().filter(|pod| seen(pod) > 0).count() == PODS).then_some(pods)
    });
    // That all are armed in time is a matter of how busy the machine is: it is told, not asserted. That none gets through
    // before is not.
    let late = pods.iter().filter(|pod| pod.counters["out_refused_unarmed"] > 0).count();
    println!("{late} of {PODS} connected before they were armed, and were refused");
    for pod in &pods {
        let of = |name: &str| pod.counters[name];
        assert_eq!((pod.state, seen(pod), pod.bypassed), (PodState::Armed, 1, 0), "{pod:?}");
        assert_eq!(of("out_refused_unarmed") + of("out_redirected") + of("out_direct"), 1, "{pod:?}");
    }
}
