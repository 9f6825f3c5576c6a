//! The agent's client of the SPIFFE Workload API, and a server that behaves as SPIRE's agent does.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{collections::BTreeMap, path::Path, sync::Arc, time::SystemTime};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use mesh_agent::{
    ca::{
        Authority, Choice, Config, Lifetimes, connect, csr,
        grpc::{Code, Status, encode},
        wire::{FETCH_X509_SVID, X509Svid, X509SvidResponse},
    },
    identity::CertificateAuthority,
    model::{Identity, Reason},
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
};

const DOMAIN: &str = "cluster.local";

fn identity(account: &str) -> Identity {
    format!("spiffe://{DOMAIN}/ns/shop/sa/{account}").parse().unwrap()
}

/// What the server delivers: an answer, or how it ends the call.
type Delivery = Result<X509SvidResponse, Status>;

/// The server, until dropped.
struct Spire {
    deliver: watch::Sender<Delivery>,
    task: JoinHandle<()>,
}

impl Spire {
    fn start(socket: &Path, first: Delivery) -> Self {
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (deliver, delivery) = watch::channel(first);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream, delivery.clone()));
            }
        });
        Self { deliver, task }
    }

    /// From now on.
    fn deliver(&self, delivery: Delivery) {
        let _before = self.deliver.send_replace(delivery);
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: UnixStream, delivery: watch::Receiver<Delivery>) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        calls.spawn(answer(request, respond, delivery.clone()));
    }
}

/// One call: everything at once, and again whenever it changes.
async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut delivery: watch::Receiver<Delivery>,
) {
    assert_eq!(request.uri().path(), FETCH_X509_SVID);
    if request.headers().get("workload.spiffe.io").is_none_or(|value| value != "true") {
        let mut head = Response::new(());
        Status::new(Code::InvalidArgument, "security header missing from request").write(head.headers_mut());
        respond.send_response(head, true).unwrap();
        return;
    }
    let mut body = None;
    loop {
        let next = delivery.borrow_and_update().clone();
        match (next, &mut body) {
            (Ok(message), Some(body)) => h2::SendStream::send_data(body, encode(&message), false).unwrap(),
            (Ok(message), none) => {
                let sending = none.insert(respond.send_response(Response::new(()), false).unwrap());
                sending.send_data(encode(&message), false).unwrap();
            }
            (Err(status), Some(body)) => {
                let mut trailers = HeaderMap::new();
                status.write(&mut trailers);
                body.send_trailers(trailers).unwrap();
                return;
            }
            (Err(status), None) => {
                let mut head = Response::new(());
                status.write(head.headers_mut());
                respond.send_response(head, true).unwrap();
                return;
            }
        }
        if delivery.changed().await.is_err() {
            return;
        }
    }
}

/// An authority behind the server.
struct Upstream {
    _folder: tempfile::TempDir,
    authority: Authority,
}

impl Upstream {
    fn new(trust_domain: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::open(folder.path(), trust_domain, Lifetimes::default(), SystemTime::now()).unwrap();
        Self { _folder: folder, authority }
    }

    fn svid(&self, identity: &Identity) -> X509Svid {
        let (key, request) = csr::make(identity).unwrap();
        let issued = self.authority.sign(&request, identity, None, SystemTime::now()).unwrap();
        X509Svid {
            spiffe_id: identity.to_string(),
            x509_svid: issued.chain.iter().flat_map(|certificate| certificate.to_vec()).collect(),
            x509_svid_key: key.secret_pkcs8_der().to_vec(),
            bundle: self.authority.bundle().borrow().roots.iter().flat_map(|root| root.to_vec()).collect(),
            hint: String::new(),
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "as it is delivered")]
fn response(svids: Vec<X509Svid>) -> Delivery {
    Ok(X509SvidResponse { svids, federated_bundles: BTreeMap::new() })
}

fn client(socket: &Path) -> Arc<dyn CertificateAuthority> {
    let choice = Choice::Spire(format!("unix://{}", socket.display()));
    connect(&Config { choice, trust_domain: DOMAIN.to_owned() }).unwrap()
}

#[tokio::test]
async fn what_is_delivered_is_given_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let upstream = Upstream::new(DOMAIN);
    let [cart, web] = ["cart", "web"].map(|account| upstream.svid(&identity(account)));
    let _spire = Spire::start(&socket, response(vec![cart.clone(), web]));
    let client = client(&socket);
    let svid = client.fetch(&identity("cart")).await.unwrap();
    assert_eq!(svid.identity, identity("cart"));
    assert_eq!(svid.chain.iter().flat_map(|certificate| certificate.to_vec()).collect::<Vec<_>>(), cart.x509_svid);
    assert_eq!(svid.key.secret_der(), cart.x509_svid_key);
    assert_eq!(client.bundle().borrow().roots, upstream.authority.bundle().borrow().roots);

    let refusal = client.fetch(&identity("db")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaNotServed, false));
    for part in ["agent.sock", "sa/cart", "sa/web", "sa/db"] {
        assert!(refusal.message.contains(part), "{refusal}");
    }
}

#[tokio::test]
async fn updates_are_pushed_and_outlive_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let (upstream, next) = (Upstream::new(DOMAIN), Upstream::new(DOMAIN));
    let first = upstream.svid(&identity("cart"));
    let spire = Spire::start(&socket, response(vec![first.clone()]));
    let client = client(&socket);
    client.fetch(&identity("cart")).await.unwrap();
    let mut bundle = client.bundle();
    bundle.borrow_and_update();

    // SPIRE renews the certificate, and announces another root.
    let mut second = upstream.svid(&identity("cart"));
    second.bundle.extend(next.authority.bundle().borrow().roots.iter().flat_map(|root| root.to_vec()));
    spire.deliver(response(vec![second.clone()]));
    bundle.changed().await.unwrap();
    assert_eq!(bundle.borrow_and_update().roots.len(), 2);
    // The bundle comes first, and the certificate at once after it.
    let renewed = client.fetch(&identity("cart")).await.unwrap();
    assert_eq!(renewed.key.secret_der(), second.x509_svid_key);

    // While SPIRE restarts, what it gave stays good; then the stream is back.
    drop(spire);
    assert!(client.fetch(&identity("cart")).await.is_ok());
    let third = next.svid(&identity("cart"));
    let _spire = Spire::start(&socket, response(vec![third.clone()]));
    bundle.changed().await.unwrap();
    assert_eq!(client.fetch(&identity("cart")).await.unwrap().key.secret_der(), third.x509_svid_key);
}

#[tokio::test]
async fn an_agent_that_is_not_registered_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let spire = Spire::start(&socket, Err(Status::new(Code::PermissionDenied, "no identity issued")));
    let client = client(&socket);
    let refusal = client.fetch(&identity("cart")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaNotServed, false));
    assert!(refusal.message.contains("no identity issued"), "{refusal}");

    // Registered, it is served without a restart.
    let mut bundle = client.bundle();
    spire.deliver(response(vec![Upstream::new(DOMAIN).svid(&identity("cart"))]));
    bundle.changed().await.unwrap();
    client.fetch(&identity("cart")).await.unwrap();
    // And when its entry is removed, it is not any more.
    spire.deliver(Err(Status::new(Code::PermissionDenied, "no identity issued")));
    let refusal = loop {
        match client.fetch(&identity("cart")).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.reason, Reason::CaNotServed);
}

#[tokio::test]
async fn what_does_not_prove_itself_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let (upstream, other, foreign) = (Upstream::new(DOMAIN), Upstream::new(DOMAIN), Upstream::new("elsewhere"));
    let good = upstream.svid(&identity("cart"));
    let wrong_key =
        X509Svid { x509_svid_key: upstream.svid(&identity("a")).x509_svid_key, ..upstream.svid(&identity("a")) };
    let wrong_name = X509Svid { spiffe_id: identity("b").to_string(), ..upstream.svid(&identity("c")) };
    let wrong_root = X509Svid { bundle: good.bundle.clone(), ..other.svid(&identity("d")) };
    let cut = X509Svid { x509_svid: good.x509_svid[..100].to_vec(), ..upstream.svid(&identity("e")) };
    let elsewhere = foreign.svid(&"spiffe://elsewhere/ns/shop/sa/f".parse().unwrap());
    let node = X509Svid { spiffe_id: "spiffe://cluster.local/spire/agent".to_owned(), ..good.clone() };
    let all = vec![wrong_key, wrong_name, wrong_root, cut, elsewhere, node, good];
    let _spire = Spire::start(&socket, response(all));
    let client = client(&socket);
    client.fetch(&identity("cart")).await.unwrap();
    for account in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(client.fetch(&identity(account)).await.unwrap_err().reason, Reason::CaNotServed, "{account}");
    }
    assert_eq!(client.bundle().borrow().roots, upstream.authority.bundle().borrow().roots, "and no root of others");
}

#[tokio::test(start_paused = true)]
async fn nobody_at_the_socket_is_no_final_answer() {
    let refusal = client(Path::new("/nonexistent/agent.sock")).fetch(&identity("cart")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaUnreachable, true));
    assert!(refusal.message.contains("/nonexistent/agent.sock: "), "{refusal}");
}
