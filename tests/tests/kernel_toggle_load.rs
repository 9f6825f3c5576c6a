//! A namespace that is toggled a hundred times by its annotation at the API server, under load: no app notices, and in the
//! end the pods' annotations say how it is.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use mesh_agent::{
    kubernetes::writeback::{PodStatus, STATUS},
    model::PodState,
};
use mesh_tests::{
    Agent, App, Node, Pod,
    agent::kernel_tier,
    api::ApiServer,
    eventually,
    kubelet::{Driver, Kubelet, PodCgroup, uid},
    node::NAMESPACE,
    require,
    socket::{connect, exchange, round_trip},
};
use serde_json::json;

const TOGGLES: usize = 100;
/// After so many changes it is waited until they are in force; the others come as fast as they can.
const WAIT_EVERY: usize = 5;

fn annotate(api: &ApiServer, enabled: bool) {
    let mesh = if enabled { "enabled" } else { "disabled" };
    let metadata = json!({"name": NAMESPACE, "annotations": {"mesh-agent.io/mesh": mesh}});
    api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}));
}

fn start(api: &ApiServer, node: &Node, kubelet: &Kubelet, pod: &Pod) -> PodCgroup {
    let uid = uid();
    api.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": NAMESPACE, "uid": uid},
        "spec": {
            "nodeName": node.name, "serviceAccountName": pod.name, "containers": [{"name": "app", "image": "none:0"}],
        },
        "status": {"phase": "Running", "podIP": pod.v4, "podIPs": [{"ip": pod.v4}, {"ip": pod.v6}]},
    }));
    let mut cgroup = kubelet.pod(&uid);
    let sandbox = cgroup.container();
    cgroup.pause(&sandbox, Some(&pod.namespace));
    cgroup
}

/// What the annotation of a pod says.
fn said(api: &ApiServer, pod: &str) -> Option<PodState> {
    let pod = api.get("v1", "Pod", NAMESPACE, pod)?;
    Some(PodStatus::parse(pod["metadata"]["annotations"][STATUS].as_str()?)?.state)
}

#[test]
fn a_namespace_toggled_a_hundred_times_under_load_disturbs_nobody() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let node = Node::new();
    let (client, server) = (node.pod("client"), node.pod("server"));
    let _app = App::echo(&server, 8080);
    let kubelet = Kubelet::on(Driver::Systemd, &node.namespace.path());
    let api = node.namespace.run(ApiServer::start);
    api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name}}));
    annotate(&api, false);
    let _cgroups = [&client, &server].map(|pod| start(&api, &node, &kubelet, pod));
    let kubeconfig = node.folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig(api.admin())).unwrap();
    let agent = Agent::start(&node, &["--kubernetes", "--kubeconfig", &kubeconfig.display().to_string()]);

    let (is_over, count) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    let long = connect(&client, server.at(8080)).unwrap();
    thread::scope(|scope| {
        let load = || {
            while !is_over.load(Ordering::Relaxed) {
                round_trip(&client, server.at(8080)).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let loads = [scope.spawn(load), scope.spawn(load)];
        for toggle in 0..TOGGLES {
            let enabled = toggle % 2 == 0;
            annotate(&api, enabled);
            if toggle % WAIT_EVERY == 0 {
                let state = if enabled { PodState::Armed } else { PodState::Off };
                for pod in ["client", "server"] {
                    agent.await_state(pod, state);
                }
                let before = count.load(Ordering::Relaxed);
                eventually("connections go on", || (count.load(Ordering::Relaxed) > before).then_some(()));
                exchange(&long, "as before").unwrap();
            }
        }
        annotate(&api, true);
        for pod in ["client", "server"] {
            agent.await_state(pod, PodState::Armed);
        }
        is_over.store(true, Ordering::Relaxed);
        // A connection that failed is a panic there.
        for load in loads {
            load.join().unwrap();
        }
    });
    exchange(&long, "to the end").unwrap();
    for pod in ["client", "server"] {
        eventually("the annotation says so", || (said(&api, pod) == Some(PodState::Armed)).then_some(()));
    }
    round_trip(&client, server.at(8080)).unwrap();
    agent.assert_all_accounted();

    annotate(&api, false);
    for pod in ["client", "server"] {
        agent.await_state(pod, PodState::Off);
        eventually("the annotation is gone", || said(&api, pod).is_none().then_some(()));
    }
}
