//! Every exchange that was recorded from a real API server 1.36.2 is sent to the test server, and the answers are compared:
//! status, content type, and the whole body, versions included; uids, times and tokens only by nature.
//! `every_exchange_is_accounted_for` counts.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

mod recorded;

use std::{collections::BTreeSet, future::Future, time::Duration};

use kube::Client;
use mesh_tests::api::{ApiServer, Options};
use recorded::{Exchange, Names, client, compare, folder, send};
use serde_json::{Value, json};

/// What is sent at which state of the cluster. Each is a test below.
const READS: &[&str] = &[
    "anonymous-403",
    "discovery-api",
    "get-pod",
    "list-continue-bad-400",
    "list-endpointslices",
    "list-endpointslices-chunk-1",
    "list-endpointslices-chunk-2",
    "list-endpointslices-label-service",
    "list-namespaces",
    "list-namespaces-chunk-1",
    "list-namespaces-chunk-2",
    "list-namespaces-chunk-3",
    "list-nodes",
    "list-nodes-chunk-1",
    "list-nodes-chunk-2",
    "list-pods",
    "list-pods-chunk-1",
    "list-pods-chunk-2",
    "list-pods-chunk-3",
    "list-pods-empty",
    "list-pods-field-nodename",
    "list-pods-field-unknown-400",
    "list-pods-label-bad-400",
    "list-pods-label-eq",
    "list-pods-label-set",
    "list-pods-metadata-only",
    "list-pods-rv0",
    "list-services",
    "list-services-chunk-1",
    "list-services-chunk-2",
    "method-405",
    "path-404",
    "readyz",
    "unauthorized-401",
    "version",
    "watch-endpointslices-initial-events-empty",
    "watch-future-rv",
    "watch-initial-events-without-match-422",
    "watch-pods-initial-events",
    "watch-pods-initial-events-rv0",
    "watch-pods-no-rv",
];

/// Each at the version that the cluster had before it, where that matters.
const WRITES: &[(u64, &str)] = &[
    (586, "patch-namespace-annotation"),
    (0, "patch-namespace-annotation-noop"),
    (0, "patch-namespace-annotation-remove"),
    (0, "watch-namespace-annotation"),
    (590, "apply-create"),
    (0, "apply-noop"),
    (0, "apply-conflict-409"),
    (0, "apply-no-manager-422"),
    (0, "apply-force"),
    (0, "apply-shared-same-value"),
    (0, "apply-drop-field"),
    (0, "replace-ok"),
    (0, "replace-stale-409"),
    (596, "replace-no-rv"),
    (0, "delete-precondition-409"),
    (0, "create-exists-409"),
    (0, "strict-unknown-field-400"),
    (0, "bad-json-400"),
    (0, "bad-media-415"),
    (0, "create-no-namespace-404"),
    (0, "get-404"),
    (0, "delete-404"),
    (0, "delete-ok"),
    (611, "lease-create"),
    (0, "lease-create-exists-409"),
    (0, "lease-renew"),
    (0, "lease-conflict-409"),
    (629, "list-future-rv-504"),
    (834, "pod-status-patch"),
];

const CUSTOM: &[(u64, &str)] = &[
    (778, "cr-list-empty"),
    (0, "cr-create-default-filled"),
    (0, "cr-status-patch-does-not-touch-spec"),
    (0, "cr-main-patch-does-not-touch-status"),
    (0, "cr-unknown-field-pruned"),
    (0, "cr-invalid-cel-422"),
    (0, "cr-strategic-patch-415"),
];
const ROUTES: &[(u64, &str)] = &[
    (830, "httproute-create"),
    (0, "httproute-invalid-schema-422"),
    (0, "httproute-invalid-cel-422"),
    (0, "httproute-invalid-cel-path-422"),
    (0, "status-merge-patch"),
    (0, "status-stale-rv-409"),
    (0, "status-invalid-422"),
    (0, "status-apply"),
    (0, "status-json-patch"),
    (0, "status-json-patch-test-failed-422"),
    (0, "watch-httproute-status"),
];
const DEFINITION: &[&str] =
    &["crd-create", "crd-list-before-established", "crd-get-established", "crd-watch-established"];

const IDENTITY: &[&str] = &[
    "rbac-denied-403",
    "rbac-denied-patch-403",
    "rbac-denied-watch-403",
    "selfsubjectreview",
    "ssar-admin",
    "ssar-allowed",
    "ssar-denied",
    "subjectaccessreview",
    "tokenrequest-pod-404",
    "tokenrequest-pod-bound",
    "tokenrequest-too-short-422",
    "tokenrequest-unbound-default-audience",
    "tokenrequest-wrong-uid-409",
    "tokenreview-empty",
    "tokenreview-expired",
    "tokenreview-garbage",
    "tokenreview-no-audiences",
    "tokenreview-tampered-claims",
    "tokenreview-tampered-signature",
    "tokenreview-two-audiences",
    "tokenreview-valid",
    "tokenreview-wrong-audience",
];
const PASSING: &[&str] = &["tokenreview-before-pod-delete", "tokenreview-pod-just-deleted", "tokenreview-pod-deleted"];

const EVENTS: &[(u64, &str)] = &[(827, "event-create"), (0, "event-read-as-core-v1"), (0, "event-invalid-422")];
const AGED: &[&str] = &[
    "list-rv-notolderthan",
    "list-continue-expired-410",
    "list-continue-inconsistent",
    "list-exact-rv-compacted-410",
    "watch-too-old-410",
    "watch-too-old-410-namespaces",
];
const LIVES: &[&str] = &[
    "pod-delete-graceful",
    "watch-pod-lifecycle",
    "watch-endpointslice-lifecycle",
    "watch-job-pod",
    "job-create",
    "watch-job",
    "watch-label-selector-leave",
];
const BOOKMARKS: &[&str] = &["watch-pods-bookmark", "watch-pods-timeout"];
const DISCOVERY: &[&str] =
    &["discovery-api-v1", "discovery-api-aggregated", "discovery-apis", "discovery-apis-discovery-v1"];

/// A server, its clients, and what differs.
struct Replay {
    server: ApiServer,
    admin: Client,
    names: Names,
    problems: Vec<String>,
}

impl Replay {
    async fn start(options: Options) -> Self {
        let server = ApiServer::with(options);
        let admin = client(&server, server.admin()).await;
        Self { server, admin, names: Names::default(), problems: Vec::new() }
    }

    /// With the objects of the cluster that most exchanges are of.
    async fn cluster() -> Self {
        let replay = Self::start(Options::default()).await;
        for list in ["list-namespaces", "list-nodes", "list-pods", "list-services", "list-endpointslices"] {
            replay.load(&Exchange::read(list).objects());
        }
        replay
    }

    fn load(&self, objects: &[Value]) {
        for object in objects {
            self.server.load(object);
        }
    }

    async fn at(&mut self, version: u64, name: &str) {
        self.server.advance_to(version);
        self.ask(name).await;
    }

    async fn ask(&mut self, name: &str) {
        let exchange = Exchange::read(name);
        let client = match exchange.request["as"].as_str() {
            None => self.admin.clone(),
            Some(who) => self.someone(who).await,
        };
        self.ask_as(&client, exchange).await;
    }

    async fn ask_as(&mut self, client: &Client, mut exchange: Exchange) {
        // Of watches that the server ends, only how long they last is not as recorded.
        let ends = exchange.request["query"].get("timeoutSeconds").is_some();
        if ends {
            exchange.request["query"]["timeoutSeconds"] = "1".into();
        }
        let error = exchange.response["lines"][0]["type"] == "ERROR";
        let lines = (!ends && !error).then(|| exchange.lines());
        let answer = tokio::time::timeout(Duration::from_mins(1), send(client, &exchange, &self.names, lines)).await;
        match answer {
            Ok(answer) => {
                let found = compare(&exchange, &answer, &mut self.names);
                self.problems.extend(found.into_iter().map(|problem| format!("{}: {problem}", exchange.name)));
            }
            Err(_) => self.problems.push(format!("{}: no answer, or not all of it", exchange.name)),
        }
    }

    async fn someone(&self, who: &str) -> Client {
        let token = match who {
            "no credentials (anonymous auth is on)" => String::new(),
            "a bearer token that does not verify" => "nonsense".to_owned(),
            "Bearer token of system:serviceaccount:kube-system:agent" => {
                self.server.token("kube-system", "agent", Some("agent-cjlnh"), &[], Duration::from_mins(10))
            }
            other => panic!("who is {other}?"),
        };
        client(&self.server, &token).await
    }

    fn end(self) {
        assert!(self.problems.is_empty(), "{} differences:\n{}", self.problems.len(), self.problems.join("\n"));
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

#[test]
fn reads() {
    run(async {
        let mut replay = Replay::cluster().await;
        for name in READS {
            replay.ask(name).await;
        }
        replay.end();
    });
}

#[test]
fn writes() {
    run(async {
        let mut replay = Replay::cluster().await;
        for (version, name) in WRITES {
            replay.at(*version, name).await;
        }
        replay.end();
    });
}

#[test]
fn custom_resources() {
    run(async {
        let mut replay = Replay::cluster().await;
        replay.at(772, "crd-create").await;
        replay.ask("crd-list-before-established").await;
        // The version after the first change of its status is that of another object in the recording.
        replay.server.advance_to(775);
        replay.ask("crd-watch-established").await;
        replay.ask("crd-get-established").await;
        served(&replay.admin, "/apis/fixture.example.com/v1/meshes").await;
        for (version, name) in CUSTOM {
            replay.at(*version, name).await;
        }
        replay.server.put_yaml(include_str!("../fixtures/gateway-api-v1.6.1/httproutes.yaml"));
        served(&replay.admin, "/apis/gateway.networking.k8s.io/v1/httproutes").await;
        for (version, name) in ROUTES {
            replay.at(*version, name).await;
        }
        replay.end();
    });
}

/// Waits until a path answers.
async fn served(client: &Client, path: &str) {
    let ask = || client.request_text(http::Request::get(path).body(Vec::new()).expect("a request"));
    let wait = async {
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), wait).await.expect("the path is served");
}

/// What the agent of the recorded cluster may do, and its account.
const AGENT: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: agent}
rules: [{apiGroups: [''], resources: [pods, services, namespaces], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: agent}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: agent}
subjects: [{kind: ServiceAccount, name: agent, namespace: kube-system}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: agent, namespace: kube-system, uid: dacab483-a458-49d1-879f-704cdd0e785f}
";

#[test]
fn identity() {
    run(async {
        let mut replay = Replay::cluster().await;
        replay.server.put_yaml(AGENT);
        let hour = Duration::from_hours(1);
        let good = replay.server.token("kube-system", "agent", Some("agent-cjlnh"), &["mesh-ca"], hour);
        let expired = replay.server.token("kube-system", "agent", Some("agent-cjlnh"), &["mesh-ca"], Duration::ZERO);
        let other = replay.server.token("kube-system", "agent", None, &["other"], hour);
        let parts = |token: &str| token.split('.').map(str::to_owned).collect::<Vec<_>>();
        let (ours, theirs) = (parts(&good), parts(&other));
        for (recorded, here) in [
            ("TOKEN-PROJECTED-MESH-CA-WITH-CLAIMS-CHANGED", format!("{}.{}.{}", ours[0], theirs[1], ours[2])),
            ("TOKEN-PROJECTED-MESH-CA-WITH-SIGNATURE-CHANGED", format!("{}.{}.{}", ours[0], ours[1], theirs[2])),
            ("TOKEN-EXPIRED", expired),
            ("TOKEN-PROJECTED-MESH-CA", good),
        ] {
            replay.names.0.insert(format!("\"{recorded}\""), format!("\"{here}\""));
        }
        // A token ends with its second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        for name in IDENTITY {
            replay.ask(name).await;
        }
        replay.end();
    });
}

#[test]
fn a_token_outlives_its_pod_by_the_cache_only() {
    run(async {
        let mut replay = Replay::start(Options::default()).await;
        for object in [
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}}),
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node2"}}),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "demo"}}),
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gone", "namespace": "demo"},
                "spec": {"serviceAccountName": "web", "nodeName": "node2"},
            }),
        ] {
            replay.server.put(object);
        }
        let token = replay.server.token("demo", "web", Some("gone"), &["mesh-ca"], Duration::from_hours(1));
        replay.names.0.insert("TOKEN-OF-A-POD".to_owned(), token);
        replay.ask(PASSING[0]).await;
        assert!(replay.server.remove("v1", "Pod", "demo", "gone"));
        replay.ask(PASSING[1]).await;
        replay.server.forget_tokens();
        replay.ask(PASSING[2]).await;
        replay.end();
    });
}

#[test]
fn events() {
    run(async {
        let mut replay = Replay::cluster().await;
        for (version, name) in EVENTS {
            replay.at(*version, name).await;
        }
        replay.end();
    });
}

#[test]
fn what_was_compacted_is_gone() {
    run(async {
        let mut replay = Replay::start(Options::default()).await;
        replay.server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}}));
        replay.server.advance_to(902);
        let recorded =
            ["list-rv-notolderthan", "list-continue-inconsistent"].map(|name| Exchange::read(name).objects());
        replay.load(&recorded.concat());
        for name in ["d", "e", "f", "g", "h"] {
            let metadata = json!({"name": name, "namespace": "demo"});
            replay.load(&[json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": {}})]);
        }
        replay.server.compact();
        replay.server.advance_to(913);
        for name in AGED {
            replay.ask(name).await;
        }
        replay.end();
    });
}

#[test]
fn lives_of_pods() {
    run(async {
        let mut replay = Replay::cluster().await;
        // Labels come and go; the recording has the pod with its label, and without.
        let labels = Exchange::read("watch-pods-bookmark").objects();
        replay.load(&labels);
        replay.ask("watch-label-selector-leave").await;
        let mut lines: Vec<_> = ["watch-pod-lifecycle", "watch-endpointslice-lifecycle", "watch-job-pod"]
            .into_iter()
            .flat_map(|name| Exchange::read(name).objects())
            .collect();
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
        // The slice was there before it is first seen changed.
        let mut slice = lines.iter().find(|object| object["kind"] == "EndpointSlice").unwrap().clone();
        slice["metadata"]["resourceVersion"] = "839".into();
        lines.push(slice);
        lines.sort_by_key(version);
        for object in &lines {
            match version(object) {
                873 => replay.at(872, "pod-delete-graceful").await,
                887 => {
                    replay.server.advance_to(886);
                    assert!(replay.server.remove("v1", "Pod", "demo", "life"));
                }
                _ => replay.load(std::slice::from_ref(object)),
            }
        }
        for name in ["watch-pod-lifecycle", "watch-endpointslice-lifecycle", "watch-job-pod"] {
            replay.ask(name).await;
        }
        replay.end();
    });
}

#[test]
fn bookmarks() {
    run(async {
        let options = Options { bookmarks: Duration::from_millis(300), ..Options::default() };
        let mut replay = Replay::start(options).await;
        replay.load(&Exchange::read("list-pods").objects());
        replay.server.advance_to(579);
        let idle = Exchange::read("watch-pods-bookmark");
        let changes = idle.objects();
        let moves = async {
            for object in &changes {
                replay.server.load(object);
            }
            // One bookmark at 646, one at 702: the version moves on between them.
            for version in [646, 702] {
                replay.server.advance_to(version);
                tokio::time::sleep(Duration::from_millis(450)).await;
            }
        };
        let (answer, ()) = tokio::join!(send(&replay.admin, &idle, &replay.names, Some(4)), moves);
        let found = compare(&idle, &answer, &mut replay.names);
        replay.problems.extend(found);
        // One comes before the end of a watch with a timeout.
        let mut timed = Exchange::read("watch-pods-timeout");
        timed.request["query"]["timeoutSeconds"] = "3".into();
        replay.server.advance_to(964);
        let answer = send(&replay.admin, &timed, &replay.names, None).await;
        let found = compare(&timed, &answer, &mut replay.names);
        replay.problems.extend(found);
        replay.end();
    });
}

/// Groups and resources of the recorded server that this one does not have: no agent asks for them. What is served must be
/// as recorded, and no resource may be served that the real server has not.
#[test]
fn discovery() {
    run(async {
        let replay = Replay::cluster().await;
        for name in DISCOVERY {
            let exchange = Exchange::read(name);
            let answer = send(&replay.admin, &exchange, &Names::default(), None).await;
            let recorded = &exchange.response["body"];
            let (all, here, key) = match *name {
                "discovery-apis" => (&recorded["groups"], &answer.body["groups"], "name"),
                "discovery-api-aggregated" => {
                    let path = "/items/0/versions/0/resources";
                    (recorded.pointer(path).unwrap(), answer.body.pointer(path).unwrap(), "resource")
                }
                _ => (&recorded["resources"], &answer.body["resources"], "name"),
            };
            let mut pruned = recorded.clone();
            let known: BTreeSet<_> = here.as_array().unwrap().iter().map(|one| one[key].as_str().unwrap()).collect();
            let kept: Vec<_> = all
                .as_array()
                .unwrap()
                .iter()
                .filter(|one| known.contains(one[key].as_str().unwrap()))
                .map(|one| without_foreign_subresources(one, here, key))
                .collect();
            match *name {
                "discovery-apis" => pruned["groups"] = kept.into(),
                "discovery-api-aggregated" => {
                    *pruned.pointer_mut("/items/0/versions/0/resources").unwrap() = kept.into();
                }
                _ => pruned["resources"] = kept.into(),
            }
            let mut exchange = exchange.clone();
            exchange.response["body"] = pruned;
            assert_eq!(compare(&exchange, &answer, &mut Names::default()), Vec::<String>::new(), "{name}");
        }
    });
}

/// Subresources such as pods/exec are not served either.
fn without_foreign_subresources(recorded: &Value, here: &Value, key: &str) -> Value {
    let mut recorded = recorded.clone();
    let ours = here.as_array().unwrap().iter().find(|one| one[key] == recorded[key]).unwrap();
    let names: Vec<_> = ours["subresources"].as_array().into_iter().flatten().map(|sub| &sub["subresource"]).collect();
    if let Some(subresources) = recorded.get_mut("subresources").and_then(Value::as_array_mut) {
        subresources.retain(|sub| names.contains(&&sub["subresource"]));
        if subresources.is_empty() {
            recorded.as_object_mut().unwrap().remove("subresources");
        }
    }
    recorded
}

/// A Job is stored; what its controller makes of it comes from the recording, since none runs here.
#[test]
fn jobs() {
    run(async {
        let mut replay = Replay::cluster().await;
        replay.at(889, "job-create").await;
        for line in Exchange::read("watch-job").objects().iter().skip(1) {
            replay.load(&[replay.names.here(line)]);
        }
        replay.ask("watch-job").await;
        replay.end();
    });
}

#[test]
fn what_is_not_done_is_refused_loudly() {
    run(async {
        let replay = Replay::cluster().await;
        let mut exchange = Exchange::read("job-create");
        for (plural, kind) in [("cronjobs", "CronJob"), ("jobs/once/scale", "Job")] {
            exchange.request["path"] = format!("/apis/batch/v1/namespaces/demo/{plural}").into();
            exchange.request["body"]["kind"] = kind.into();
            let answer = send(&replay.admin, &exchange, &Names::default(), None).await;
            let told = (answer.status, answer.body["reason"].as_str());
            assert_eq!(told, (501, Some("NotImplemented")), "{plural}: {}", answer.body);
        }
    });
}

#[test]
fn every_exchange_is_accounted_for() {
    let timed = [WRITES, CUSTOM, ROUTES, EVENTS].into_iter().flatten().map(|(_, name)| *name);
    let plain =
        [READS, DEFINITION, IDENTITY, PASSING, AGED, LIVES, BOOKMARKS, DISCOVERY].into_iter().flatten().copied();
    let replayed: Vec<_> = timed.chain(plain).collect();
    let all: BTreeSet<_> = replayed.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(all.len(), replayed.len(), "each once");
    let files: BTreeSet<_> = std::fs::read_dir(folder())
        .expect("the recordings")
        .filter_map(|entry| {
            entry.expect("an entry").file_name().into_string().ok()?.strip_suffix(".json").map(str::to_owned)
        })
        .collect();
    assert_eq!(all, files);
    println!("{} exchanges, all replayed", files.len());
}
