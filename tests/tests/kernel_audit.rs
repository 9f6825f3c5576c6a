//! What crosses the node's edge in plaintext is in the audit, with its bytes; what nobody could see is listed as such.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use mesh_agent::model::{
    Audit, Direction, Explanation, ObjectName, Peer, PlaintextFlow, PlaintextReason, PodState, Reason, Transport, Way,
};
use mesh_tests::{
    Agent, App, Node, Pair, Pod,
    agent::kernel_tier,
    manifest,
    node::NAMESPACE,
    require,
    socket::{connect, finish, round_trip},
};

/// What `mesh-agent policy audit` says.
fn audit(agent: &Agent) -> Audit {
    let output = agent.run(&["policy", "audit", "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("a report")
}

fn text(agent: &Agent, arguments: &[&str]) -> String {
    let output = agent.run(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// Sends and gets back so many bytes.
fn echo_bytes(pod: &Pod, to: SocketAddr, bytes: usize) {
    let mut stream = connect(pod, to).unwrap();
    stream.write_all(&vec![7; bytes]).unwrap();
    stream.read_exact(&mut vec![0; bytes]).unwrap();
    finish(stream).unwrap();
}

/// An echo server in a pod whose manifest is of another node, and in no namespace of the mesh.
fn outsider(node: &Node, name: &str) -> std::sync::Arc<Pod> {
    let pod = node.pod(name);
    let text =
        manifest::namespace("legacy", &[]) + &manifest::pod("legacy", name, &pod.addresses(), Some("node-2"), &[]);
    node.write("legacy.yaml", &text);
    pod
}

fn shop(name: &str) -> ObjectName {
    ObjectName::new(NAMESPACE, name)
}

fn short(flow: &PlaintextFlow) -> (Direction, &str, String, u16, PlaintextReason, [u64; 4]) {
    let numbers = [flow.connections, flow.open, flow.from_pod_bytes, flow.to_pod_bytes];
    (flow.direction, &flow.pod.name, flow.peer.to_string(), flow.port, flow.reason, numbers)
}

#[test]
fn plaintext_out_of_the_node_is_reported_with_its_bytes() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::new(&[]);
    let (far, unknown) = (pair.agent.after(|| outsider(&pair.node, "far")), pair.node.pod("unknown"));
    let _apps = [App::echo(&pair.server, 8080), App::echo(&far, 9000), App::echo(&unknown, 9001)];
    for _ in 0..3 {
        echo_bytes(&pair.client, far.at(9000), 100_000);
    }
    echo_bytes(&pair.client, unknown.at(9001), 11);
    for _ in 0..4 {
        echo_bytes(&pair.client, pair.server.at(8080), 1000);
    }
    pair.agent.settled("client");

    let audit = audit(&pair.agent);
    let to =
        |peer: &str, port, reason, numbers| (Direction::Outbound, "client", peer.to_owned(), port, reason, numbers);
    let expected = [
        to("legacy/far", 9000, PlaintextReason::DestinationNotMeshed, [3, 0, 300_000, 300_000]),
        to(&unknown.v4.to_string(), 9001, PlaintextReason::DestinationUnknown, [1, 0, 11, 11]),
    ];
    assert_eq!(audit.flows.iter().map(short).collect::<Vec<_>>(), expected);
    assert_eq!((audit.shares.plaintext.connections, audit.shares.plaintext.bytes), (4, 600_022));
    assert_eq!((audit.shares.local.connections, audit.shares.local.bytes), (4, 8000), "relayed first, then direct");
    assert_eq!(audit.unobserved, []);
    let states: Vec<_> = audit.coverage.iter().map(|row| (row.pod.clone(), row.state)).collect();
    assert_eq!(states, [(shop("client"), PodState::Armed), (shop("server"), PodState::Armed)]);

    // The same for people.
    let table = text(&pair.agent, &["policy", "audit"]);
    let row = table.lines().find(|line| line.contains("legacy/far")).expect("a row");
    assert!(row.contains("9000") && row.contains("293 KiB") && row.contains("destination_not_meshed"), "{table}");
    let file = pair.node.folder.path().join("audit.html");
    text(&pair.agent, &["policy", "audit", "-o", "html", "--output", file.to_str().unwrap()]);
    let page = std::fs::read_to_string(&file).expect("the page");
    assert!(page.contains("to legacy/far") && page.contains("293 KiB"), "{page}");
    let status = pair.agent.status();
    assert_eq!(status.node.shares.plaintext.bytes, 600_022);
    assert_eq!(pair.agent.pod("client").shares.local.bytes, 8000);
}

#[test]
fn plaintext_into_the_node_is_reported_while_it_is_open() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::new(&[]);
    let far = pair.agent.after(|| outsider(&pair.node, "far"));
    let _app = App::echo(&pair.server, 8080);
    let mut open = connect(&far, pair.server.at(8080)).unwrap();
    open.write_all(&[7; 5000]).unwrap();
    open.read_exact(&mut [0; 5000]).unwrap();
    let row = |numbers| {
        (Direction::Inbound, "server", "legacy/far".to_owned(), 8080, PlaintextReason::SourceNotMeshed, numbers)
    };
    let report = audit(&pair.agent);
    assert_eq!(report.flows.iter().map(short).collect::<Vec<_>>(), [row([1, 1, 5000, 5000])]);
    finish(open).unwrap();
    pair.agent.settled("server");
    let report = audit(&pair.agent);
    assert_eq!(report.flows.iter().map(short).collect::<Vec<_>>(), [row([1, 0, 5000, 5000])]);
}

#[test]
fn what_passed_by_the_agent_is_not_hidden() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent, client, server, node } = Pair::with(&[("exclude-outbound-ports", "9001")], &[]);
    let unknown = node.pod("unknown");
    let _apps = [App::echo(&server, 8080), App::echo(&unknown, 9000), App::echo(&unknown, 9001)];
    round_trip(&client, unknown.at(9001)).unwrap();
    round_trip(&client, unknown.at(9001)).unwrap();
    let unobserved = |agent: &Agent| -> Vec<_> {
        let rows = audit(agent).unobserved;
        rows.iter().map(|row| (row.pod.name.to_string(), row.reason, row.connections, row.before_start)).collect()
    };
    assert_eq!(unobserved(&agent), [("client".to_owned(), PlaintextReason::Excluded, 2, false)]);
    assert_eq!(audit(&agent).flows, []);

    // While no agent runs, connections pass; the next agent tells.
    agent.kill();
    mesh_tests::eventually("connections pass without an agent", || round_trip(&client, unknown.at(9000)).ok());
    let agent = node.start();
    let passed = unobserved(&agent);
    assert!(passed.contains(&("client".to_owned(), PlaintextReason::Excluded, 2, true)), "{passed:?}");
    let unavailable = |row: &&(String, PlaintextReason, u64, bool)| row.1 == PlaintextReason::AgentUnavailable;
    let row = passed.iter().find(unavailable).expect("what passed while no agent ran");
    assert!(row.2 >= 1 && row.3, "{row:?}");
    let report = audit(&agent);
    assert!(report.agent_started > report.since, "the gap is in the report");
    assert!(text(&agent, &["policy", "audit"]).contains("before the agent started"));
}

#[test]
fn who_is_refused_is_remembered_with_both_ends() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::with(&[("mode", "strict")], &[]);
    let far = pair.agent.after(|| outsider(&pair.node, "far"));
    let _app = App::echo(&pair.server, 8080);
    for _ in 0..2 {
        round_trip(&far, pair.server.at(8080)).unwrap_err();
    }
    pair.agent.settled("server");
    let report = audit(&pair.agent);
    let [refused] = report.refused.as_slice() else { panic!("{:?}", report.refused) };
    assert_eq!((refused.reason, refused.count, refused.port), (Reason::PlaintextRefused, 2, 8080));
    assert_eq!(refused.source_address, Some(far.v4.into()));
    assert_eq!(refused.destination, Peer::Pod(shop("server")));
    let identities =
        [&refused.source_identity, &refused.destination_identity].map(|id| id.as_ref().unwrap().to_string());
    let account = |namespace: &str, name: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{name}");
    assert_eq!(identities, [account("legacy", "far"), account(NAMESPACE, "server")]);
    assert_eq!(report.flows, [], "nothing of it went anywhere");
}

#[test]
fn explain_says_what_then_happens() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::with(&[("mode", "strict")], &[]);
    let far = pair.agent.after(|| outsider(&pair.node, "far"));
    let _apps = [App::echo(&pair.server, 8080), App::echo(&far, 9000)];
    let explain = |source: &str, destination: &str, port: u16| {
        let output = pair.agent.run(&["policy", "explain", source, destination, &port.to_string(), "-o", "json"]);
        let answer: Option<Explanation> = serde_json::from_slice(&output.stdout).ok();
        (output.status.code(), answer)
    };
    // Direct between the two: the second connection is.
    let (code, answer) = explain("shop/client", "shop/server", 8080);
    let paths = answer.expect("an answer").paths;
    assert_eq!((code, paths[0].way, paths[0].transport), (Some(0), Way::Direct, Transport::Local));
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    assert_eq!(pair.agent.settled("client").direct_total, 1);
    // Out of the mesh, in plaintext.
    let (code, answer) = explain("shop/client", "legacy/far", 9000);
    let plaintext = Transport::Plaintext(PlaintextReason::DestinationNotMeshed);
    assert_eq!((code, answer.expect("an answer").paths[0].transport), (Some(0), plaintext));
    round_trip(&pair.client, far.at(9000)).unwrap();
    assert_eq!(audit(&pair.agent).flows[0].reason, PlaintextReason::DestinationNotMeshed);
    // Into the mesh: refused.
    let (code, answer) = explain("legacy/far", "shop/server", 8080);
    assert_eq!((code, answer.expect("an answer").reason), (Some(1), Reason::PlaintextRefused));
    round_trip(&far, pair.server.at(8080)).unwrap_err();
    // The node's own probes are exempt.
    let probe = pair.node.v4().to_string();
    assert_eq!(explain(&probe, "shop/server", 8080).0, Some(0));
    assert!(pair.node.namespace.run(|| std::net::TcpStream::connect(pair.server.at(8080))).is_ok());
    assert_eq!(explain("shop/nobody", "shop/server", 8080).0, Some(2));
}
