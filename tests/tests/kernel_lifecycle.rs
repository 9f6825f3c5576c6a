//! The agent dies, comes back, drains, is refused, is removed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read},
    process::Stdio,
    time::{Duration, Instant},
};

use mesh_agent::model::{PodState, Reason};
use mesh_tests::{
    Agent, App, Node, Pair,
    agent::kernel_tier,
    eventually, require,
    socket::{connect, exchange, finish, round_trip},
    wait::{AT_ONCE, PATIENCE},
};

#[test]
fn a_killed_agent_lets_permissive_pods_pass_and_the_next_one_tells() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent, client, server, node } = Pair::relayed();
    let stranger = node.pod("stranger");
    let app = App::echo(&server, 8080);
    round_trip(&client, server.at(8080)).unwrap();
    round_trip(&stranger, server.at(8080)).unwrap();
    agent.kill();

    for to in [server.at(8080), server.at6(8080)] {
        round_trip(&client, to).unwrap();
    }
    round_trip(&stranger, server.at(8080)).unwrap();
    for _ in 0..4 {
        app.seen();
    }

    let agent = node.start_with(&["--direct=off"]);
    let (out, into) = (agent.pod("client"), agent.pod("server"));
    assert_eq!(out.counters["out_redirected"], 1, "counters carry over");
    assert_eq!(out.counters["out_passed_unavailable"], 2);
    // The client's two arrive at the server uncaptured too.
    assert_eq!(into.counters["in_passed_unavailable"], 3);
    assert_eq!((out.bypassed, into.bypassed, out.unaccounted), (2, 3, 0));
    let status = agent.status();
    let told = status.problems.iter().find(|problem| problem.reason == Reason::CaptureUnavailable);
    assert!(told.is_some_and(|problem| !problem.remedy.is_empty()), "{:?}", status.problems);

    round_trip(&client, server.at(8080)).unwrap();
    let client = agent.settled("client");
    assert_eq!((client.counters["out_redirected"], client.outbound.total), (2, 1), "captured again");
}

#[test]
fn a_killed_agent_leaves_strict_pods_closed() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent, client, server, node } = Pair::with(&[("mode", "strict")], &["--direct=off"]);
    let stranger = node.pod("stranger");
    let app = App::echo(&server, 8080);
    round_trip(&client, server.at(8080)).unwrap();
    app.seen();
    agent.kill();

    for to in [server.at(8080), server.at6(8080)] {
        assert_eq!(connect(&client, to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert_eq!(connect(&stranger, server.at(8080)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(app.try_seen(), None);
    // Its own loopback and the node's probes are not the agent's business.
    node.namespace.run(|| mesh_tests::socket::connect_here(server.at(8080))).unwrap();
    round_trip(&server, "127.0.0.1:8080".parse().unwrap()).unwrap();

    let agent = node.start_with(&["--direct=off"]);
    assert_eq!(agent.counter("client", "out_refused_unavailable"), 2);
    assert_eq!(agent.counter("server", "in_refused_unavailable"), 1);
    assert_eq!((agent.pod("client").refused, agent.pod("client").bypassed), (2, 0));
    round_trip(&client, server.at(8080)).unwrap();
}

#[test]
fn a_stuck_agent_is_noticed_by_its_missing_beat() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    nix::sys::signal::kill(pair.agent.pid(), nix::sys::signal::Signal::SIGSTOP).unwrap();
    let started = Instant::now();
    // Until the heartbeat is stale, connections wait for the stuck one.
    eventually("connections pass", || {
        let to = pair.server.at(8080);
        let socket = mesh_tests::socket::new(&pair.client, to);
        socket.connect_timeout(&to.into(), Duration::from_secs(1)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        exchange(std::net::TcpStream::from(socket), "hello").ok()
    });
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    nix::sys::signal::kill(pair.agent.pid(), nix::sys::signal::Signal::SIGCONT).unwrap();
    eventually("it captures again", || {
        let before = pair.agent.counter("client", "out_redirected");
        round_trip(&pair.client, pair.server.at(8080)).ok()?;
        (pair.agent.counter("client", "out_redirected") > before).then_some(())
    });
    assert!(pair.agent.counter("client", "out_passed_unavailable") > 0);
}

#[test]
fn a_direct_connection_does_not_need_the_agent() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent, client, server, node } = Pair::direct();
    let _app = App::echo(&server, 8080);
    round_trip(&client, server.at(8080)).unwrap();
    let stream = connect(&client, server.at(8080)).unwrap();
    exchange(&stream, "before").unwrap();
    agent.kill();
    exchange(&stream, "while it is dead").unwrap();
    let agent = node.start();
    exchange(&stream, "after").unwrap();
    assert_eq!(stream.peer_addr().unwrap(), server.at(8080));
    finish(stream).unwrap();
    agent.settled("client");
    agent.assert_all_accounted();
}

#[test]
fn a_new_agent_believes_no_decision_of_the_old_one() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent, client, server, node } = Pair::direct();
    let _app = App::echo(&server, 8080);
    round_trip(&client, server.at(8080)).unwrap();
    round_trip(&client, server.at(8080)).unwrap();
    agent.kill();
    // While nobody looks, the server leaves the mesh.
    let namespace = mesh_tests::manifest::namespace(mesh_tests::node::NAMESPACE, &[("mesh", "enabled")]);
    node.write("pods.yaml", &(namespace + &client.manifest(&[]) + &server.manifest(&[("mesh", "disabled")])));
    let agent = node.start();
    let before = agent.pod("client").direct_total;
    round_trip(&client, server.at(8080)).unwrap();
    let after = agent.settled("client");
    assert_eq!((after.outbound.total, after.direct_total), (1, before));
    assert_eq!(agent.pod("server").state, PodState::Off);
    round_trip(&server, client.at(8080)).unwrap_err();
    assert_eq!(agent.pod("server").captured, 0);
}

#[test]
fn sigterm_waits_for_open_connections() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let mut pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    exchange(&stream, "before").unwrap();
    pair.agent.terminate();
    // New ones pass by, and are not lost.
    for _ in 0..20 {
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
        exchange(&stream, "meanwhile").unwrap();
    }
    assert!(pair.agent.is_running(), "it waits for the open connection");
    finish(stream).unwrap();
    assert!(pair.agent.wait(PATIENCE).success());
}

#[test]
fn sigterm_resets_what_outlives_the_deadline() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let mut pair = Pair::new(&["--direct=off", "--drain-deadline=500ms"]);
    let app = App::echo(&pair.server, 8080);
    let mut stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    exchange(&stream, "before").unwrap();
    let started = Instant::now();
    pair.agent.terminate();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "an accident is not taken for an end");
    let took = started.elapsed();
    assert!(took > Duration::from_millis(400) && took < AT_ONCE, "{took:?}");
    assert!(pair.agent.wait(PATIENCE).success());
    assert!(app.try_seen().is_some());
}

#[test]
fn an_idle_agent_stops_at_once() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let mut pair = Pair::relayed();
    let started = Instant::now();
    pair.agent.terminate();
    assert!(pair.agent.wait(PATIENCE).success());
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
}

#[test]
fn pins_are_not_shared_by_agents_of_two_run_folders() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    // Nobody runs on it who could hand over, nor may anybody remove what the first has pinned.
    let folder = pair.node.folder.path().join("another");
    for verb in ["run", "cleanup"] {
        let mut other = std::process::Command::new(mesh_tests::agent::binary());
        other.arg(verb).arg("--run-dir").arg(&folder).arg("--bpffs").arg(pair.agent.bpffs());
        if verb == "run" {
            other.arg("--manifests").arg(pair.node.manifests());
        }
        let output = other.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
        assert!(said.contains("another agent is running") && said.contains("--bpffs"), "{verb}: {said}");
    }
    // The first is none the worse for it.
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    assert_eq!(pair.agent.settled("client").outbound.total, 1);
    let status = pair.agent.status();
    assert!(status.healthy, "{:?}", status.problems);
}

#[test]
fn restarts_under_traffic_lose_no_new_connection() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { mut agent, client, server, node } = Pair::relayed();
    let _app = App::echo(&server, 8080);
    for _ in 0..3 {
        for _ in 0..20 {
            round_trip(&client, server.at(8080)).unwrap();
        }
        agent.terminate();
        while agent.is_running() {
            round_trip(&client, server.at(8080)).unwrap();
        }
        round_trip(&client, server.at(8080)).unwrap();
        agent = node.start_with(&["--direct=off"]);
    }
    assert_eq!(agent.pod("client").unaccounted, 0);
}

#[test]
fn cleanup_leaves_nothing() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let mut pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    let refused = pair.agent.run(&["cleanup"]);
    assert_eq!(refused.status.code(), Some(1), "not while it runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--force"));
    pair.agent.terminate();
    pair.agent.wait(PATIENCE);

    let pins = || std::fs::read_dir(pair.agent.bpffs().join("mesh-agent")).is_ok();
    assert!(pins(), "until then strict pods must stay closed");
    let output = pair.agent.run(&["cleanup"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("link_connect4"));
    assert!(!pins());
    assert!(!pair.agent.run_dir().exists(), "no socket, no lock, no folder");
    for (pod, namespace) in [("client", &pair.client.namespace), ("server", &pair.server.namespace)] {
        assert_eq!(agent_listeners(namespace), 0, "{pod}");
    }
    // Nothing is left to count it, or to be in its way.
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    let again = pair.agent.run(&["cleanup"]);
    assert!(again.status.success() && String::from_utf8_lossy(&again.stdout).contains("nothing to clean"));

    // And a new agent starts from nothing.
    let agent = pair.node.start_with(&["--direct=off"]);
    assert_eq!(agent.counter("client", "out_redirected"), 0);
}

/// Listeners in the namespace that are not the tests' own.
fn agent_listeners(namespace: &mesh_tests::node::Namespace) -> usize {
    let tables = namespace.run(|| {
        let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap();
        read("tcp") + &read("tcp6")
    });
    // Local port and state, in hexadecimal: 15001 and 15006, LISTEN.
    let is_ours = |line: &&str| (line.contains(":3A99 ") || line.contains(":3A9E ")) && line.contains(" 0A ");
    tables.lines().filter(is_ours).count()
}

#[test]
fn a_pod_that_leaves_keeps_no_listener_of_the_agent() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    assert!(agent_listeners(&pair.client.namespace) >= 2, "the test sees listeners");
    pair.node.write_pods(&[("mesh", "disabled")], &[&pair.client, &pair.server]);
    pair.agent.await_state("client", PodState::Off);
    eventually("the listeners are closed", || (agent_listeners(&pair.client.namespace) == 0).then_some(()));
}

#[test]
fn without_bpffs_the_agent_mounts_one_or_says_why_not() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let node = Node::new();
    // `Node` gives every agent a folder that is no bpffs: this one cannot become one.
    std::fs::write(node.folder.path().join("bpf"), "a file").unwrap();
    let output = Agent::command(&node, &[]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("bpf"), "{said}");
    std::fs::remove_file(node.folder.path().join("bpf")).unwrap();
    let agent = node.start();
    assert!(agent.bpffs().join("mesh-agent").is_dir());
}
