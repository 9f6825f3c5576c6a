//! What is opened to a workload: by strangers, by the node, in the clear.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{self, Read},
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
};

use mesh_agent::model::Reason;
use mesh_tests::{
    App, Node, Pair, Pod,
    agent::kernel_tier,
    app, eventually, require, socket,
    socket::{connect, connect_here, exchange, finish, round_trip},
};

/// A pod of the same network that the mesh does not know.
fn stranger(node: &Node) -> Arc<Pod> {
    node.pod("stranger")
}

#[test]
fn a_stranger_is_relayed_and_the_app_sees_its_address() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let stranger = stranger(&pair.node);
    let app = App::echo(&pair.server, 8080);
    for (n, to) in [pair.server.at(8080), pair.server.at6(8080)].into_iter().enumerate() {
        let stream = connect(&stranger, to).unwrap();
        exchange(&stream, "hello").unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        let seen = app.seen();
        let client = stream.local_addr().unwrap();
        assert_eq!((seen.accepted, seen.peer, seen.local), (client, client, to), "the real client, and its port");
        finish(stream).unwrap();
        let server = pair.agent.settled("server");
        assert_eq!((server.inbound.total, server.counters["in_redirected"]), (n as u64 + 1, n as u64 + 1));
        assert_eq!((server.inbound.failed, server.unaccounted), (0, 0));
    }
    let server = pair.agent.settled("server");
    assert_eq!((server.inbound.to_upstream_bytes, server.inbound.to_downstream_bytes), (10, 10));
    pair.agent.assert_all_accounted();
}

#[test]
fn an_app_that_listens_on_ipv4_only_sees_its_client_too() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let stranger = stranger(&pair.node);
    let listener = pair.server.run(|| TcpListener::bind(pair.server.at(8080))).unwrap();
    let app = App::new(listener, app::echo);
    let stream = connect(&stranger, pair.server.at(8080)).unwrap();
    exchange(&stream, "hello").unwrap();
    assert_eq!(app.seen().peer, stream.local_addr().unwrap());
    finish(stream).unwrap();
    assert_eq!(pair.agent.settled("server").inbound.total, 1);
}

#[test]
fn the_node_itself_passes_untouched() {
    if !require("kernel", kernel_tier) {
        return;
    }
    // Strict: a probe of the kubelet's passes even so.
    let pair = Pair::with(&[("mode", "strict")], &[]);
    let app = App::echo(&pair.server, 8080);
    for (n, to) in [pair.server.at(8080), pair.server.at6(8080)].into_iter().enumerate() {
        let stream = pair.node.namespace.run(|| connect_here(to)).unwrap();
        exchange(&stream, "probe").unwrap();
        assert_eq!(app.seen().peer, stream.local_addr().unwrap());
        finish(stream).unwrap();
        let server = pair.agent.settled("server");
        assert_eq!((server.counters["in_node"], server.inbound.total), (n as u64 + 1, 0));
    }
    // As fast as without the mesh: a closed port refuses at once.
    let refused = pair.node.namespace.run(|| connect_here(pair.server.at(9))).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn an_app_on_loopback_is_not_exposed() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let stranger = stranger(&pair.node);
    let listener = pair.server.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 8080))).unwrap();
    let app = App::new(listener, app::echo);
    let listener = pair.server.run(|| TcpListener::bind("[::1]:8081")).unwrap();
    let app6 = App::new(listener, app::echo);
    for client in [&stranger, &pair.client] {
        for to in [pair.server.at(8080), pair.server.at6(8081)] {
            for _ in 0..2 {
                let result = connect(client, to).and_then(|stream| exchange(stream, "hello"));
                assert!(result.is_err(), "{} reached {to}", client.name);
            }
        }
    }
    assert_eq!((app.try_seen(), app6.try_seen()), (None, None));
    // Of course it is there for its own pod.
    round_trip(&pair.server, (Ipv4Addr::LOCALHOST, 8080).into()).unwrap();
}

#[test]
fn strict_refuses_the_plaintext_of_a_stranger() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::with(&[("mode", "strict")], &[]);
    let stranger = stranger(&pair.node);
    let app = App::echo(&pair.server, 8080);
    for n in 1..=3 {
        let error = connect(&stranger, pair.server.at(8080)).and_then(|s| exchange(s, "hello")).unwrap_err();
        let refused = [io::ErrorKind::ConnectionReset, io::ErrorKind::ConnectionRefused, io::ErrorKind::BrokenPipe];
        assert!(refused.contains(&error.kind()), "{error:?}");
        eventually("it is counted", || (pair.agent.reason(Reason::PlaintextRefused) == n).then_some(()));
    }
    assert_eq!(app.try_seen(), None, "no byte reaches the app");
    assert_eq!(pair.agent.settled("server").inbound.failed, 3);
    // Those in the mesh are welcome.
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
}

#[test]
fn strict_and_permissive_change_live() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let stranger = stranger(&pair.node);
    let _app = App::echo(&pair.server, 8080);
    for _ in 0..2 {
        round_trip(&stranger, pair.server.at(8080)).unwrap();
        pair.agent.after(|| pair.node.enrol_with(&[("mode", "strict")], &[&pair.client, &pair.server]));
        assert!(round_trip(&stranger, pair.server.at(8080)).is_err());
        pair.agent.after(|| pair.node.enrol(&[&pair.client, &pair.server]));
    }
    round_trip(&stranger, pair.server.at(8080)).unwrap();
}

#[test]
fn a_stranger_cannot_reach_the_agents_own_ports() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let stranger = stranger(&pair.node);
    for port in [15001, 15006, 15257] {
        for to in [pair.server.at(port), pair.server.at6(port)] {
            let mut buffer = [0; 1];
            let result = connect(&stranger, to).and_then(|mut stream| stream.read(&mut buffer));
            assert!(result.is_err(), "{to} answered");
        }
    }
    // Nor can an app of the pod use them to go anywhere uncaptured.
    let mut buffer = [0; 1];
    for to in ["127.0.0.1:15001", "127.1.1.1:15001", "[::1]:15001"] {
        let result = connect(&pair.client, to.parse().unwrap()).and_then(|mut stream| stream.read(&mut buffer));
        assert!(result.is_err(), "{to} answered");
    }
    pair.agent.settled("server");
    socket::round_trip(&stranger, pair.server.at(8080)).unwrap_err();
}
