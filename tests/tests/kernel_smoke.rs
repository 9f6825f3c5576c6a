//! The least: what is captured, and what apps see of it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::Read,
    net::{Ipv6Addr, SocketAddr, TcpStream},
};

use mesh_tests::{
    App, Pair,
    agent::kernel_tier,
    require, socket,
    socket::{canonical, connect, exchange},
};

/// Connects, exchanges, and checks what both ends see.
fn check(pair: &Pair, to: SocketAddr, own: SocketAddr) {
    let app = App::echo(&pair.server, 8080);
    let stream = connect(&pair.client, to).unwrap();
    exchange(&stream, "hello").unwrap();
    assert_eq!(stream.peer_addr().unwrap(), to, "the app sees the peer it asked for");
    let local = canonical(stream.local_addr().unwrap());
    assert_eq!(local.ip(), own.ip(), "the app sees its own pod's address");
    let seen = app.seen();
    assert_eq!(seen.accepted.ip(), own.ip(), "the server sees the client's pod");
    assert_eq!(seen.peer, seen.accepted);
    assert_eq!(seen.local, canonical(to));
    socket::finish(stream).unwrap();

    let status = pair.agent.settled("client");
    assert_eq!(status.counters["out_redirected"], 1);
    assert_eq!((status.captured, status.outbound.total, status.unaccounted), (1, 1, 0));
    assert_eq!((status.outbound.to_upstream_bytes, status.outbound.to_downstream_bytes), (5, 5));
    assert_eq!((status.outbound.failed, status.bypassed, status.refused), (0, 0, 0));
    assert!(pair.agent.status().healthy, "{:?}", pair.agent.status().problems);
}

#[test]
fn smoke_the_kernel_has_btf() {
    if require("kernel", kernel_tier) {
        assert!(std::path::Path::new("/sys/kernel/btf/vmlinux").exists());
    }
}

#[test]
fn smoke_ipv4_is_relayed_and_shows_who_talks_to_whom() {
    if require("kernel", kernel_tier) {
        let pair = Pair::relayed();
        check(&pair, pair.server.at(8080), pair.client.at(0));
    }
}

#[test]
fn smoke_ipv6_is_relayed_and_shows_who_talks_to_whom() {
    if require("kernel", kernel_tier) {
        let pair = Pair::relayed();
        check(&pair, pair.server.at6(8080), pair.client.at6(0));
    }
}

#[test]
fn smoke_v4_mapped_is_relayed_and_shows_who_talks_to_whom() {
    if require("kernel", kernel_tier) {
        let pair = Pair::relayed();
        let mapped: Ipv6Addr = pair.server.v4.to_ipv6_mapped();
        check(&pair, (mapped, 8080).into(), pair.client.at(0));
    }
}

#[test]
fn smoke_a_server_may_speak_first() {
    if require("kernel", kernel_tier) {
        let pair = Pair::relayed();
        let _app = App::banner(&pair.server, 25, "220 welcome\r\n");
        let mut stream: TcpStream = connect(&pair.client, pair.server.at(25)).unwrap();
        let mut banner = [0; 13];
        stream.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"220 welcome\r\n");
        exchange(&stream, "EHLO").unwrap();
        socket::finish(stream).unwrap();
        pair.agent.assert_all_accounted();
    }
}
