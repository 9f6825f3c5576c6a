//! Policies for callers of another node: who they are is what their certificates say.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read},
    net::SocketAddr,
};

use mesh_agent::model::{ObjectName, Outcome, PodState, Reason};
use mesh_tests::{
    App, Cross, Pod,
    agent::kernel_tier,
    eventually,
    node::NAMESPACE,
    require,
    socket::{connect, exchange, round_trip},
};

/// The pod by IPv4 and by IPv6.
fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [pod.at(port), pod.at6(port)]
}

/// An AuthorizationPolicy of the pods' namespace.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
         {NAMESPACE}}}\nspec: {spec}\n---\n"
    )
}

/// The server's agent has refused calls of this account because of the object, so many times.
fn assert_noted(cross: &Cross, outcome: Outcome, reason: Reason, account: &str, object: &str, count: u64) {
    eventually("it is noted with both identities and the object", || {
        cross.far.status().authorizations.into_iter().find(|noted| {
            let source = noted.verdict.source.as_ref().map(ToString::to_string);
            noted.verdict.outcome == outcome
                && noted.verdict.reason == reason
                && source == Some(format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{account}"))
                && noted.verdict.destination.to_string() == format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/server")
                && noted.verdict.object == Some(ObjectName::new(NAMESPACE, object))
                && noted.count == count
        })
    });
}

#[test]
fn one_object_that_denies_all_locks_the_namespace_for_other_nodes() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let app = App::echo(&cross.server, 8080);
    cross.after(|| cross.cluster.write("policy.yaml", &policy("deny-all", "{}")));
    for to in both(&cross.server, 8080) {
        let error = connect(&cross.client, to).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: connect() itself fails");
    }
    for agent in cross.agents() {
        eventually("both agents say why", || (agent.reason(Reason::PolicyNoMatch) == 2).then_some(()));
    }
    assert_noted(&cross, Outcome::Denied, Reason::PolicyNoMatch, "client", "deny-all", 2);
    assert!(app.try_seen().is_none());
    cross.after(|| cross.cluster.nodes().map(|node| node.remove("policy.yaml")));
    for to in both(&cross.server, 8080) {
        eventually("it is open again", || round_trip(&cross.client, to).ok());
    }
    cross.assert_all_accounted();
}

#[test]
fn a_service_account_of_another_node_is_known_by_its_certificate() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let other = cross.cluster.one.pod("other");
    cross.after(|| cross.cluster.enrol_with(&[], &[&cross.client, &cross.server, &other]));
    cross.near.await_state("other", PodState::Armed);
    let app = App::echo(&cross.server, 8080);
    let spec = format!(
        "{{action: DENY, rules: [{{from: [{{source: {{principals: [cluster.local/ns/{NAMESPACE}/sa/client]}}}}]}}]}}"
    );
    cross.after(|| cross.cluster.write("policy.yaml", &policy("not-the-client", &spec)));
    for to in both(&cross.server, 8080) {
        let error = connect(&cross.client, to).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
        assert!(app.try_seen().is_none());
        round_trip(&other, to).unwrap();
        assert!(other.addresses().contains(&app.seen().peer.ip()), "the other account is let in");
    }
    assert_noted(&cross, Outcome::Denied, Reason::PolicyDenied, "client", "not-the-client", 2);
    cross.near.settled("other");
    cross.assert_all_accounted();
}

#[test]
fn a_change_of_policy_ends_open_connections_of_other_nodes() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let app = App::echo(&cross.server, 8080);
    let other = App::echo(&cross.server, 8081);
    let open = both(&cross.server, 8080).map(|to| connect(&cross.client, to).unwrap());
    let kept = connect(&cross.client, cross.server.at(8081)).unwrap();
    for stream in open.iter().chain([&kept]) {
        exchange(stream, "before").unwrap();
    }
    let spec =
        "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['8080']}}]}]}";
    cross.after(|| cross.cluster.write("policy.yaml", &policy("no-more", spec)));
    for mut stream in open {
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "nobody takes it for an end");
    }
    eventually("it is counted", || (cross.far.reason(Reason::PolicyChanged) == 2).then_some(()));
    assert_noted(&cross, Outcome::Ended, Reason::PolicyDenied, "client", "no-more", 2);
    exchange(&kept, "another port is not meant").unwrap();
    drop(kept);
    for _ in 0..2 {
        app.seen();
    }
    other.seen();
    assert!(connect(&cross.client, cross.server.at(8080)).and_then(|stream| exchange(&stream, "after")).is_err());
    assert!(app.try_seen().is_none());
    cross.assert_all_accounted();
}
