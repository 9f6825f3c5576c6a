//! The source `--kubernetes` and the test server: what becomes of objects, and of faults.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

mod source;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh_agent::{
    discovery::kubernetes::Timing,
    model::{Mesh, Mode, Reason, Target},
};
use mesh_tests::api::{Cut, Effect, Fault, Options, Pace};
use serde_json::{Value, json};
use source::{
    Fixture, NODE, TIMING, TOKEN, define, find, lists, permit, pod, problems, run, server_with, service, slice, uid_of,
};

const AT: &str = "10.1.0.1";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Who is at an address.
fn at(mesh: &Mesh, text: &str) -> Option<String> {
    mesh.workload_at(address(text)).map(|workload| workload.name.name.to_string())
}

/// Addresses of the endpoints of a service's first port.
fn endpoints(mesh: &Mesh, service: &str) -> Option<Vec<String>> {
    let found = mesh.destination(address(service));
    let Some(Target::Service(service)) = found else { return None };
    Some(service.ports[0].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect())
}

#[test]
fn the_first_snapshot_has_everything() {
    run(async {
        let mut fixture = Fixture::with(
            |server| {
                define(server);
                server.put(pod("web", 1, NODE, AT));
                server.put(pod("far", 2, "node2", "10.2.0.1"));
                server.put(service("web", &json!({"clusterIP": "172.20.0.1", "clusterIPs": ["172.20.0.1"]})));
                let both = json!([
                    {"addresses": [AT], "nodeName": NODE, "zone": "z1", "conditions": {"ready": true}},
                    {"addresses": ["10.2.0.1"], "nodeName": "node2", "zone": "z2", "conditions": {"ready": true}},
                ]);
                server.put(slice("web", "a", &both));
                server.put(json!({
                    "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                    "metadata": {"name": "all", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}},
                }));
            },
            TIMING,
        );
        let mesh = fixture.until("a snapshot", |mesh| mesh.version > 0).await;
        assert_eq!(mesh.version, 1);
        assert_eq!(*mesh.problems, []);
        assert_eq!((mesh.node.zone.as_deref(), &mesh.node.addresses), (Some("z1"), &vec![address("172.16.0.1")]));
        let web = find(&mesh, "web").unwrap();
        assert_eq!(web.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!((web.enrolled, web.mode, web.uid.as_ref().unwrap().as_str()), (true, Mode::Strict, &*uid_of(1)));
        // Only pods of this node are found by their UID.
        assert_eq!(find(&mesh, "far").unwrap().uid, None);
        assert_eq!(endpoints(&mesh, "172.20.0.1").unwrap(), [AT, "10.2.0.1"]);
        assert_eq!(at(&mesh, "10.2.0.1").as_deref(), Some("far"));
        assert!(mesh.source.description.starts_with("kubernetes https://127.0.0.1:"), "{}", mesh.source);
        assert_eq!(mesh.source.absent, [""; 0]);
    });
}

#[test]
fn objects_change_go_and_come_again() {
    run(async {
        let mut fixture = Fixture::new();
        fixture.synced().await;
        fixture.server.put(pod("web", 1, NODE, AT));
        fixture.until("a new pod", |mesh| at(mesh, AT).is_some()).await;
        // Without an address there is a pod all the same: it is armed before it has one.
        let mut scheduled = pod("soon", 7, NODE, "");
        scheduled["status"] = json!({"phase": "Pending"});
        fixture.server.put(scheduled);
        let mesh = fixture.until("a scheduled pod", |mesh| find(mesh, "soon").is_some()).await;
        assert!(find(&mesh, "soon").unwrap().uid.is_some());
        // Deleted, and made anew under its name.
        fixture.server.remove("v1", "Pod", "shop", "web");
        fixture.until("the pod is gone", |mesh| find(mesh, "web").is_none() && at(mesh, AT).is_none()).await;
        fixture.server.put(pod("web", 2, NODE, "10.1.0.2"));
        let mesh = fixture.until("the pod is back", |mesh| find(mesh, "web").is_some()).await;
        assert_eq!(find(&mesh, "web").unwrap().uid.as_ref().unwrap().as_str(), uid_of(2));
        // The same faster than anybody looks.
        fixture.server.remove("v1", "Pod", "shop", "web");
        fixture.server.put(pod("web", 3, NODE, "10.1.0.3"));
        let is_third =
            |mesh: &Mesh| find(mesh, "web").is_some_and(|pod| pod.uid.as_ref().unwrap().as_str() == uid_of(3));
        fixture.until("another pod of that name", is_third).await;
        // Finished: its address may be another's.
        let mut done = pod("web", 3, NODE, "10.1.0.3");
        done["status"]["phase"] = "Succeeded".into();
        fixture.server.put(done);
        fixture.until("it has finished", |mesh| find(mesh, "web").is_none()).await;
        // The namespace leaves the mesh.
        fixture.server.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
        fixture.until("it has left", |mesh| find(mesh, "soon").is_some_and(|pod| !pod.enrolled)).await;
    });
}

#[test]
fn an_address_moves_from_pod_to_pod() {
    run(async {
        let mut fixture = Fixture::with(|server| drop(server.put(pod("before", 1, NODE, AT))), TIMING);
        fixture.synced().await;
        fixture.server.remove("v1", "Pod", "shop", "before");
        fixture.server.put(pod("after", 2, "node2", AT));
        fixture.until("the other has it", |mesh| at(mesh, AT).as_deref() == Some("after")).await;
        // The next one is told before the end of this one: both have it for a while, and nothing is wrong afterwards.
        fixture.server.put(pod("third", 3, NODE, AT));
        fixture.until("both claim it", |mesh| !problems(mesh, Reason::DuplicateAddress).is_empty()).await;
        fixture.server.remove("v1", "Pod", "shop", "after");
        let mesh = fixture.until("it has moved again", |mesh| at(mesh, AT).as_deref() == Some("third")).await;
        assert_eq!(*mesh.problems, []);
    });
}

#[test]
fn endpoints_of_all_sorts() {
    run(async {
        let mut fixture = Fixture::with(
            |server| {
                server.put(service("many", &json!({"clusterIP": "172.20.0.1"})));
                let thousand: Vec<Value> =
                    (0..1000).map(|n| json!({"addresses": [format!("10.9.{}.{}", n / 250, n % 250 + 1)]})).collect();
                server.put(slice("many", "a", &json!(thousand)));
                server.put(service("mixed", &json!({"clusterIP": "172.20.0.2"})));
                let mixed = json!([
                    {"addresses": ["10.8.0.1"], "conditions": {"ready": true, "serving": true, "terminating": false}},
                    {"addresses": ["10.8.0.2"], "conditions": {"ready": false, "serving": false, "terminating": false}},
                    {"addresses": ["10.8.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                    {"addresses": ["10.8.0.4"], "conditions": {"ready": null}},
                    {"addresses": ["10.8.0.5"], "targetRef": {"kind": "VirtualMachine", "name": "x"}},
                ]);
                server.put(slice("mixed", "a", &mixed));
                server.put(service("leaving", &json!({"clusterIP": "172.20.0.3"})));
                let leaving = json!([{"addresses": ["10.8.1.1"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
                server.put(slice("leaving", "a", &leaving));
                server.put(service("headless", &json!({"clusterIP": "None", "clusterIPs": ["None"]})));
                let mut headless = slice("headless", "a", &json!([{"addresses": ["10.8.2.1"]}]));
                headless["metadata"]["labels"]["service.kubernetes.io/headless"] = "".into();
                server.put(headless);
                server.put(service("elsewhere", &json!({"type": "ExternalName", "externalName": "example.org"})));
                server.put(service(
                    "open",
                    &json!({
                        "type": "LoadBalancer", "clusterIP": "172.20.0.4", "sessionAffinity": "None",
                        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
                    }),
                ));
                server.put(slice("open", "a", &json!([{"addresses": ["10.8.3.1"]}])));
                let mut names = slice("mixed", "names", &json!([{"addresses": ["db.example.org"]}]));
                names["addressType"] = "FQDN".into();
                server.put(names);
                let mut unknown = slice("mixed", "unknown", &json!([{"addresses": ["10.8.9.9"]}]));
                unknown["addressType"] = "IPv9".into();
                server.put(unknown);
                server.put(slice("mixed", "none", &Value::Null));
            },
            TIMING,
        );
        let mesh = fixture.synced().await;
        assert_eq!(endpoints(&mesh, "172.20.0.1").unwrap().len(), 1000);
        // As kube-proxy: those that are ready; those that leave only where there are no others.
        assert_eq!(endpoints(&mesh, "172.20.0.2").unwrap(), ["10.8.0.1", "10.8.0.4", "10.8.0.5"]);
        assert_eq!(endpoints(&mesh, "172.20.0.3").unwrap(), ["10.8.1.1"]);
        assert_eq!(endpoints(&mesh, "172.20.0.4").unwrap(), ["10.8.3.1"]);
        let found: Vec<_> = mesh.problems.iter().map(|p| (p.reason, &*p.object, &*p.field)).collect();
        assert_eq!(found, [(Reason::BadField, "EndpointSlice shop/mixed-unknown", "addressType")]);
        assert!(mesh.problems[0].message.contains("IPv9"), "{}", mesh.problems[0]);
        assert_eq!(mesh.problems[0].location.file, None);
    });
}

#[test]
fn a_bad_object_keeps_its_last_good_version() {
    run(async {
        let annotated = |value: &str, uid| {
            let mut object = pod("web", uid, NODE, AT);
            object["metadata"]["annotations"] = json!({"mesh-agent.io/exclude-outbound-ports": value});
            object
        };
        let mut fixture = Fixture::with(|server| drop(server.put(annotated("5432", 1))), TIMING);
        fixture.synced().await;
        fixture.server.put(annotated("543x", 1));
        let mesh = fixture.until("it is told", |mesh| !mesh.problems.is_empty()).await;
        let problem = &mesh.problems[0];
        assert_eq!((problem.reason, &*problem.object), (Reason::UnknownAnnotation, "Pod shop/web"));
        assert_eq!(problem.field, "metadata.annotations[mesh-agent.io/exclude-outbound-ports]");
        assert_eq!(find(&mesh, "web").unwrap().exclusions.outbound_ports, [5432]);
        // It is another pod now: what was good of the former is not its own, but what can be read of it is.
        fixture.server.put(annotated("543x", 2));
        let is_another = |mesh: &Mesh| find(mesh, "web").is_some_and(|web| web.exclusions.outbound_ports.is_empty());
        let mesh = fixture.until("it is another", is_another).await;
        assert!(find(&mesh, "web").unwrap().enrolled && problems(&mesh, Reason::SettingsUnread).len() == 1);
        fixture.server.put(annotated("5433", 2));
        let mesh = fixture.until("it is mended", |mesh| mesh.problems.is_empty()).await;
        assert_eq!(find(&mesh, "web").unwrap().exclusions.outbound_ports, [5433]);
    });
}

#[test]
fn pods_cannot_claim_the_networks_of_others() {
    run(async {
        let hash = "0123456789abcdef0123456789abcdef";
        let with = |name: &str, uid, annotations: Value| {
            let mut object = pod(name, uid, NODE, &format!("10.1.0.{uid}"));
            object["metadata"]["annotations"] = annotations;
            object
        };
        let mut fixture = Fixture::with(
            |server| {
                server.put(with("named", 1, json!({"mesh-agent.io/netns": "/proc/1/ns/net"})));
                server.put(with(
                    "posing",
                    2,
                    json!({"kubernetes.io/config.hash": uid_of(1), "kubernetes.io/config.mirror": "x"}),
                ));
                server.put(with("lone", 3, json!({"kubernetes.io/config.hash": hash})));
                server.put(with(
                    "static",
                    4,
                    json!({"kubernetes.io/config.hash": hash, "kubernetes.io/config.mirror": hash}),
                ));
            },
            TIMING,
        );
        let mesh = fixture.synced().await;
        let uid = |name: &str| find(&mesh, name).unwrap().uid.as_ref().unwrap().as_str().to_owned();
        assert_eq!(["named", "posing", "lone", "static"].map(uid), [uid_of(1), uid_of(2), uid_of(3), hash.to_owned()]);
        assert_eq!(find(&mesh, "named").unwrap().netns, None);
        let told: Vec<_> = problems(&mesh, Reason::UnknownAnnotation).iter().map(|problem| &*problem.object).collect();
        assert_eq!(told, ["Pod shop/named"]);
    });
}

#[test]
fn policies_that_are_not_there_may_come_and_go() {
    run(async {
        let mut fixture = Fixture::with(|server| drop(server.put(pod("web", 1, NODE, AT))), TIMING);
        let mesh = fixture.synced().await;
        assert_eq!(mesh.source.absent, ["PeerAuthentication", "AuthorizationPolicy"]);
        assert_eq!(*mesh.problems, []);
        assert!(
            mesh.source.to_string().ends_with(", without PeerAuthentication, AuthorizationPolicy"),
            "{}",
            mesh.source
        );
        define(&fixture.server);
        fixture.until("they are there", |mesh| mesh.source.absent.is_empty() && mesh.source.is_followed).await;
        fixture.server.put(json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "all", "namespace": "shop"}, "spec": {"mtls": {"mode": "STRICT"}},
        }));
        fixture.until("it is strict", |mesh| find(mesh, "web").unwrap().mode == Mode::Strict).await;
        // What cannot be read lets nobody in, and is told.
        fixture.server.put(json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "odd", "namespace": "shop"}, "spec": {"action": "PERHAPS"},
        }));
        let mesh = fixture.until("it is told", |mesh| !mesh.problems.is_empty()).await;
        assert_eq!(&*mesh.problems[0].object, "AuthorizationPolicy shop/odd");
        assert!(find(&mesh, "web").unwrap().policy.has_authorizations());
        // The definition is deleted, and all policies of the kind with it.
        assert!(fixture.server.remove(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "",
            "authorizationpolicies.security.istio.io"
        ));
        fixture.server.cut_watches(Cut::Clean);
        let mesh = fixture.until("it is gone", |mesh| mesh.source.absent == ["AuthorizationPolicy"]).await;
        assert!(!find(&mesh, "web").unwrap().policy.has_authorizations());
        assert_eq!(find(&mesh, "web").unwrap().mode, Mode::Strict, "the other kind is as it was");
    });
}

#[test]
fn a_check_asks_for_all_that_is_read() {
    let folder = tempfile::TempDir::new().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let server = source::server();
    std::fs::write(&kubeconfig, server.kubeconfig(TOKEN)).unwrap();
    let check = |node: &str| -> (String, String) {
        let mut command = std::process::Command::new(mesh_tests::agent::binary());
        command.args(["check", "-o", "json", "--node-name", node, "--kubernetes", "--kubeconfig"]).arg(&kubeconfig);
        let report: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let all = report["checks"].as_array().unwrap();
        let check = all.iter().find(|check| check["name"] == "API server").unwrap();
        let text = |key: &str| check[key].as_str().unwrap().to_owned();
        (text("outcome"), text("found"))
    };
    let (outcome, found) = check(NODE);
    assert_eq!(outcome, "ok", "{found}");
    assert!(found.ends_with("not there: peerauthentications, authorizationpolicies"), "{found}");
    assert!(server.requests().iter().all(|r| matches!(&*r.verb, "list" | "watch")), "{:?}", server.requests());
    let (outcome, found) = check("another");
    assert_eq!(outcome, "fail");
    assert!(found.ends_with("has no Node \"another\""), "{found}");
    define(&server);
    permit(&server, &["peerauthentications"]);
    let (outcome, found) = check(NODE);
    assert_eq!(outcome, "fail");
    assert!(found.contains("authorizationpolicies") && found.contains("forbidden"), "{found}");
}

#[test]
fn what_vanished_while_nobody_watched_is_gone_after_a_new_list() {
    run(async {
        let mut fixture = Fixture::with(
            |server| {
                server.put(pod("stays", 1, NODE, AT));
                server.put(pod("goes", 2, NODE, "10.1.0.2"));
            },
            TIMING,
        );
        fixture.synced().await;
        fixture.server.stop();
        fixture.server.remove("v1", "Pod", "shop", "goes");
        fixture.server.put(pod("comes", 3, NODE, "10.1.0.3"));
        fixture.server.compact();
        fixture.server.take_requests();
        fixture.server.resume();
        let mesh = fixture.until("all is known", |mesh| find(mesh, "comes").is_some()).await;
        assert!(find(&mesh, "goes").is_none() && find(&mesh, "stays").is_some());
        fixture.until("all is followed", |mesh| mesh.source.is_followed).await;
        let requests = fixture.server.take_requests();
        assert!(!lists(&requests).is_empty(), "{requests:?}");
    });
}

#[test]
fn a_new_list_that_is_broken_off_is_begun_anew() {
    run(async {
        let mut fixture = Fixture::with(
            |server| {
                for number in 0..50 {
                    server.put(pod(&format!("p{number}"), number, NODE, &format!("10.1.1.{number}")));
                }
            },
            TIMING,
        );
        fixture.synced().await;
        fixture.server.stop();
        fixture.server.compact();
        // Half of it, as it was; then some are gone.
        let pace = Pace { bytes: 4096, every: Duration::from_millis(1), cut_after: Some(20_000) };
        fixture.server.fault(Fault::new("watch", "/pods", Effect::Slow(pace)).times(2));
        fixture.server.resume();
        for number in 0..25 {
            fixture.server.remove("v1", "Pod", "shop", &format!("p{number}"));
        }
        let mesh = fixture.until("half are left", |mesh| mesh.workloads.len() == 25).await;
        assert!(find(&mesh, "p25").is_some());
    });
}

#[test]
fn watches_that_end_or_are_cut_go_on_where_they_were() {
    run(async {
        let mut fixture = Fixture::with(define, TIMING);
        fixture.synced().await;
        for (cut, name) in [(Cut::Clean, "first"), (Cut::Broken, "second")] {
            fixture.server.take_requests();
            fixture.server.cut_watches(cut);
            fixture.server.put(pod(name, 1, NODE, AT));
            fixture.until("a change after the cut", |mesh| find(mesh, name).is_some()).await;
            let mesh = fixture.until("all is followed", |mesh| mesh.source.is_followed).await;
            assert_eq!(*mesh.problems, [], "a cut alone is no problem");
            assert!(lists(&fixture.server.take_requests()).is_empty(), "after {cut:?}");
            fixture.server.remove("v1", "Pod", "shop", name);
        }
    });
}

#[test]
fn a_silent_watch_is_opened_anew() {
    run(async {
        let timing = Timing { silence: Duration::from_millis(200), ..TIMING };
        let mut fixture = Fixture::with(|_| {}, timing);
        fixture.synced().await;
        fixture.server.take_requests();
        let again =
            |fixture: &Fixture| fixture.server.requests().iter().filter(|r| r.path == "/api/v1/pods").count() > 1;
        while !again(&fixture) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        fixture.server.put(pod("web", 1, NODE, AT));
        let mesh = fixture.until("changes are seen", |mesh| find(mesh, "web").is_some()).await;
        assert_eq!(*mesh.problems, []);
    });
}

#[test]
fn refusals_and_slowness_delay_and_do_no_more() {
    run(async {
        let mut fixture = Fixture::with(
            |server| {
                server.put(pod("web", 1, NODE, AT));
                for code in [429, 500, 503] {
                    let retry_after = (code == 429).then_some(1);
                    server.fault(Fault::new("watch", "/pods", Effect::Refuse { code, retry_after }).times(1));
                }
                server.fault(Fault::new("watch", "/services", Effect::Break).times(2));
                server.fault(Fault::new("watch", "/nodes", Effect::Delay(Duration::from_millis(300))).times(1));
                let pace = Pace { bytes: 100, every: Duration::from_millis(5), cut_after: None };
                server.fault(Fault::new("watch", "/namespaces", Effect::Slow(pace)).times(1));
            },
            TIMING,
        );
        let mesh = fixture.synced().await;
        assert_eq!((mesh.version, find(&mesh, "web").is_some()), (1, true));
        fixture.until("nothing is wrong", |mesh| mesh.problems.is_empty()).await;
        // Refused for as long as it takes to be told.
        fixture.server.fault(Fault::new("watch", "/pods", Effect::Refuse { code: 500, retry_after: None }));
        fixture.server.cut_watches(Cut::Broken);
        let mesh = fixture.until("it is told", |mesh| !mesh.problems.is_empty()).await;
        let problem = &mesh.problems[0];
        assert_eq!((problem.reason, &*problem.object), (Reason::SourceDisconnected, "Watch pods"));
        assert!(problem.message.contains("Internal error occurred"), "{problem}");
        assert!(find(&mesh, "web").is_some(), "the last state is in force");
        fixture.server.heal();
        fixture.until("nothing is wrong", |mesh| mesh.problems.is_empty() && mesh.source.is_followed).await;
    });
}

/// Servers that know no such lists refuse them; on an etcd that does not tell how far it is they break off.
#[test]
fn without_streaming_lists_there_are_pages() {
    run(async {
        const PODS: usize = 1200;
        for streams in [true, false] {
            let server = server_with(Options { streams, ..Options::default() });
            for number in 0..PODS {
                let address = format!("10.3.{}.{}", number / 250, number % 250 + 1);
                server.put(pod(&format!("p{number}"), u32::try_from(number).unwrap(), "node2", &address));
            }
            for plural in ["namespaces", "nodes", "pods", "services", "endpointslices"].iter().filter(|_| streams) {
                let refused = Effect::Refuse { code: 422, retry_after: None };
                server.fault(Fault::new("watch", &format!("/{plural}"), refused).times(1));
            }
            let mut fixture = Fixture::on(server, TIMING);
            let mesh = fixture.synced().await;
            assert_eq!(mesh.workloads.len(), PODS);
            assert!(mesh.problems.is_empty(), "lists in pages are no problem: {:?}", mesh.problems);
            let pages = |fixture: &Fixture| {
                let requests = fixture.server.take_requests();
                requests.iter().filter(|r| r.verb == "list" && r.path == "/api/v1/pods").count()
            };
            assert_eq!(pages(&fixture), 3, "of 500");
            fixture.server.put(pod("late", 1, NODE, AT));
            fixture.until("changes are seen", |mesh| find(mesh, "late").is_some()).await;
            assert_eq!(pages(&fixture), 0);
        }
    });
}

#[test]
fn tokens_are_read_anew() {
    run(async {
        let mut fixture = Fixture::with(define, TIMING);
        fixture.synced().await;
        // Expired: what is open stays so.
        std::fs::write(fixture.token(), "expired").unwrap();
        fixture.server.put(pod("web", 1, NODE, AT));
        fixture.until("changes are seen", |mesh| find(mesh, "web").is_some()).await;
        fixture.server.cut_watches(Cut::Broken);
        let mesh = fixture.until("it is told", |mesh| problems(mesh, Reason::SourceDisconnected).len() == 7).await;
        assert!(mesh.problems[0].message.contains("Unauthorized"), "{}", mesh.problems[0]);
        std::fs::write(fixture.token(), TOKEN).unwrap();
        fixture.until("all is followed", |mesh| mesh.source.is_followed && mesh.problems.is_empty()).await;
    });
}

#[test]
fn the_servers_certificate_and_its_authority_may_change() {
    run(async {
        let mut fixture = Fixture::new();
        fixture.server.put(pod("a", 1, NODE, "10.0.0.1"));
        fixture.synced().await;
        // Of the same authority: nobody notices.
        let is_well = |mesh: &Mesh| problems(mesh, Reason::SourceDisconnected).is_empty();
        fixture.server.rotate_certificate();
        // No connection is left that was open before.
        fixture.server.stop();
        fixture.server.put(pod("b", 2, NODE, "10.0.0.2"));
        fixture.server.resume();
        fixture.until("it goes on", |mesh| find(mesh, "b").is_some() && is_well(mesh)).await;

        // Of another: it might be anybody. What is known stays in force, and it is said why.
        fixture.server.rotate_authority();
        fixture.server.stop();
        fixture.server.put(pod("c", 3, NODE, "10.0.0.3"));
        fixture.server.resume();
        let is_told = |mesh: &Mesh| {
            let told = problems(mesh, Reason::SourceDisconnected);
            !told.is_empty() && told.iter().all(|problem| problem.message.contains("certificate"))
        };
        let mesh = fixture.until("why", is_told).await;
        assert!(find(&mesh, "a").is_some() && find(&mesh, "b").is_some() && find(&mesh, "c").is_none());
        assert!(mesh.source.age() > Duration::ZERO);

        // Its file says so, too, as the kubelet brings it: the agent goes on by itself.
        std::fs::write(fixture.authority(), fixture.server.authority()).unwrap();
        fixture.until("it goes on", |mesh| find(mesh, "c").is_some() && is_well(mesh)).await;
    });
}

#[test]
fn permissions_that_lack_are_told_and_nothing_is_published() {
    run(async {
        let mut fixture = Fixture::with(
            |server| {
                define(server);
                permit(server, &["peerauthentications"]);
            },
            TIMING,
        );
        // A busy machine is told of the others first.
        let waits = "waits for the first list of authorizationpolicies";
        let is_told = |mesh: &Mesh| {
            let incomplete = problems(mesh, Reason::SourceIncomplete).iter().any(|problem| problem.message == waits);
            incomplete && !problems(mesh, Reason::SourceForbidden).is_empty()
        };
        let mesh = fixture.until("it is told", is_told).await;
        assert_eq!((mesh.version, &*mesh.node.name), (0, NODE));
        let told = problems(&mesh, Reason::SourceForbidden);
        assert_eq!(told.iter().map(|problem| &*problem.object).collect::<Vec<_>>(), ["Watch authorizationpolicies"]);
        assert!(told[0].message.contains("forbidden"), "{}", told[0]);
        permit(&fixture.server, &["peerauthentications", "authorizationpolicies"]);
        assert_eq!(*fixture.synced().await.problems, []);
    });
}

#[test]
fn a_server_that_is_away_leaves_everything_as_it_was() {
    run(async {
        // From the start: there is no snapshot, and it is said why.
        let server = source::server();
        server.put(pod("web", 1, NODE, AT));
        define(&server);
        server.stop();
        let mut fixture = Fixture::on(server, TIMING);
        let mesh = fixture.until("it is told", |mesh| problems(mesh, Reason::SourceDisconnected).len() == 7).await;
        assert_eq!(mesh.version, 0);
        assert!(mesh.workloads.is_empty());
        fixture.server.resume();
        fixture.synced().await;
        // Later on: the last one stays, and grows old. Meanwhile its certificate is replaced.
        fixture.server.stop();
        let mesh = fixture.until("it is told", |mesh| problems(mesh, Reason::SourceDisconnected).len() == 7).await;
        assert!(find(&mesh, "web").is_some() && !mesh.source.is_followed);
        let age = mesh.source.age();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(mesh.source.age() > age);
        fixture.server.rotate_certificate();
        fixture.server.put(pod("other", 2, NODE, "10.1.0.2"));
        fixture.server.take_requests();
        fixture.server.resume();
        let mesh = fixture.until("all is known", |mesh| find(mesh, "other").is_some()).await;
        assert!(find(&mesh, "web").is_some());
        let mesh = fixture.until("all is followed", |mesh| mesh.source.is_followed && mesh.problems.is_empty()).await;
        assert_eq!(mesh.source.age(), Duration::ZERO);
        assert!(lists(&fixture.server.take_requests()).is_empty(), "nothing was compacted");
    });
}

#[test]
fn a_node_that_the_cluster_does_not_have_is_told() {
    run(async {
        let mut fixture = Fixture::with(|server| assert!(server.remove("v1", "Node", "", NODE)), TIMING);
        let mesh = fixture.synced().await;
        assert_eq!(problems(&mesh, Reason::NodeUnknown).len(), 1, "{:?}", mesh.problems);
        fixture.server.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}));
        fixture.until("it has come", |mesh| mesh.problems.is_empty()).await;
    });
}

#[test]
fn in_steady_state_there_is_one_watch_per_kind_and_nothing_else() {
    run(async {
        let mut fixture = Fixture::with(define, TIMING);
        fixture.synced().await;
        for number in 0..200 {
            fixture.server.put(pod(&format!("p{}", number % 20), number, NODE, &format!("10.1.2.{}", number % 20 + 1)));
        }
        let is_last = |mesh: &Mesh| {
            find(mesh, "p19").is_some_and(|pod| pod.uid.as_ref().is_some_and(|uid| uid.as_str() == uid_of(199)))
        };
        fixture.until("all is known", is_last).await;
        let requests = fixture.server.take_requests();
        let mut watches: BTreeMap<&str, usize> = BTreeMap::new();
        for request in &requests {
            assert_eq!(request.verb, "watch", "{request:?}");
            *watches.entry(&request.path).or_default() += 1;
        }
        assert_eq!(watches.len(), 7, "{watches:?}");
        assert!(watches.values().all(|count| *count == 1), "{watches:?}");
        assert!(requests.iter().all(|r| r.path != "/api/v1/nodes" || r.query.contains("metadata.name%3Dnode1")));
        // Objects that change where nobody looks make no snapshot.
        let before = fixture.mesh.borrow().version;
        let mut same = pod("p0", 180, NODE, "10.1.2.1");
        same["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        fixture.server.put(same);
        fixture.server.put(pod("last", 999, NODE, "10.1.2.99"));
        let mesh = fixture.until("the last is known", |mesh| find(mesh, "last").is_some()).await;
        assert_eq!(mesh.version, before + 1);
    });
}

/// A fifth of the cluster that the agent is measured on, in a build without optimisation. The bound is for a busy machine.
#[test]
fn a_large_cluster_is_read_in_seconds() {
    run(async {
        let server = source::server();
        mesh_tests::api::fill(&server, &mesh_tests::api::Size { pods: 10_000, services: 1_000, nodes: 1_000 });
        let begun = Instant::now();
        let mut fixture = Fixture::on(server, TIMING);
        let mesh = fixture.synced().await;
        println!("read in {:?}", begun.elapsed());
        assert_eq!((mesh.workloads.len(), mesh.destinations.len()), (10_000, 11_000));
    });
}
