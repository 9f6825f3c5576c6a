//! What is deployed: the chart, the manifests made of it, the definitions of our policies.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{Namespace, Pod, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use mesh_tests::{api::ApiServer, chart, permissions, rollout};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

fn plain() -> Vec<Value> {
    chart::objects("mesh-system", &chart::plain_values()).unwrap()
}

fn find(objects: &[Value], kind: &str, name: &str) -> Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.next().unwrap_or_else(|| panic!("no {kind} {name}")).clone()
}

#[test]
fn the_plain_manifests_are_what_the_chart_renders() {
    let rendered = chart::manifests("mesh-system", &chart::plain_values()).unwrap();
    let kept = std::fs::read_to_string(chart::plain_path()).unwrap();
    assert!(rendered == kept, "docs/deploy/mesh-agent.yaml is old: cargo run -p mesh-tests --bin mesh-chart");
}

/// Nothing is lost when it is read as its type of Kubernetes 1.36: no field is misspelled or in the wrong place.
fn is_a<K: DeserializeOwned + Serialize>(object: &Value) {
    let typed: K = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object:#}"));
    assert_eq!(serde_json::to_value(&typed).unwrap(), *object);
}

#[test]
fn all_objects_are_of_their_kinds() {
    let everything = json!({
        "createNamespace": true,
        "image": {"pullSecrets": [{"name": "s"}]},
        "agent": {
            "mountBpffs": true, "extraArgs": ["--workers=2"], "podAnnotations": {"a": "on"},
            "extraEnv": [{"name": "A", "value": "b"}],
        },
        "ca": {"tolerations": [{"operator": "Exists"}], "extraArgs": ["--node-rate=5"]},
    });
    for values in [chart::plain_values(), everything, json!({"ca": {"enabled": false, "address": "istiod:15012"}})] {
        for object in chart::objects("mesh-system", &values).unwrap() {
            match object["kind"].as_str().unwrap() {
                "ClusterRole" => is_a::<ClusterRole>(&object),
                "ClusterRoleBinding" => is_a::<ClusterRoleBinding>(&object),
                "DaemonSet" => is_a::<DaemonSet>(&object),
                "Deployment" => is_a::<Deployment>(&object),
                "Namespace" => is_a::<Namespace>(&object),
                "NetworkPolicy" => is_a::<NetworkPolicy>(&object),
                "PodDisruptionBudget" => is_a::<PodDisruptionBudget>(&object),
                "Role" => is_a::<Role>(&object),
                "RoleBinding" => is_a::<RoleBinding>(&object),
                "Service" => is_a::<Service>(&object),
                "ServiceAccount" => is_a::<ServiceAccount>(&object),
                other => panic!("a new kind: {other}"),
            }
        }
    }
    for definition in chart::definitions().unwrap() {
        is_a::<CustomResourceDefinition>(&definition);
    }
}

/// What the API server would refuse, or the scheduler never fulfil.
#[test]
fn a_second_agent_fits_beside_the_first_one_on_its_node() {
    let daemon_set = find(&plain(), "DaemonSet", "mesh-agent");
    assert_eq!(daemon_set["spec"]["updateStrategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}));
    let pod = &daemon_set["spec"]["template"]["spec"];
    assert_eq!(pod["hostNetwork"], true);
    for container in pod["containers"].as_array().unwrap() {
        // With the node's network each declared port is one of the node.
        assert_eq!(container["ports"], Value::Null);
        // Refused in this spelling, with allowPrivilegeEscalation: false.
        let capabilities = container["securityContext"]["capabilities"]["add"].as_array().unwrap();
        assert!(capabilities.iter().all(|name| !name.as_str().unwrap().starts_with("CAP_")));
    }
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    let drain = arguments.iter().find_map(|word| word.as_str()?.strip_prefix("--drain-deadline=")).unwrap();
    assert!(grace > drain.trim_end_matches('s').parse().unwrap());
}

#[test]
fn the_selectors_select_what_they_are_for() {
    let objects = plain();
    let labels = |kind, name| find(&objects, kind, name)["spec"]["template"]["metadata"]["labels"].clone();
    let selected = |selector: &Value, labels: &Value| {
        selector.as_object().unwrap().iter().all(|(name, value)| labels[name] == *value)
    };
    let ca = labels("Deployment", "mesh-agent-ca");
    for (kind, path) in [
        ("Service", "/spec/selector"),
        ("Deployment", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
    ] {
        let object = find(&objects, kind, "mesh-agent-ca");
        assert!(selected(object.pointer(path).unwrap(), &ca), "{kind}");
        assert!(!selected(object.pointer(path).unwrap(), &labels("DaemonSet", "mesh-agent")), "{kind}");
    }
    // Every binding binds a role that is there to an account that is there.
    for binding in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Binding")) {
        find(&objects, binding["roleRef"]["kind"].as_str().unwrap(), binding["roleRef"]["name"].as_str().unwrap());
        find(&objects, "ServiceAccount", binding["subjects"][0]["name"].as_str().unwrap());
    }
}

#[test]
fn no_account_may_do_what_would_give_it_more() {
    for account in ["mesh-agent", "mesh-agent-ca"] {
        let grants = permissions::grants(&plain(), account);
        assert!(!grants.is_empty());
        for grant in grants {
            let text = grant.to_string();
            assert!(
                !text.contains('*') && !["delete", "escalate", "bind", "impersonate"].contains(&&*grant.verb),
                "{text}"
            );
            assert!(grant.resource != "secrets" || !grant.name.is_empty() || grant.verb == "create", "{text}");
        }
    }
}

/// What the tests on a cluster would put there, as far as it can be seen without one.
#[tokio::test]
async fn the_tests_on_a_cluster_make_objects_that_are_accepted() {
    let server = ApiServer::start();
    let client = client(&server).await;
    let values = rollout::values("registry:5000/mesh-agent:test", true, Some(("10.0.0.1", "6443")));
    let objects = chart::objects(rollout::SYSTEM, &values).unwrap();
    let daemon_set = find(&objects, "DaemonSet", "mesh-agent");
    is_a::<DaemonSet>(&daemon_set);
    let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&json!("registry:5000/mesh-agent:test"), &json!("Never"))
    );
    // Variables are filled in from those before them.
    let names: Vec<_> = container["env"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names[0], "MESH_AGENT_NODE_NAME");
    let program = ["/mesh-test-app", "serve"];
    for pod in [
        rollout::pod("default", "a", "node1", "i", &program),
        rollout::node_pod("b", "node1", "i", &program),
        rollout::node_root_pod("c", "node1", "i", &program),
    ] {
        is_a::<Pod>(&pod);
    }
    is_a::<Namespace>(&rollout::namespace(rollout::APPS));
    let namespaces = Api::<Namespace>::all(client.clone());
    let namespace = serde_json::from_value(rollout::namespace(rollout::APPS)).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    for (on, says) in [(true, Some("enabled")), (false, None)] {
        let patch = Patch::Merge(rollout::toggle(on));
        let toggled = namespaces.patch(rollout::APPS, &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(toggled.metadata.annotations.unwrap_or_default().get(rollout::TOGGLE).map(String::as_str), says);
    }
}

/// The programs that run in the pods of those tests.
#[test]
fn the_programs_for_pods_serve_ask_and_say_how_it_went() {
    let program = || Command::new(env!("CARGO_BIN_EXE_mesh-test-app"));
    let mut server = program().args(["serve", "--port", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let said: Value = serde_json::from_str(&said).unwrap();
    let port = said["serving"].as_str().unwrap().rsplit(':').next().unwrap();
    let to = format!("127.0.0.1:{port}");
    let answer = program().args(["get", "--to", &to]).output().unwrap();
    assert_eq!((answer.status.code(), &*answer.stdout), (Some(0), &b"{\"peer\":\"127.0.0.1\"}\n"[..]));
    let mut load = program().args(["load", "--to", &to]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(load.stdout.take().unwrap()).lines().map_while(Result::ok);
    let seen = lines.filter_map(|line| rollout::Load::last(&line)).find(|load| load.ok > 10 && load.kept > 10).unwrap();
    assert_eq!((seen.failed, seen.reopened), (0, 0), "{seen:?}");
    for child in [&mut load, &mut server] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let refused = program().args(["get", "--to", &to]).status().unwrap();
    assert_eq!(refused.code(), Some(3));
    let there = program().args(["absent", "/no/such/thing", "/proc/self"]).status().unwrap();
    assert_eq!(there.code(), Some(1));
}

async fn client(server: &ApiServer) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(server.admin())).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn policies(client: &Client, kind: &str, plural: &str, version: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("security.istio.io", version, kind);
    Api::namespaced_with(client.clone(), "default", &ApiResource::from_gvk_with_plural(&gvk, plural))
}

fn policy(kind: &str, name: &str, spec: &Value) -> DynamicObject {
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

#[tokio::test]
async fn policies_are_checked_by_their_definitions() {
    let server = ApiServer::start();
    let client = client(&server).await;
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in chart::definitions().unwrap() {
        definitions.create(&PostParams::default(), &serde_json::from_value(definition).unwrap()).await.unwrap();
    }
    let peers = policies(&client, "PeerAuthentication", "peerauthentications", "v1");
    let authorizations = policies(&client, "AuthorizationPolicy", "authorizationpolicies", "v1");
    let served = async {
        while peers.list(&ListParams::default()).await.is_err()
            || authorizations.list(&ListParams::default()).await.is_err()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), served).await.expect("the definitions are established");
    let post = PostParams::default();

    let selector = json!({"matchLabels": {"app": "db"}});
    let good = [
        json!({}),
        json!({"mtls": {"mode": "STRICT"}}),
        json!({"selector": selector, "portLevelMtls": {"9187": {"mode": "PERMISSIVE"}}}),
    ];
    for (number, spec) in good.iter().enumerate() {
        peers.create(&post, &policy("PeerAuthentication", &format!("good-{number}"), spec)).await.unwrap();
    }
    for (bad, says) in [
        (json!({"mtls": {"mode": "STRICKT"}}), "spec.mtls.mode"),
        (json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}), "only for selected workloads"),
        (json!({"selector": selector, "portLevelMtls": {"80000": {"mode": "STRICT"}}}), "from 1 to 65535"),
    ] {
        let error = peers.create(&post, &policy("PeerAuthentication", "bad", &bad)).await.unwrap_err();
        assert!(matches!(&error, kube::Error::Api(status) if status.code == 422), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }

    let rule = |from: Value| json!({"rules": [{"from": [{"source": from}]}]});
    let http = json!({"rules": [{"to": [{"operation": {"methods": ["GET"], "ports": ["80"]}}]}], "action": "DENY"});
    let good = [
        json!({}),
        json!({"rules": [{}]}),
        rule(json!({"principals": ["*", "cluster.local/ns/a/sa/b", "*/sa/b", "cluster.local/*"]})),
        rule(json!({"serviceAccounts": ["cart", "shop/cart"], "notIpBlocks": ["10.0.0.0/8", "fd00::1"]})),
        json!({"rules": [{"when": [{"key": "source.namespace", "values": ["a"]}]}]}),
        http.clone(),
    ];
    for (number, spec) in good.iter().enumerate() {
        authorizations.create(&post, &policy("AuthorizationPolicy", &format!("good-{number}"), spec)).await.unwrap();
    }
    // What the agent does not look at reaches it, so that it can say so: pruned, the rule would be another one.
    let kept = authorizations.get("good-5").await.unwrap();
    assert_eq!(kept.data["spec"], http);
    // The older version is the same object.
    let older = policies(&client, "AuthorizationPolicy", "authorizationpolicies", "v1beta1");
    assert_eq!(older.get("good-5").await.unwrap().data["spec"], http);
    for (bad, says) in [
        (json!({"action": "PERMIT"}), "spec.action"),
        (json!({"rules": [{"from": []}]}), "spec.rules[0].from"),
        (json!({"rules": [{"from": [{}]}]}), "source"),
        (rule(json!({"principals": ["a*b"]})), "principals[0]"),
        (rule(json!({"serviceAccounts": ["a/b/c"]})), "serviceAccounts[0]"),
        (rule(json!({"ipBlocks": ["somewhere"]})), "ipBlocks[0]"),
        (json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}), "ports[0]"),
        (json!({"rules": [{"when": [{"key": "source.ip"}]}]}), "values or notValues"),
    ] {
        let error = authorizations.create(&post, &policy("AuthorizationPolicy", "bad", &bad)).await.unwrap_err();
        assert!(matches!(&error, kube::Error::Api(status) if status.code == 422), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
