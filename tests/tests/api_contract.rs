//! What the agent relies on of an API server, checked through the client library that it uses. The same tests run on the
//! test server and, with `MESH_TEST_KUBECONFIG`, on a real cluster: where both pass, the one may stand for the other.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

mod target;

use std::{collections::BTreeSet, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenReview},
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount},
        events::v1::Event,
        rbac::v1::{Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
        WatchEvent, WatchParams,
    },
    runtime::watcher,
};
use serde_json::{Value, json};
use target::{Target, code, contract, eventually, object};

fn post() -> PostParams {
    PostParams::default()
}

fn map(name: &str, data: &Value) -> ConfigMap {
    object(json!({"metadata": {"name": name}, "data": data}))
}

#[test]
fn writes_are_optimistic() {
    contract("optimistic", async |target, namespace| {
        let maps = Api::<ConfigMap>::namespaced(target.client.clone(), &namespace);
        let first = maps.create(&post(), &map("a", &json!({"k": "1"}))).await.unwrap();
        assert_eq!(code(maps.create(&post(), &map("a", &json!({}))).await), (409, "AlreadyExists".to_owned()));
        let mut second = first.clone();
        second.data = Some([("k".to_owned(), "2".to_owned())].into());
        let second = maps.replace("a", &post(), &second).await.unwrap();
        assert_ne!(first.resource_version(), second.resource_version());
        assert_eq!(code(maps.replace("a", &post(), &first).await), (409, "Conflict".to_owned()));
        let stale = json!({"metadata": {"resourceVersion": first.resource_version()}, "data": {"k": "3"}});
        let stale = maps.patch("a", &PatchParams::default(), &Patch::Merge(stale)).await;
        assert_eq!(code(stale), (409, "Conflict".to_owned()));
        assert_eq!(code(maps.get("b").await), (404, "NotFound".to_owned()));
        maps.delete("a", &DeleteParams::default()).await.unwrap();
        assert_eq!(code(maps.get("a").await), (404, "NotFound".to_owned()));
    });
}

#[test]
fn a_patch_that_changes_nothing_is_no_write() {
    contract("noop", async |target, namespace| {
        let namespaces = Api::<Namespace>::all(target.client.clone());
        let patch = |mode: Value| Patch::Merge(json!({"metadata": {"annotations": {"mesh-agent.io/mesh": mode}}}));
        let set =
            || async { namespaces.patch(&namespace, &PatchParams::default(), &patch(json!("on"))).await.unwrap() };
        let (first, again) = (set().await, set().await);
        assert_eq!(first.annotations()["mesh-agent.io/mesh"], "on");
        assert_eq!(first.resource_version(), again.resource_version());
        let gone = namespaces.patch(&namespace, &PatchParams::default(), &patch(Value::Null)).await.unwrap();
        assert!(!gone.annotations().contains_key("mesh-agent.io/mesh"));
    });
}

#[test]
fn appliers_own_what_they_name() {
    contract("apply", async |target, namespace| {
        let maps = Api::<ConfigMap>::namespaced(target.client.clone(), &namespace);
        let apply = async |manager: &str, force: bool, data: Value| {
            let config = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data,
            });
            let params = PatchParams { force, ..PatchParams::apply(manager) };
            maps.patch("a", &params, &Patch::Apply(config)).await
        };
        apply("one", false, json!({"a": "1", "shared": "s"})).await.unwrap();
        let both = apply("two", false, json!({"b": "1", "shared": "s"})).await.unwrap();
        assert_eq!(both.data.unwrap().len(), 3, "disjoint owners do not disturb each other");
        assert_eq!(code(apply("two", false, json!({"a": "2"})).await), (409, "Conflict".to_owned()));
        let forced = apply("two", true, json!({"a": "2"})).await.unwrap();
        // b was only theirs; shared is the other's too.
        let data = forced.data.unwrap();
        assert_eq!(data.keys().collect::<Vec<_>>(), ["a", "shared"]);
        assert_eq!(data["a"], "2");
        let version = forced.metadata.resource_version;
        assert_eq!(apply("two", true, json!({"a": "2"})).await.unwrap().metadata.resource_version, version);
    });
}

/// Follows a watcher until it has seen `wanted` names after the first list.
async fn names(client: Client, namespace: &str, config: watcher::Config, wanted: usize) -> BTreeSet<String> {
    let mut stream = pin!(watcher(Api::<ConfigMap>::namespaced(client, namespace), config));
    let mut seen = BTreeSet::new();
    let mut listed = false;
    let read = async {
        while !listed || seen.len() < wanted {
            match stream.next().await.unwrap().unwrap() {
                watcher::Event::Init => seen.clear(),
                watcher::Event::InitApply(map) | watcher::Event::Apply(map) => _ = seen.insert(map.name_any()),
                watcher::Event::Delete(map) => _ = seen.remove(&map.name_any()),
                watcher::Event::InitDone => listed = true,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("the watch sees all");
    seen
}

#[test]
fn watchers_see_all_by_streaming_lists_and_by_pages() {
    contract("watcher", async |target, namespace| {
        let maps = Api::<ConfigMap>::namespaced(target.client.clone(), &namespace);
        let label = ListParams::default().labels("mine=yes");
        for number in 0..5 {
            let map = json!({"metadata": {"name": format!("m{number}"), "labels": {"mine": "yes"}}});
            maps.create(&post(), &object(map)).await.unwrap();
        }
        for config in [watcher::Config::default().streaming_lists(), watcher::Config::default().page_size(2)] {
            let seen = names(target.client.clone(), &namespace, config.labels("mine=yes"), 5).await;
            assert_eq!(seen.len(), 5);
        }
        let page = maps.list(&label.clone().limit(2)).await.unwrap();
        let token = page.metadata.continue_.clone().expect("more pages");
        let rest = maps.list(&label.clone().limit(10).continue_token(&token)).await.unwrap();
        assert_eq!((page.items.len(), rest.items.len()), (2, 3));
        assert_eq!(page.metadata.resource_version, rest.metadata.resource_version, "pages are of one version");
    });
}

/// The next event of a watch.
async fn next<K>(stream: &mut (impl StreamExt<Item = kube::Result<WatchEvent<K>>> + Unpin)) -> WatchEvent<K> {
    let event = tokio::time::timeout(Duration::from_secs(20), stream.next()).await.expect("an event");
    event.expect("the stream goes on").expect("an event")
}

#[test]
fn a_selector_makes_changes_of_labels_come_and_go() {
    contract("selector", async |target, namespace| {
        let maps = Api::<ConfigMap>::namespaced(target.client.clone(), &namespace);
        let map = maps.create(&post(), &map("a", &json!({}))).await.unwrap();
        let version = map.resource_version().unwrap();
        let mut stream = pin!(maps.watch(&WatchParams::default().labels("in=yes"), &version).await.unwrap());
        let label = |value: Value| Patch::Merge(json!({"metadata": {"labels": {"in": value}}}));
        for value in [json!("yes"), Value::Null] {
            maps.patch("a", &PatchParams::default(), &label(value)).await.unwrap();
        }
        assert!(matches!(next(&mut stream).await, WatchEvent::Added(_)));
        assert!(matches!(next(&mut stream).await, WatchEvent::Deleted(_)));
        let fields = ListParams::default().fields("metadata.name=a");
        assert_eq!(maps.list(&fields).await.unwrap().items.len(), 1);
        assert_eq!(code(maps.list(&ListParams::default().fields("data.k=1")).await).0, 400);
        assert_eq!(code(maps.list(&ListParams::default().labels("a in (")).await).0, 400);
    });
}

#[test]
fn versions_of_the_future_are_not_served() {
    contract("future", async |target, namespace| {
        let path = format!("/api/v1/namespaces/{namespace}/configmaps?resourceVersion=999999999999");
        let request = || http::Request::get(&path).body(Vec::new()).unwrap();
        assert_eq!(code(target.client.request_text(request()).await).0, 504);
    });
}

#[test]
fn status_is_apart() {
    contract("status", async |target, namespace| {
        let services = Api::<Service>::namespaced(target.client.clone(), &namespace);
        let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"app": "s"}});
        let service = json!({"metadata": {"name": "s"}, "spec": spec});
        let made = services.create(&post(), &object(service)).await.unwrap();
        let spec = made.spec.clone().unwrap();
        assert!(spec.cluster_ip.is_some_and(|address| address.parse::<std::net::IpAddr>().is_ok()));
        assert_eq!(spec.ports.unwrap()[0].protocol.as_deref(), Some("TCP"));
        let patch = json!({
            "spec": {"selector": {"app": "other"}},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
        });
        let params = PatchParams::default();
        let through_status = services.patch_status("s", &params, &Patch::Merge(patch.clone())).await.unwrap();
        assert_eq!(through_status.spec.unwrap().selector.unwrap()["app"], "s");
        let ingress = through_status.status.unwrap().load_balancer.unwrap().ingress.unwrap();
        assert_eq!(ingress[0].ip.as_deref(), Some("192.0.2.1"));
        let no_status = json!({"status": {"loadBalancer": {"ingress": null}}, "spec": patch["spec"]});
        let through_main = services.patch("s", &params, &Patch::Merge(no_status)).await.unwrap();
        assert_eq!(through_main.spec.unwrap().selector.unwrap()["app"], "other");
        assert!(through_main.status.unwrap().load_balancer.unwrap().ingress.is_some());
        let inner = json!({"metadata": {"name": "inner"}, "spec": {"ports": [{"port": 80}]}});
        services.create(&post(), &object(inner)).await.unwrap();
        let outside = services.patch_status("inner", &params, &Patch::Merge(patch)).await;
        assert_eq!(code(outside), (422, "Invalid".to_owned()), "only load balancers have an address outside");
    });
}

#[test]
fn finalizers_hold_an_object() {
    contract("finalizer", async |target, namespace| {
        let maps = Api::<ConfigMap>::namespaced(target.client.clone(), &namespace);
        let held = json!({"metadata": {"name": "a", "finalizers": ["mesh-agent.io/test"]}});
        maps.create(&post(), &object(held)).await.unwrap();
        maps.delete("a", &DeleteParams::default()).await.unwrap();
        assert!(maps.get("a").await.unwrap().metadata.deletion_timestamp.is_some());
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        maps.patch("a", &PatchParams::default(), &release).await.unwrap();
        assert_eq!(code(maps.get("a").await).0, 404);
    });
}

#[test]
fn leases_have_one_holder() {
    contract("lease", async |target, namespace| {
        let leases = Api::<Lease>::namespaced(target.client.clone(), &namespace);
        let lease = |holder: &str, version: Option<String>| -> Lease {
            object(json!({"metadata": {"name": "l", "resourceVersion": version}, "spec": {"holderIdentity": holder}}))
        };
        let first = leases.create(&post(), &lease("a", None)).await.unwrap().resource_version();
        leases.replace("l", &post(), &lease("b", first.clone())).await.unwrap();
        assert_eq!(code(leases.replace("l", &post(), &lease("a", first)).await), (409, "Conflict".to_owned()));
    });
}

#[test]
fn events_are_taken() {
    contract("event", async |target, namespace| {
        let events = Api::<Event>::namespaced(target.client.clone(), &namespace);
        let mut event = json!({
            "metadata": {"name": "pod.1"}, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Capture",
            "reportingController": "mesh-agent.io/agent", "reportingInstance": "node1", "reason": "Refused",
            "type": "Warning", "note": "why", "regarding": {"kind": "Pod", "namespace": namespace, "name": "pod"},
        });
        events.create(&post(), &object(event.clone())).await.unwrap();
        let core = Api::<k8s_openapi::api::core::v1::Event>::namespaced(target.client.clone(), &namespace);
        assert_eq!(core.get("pod.1").await.unwrap().message.as_deref(), Some("why"));
        event["metadata"]["name"] = "pod.2".into();
        event["eventTime"] = Value::Null;
        assert_eq!(code(events.create(&post(), &object(event)).await).0, 422);
    });
}

/// A service account with these rules in its namespace; returns a client for it.
async fn account(target: &Target, namespace: &str, rules: &Value) -> Client {
    let client = || target.client.clone();
    let accounts = Api::<ServiceAccount>::namespaced(client(), namespace);
    accounts.create(&post(), &object(json!({"metadata": {"name": "who"}}))).await.unwrap();
    let role = object(json!({"metadata": {"name": "r"}, "rules": rules}));
    Api::<Role>::namespaced(client(), namespace).create(&post(), &role).await.unwrap();
    let binding = object(json!({
        "metadata": {"name": "r"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "ServiceAccount", "name": "who", "namespace": namespace}],
    }));
    Api::<RoleBinding>::namespaced(client(), namespace).create(&post(), &binding).await.unwrap();
    let request: TokenRequest = object(json!({"metadata": {}, "spec": {"audiences": []}}));
    let token = accounts.create_token_request("who", &post(), &request).await.unwrap().status.unwrap().token;
    target.with_token(&token.expect("a token"))
}

#[test]
fn roles_say_what_may_be_done() {
    contract("rbac", async |target, namespace| {
        let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]);
        let client = account(&target, &namespace, &rules).await;
        let maps = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
        // An authorizer may take a moment to see a new role.
        eventually("the role counts", || async { maps.list(&ListParams::default()).await.ok() }).await;
        let forbidden = (403, "Forbidden".to_owned());
        assert_eq!(code(maps.create(&post(), &map("a", &json!({}))).await), forbidden);
        let watch = format!("/api/v1/namespaces/{namespace}/configmaps?watch=true");
        let watch = http::Request::get(&watch).body(Vec::new()).unwrap();
        assert_eq!(code(client.request_text(watch).await), forbidden);
        assert_eq!(code(Api::<Pod>::namespaced(client, &namespace).list(&ListParams::default()).await), forbidden);
        let nobody = Api::<ConfigMap>::namespaced(target.with_token("nonsense"), &namespace);
        assert_eq!(code(nobody.list(&ListParams::default()).await).0, 401);
    });
}

async fn review(client: &Client, token: &str, audience: &str) -> (bool, Value) {
    let review = object(json!({"metadata": {}, "spec": {"token": token, "audiences": [audience]}}));
    let review = Api::<TokenReview>::all(client.clone()).create(&post(), &review).await.unwrap();
    let status = serde_json::to_value(review.status.unwrap()).unwrap();
    (status["authenticated"] == true, status)
}

#[test]
fn a_token_says_pod_and_node() {
    contract("token", async |target, namespace| {
        let client = &target.client;
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &namespace);
        accounts.create(&post(), &object(json!({"metadata": {"name": "who"}}))).await.unwrap();
        let node = target.node().await.name_any();
        let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
        // Put on a node as a scheduler would; it need not run.
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "who", "nodeName": node, "restartPolicy": "Never",
            "containers": [{"name": "c", "image": "none.invalid/none:0", "imagePullPolicy": "Never"}],
        }});
        let pod = pods.create(&post(), &object(pod)).await.unwrap();
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod.uid()});
        let request = |bound: &Value, seconds: u64| -> TokenRequest {
            object(json!({"metadata": {}, "spec": {
                "audiences": ["mesh-ca"], "expirationSeconds": seconds, "boundObjectRef": bound,
            }}))
        };
        let token = accounts.create_token_request("who", &post(), &request(&bound, 600)).await.unwrap();
        let token = token.status.unwrap().token.unwrap();
        let (good, status) = review(client, &token, "mesh-ca").await;
        assert!(good, "{status}");
        assert_eq!(status["user"]["username"], format!("system:serviceaccount:{namespace}:who"));
        let extra = &status["user"]["extra"];
        assert_eq!(extra["authentication.kubernetes.io/node-name"], json!([node]));
        assert_eq!(extra["authentication.kubernetes.io/pod-uid"], json!([pod.uid().unwrap()]));
        assert!(!review(client, &token, "other").await.0, "another audience");
        assert!(!review(client, &format!("{token}x"), "mesh-ca").await.0, "another signature");
        assert_eq!(code(accounts.create_token_request("who", &post(), &request(&bound, 60)).await).0, 422);
        let other =
            json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "00000000-0000-0000-0000-000000000000"});
        assert_eq!(code(accounts.create_token_request("who", &post(), &request(&other, 600)).await).0, 409);
        pods.delete("p", &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await.unwrap();
        eventually("the token of a pod that is gone", || async {
            (!review(client, &token, "mesh-ca").await.0).then_some(())
        })
        .await;
    });
}

fn definition(group: &str) -> Value {
    let spec = json!({
        "type": "object", "required": ["mode"],
        "properties": {
            "mode": {"type": "string", "enum": ["on", "off"]},
            "min": {"type": "integer", "minimum": 1, "default": 1},
            "max": {"type": "integer"},
            "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
        },
        "x-kubernetes-validations": [{"rule": "!has(self.max) || self.min <= self.max", "message": "min above max"}],
    });
    let schema = json!({"type": "object", "properties": {
        "spec": spec, "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }});
    json!({
        "metadata": {"name": format!("things.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"kind": "Thing", "plural": "things"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

#[test]
fn custom_resources_are_what_their_definition_says() {
    contract("custom", async |target, namespace| {
        // A group of its own, so that tests of several runs do not meet in a cluster.
        let group = format!("{namespace}.mesh-agent.io");
        let definitions = Api::<CustomResourceDefinition>::all(target.client.clone());
        definitions.create(&post(), &object(definition(&group))).await.unwrap();
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(&group, "v1", "Thing"), "things");
        let things = Api::<DynamicObject>::namespaced_with(target.client.clone(), &namespace, &kind);
        let listed = || async { things.list(&ListParams::default()).await.ok() };
        eventually("the definition is served", listed).await;
        let thing = |name: &str, spec: Value| DynamicObject::new(name, &kind).data(json!({"spec": spec}));
        let made = things.create(&post(), &thing("a", json!({"mode": "on", "unknown": 1}))).await.unwrap();
        assert_eq!(made.data["spec"], json!({"mode": "on", "min": 1}), "pruned, and with its default");
        for wrong in [
            json!({}),
            json!({"mode": "maybe"}),
            json!({"mode": "on", "min": 0}),
            json!({"mode": "on", "min": "1"}),
            json!({"mode": "on", "name": "A"}),
            json!({"mode": "on", "name": "abcdef"}),
            json!({"mode": "on", "min": 3, "max": 2}),
        ] {
            let refused = code(things.create(&post(), &thing("b", wrong.clone())).await);
            assert_eq!(refused, (422, "Invalid".to_owned()), "{wrong}");
        }
        let status = json!({"spec": {"mode": "off"}, "status": {"seen": true}});
        let status = things.patch_status("a", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        assert_eq!((status.metadata.generation, &status.data["status"]["seen"]), (Some(1), &json!(true)));
        assert_eq!(status.data["spec"]["mode"], "on");
        let spec = Patch::Merge(json!({"spec": {"mode": "off"}}));
        assert_eq!(things.patch("a", &PatchParams::default(), &spec).await.unwrap().metadata.generation, Some(2));
        definitions.delete(&format!("things.{group}"), &DeleteParams::default()).await.unwrap();
        let gone = || async { things.get("a").await.is_err().then_some(()) };
        eventually("its objects go with the definition", gone).await;
    });
}

#[test]
fn a_namespace_takes_with_it_what_is_in_it() {
    contract("end", async |target, namespace| {
        let inside = format!("{namespace}-inside");
        let namespaces = Api::<Namespace>::all(target.client.clone());
        namespaces.create(&post(), &object(json!({"metadata": {"name": inside}}))).await.unwrap();
        let maps = Api::<ConfigMap>::namespaced(target.client.clone(), &inside);
        maps.create(&post(), &map("a", &json!({}))).await.unwrap();
        namespaces.delete(&inside, &DeleteParams::default()).await.unwrap();
        eventually("the namespace is gone", || async {
            namespaces.get_opt(&inside).await.unwrap().is_none().then_some(())
        })
        .await;
        assert_eq!(code(maps.create(&post(), &map("b", &json!({}))).await).0, 404);
    });
}

#[test]
fn two_watchers_see_the_same_order() {
    contract("order", async |target, namespace| {
        let maps = Api::<ConfigMap>::namespaced(target.client.clone(), &namespace);
        let start = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
        let one = tokio::spawn(versions(maps.clone(), start.clone()));
        for number in 0..20 {
            maps.create(&post(), &map(&format!("m{number}"), &json!({}))).await.unwrap();
        }
        let late = versions(maps, start).await;
        assert_eq!(one.await.unwrap(), late);
        let numbers: Vec<u64> = late.iter().map(|version| version.parse().unwrap()).collect();
        assert!(numbers.is_sorted());
    });
}

/// Versions of the first twenty maps that come.
async fn versions(maps: Api<ConfigMap>, start: String) -> Vec<String> {
    let mut stream = pin!(maps.watch(&WatchParams::default(), &start).await.unwrap());
    let mut seen = Vec::new();
    while seen.len() < 20 {
        if let WatchEvent::Added(map) = next(&mut stream).await
            && map.name_any().starts_with('m')
        {
            seen.extend(map.metadata.resource_version);
        }
    }
    seen
}

/// Which server that was is said by every test; here that it says the version that the suite was written for.
#[test]
fn the_server_is_of_a_known_version() {
    contract("version", async |target: Arc<Target>, _| {
        let version = target.client.apiserver_version().await.unwrap();
        println!("{} {}", version.git_version, version.platform);
        assert_eq!((version.major.as_str(), version.minor.trim_end_matches('+')), ("1", "36"));
    });
}
