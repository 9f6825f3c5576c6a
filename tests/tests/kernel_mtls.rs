//! What two agents make of connections between their nodes: mutual TLS that neither app notices.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::mpsc,
};

use mesh_agent::model::Reason;
use mesh_tests::{
    App, Cluster, Cross, Pod,
    agent::kernel_tier,
    eventually, manifest,
    node::NAMESPACE,
    require, socket,
    socket::{connect, exchange, finish},
};

/// What apps say, each time something else.
const QUESTION: &str = "what nobody else is to read";

/// The pod by IPv4 and by IPv6.
fn both(pod: &Pod, port: u16) -> [SocketAddr; 2] {
    [pod.at(port), pod.at6(port)]
}

/// An app that answers every text of `length` bytes with another one: the same in capitals.
fn shouting(pod: &Pod, port: u16, length: usize) -> App {
    App::new(pod.listen(port), move |mut stream: TcpStream| {
        let mut text = vec![0; length];
        while stream.read_exact(&mut text).is_ok() {
            stream.write_all(&text.to_ascii_uppercase())?;
        }
        Ok(())
    })
}

/// Says `text` to the shouting app, in two writes with an answer in between.
fn shout(client: &Pod, to: SocketAddr, text: &str) {
    let mut stream = connect(client, to).unwrap();
    for _ in 0..2 {
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = vec![0; text.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, text.to_ascii_uppercase().as_bytes());
    }
    finish(stream).unwrap();
}

/// A Service over both families in front of the server, and its two addresses.
fn service(cross: &Cross, port: u16) -> [SocketAddr; 2] {
    let addresses: [SocketAddr; 2] = ["10.96.0.10:80", "[fd96::10]:80"].map(|text| text.parse().unwrap());
    let node = Some(cross.server.node.as_str());
    let text = addresses.iter().zip(cross.server.addresses()).fold(String::new(), |text, (address, endpoint)| {
        let name = if address.is_ipv4() { "web" } else { "web6" };
        text + &manifest::service(NAMESPACE, name, address.ip(), 80, "")
            + &manifest::slice(NAMESPACE, name, port, &[(endpoint, node)])
    });
    cross.after(|| cross.cluster.write("service.yaml", &text));
    addresses
}

#[test]
fn no_byte_of_an_app_crosses_the_link_in_clear() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let texts: Vec<_> = (0..4).map(|n| format!("{QUESTION} {n}")).collect();
    let app = shouting(&cross.server, 8080, texts[0].len());
    let services = service(&cross, 8080);
    let capture = cross.cluster.capture();
    let destinations = both(&cross.server, 8080).into_iter().chain(services);
    for (n, (to, text)) in destinations.zip(&texts).enumerate() {
        shout(&cross.client, to, text);
        let (own, local) = (cross.client.addresses()[n % 2], cross.server.addresses()[n % 2]);
        let seen = app.seen();
        assert_eq!((seen.accepted.ip(), seen.peer.ip()), (own, own), "{to}: the server sees who called");
        assert_eq!(seen.local, SocketAddr::new(local, 8080), "{to}: and where");
        capture.assert_no_clear(text);
        capture.assert_no_clear(&text.to_ascii_uppercase());
        assert!(capture.sent_to(SocketAddr::new(local, 8080)).is_empty(), "{to}: nobody speaks with the app itself");
    }
    for address in cross.server.addresses() {
        let tunnels = capture.sent_to(SocketAddr::new(address, 15008));
        assert!(
            !tunnels.is_empty() && tunnels.iter().all(|stream| !stream.data.is_empty()),
            "{address}: here they were"
        );
    }
    let (client, server) = (cross.near.settled("client"), cross.far.settled("server"));
    assert_eq!((client.outbound.total, client.direct_total, client.outbound.failed), (4, 0, 0));
    assert_eq!((server.inbound.total, server.inbound.failed), (4, 0), "as many as were opened, however they came");
    let bytes = 2 * texts.iter().map(String::len).sum::<usize>() as u64;
    assert_eq!((server.inbound.to_upstream_bytes, server.inbound.to_downstream_bytes), (bytes, bytes));

    // That it can be seen at all: the same without the mesh.
    let outsiders = [cross.cluster.one.pod("outsider"), cross.cluster.two.pod("other")];
    let _app = shouting(&outsiders[1], 8080, QUESTION.len());
    for to in both(&outsiders[1], 8080) {
        shout(&outsiders[0], to, QUESTION);
    }
    capture.assert_clear(QUESTION);
    capture.assert_clear(&QUESTION.to_ascii_uppercase());
    cross.assert_all_accounted();
}

#[test]
fn a_megabyte_each_way_arrives_as_it_was_sent() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let _app = App::echo(&cross.server, 8080);
    let capture = cross.cluster.capture();
    let text = format!("{QUESTION}, ").repeat(40_000);
    for to in both(&cross.server, 8080) {
        let stream = connect(&cross.client, to).unwrap();
        let mut writer = stream.try_clone().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(text.as_bytes()).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut back = String::new();
            (&stream).read_to_string(&mut back).unwrap();
            assert!(back == text, "{} of {} bytes", back.len(), text.len());
        });
    }
    capture.assert_no_clear(QUESTION);
    cross.assert_all_accounted();
}

#[test]
fn a_closed_port_refuses_across_the_link() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    for to in both(&cross.server, 9) {
        let error = connect(&cross.client, to).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: connect() itself fails");
    }
    for agent in cross.agents() {
        eventually("both agents count it", || (agent.reason(Reason::UpstreamRefused) == 2).then_some(()));
    }
    cross.assert_all_accounted();
}

#[test]
fn either_end_may_close_its_half_first() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let (tell, told) = mpsc::channel();
    let _last = App::new(cross.server.listen(8080), |mut stream: TcpStream| {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        stream.write_all(text.to_ascii_uppercase().as_bytes())
    });
    let _first = App::new(cross.server.listen(8081), move |mut stream: TcpStream| {
        stream.write_all(b"all of it")?;
        stream.shutdown(Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let _ = tell.send(text);
        Ok(())
    });
    for to in both(&cross.server, 8080) {
        let mut stream = connect(&cross.client, to).unwrap();
        stream.write_all(b"the end").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "THE END", "{to}: the answer comes after our end");
    }
    for to in both(&cross.server, 8081) {
        let mut stream = connect(&cross.client, to).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "all of it");
        stream.write_all(b"after its end").unwrap();
        drop(stream);
        assert_eq!(told.recv_timeout(mesh_tests::wait::PATIENCE).unwrap(), "after its end", "{to}");
    }
    let server = cross.far.settled("server");
    assert_eq!((server.inbound.total, server.inbound.failed), (4, 0));
    cross.assert_all_accounted();
}

#[test]
fn a_reset_of_either_end_reaches_the_other() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let cross = Cross::new();
    let (tell, told) = mpsc::channel();
    let _meets = App::new(cross.server.listen(8080), move |mut stream: TcpStream| {
        stream.write_all(b"!")?;
        let _ = tell.send(stream.read(&mut [0; 1]).map_err(|error| error.kind()));
        Ok(())
    });
    let _sends = App::new(cross.server.listen(8081), |mut stream: TcpStream| {
        stream.read_exact(&mut [0; 1])?;
        socket::reset(stream);
        Ok(())
    });
    for to in both(&cross.server, 8080) {
        let mut stream = connect(&cross.client, to).unwrap();
        stream.read_exact(&mut [0; 1]).unwrap();
        socket::reset(stream);
        let met = told.recv_timeout(mesh_tests::wait::PATIENCE).unwrap();
        assert_eq!(met, Err(ErrorKind::ConnectionReset), "{to}");
    }
    for to in both(&cross.server, 8081) {
        let mut stream = connect(&cross.client, to).unwrap();
        stream.write_all(b"?").unwrap();
        assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset, "{to}");
    }
    for reason in [Reason::DownstreamReset, Reason::UpstreamReset] {
        for agent in cross.agents() {
            eventually(&format!("both agents count {reason}"), || (agent.reason(reason) == 2).then_some(()));
        }
    }
    cross.assert_all_accounted();
}

/// Asserts that the agents do not let the client speak with the server, nor in clear, and why.
fn assert_strangers(cross: &Cross, near: Reason, far: Reason) {
    let app = App::echo(&cross.server, 8080);
    let capture = cross.cluster.capture();
    for to in both(&cross.server, 8080) {
        let error = connect(&cross.client, to).and_then(|stream| exchange(&stream, QUESTION)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: not a byte was taken from the app");
    }
    eventually("the caller's agent says why", || (cross.near.reason(near) == 2).then_some(()));
    eventually("the other one too", || (cross.far.reason(far) == 2).then_some(()));
    capture.assert_no_clear(QUESTION);
    assert!(app.try_seen().is_none());
    cross.assert_all_accounted();
}

#[test]
fn agents_of_two_authorities_are_strangers() {
    if !require("kernel", kernel_tier) {
        return;
    }
    let mut cluster = Cluster::new();
    cluster.two.ca_root = cluster.two.folder.path().join("another");
    let cross = Cross::start(cluster, &[], [&[], &[]]);
    assert_strangers(&cross, Reason::PeerNotTrusted, Reason::PeerRefusedCertificate);
}

#[test]
fn agents_of_two_trust_domains_are_strangers() {
    if !require("kernel", kernel_tier) {
        return;
    }
    // With one root: only the names are foreign.
    let cross = Cross::start(Cluster::new(), &[], [&[], &["--trust-domain", "elsewhere.example"]]);
    assert_strangers(&cross, Reason::PeerUnidentified, Reason::PeerRefusedCertificate);
}
