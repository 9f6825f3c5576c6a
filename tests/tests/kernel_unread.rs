//! Annotations that are bad already when the agent starts: what an earlier agent armed stays armed, as it was.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::sync::Arc;

use mesh_agent::model::{Mode, PodState, Problem, Reason};
use mesh_tests::{
    Agent, App, Node, Pod, agent::kernel_tier, eventually, manifest, node::NAMESPACE, require, socket::round_trip,
};

const PORT: u16 = 8080;

/// A node with a strict pod, a permissive one and a stranger, of which the agent does not know. Fields are dropped in this
/// order.
struct Fixture {
    _apps: [App; 2],
    strict: Arc<Pod>,
    permissive: Arc<Pod>,
    stranger: Arc<Pod>,
    node: Node,
}

impl Fixture {
    fn new() -> Self {
        let node = Node::new();
        let (strict, permissive, stranger) = (node.pod("strict"), node.pod("permissive"), node.pod("stranger"));
        let apps = [&strict, &permissive].map(|pod| App::echo(pod, PORT));
        Self { _apps: apps, strict, permissive, stranger, node }
    }

    fn write(&self, namespace: manifest::Annotations<'_>, strict: manifest::Annotations<'_>) {
        self.node.write("pods.yaml", &self.manifests(namespace, strict));
    }

    fn manifests(&self, namespace: manifest::Annotations<'_>, strict: manifest::Annotations<'_>) -> String {
        manifest::namespace(NAMESPACE, namespace) + &self.strict.manifest(strict) + &self.permissive.manifest(&[])
    }

    /// Starts an agent through which everything goes.
    fn start(&self) -> Agent {
        self.node.start_with(&["--direct=off"])
    }

    /// With an agent: who is strict speaks to nobody in plaintext, who is permissive does; what they open is captured.
    fn assert_captured(&self, agent: &Agent) {
        for (pod, mode) in [("strict", Mode::Strict), ("permissive", Mode::Permissive)] {
            let pod = agent.pod(pod);
            assert_eq!((pod.state, pod.mode, pod.enrolled), (PodState::Armed, mode, true), "{}", pod.name);
        }
        let counter = |pod: &str, counter| agent.settled(pod).counters[counter];
        let before = [counter("strict", "in_redirected"), counter("permissive", "in_redirected")];
        round_trip(&self.stranger, self.strict.at(PORT)).unwrap_err();
        round_trip(&self.stranger, self.permissive.at(PORT)).unwrap();
        let after = [counter("strict", "in_redirected"), counter("permissive", "in_redirected")];
        assert_eq!(after, before.map(|before| before + 1));
        let before = counter("strict", "out_redirected");
        round_trip(&self.strict, self.permissive.at(PORT)).unwrap();
        assert_eq!(counter("strict", "out_redirected"), before + 1);
    }

    /// Without one.
    fn assert_open_and_closed(&self) {
        round_trip(&self.stranger, self.strict.at(PORT)).unwrap_err();
        round_trip(&self.strict, self.permissive.at(PORT)).unwrap_err();
        round_trip(&self.stranger, self.permissive.at(PORT)).unwrap();
    }
}

fn problems(agent: &Agent, reason: Reason) -> Vec<Problem> {
    agent.status().problems.into_iter().filter(|problem| problem.reason == reason).collect()
}

#[test]
fn pods_of_a_namespace_that_cannot_be_read_stay_as_they_were() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    fixture.write(&[("mesh", "enabled")], &[("mode", "strict")]);
    let agent = fixture.start();
    fixture.assert_captured(&agent);
    agent.kill();

    // Neither the namespace's toggle nor the pod's mode can be read, nor is there anybody who knew them.
    fixture.write(&[("mesh", "enbaled")], &[("mode", "stritc")]);
    fixture.assert_open_and_closed();
    let agent = fixture.start();
    fixture.assert_captured(&agent);
    let told = problems(&agent, Reason::UnknownAnnotation);
    let [namespace, pod] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((namespace.object.as_str(), pod.object.as_str()), ("Namespace shop", "Pod shop/strict"));
    assert!(namespace.field.contains("mesh-agent.io/mesh") && pod.field.contains("mesh-agent.io/mode"), "{told:?}");
    assert!(told.iter().all(|problem| !problem.remedy.is_empty() && problem.location.line > 0), "{told:?}");
    let told = problems(&agent, Reason::SettingsUnread);
    assert_eq!(told.len(), 2, "one for each pod: {told:?}");
    assert!(told.iter().all(|problem| problem.message.contains("stays in the mesh as it was")), "{told:?}");
    assert_eq!(agent.run(&["status"]).status.code(), Some(1));

    // As often as it is started.
    agent.kill();
    let agent = fixture.start();
    fixture.assert_captured(&agent);

    // Only who says so in words that can be read is released.
    fixture.write(&[("mesh", "disabled")], &[("mode", "strict")]);
    for pod in ["strict", "permissive"] {
        agent.await_state(pod, PodState::Off);
    }
    round_trip(&fixture.stranger, fixture.strict.at(PORT)).unwrap();
    assert_eq!(problems(&agent, Reason::SettingsUnread), []);
}

#[test]
fn a_strict_namespace_that_cannot_be_read_stays_strict_and_its_exclusions_stay() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    let excluded = [("exclude-inbound-ports", "9090"), ("exclude-outbound-cidrs", "10.99.0.0/16")];
    let good: Vec<_> = [("mesh", "enabled"), ("mode", "strict")].into_iter().chain(excluded).collect();
    fixture.write(&good, &[]);
    let agent = fixture.start();
    assert_eq!(agent.pod("permissive").mode, Mode::Strict, "here it is, too");
    agent.kill();

    // The words are all gone but one, which is wrong.
    fixture.write(&[("mehs", "enabled")], &[]);
    let agent = fixture.start();
    for (name, pod) in [("strict", &fixture.strict), ("permissive", &fixture.permissive)] {
        let status = agent.pod(name);
        assert_eq!((status.state, status.mode), (PodState::Armed, Mode::Strict));
        round_trip(&fixture.stranger, pod.at(PORT)).unwrap_err();
        let _app = App::echo(pod, 9090);
        round_trip(&fixture.stranger, pod.at(9090)).expect("it is excluded still");
        assert_eq!(agent.settled(name).counters["in_excluded"], 1);
    }
    // What can be read is obeyed, beside what cannot.
    fixture.write(&[("mesh", "enabled"), ("mode", "permissive"), ("mehs", "enabled")], &[]);
    eventually("its mode is another", || (agent.pod("strict").mode == Mode::Permissive).then_some(()));
    round_trip(&fixture.stranger, fixture.strict.at(PORT)).unwrap();
}

#[test]
fn a_pod_that_never_was_in_the_mesh_is_closed_if_it_is_to_be_strict_and_told_in_any_case() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    fixture.write(&[("mesh", "perhaps")], &[("mode", "strict")]);
    let agent = fixture.start();
    agent.await_state("strict", PodState::Armed);
    round_trip(&fixture.stranger, fixture.strict.at(PORT)).unwrap_err();
    assert_eq!(agent.pod("permissive").state, PodState::Off);
    round_trip(&fixture.stranger, fixture.permissive.at(PORT)).unwrap();
    let told = problems(&agent, Reason::SettingsUnread);
    let of = |name: &str| told.iter().find(|problem| problem.object == format!("Pod shop/{name}")).unwrap();
    assert!(of("strict").message.contains("puts it into the mesh, mode strict"), "{told:?}");
    assert!(of("permissive").message.contains("was not in the mesh"), "{told:?}");
    assert!(!agent.status().healthy);
    fixture.write(&[("mesh", "enabled")], &[("mode", "strict")]);
    agent.await_state("permissive", PodState::Armed);
    fixture.assert_captured(&agent);
}

#[test]
fn a_file_that_cannot_be_read_when_the_agent_starts_releases_nobody() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    let (namespace, strict) = ([("mesh", "enabled")], [("mode", "strict")]);
    fixture.write(&namespace, &strict);
    let agent = fixture.start();
    fixture.assert_captured(&agent);
    agent.kill();
    fixture.node.write("pods.yaml", &(fixture.manifests(&namespace, &strict) + "---\napiVersion: [v1\n"));
    let agent = fixture.start();
    assert_eq!(problems(&agent, Reason::BadYaml).len(), 1);
    assert_eq!(problems(&agent, Reason::SourceIncomplete).len(), 1, "and what comes of it");
    // Nobody knows which pods they are: they are as without an agent.
    fixture.assert_open_and_closed();
    fixture.write(&namespace, &strict);
    agent.await_state("strict", PodState::Armed);
    fixture.assert_captured(&agent);
    assert_eq!(problems(&agent, Reason::SourceIncomplete), []);
    // Who is not in the folder any more by then is released.
    agent.kill();
    fixture.node.write("pods.yaml", "apiVersion: [v1\n");
    let agent = fixture.start();
    fixture.assert_open_and_closed();
    fixture.node.remove("pods.yaml");
    eventually("the pods are released", || round_trip(&fixture.stranger, fixture.strict.at(PORT)).ok());
    drop(agent);
}

#[test]
fn an_agent_that_takes_over_knows_no_less_than_the_one_before() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let fixture = Fixture::new();
    let (namespace, strict) = ([("mesh", "enabled")], [("mode", "strict")]);
    fixture.write(&namespace, &strict);
    let first = fixture.start();
    fixture.assert_captured(&first);
    // What the first one has read, the second one cannot: it waits until it can.
    let reads = || first.log().matches("read manifests").count();
    fixture.node.write("pods.yaml", "apiVersion: [v1\n");
    eventually("the first one notices", || (problems(&first, Reason::BadYaml).len() == 1).then_some(()));
    let before = reads();
    let mut second = Agent::spawn(&fixture.node, &["--direct=off"]);
    eventually("the second one has read it", || (reads() > before).then_some(()));
    fixture.assert_captured(&first);
    assert!(first.is_in_charge());
    fixture.write(&namespace, &strict);
    second.await_ready();
    fixture.assert_captured(&second);
    drop(first);

    // Of an annotation that cannot be read, the kernel knows enough.
    fixture.write(&[("mesh", "enbaled")], &[("mode", "stritc")]);
    eventually("the second one notices", || (problems(&second, Reason::UnknownAnnotation).len() == 2).then_some(()));
    let mut third = Agent::spawn(&fixture.node, &["--direct=off"]);
    third.await_ready();
    fixture.assert_captured(&third);
    third.assert_all_accounted();
}
