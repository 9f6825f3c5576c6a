//! What the test server does wrong on order, and how the client library of the agent takes it. Only for the test server.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that cannot go on fails"
)]

use std::{
    future::Future,
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{WatchStreamExt, watcher},
};
use mesh_tests::api::{ApiServer, Cut, Effect, Fault, Pace};
use serde_json::json;

/// A server, and an administrator's client that tries once.
async fn start() -> (ApiServer, Client) {
    let server = ApiServer::start();
    let client = client(&server).await;
    (server, client)
}

async fn client(server: &ApiServer) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(server.admin())).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn put(server: &ApiServer, name: &str) {
    server.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}}));
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "default")
}

/// What a watcher sees, without the errors that it goes on from.
type Events = Pin<Box<dyn Stream<Item = watcher::Event<ConfigMap>> + Send>>;

fn watch(client: &Client) -> Events {
    let config = watcher::Config::default().streaming_lists();
    let events = watcher(maps(client), config).default_backoff();
    Box::pin(events.filter_map(|event| std::future::ready(event.ok())))
}

/// Reads until an object of this name is seen.
async fn until(events: &mut Events, name: &str) {
    let read = async {
        loop {
            // A new list is not told by an event of its own: this strategy of the library makes no `Init`.
            match events.next().await.unwrap() {
                watcher::Event::Apply(map) | watcher::Event::InitApply(map) if map.name_any() == name => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap_or_else(|_| panic!("{name} is not seen"));
}

/// Number of lists since the last look.
fn lists(server: &ApiServer) -> usize {
    server.take_requests().iter().filter(|request| request.query.contains("sendInitialEvents=true")).count()
}

#[test]
fn a_watch_that_is_cut_goes_on_where_it_was() {
    run(async {
        let (server, client) = start().await;
        put(&server, "first");
        let mut events = watch(&client);
        until(&mut events, "first").await;
        for (cut, name) in [(Cut::Clean, "second"), (Cut::Broken, "third")] {
            // Live, so that the cut meets an open watch.
            put(&server, &format!("before-{name}"));
            until(&mut events, &format!("before-{name}")).await;
            server.take_requests();
            server.cut_watches(cut);
            put(&server, name);
            until(&mut events, name).await;
            assert_eq!(lists(&server), 0, "after {cut:?}");
        }
    });
}

#[test]
fn what_was_missed_and_compacted_is_listed_anew() {
    run(async {
        let (server, client) = start().await;
        put(&server, "first");
        let mut events = watch(&client);
        until(&mut events, "first").await;
        put(&server, "live");
        until(&mut events, "live").await;
        server.stop();
        put(&server, "missed");
        server.compact();
        lists(&server);
        server.resume();
        until(&mut events, "missed").await;
        assert_eq!(lists(&server), 1);
    });
}

#[test]
fn a_stopped_server_comes_back_where_it_was_with_another_certificate() {
    run(async {
        let (server, client) = start().await;
        put(&server, "first");
        maps(&client).get("first").await.unwrap();
        let address = server.address();
        server.stop();
        assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens");
        assert!(maps(&client).get("first").await.is_err());
        server.rotate_certificate();
        server.resume();
        assert_eq!(server.address(), address);
        maps(&client).get("first").await.expect("the new certificate is of the same CA");
    });
}

#[test]
fn refusals_are_those_ordered_and_as_many() {
    run(async {
        let (server, client) = start().await;
        put(&server, "first");
        for code in [429, 500, 503] {
            server.fault(Fault::new("get", "configmaps/first", Effect::Refuse { code, retry_after: Some(3) }).times(1));
            match maps(&client).get("first").await {
                Err(kube::Error::Api(status)) => assert_eq!(status.code, code),
                other => panic!("{other:?}"),
            }
        }
        maps(&client).get("first").await.expect("each once");
        server.fault(Fault::new("get", "first", Effect::Break).times(1));
        assert!(matches!(maps(&client).get("first").await, Err(kube::Error::HyperError(_) | kube::Error::Service(_))));
        server.fault(Fault::new("list", "", Effect::Silence));
        maps(&client).get("first").await.expect("the fault is for lists");
        let list = maps(&client);
        let params = ListParams::default();
        let mut silent = pin!(list.list(&params));
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut silent).await.is_err());
        server.heal();
        list.list(&params).await.unwrap();
    });
}

#[test]
fn a_refusal_says_when_to_come_again() {
    run(async {
        let (server, client) = start().await;
        server.fault(Fault::new("list", "", Effect::Refuse { code: 429, retry_after: Some(7) }));
        let request = http::Request::get("/api/v1/configmaps").body(kube::client::Body::empty()).unwrap();
        let response = client.send(request).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (429, &"7".parse().unwrap()));
    });
}

#[test]
fn answers_are_late_slow_and_cut_off() {
    run(async {
        let (server, client) = start().await;
        for number in 0..50 {
            put(&server, &format!("m{number}"));
        }
        let list = maps(&client);
        let timed = async || {
            let begun = Instant::now();
            let listed = list.list(&ListParams::default()).await;
            (begun.elapsed(), listed)
        };
        let (quick, listed) = timed().await;
        let size = serde_json::to_string(&listed.unwrap()).unwrap().len();
        server.fault(Fault::new("list", "", Effect::Delay(Duration::from_millis(300))).times(1));
        let (late, listed) = timed().await;
        assert!(late >= Duration::from_millis(300) && listed.unwrap().items.len() == 50, "{quick:?}, {late:?}");
        let pace = Pace { bytes: size / 10, every: Duration::from_millis(50), cut_after: None };
        server.fault(Fault::new("list", "", Effect::Slow(pace)).times(1));
        let (slow, listed) = timed().await;
        assert!(slow >= Duration::from_millis(400) && listed.unwrap().items.len() == 50, "{slow:?}");
        server.fault(Fault::new("list", "", Effect::Slow(Pace { cut_after: Some(size / 2), ..pace })).times(1));
        assert!(timed().await.1.is_err(), "half a list is none");
    });
}

#[test]
fn a_pod_on_a_node_is_deleted_in_two_steps() {
    run(async {
        let (_server, client) = start().await;
        let pods = Api::<Pod>::namespaced(client.clone(), "default");
        let pod = |name: &str, node: Option<&str>| -> Pod {
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"nodeName": node, "containers": [{"name": "c", "image": "none:0"}]},
            }))
            .unwrap()
        };
        let made = pods.create(&PostParams::default(), &pod("placed", Some("node1"))).await.unwrap();
        assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
        pods.create(&PostParams::default(), &pod("unplaced", None)).await.unwrap();
        for name in ["placed", "unplaced"] {
            pods.delete(name, &DeleteParams::default()).await.unwrap();
        }
        assert!(pods.get_opt("unplaced").await.unwrap().is_none(), "no kubelet has it");
        let ending = pods.get("placed").await.unwrap();
        assert_eq!(ending.metadata.deletion_grace_period_seconds, Some(30));
        // As the kubelet does when all is over.
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        pods.delete("placed", &now).await.unwrap();
        assert!(pods.get_opt("placed").await.unwrap().is_none());
    });
}

#[test]
fn requests_are_counted() {
    run(async {
        let (server, client) = start().await;
        server.take_requests();
        maps(&client).list(&ListParams::default().limit(5)).await.unwrap();
        let requests = server.take_requests();
        assert_eq!(requests.len(), 1);
        assert_eq!(
            (requests[0].verb.as_str(), requests[0].path.as_str()),
            ("list", "/api/v1/namespaces/default/configmaps")
        );
        assert!(requests[0].query.contains("limit=5"));
        assert!(server.requests().is_empty());
    });
}

/// A fifth of the cluster that the agent is measured on, since it takes a build without optimisation a while to make it. The
/// bound is for a busy machine.
#[test]
fn a_large_cluster_is_listed_in_seconds() {
    run(async {
        let (server, client) = start().await;
        mesh_tests::api::fill(&server, &mesh_tests::api::Size { pods: 10_000, services: 1_000, nodes: 1_000 });
        let (objects, bytes) = server.size();
        println!("{objects} objects, {} MB", bytes / 1_000_000);
        for (path, least) in [("/api/v1/pods", 10_000), ("/apis/discovery.k8s.io/v1/endpointslices", 1_000)] {
            let begun = Instant::now();
            let text = client.request_text(http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
            let took = begun.elapsed();
            let items = text.matches("\"uid\":").count();
            println!("{path}: {} MB in {took:?}", text.len() / 1_000_000);
            assert!(items >= least, "{items} items of {path}");
            assert!(took < Duration::from_secs(20), "{path}: {took:?}");
        }
    });
}
