//! Two nodes with an agent each: what crosses the link between them, and that neither agent is in the other's way.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{net::SocketAddr, sync::Arc};

use mesh_agent::model::PodState;
use mesh_tests::{
    App, Cluster, Cross, Pod,
    agent::kernel_tier,
    manifest,
    node::NAMESPACE,
    require,
    socket::{connect, exchange, finish, round_trip},
};

/// What apps say, each time something else.
const QUESTION: &str = "the quick brown fox";

/// Sends `text` to an echo and back, from `client` to `to`.
fn talk(client: &Pod, to: SocketAddr, text: &str) {
    let stream = connect(client, to).unwrap();
    exchange(&stream, text).unwrap();
    finish(stream).unwrap();
}

/// The pod by IPv4 and by IPv6.
fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [pod.at(port), pod.at6(port)]
}

#[test]
fn without_a_mesh_bytes_cross_the_link_as_they_are() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cluster = Cluster::new();
    let (client, server) = (cluster.one.pod("client"), cluster.two.pod("server"));
    let capture = cluster.capture();
    let app = App::echo(&server, 8080);
    capture.assert_no_clear(QUESTION);
    for (to, from) in both(&server, 8080).into_iter().zip(both(&client, 0)) {
        let text = format!("{QUESTION} to {to}");
        talk(&client, to, &text);
        capture.assert_clear(&text);
        let seen = app.seen();
        assert_eq!((seen.peer.ip(), seen.local), (from.ip(), to), "no address is translated");
        let sent = capture.sent_to(to);
        assert_eq!((sent.len(), sent[0].data.as_slice()), (1, text.as_bytes()));
    }
}

#[test]
fn a_pod_outside_the_mesh_is_reached_in_the_clear() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let outsider = cross.cluster.two.pod("outsider");
    let manifest = manifest::pods(&[("mesh", "enabled")], &[&cross.client, &cross.server])
        + &outsider.manifest(&[("mesh", "disabled")]);
    cross.after(|| cross.cluster.write("pods.yaml", &manifest));
    let capture = cross.cluster.capture();
    let app = App::echo(&outsider, 8080);
    for (n, (to, from)) in both(&outsider, 8080).into_iter().zip(both(&cross.client, 0)).enumerate() {
        let text = format!("{QUESTION} to {to}");
        talk(&cross.client, to, &text);
        capture.assert_clear(&text);
        assert_eq!(app.seen().peer.ip(), from.ip(), "the pod called, not its node");
        let client = cross.near.settled("client");
        assert_eq!((client.outbound.total, client.direct_total, client.unaccounted), (n as u64 + 1, 0, 0));
    }
    // The other way round: a stranger calls from the other node.
    let app = App::echo(&cross.client, 8080);
    for (to, from) in both(&cross.client, 8080).into_iter().zip(both(&outsider, 0)) {
        let text = format!("{QUESTION} to {to}");
        talk(&outsider, to, &text);
        capture.assert_clear(&text);
        assert_eq!(app.seen().peer.ip(), from.ip(), "the app sees who called");
    }
    assert_eq!(cross.near.settled("client").inbound.total, 2);
    cross.assert_all_accounted();
}

/// A second pod on each node, enrolled, so that there is something direct.
fn neighbours(cross: &Cross) -> [Arc<Pod>; 2] {
    let pods = [cross.cluster.one.pod("neighbour-1"), cross.cluster.two.pod("neighbour-2")];
    let all = [&*cross.client, &cross.server, &pods[0], &pods[1]];
    cross.after(|| cross.cluster.enrol_with(&[], &all));
    cross.near.await_state("neighbour-1", PodState::Armed);
    cross.far.await_state("neighbour-2", PodState::Armed);
    pods
}

#[test]
fn two_agents_know_their_own_pods_only() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let states = |agent: &mesh_tests::Agent| agent.status().pods.len();
    assert_eq!((states(&cross.near), states(&cross.far)), (1, 1));
    let [neighbour_1, neighbour_2] = neighbours(&cross);
    let names = |agent: &mesh_tests::Agent| {
        agent.status().pods.into_iter().map(|pod| (pod.name.name.to_string(), pod.state)).collect::<Vec<_>>()
    };
    let armed = |name: &str| (name.to_owned(), PodState::Armed);
    assert_eq!(names(&cross.near), [armed("client"), armed("neighbour-1")]);
    assert_eq!(names(&cross.far), [armed("neighbour-2"), armed("server")]);
    // On each node the second connection is direct, and nobody else has seen either.
    for (agent, client, server) in
        [(&cross.near, &cross.client, &neighbour_1), (&cross.far, &cross.server, &neighbour_2)]
    {
        let _app = App::echo(server, 8080);
        for (n, to) in both(server, 8080).into_iter().enumerate() {
            round_trip(client, to).unwrap();
            round_trip(client, to).unwrap();
            let status = agent.settled(&client.name);
            assert_eq!((status.outbound.total, status.direct_total), (n as u64 + 1, n as u64 + 1));
        }
        let server = agent.settled(&server.name);
        assert_eq!((server.counters["in_direct"], server.counters["in_relayed"], server.inbound.total), (2, 2, 0));
    }
    for agent in cross.agents() {
        let status = agent.status();
        assert!(status.healthy, "{:?}", status.problems);
        assert!(status.kernel.hooks.iter().all(|hook| hook.armed), "{:?}", status.kernel.hooks);
        let check = agent.run(&["check"]);
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(said.contains("other mesh-agents, for their own pods"), "{said}");
    }
    cross.assert_all_accounted();
}

#[test]
fn an_agent_that_is_removed_leaves_the_other_at_work() {
    if !require("kernel", kernel_tier) {
        return;
    }
    for first in [true, false] {
        let cross = Cross::new();
        let [neighbour_1, neighbour_2] = neighbours(&cross);
        let _apps = [&neighbour_1, &neighbour_2, &cross.server, &cross.client].map(|pod| App::echo(pod, 8080));
        let Cross { near, far, client, server, cluster } = cross;
        let (mut gone, kept) = if first { (near, far) } else { (far, near) };
        let (own, neighbour) = if first { (&server, &neighbour_2) } else { (&client, &neighbour_1) };
        round_trip(own, neighbour.at(8080)).unwrap();
        let open = connect(own, neighbour.at(8080)).unwrap();
        exchange(&open, "before").unwrap();
        gone.terminate();
        assert!(gone.wait(mesh_tests::wait::PATIENCE).success());
        let cleanup = gone.run(&["cleanup"]);
        assert!(cleanup.status.success(), "{}", String::from_utf8_lossy(&cleanup.stderr));

        exchange(&open, "after").unwrap();
        finish(open).unwrap();
        let before = kept.settled(&own.name);
        round_trip(own, neighbour.at(8080)).unwrap();
        let after = kept.settled(&own.name);
        assert_eq!((after.direct_total, after.outbound.total), (before.direct_total + 1, before.outbound.total));
        let status = kept.status();
        assert!(status.healthy, "{:?}", status.problems);
        assert!(status.kernel.hooks.iter().all(|hook| hook.armed), "{:?}", status.kernel.hooks);
        // Across the link there is nobody to speak to but the app itself.
        let (from, to) = if first { (&client, &server) } else { (&server, &client) };
        round_trip(from, to.at(8080)).unwrap();
        kept.settled(&own.name);
        kept.assert_all_accounted();
        drop((kept, gone, cluster));
    }
}

#[test]
fn services_lead_across_the_link() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let app = App::echo(&cross.server, 8080);
    for (address, endpoint) in ["10.96.0.10:80", "[fd96::10]:80"]
        .map(|text| text.parse::<SocketAddr>().unwrap())
        .into_iter()
        .zip(cross.server.addresses())
    {
        let node = Some(cross.server.node.as_str());
        let text = manifest::service(NAMESPACE, "web", address.ip(), 80, "")
            + &manifest::slice(NAMESPACE, "web", 8080, &[(endpoint, node)]);
        cross.after(|| cross.cluster.write("service.yaml", &text));
        let stream = connect(&cross.client, address).unwrap();
        exchange(&stream, QUESTION).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address, "the app sees the service");
        let own = cross.client.addresses()[usize::from(address.is_ipv6())];
        let seen = app.seen();
        assert_eq!((seen.peer.ip(), seen.local.ip()), (own, endpoint), "the server sees the client's pod");
        finish(stream).unwrap();
    }
    let (client, server) = (cross.near.settled("client"), cross.far.settled("server"));
    assert_eq!((client.outbound.total, client.direct_total, server.inbound.total), (2, 0, 2));
    cross.assert_all_accounted();
}
