//! Direct connections: after the first decision there is no proxy in the path, and no decision outlives its reasons.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_agent::model::PodState;
use mesh_tests::{
    App, Pair, Pod,
    agent::kernel_tier,
    manifest,
    node::{NAMESPACE, NODE_NAME},
    require, socket,
    socket::{connect, exchange, finish, read_all, round_trip},
};

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd96::10]:80";

fn vip() -> SocketAddr {
    VIP.parse().unwrap()
}

/// A service with these pods behind port 80.
fn service(address: SocketAddr, pods: &[&Pod], extra: &str) -> String {
    let endpoints: Vec<(IpAddr, Option<&str>)> =
        pods.iter().map(|pod| (pod.addresses()[usize::from(address.is_ipv6())], Some(NODE_NAME))).collect();
    manifest::service(NAMESPACE, "web", address.ip(), address.port(), extra)
        + &manifest::slice(NAMESPACE, "web", 8080, &endpoints)
}

/// A pair and a second server.
struct Three {
    second: Arc<Pod>,
    pair: Pair,
}

impl Three {
    fn new(arguments: &[&str]) -> Self {
        let pair = Pair::new(arguments);
        let second = pair.node.pod("second");
        let this = Self { second, pair };
        this.pair.agent.after(|| this.enrol());
        this.pair.agent.await_state("second", PodState::Armed);
        this
    }

    fn enrol(&self) {
        self.pair.node.enrol(&[&self.pair.client, &self.pair.server, &self.second]);
    }

    fn publish(&self, text: &str) {
        self.pair.agent.after(|| self.pair.node.write("service.yaml", text));
    }

    /// Who answers at the service, each of `n` times.
    fn answers(&self, to: SocketAddr, n: usize) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for _ in 0..n {
            *count.entry(read_all(&self.pair.client, to).unwrap()).or_default() += 1;
        }
        count
    }

    fn apps(&self) -> [App; 2] {
        [App::named(&self.pair.server, 8080, "first"), App::named(&self.second, 8080, "second")]
    }
}

#[test]
fn the_second_connection_to_a_pod_is_direct() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let app = App::echo(&pair.server, 8080);
    for (n, (to, own)) in
        [(pair.server.at(8080), pair.client.at(0)), (pair.server.at6(8080), pair.client.at6(0))].into_iter().enumerate()
    {
        round_trip(&pair.client, to).unwrap();
        app.seen();
        let before = pair.agent.settled("client");
        assert_eq!((before.outbound.total, before.direct_total), (n as u64 + 1, n as u64));

        let stream = connect(&pair.client, to).unwrap();
        exchange(&stream, "unmodified").unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        let local = stream.local_addr().unwrap();
        assert_eq!(local.ip(), own.ip());
        let seen = app.seen();
        assert_eq!((seen.peer, seen.local), (local, to), "nobody is between them");
        assert_eq!(pair.agent.pod("client").direct_open, 1);
        finish(stream).unwrap();
        let after = pair.agent.settled("client");
        assert_eq!((after.outbound.total, after.direct_total), (n as u64 + 1, n as u64 + 1));
    }
    let client = pair.agent.settled("client");
    assert_eq!(client.direct_bytes, 2 * 2 * 10, "the bytes of both connections, both ways");
    assert_eq!(pair.agent.pod("server").counters["in_direct"], 2);
    pair.agent.assert_all_accounted();
}

#[test]
fn with_direct_off_nothing_is_direct() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    for _ in 0..5 {
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
    }
    let client = pair.agent.settled("client");
    assert_eq!((client.outbound.total, client.direct_total, client.counters["out_direct"]), (5, 0, 0));
    assert_eq!(pair.agent.pod("server").counters["in_relayed"], 5);
}

#[test]
fn a_service_is_balanced_over_its_endpoints_without_the_agent() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let three = Three::new(&[]);
    let _apps = three.apps();
    for address in [VIP, VIP6] {
        let to: SocketAddr = address.parse().unwrap();
        three.publish(&service(to, &[&three.pair.server, &three.second], ""));
        // The first may go by way of the agent, and then knows.
        read_all(&three.pair.client, to).unwrap();
        let before = three.pair.agent.settled("client");
        let count = three.answers(to, 200);
        let after = three.pair.agent.settled("client");
        assert_eq!(after.direct_total - before.direct_total, 200);
        assert_eq!(after.outbound.total, before.outbound.total);
        // 200 throws of a fair coin: 6 standard deviations off the mean is 58 or 142.
        assert!(count["first"].abs_diff(100) < 43, "{count:?}");
        let stream = connect(&three.pair.client, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to, "the app sees the service");
    }
    three.pair.agent.assert_all_accounted();
}

#[test]
fn a_service_is_balanced_by_the_agent_with_direct_off() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let three = Three::new(&["--direct=off"]);
    let _apps = three.apps();
    three.publish(&service(vip(), &[&three.pair.server, &three.second], ""));
    let count = three.answers(vip(), 200);
    assert!(count["first"].abs_diff(100) < 43, "{count:?}");
    assert_eq!(three.pair.agent.settled("client").direct_total, 0);
    three.pair.agent.assert_all_accounted();
}

#[test]
fn traffic_distribution_is_honoured_and_changes_live() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let three = Three::new(&[]);
    let _apps = three.apps();
    let slice = manifest::slice(
        NAMESPACE,
        "web",
        8080,
        &[(three.pair.server.v4.into(), Some(NODE_NAME)), (three.second.v4.into(), Some("elsewhere"))],
    );
    let service = |extra| manifest::service(NAMESPACE, "web", vip().ip(), 80, extra) + &slice;
    three.publish(&service("trafficDistribution: PreferSameNode"));
    assert_eq!(three.answers(vip(), 40), BTreeMap::from([("first".to_owned(), 40)]));
    three.publish(&service(""));
    let count = three.answers(vip(), 100);
    assert!(count["second"] > 20, "{count:?}");
    three.publish(&service("trafficDistribution: PreferSameNode"));
    assert_eq!(three.answers(vip(), 40), BTreeMap::from([("first".to_owned(), 40)]));
    three.pair.agent.assert_all_accounted();
}

#[test]
fn an_endpoint_that_is_removed_gets_no_further_connection() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let three = Three::new(&[]);
    let _apps = three.apps();
    let both = service(vip(), &[&three.pair.server, &three.second], "");
    for _ in 0..3 {
        three.publish(&both);
        assert_eq!(three.answers(vip(), 30).len(), 2);
        three.publish(&service(vip(), &[&three.second], ""));
        assert_eq!(three.answers(vip(), 30), BTreeMap::from([("second".to_owned(), 30)]));
    }
    assert!(three.pair.agent.settled("client").direct_total > 100);
}

#[test]
fn a_service_without_endpoints_refuses() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let three = Three::new(&[]);
    let _apps = three.apps();
    three.publish(&service(vip(), &[&three.pair.server], ""));
    assert_eq!(three.answers(vip(), 3).len(), 1);
    three.publish(&service(vip(), &[], ""));
    assert!(read_all(&three.pair.client, vip()).is_err(), "nobody may answer");
    assert_eq!(three.pair.agent.reason(mesh_agent::model::Reason::NoEndpoints), 1);
    three.publish(&service(vip(), &[&three.second], ""));
    assert_eq!(three.answers(vip(), 3), BTreeMap::from([("second".to_owned(), 3)]));
}

#[test]
fn a_service_whose_address_moves_is_found_at_the_new_one_only() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let three = Three::new(&[]);
    let _apps = three.apps();
    three.publish(&service(vip(), &[&three.pair.server], ""));
    assert_eq!(three.answers(vip(), 3), BTreeMap::from([("first".to_owned(), 3)]));
    // The address is another service's now.
    let other = service(vip(), &[&three.second], "").replace("web", "other");
    three.publish(&other);
    assert_eq!(three.answers(vip(), 10), BTreeMap::from([("second".to_owned(), 10)]));
}

#[test]
fn a_target_that_leaves_the_mesh_is_not_direct_any_more() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let _app = App::echo(&pair.server, 8080);
    for round in 1..=3 {
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
        assert_eq!(pair.agent.settled("client").direct_total, round, "the second one is direct");
        let manifest = |annotations| {
            manifest::namespace(NAMESPACE, &[("mesh", "enabled")])
                + &pair.client.manifest(&[])
                + &pair.server.manifest(annotations)
        };
        pair.agent.after(|| pair.node.write("pods.yaml", &manifest(&[("mesh", "disabled")])));
        let before = pair.agent.settled("client").outbound.total;
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
        let after = pair.agent.settled("client");
        assert_eq!((after.direct_total, after.outbound.total), (round, before + 2));
        pair.agent.after(|| pair.node.write("pods.yaml", &manifest(&[])));
        pair.agent.await_state("server", PodState::Armed);
    }
    pair.agent.assert_all_accounted();
}

#[test]
fn a_strict_target_takes_direct_connections_of_the_mesh() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::with(&[("mode", "strict")], &[]);
    let _app = App::echo(&pair.server, 8080);
    for _ in 0..3 {
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
    }
    let client = pair.agent.settled("client");
    assert_eq!((client.outbound.total, client.direct_total, client.refused), (1, 2, 0));
}

#[test]
fn a_direct_connection_outlives_the_decision_it_came_from() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let _app = App::echo(&pair.server, 8080);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    let stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    exchange(&stream, "before").unwrap();
    pair.agent.after(|| pair.node.write_pods(&[("mesh", "disabled")], &[&pair.client, &pair.server]));
    exchange(&stream, "after").unwrap();
    finish(stream).unwrap();
    socket::round_trip(&pair.client, pair.server.at(8080)).unwrap();
}
