//! The certificate authority as a process on loopback, and the agent's client of it.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue};
use mesh_agent::{
    ca::{
        Choice, Config, IstioConfig, connect,
        grpc::{Channel, Code, Status},
        wire::{
            CREATE_CERTIFICATE, IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse, Struct, Value,
        },
    },
    identity::{CertificateAuthority, Svid},
    model::{Identity, Reason},
};
use mesh_tests::{agent::binary, wait::PATIENCE};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

const DOMAIN: &str = "cluster.local";
const N1_TOKEN: &str = "n1-0123456789abcdef";
const N2_TOKEN: &str = "n2-0123456789abcdef";

/// Two nodes with a pod each, of the service accounts `cart` and `web`.
const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop}
spec: {nodeName: n1, serviceAccountName: cart}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop}
spec: {nodeName: n2, serviceAccountName: web}
";

fn identity(account: &str) -> Identity {
    format!("spiffe://{DOMAIN}/ns/shop/sa/{account}").parse().unwrap()
}

/// What an authority and its callers have on disk.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pods")).unwrap();
        fs::write(folder.path().join("pods/pods.yaml"), PODS).unwrap();
        fs::write(folder.path().join("tokens"), format!("n1 {N1_TOKEN}\nn2 {N2_TOKEN}\n")).unwrap();
        for (node, token) in [("n1", N1_TOKEN), ("n2", N2_TOKEN)] {
            fs::write(folder.path().join(node), format!("{token}\n")).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn bundle(&self) -> PathBuf {
        self.path("root/bundle.pem")
    }

    /// The client of a node's agent.
    fn client(&self, authority: &Process, node: &str) -> Arc<dyn CertificateAuthority> {
        self.client_with(&authority.address.to_string(), node, self.bundle())
    }

    fn client_with(&self, address: &str, node: &str, bundle: PathBuf) -> Arc<dyn CertificateAuthority> {
        let token = Some(self.path(node));
        let istio = IstioConfig { address: address.to_owned(), name: None, bundle, token, service: None };
        connect(&Config { choice: Choice::Istio(istio), trust_domain: DOMAIN.to_owned() }).unwrap()
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(self.bundle()).unwrap().map(Result::unwrap).collect()
    }
}

/// `mesh-agent ca`; killed on drop.
struct Process {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Process {
    fn start(site: &Site, extra: &[&str]) -> Self {
        Self::start_at(site, "127.0.0.1:0", extra)
    }

    fn start_at(site: &Site, listen: &str, extra: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(["ca", "--listen", listen, "--log", "info"])
            .arg("--root")
            .arg(site.path("root"))
            .arg("--manifests")
            .arg(site.path("pods"))
            .arg("--tokens")
            .arg(site.path("tokens"))
            .args(extra)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut log = String::new();
        let address = lines.by_ref().find_map(|line| {
            log.push_str(&line);
            log.push('\n');
            line.contains("serving certificates").then(|| field(&line, "address").parse().unwrap())
        });
        let Some(address) = address else { panic!("the authority did not start:\n{log}") };
        let log = Arc::new(Mutex::new(log));
        let rest = Arc::clone(&log);
        std::thread::spawn(move || lines.for_each(|line| rest.lock().unwrap().push_str(&(line + "\n"))));
        Self { child, address, log }
    }

    /// Ends it as an operator does, and returns its log.
    fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.log()
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, value) = line.split_once(&format!("{name}=")).unwrap();
    value.split(' ').next().unwrap()
}

/// Whether somebody who trusts `roots` believes the chain.
fn trusts(roots: &[CertificateDer<'static>], chain: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map(drop)
}

fn uris(certificate: &CertificateDer<'_>) -> Vec<String> {
    let (_, read) = x509_parser::certificate::X509Certificate::from_der(certificate).unwrap();
    let names = read.subject_alternative_name().unwrap().unwrap();
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => panic!("{other} is none of a workload's names"),
    };
    names.value.general_names.iter().map(uri).collect()
}

/// Waits for something that makes no event.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        ticks.tick().await;
    }
}

/// Fetches, once the authority has read its manifests.
async fn fetch(client: &dyn CertificateAuthority, account: &str) -> Svid {
    eventually("a certificate", async || match client.fetch(&identity(account)).await {
        Ok(svid) => Some(svid),
        Err(refusal) if refusal.is_transient => None,
        Err(refusal) => panic!("{refusal}"),
    })
    .await
}

/// A caller that says what our client would not.
struct Raw {
    channel: Channel,
    token: Option<String>,
}

impl Raw {
    async fn connect(site: &Site, address: SocketAddr, token: Option<&str>, certificate: Option<Svid>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(site.roots());
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            Some(svid) => config.with_client_auth_cert(svid.chain.clone(), svid.key.clone_key()).unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let channel = Channel::open("https://localhost".to_owned(), stream).await.unwrap();
        Self { channel, token: token.map(ToOwned::to_owned) }
    }

    async fn ask(&self, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        self.call(CREATE_CERTIFICATE, request).await
    }

    async fn call(&self, path: &str, request: &IstioCertificateRequest) -> Result<IstioCertificateResponse, Status> {
        let mut metadata = HeaderMap::new();
        if let Some(token) = &self.token {
            metadata.insert("authorization", HeaderValue::from_str(&format!("Bearer {token}")).unwrap());
        }
        self.channel.call(path, metadata, request).unary().await
    }
}

fn request(csr: String, asked: Option<&Identity>, validity_duration: i64) -> IstioCertificateRequest {
    let value = asked.map(|identity| Value { string_value: Some(identity.to_string()) });
    let metadata = value.map(|value| Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), value)].into() });
    IstioCertificateRequest { csr, validity_duration, metadata }
}

fn csr_of(account: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(identity(account).to_string().try_into().unwrap())];
    params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

/// Another signature than its own.
fn forge(csr: &str) -> String {
    let (before, after) = csr.split_at(csr.find("-----END").unwrap() - 20);
    let other = if after.starts_with('A') { 'B' } else { 'A' };
    format!("{before}{other}{}", &after[1..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nodes_get_their_pods_certificates_and_trust_one_another() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let [n1, n2] = ["n1", "n2"].map(|node| site.client(&authority, node));
    let (cart, web) = (fetch(&*n1, "cart").await, fetch(&*n2, "web").await);
    for (svid, account) in [(&cart, "cart"), (&web, "web")] {
        assert_eq!(svid.identity, identity(account));
        assert_eq!(uris(&svid.chain[0]), [identity(account).to_string()]);
        assert_eq!(svid.chain.len(), 2, "leaf and intermediate, no root");
    }
    let [of_n1, of_n2] = [&n1, &n2].map(|client| client.bundle().borrow().roots.clone());
    trusts(&of_n1, &web.chain).unwrap();
    trusts(&of_n2, &cart.chain).unwrap();
    let log = authority.stop();
    assert!(log.contains("signed=2"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_gets_nothing_for_pods_of_others() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let n1 = site.client(&authority, "n1");
    fetch(&*n1, "cart").await;
    for account in ["web", "nobody"] {
        let refusal = n1.fetch(&identity(account)).await.unwrap_err();
        assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaNotOnNode, true), "{refusal}");
        assert!(refusal.message.contains("node n1 runs no pod of"), "{refusal}");
    }
    // The pod moves to the node, and then it is the node's.
    fs::write(site.path("pods/pods.yaml"), PODS.replace("nodeName: n2", "nodeName: n1")).unwrap();
    fetch(&*n1, "web").await;
    let log = authority.stop();
    let line = log.lines().find(|line| line.contains("refused")).unwrap();
    for part in ["node n1", &identity("web").to_string(), "ca_not_on_node"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(log.contains("ca_not_on_node="), "{log}");
}

#[tokio::test]
async fn tokens_come_and_go_with_the_file() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let client = site.client(&authority, "n1");
    fetch(&*client, "cart").await;
    let replaced = "n1-another-token-0000";
    fs::write(site.path("tokens"), format!("n1 {replaced}\n")).unwrap();
    let refusal = client.fetch(&identity("cart")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaUnauthenticated, true), "{refusal}");
    fs::write(site.path("n1"), replaced).unwrap();
    client.fetch(&identity("cart")).await.unwrap();
    fs::remove_file(site.path("n1")).unwrap();
    let refusal = client.fetch(&identity("cart")).await.unwrap_err();
    assert!(refusal.message.contains("--ca-token"), "{refusal}");
}

#[tokio::test]
async fn what_cannot_be_signed_is_refused_with_a_reason() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let client = site.client(&authority, "n1");
    fetch(&*client, "cart").await;
    let raw = Raw::connect(&site, authority.address, Some(N1_TOKEN), None).await;
    let cart = identity("cart");
    for (what, request, code, reason) in [
        ("no PEM", request("hello".to_owned(), Some(&cart), 0), Code::InvalidArgument, Some(Reason::CaBadRequest)),
        (
            "a forged CSR",
            request(forge(&csr_of("cart")), Some(&cart), 0),
            Code::InvalidArgument,
            Some(Reason::CaBadRequest),
        ),
        ("another name", request(csr_of("web"), Some(&cart), 0), Code::InvalidArgument, Some(Reason::CaWrongIdentity)),
        ("no identity", request(csr_of("cart"), None, 0), Code::InvalidArgument, Some(Reason::CaBadRequest)),
        ("a long CSR", request("x".repeat(40_000), Some(&cart), 0), Code::InvalidArgument, Some(Reason::CaBadRequest)),
        ("a huge message", request("x".repeat(1_000_000), Some(&cart), 0), Code::ResourceExhausted, None),
    ] {
        let status = raw.ask(&request).await.expect_err(what);
        assert_eq!((status.code, status.reason), (code, reason), "{what}: {status}");
    }
    let status = raw.call("/grpc.health.v1.Health/Check", &request(String::new(), None, 0)).await.unwrap_err();
    assert_eq!(status.code, Code::Unimplemented);
    client.fetch(&cart).await.expect("others are not disturbed");
}

#[tokio::test]
async fn lifetimes_are_as_asked_and_no_longer_than_allowed() {
    let site = Site::new();
    let authority = Process::start(&site, &["--lifetime", "2h"]);
    fetch(&*site.client(&authority, "n1"), "cart").await;
    let raw = Raw::connect(&site, authority.address, Some(N1_TOKEN), None).await;
    for (asked, given) in [(600, 600), (7200, 7200), (1_000_000_000, 7200), (0, 7200), (-1, 7200), (i64::MAX, 7200)] {
        let answer = raw.ask(&request(csr_of("cart"), Some(&identity("cart")), asked)).await.unwrap();
        let leaf = CertificateDer::from_pem_slice(answer.cert_chain[0].as_bytes()).unwrap();
        let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
        let left = leaf.validity().not_after.timestamp() - now;
        assert!((given - 5..=given).contains(&left), "asked for {asked}, got {left}");
        assert!(leaf.validity().not_before.timestamp() < now - 30, "clocks may be apart");
        let roots = answer.cert_chain.last().unwrap();
        assert_eq!(CertificateDer::from_pem_slice(roots.as_bytes()).unwrap(), site.roots()[0], "the root is last");
    }
}

#[tokio::test]
async fn strangers_are_turned_away() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let good = fetch(&*site.client(&authority, "n1"), "cart").await;
    for token in [None, Some(""), Some("n1-0123456789abcdeg"), Some(&N1_TOKEN[1..])] {
        let raw = Raw::connect(&site, authority.address, token, None).await;
        let asked = request(csr_of("cart"), Some(&identity("cart")), 0);
        let status = raw.ask(&asked).await.unwrap_err();
        assert_eq!((status.code, status.reason), (Code::Unauthenticated, Some(Reason::CaUnauthenticated)));
        for _ in 0..20 {
            if raw.ask(&asked).await.is_err_and(|status| status.code == Code::Unavailable) {
                break;
            }
        }
        let closed = raw.ask(&asked).await.unwrap_err();
        assert_eq!(closed.code, Code::Unavailable, "who guesses is disconnected");
    }
    // A workload renews its own certificate by it, and gets no other.
    let raw = Raw::connect(&site, authority.address, None, Some(good)).await;
    raw.ask(&request(csr_of("cart"), None, 0)).await.unwrap();
    let status = raw.ask(&request(csr_of("web"), Some(&identity("web")), 0)).await.unwrap_err();
    assert_eq!(status.reason, Some(Reason::CaWrongIdentity));
}

#[tokio::test]
async fn a_node_has_its_share() {
    let site = Site::new();
    let authority = Process::start(&site, &["--node-burst", "3", "--node-rate", "1"]);
    let raw = Raw::connect(&site, authority.address, Some(N2_TOKEN), None).await;
    let mut reasons = Vec::new();
    for _ in 0..4 {
        let answer = raw.ask(&request(csr_of("web"), Some(&identity("web")), 0)).await;
        reasons.push(answer.err().and_then(|status| status.reason));
    }
    assert_eq!(reasons[3], Some(Reason::CaLimited), "{reasons:?}");
    assert!(!reasons[..3].contains(&Some(Reason::CaLimited)), "{reasons:?}");
    fetch(&*site.client(&authority, "n1"), "cart").await;
}

#[tokio::test]
async fn half_open_connections_disturb_nobody() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let mut silent: Vec<_> = (0..200).map(|_| TcpStream::connect(authority.address).unwrap()).collect();
    for stream in silent.iter_mut().step_by(2) {
        stream.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    }
    let mut plain = TcpStream::connect(authority.address).unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    fetch(&*site.client(&authority, "n1"), "cart").await;
}

#[tokio::test]
async fn an_authority_that_is_not_the_one_is_not_trusted() {
    let (site, other) = (Site::new(), Site::new());
    let authority = Process::start(&site, &[]);
    drop(Process::start(&other, &[]));
    let client = site.client_with(&authority.address.to_string(), "n1", other.bundle());
    let refusal = client.fetch(&identity("cart")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaUntrusted, true), "{refusal}");
    let client = site.client_with(&format!("127.0.0.2:{}", authority.address.port()), "n1", site.bundle());
    let refusal = client.fetch(&identity("cart")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaUnreachable, true), "{refusal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restart_keeps_the_root_and_clients_come_back() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let client = site.client(&authority, "n1");
    let before = fetch(&*client, "cart").await;
    let (roots, listen) = (site.roots(), authority.address.to_string());
    authority.stop();
    let refusal = client.fetch(&identity("cart")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaUnreachable, true), "{refusal}");
    let _authority = Process::start_at(&site, &listen, &[]);
    let after = fetch(&*client, "cart").await;
    assert_eq!(site.roots(), roots);
    assert_ne!(before.chain[1], after.chain[1], "an intermediate is not stored");
    trusts(&roots, &before.chain).unwrap();
    trusts(&roots, &after.chain).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_root_is_replaced_under_the_eyes_of_its_agents() {
    let site = Site::new();
    let overlap = ["--root-overlap", "3s"];
    let authority = Process::start(&site, &overlap);
    let client = site.client(&authority, "n1");
    let mut bundle = client.bundle();
    let old = bundle.borrow_and_update().roots.clone();
    let before = fetch(&*client, "cart").await;
    let listen = authority.address.to_string();
    authority.stop();

    let _authority = Process::start_at(&site, &listen, &[&overlap[..], &["--new-root"]].concat());
    bundle.changed().await.unwrap();
    let both = bundle.borrow_and_update().roots.clone();
    assert_eq!(both[..1], old);
    assert_eq!(both.len(), 2);
    // Nobody is without a certificate at any time, and one day it is of the new root.
    let after = eventually("a certificate of the next root", async || {
        let svid = fetch(&*client, "cart").await;
        trusts(&both, &svid.chain).unwrap();
        trusts(&both[1..], &svid.chain).is_ok().then_some(svid)
    })
    .await;
    assert!(trusts(&old, &after.chain).is_err());
    trusts(&both, &before.chain).unwrap();
}

#[test]
fn what_it_cannot_start_with_is_named() {
    let site = Site::new();
    let run = |tokens: &Path, listen: &str| {
        let output = Command::new(binary())
            .args(["ca", "--listen", listen, "--root"])
            .arg(site.path("root"))
            .arg("--manifests")
            .arg(site.path("pods"))
            .arg("--tokens")
            .arg(tokens)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let error = run(&site.path("none"), "127.0.0.1:0");
    assert!(error.contains("--tokens") && error.contains("none"), "{error}");
    let error = run(&site.path("tokens"), "192.0.2.1:1");
    assert!(error.contains("--listen") && error.contains("192.0.2.1:1"), "{error}");
    fs::write(site.path("root/root-key.pem"), "nonsense").unwrap();
    let error = run(&site.path("tokens"), "127.0.0.1:0");
    assert!(error.contains("--root") && error.contains("root-key.pem"), "{error}");
}
