use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[derive(Default)]
struct Canned {
    stuck: Vec<String>,
    waiting: Vec<String>,
}

impl Pages for Canned {
    async fn stuck(&self) -> Vec<String> {
        self.stuck.clone()
    }

    async fn waiting_for(&self) -> Vec<String> {
        self.waiting.clone()
    }

    async fn metrics(&self, format: Format) -> String {
        format!("# {format:?}\n")
    }

    async fn json(&self, path: &str, query: &str) -> Option<Vec<u8>> {
        (path == "/v1/status").then(|| format!("{{{query}}}").into_bytes())
    }
}

fn start(pages: Canned) -> SocketAddr {
    let listener = Listener::bind("[::]:0".parse().unwrap()).unwrap();
    let port = listener.local_address().unwrap().port();
    tokio::spawn(listener.run(Arc::new(pages)));
    (Ipv4Addr::LOCALHOST, port).into()
}

async fn send(server: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(server: SocketAddr, target: &str) -> (u16, String) {
    let answer = send(server, &format!("GET {target} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn probes_say_yes_or_why_not() {
    let server = start(Canned::default());
    assert_eq!(get(server, "/livez").await, (200, "live\n".to_owned()));
    assert_eq!(get(server, "/readyz").await, (200, "ready\n".to_owned()));
    let ill = Canned { stuck: vec!["worker 1".to_owned()], waiting: vec!["a".to_owned(), "b".to_owned()] };
    let server = start(ill);
    assert_eq!(get(server, "/livez").await, (503, "stuck: worker 1\n".to_owned()));
    assert_eq!(get(server, "/readyz").await, (503, "waiting for: a; b\n".to_owned()));
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let server = start(Canned::default());
    assert_eq!(get(server, "/metrics").await, (200, "# Prometheus\n".to_owned()));
    let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.6,*/*;q=0.1";
    let answer = send(server, &format!("GET /metrics HTTP/1.1\r\nhost: x\r\n{accept}\r\n\r\n")).await;
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0"), "{answer}");
    assert!(answer.ends_with("# OpenMetrics\n"), "{answer}");
}

#[tokio::test]
async fn the_status_is_for_those_on_loopback() {
    let server = start(Canned::default());
    assert_eq!(get(server, "/v1/status?a=b").await, (200, "{a=b}".to_owned()));
    // An address of this machine that is not loopback, if it has one, is not good enough.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).map(|own| own.ip());
    if let Some(own) = own.ok().filter(|own| !own.is_loopback()) {
        assert_eq!(get((own, server.port()).into(), "/v1/status").await.0, 403);
        assert_eq!(get((own, server.port()).into(), "/livez").await.0, 200);
    }
}

#[tokio::test]
async fn what_is_not_there_is_refused() {
    let server = start(Canned::default());
    let (code, text) = get(server, "/v1/policy/audit").await;
    assert!(code == 404 && text.contains("/metrics"), "{code} {text}");
    assert!(send(server, "PUT /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.contains(" 405 "));
    let long = format!("GET /livez HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(MAX_HEAD));
    assert!(send(server, &long).await.contains(" 431 "), "a head that is too long");
}

#[tokio::test]
async fn those_who_say_nothing_do_not_keep_others_away() {
    let server = start(Canned::default());
    let mut silent = Vec::new();
    for _ in 0..PLACES_NEAR {
        silent.push(TcpStream::connect(server).await.unwrap());
    }
    // One more than there is room for is closed, and does not wait.
    let mut more = TcpStream::connect(server).await.unwrap();
    assert!(matches!(more.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    tokio::time::pause();
    assert!(matches!(silent.first_mut().unwrap().read(&mut [0; 256]).await, Ok(_) | Err(_)), "it is told to go");
    tokio::time::resume();
    drop(silent);
    loop {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        if answer.contains("live") {
            break;
        }
    }
}

#[tokio::test]
async fn a_port_that_an_earlier_agent_has_is_waited_for() {
    let first = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.local_address().unwrap();
    let first = tokio::spawn(first.run(Arc::new(Canned { waiting: vec!["its end".to_owned()], ..Canned::default() })));
    let second = Listener::bind(address).unwrap();
    assert_eq!(second.local_address(), None);
    tokio::spawn(second.run(Arc::new(Canned::default())));
    assert_eq!(get(address, "/readyz").await.0, 503, "the first one has it");
    first.abort();
    let _aborted = first.await;
    loop {
        if TcpStream::connect(address).await.is_ok() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(get(address, "/readyz").await.0, 200);
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_told_at_once() {
    assert!(Listener::bind("192.0.2.1:15020".parse().unwrap()).is_err());
    for wrong in ["15020", ":15020", "localhost:15020", ""] {
        assert!(wrong.parse::<Address>().is_err(), "{wrong}");
    }
    assert_eq!("none".parse(), Ok(Address::None));
}
