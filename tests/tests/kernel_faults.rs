//! What goes wrong on either side of the agent looks to the other side as it would without the agent.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    sync::mpsc,
    time::{Duration, Instant},
};

use mesh_agent::model::Reason;
use mesh_tests::{
    App, Pair,
    agent::kernel_tier,
    eventually, require, socket,
    socket::{connect, exchange, finish, read_all, round_trip},
    wait::{AT_ONCE, PATIENCE},
};

/// What an app meets that connects and then reads.
fn fate(pair: &Pair, to: SocketAddr) -> std::io::Error {
    let mut buffer = [0; 1];
    connect(&pair.client, to).and_then(|mut stream| stream.read(&mut buffer)).expect_err("nobody is there")
}

/// Waits until one connection has ended with the reason: its end is seen a little earlier than it is counted.
fn await_reason(pair: &Pair, reason: Reason) {
    eventually(&format!("{reason} is counted"), || (pair.agent.reason(reason) == 1).then_some(()));
}

#[test]
fn a_closed_port_is_told_to_the_app_and_counted() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    for to in [pair.server.at(9), pair.server.at6(9), "10.77.0.1:9".parse().unwrap()] {
        let started = Instant::now();
        let error = fate(&pair, to);
        let refused = [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset];
        assert!(refused.contains(&error.kind()), "{to}: {error:?}");
        assert!(started.elapsed() < AT_ONCE, "{to} after {:?}", started.elapsed());
    }
    eventually("they are counted", || (pair.agent.reason(Reason::UpstreamRefused) == 3).then_some(()));
    pair.agent.settled("client");
    pair.agent.assert_all_accounted();
}

#[test]
fn connect_to_a_closed_port_fails_with_econnrefused_as_without_the_mesh() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    for to in [pair.server.at(9), pair.server.at6(9)] {
        let error = connect(&pair.client, to).map(|_| ()).expect_err("connect() itself fails");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
}

#[test]
fn a_closed_port_of_a_direct_target_refuses() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    // The decision is by address and port: let it be made while somebody listens.
    let app = App::echo(&pair.server, 8080);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    drop(app);
    let error = connect(&pair.client, pair.server.at(8080)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    let _app = App::echo(&pair.server, 8080);
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
}

#[test]
fn a_black_hole_is_as_silent_as_without_the_mesh() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::new(&["--connect-timeout=700ms"]);
    // In the namespace of the node, packets to this address are dropped without an answer.
    pair.node.namespace.batch("route add blackhole 10.98.0.0/16\n");
    pair.node.namespace.set("ipv4/ip_forward", "1");
    let socket = socket::new(&pair.client, pair.client.at(0));
    let to: SocketAddr = "10.98.0.1:80".parse().unwrap();
    let started = Instant::now();
    let error = socket.connect_timeout(&to.into(), Duration::from_secs(2)).expect_err("nobody answered");
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(started.elapsed() > Duration::from_millis(1900), "the app's own patience counts: {:?}", started.elapsed());
    drop(socket);
    let timeouts = || pair.agent.reason(Reason::UpstreamTimeout);
    eventually("it is counted", || (timeouts() >= 1).then_some(()));
    pair.agent.assert_all_accounted();
}

#[test]
fn an_address_where_nobody_is_on_the_own_network() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::new(&["--connect-timeout=20s"]);
    let started = Instant::now();
    let error = fate(&pair, "10.77.0.200:80".parse().unwrap());
    // Neighbour discovery gives up after three seconds: EHOSTUNREACH without the mesh.
    eprintln!("an address without a neighbour ends with {error:?} after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    await_reason(&pair, Reason::UpstreamUnreachable);
}

#[test]
fn an_address_without_a_route_is_told_at_once() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let started = Instant::now();
    let error = fate(&pair, "10.99.0.1:80".parse().unwrap());
    eprintln!("no route ends with {error:?}");
    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
    await_reason(&pair, Reason::UpstreamUnreachable);
    pair.agent.assert_all_accounted();
}

#[test]
fn connect_without_a_route_fails_with_the_kernels_errno_once_it_is_known() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::direct();
    let fail = || connect(&pair.client, "10.99.0.1:80".parse().unwrap()).map(|_| ()).expect_err("there is no route");
    // A handshake that is held can be refused, and nothing else; the next one is told by the hook itself.
    let first = fail();
    assert!(matches!(first.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable), "{first}");
    assert_eq!(fail().kind(), ErrorKind::HostUnreachable);
}

#[test]
fn a_reset_of_the_server_reaches_the_client() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::new(pair.server.listen(8080), |mut stream| {
        stream.read_exact(&mut [0; 1])?;
        socket::reset(stream);
        Ok(())
    });
    let mut stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    stream.write_all(b"x").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    await_reason(&pair, Reason::UpstreamReset);
    assert_eq!(pair.agent.settled("client").outbound.failed, 1);
}

#[test]
fn a_reset_of_the_client_reaches_the_server() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let (tell, told) = mpsc::channel();
    let _app = App::new(pair.server.listen(8080), move |mut stream| {
        stream.read_exact(&mut [0; 1])?;
        stream.write_all(b"y")?;
        let _ = tell.send(stream.read(&mut [0; 1]).map_err(|error| error.kind()));
        Ok(())
    });
    let mut stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    socket::reset(stream);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    await_reason(&pair, Reason::DownstreamReset);
}

#[test]
fn a_client_may_end_first_and_still_read() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::new(pair.server.listen(8080), |mut stream| {
        let mut all = String::new();
        stream.read_to_string(&mut all)?;
        stream.write_all(all.to_uppercase().as_bytes())
    });
    let mut stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    stream.write_all(b"all of it").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "ALL OF IT");
    assert_eq!(pair.agent.settled("client").outbound.failed, 0);
}

#[test]
fn a_server_may_end_first_and_still_read() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let (tell, told) = mpsc::channel();
    let _app = App::new(pair.server.listen(8080), move |mut stream| {
        stream.write_all(b"that is all from me")?;
        stream.shutdown(Shutdown::Write)?;
        let mut all = String::new();
        stream.read_to_string(&mut all)?;
        let _ = tell.send(all);
        Ok(())
    });
    let mut stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "that is all from me");
    stream.write_all(b"but not from me").unwrap();
    drop(stream);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "but not from me");
    assert_eq!(pair.agent.settled("client").outbound.failed, 0);
}

/// What is pushed against a reader that stalls.
const SIZE: usize = 64 * 1024 * 1024;

#[test]
fn a_reader_that_stalls_costs_no_memory_and_gets_every_byte() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let (go, wait) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    let wait = std::sync::Mutex::new(wait);
    let _app = App::new(pair.server.listen(8080), move |mut stream| {
        let _ = wait.lock().unwrap().recv();
        let mut buffer = vec![0; 1 << 20];
        // Compared as a whole, which is fast without optimization too.
        let expected: Vec<u8> = (0..buffer.len() + 256).map(|i| i as u8).collect();
        let (mut total, mut is_right) = (0, true);
        loop {
            match stream.read(&mut buffer)? {
                0 => break,
                n => {
                    is_right &= buffer[..n] == expected[total % 256..][..n];
                    total += n;
                }
            }
        }
        let _ = tell.send((total, is_right));
        Ok(())
    });
    round_trip_somewhere(&pair);
    let before = pair.agent.rss();
    let mut stream = connect(&pair.client, pair.server.at(8080)).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|i| i as u8).collect();
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut sent = 0;
    while sent < SIZE {
        match stream.write(&block[sent % block.len()..]) {
            Ok(n) => sent += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < SIZE, "the sender is stalled");
    let grown = pair.agent.rss().saturating_sub(before);
    assert!(grown < 4 << 20, "the agent grew by {grown} bytes");

    go.send(()).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    while sent < SIZE {
        let rest = &block[sent % block.len()..];
        sent += stream.write(&rest[..rest.len().min(SIZE - sent)]).unwrap();
    }
    finish(stream).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), (SIZE, true));
    assert!(pair.agent.rss().saturating_sub(before) < 4 << 20);
    assert_eq!(pair.agent.settled("client").outbound.to_upstream_bytes as usize, SIZE + 5);
}

/// So that what is allocated once is.
fn round_trip_somewhere(pair: &Pair) {
    let _app = App::echo(&pair.server, 8081);
    round_trip(&pair.client, pair.server.at(8081)).unwrap();
}

#[test]
fn a_namespace_deleted_under_traffic_harms_nobody_else() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let doomed = pair.node.pod("doomed");
    pair.agent.after(|| pair.node.enrol(&[&pair.client, &pair.server, &doomed]));
    pair.agent.await_state("doomed", mesh_agent::model::PodState::Armed);
    let _apps = [App::echo(&pair.server, 8080), App::echo(&doomed, 8080)];
    let out = connect(&doomed, pair.server.at(8080)).unwrap();
    let into = connect(&pair.client, doomed.at(8080)).unwrap();
    exchange(&out, "before").unwrap();
    exchange(&into, "before").unwrap();
    let kept = connect(&pair.client, pair.server.at(8080)).unwrap();
    doomed.namespace.delete();
    eventually("its connections end", || (pair.agent.reason(Reason::WorkloadGone) >= 1).then_some(()));
    exchange(&kept, "still here").unwrap();
    round_trip(&pair.client, pair.server.at(8080)).unwrap();
    pair.agent.after(|| pair.node.enrol(&[&pair.client, &pair.server]));
    let pods = || pair.agent.status().pods.len();
    eventually("it is forgotten", || (pods() == 2).then_some(()));
    finish(kept).unwrap();
    drop((out, into));
    pair.agent.settled("client");
    pair.agent.assert_all_accounted();
}

#[test]
fn descriptors_run_out_and_come_back() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let fds = std::fs::read_dir(format!("/proc/{}/fd", pair.agent.pid())).unwrap().count() as u64;
    let limit = (fds + 20).to_string();
    let status = std::process::Command::new("prlimit")
        .args([format!("--pid={}", pair.agent.pid()), format!("--nofile={limit}:{limit}")])
        .status();
    if !require("prlimit", || status.is_ok_and(|s| s.success()).then_some(()).ok_or("no prlimit".to_owned())) {
        return;
    }
    // Twice as many as there is room for. Those that find none wait, or are reset: they are not lost in silence.
    let held: Vec<_> = (0..40).map(|_| connect(&pair.client, pair.server.at(8080))).collect();
    eventually("it is logged", || pair.agent.log().contains("fd_limit").then_some(()));
    drop(held);
    eventually("it is counted", || (pair.agent.reason(Reason::FdLimit) > 0).then_some(()));
    eventually("it recovers", || round_trip(&pair.client, pair.server.at(8080)).ok());
    pair.agent.settled("client");
    for _ in 0..10 {
        round_trip(&pair.client, pair.server.at(8080)).unwrap();
    }
    eventually("nothing is lost", || (pair.agent.pod("client").unaccounted == 0).then_some(()));
}

#[test]
fn an_agent_killed_in_any_phase_leaves_no_client_waiting() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let Pair { agent, client, server, node } = Pair::relayed();
    let _app = App::echo(&server, 8080);
    let _banner = App::named(&server, 8081, "hello");
    // Accepted and not yet connected upstream; idle; in the middle of things; half-closed.
    let connecting = connect(&client, "10.77.0.200:80".parse().unwrap());
    let idle = connect(&client, server.at(8080)).unwrap();
    exchange(&idle, "idle").unwrap();
    let half = connect(&client, server.at(8080)).unwrap();
    exchange(&half, "half").unwrap();
    let mut busy = connect(&client, server.at(8080)).unwrap();
    let _ = busy.set_nonblocking(true);
    let _ = busy.write(&vec![0; 8 << 20]);
    busy.set_nonblocking(false).unwrap();
    let inbound = node.pod("stranger");
    let inbound = connect(&inbound, server.at(8080)).unwrap();
    exchange(&inbound, "inbound").unwrap();
    agent.kill();
    for stream in [connecting.ok(), Some(idle), Some(half), Some(busy), Some(inbound)].into_iter().flatten() {
        let started = Instant::now();
        let ended = (&stream).read_to_end(&mut Vec::new());
        assert!(started.elapsed() < AT_ONCE, "{ended:?} after {:?}", started.elapsed());
    }
    // And the next ones pass.
    assert_eq!(read_all(&client, server.at(8081)).unwrap(), "hello");
    let agent = node.start_with(&["--direct=off"]);
    round_trip(&client, server.at(8080)).unwrap();
    assert_eq!(agent.settled("client").outbound.total, 1);
}
