//! The certificate authority in a cluster: the real `mesh-agent ca` and the agent's client of it, on the test API server,
//! with the permissions of docs/deploy.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests fail as tests do"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use mesh_agent::{
    ca::{Choice, Config, IstioConfig, connect},
    identity::{CertificateAuthority, Svid},
    kubernetes::Access,
    model::{Identity, Reason},
};
use mesh_tests::{
    agent::binary,
    api::{ApiServer, Effect, Fault},
    chart,
    permissions::{grants, refused as forbidden, unused},
    wait::PATIENCE,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use serde_json::{Value, json};

const SYSTEM: &str = "mesh-system";
const AUDIENCE: &str = "mesh-agent-ca";
const SECRET: &str = "mesh-agent-ca-root";
const BUNDLE: &str = "mesh-agent-ca-bundle";
const HOUR: Duration = Duration::from_hours(1);

fn identity(account: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

fn pod(namespace: &str, name: &str, account: &str, node: Option<&str>, phase: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": phase},
    })
}

/// Accounts and what they may do, as the chart has them.
fn permissions() -> Vec<Value> {
    let mut objects = chart::objects(SYSTEM, &chart::plain_values()).unwrap();
    objects.retain(|object| {
        let kind = object["kind"].as_str().unwrap();
        kind == "ServiceAccount" || kind.contains("Role")
    });
    objects
}

/// An API server with two nodes, an agent on each, `cart` on the first and `web` on the second.
struct Site {
    api: ApiServer,
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let api = ApiServer::start();
        for namespace in [SYSTEM, "shop"] {
            api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}));
        }
        for object in permissions() {
            api.put(object);
        }
        for (namespace, name) in [("shop", "cart"), ("shop", "web")] {
            let metadata = json!({"name": name, "namespace": namespace});
            api.put(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}));
        }
        for (node, account) in [("n1", "cart"), ("n2", "web")] {
            api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}));
            api.put(pod(SYSTEM, &format!("agent-{node}"), "mesh-agent", Some(node), "Running"));
            api.put(pod("shop", &format!("{account}-1"), account, Some(node), "Running"));
        }
        let site = Self { api, folder: tempfile::tempdir().unwrap() };
        for (name, account) in [("ca", "mesh-agent-ca"), ("agent", "mesh-agent")] {
            let token = site.path(&format!("{name}-token"));
            fs::write(&token, site.api.token(SYSTEM, account, None, &[], HOUR)).unwrap();
            site.api.write_kubeconfig(&site.path(&format!("{name}-kubeconfig")), &token).unwrap();
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The token of an agent, as the kubelet projects it.
    fn token_of(&self, node: &str) -> String {
        self.api.token(SYSTEM, "mesh-agent", Some(&format!("agent-{node}")), &[AUDIENCE], HOUR)
    }

    fn get(&self, kind: &str, name: &str) -> Option<Value> {
        self.api.get("v1", kind, SYSTEM, name)
    }

    fn bundle(&self) -> String {
        let map = self.get("ConfigMap", BUNDLE).unwrap_or_default();
        map["data"]["bundle.pem"].as_str().unwrap_or_default().to_owned()
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        certificates(&self.bundle())
    }

    /// A client as an agent has it, with the bundle that is published now.
    fn client(&self, authority: &Process, token: &str) -> Arc<dyn CertificateAuthority> {
        self.client_at(&authority.address.to_string(), token, None)
    }

    fn client_at(&self, address: &str, token: &str, service: Option<Access>) -> Arc<dyn CertificateAuthority> {
        let [bundle, path] = ["bundle", "token"].map(|name| self.path(&format!("{name}-{}", rand())));
        fs::write(&bundle, self.bundle()).unwrap();
        fs::write(&path, token).unwrap();
        let istio = IstioConfig { address: address.to_owned(), name: None, bundle, token: Some(path), service };
        connect(&Config { choice: Choice::Istio(istio), trust_domain: "cluster.local".to_owned() }).unwrap()
    }
}

/// A name that is not taken.
fn rand() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// `mesh-agent ca`; killed on drop.
struct Process {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

/// One that does not serve yet.
struct Starting {
    child: Child,
    served: std::sync::mpsc::Receiver<SocketAddr>,
    log: Arc<Mutex<String>>,
}

impl Starting {
    fn new(site: &Site, listen: &str, extra: &[&str]) -> Self {
        let mut child = command(site, listen, extra).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let log = Arc::new(Mutex::new(String::new()));
        let (serves, served) = std::sync::mpsc::channel();
        let all = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines {
                if line.contains("serving certificates") {
                    let _ = serves.send(field(&line, "address").parse().unwrap());
                }
                all.lock().unwrap().push_str(&(line + "\n"));
            }
        });
        Self { child, served, log }
    }

    fn serving(self) -> Process {
        let Self { child, served, log } = self;
        match served.recv_timeout(PATIENCE) {
            Ok(address) => Process { child, address, log },
            Err(error) => panic!("the authority did not start: {error}\n{}", log.lock().unwrap()),
        }
    }
}

impl Process {
    fn start(site: &Site, extra: &[&str]) -> Self {
        Starting::new(site, "127.0.0.1:0", extra).serving()
    }

    /// Ends it as a kubelet does, and returns its log.
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

fn command(site: &Site, listen: &str, extra: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["ca", "--kubernetes", "--namespace", SYSTEM, "--listen", listen, "--kubeconfig"]);
    command.arg(site.path("ca-kubeconfig")).args(extra);
    command
}

/// What it says when it ends by itself.
fn fails(site: &Site, extra: &[&str]) -> String {
    let output = command(site, "127.0.0.1:0", extra).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let (_, value) = line.split_once(&format!("{name}=")).unwrap();
    value.split(' ').next().unwrap()
}

fn certificates(text: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text.as_bytes()).map(Result::unwrap).collect()
}

/// Whether somebody who trusts `roots` believes the chain.
fn trusts(roots: &[CertificateDer<'static>], svid: &Svid) -> bool {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots.iter().cloned());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build().unwrap();
    verifier.verify_client_cert(&svid.chain[0], &svid.chain[1..], UnixTime::now()).is_ok()
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

async fn fetch(client: &dyn CertificateAuthority, account: &str) -> Svid {
    eventually("a certificate", async || match client.fetch(&identity(account)).await {
        Ok(svid) => Some(svid),
        Err(refusal) if refusal.is_transient => None,
        Err(refusal) => panic!("{refusal}"),
    })
    .await
}

/// The reason of a refusal that is transient.
async fn refused(client: &dyn CertificateAuthority, account: &str) -> Reason {
    let refusal = client.fetch(&identity(account)).await.unwrap_err();
    assert!(refusal.is_transient, "{refusal}");
    refusal.reason
}

#[tokio::test]
async fn a_node_gets_the_identities_of_its_pods_and_no_others() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let [n1, n2] = ["n1", "n2"].map(|node| site.client(&authority, &site.token_of(node)));
    let (cart, web) = (fetch(&*n1, "cart").await, fetch(&*n2, "web").await);
    assert!(trusts(&site.roots(), &cart) && trusts(&site.roots(), &web));
    assert_eq!(refused(&*n1, "web").await, Reason::CaNotOnNode);
    assert_eq!(refused(&*n2, "nobody").await, Reason::CaNotOnNode);
    let reviews = site.api.requests().iter().filter(|request| request.path.ends_with("/tokenreviews")).count();
    assert_eq!(reviews, 2, "what is known of a token is not asked again at once");
    let log = authority.stop();
    assert!(log.contains("signed=2") && log.contains("ca_not_on_node=2"), "{log}");
}

#[tokio::test]
async fn others_than_agents_are_nobody_or_themselves() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    fetch(&*site.client(&authority, &site.token_of("n1")), "cart").await;
    let agent = Some("agent-n1");
    let expired = {
        let mut claims = claims(&site.token_of("n1"));
        claims["exp"] = json!(claims["iat"].as_i64().unwrap() - 3600);
        site.api.sign(&claims)
    };
    for (what, token) in [
        ("another audience", site.api.token(SYSTEM, "mesh-agent", agent, &["vault"], HOUR)),
        ("the API server's own", site.api.token(SYSTEM, "mesh-agent", agent, &[], HOUR)),
        ("expired", expired),
        ("no pod", site.api.token(SYSTEM, "mesh-agent", None, &[AUDIENCE], HOUR)),
        ("forged", site.token_of("n1") + "A"),
        ("no token", "x".repeat(40)),
    ] {
        assert_eq!(refused(&*site.client(&authority, &token), "cart").await, Reason::CaUnauthenticated, "{what}");
    }
    // A workload's token is good for its own identity, wherever it runs.
    let own = site.client(&authority, &site.api.token("shop", "web", Some("web-1"), &[AUDIENCE], HOUR));
    assert!(trusts(&site.roots(), &fetch(&*own, "web").await));
    let refusal = own.fetch(&identity("cart")).await.unwrap_err();
    assert_eq!((refusal.reason, refusal.is_transient), (Reason::CaWrongIdentity, false), "{refusal}");
}

/// What is in a token.
fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn where_tokens_name_no_node_their_pod_does() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let mut claims = claims(&site.token_of("n1"));
    claims["kubernetes.io"].as_object_mut().unwrap().remove("node").expect("a node is named");
    let old = site.client(&authority, &site.api.sign(&claims));
    fetch(&*old, "cart").await;
    assert_eq!(refused(&*old, "web").await, Reason::CaNotOnNode);
}

#[tokio::test]
async fn a_token_is_read_again_when_it_is_replaced() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let token = site.path("rotated");
    fs::write(&token, site.api.token(SYSTEM, "mesh-agent", Some("agent-n1"), &["vault"], HOUR)).unwrap();
    let bundle = site.path("bundle");
    fs::write(&bundle, site.bundle()).unwrap();
    let address = authority.address.to_string();
    let istio = IstioConfig { address, name: None, bundle, token: Some(token.clone()), service: None };
    let client = connect(&Config { choice: Choice::Istio(istio), trust_domain: "cluster.local".to_owned() }).unwrap();
    assert_eq!(refused(&*client, "cart").await, Reason::CaUnauthenticated);
    fs::write(&token, site.token_of("n1") + "\n").unwrap();
    fetch(&*client, "cart").await;
}

#[tokio::test]
async fn pods_count_while_they_are_there() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let client = site.client(&authority, &site.token_of("n1"));
    fetch(&*client, "cart").await;
    site.api.put(pod("shop", "cart-1", "cart", Some("n1"), "Succeeded"));
    eventually("the end of the pod", async || {
        (client.fetch(&identity("cart")).await.err()?.reason == Reason::CaNotOnNode).then_some(())
    })
    .await;
    site.api.put(pod("shop", "cart-2", "cart", Some("n1"), "Pending"));
    fetch(&*client, "cart").await;
    assert!(site.api.remove("v1", "Pod", "shop", "cart-2"));
    eventually("that the pod is gone", async || {
        (client.fetch(&identity("cart")).await.err()?.reason == Reason::CaNotOnNode).then_some(())
    })
    .await;
    // The node knows of a pod a moment sooner than the authority: it waits.
    let (asked, ()) = tokio::join!(client.fetch(&identity("web")), async {
        site.api.put(pod("shop", "web-2", "web", Some("n1"), "Pending"));
    });
    asked.unwrap();
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_is_a_refusal_that_passes() {
    let site = Site::new();
    let refuse = Effect::Refuse { code: 500, retry_after: None };
    site.api.fault(Fault::new("list", "/api/v1/pods", refuse));
    let authority = Process::start(&site, &[]);
    let client = site.client(&authority, &site.token_of("n1"));
    assert_eq!(refused(&*client, "cart").await, Reason::CaNotReady, "pods are not known");
    site.api.heal();
    fetch(&*client, "cart").await;
    site.api.fault(Fault::new("create", "/tokenreviews", refuse));
    fetch(&*client, "cart").await;
    let other = site.client(&authority, &site.token_of("n2"));
    assert_eq!(refused(&*other, "web").await, Reason::CaNotReady, "nobody says whose token it is");
    site.api.heal();
    fetch(&*other, "web").await;
}

#[tokio::test]
async fn replicas_that_start_at_once_have_one_root() {
    let site = Site::new();
    let starting = [(); 3].map(|()| Starting::new(&site, "127.0.0.1:0", &[]));
    let authorities = starting.map(Starting::serving);
    let roots = site.roots();
    assert_eq!(roots.len(), 1);
    for authority in &authorities {
        let svid = fetch(&*site.client(authority, &site.token_of("n1")), "cart").await;
        assert!(trusts(&roots, &svid));
    }
    let made = authorities.iter().filter(|authority| authority.log().contains("made a root")).count();
    assert_eq!(made, 1);
    let secret = site.get("Secret", SECRET).unwrap();
    let kept = STANDARD.decode(secret["data"]["root-cert.pem"].as_str().unwrap()).unwrap();
    assert_eq!(certificates(&String::from_utf8(kept).unwrap()), roots);
}

#[tokio::test]
async fn a_root_that_was_lost_is_not_replaced_by_another() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let before = site.get("Secret", SECRET).unwrap();
    site.api.remove("v1", "Secret", SYSTEM, SECRET);
    let restored = eventually("the root in its Secret", async || site.get("Secret", SECRET)).await;
    assert_eq!(restored["data"], before["data"], "it is put back by whoever has it");
    authority.stop();
    site.api.remove("v1", "Secret", SYSTEM, SECRET);
    let error = fails(&site, &[]);
    assert!(error.contains("Secret mesh-system/mesh-agent-ca-root") && error.contains("the root was lost"), "{error}");
    assert_eq!(site.get("Secret", SECRET), None);
    site.api.remove("v1", "ConfigMap", SYSTEM, BUNDLE);
    Process::start(&site, &[]);
}

#[tokio::test]
async fn a_secret_that_cannot_be_used_is_named_and_left_alone() {
    let site = Site::new();
    let secret = |data: Value| {
        let metadata = json!({"name": SECRET, "namespace": SYSTEM});
        site.api.put(json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}))
    };
    for (data, expected) in [
        (json!({"root-cert.pem": "aGVsbG8="}), "root-cert.pem"),
        (json!({"password": "aGVsbG8="}), "none of tls.crt"),
        (json!({"tls.crt": "aGVsbG8=", "tls.key": "aGVsbG8="}), "tls.crt"),
    ] {
        let put = secret(data);
        let error = fails(&site, &[]);
        assert!(error.contains("Secret mesh-system/mesh-agent-ca-root") && error.contains(expected), "{error}");
        assert_eq!(site.get("Secret", SECRET).unwrap()["data"], put["data"]);
    }
    // An empty one, which somebody made for it, is filled.
    secret(json!({}));
    let authority = Process::start(&site, &[]);
    let filled = site.get("Secret", SECRET).unwrap()["data"].clone();
    secret(json!({"root-cert.pem": "aGVsbG8="}));
    eventually("a word about it", async || authority.log().contains("what was in force stays").then_some(())).await;
    fetch(&*site.client(&authority, &site.token_of("n1")), "cart").await;
    secret(filled);
    fetch(&*site.client(&authority, &site.token_of("n1")), "cart").await;
}

/// A root and an intermediate as cert-manager writes them: certificate, key, root.
fn issued() -> [(&'static str, String); 3] {
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (params, rcgen::KeyPair::generate().unwrap())
    };
    let (params, key) = authority("root");
    let root = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let (params, key) = authority("intermediate");
    let intermediate = params.signed_by(&key, &issuer).unwrap();
    [("tls.crt", intermediate.pem()), ("tls.key", key.serialize_pem()), ("ca.crt", root.pem())]
}

#[tokio::test]
async fn a_root_that_cert_manager_keeps_is_used() {
    let site = Site::new();
    let files = issued();
    let data: serde_json::Map<String, Value> =
        files.iter().map(|(name, text)| ((*name).to_owned(), STANDARD.encode(text).into())).collect();
    let metadata = json!({"name": SECRET, "namespace": SYSTEM});
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": data});
    site.api.put(secret.clone());
    let authority = Process::start(&site, &[]);
    let svid = fetch(&*site.client(&authority, &site.token_of("n1")), "cart").await;
    let roots = certificates(&files[2].1);
    assert!(trusts(&roots, &svid));
    assert_eq!(site.roots(), roots);
    assert_eq!(site.get("Secret", SECRET).unwrap()["data"], secret["data"], "it is not ours to write");
}

#[tokio::test]
async fn it_may_do_what_it_does_and_no_more() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let mut map = site.get("ConfigMap", BUNDLE).unwrap();
    map["data"] = json!({});
    site.api.put(map);
    let other = Process::start(&site, &["--new-root"]);
    for authority in [&authority, &other] {
        fetch(&*site.client(authority, &site.token_of("n1")), "cart").await;
    }
    assert_eq!(site.roots().len(), 2);
    let user = format!("system:serviceaccount:{SYSTEM}:mesh-agent-ca");
    let decided = site.api.decided(&user);
    assert_eq!(forbidden(&decided), [] as [&str; 0]);
    assert_eq!(unused(&grants(&permissions(), "mesh-agent-ca"), &decided), [] as [&str; 0]);
}

fn http(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn it_is_ready_when_it_knows_root_and_pods_and_counts_what_it_does() {
    let site = Site::new();
    let refuse = Effect::Refuse { code: 500, retry_after: None };
    site.api.fault(Fault::new("list", "/api/v1/pods", refuse));
    site.api.fault(Fault::new("create", "/secrets", refuse));
    let starting = Starting::new(&site, "127.0.0.1:0", &["--http-address", "127.0.0.1:0"]);
    let address = eventually("an HTTP listener", async || {
        let log = starting.log.lock().unwrap().clone();
        log.lines().find(|line| line.contains("answering probes")).map(|line| field(line, "http").parse().unwrap())
    })
    .await;
    assert!(http(address, "/livez").starts_with("HTTP/1.1 200"));
    let answer = http(address, "/readyz");
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("the root; the pods of the cluster"), "{answer}");
    site.api.heal();
    let authority = starting.serving();
    eventually("that it is ready", async || http(address, "/readyz").starts_with("HTTP/1.1 200").then_some(())).await;
    let client = site.client(&authority, &site.token_of("n1"));
    fetch(&*client, "cart").await;
    assert_eq!(refused(&*client, "web").await, Reason::CaNotOnNode);
    let metrics = http(address, "/metrics");
    for line in [
        "mesh_ca_signed_total 1",
        "mesh_ca_refused_total{reason=\"ca_not_on_node\"} 1",
        "mesh_ca_pods 4",
        "mesh_ca_bundle_published 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
}

/// Writes a folder as the kubelet mounts a Secret, all at once.
fn mount(folder: &Path, version: &str, files: &[(&str, String)]) {
    let made = folder.join(version);
    fs::create_dir_all(&made).unwrap();
    for (name, text) in files {
        fs::write(made.join(name), text).unwrap();
        let _there = symlink(Path::new("..data").join(name), folder.join(name));
    }
    symlink(version, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn a_mounted_secret_is_followed() {
    let site = Site::new();
    let (folder, first, second) = (site.path("mounted"), issued(), issued());
    mount(&folder, "..1", &first);
    let authority = Process::start(&site, &["--root", folder.to_str().unwrap()]);
    let client = site.client(&authority, &site.token_of("n1"));
    assert!(trusts(&certificates(&first[2].1), &fetch(&*client, "cart").await));
    assert_eq!(site.get("Secret", SECRET), None);
    mount(&folder, "..2", &second);
    let roots =
        eventually("the new root in the bundle", async || Some(site.roots()).filter(|roots| roots.len() == 2)).await;
    assert!(roots.contains(&certificates(&first[2].1)[0]), "another replica may still use it");
    let client = site.client(&authority, &site.token_of("n1"));
    assert!(trusts(&certificates(&second[2].1), &fetch(&*client, "cart").await));
}

#[tokio::test]
async fn the_bundle_is_restored_and_written_only_when_it_differs() {
    let site = Site::new();
    let _authority = Process::start(&site, &[]);
    let good = site.get("ConfigMap", BUNDLE).unwrap();
    for text in ["", "edited", &issued()[2].1] {
        let mut edited = good.clone();
        edited["data"] = json!({"bundle.pem": text, "other": "stays"});
        site.api.put(edited);
        let restored = eventually("the bundle as it was", async || {
            site.get("ConfigMap", BUNDLE).filter(|map| map["data"]["bundle.pem"] == good["data"]["bundle.pem"])
        })
        .await;
        assert_eq!(restored["data"]["other"], "stays");
    }
    site.api.take_requests();
    let requests = eventually("two looks", async || {
        let requests = site.api.requests();
        let looks = requests.iter().filter(|request| request.path.ends_with(BUNDLE)).count();
        (looks >= 2).then_some(requests)
    })
    .await;
    let others: Vec<_> = requests.iter().filter(|request| !["get", "watch"].contains(&&*request.verb)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test]
async fn a_next_root_is_published_before_it_signs() {
    let site = Site::new();
    let at_once = ["--root-overlap", "0s"];
    let first = Process::start(&site, &at_once);
    let old = site.roots();
    // Another replica comes and makes the next root, which nobody can publish for now.
    site.api.fault(Fault::new("update", BUNDLE, Effect::Refuse { code: 500, retry_after: None }));
    let second = Starting::new(&site, "127.0.0.1:0", &[&at_once[..], &["--new-root"]].concat());
    eventually("a word about it", async || first.log().contains("cannot write the ConfigMap").then_some(())).await;
    assert!(site.get("Secret", SECRET).unwrap()["data"]["next-cert.pem"].is_string());
    assert_eq!(site.roots(), old);
    assert!(trusts(&old, &fetch(&*site.client(&first, &site.token_of("n1")), "cart").await));
    site.api.heal();
    let second = second.serving();
    let both = site.roots();
    assert_eq!((both.len(), &both[..1]), (2, &old[..]));
    for authority in [&first, &second] {
        let client = site.client(authority, &site.token_of("n1"));
        eventually("a certificate of the next root", async || {
            trusts(&both[1..], &fetch(&*client, "cart").await).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn agents_find_the_service_without_dns() {
    let site = Site::new();
    let authority = Process::start(&site, &[]);
    let metadata = json!({"name": "mesh-agent-ca", "namespace": SYSTEM});
    let ports = json!([{"name": "grpc", "port": 15012}]);
    let spec = json!({"clusterIP": "127.0.0.3", "ports": ports});
    site.api.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}));
    let labels = json!({"kubernetes.io/service-name": "mesh-agent-ca"});
    site.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "mesh-agent-ca-1", "namespace": SYSTEM, "labels": labels},
        "endpoints": [
            {"addresses": ["127.0.0.2"], "conditions": {"ready": true}},
            {"addresses": ["127.0.0.1"], "conditions": {"ready": true}},
        ],
        "ports": [{"name": "grpc", "port": authority.address.port(), "protocol": "TCP"}],
    }));
    let service = Some(Access { kubeconfig: Some(site.path("agent-kubeconfig")), context: None });
    let client = site.client_at("mesh-agent-ca.mesh-system.svc:15012", &site.token_of("n1"), service.clone());
    fetch(&*client, "cart").await;
    // Restarted, and the API server does not say where: where it was.
    let listen = authority.address.to_string();
    authority.stop();
    site.api.fault(Fault::new("list", "/services", Effect::Refuse { code: 500, retry_after: None }));
    let _authority = Starting::new(&site, &listen, &[]).serving();
    fetch(&*client, "cart").await;
    // Whoever has another name is not the one.
    site.api.heal();
    for (name, reason) in [("other", Reason::CaUntrusted), ("none", Reason::CaUnreachable)] {
        let metadata = json!({"name": "other", "namespace": SYSTEM});
        let spec = json!({"clusterIP": "127.0.0.1", "ports": [{"port": authority_port(&listen)}]});
        site.api.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}));
        let address = format!("{name}.{SYSTEM}.svc:{}", authority_port(&listen));
        let client = site.client_at(&address, &site.token_of("n1"), service.clone());
        assert_eq!(refused(&*client, "cart").await, reason);
    }
}

fn authority_port(listen: &str) -> u16 {
    listen.parse::<SocketAddr>().unwrap().port()
}
