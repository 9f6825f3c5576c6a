//! The HTTP listener of the real agent: what probes, Prometheus and port-forwards get.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::unix::fs::symlink,
};

use mesh_agent::model::{PodNetwork, PodState, Reason, Status};
use mesh_tests::{
    App, Pair, Pod,
    agent::kernel_tier,
    eventually, manifest,
    node::NAMESPACE,
    require,
    socket::{connect, connect_here, exchange, round_trip},
    sys::StoppedThread,
};

const PORT: u16 = 15020;

/// Code and body of an answer, asked on a thread in the node's namespace or in a pod.
fn get(from: impl FnOnce() -> std::net::TcpStream, path: &str) -> (u16, String) {
    let mut stream = from();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn on_the_node(pair: &Pair, address: IpAddr, path: &str) -> (u16, String) {
    let to = SocketAddr::new(address, PORT);
    get(|| pair.node.namespace.run(|| connect_here(to)).unwrap(), path)
}

fn from_a_pod(pod: &Pod, node: IpAddr, path: &str) -> (u16, String) {
    get(|| connect(pod, (node, PORT).into()).unwrap(), path)
}

#[test]
fn smoke_probes_metrics_and_the_status_are_served_over_http() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    pair.agent.settled("client");
    let loopback: IpAddr = Ipv6Addr::LOCALHOST.into();
    let node: IpAddr = pair.node.v4().into();

    assert_eq!(on_the_node(&pair, loopback, "/livez"), (200, "live\n".to_owned()));
    // As the kubelet asks: from and to the node's own address.
    assert_eq!(on_the_node(&pair, node, "/readyz"), (200, "ready\n".to_owned()));
    // As Prometheus does: from a pod.
    let scraped = || from_a_pod(&pair.server, node, "/metrics").1;
    for line in [
        "mesh_agent_healthy 1",
        "mesh_agent_pods{state=\"armed\"} 2",
        "mesh_pod_connections_total{workload_namespace=\"shop\",workload_pod=\"client\",verdict=\"out_redirected\"} 1",
        "mesh_connections_ended_total{reason=\"ok\"} 1",
    ] {
        eventually(line, || scraped().lines().any(|own| own == line).then_some(()));
    }

    let (code, body) = on_the_node(&pair, loopback, "/v1/status");
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!((code, status.pods.len(), status.pid), (200, 2, pair.agent.status().pid));
    let (_, body) = on_the_node(&pair, loopback, "/v1/networks?namespace=shop");
    let networks: Vec<PodNetwork> = serde_json::from_str(&body).unwrap();
    assert_eq!(networks.len(), 2);
    assert!(networks.iter().any(|pod| pod.sample.active_opens > 0), "{networks:?}");
    assert_eq!(from_a_pod(&pair.client, node, "/v1/status").0, 403);
}

#[test]
fn an_agent_that_drains_is_live_and_not_ready() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    exchange(&stream, "open").unwrap();
    let loopback: IpAddr = Ipv6Addr::LOCALHOST.into();
    pair.agent.terminate();
    let (_, why) = eventually("it is not ready", || {
        Some(on_the_node(&pair, loopback, "/readyz")).filter(|(code, _)| *code == 503)
    });
    assert!(why.contains("drains"), "{why}");
    assert_eq!(on_the_node(&pair, loopback, "/livez").0, 200);
    exchange(&stream, "still open").unwrap();
}

/// The thread of the agent that has this name.
fn thread(pair: &Pair, name: &str) -> u32 {
    let threads = std::fs::read_dir(format!("/proc/{}/task", pair.agent.pid())).unwrap();
    let named = threads
        .map(|thread| thread.unwrap().path())
        .find(|thread| std::fs::read_to_string(thread.join("comm")).is_ok_and(|own| own.trim() == name));
    named.expect("a thread of that name").file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn an_agent_of_which_one_worker_stands_still_is_not_live() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::new(&["--direct=off", "--workers", "2"]);
    let _app = App::echo(&pair.server, 8080);
    let loopback: IpAddr = Ipv6Addr::LOCALHOST.into();
    let livez = || on_the_node(&pair, loopback, "/livez");
    assert_eq!(livez().0, 200);
    for worker in 0..2 {
        let stopped = StoppedThread::new(thread(&pair, &format!("worker-{worker}"))).unwrap();
        let (_, why) = eventually("it is not live", || Some(livez()).filter(|(code, _)| *code == 503));
        assert!(why.contains(&format!("worker {worker} has not beaten")), "{why}");
        let told = pair.agent.status();
        let stuck = |problem: &&mesh_agent::model::Problem| problem.reason == Reason::WorkerStuck;
        let told: Vec<_> = told.problems.iter().filter(stuck).map(|problem| problem.object.as_str()).collect();
        assert_eq!(told, [format!("Worker {worker}")], "and no other");
        // The other one takes what comes until the agent is replaced.
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
        drop(stopped);
        eventually("it is live again", || (livez().0 == 200).then_some(()));
    }
}

#[test]
fn an_agent_is_not_ready_while_a_pod_that_should_be_armed_is_not() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let loopback: IpAddr = Ipv6Addr::LOCALHOST.into();
    let readyz = || on_the_node(&pair, loopback, "/readyz");
    assert_eq!(readyz(), (200, "ready\n".to_owned()));
    // It claims the server's network, by another name.
    let (late, link) = (pair.node.pod("late"), pair.node.folder.path().join("late-netns"));
    symlink(pair.server.namespace.path(), &link).unwrap();
    let annotations = [("netns", link.to_str().unwrap())];
    pair.node.write("late.yaml", &manifest::pod(NAMESPACE, "late", &late.addresses(), None, &annotations));
    let (_, why) = eventually("it is not ready", || Some(readyz()).filter(|(code, _)| *code == 503));
    assert!(why.contains("pod shop/late") && why.contains("that of pod shop/server"), "{why}");
    assert_eq!(on_the_node(&pair, loopback, "/livez").0, 200, "to start it anew would not help");
    assert_eq!(pair.agent.pod("server").state, PodState::Armed);
    // It gets one of its own.
    let own = pair.node.folder.path().join("own-netns");
    symlink(late.namespace.path(), &own).unwrap();
    std::fs::rename(&own, &link).unwrap();
    eventually("it is ready", || (readyz().0 == 200).then_some(()));
    assert_eq!(pair.agent.pod("late").state, PodState::Armed);
}
