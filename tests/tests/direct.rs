//! The two spines of the proxy in this process, with a kernel that tests make up. No privileges needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use mesh_agent::{
    model::{Mode, Reason},
    proxy::{Command, Config},
};
use mesh_tests::{
    App, Spine, eventually, socket,
    spine::{Asked, CONFIG, SLOT, echo, mesh, with_service},
};
use tokio::sync::oneshot;

const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

#[test]
fn what_the_mesh_does_not_know_is_passed_on_as_asked() {
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let app = echo();
    let stream = spine.connect(app.address);
    socket::exchange(&stream, "hello").unwrap();
    socket::finish(stream).unwrap();
    spine.await_reason(Reason::Ok);
    assert_eq!(spine.totals(), (5, 5));
    assert!(spine.asked.try_recv().is_err(), "nothing is known, nothing is remembered");
}

#[test]
fn a_pod_of_this_node_is_remembered_as_direct() {
    let app = echo();
    let spine = Spine::new(mesh(app.address.ip(), Mode::Permissive));
    let stream = spine.connect(app.address);
    socket::exchange(&stream, "hello").unwrap();
    let destination = app.address;
    assert_eq!(spine.asked(), Asked::Remember { slot: SLOT, source_generation: 3, destination, backends: Vec::new() });
}

#[test]
fn with_direct_off_nothing_is_remembered() {
    let app = echo();
    let config = Config { direct: false, ..CONFIG };
    let spine = Spine::with(mesh(app.address.ip(), Mode::Permissive), config);
    socket::finish(spine.connect(app.address)).unwrap();
    spine.await_reason(Reason::Ok);
    assert!(spine.asked.try_recv().is_err());
}

#[test]
fn a_service_leads_to_its_endpoints_and_their_ways_are_remembered() {
    let app = echo();
    let vip = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 80));
    let spine = Spine::new(with_service(mesh(app.address.ip(), Mode::Permissive), vip, &[app.address]));
    let stream = spine.connect(vip);
    socket::exchange(&stream, "hello").unwrap();
    let backends = vec![(app.address, true)];
    assert_eq!(spine.asked(), Asked::Remember { slot: SLOT, source_generation: 3, destination: vip, backends });
}

#[test]
fn a_new_snapshot_is_in_force_for_the_next_connection() {
    let (first, second) = (echo(), echo());
    let vip = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 80));
    let with = |app: &App| with_service(mesh(ELSEWHERE, Mode::Permissive), vip, &[app.address]);
    let spine = Spine::new(with(&first));
    let old = spine.connect(vip);
    socket::exchange(&old, "hello").unwrap();
    spine.mesh.send_replace(Arc::new(with(&second)));
    let new = spine.connect(vip);
    socket::exchange(&new, "hello").unwrap();
    assert!(second.try_seen().is_some() && first.try_seen().is_some() && first.try_seen().is_none());
    socket::exchange(&old, "undisturbed").unwrap();
}

#[test]
fn a_connection_without_an_original_destination_goes_nowhere() {
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    assert!(socket::met_reset(socket::connect_here(spine.outbound)));
    spine.await_reason(Reason::NoOriginalDestination);
}

#[test]
fn a_service_without_the_port_or_without_endpoints_refuses() {
    let vip = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 99), 80));
    let spine = Spine::new(with_service(mesh(ELSEWHERE, Mode::Permissive), vip, &[]));
    spine.fails(vip, Reason::NoEndpoints);
    spine.fails((vip.ip(), 81).into(), Reason::UnknownServicePort);
}

#[test]
fn a_closed_port_is_blamed_on_the_server() {
    let app = echo();
    let closed = app.address;
    drop(app);
    Spine::new(mesh(ELSEWHERE, Mode::Permissive)).fails(closed, Reason::UpstreamRefused);
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    // A listener whose queue is full is as silent as a black hole.
    let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let to = listener.local_addr().unwrap().as_socket().unwrap();
    let _queued: Vec<_> =
        (0..3).map_while(|_| TcpStream::connect_timeout(&to, Duration::from_millis(100)).ok()).collect();
    let config = Config { connect_timeout: Duration::from_millis(300), ..CONFIG };
    Spine::with(mesh(ELSEWHERE, Mode::Permissive), config).fails(to, Reason::UpstreamTimeout);
}

#[test]
fn what_dials_the_agents_inbound_port_itself_is_refused() {
    // sk_lookup steers only what comes from outside the pod. Going on would dial the same listener again, without end.
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    assert!(socket::met_reset(socket::connect_here(spine.inbound)));
    spine.await_reason(Reason::NoOriginalDestination);
    assert!(spine.asked.try_recv().is_err());
}

#[test]
fn a_drain_ends_when_the_last_connection_does() {
    let app = echo();
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let stream = spine.connect(app.address);
    socket::exchange(&stream, "before").unwrap();
    let (done, mut wait) = oneshot::channel();
    spine.worker.send(Command::Drain(done));
    eventually("no more are accepted", || TcpStream::connect(spine.outbound).is_err().then_some(()));
    socket::exchange(&stream, "meanwhile").unwrap();
    assert!(wait.try_recv().is_err(), "it waits for the open one");
    socket::finish(stream).unwrap();
    eventually("the drain ends", || wait.try_recv().ok());
}

#[test]
fn aborted_connections_end_with_a_reset_and_the_reason() {
    let app = echo();
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let mut stream = spine.connect(app.address);
    socket::exchange(&stream, "before").unwrap();
    spine.worker.send(Command::AbortAll(Reason::Drained));
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    spine.await_reason(Reason::Drained);
}

#[test]
fn bytes_are_counted_while_the_connection_is_open() {
    let app = echo();
    let spine = Spine::new(mesh(ELSEWHERE, Mode::Permissive));
    let mut stream = spine.connect(app.address);
    for n in 1..=3 {
        stream.write_all(b"0123456789").unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        eventually("they are counted", || (spine.totals() == (n * 10, n * 10)).then_some(()));
    }
}
