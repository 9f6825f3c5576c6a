//! What the agent writes to the API server about its pods: once, only what changed, only where it may, and again where the
//! server would not have it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

use std::time::Duration;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use mesh_agent::{
    kubernetes::{
        Access,
        writeback::{self, Feed, PodStatus, Report, STATUS},
    },
    model::{Mode, ObjectName, PodState, PodUid, Reason},
};
use mesh_tests::api::{ApiServer, Effect, Fault, User};
use serde_json::{Value, json};

const NODE: &str = "node1";
const TOKEN: &str = "of-the-agent";
const ARMED: &str = r#"{"state":"armed","mode":"permissive","since":"2026-11-22T10:00:00Z"}"#;

/// An API server, and an agent that may do what the shipped role says.
struct Fixture {
    server: ApiServer,
    feed: Feed,
    _task: tokio::task::JoinHandle<()>,
}

impl Fixture {
    async fn new(prepare: impl FnOnce(&ApiServer)) -> Self {
        let server = ApiServer::start();
        server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
        permit(&server);
        prepare(&server);
        server.take_requests();
        let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(TOKEN)).unwrap();
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        let (feed, writes) = writeback::start(Client::try_from(config).unwrap(), NODE.to_owned());
        Self { server, feed, _task: tokio::spawn(writes) }
    }

    fn annotation(&self, pod: &str) -> Option<PodStatus> {
        let pod = self.server.get("v1", "Pod", "shop", pod)?;
        PodStatus::parse(pod["metadata"]["annotations"][STATUS].as_str()?)
    }

    async fn said(&self, pod: &str, state: PodState) -> PodStatus {
        eventually(&format!("{pod} is said to be {state:?}"), || {
            self.annotation(pod).filter(|said| said.state == state)
        })
        .await
    }

    /// Requests that write, and those that list.
    fn requests(&self, verb: &str, path: &str) -> usize {
        let all = self.server.requests();
        all.iter().filter(|request| request.verb == verb && request.path.contains(path)).count()
    }

    fn events(&self) -> Vec<Value> {
        let created = self.server.requests();
        created
            .iter()
            .filter(|request| request.verb == "create" && request.path.ends_with("/events"))
            .map(|_| Value::Null)
            .collect()
    }
}

/// The rules of the chart that concern writing, and the list at the start.
fn permit(server: &ApiServer) {
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/deploy/mesh-agent.yaml")).unwrap();
    let roles = manifest
        .split("\n---\n")
        .filter(|part| part.contains("kind: ClusterRole\n") && part.contains("name: mesh-agent\n"));
    roles.for_each(|role| server.put_yaml(role));
    server.put(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "test"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "mesh-agent"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "agent"}],
    }));
    server.add_user(TOKEN, User { name: "agent".to_owned(), ..User::default() });
}

fn uid(number: usize) -> String {
    format!("00000000-7e57-4000-8000-{number:012x}")
}

fn pod(name: &str, number: usize, annotation: Option<&str>) -> Value {
    let mut annotations = json!({"of-others": "kept"});
    if let Some(annotation) = annotation {
        annotations[STATUS] = annotation.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": uid(number), "annotations": annotations},
        "spec": {"nodeName": NODE, "containers": [{"name": "app", "image": "none:0"}]},
        "status": {"phase": "Running"},
    })
}

fn report(name: &str, number: usize, state: PodState) -> Report {
    Report {
        name: ObjectName::new("shop", name),
        uid: PodUid::parse(&uid(number)),
        enrolled: state != PodState::Off,
        state,
        mode: Mode::Permissive,
        problem: None,
    }
}

async fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let wait = async {
        loop {
            if let Some(found) = ask() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.unwrap_or_else(|_| panic!("not within 60 s: {what}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_says_what_became_of_it_and_nothing_is_written_twice() {
    let fixture = Fixture::new(|server| drop(server.put(pod("web", 1, None)))).await;
    fixture.feed.tell(vec![report("web", 1, PodState::Armed)]);
    let armed = fixture.said("web", PodState::Armed).await;
    assert_eq!((armed.mode, armed.reason), (Mode::Permissive, None));
    let object = fixture.server.get("v1", "Pod", "shop", "web").unwrap();
    assert_eq!(object["metadata"]["annotations"]["of-others"], "kept", "nothing else is touched");

    // The same again, and then something else: one patch for each that differs.
    fixture.feed.tell(vec![report("web", 1, PodState::Armed)]);
    fixture.feed.tell(vec![Report { mode: Mode::Strict, ..report("web", 1, PodState::Armed) }]);
    eventually("strict", || fixture.annotation("web").filter(|said| said.mode == Mode::Strict)).await;
    assert_eq!(fixture.requests("patch", "/pods/"), 2);

    // It leaves the mesh: so does the annotation.
    fixture.feed.tell(vec![report("web", 1, PodState::Off)]);
    eventually("no annotation", || fixture.annotation("web").is_none().then_some(())).await;
    assert_eq!(fixture.requests("patch", "/pods/"), 3);
    assert_eq!(fixture.requests("list", "/pods"), 1, "one list, at the start");
    assert!(fixture.events().is_empty(), "and no Event about what is well");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_agent_wrote_is_kept_or_removed() {
    let fixture = Fixture::new(|server| {
        server.put(pod("kept", 1, Some(ARMED)));
        server.put(pod("left", 2, Some(ARMED)));
        server.put(pod("other", 3, None));
    })
    .await;
    let all =
        [report("kept", 1, PodState::Armed), report("left", 2, PodState::Off), report("other", 3, PodState::Armed)];
    fixture.feed.tell(all.to_vec());
    fixture.said("other", PodState::Armed).await;
    eventually("removed", || fixture.annotation("left").is_none().then_some(())).await;
    assert_eq!(fixture.annotation("kept").unwrap().since, "2026-11-22T10:00:00Z", "not written again");
    assert_eq!(fixture.requests("patch", "/pods/"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_gone_or_another_one_is_left_alone() {
    let fixture = Fixture::new(|server| {
        // Of the same name as one that the agent still believes in.
        server.put(pod("replaced", 9, None));
        server.put(pod("last", 3, None));
    })
    .await;
    let all = [
        report("gone", 1, PodState::Armed),
        report("last", 3, PodState::Armed),
        report("replaced", 2, PodState::Armed),
    ];
    fixture.feed.tell(all.to_vec());
    eventually("three attempts", || (fixture.requests("patch", "/pods/") == 3).then_some(())).await;
    fixture.said("last", PodState::Armed).await;
    fixture.feed.tell([&all[..], &[report("none", 4, PodState::Off)]].concat());
    // Something that does need a write shows that the turn before is over.
    fixture.feed.tell(vec![report("last", 3, PodState::Off)]);
    eventually("the last one is over", || fixture.annotation("last").is_none().then_some(())).await;
    assert_eq!(fixture.annotation("replaced"), None);
    assert_eq!(fixture.requests("patch", "/pods/"), 4, "neither was tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_would_not_have_is_written_later() {
    let fixture = Fixture::new(|server| {
        server.put(pod("web", 1, None));
        server.fault(Fault::new("list", "/pods", Effect::Refuse { code: 503, retry_after: None }).times(1));
        server.fault(Fault::new("patch", "/pods/", Effect::Refuse { code: 500, retry_after: None }).times(1));
        server.fault(Fault::new("patch", "/pods/", Effect::Break).times(1));
    })
    .await;
    fixture.feed.tell(vec![report("web", 1, PodState::Armed)]);
    fixture.said("web", PodState::Armed).await;
    assert_eq!(fixture.requests("patch", "/pods/"), 3);
    assert_eq!(fixture.requests("list", "/pods"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn problems_become_events_and_a_flood_of_them_does_not() {
    let names: Vec<String> = (0..40).map(|number| format!("web-{number}")).collect();
    let fixture = Fixture::new(|server| {
        for (number, name) in names.iter().enumerate() {
            server.put(pod(name, number, None));
        }
    })
    .await;
    let problem = Some((Reason::HostNetwork, "it uses the node's network".to_owned()));
    let failed =
        |number: usize| Report { problem: problem.clone(), ..report(&names[number], number, PodState::Failed) };
    fixture.feed.tell(vec![failed(0)]);
    eventually("an Event", || (fixture.events().len() == 1).then_some(())).await;
    let said = fixture.said("web-0", PodState::Failed).await;
    assert_eq!(said.reason.as_deref(), Some("host_network"));

    fixture.feed.tell((0..40).map(failed).collect());
    for name in &names {
        fixture.said(name, PodState::Failed).await;
    }
    // A change afterwards shows that the turn is over.
    fixture.feed.tell(vec![report("web-0", 0, PodState::Armed)]);
    fixture.said("web-0", PodState::Armed).await;
    let count = fixture.events().len();
    assert!((2..=15).contains(&count), "{count} Events about 40 pods");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_of_the_server_is_known_as_soon_as_its_file_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let of = |name: &str| folder.path().join(name);
    let server = ApiServer::start();
    server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    permit(&server);
    server.put(pod("web", 1, None));
    std::fs::write(of("token"), TOKEN).unwrap();
    server.write_kubeconfig_with(&of("kubeconfig"), &of("token"), &of("ca.crt")).unwrap();
    let access = Access { kubeconfig: Some(of("kubeconfig")), context: None };
    let (feed, writes) = writeback::start(access.client().await.unwrap(), NODE.to_owned());
    let fixture = Fixture { server, feed, _task: tokio::spawn(writes) };
    fixture.feed.tell(vec![report("web", 1, PodState::Armed)]);
    fixture.said("web", PodState::Armed).await;

    fixture.server.rotate_authority();
    // No connection is left that was open before.
    fixture.server.stop();
    fixture.server.resume();
    fixture.feed.tell(vec![Report { mode: Mode::Strict, ..report("web", 1, PodState::Armed) }]);
    std::fs::write(of("ca.crt"), fixture.server.authority()).unwrap();
    eventually("strict", || fixture.annotation("web").filter(|said| said.mode == Mode::Strict)).await;
}
