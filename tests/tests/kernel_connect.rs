//! The ways to connect: none slips by, and what is none of ours is left alone.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
};

use mesh_tests::{
    App, Pair,
    agent::kernel_tier,
    eventually, require, socket,
    socket::{exchange, finish, patient},
    sys,
    wait::PATIENCE,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, SockaddrStorage, sendto},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

fn captured(pair: &Pair) -> u64 {
    pair.agent.counter("client", "out_redirected")
}

#[test]
fn a_non_blocking_connect_is_captured() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let to = pair.server.at(8080);
    let socket = socket::new(&pair.client, to);
    socket.set_nonblocking(true).unwrap();
    let started = socket.connect(&SockAddr::from(to));
    assert!(started.is_ok() || started.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)));
    let mut events = [PollFd::new(std::os::fd::AsFd::as_fd(&socket), PollFlags::POLLOUT)];
    poll(&mut events, PollTimeout::from(5000_u16)).unwrap();
    assert!(socket.take_error().unwrap().is_none());
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
    socket.set_nonblocking(false).unwrap();
    let stream = patient(socket.into()).unwrap();
    exchange(&stream, "hello").unwrap();
    finish(stream).unwrap();
    assert_eq!(captured(&pair), 1);
    pair.agent.assert_all_accounted();
}

#[test]
fn a_connect_by_io_uring_is_captured() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    let to = pair.server.at(8080);
    let socket = socket::new(&pair.client, to);
    match sys::connect_by_io_uring(&socket, to) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            // Not within our power: kernel.io_uring_disabled, or a kernel without it.
            require("io_uring", || Err(format!("no io_uring: {error}")));
            return;
        }
        result => result.unwrap(),
    }
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
    let stream = patient(socket.into()).unwrap();
    exchange(&stream, "hello").unwrap();
    finish(stream).unwrap();
    assert_eq!(captured(&pair), 1);
    pair.agent.assert_all_accounted();
}

/// TCP fast open: data in the SYN, the connect is implied by sendto().
fn fast_open(pair: &Pair, to: SocketAddr) -> TcpStream {
    let socket = socket::new(&pair.client, to);
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    assert_eq!(sendto(socket.as_raw_fd(), b"hello", &SockaddrStorage::from(to), flags).unwrap(), 5);
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to), "the app sees the peer it asked for");
    patient(socket.into()).unwrap()
}

#[test]
fn tcp_fast_open_does_not_slip_by() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    for namespace in [&pair.client.namespace, &pair.server.namespace] {
        namespace.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap());
    }
    let _app = App::echo(&pair.server, 8080);
    // The first asks for a cookie, the second has one, if anybody gave it.
    for (n, to) in [pair.server.at(8080), pair.server.at(8080), pair.server.at6(8080)].into_iter().enumerate() {
        let mut stream = fast_open(&pair, to);
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"hello");
        finish(stream).unwrap();
        assert_eq!(captured(&pair), n as u64 + 1, "{to}");
    }
    assert_eq!(pair.agent.settled("client").outbound.to_upstream_bytes, 15);
    pair.agent.assert_all_accounted();
}

#[test]
fn tcp_fast_open_connect_does_not_slip_by() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    pair.client.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap());
    let _app = App::echo(&pair.server, 8080);
    for n in 1..=2 {
        let socket = socket::new(&pair.client, pair.server.at(8080));
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::TcpFastOpenConnect, &true).unwrap();
        socket.connect(&SockAddr::from(pair.server.at(8080))).unwrap();
        let stream = patient(socket.into()).unwrap();
        exchange(&stream, "hello").unwrap();
        finish(stream).unwrap();
        assert_eq!(captured(&pair), n);
    }
    pair.agent.assert_all_accounted();
}

/// An MPTCP socket that is connected from the client, or `None` where the kernel has no MPTCP.
fn connect_mptcp(pair: &Pair, to: SocketAddr) -> Option<Socket> {
    let made = pair.client.run(|| Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::MPTCP)));
    let socket = match made {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => {
            require("mptcp", || Err(format!("no MPTCP: {error}")));
            return None;
        }
        made => made.unwrap(),
    };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&SockAddr::from(to)).unwrap();
    Some(socket)
}

#[test]
fn an_mptcp_socket_is_captured() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    for (n, to) in [pair.server.at(8080), pair.server.at6(8080)].into_iter().enumerate() {
        let Some(socket) = connect_mptcp(&pair, to) else { return };
        let stream = TcpStream::from(socket);
        exchange(&stream, "hello").unwrap();
        finish(stream).unwrap();
        assert_eq!(captured(&pair), n as u64 + 1);
    }
    pair.agent.assert_all_accounted();
}

#[test]
fn an_mptcp_socket_shows_the_peer_it_asked_for() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _app = App::echo(&pair.server, 8080);
    for to in [pair.server.at(8080), pair.server.at6(8080)] {
        let Some(socket) = connect_mptcp(&pair, to) else { return };
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(to));
    }
}

#[test]
fn a_socket_that_reconnects_elsewhere_shows_its_new_peer() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let _first = App::named(&pair.server, 8081, "first");
    let _second = App::named(&pair.server, 8082, "second");
    let socket = socket::new(&pair.client, pair.server.at(8081));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    for (port, name) in [(8081, "first"), (8082, "second"), (8081, "first")] {
        socket.connect(&SockAddr::from(pair.server.at(port))).unwrap();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(pair.server.at(port)));
        let mut text = String::new();
        (&socket).read_to_string(&mut text).unwrap();
        assert_eq!(text, name);
        sys::disconnect(&socket).unwrap();
        assert_eq!(socket.peer_addr().unwrap_err().kind(), ErrorKind::NotConnected);
    }
    // Over loopback nothing is captured, and nothing of the former peer is shown.
    let (listener, own) = pair.client.run(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap();
        (listener, own)
    });
    socket.connect(&SockAddr::from(own)).unwrap();
    assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(own));
    drop(listener);
    assert_eq!(captured(&pair), 3);
    pair.agent.settled("client");
    pair.agent.assert_all_accounted();
}

#[test]
fn udp_is_left_alone() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let server = pair.server.run(|| UdpSocket::bind(pair.server.at(5353))).unwrap();
    let client = pair.client.run(|| UdpSocket::bind(pair.client.at(0))).unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.connect(pair.server.at(5353)).unwrap();
    client.send(b"hello").unwrap();
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from), (&b"hello"[..], client.local_addr().unwrap()));
    assert_eq!(client.peer_addr().unwrap(), pair.server.at(5353));
    let (client, server) = (pair.agent.pod("client"), pair.agent.pod("server"));
    assert_eq!((client.counters["out_seen"], server.counters["in_seen"]), (0, 0));
}

#[test]
fn loopback_is_left_alone() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    for address in ["127.0.0.1:8080", "127.9.9.9:8080", "[::1]:8080", "0.0.0.0:8080"] {
        let to: SocketAddr = address.parse().unwrap();
        let _app = App::echo(&pair.client, 8080);
        let stream = socket::connect(&pair.client, to).unwrap();
        exchange(&stream, "hello").unwrap();
        finish(stream).unwrap();
    }
    let client = pair.agent.pod("client");
    assert_eq!((client.counters["out_seen"], client.counters["in_seen"]), (0, 0));
}

#[test]
fn a_pod_may_call_its_own_address() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let app = App::echo(&pair.client, 8080);
    for to in [pair.client.at(8080), pair.client.at6(8080)] {
        let stream = socket::connect(&pair.client, to).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), to);
        exchange(&stream, "hello").unwrap();
        finish(stream).unwrap();
        assert_eq!(app.seen().peer.ip(), to.ip());
    }
    assert_eq!(pair.agent.pod("client").counters["out_redirected"], 0);
}

#[test]
fn a_socket_bound_to_the_pods_address_is_captured() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let app = App::echo(&pair.server, 8080);
    for (own, to) in [(pair.client.at(0), pair.server.at(8080)), (pair.client.at6(0), pair.server.at6(8080))] {
        let socket = socket::new(&pair.client, to);
        socket.bind(&SockAddr::from(own)).unwrap();
        socket.connect_timeout(&SockAddr::from(to), PATIENCE).unwrap();
        assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().ip(), own.ip());
        let mut stream = patient(socket.into()).unwrap();
        stream.write_all(b"x").unwrap();
        finish_after(stream, 1);
        assert_eq!(app.seen().peer.ip(), own.ip());
    }
    assert_eq!(captured(&pair), 2);
}

fn finish_after(mut stream: TcpStream, bytes: usize) {
    stream.read_exact(&mut vec![0; bytes]).unwrap();
    finish(stream).unwrap();
}

#[test]
fn a_pod_that_is_not_enrolled_is_left_alone() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let pair = Pair::relayed();
    let (outsider, other) = (pair.node.pod("outsider"), pair.node.pod("other"));
    pair.agent.after(|| {
        let pods = [&outsider, &other].map(|pod| pod.manifest(&[("mesh", "disabled")])).concat();
        pair.node.write("others.yaml", &pods);
    });
    let _app = App::echo(&other, 8080);
    socket::round_trip(&outsider, other.at(8080)).unwrap();
    for pod in ["outsider", "other"] {
        let status = pair.agent.pod(pod);
        assert_eq!((status.enrolled, status.captured, status.passed), (false, 0, 0));
    }
    eventually("nothing is relayed", || (pair.agent.status().workers.iter().all(|w| w.accepted == 0)).then_some(()));
}
