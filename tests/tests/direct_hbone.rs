//! The HBONE server and client against others than themselves: peers that speak it as other meshes do, and peers that
//! mean ill. No privileges needed.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    collections::HashMap,
    future::Future,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use h2::{client::SendRequest, ext::Protocol};
use http::{Method, Request, Response};
use mesh_agent::{
    model::{Identity, Reason},
    proxy::hbone,
};
use mesh_tests::{
    Spine, Twin, app, eventually,
    pki::{Authority, Own, Store},
    socket,
    spine::{Asked, CLIENT, CONFIG},
    twin::{self, identity},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream, rustls::ClientConfig};

/// An agent that serves a pod, and who vouches for it.
struct Served {
    authority: Arc<Authority>,
    agent: Spine,
    at: std::net::IpAddr,
}

impl Served {
    fn new() -> Self {
        let (authority, at) = (Arc::new(Authority::default()), twin::address());
        let agent = twin::start_server(at, CONFIG, Store::new(&authority));
        Self { authority, agent, at }
    }

    fn app(&self) -> app::App {
        app::App::new(std::net::TcpListener::bind((self.at, 0)).unwrap(), app::echo)
    }

    /// A configuration as another mesh's client has it.
    fn client(&self, own: Option<Own>) -> ClientConfig {
        let mut config = self.authority.client(own);
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }

    fn own(&self) -> Own {
        self.authority.issue(&identity("stranger"))
    }

    async fn dial(&self, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect((self.at, hbone::PORT)).await?;
        let name = "any".try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    }

    /// A connection that speaks HTTP/2.
    async fn tunnels(&self) -> SendRequest<Bytes> {
        let stream = self.dial(self.client(Some(self.own()))).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::task::spawn_local(connection);
        send
    }
}

/// Runs a test's client.
fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn connect(authority: &str) -> Request<()> {
    Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap()
}

async fn ask(send: &SendRequest<Bytes>, request: Request<()>) -> (u16, String) {
    let (response, _) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
    let response = response.await.unwrap();
    let reason = response.headers().get("mesh-agent-reason").map_or("", |reason| reason.to_str().unwrap());
    (response.status().as_u16(), reason.to_owned())
}

/// A tunnel to the app, which sees it.
async fn is_led_to(send: &SendRequest<Bytes>, app: &app::App) {
    let request = connect(&app.address.to_string());
    let (response, tunnel) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
    assert_eq!(response.await.unwrap().status(), 200);
    app.seen();
    // Reset before the app had looked, it would never have been the app's.
    drop(tunnel);
}

#[test]
fn another_mesh_s_client_is_served() {
    let served = Served::new();
    let app = served.app();
    run(async {
        let send = served.tunnels().await;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(app.address.to_string())
            .header("baggage", "k8s.cluster.name=c,k8s.namespace.name=shop,k8s.pod.name=web-1")
            .header("forwarded", "for=127.0.0.1:4567")
            .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
            .body(())
            .unwrap();
        let (response, mut stream) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        stream.send_data(Bytes::from_static(b"hello"), true).unwrap();
        let mut body = response.into_body();
        let mut text = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            text.extend_from_slice(&data);
        }
        assert_eq!(text, b"hello");
    });
    // Its own address, whose port it may say itself.
    assert_eq!(served.agent.asked(), Asked::ShowClient((Ipv4Addr::LOCALHOST, 4567).into()));
    served.agent.await_reason(Reason::Ok);
}

#[test]
fn only_the_pods_own_addresses_and_ports_are_led_to() {
    let served = Served::new();
    let app = served.app();
    run(async {
        let send = served.tunnels().await;
        let own = app.address;
        let bad = |(status, reason): (u16, String)| assert_eq!((status, &*reason), (400, "hbone_bad_request"));
        // Another pod's, a name, none at all, and the agent's own ports, which would lead in circles.
        for authority in ["10.1.2.3:80".to_owned(), "127.0.0.1:80".to_owned(), format!("localhost:{}", own.port())] {
            bad(ask(&send, connect(&authority)).await);
        }
        for port in [hbone::PORT, 15001, 15006, 0] {
            bad(ask(&send, connect(&SocketAddr::new(own.ip(), port).to_string())).await);
        }
        let uri = format!("http://{own}/");
        bad(ask(&send, Request::builder().method(Method::GET).uri(&uri).body(()).unwrap()).await);
        bad(ask(&send, Request::builder().method(Method::POST).uri(&uri).body(()).unwrap()).await);
        is_led_to(&send, &app).await;
    });
    assert!(app.try_seen().is_none(), "that was the only one");
}

#[test]
fn extended_connect_is_refused() {
    let served = Served::new();
    let app = served.app();
    run(async {
        let send = served.tunnels().await;
        let uri = format!("http://{}/chat", app.address);
        let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(()).unwrap();
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        let (response, _) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let status = response.await.map(|response| response.status().as_u16());
        assert!(status.as_ref().is_ok_and(|status| *status == 400) || status.is_err(), "{status:?}");
        is_led_to(&send, &app).await;
    });
    assert!(app.try_seen().is_none(), "that was the only one");
}

#[test]
fn oversized_headers_disturb_nobody_else() {
    let served = Served::new();
    let app = served.app();
    run(async {
        let neighbour = served.tunnels().await;
        // A little too much is refused, much too much ends the connection.
        for size in [17, 40, 400] {
            let send = served.tunnels().await;
            let mut request = connect(&app.address.to_string());
            for n in 0..size {
                let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
                request.headers_mut().insert(name, "y".repeat(1000).try_into().unwrap());
            }
            let (response, _) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
            let status = response.await.map(|response| response.status().as_u16());
            assert!(status.as_ref().is_ok_and(|status| [400, 431].contains(status)) || status.is_err(), "{status:?}");
        }
        assert!(app.try_seen().is_none());
        is_led_to(&neighbour, &app).await;
    });
}

#[test]
fn who_has_no_certificate_is_not_let_in() {
    let served = Served::new();
    run(async {
        // In TLS 1.3 the client learns of it when it reads.
        let mut stream = served.dial(served.client(None)).await.unwrap();
        let read = stream.read(&mut [0; 1]).await;
        assert!(read.unwrap_err().to_string().contains("CertificateRequired"));
    });
    served.agent.await_reason(Reason::PeerUnidentified);
}

#[test]
fn whose_certificate_is_of_another_authority_is_not_let_in() {
    let served = Served::new();
    run(async {
        let other = Authority::default().issue(&identity("client"));
        let mut stream = served.dial(served.client(Some(other))).await.unwrap();
        assert!(stream.read(&mut [0; 1]).await.is_err());
    });
    served.agent.await_reason(Reason::PeerNotTrusted);
}

/// A ClientHello of TLS 1.2: one cipher suite, no extensions (RFC 5246, 7.4.1.2).
fn tls12_hello() -> Vec<u8> {
    let mut hello = vec![1, 0, 0, 41, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let mut record = vec![22, 3, 1, 0, hello.len() as u8];
    record.extend(hello);
    record
}

#[test]
fn older_tls_is_not_spoken() {
    let served = Served::new();
    let mut stream = socket::connect_here((served.at, hbone::PORT).into()).unwrap();
    stream.write_all(&tls12_hello()).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    // A fatal alert (RFC 8446, 6.2): protocol_version, or what else a hello of that age lacks.
    assert!(answer.starts_with(&[21, 3]) && answer.len() == 7 && answer[5] == 2, "{answer:?}");
    served.agent.await_reason(Reason::TlsIncompatible);
}

#[test]
fn no_bytes_that_anybody_sends_do_harm() {
    let served = Served::new();
    let app = served.app();
    let at = (served.at, hbone::PORT).into();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as usize
    };
    // Before the handshake: noise, and a good hello with a few bytes changed or cut off.
    for round in 0..200 {
        let mut bytes =
            if round % 2 == 0 { tls12_hello() } else { (0..random() % 300).map(|_| random() as u8).collect() };
        for _ in 0..random() % 4 {
            if let Some(byte) = (!bytes.is_empty()).then(|| random() % bytes.len()).and_then(|at| bytes.get_mut(at)) {
                *byte = random() as u8;
            }
        }
        bytes.truncate(bytes.len() - random() % 2 * (random() % (bytes.len() + 1)));
        let mut stream = socket::connect_here(at).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // Behind it: HTTP/2 with changed bytes.
    let authority = app.address.to_string();
    run(async {
        for _ in 0..100 {
            let mut stream = served.dial(served.client(Some(served.own()))).await.unwrap();
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
            // :method CONNECT and :authority, without Huffman codes (RFC 7541).
            let mut headers = vec![0x02, 7];
            headers.extend(b"CONNECT");
            headers.extend([0x01, authority.len() as u8]);
            headers.extend(authority.bytes());
            bytes.extend([0, 0, headers.len() as u8, 1, 4, 0, 0, 0, 1]);
            bytes.extend(headers);
            bytes.extend(b"\0\0\x05\0\0\0\0\0\x01hello");
            let intact = 24;
            for _ in 0..random() % 6 {
                let at = intact + random() % (bytes.len() - intact);
                bytes[at] = random() as u8;
            }
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        let send = served.tunnels().await;
        assert_eq!(ask(&send, connect(&authority)).await.0, 200);
    });
    assert!(served.agent.worker.is_running());
}

#[test]
fn small_pieces_that_an_app_does_not_read_disturb_nobody() {
    let served = Served::new();
    let (release, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let listener = std::net::TcpListener::bind((served.at, 0)).unwrap();
    // Small segments, as on a network: on loopback the kernel would take it all.
    SockRef::from(&listener).set_tcp_mss(1000).unwrap();
    SockRef::from(&listener).set_recv_buffer_size(4096).unwrap();
    let stuck = app::App::new(listener, move |mut stream| {
        let _ = wait.lock().unwrap().recv();
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        stream.write_all(all.len().to_string().as_bytes())
    });
    let app = served.app();
    run(async {
        let send = served.tunnels().await;
        let request = connect(&stuck.address.to_string());
        let (response, mut stream) = send.clone().ready().await.unwrap().send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        // Much is more than the sockets take, and both are less than the window.
        let (much, little) = (2 << 20, 300_000);
        stream.send_data(vec![7; much].into(), false).unwrap();
        for n in 1..=little {
            stream.send_data(Bytes::from_static(b"7"), n == little).unwrap();
            if n % 1000 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for _ in 0..3 {
            is_led_to(&send, &app).await;
        }
        release.send(()).unwrap();
        let mut body = response.into_body();
        let said = body.data().await.unwrap().unwrap();
        assert_eq!(said, (much + little).to_string());
    });
}

/// What an agent of another mesh is asked.
type Asks = mpsc::Receiver<(String, HashMap<String, String>)>;

/// A server as another mesh has it: HTTP/2 only, answers with `status` and then echoes.
fn foreign(authority: &Authority, own: &Identity, at: SocketAddr, status: u16) -> Asks {
    let (tell, told) = mpsc::channel();
    let mut config = authority.server(authority.issue(own));
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = std::net::TcpListener::bind(at).unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        run(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let (socket, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(socket).await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let headers = request.headers().iter();
                let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
                let _ = tell.send((request.uri().to_string(), headers.collect()));
                let response = Response::builder().status(status).body(()).unwrap();
                let mut send = respond.send_response(response, status != 200).unwrap();
                tokio::task::spawn_local(async move {
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                        send.send_data(data, false).unwrap();
                    }
                    let _ = send.send_data(Bytes::new(), true);
                });
            }
        });
    });
    told
}

/// A client's agent that expects another mesh's at the returned address.
fn with_foreign(status: u16) -> (Spine, SocketAddr, Asks) {
    let (authority, at) = (Arc::new(Authority::default()), twin::address());
    let told = foreign(&authority, &identity("server"), (at, hbone::PORT).into(), status);
    let here = (Ipv4Addr::LOCALHOST, 0).into();
    let client = Spine::start(twin::mesh("node-1", at), CONFIG, CLIENT, here, Store::new(&authority));
    (client, (at, 8080).into(), told)
}

#[test]
fn another_mesh_s_server_is_called_as_it_expects() {
    let (client, to, told) = with_foreign(200);
    for _ in 0..3 {
        let stream = client.connect(to);
        socket::exchange(&stream, "hello").unwrap();
        let (authority, headers) = told.recv().unwrap();
        assert_eq!(authority, to.to_string());
        assert_eq!(headers["baggage"], "k8s.namespace.name=shop,k8s.pod.name=client");
        assert_eq!(headers["forwarded"], format!("for=\"{}\"", stream.local_addr().unwrap()));
        let trace: Vec<_> = headers["traceparent"].split('-').map(str::len).collect();
        assert_eq!(trace, [2, 32, 16, 2]);
        socket::finish(stream).unwrap();
    }
    eventually("they end", || (client.pod.counters[0].outbound.closed.value() == 3).then_some(()));
    assert_eq!(client.pod.counters[0].outbound.failed.value(), 0);
}

#[test]
fn what_another_mesh_s_server_answers_is_understood() {
    for (status, reason) in [
        (503, Reason::UpstreamRefused),
        (504, Reason::UpstreamTimeout),
        (401, Reason::HboneRefused),
        (500, Reason::HboneRefused),
    ] {
        let (client, to, _told) = with_foreign(status);
        client.fails(to, reason);
    }
}

#[test]
fn a_server_that_speaks_no_tls_is_not_spoken_to() {
    let twin = Twin::default();
    let at = twin::address();
    let listener = std::net::TcpListener::bind((at, hbone::PORT)).unwrap();
    let app = app::App::new(listener, |mut stream| {
        let mut hello = [0; 5];
        stream.read_exact(&mut hello)?;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    });
    twin.client.mesh.send_replace(Arc::new(twin::mesh("node-1", at)));
    eventually("the snapshot is in force", || {
        socket::met_reset(twin.client.try_connect((at, 80).into())).then_some(())
    });
    twin.client.await_reason(Reason::TlsHandshake);
    drop(app);
}
