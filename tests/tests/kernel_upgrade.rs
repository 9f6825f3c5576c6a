//! An agent is started beside one that runs, and takes over: no connection is lost, and strict pods are never open.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixListener,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use mesh_agent::model::PodState;
use mesh_agent::{
    admin::{client, lock::RunLock, socket_path},
    model::{HandoverRequest, HandoverStep},
};
use mesh_tests::{
    Agent, App, Cross, Node, Pair, Pod,
    agent::kernel_tier,
    eventually, require,
    socket::{connect, connect_here, exchange, finish, round_trip},
    wait::PATIENCE,
};
use nix::sys::signal::{Signal, kill};

const RELAYED: &[&str] = &["--direct=off"];
const STRICT: &[(&str, &str)] = &[("mode", "strict")];

/// Something that is done again and again on a thread until it is told to end.
struct Again {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Again {
    fn start(pod: &Arc<Pod>, mut act: impl FnMut(u64) + Send + 'static) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, pod) = (Arc::clone(&stop), Arc::clone(&rounds), Arc::clone(pod));
        let thread = std::thread::spawn(move || {
            pod.run(|| {
                while !stopped.load(Relaxed) {
                    act(counted.load(Relaxed));
                    counted.fetch_add(1, Relaxed);
                }
            });
        });
        Self { stop, rounds, thread }
    }

    /// Waits until it has been done some more times.
    fn go_on(&self) {
        let before = self.rounds.load(Relaxed);
        eventually("some rounds", || {
            (self.rounds.load(Relaxed) > before + 20 || self.thread.is_finished()).then_some(())
        });
    }

    /// How often it was done, if it never failed.
    fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        self.rounds.load(Relaxed)
    }
}

/// Short connections, one after the other, each of which has to succeed.
fn load(pod: &Arc<Pod>, to: SocketAddr) -> Again {
    Again::start(pod, move |n| {
        let stream = connect_here(to).unwrap_or_else(|error| panic!("connection {n} to {to}: {error}"));
        exchange(&stream, "hello")
            .and_then(|()| finish(stream))
            .unwrap_or_else(|error| panic!("on connection {n} to {to}: {error}"));
    })
}

/// Connections of somebody who must not get through.
fn intrude(stranger: &Arc<Pod>, to: SocketAddr) -> Again {
    Again::start(stranger, move |n| {
        let answer = connect_here(to).and_then(|mut stream| {
            stream.write_all(b"let me in")?;
            stream.read(&mut [0; 1])
        });
        assert!(matches!(answer, Ok(0) | Err(_)), "attempt {n} got through");
    })
}

/// No connection was refused or passed for want of an agent, and none was lost.
fn assert_nothing_missed(agent: &Agent) {
    for pod in agent.status().pods {
        for counter in [
            "out_passed_unavailable",
            "out_refused_unavailable",
            "in_passed_unavailable",
            "in_refused_unavailable",
            "out_orphaned",
        ] {
            assert_eq!(pod.counters[counter], 0, "{}: {counter}", pod.name);
        }
    }
    agent.assert_all_accounted();
}

fn assert_ends(mut agent: Agent) {
    assert!(agent.wait(PATIENCE).success());
}

#[test]
fn an_upgrade_under_load_loses_nothing_and_opens_nothing() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: mut old, client, server, node } = Pair::with(STRICT, RELAYED);
    let stranger = node.pod("stranger");
    let app = App::echo(&server, 8080);
    let long = connect(&client, server.at(8080)).unwrap();
    exchange(&long, "before").unwrap();
    let loads = [load(&client, server.at(8080)), load(&client, server.at6(8080))];
    let intruder = intrude(&stranger, server.at(8080));
    loads[0].go_on();

    let new = node.start_with(RELAYED);
    exchange(&long, "after").unwrap();
    loads[0].go_on();
    intruder.go_on();
    for load in loads {
        load.end();
    }
    intruder.end();
    eventually("nothing but the long one is left with the old one", || {
        let draining = new.status().draining;
        (draining.len() == 1 && draining[0].pid == old.pid().as_raw().unsigned_abs() && draining[0].open == Some(1))
            .then_some(())
    });
    exchange(&long, "much later").unwrap();
    assert!(old.is_running());
    finish(long).unwrap();
    assert_ends(old);
    eventually("it is forgotten", || new.status().draining.is_empty().then_some(()));
    new.settled("client");
    new.settled("server");
    assert_nothing_missed(&new);
    while let Some(seen) = app.try_seen() {
        assert!(!stranger.addresses().contains(&seen.peer.ip()), "a stranger at the app");
    }
    let status = new.status();
    assert!(status.healthy, "{:?}", status.problems);
}

#[test]
fn ten_upgrades_in_a_row_lose_nothing() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent, client, server, node } = Pair::with(STRICT, RELAYED);
    let _app = App::echo(&server, 8080);
    let long = connect(&client, server.at(8080)).unwrap();
    let load = load(&client, server.at(8080));
    let mut agents = vec![agent];
    for _ in 0..10 {
        agents.push(node.start_with(RELAYED));
        exchange(&long, "still there").unwrap();
        load.go_on();
    }
    load.end();
    let last = agents.pop().unwrap();
    let mut first = agents.remove(0);
    for agent in agents {
        assert_ends(agent);
    }
    assert!(first.is_running(), "the first one has a connection");
    finish(long).unwrap();
    assert_ends(first);
    last.settled("client");
    assert_nothing_missed(&last);
}

#[test]
fn direct_connections_do_not_notice_an_upgrade() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: old, client, server, node } = Pair::with(STRICT, &[]);
    let _app = App::echo(&server, 8080);
    let load = load(&client, server.at(8080));
    load.go_on();
    let new = node.start();
    let before = new.pod("client").direct_total;
    eventually("they are direct again", || (new.pod("client").direct_total > before + 20).then_some(()));
    load.end();
    assert_ends(old);
    new.settled("client");
    assert_nothing_missed(&new);
}

#[test]
fn handshakes_that_are_held_during_an_upgrade_are_answered() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: old, client, server, node } = Pair::with(STRICT, RELAYED);
    let ports = 9000..9200_u16;
    let _apps: Vec<_> = ports.clone().map(|port| App::echo(&server, port)).collect();
    let held = |agent: &Agent| agent.counter("client", "out_held");
    let at = Arc::clone(&server);
    // A destination of which nobody knows whether it answers, each time; and one that does not.
    let answered = Again::start(&client, move |n| {
        let port = ports.start + (n % u64::from(ports.end - ports.start)) as u16;
        let stream = connect_here(at.at(port)).unwrap_or_else(|error| panic!("connection {n}: {error}"));
        exchange(&stream, "hello").and_then(|()| finish(stream)).unwrap();
        if n.is_multiple_of(8) {
            assert_eq!(connect_here(at.at(9)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
    });
    answered.go_on();
    let new = node.start_with(RELAYED);
    answered.go_on();
    answered.end();
    assert!(held(&new) > 20, "{}", held(&new));
    assert_ends(old);
    new.settled("client");
    assert_nothing_missed(&new);
}

#[test]
fn tunnels_between_nodes_survive_the_upgrade_of_either_end() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Cross { near, far, client, server, cluster } = Cross::with(STRICT, &[]);
    let stranger = cluster.one.pod("stranger");
    let _app = App::echo(&server, 8080);
    let long = connect(&client, server.at(8080)).unwrap();
    exchange(&long, "before").unwrap();
    let loads = [load(&client, server.at(8080)), load(&client, server.at6(8080))];
    let intruder = intrude(&stranger, server.at(8080));
    loads[0].go_on();
    let new_far = cluster.two.start();
    loads[0].go_on();
    exchange(&long, "the server's agent is another").unwrap();
    let new_near = cluster.one.start();
    loads[0].go_on();
    intruder.go_on();
    exchange(&long, "so is the client's").unwrap();
    for load in loads {
        load.end();
    }
    intruder.end();
    finish(long).unwrap();
    assert_ends(near);
    assert_ends(far);
    new_near.settled("client");
    new_far.settled("server");
    for agent in [&new_near, &new_far] {
        assert_nothing_missed(agent);
    }
}

#[test]
fn an_agent_that_fails_halfway_leaves_the_old_one_in_charge() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: old, client, server, node } = Pair::with(STRICT, RELAYED);
    let stranger = node.pod("stranger");
    let _app = App::echo(&server, 8080);
    let long = connect(&client, server.at(8080)).unwrap();
    let intruder = intrude(&stranger, server.at(8080));
    for round in 1..=2 {
        let mut new = Agent::spawn(&node, &["--direct=off", "--workers=1"]);
        // Its socket is the last thing it makes: it has everything else by then.
        let name = format!("admin.sock.{}", new.pid());
        let obstacle = new.run_dir().join(&name).join("obstacle");
        std::fs::create_dir_all(&obstacle).unwrap();
        assert!(!new.wait(PATIENCE).success());
        assert_eq!(new.log().matches("cannot make the admin socket").count(), round, "it had come as far as that");
        std::fs::remove_dir_all(obstacle.parent().unwrap()).unwrap();
        eventually("the old one is in charge", || {
            let is_served = round_trip(&client, server.at(8080)).is_ok();
            (is_served && old.is_in_charge()).then_some(())
        });
        exchange(&long, "as if nothing had been").unwrap();
        for to in [server.at(8080), server.at6(8080)] {
            for _ in 0..20 {
                round_trip(&client, to).unwrap();
            }
        }
    }
    intruder.go_on();
    intruder.end();
    let status = old.status();
    assert!(status.kernel.hooks.iter().all(|hook| hook.armed), "its own programs: {:?}", status.kernel.hooks);
    assert!(status.draining.is_empty());
    // And the next one succeeds.
    let new = node.start_with(RELAYED);
    round_trip(&client, server.at(8080)).unwrap();
    finish(long).unwrap();
    assert_ends(old);
    assert_eq!(new.pod("server").bypassed, 0);
}

#[test]
fn an_agent_that_is_stuck_halfway_is_not_waited_for() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: mut old, client, server, node } = Pair::with(STRICT, RELAYED);
    let stranger = node.pod("stranger");
    let _app = App::echo(&server, 8080);
    let intruder = intrude(&stranger, server.at(8080));
    // It is fast, and has to be met between two lines of the other's log: pods make it slower.
    let more: Vec<_> = (0..24).map(|n| node.pod(&format!("more-{n}"))).collect();
    let all: Vec<&Pod> = [&client, &server].into_iter().chain(&more).map(AsRef::as_ref).collect();
    old.after(|| node.enrol_with(STRICT, &all));
    old.await_state("more-23", PodState::Armed);
    let mut attempts = 0;
    let mut new = loop {
        attempts += 1;
        assert!(attempts < 10, "it was never met halfway");
        let new = Agent::spawn(&node, RELAYED);
        eventually("it hands over", || old.log().contains("handing over").then_some(()));
        kill(new.pid(), Signal::SIGSTOP).unwrap();
        if !old.log().contains("relieved") {
            break new;
        }
        kill(new.pid(), Signal::SIGCONT).unwrap();
        assert_ends(std::mem::replace(&mut old, new));
        eventually("it is in charge", || old.is_in_charge().then_some(()));
    };
    assert!(!new.wait(PATIENCE).success(), "it is killed");
    eventually("the old one is in charge", || {
        let is_served = round_trip(&client, server.at(8080)).is_ok();
        (is_served && old.is_in_charge()).then_some(())
    });
    for to in [server.at(8080), server.at6(8080)] {
        round_trip(&client, to).unwrap();
    }
    intruder.go_on();
    intruder.end();
    let status = old.status();
    assert!(status.kernel.hooks.iter().all(|hook| hook.armed), "its own programs: {:?}", status.kernel.hooks);
    // And the next one succeeds.
    let new = node.start_with(RELAYED);
    round_trip(&client, server.at(8080)).unwrap();
    assert_ends(old);
    assert_eq!(new.pod("server").bypassed, 0);
}

#[test]
fn an_agent_that_is_killed_at_any_moment_opens_nothing() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: mut old, client, server, node } = Pair::with(STRICT, RELAYED);
    let stranger = node.pod("stranger");
    let app = App::echo(&server, 8080);
    let intruder = intrude(&stranger, server.at(8080));
    let moments = ["is there to take over", "handing over", "relieved"];
    for moment in moments {
        let seen = old.log().matches(moment).count();
        let new = Agent::spawn(&node, RELAYED);
        eventually(moment, || (old.log().matches(moment).count() > seen).then_some(()));
        new.kill();
        if moment == "is there to take over" {
            round_trip(&client, server.at(8080)).unwrap();
        }
        // Whoever it was that had the pods then: if it is the dead one, another takes its place.
        let is_served = eventually("it is settled who has the pods", || {
            let log = old.log();
            let (given, back) = (log.matches("handing over").count(), log.matches("going on").count());
            if given == back && old.is_in_charge() {
                Some(true)
            } else {
                (log.matches("relieved").count() + back == given).then_some(false)
            }
        });
        if !is_served {
            let next = node.start_with(RELAYED);
            assert_ends(std::mem::replace(&mut old, next));
        }
        round_trip(&client, server.at(8080)).unwrap();
    }
    intruder.go_on();
    intruder.end();
    assert_eq!(old.pod("server").bypassed, 0);
    while let Some(seen) = app.try_seen() {
        assert!(!stranger.addresses().contains(&seen.peer.ip()), "a stranger at the app");
    }
}

/// A step as an agent of that ABI says it, and what is answered.
fn say(agent: &Agent, step: HandoverStep, abi: u32) -> String {
    let pins = agent.status().kernel.pins;
    let said = HandoverRequest { step, version: "9.9.9".to_owned(), abi, pins, accounts: Vec::new() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(client::hand_over(&socket_path(agent.run_dir()), &said)).map(drop).unwrap_err().to_string()
}

#[test]
fn an_agent_of_another_abi_is_refused_with_a_remedy() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let load = load(&pair.client, pair.server.at(8080));
    let abi = mesh_common::ABI_VERSION;
    let said = say(&pair.agent, HandoverStep::Announce, abi + 1);
    assert!(said.contains(&format!("ABI {abi}")) && said.contains("mesh-agent cleanup"), "{said}");
    let said = say(&pair.agent, HandoverStep::Take, abi);
    assert!(said.contains("announce"), "nobody takes over unannounced: {said}");
    load.go_on();
    load.end();
    pair.agent.settled("client");
    assert_nothing_missed(&pair.agent);
}

/// What an agent says that finds this answer on the admin socket of a running one.
fn meets(answer: &'static str) -> String {
    let node = Node::new();
    let run_dir = node.folder.path().join("run");
    std::fs::create_dir(&run_dir).unwrap();
    let _lock = RunLock::acquire(&run_dir).unwrap();
    let socket = UnixListener::bind(socket_path(&run_dir)).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]);
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let output = Agent::command(&node, &[]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!node.folder.path().join("bpf/mesh-agent").exists(), "it has touched nothing");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_agent_that_is_refused_says_why_and_touches_nothing() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let said = meets("HTTP/1.1 409 Conflict\r\ncontent-length: 30\r\n\r\nother ABI: run mesh-agent this");
    assert!(said.contains("other ABI: run mesh-agent"), "{said}");
    let said = meets("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    assert!(said.contains("cannot hand over") && said.contains("SIGTERM"), "{said}");
}

#[test]
fn nothing_is_taken_from_an_agent_that_is_stuck() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let long = connect(&pair.client, pair.server.at(8080)).unwrap();
    kill(pair.agent.pid(), Signal::SIGSTOP).unwrap();
    let output = Agent::command(&pair.node, RELAYED).stdin(Stdio::null()).output().unwrap();
    kill(pair.agent.pid(), Signal::SIGCONT).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("another agent is running (pid {})", pair.agent.pid())), "{said}");
    assert!(said.contains("does not answer") && said.contains("SIGKILL"), "{said}");
    exchange(&long, "it goes on").unwrap();
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    assert!(pair.agent.is_in_charge());
}

#[test]
fn an_agent_that_is_told_to_stop_awaits_its_relief() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: old, client, server, node } = Pair::with(STRICT, RELAYED);
    let _app = App::echo(&server, 8080);
    let load = load(&client, server.at(8080));
    let new = Agent::spawn(&node, RELAYED);
    eventually("the old one knows", || old.log().contains("is there to take over").then_some(()));
    old.terminate();
    eventually("the new one is in charge", || new.is_in_charge().then_some(()));
    load.go_on();
    load.end();
    assert_ends(old);
    new.settled("client");
    assert_nothing_missed(&new);
}

#[test]
fn an_agent_started_while_another_drains_leaves_it_its_connections() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: mut old, client, server, node } = Pair::relayed();
    let _app = App::echo(&server, 8080);
    let long = connect(&client, server.at(8080)).unwrap();
    exchange(&long, "before").unwrap();
    old.terminate();
    eventually("it drains", || {
        round_trip(&client, server.at(8080)).unwrap();
        old.log().contains("draining").then_some(())
    });
    let new = node.start_with(RELAYED);
    let load = load(&client, server.at(8080));
    load.go_on();
    load.end();
    exchange(&long, "after").unwrap();
    assert!(old.is_running());
    finish(long).unwrap();
    assert_ends(old);
    assert_eq!(new.settled("client").unaccounted, 0);
}

#[test]
fn policy_reaches_what_a_relieved_agent_has_open() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: old, client, server, node } = Pair::relayed();
    let stranger = node.pod("stranger");
    let _app = App::echo(&server, 8080);
    let mut plain: TcpStream = connect(&stranger, server.at(8080)).unwrap();
    exchange(&plain, "permissive").unwrap();
    let kept = connect(&client, server.at(8080)).unwrap();
    let _new = node.start_with(RELAYED);
    exchange(&plain, "still permissive").unwrap();
    node.enrol_with(STRICT, &[&client, &server]);
    assert_eq!(plain.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    exchange(&kept, "allowed").unwrap();
    finish(kept).unwrap();
    assert_ends(old);
}

#[test]
fn an_agent_that_is_to_stay_waits_for_its_end() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent: mut old, node, .. } = Pair::new(&["--direct=off", "--stay"]);
    let new = node.start_with(RELAYED);
    eventually("nothing is left to do", || old.log().contains("waiting to be stopped").then_some(()));
    assert!(old.is_running() && new.is_in_charge());
    old.terminate();
    assert_ends(old);
}
