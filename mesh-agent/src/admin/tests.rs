use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
};

use hyper::{Method, StatusCode};
use tokio::task::JoinHandle;

use super::{
    client::{self, Silence},
    lock::{self, RunLock},
    server::{Error, Server, Source},
    socket_path,
};
use crate::model::{Audit, CertificateSummary, Certificates, Explanation, KernelStatus, NodeStatus, Shares, Status};

#[derive(Default)]
struct Canned {
    waiting: Mutex<Vec<String>>,
    filter: Mutex<String>,
}

impl Source for Canned {
    async fn status(&self) -> Status {
        Status {
            healthy: true,
            version: "1.2.3".to_owned(),
            pid: 7,
            uptime_seconds: 1,
            rss_bytes: 1,
            draining: Vec::new(),
            node: NodeStatus {
                name: "n".to_owned(),
                zone: None,
                addresses: Vec::new(),
                source: "manifests /m".to_owned(),
                source_age_ms: 0,
                snapshot: 1,
                direct: "on".to_owned(),
                shares: Shares::default(),
                certificates: CertificateSummary::default(),
            },
            kernel: KernelStatus {
                release: "6.1.0".to_owned(),
                abi: 1,
                pins: "/sys/fs/bpf".to_owned(),
                hooks: Vec::new(),
            },
            workers: Vec::new(),
            namespaces: Vec::new(),
            pods: Vec::new(),
            reasons: BTreeMap::new(),
            authorizations: Vec::new(),
            problems: Vec::new(),
        }
    }

    async fn audit(&self, _: u64) -> Audit {
        unreachable!("nobody asks for it here")
    }

    async fn explain(&self, _: String, _: String, _: u16) -> Result<Explanation, String> {
        unreachable!("nobody asks for it here")
    }

    fn certificates(&self) -> Certificates {
        Certificates::default()
    }

    fn waiting_for(&self) -> Vec<String> {
        self.waiting.lock().unwrap().clone()
    }

    fn set_log_filter(&self, filter: &str) -> Result<(), String> {
        if filter == "loud" {
            return Err("no such level".to_owned());
        }
        filter.clone_into(&mut self.filter.lock().unwrap());
        Ok(())
    }
}

fn start(run_dir: &Path) -> (Arc<Canned>, JoinHandle<()>) {
    let source = Arc::new(Canned::default());
    let server = Server::bind(run_dir).unwrap();
    (Arc::clone(&source), tokio::spawn(server.run(source)))
}

async fn ask(run_dir: &Path, method: Method, path: &str, body: &str) -> (u16, String) {
    let (status, body) = client::request(run_dir, method, path, body).await.unwrap();
    (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
}

fn silence(error: client::Error) -> Silence {
    match error {
        client::Error::NoAgent { silence, .. } => silence,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_status_arrives_as_it_was() {
    let run_dir = tempfile::tempdir().unwrap();
    let (source, _server) = start(run_dir.path());
    assert_eq!(client::status(run_dir.path()).await.unwrap(), source.status().await);
    let mode = fs::metadata(socket_path(run_dir.path())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(run_dir.path()).unwrap().count(), 1, "no temporary name is left");
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let run_dir = tempfile::tempdir().unwrap();
    let (source, _server) = start(run_dir.path());
    assert_eq!(ask(run_dir.path(), Method::GET, "/healthz", "").await, (200, "ok\n".to_owned()));
    assert_eq!(ask(run_dir.path(), Method::GET, "/readyz", "").await, (200, "ready\n".to_owned()));
    *source.waiting.lock().unwrap() = vec!["hooks".to_owned(), "manifests".to_owned()];
    assert_eq!(
        ask(run_dir.path(), Method::GET, "/readyz", "").await,
        (503, "waiting for: hooks, manifests\n".to_owned())
    );
}

#[tokio::test]
async fn the_log_filter_is_replaced_or_refused() {
    let run_dir = tempfile::tempdir().unwrap();
    let (source, _server) = start(run_dir.path());
    assert_eq!(ask(run_dir.path(), Method::PUT, "/v1/log-level", "debug\n").await.0, 200);
    assert_eq!(*source.filter.lock().unwrap(), "debug");
    assert_eq!(ask(run_dir.path(), Method::PUT, "/v1/log-level", "loud").await, (400, "no such level\n".to_owned()));
    assert_eq!(ask(run_dir.path(), Method::PUT, "/v1/log-level", &"x".repeat(5000)).await.0, 400);
    assert_eq!(*source.filter.lock().unwrap(), "debug");
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told() {
    let run_dir = tempfile::tempdir().unwrap();
    let (_source, _server) = start(run_dir.path());
    let (code, text) = ask(run_dir.path(), Method::GET, "/status", "").await;
    assert!(code == 404 && text.contains("GET /v1/status"), "{code} {text}");
    assert_eq!(ask(run_dir.path(), Method::POST, "/v1/status", "").await.0, StatusCode::METHOD_NOT_ALLOWED.as_u16());
}

#[tokio::test]
async fn idle_connections_do_not_keep_the_status_away_for_ever() {
    let run_dir = tempfile::tempdir().unwrap();
    let (_source, _server) = start(run_dir.path());
    let mut idle = Vec::new();
    for _ in 0..15 {
        idle.push(tokio::net::UnixStream::connect(socket_path(run_dir.path())).await.unwrap());
    }
    assert!(client::status(run_dir.path()).await.is_ok(), "a place is left");
    idle.push(tokio::net::UnixStream::connect(socket_path(run_dir.path())).await.unwrap());
    idle.push(tokio::net::UnixStream::connect(socket_path(run_dir.path())).await.unwrap());
    tokio::time::pause();
    let first = idle.first().unwrap();
    first.readable().await.unwrap();
    let ended = loop {
        match first.try_read(&mut [0; 256]) {
            Ok(0) => break true,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => first.readable().await.unwrap(),
            Err(_) => break true,
        }
    };
    assert!(ended, "the server hung up on who says nothing");
    tokio::time::resume();
    assert!(client::status(run_dir.path()).await.is_ok());
}

#[tokio::test]
async fn silence_is_told_apart() {
    let run_dir = tempfile::tempdir().unwrap();
    assert_eq!(silence(client::status(run_dir.path()).await.unwrap_err()), Silence::Absent);
    // A bound socket whose owner died.
    drop(std::os::unix::net::UnixListener::bind(socket_path(run_dir.path())).unwrap());
    assert_eq!(silence(client::status(run_dir.path()).await.unwrap_err()), Silence::Refused);
    // One that accepts and never answers.
    fs::remove_file(socket_path(run_dir.path())).unwrap();
    let _mute = std::os::unix::net::UnixListener::bind(socket_path(run_dir.path())).unwrap();
    tokio::time::pause();
    assert_eq!(silence(client::status(run_dir.path()).await.unwrap_err()), Silence::Timeout);
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_nothing_else() {
    let run_dir = tempfile::tempdir().unwrap();
    let path = socket_path(run_dir.path());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (_source, server) = start(run_dir.path());
    assert!(client::status(run_dir.path()).await.is_ok());
    assert!(matches!(Server::bind(run_dir.path()), Err(Error::InUse(_))), "a live agent keeps its socket");

    server.abort();
    let _aborted = server.await;
    assert!(!path.exists(), "the socket goes with its server");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Server::bind(run_dir.path()), Err(Error::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn one_agent_per_run_folder() {
    let run_dir = tempfile::tempdir().unwrap();
    let held = RunLock::acquire(run_dir.path()).unwrap();
    let error = RunLock::acquire(run_dir.path()).unwrap_err();
    assert!(matches!(error, lock::Error::Held { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    drop(held);
    RunLock::acquire(run_dir.path()).unwrap();
    assert!(RunLock::acquire_existing(&run_dir.path().join("absent")).unwrap().is_none());
}
