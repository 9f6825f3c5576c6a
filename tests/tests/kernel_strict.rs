//! Strict across nodes: nobody who is not in the mesh gets a byte to the app, whatever becomes of agents and authorities.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use mesh_agent::model::{Outcome, PodState, Reason};
use mesh_tests::{
    App, Cluster, Cross, Pod,
    agent::kernel_tier,
    ca::{self, Ca},
    eventually, manifest, require, socket,
    socket::{connect, round_trip},
    wait::within,
};

const STRICT: manifest::Annotations<'static> = &[("mode", "strict")];
/// What strangers send without being asked.
const INTRUSION: &[u8] = b"let me in";

/// The pod by IPv4 and by IPv6.
fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [pod.at(port), pod.at6(port)]
}

/// A pod of the client's node that is not in the mesh.
fn outsider(cross: &Cross) -> Arc<Pod> {
    let outsider = cross.cluster.one.pod("outsider");
    let text = manifest::pods(&[("mesh", "enabled"), STRICT[0]], &[&cross.client, &cross.server])
        + &outsider.manifest(&[("mesh", "disabled")]);
    cross.after(|| cross.cluster.write("pods.yaml", &text));
    outsider
}

/// Connects, says something at once and waits for an answer. What it ended with, if not with an answer.
fn intrude(from: impl FnOnce() -> std::io::Result<std::net::TcpStream>) -> Option<ErrorKind> {
    let talk = || {
        let mut stream = from()?;
        stream.write_all(INTRUSION)?;
        match stream.read(&mut [0; 1])? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    };
    talk().err().map(|error: std::io::Error| error.kind())
}

fn assert_refused(ended: Option<ErrorKind>, what: &str) {
    let refused =
        [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::UnexpectedEof];
    assert!(ended.is_some_and(|kind| refused.contains(&kind)), "{what} ended with {ended:?}");
}

#[test]
fn plaintext_from_another_node_is_refused() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::with(STRICT, &[]);
    let outsider = outsider(&cross);
    let app = App::echo(&cross.server, 8080);
    for to in both(&cross.server, 8080) {
        assert_refused(intrude(|| connect(&outsider, to)), &format!("a pod to {to}"));
        // The other node itself is a stranger too: only the own node's probes pass.
        let from_node = || cross.cluster.one.namespace.run(|| socket::connect_here(to));
        assert_refused(intrude(from_node), &format!("the other node to {to}"));
    }
    eventually("all are counted", || (cross.far.reason(Reason::PlaintextRefused) == 4).then_some(()));
    assert!(app.try_seen().is_none(), "not a byte, not even a connection");
    let noted = cross.far.status().authorizations;
    let [noted] = noted.as_slice() else { panic!("{noted:?}") };
    assert_eq!((noted.verdict.outcome, noted.verdict.reason), (Outcome::Denied, Reason::PlaintextRefused));
    assert_eq!((&noted.verdict.source, noted.count), (&None, 4));
    for to in both(&cross.server, 8080) {
        round_trip(&cross.client, to).unwrap();
    }
    cross.assert_all_accounted();
}

#[test]
fn the_own_nodes_probes_pass_and_are_listed() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::with(STRICT, &[]);
    let app = App::echo(&cross.server, 8080);
    let node = &cross.cluster.two;
    for to in both(&cross.server, 8080) {
        let stream = node.namespace.run(|| socket::connect_here(to)).unwrap();
        socket::exchange(&stream, "are you well?").unwrap();
        socket::finish(stream).unwrap();
        let own = if to.is_ipv4() { node.v4().into() } else { std::net::IpAddr::from(node.v6()) };
        assert_eq!(app.seen().peer.ip(), own);
        assert!(cross.far.status().node.addresses.contains(&own), "whose connections pass is told");
    }
    let server = cross.far.settled("server");
    assert_eq!((server.counters["in_node"], server.passed, server.bypassed), (2, 2, 0), "and how many did");
    cross.assert_all_accounted();
}

/// Strangers on the other node that try again and again, until they are dropped.
struct Siege {
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Siege {
    fn lay(outsider: &Arc<Pod>, server: &Pod) -> Self {
        let (stop, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = both(server, 8080).map(|to| {
            let (stop, tries, outsider) = (Arc::clone(&stop), Arc::clone(&tries), Arc::clone(outsider));
            std::thread::spawn(move || {
                outsider.run(|| {
                    while !stop.load(Relaxed) {
                        assert_refused(intrude(|| socket::connect_here(to)), &format!("{to}"));
                        tries.fetch_add(1, Relaxed);
                    }
                });
            })
        });
        Self { stop, tries, threads: threads.into() }
    }

    /// Waits until they have tried some more.
    fn go_on(&self) {
        let before = self.tries.load(Relaxed);
        eventually("they try again", || (self.tries.load(Relaxed) > before + 10).then_some(()));
    }

    fn lift(self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().expect("none of them got an answer");
        }
    }
}

#[test]
fn plaintext_is_refused_while_the_agent_dies_and_comes_back() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::with(STRICT, &[]);
    let outsider = outsider(&cross);
    let app = App::echo(&cross.server, 8080);
    round_trip(&cross.client, cross.server.at(8080)).unwrap();
    app.seen();
    let siege = Siege::lay(&outsider, &cross.server);
    siege.go_on();
    let Cross { near, far, client, server, cluster } = cross;
    assert!(far.reason(Reason::PlaintextRefused) > 0);
    far.kill();
    siege.go_on();
    for to in both(&server, 8080) {
        let error = round_trip(&client, to).unwrap_err();
        assert_refused(Some(error.kind()), "nor does anybody else, without an agent:");
    }
    let far = cluster.two.start();
    siege.go_on();
    siege.lift();
    assert!(app.try_seen().is_none(), "not a byte, not even a connection");
    let counters = far.pod("server").counters;
    assert!(counters["in_refused_unavailable"] > 0, "the kernel refused meanwhile: {counters:?}");
    assert_eq!(counters["in_passed_unavailable"], 0);
    for to in both(&server, 8080) {
        within(Duration::from_secs(30), "the mesh is back", || round_trip(&client, to).ok());
    }
    far.settled("server");
    drop((near, far, cluster));
}

#[test]
fn without_the_authority_certificates_in_use_go_on_and_strict_stays_strict() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cluster = Cluster::new();
    let authority = Ca::start(&cluster);
    let [near, far] = [1, 2].map(|number| ca::arguments(&cluster, number));
    let [near, far] = [&near, &far].map(|arguments| arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let cross = Cross::start(cluster, STRICT, [&near, &far]);
    let outsider = outsider(&cross);
    let app = App::echo(&cross.server, 8080);
    let capture = cross.cluster.capture();
    let open = connect(&cross.client, cross.server.at(8080)).unwrap();
    socket::exchange(&open, "while it is there").unwrap();
    app.seen();

    drop(authority);
    let siege = Siege::lay(&outsider, &cross.server);
    socket::exchange(&open, "while it is gone").unwrap();
    for to in both(&cross.server, 8080) {
        round_trip(&cross.client, to).unwrap();
        app.seen();
    }
    drop(open);

    // An agent that starts now has no certificates at all.
    let Cross { near, far: first, client, server, cluster } = cross;
    first.kill();
    let second = cluster.two.start_with(&far);
    second.await_state("server", PodState::Armed);
    siege.go_on();
    for to in both(&server, 8080) {
        let error = round_trip(&client, to).unwrap_err();
        assert_refused(Some(error.kind()), "without a certificate it cannot be called");
    }
    assert!(second.reason(Reason::CertificateMissing) > 0);

    let _authority = Ca::start(&cluster);
    for to in both(&server, 8080) {
        within(Duration::from_mins(1), "the authority is found again", || round_trip(&client, to).ok());
    }
    siege.lift();
    let expected = client.addresses();
    while let Some(seen) = app.try_seen() {
        assert!(expected.contains(&seen.peer.ip()), "only the client got through: {seen:?}");
    }
    assert!(second.reason(Reason::PlaintextRefused) > 0);
    capture.assert_no_clear("while it is there");
    capture.assert_no_clear("while it is gone");
    drop((near, second, cluster));
}
