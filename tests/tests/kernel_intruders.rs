//! What strangers try at the port that agents speak mutual TLS on: refused with a reason, and nobody else is disturbed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use mesh_agent::{
    model::{PodState, Reason},
    proxy::hbone,
};
use mesh_tests::{
    App, Cross, Pod,
    agent::kernel_tier,
    intruder,
    pki::{Authority, Own},
    require,
    socket::{connect, round_trip},
    wait::within,
};

/// Who strangers claim to be.
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

/// Two strict pods on two nodes, and a stranger beside the client.
struct Besieged {
    cross: Cross,
    outsider: Arc<Pod>,
    app: App,
    authority: Authority,
}

impl Besieged {
    fn new() -> Self {
        let cross = Cross::with(&[("mode", "strict")], &[]);
        let outsider = cross.cluster.one.pod("outsider");
        let app = App::echo(&cross.server, 8080);
        let authority = Authority::open(&cross.cluster.one.ca_root);
        Self { cross, outsider, app, authority }
    }

    /// Where the stranger knocks.
    fn tunnels(&self) -> SocketAddr {
        self.cross.server.at(hbone::PORT)
    }

    fn knock(&self) -> TcpStream {
        connect(&self.outsider, self.tunnels()).unwrap()
    }

    /// Asks for a tunnel to the app with this certificate.
    fn ask_as(&self, own: Option<Own>) -> std::io::Result<(StatusCode, Option<String>)> {
        let to = self.cross.server.at(8080).to_string();
        intruder::ask(self.knock(), intruder::config(&self.authority, own), Method::CONNECT, &to, 0)
    }

    /// Waits until the server's agent has counted so many.
    fn await_reason(&self, reason: Reason, count: u64) {
        within(Duration::from_secs(30), &format!("{count} {reason}"), || {
            (self.cross.far.reason(reason) >= count).then_some(())
        });
        assert_eq!(self.cross.far.reason(reason), count, "{reason}: {:?}", self.cross.far.status().reasons);
    }

    /// Nothing has come of it, and the mesh goes on.
    fn assert_undisturbed(self) {
        assert!(self.app.try_seen().is_none(), "no stranger got to the app");
        for to in [self.cross.server.at(8080), self.cross.server.at6(8080)] {
            round_trip(&self.cross.client, to).unwrap();
        }
        self.cross.assert_all_accounted();
    }
}

#[test]
fn who_shows_no_good_certificate_is_refused() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let besieged = Besieged::new();
    let good = besieged.authority.issue_named(CLIENT, 2020..2120);
    // That it is the certificate: with a good one it goes well.
    assert_eq!(besieged.ask_as(Some(good)).unwrap().0, StatusCode::OK);
    besieged.app.seen();

    let issue = |uri: &str, years| Some(besieged.authority.issue_named(uri, years));
    let cases = [
        ("none", None, Reason::PeerUnidentified),
        ("expired", issue(CLIENT, 2019..2020), Reason::PeerCertificateExpired),
        ("not valid yet", issue(CLIENT, 2120..2121), Reason::PeerCertificateExpired),
        ("of another root", Some(Authority::default().issue(&CLIENT.parse().unwrap())), Reason::PeerNotTrusted),
        (
            "of another trust domain",
            issue("spiffe://elsewhere/ns/shop/sa/client", 2020..2120),
            Reason::PeerUnidentified,
        ),
        ("no SPIFFE ID", issue("https://cluster.local/ns/shop/sa/client", 2020..2120), Reason::PeerUnidentified),
    ];
    let mut counts = std::collections::BTreeMap::new();
    for (what, own, reason) in cases {
        let error = besieged.ask_as(own).expect_err(what);
        eprintln!("{what}: {error}");
        let count = counts.entry(reason).or_default();
        *count += 1;
        besieged.await_reason(reason, *count);
    }
    besieged.assert_undisturbed();
}

#[test]
fn older_tls_and_no_tls_are_refused() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let besieged = Besieged::new();
    let mut stream = besieged.knock();
    stream.write_all(&intruder::hello_of_tls_1_2()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    // A fatal alert (21), protocol_version (70): RFC 8446, 6.2.
    assert_eq!((answer.first(), answer.get(5..7)), (Some(&21), Some(&[2, 70][..])), "{answer:?}");
    besieged.await_reason(Reason::TlsIncompatible, 1);

    for text in ["GET / HTTP/1.1\r\nHost: server\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = besieged.knock();
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.first().is_none_or(|kind| *kind == 21), "nothing but an alert: {answer:?}");
    }
    besieged.await_reason(Reason::TlsHandshake, 2);
    besieged.assert_undisturbed();
}

#[test]
fn requests_that_are_not_for_the_pod_are_refused() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let besieged = Besieged::new();
    let ask = |method: &Method, to: &str, padding| {
        // Whoever has a certificate of the mesh may try, too.
        let config = intruder::config(&besieged.authority, Some(besieged.authority.issue_named(CLIENT, 2020..2120)));
        intruder::ask(besieged.knock(), config, method.clone(), to, padding)
    };
    let server = besieged.cross.server.v4;
    let cases = [
        (Method::CONNECT, "10.77.0.2:8080".to_owned()),
        (Method::CONNECT, "10.77.1.1:22".to_owned()),
        (Method::CONNECT, "127.0.0.1:8080".to_owned()),
        (Method::CONNECT, "localhost:8080".to_owned()),
        (Method::CONNECT, format!("{server}:15008")),
        (Method::CONNECT, format!("{server}:15001")),
        (Method::GET, format!("{server}:8080")),
    ];
    for (count, (method, to)) in (1..).zip(&cases) {
        let (status, reason) = ask(method, to, 0).unwrap();
        assert_eq!((status, reason.as_deref()), (StatusCode::BAD_REQUEST, Some("hbone_bad_request")), "{method} {to}");
        besieged.await_reason(Reason::HboneBadRequest, count);
    }
    // More than the 16 KiB that it takes.
    let to = format!("{server}:8080");
    let answer = ask(&Method::CONNECT, &to, 20_000);
    assert!(answer.as_ref().map_or(true, |(status, _)| status.is_client_error()), "{answer:?}");
    besieged.await_reason(Reason::HboneBadRequest, cases.len() as u64 + 1);
    besieged.assert_undisturbed();
}

#[test]
fn who_is_slow_is_given_up() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let besieged = Besieged::new();
    let started = Instant::now();
    let silent = besieged.knock();
    // A hello that never ends: a byte now and then keeps nobody waiting for longer.
    let mut drip = besieged.knock();
    let hello = intruder::hello_of_tls_1_2();
    let mut bytes = hello.split_last().unwrap().1.iter();
    within(Duration::from_secs(30), "both are given up", || {
        let _ = bytes.next().map(|byte| drip.write_all(&[*byte]));
        (besieged.cross.far.reason(Reason::HandshakeTimeout) == 2).then_some(())
    });
    assert!(started.elapsed() > Duration::from_secs(9), "ten seconds they had: {:?}", started.elapsed());
    drop((silent, drip));
    besieged.assert_undisturbed();
}

/// Handshakes that are begun and not ended. This process may have 20,000 descriptors in the smallest environments that
/// the tests run in, and so may the agent.
const HALF_OPEN: usize = 10_000;

#[test]
fn ten_thousand_half_open_handshakes_disturb_nobody() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let besieged = Besieged::new();
    let Besieged { cross, outsider, app, .. } = &besieged;
    // Who has no connection yet has to shake hands in the middle of it.
    let late = cross.cluster.one.pod("late");
    cross.after(|| cross.cluster.enrol_with(&[("mode", "strict")], &[&cross.client, &cross.server, &late]));
    cross.near.await_state("late", PodState::Armed);
    let (to, tunnels) = (cross.server.at(8080), besieged.tunnels());
    round_trip(&cross.client, to).unwrap();
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| outsider.run(|| intruder::half_open(tunnels, HALF_OPEN)).unwrap());
        let (mut slowest, mut count) = (Duration::ZERO, 0);
        let mut try_once = |pod: &Pod| {
            let started = Instant::now();
            round_trip(pod, to).unwrap();
            slowest = slowest.max(started.elapsed());
            count += 1;
        };
        while !flood.is_finished() {
            try_once(&cross.client);
        }
        let held = flood.join().unwrap();
        try_once(&late);
        for _ in 0..20 {
            try_once(&cross.client);
        }
        eprintln!("{count} round trips during {} half-open handshakes; the slowest took {slowest:?}", held.len());
        assert!(slowest < Duration::from_secs(5), "{slowest:?}");
        let pushed_out = || cross.far.reason(Reason::HandshakeLimit) + cross.far.reason(Reason::HandshakeTimeout);
        within(Duration::from_secs(40), "each is given up in the end", || {
            (pushed_out() == held.len() as u64).then_some(())
        });
        assert!(cross.far.reason(Reason::HandshakeLimit) > 0, "most made room for newer ones");
        assert_eq!(cross.near.settled("client").outbound.failed, 0);
    });
    while app.try_seen().is_some() {}
    assert_eq!(cross.far.reason(Reason::FdLimit), 0);
    let Besieged { cross, app, .. } = besieged;
    round_trip(&cross.client, to).unwrap();
    app.seen();
    cross.assert_all_accounted();
}
