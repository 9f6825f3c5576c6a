//! Two agents in this process, joined by mutual TLS. No privileges needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
    thread::ScopedJoinHandle,
    time::Duration,
};

use mesh_agent::{
    model::{OrigDst, Reachable, Reason},
    proxy::{Attempt, Command, Config, PodListeners},
};
use mesh_tests::{
    Twin, app, eventually,
    pki::{Authority, Nobody},
    socket,
    spine::{Asked, CLIENT, CONFIG, Spine},
    twin,
};

#[test]
fn bytes_go_both_ways() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    let stream = twin.client.connect(app.address);
    socket::exchange(&stream, "hello").unwrap();
    let big = "0123456789".repeat(100_000);
    let mut writer = stream.try_clone().unwrap();
    let text = big.clone();
    let sender = std::thread::spawn(move || writer.write_all(text.as_bytes()));
    let mut back = vec![0; big.len()];
    (&stream).read_exact(&mut back).unwrap();
    sender.join().unwrap().unwrap();
    assert!(back == big.as_bytes());
    socket::finish(stream).unwrap();
    twin.client.await_reason(Reason::Ok);
    twin.server.await_reason(Reason::Ok);
    let bytes = big.len() as u64 + 5;
    assert_eq!(twin.client.totals(), (bytes, bytes));
    let inbound = &twin.server.pod.counters[0].inbound;
    assert_eq!((inbound.to_upstream.value(), inbound.to_downstream.value()), (bytes, bytes));
    assert_eq!((inbound.accepted(), inbound.opened.value()), (1, 1), "one connection came, one was carried");
}

#[test]
fn the_app_sees_the_client() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    let stream = twin.client.connect(app.address);
    socket::exchange(&stream, "hello").unwrap();
    assert_eq!(twin.server.asked(), Asked::ShowClient(stream.local_addr().unwrap()));
}

#[test]
fn either_end_may_end_first() {
    let twin = Twin::default();
    let (tell, told) = mpsc::channel();
    let app = twin.app(move |mut stream| {
        stream.write_all(b"all I have")?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let _ = tell.send(text);
        Ok(())
    });
    let mut stream = twin.client.connect(app.address);
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "all I have");
    stream.write_all(b"and this is mine").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(told.recv().unwrap(), "and this is mine");

    let app = twin.app(|mut stream| {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        stream.write_all(text.to_uppercase().as_bytes())
    });
    let mut stream = twin.client.connect(app.address);
    stream.write_all(b"the end").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "THE END");
}

#[test]
fn a_reset_of_either_end_reaches_the_other() {
    let twin = Twin::default();
    let (tell, told) = mpsc::channel();
    let app = twin.app(move |mut stream| {
        stream.write_all(b"!")?;
        let _ = tell.send(stream.read(&mut [0; 1]).map_err(|error| error.kind()));
        Ok(())
    });
    let mut stream = twin.client.connect(app.address);
    stream.read_exact(&mut [0; 1]).unwrap();
    socket::reset(stream);
    assert_eq!(told.recv().unwrap(), Err(ErrorKind::ConnectionReset));
    twin.client.await_reason(Reason::DownstreamReset);

    let app = twin.app(|mut stream| {
        stream.read_exact(&mut [0; 1])?;
        socket::reset(stream);
        Ok(())
    });
    let mut stream = twin.client.connect(app.address);
    stream.write_all(b"?").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    twin.client.await_reason(Reason::UpstreamReset);
}

#[test]
fn an_app_that_is_not_there_refuses_through_the_tunnel() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    let closed = app.address;
    drop(app);
    twin.client.fails(closed, Reason::UpstreamRefused);
    twin.server.await_reason(Reason::UpstreamRefused);
}

#[test]
fn connections_share_tunnels_and_do_not_stop_one_another() {
    let twin = Twin::default();
    let echo = twin.app(app::echo);
    let (release, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    // Reads nothing until it is told to.
    let stuck = twin.app(move |mut stream| {
        let _ = wait.lock().unwrap().recv();
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(all.len().to_string().as_bytes())
    });
    let stalled = twin.client.connect(stuck.address);
    stuck.seen();
    stalled.set_nonblocking(true).unwrap();
    let mut sent = 0_u64;
    let block = vec![7; 64 * 1024];
    let mut quiet = 0;
    while quiet < 20 {
        match (&stalled).write(&block) {
            Ok(n) => (sent, quiet) = (sent + n as u64, 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                // Others go on all the while.
                let stream = twin.client.connect(echo.address);
                socket::exchange(&stream, "not disturbed").unwrap();
                quiet += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(sent < 64 << 20, "the sender was stalled, not buffered for: {sent}");
    release.send(()).unwrap();
    stalled.set_nonblocking(false).unwrap();
    stalled.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    (&stalled).read_to_string(&mut said).unwrap();
    assert!(said == sent.to_string(), "{} bytes came back", said.len());
}

#[test]
fn somebody_else_at_the_address_gets_nothing() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    // The client's agent expects another service account there than the server's agent has.
    let mut mesh = twin::mesh("node-1", twin.at);
    let server = mesh.workload_at(twin.at).unwrap();
    let expected =
        mesh_agent::model::Workload { identity: Arc::new(twin::identity("somebody-else")), ..server.as_ref().clone() };
    mesh.destinations.insert(twin.at, mesh_agent::model::Target::Workload(Arc::new(expected)));
    twin.client.mesh.send_replace(Arc::new(mesh));
    eventually("the snapshot is in force", || socket::met_reset(twin.client.try_connect(app.address)).then_some(()));
    twin.client.await_reason(Reason::PeerUnexpected);
    assert!(app.try_seen().is_none(), "not a byte, not even a connection");
}

#[test]
fn agents_of_two_authorities_do_not_talk() {
    let twin = Twin::with(&Arc::new(Authority::default()), &Arc::new(Authority::default()));
    let app = twin.app(app::echo);
    twin.client.fails(app.address, Reason::PeerNotTrusted);
    twin.server.await_reason(Reason::PeerRefusedCertificate);
    assert!(app.try_seen().is_none());
}

#[test]
fn without_a_certificate_nothing_leaves_and_nothing_comes_in() {
    let at = twin::address();
    let authority = Arc::new(Authority::default());
    let client =
        Spine::start(twin::mesh("node-1", at), CONFIG, CLIENT, SocketAddr::from(([127, 0, 0, 1], 0)), Arc::new(Nobody));
    client.fails((at, 80).into(), Reason::CertificateMissing);

    let server = twin::start_server(at, CONFIG, Arc::new(Nobody));
    let store = mesh_tests::pki::Store::new(&authority);
    let client = Spine::start(twin::mesh("node-1", at), CONFIG, CLIENT, SocketAddr::from(([127, 0, 0, 1], 0)), store);
    client.fails((at, 80).into(), Reason::PeerAbsent);
    // The client has tried more than once.
    let refused = || server.worker.counters.reasons().any(|(reason, n)| reason == Reason::CertificateMissing && n > 1);
    eventually("the server says why", || refused().then_some(()));
}

#[test]
fn new_certificates_leave_open_connections_alone() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    let old = twin.client.connect(app.address);
    socket::exchange(&old, "before").unwrap();
    twin.client_store.rotate();
    twin.server_store.rotate();
    for _ in 0..3 {
        let new = twin.client.connect(app.address);
        socket::exchange(&new, "with the new one").unwrap();
        socket::exchange(&old, "with the old one").unwrap();
    }
    assert_eq!(twin.server.pod.counters[0].inbound.tunnels.value(), 2);
}

/// A pod leaves the mesh and comes back while a connection from before is still open: that one is to end, new ones are not.
#[test]
fn a_pod_that_comes_back_shares_its_tunnels_again() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    let old = twin.client.connect(app.address);
    socket::exchange(&old, "before").unwrap();
    let Spine { worker, pod, .. } = &twin.server;
    worker.send(Command::Close(Arc::clone(pod)));
    let listen = |at: SocketAddr| {
        let bind = || TcpListener::bind(at).ok();
        let listener = eventually("the address is free", bind);
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let outbound = listen((Ipv4Addr::LOCALHOST, 0).into());
    worker.send(Command::Add(Arc::clone(pod), PodListeners { outbound, inbound: listen(twin.tunnels()) }));
    for _ in 0..5 {
        let new = twin.client.connect(app.address);
        socket::exchange(&new, "after").unwrap();
        socket::finish(new).unwrap();
    }
    socket::exchange(&old, "still").unwrap();
    assert_eq!(pod.counters[0].inbound.tunnels.value(), 2, "the one from before, and one for all");
}

#[test]
fn certificates_may_change_under_load() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    *twin.client.original.lock().unwrap() = Some(app.address);
    let outbound = twin.client.outbound;
    let rounds = 40;
    std::thread::scope(|scope| {
        let load: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    for _ in 0..rounds {
                        let stream = socket::connect_here(outbound)?;
                        for _ in 0..3 {
                            socket::exchange(&stream, "not one is lost")?;
                        }
                        socket::finish(stream)?;
                    }
                    std::io::Result::Ok(())
                })
            })
            .collect();
        for round in 0.. {
            if load.iter().all(ScopedJoinHandle::is_finished) {
                break;
            }
            let ended = twin.client.pod.counters[0].outbound.closed.value();
            if round % 2 == 0 {
                twin.server_store.rotate();
            } else {
                twin.client_store.rotate();
            }
            eventually("some more go by", || {
                let now = twin.client.pod.counters[0].outbound.closed.value();
                (now >= ended + 5 || load.iter().all(ScopedJoinHandle::is_finished)).then_some(())
            });
        }
        for thread in load {
            thread.join().unwrap().unwrap();
        }
    });
    let inbound = &twin.server.pod.counters[0].inbound;
    assert_eq!((inbound.opened.value(), inbound.failed.value()), (4 * rounds, 0));
    assert!(inbound.tunnels.value() > 5, "connections were replaced: {}", inbound.tunnels.value());
}

/// Dials as an app whose handshake is held, until the agent says whether the destination answers.
fn hold(spine: &Spine, to: SocketAddr) -> (std::net::TcpListener, SocketAddr, Reachable) {
    let here = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let downstream = here.local_addr().unwrap();
    let attempt = Attempt { downstream, destination: OrigDst(to), chosen: None };
    spine.worker.send(Command::Attempt(Arc::clone(&spine.pod), attempt));
    let (about, reachable) = spine.reach.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(about, to);
    (here, downstream, reachable)
}

#[test]
fn a_held_handshake_ends_as_the_app_at_the_other_node_answers() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    let (here, downstream, reachable) = hold(&twin.client, app.address);
    assert_eq!(reachable, Reachable::Open);
    let seen = app.seen();
    drop(here);
    // The app's connection finds the tunnel that is open already.
    *twin.client.original.lock().unwrap() = Some(app.address);
    twin.client.is_held.store(true, Relaxed);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&downstream.into()).unwrap();
    socket.connect(&twin.client.outbound.into()).unwrap();
    let stream = socket::patient(socket.into()).unwrap();
    socket::exchange(&stream, "held, and let go").unwrap();
    assert!(app.try_seen().is_none(), "one connection: {seen:?}");

    let closed = app.address;
    drop(app);
    assert_eq!(hold(&twin.client, closed).2, Reachable::Refused(libc::ECONNREFUSED));
}

#[test]
fn half_open_handshakes_push_out_one_another_and_nobody_else() {
    let twin = Twin::default();
    let app = twin.app(app::echo);
    let open = twin.client.connect(app.address);
    socket::exchange(&open, "before").unwrap();
    let limit = 1024;
    let silent: Vec<_> = (0..limit + 100).map(|_| std::net::TcpStream::connect(twin.tunnels()).unwrap()).collect();
    eventually("the oldest are out", || {
        let mut reasons = twin.server.worker.counters.reasons();
        reasons.any(|(reason, n)| reason == Reason::HandshakeLimit && n == 100).then_some(())
    });
    twin.client_store.rotate();
    socket::exchange(&twin.client.connect(app.address), "a new handshake").unwrap();
    socket::exchange(&open, "meanwhile").unwrap();
    assert_eq!((&silent[0]).read(&mut [0; 1]).map_err(|error| error.kind()).unwrap_or(0), 0);
    drop(silent);
}

#[test]
fn who_shakes_hands_slowly_is_given_up() {
    let authority = Arc::new(Authority::default());
    let config = Config { handshake_timeout: Duration::from_millis(200), ..CONFIG };
    let twin = Twin::configured(&authority, &authority, config);
    let mut silent = std::net::TcpStream::connect(twin.tunnels()).unwrap();
    // The first bytes of a TLS record, and then nothing.
    silent.write_all(&[22, 3, 1, 2, 0, 1]).unwrap();
    twin.server.await_reason(Reason::HandshakeTimeout);
    let app = twin.app(app::echo);
    socket::exchange(&twin.client.connect(app.address), "hello").unwrap();

    // A server that never answers.
    let at = twin::address();
    let listener = std::net::TcpListener::bind((at, mesh_agent::proxy::hbone::PORT)).unwrap();
    twin.client.mesh.send_replace(Arc::new(twin::mesh("node-1", at)));
    eventually("the snapshot is in force", || {
        socket::met_reset(twin.client.try_connect((at, 80).into())).then_some(())
    });
    twin.client.await_reason(Reason::HandshakeTimeout);
    drop(listener);
}
