//! Exclusions: by port and by block, of both directions, changed live.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use mesh_tests::{App, Pair, agent::kernel_tier, manifest, node::NAMESPACE, require, socket::round_trip};

/// The counters of a pod that tell captured from excluded: outbound and inbound.
fn outbound(pair: &Pair) -> (u64, u64) {
    let client = pair.agent.settled("client");
    (client.counters["out_redirected"], client.counters["out_excluded"])
}

fn inbound(pair: &Pair) -> (u64, u64) {
    let server = pair.agent.settled("server");
    (server.counters["in_redirected"], server.counters["in_excluded"])
}

/// Puts annotations on one of the pods.
fn annotate(pair: &Pair, pod: &str, annotations: manifest::Annotations<'_>) {
    let of = |name: &str| if name == pod { annotations } else { &[] };
    let text = manifest::namespace(NAMESPACE, &[("mesh", "enabled")])
        + &pair.client.manifest(of("client"))
        + &pair.server.manifest(of("server"));
    pair.agent.after(|| pair.node.write("pods.yaml", &text));
}

#[test]
fn outbound_ports_live() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _apps = [App::echo(&pair.server, 8080), App::echo(&pair.server, 8091)];
    let go = |port| round_trip(&pair.client, pair.server.at(port)).unwrap();
    go(8080);
    assert_eq!(outbound(&pair), (1, 0));
    annotate(&pair, "client", &[("exclude-outbound-ports", "25,8080,9000-9010")]);
    go(8080);
    assert_eq!(outbound(&pair), (1, 1));
    go(8091);
    assert_eq!(outbound(&pair), (2, 1));
    annotate(&pair, "client", &[("exclude-outbound-ports", "8090-8099")]);
    go(8080);
    go(8091);
    assert_eq!(outbound(&pair), (3, 2));
    annotate(&pair, "client", &[]);
    go(8080);
    go(8091);
    assert_eq!(outbound(&pair), (5, 2));
}

#[test]
fn outbound_blocks_live() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let go = || {
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
        round_trip(&pair.client, pair.server.at6(8080)).unwrap();
    };
    go();
    assert_eq!(outbound(&pair), (2, 0));
    annotate(&pair, "client", &[("exclude-outbound-cidrs", "10.77.0.0/24")]);
    go();
    assert_eq!(outbound(&pair), (3, 1), "IPv4 only");
    annotate(&pair, "client", &[("exclude-outbound-cidrs", "fd77::/64, 10.78.0.0/16")]);
    go();
    assert_eq!(outbound(&pair), (4, 2), "IPv6 only");
    annotate(&pair, "client", &[]);
    go();
    assert_eq!(outbound(&pair), (6, 2));
}

#[test]
fn inbound_ports_live() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let stranger = pair.node.pod("stranger");
    let _apps = [App::echo(&pair.server, 8080), App::echo(&pair.server, 8091)];
    let go = |port| round_trip(&stranger, pair.server.at(port)).unwrap();
    go(8080);
    assert_eq!(inbound(&pair), (1, 0));
    annotate(&pair, "server", &[("exclude-inbound-ports", "8080")]);
    go(8080);
    go(8091);
    assert_eq!(inbound(&pair), (2, 1));
    annotate(&pair, "server", &[]);
    go(8080);
    assert_eq!(inbound(&pair), (3, 1));
}

#[test]
fn inbound_blocks_live() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let stranger = pair.node.pod("stranger");
    let _app = App::echo(&pair.server, 8080);
    let go = || {
        round_trip(&stranger, pair.server.at(8080)).unwrap();
        round_trip(&stranger, pair.server.at6(8080)).unwrap();
    };
    annotate(&pair, "server", &[("exclude-inbound-cidrs", &format!("{},fd99::/16", stranger.v4))]);
    go();
    assert_eq!(inbound(&pair), (1, 1));
    annotate(&pair, "server", &[("exclude-inbound-cidrs", &stranger.v6.to_string())]);
    go();
    assert_eq!(inbound(&pair), (2, 2));
    annotate(&pair, "server", &[]);
    go();
    assert_eq!(inbound(&pair), (4, 2));
}

#[test]
fn an_excluded_port_passes_where_strict_would_refuse() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::with(&[("mode", "strict"), ("exclude-inbound-ports", "8091")], &[]);
    let stranger = pair.node.pod("stranger");
    let _apps = [App::echo(&pair.server, 8080), App::echo(&pair.server, 8091)];
    round_trip(&stranger, pair.server.at(8091)).unwrap();
    round_trip(&stranger, pair.server.at(8080)).unwrap_err();
}

#[test]
fn an_exclusion_ends_direct_connections_to_what_it_names() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let _app = App::echo(&pair.server, 8080);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    assert_eq!(pair.agent.settled("client").direct_total, 1);
    annotate(&pair, "client", &[("exclude-outbound-ports", "8080")]);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    let client = pair.agent.settled("client");
    assert_eq!((client.direct_total, client.counters["out_excluded"]), (1, 1));
}
