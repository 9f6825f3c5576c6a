//! The server half.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixStream as StdStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time,
};

use crate::{
    admin::{other_socket_path, query, socket_path},
    model::{
        Audit, Certificates, DrainingAgent, Explanation, HandoverAnswer, HandoverRefusal, HandoverRequest, Status,
    },
};

/// Connections served at once; more of them wait in the accept queue.
const MAX_CONNECTIONS: usize = 16;
/// How long a request's head may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a whole connection may take: nobody may keep one of the few places.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest body of a request, in bytes.
const MAX_BODY: usize = 4096;
/// Longest step of a hand-over: accounts of all pods.
const MAX_HANDOVER: usize = 256 * 1024;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the server tells; the agent implements it.
pub trait Source: Send + Sync + 'static {
    /// The status now.
    fn status(&self) -> impl Future<Output = Status> + Send;
    /// What crossed the node's edge within the last `period` seconds.
    fn audit(&self, period: u64) -> impl Future<Output = Audit> + Send;
    /// What would become of a connection; the error names what is not known.
    fn explain(
        &self,
        source: String,
        destination: String,
        port: u16,
    ) -> impl Future<Output = Result<Explanation, String>> + Send;
    /// A step of the hand-over to another agent, or from one, said by the process `pid`.
    fn hand_over(
        &self,
        _request: HandoverRequest,
        _pid: u32,
    ) -> impl Future<Output = Result<HandoverAnswer, HandoverRefusal>> + Send {
        async { Err(HandoverRefusal::Never("nothing is handed over here".to_owned())) }
    }
    /// The connections that are left, of an agent that was relieved.
    fn draining(&self) -> DrainingAgent {
        DrainingAgent { pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned(), open: None }
    }
    /// How the certificates stand.
    fn certificates(&self) -> Certificates;
    /// What the agent still waits for before it is ready; empty when it is.
    fn waiting_for(&self) -> Vec<String>;
    /// Replaces the log filter; the error says what is wrong with it.
    fn set_log_filter(&self, filter: &str) -> Result<(), String>;
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent answers on it.
    #[error("another agent answers on {}; stop it first, or give this one its own --run-dir and --bpffs", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket has its name.
    #[error("{} exists and is not a socket; move it away, or choose another --run-dir", .0.display())]
    NotASocket(PathBuf),
    /// The file system or the network stack refused.
    #[error("cannot make the admin socket {}: {source}; check that --run-dir is writable and its path is short", .path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The bound socket. Dropping it, or the future of [`Server::run`], removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    /// Where it is, and where it is when it has made room for another.
    paths: [PathBuf; 2],
    inode: (u64, u64),
}

impl Server {
    /// Makes `run_dir` if need be and listens on its socket, mode 0600; a socket that nobody answers on is replaced.
    /// Needs a tokio runtime.
    pub fn bind(run_dir: &Path) -> Result<Self, Error> {
        let path = socket_path(run_dir);
        fs::create_dir_all(run_dir).map_err(|source| Error::Io { path: path.clone(), source })?;
        refuse_unless_stale(&path)?;
        Self::replace(run_dir)
    }

    /// The same whoever listens on it: a running agent has made room.
    pub fn replace(run_dir: &Path) -> Result<Self, Error> {
        let (path, new) = (socket_path(run_dir), other_socket_path(run_dir, std::process::id()));
        match Self::publish(&new, &path) {
            Ok((listener, inode)) => Ok(Self { listener, paths: [path, new], inode }),
            Err(source) => {
                let _gone = fs::remove_file(&new);
                Err(Error::Io { path, source })
            }
        }
    }

    /// Binds under a name of its own and renames: the socket never exists with a wider mode.
    fn publish(new: &Path, path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
        match fs::remove_file(new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(new)?;
        fs::set_permissions(new, fs::Permissions::from_mode(0o600))?;
        let meta = fs::metadata(new)?;
        fs::rename(new, path)?;
        Ok((listener, (meta.dev(), meta.ino())))
    }

    /// Serves for ever. Connections end with the future.
    pub async fn run<S: Source>(self, source: Arc<S>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "admin socket: accept failed");
                    time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let source = Arc::clone(&source);
            connections.spawn(async move {
                if time::timeout(CONNECTION_TIMEOUT, serve(stream, source)).await.is_err() {
                    tracing::debug!("admin socket: connection closed at its time limit");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for path in &self.paths {
            // Another agent may have put its own in the place.
            if fs::symlink_metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode) {
                let _gone = fs::remove_file(path);
            }
        }
    }
}

fn refuse_unless_stale(path: &Path) -> Result<(), Error> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::Io { path: path.to_path_buf(), source }),
    };
    if !meta.file_type().is_socket() {
        return Err(Error::NotASocket(path.to_path_buf()));
    }
    match StdStream::connect(path) {
        Ok(_) => Err(Error::InUse(path.to_path_buf())),
        Err(_) => Ok(()),
    }
}

/// The running agent makes room for another: its socket is found under a name of its own, too.
pub fn make_room(run_dir: &Path) -> io::Result<()> {
    let own = other_socket_path(run_dir, std::process::id());
    let _left_by_another = fs::remove_file(&own);
    fs::hard_link(socket_path(run_dir), own)
}

/// The opposite: the other one did not come.
pub fn come_back(run_dir: &Path) -> io::Result<()> {
    let own = other_socket_path(run_dir, std::process::id());
    fs::rename(&own, socket_path(run_dir))?;
    // Of two names of one file rename(2) removes neither.
    let _gone = fs::remove_file(own);
    Ok(())
}

async fn serve<S: Source>(stream: UnixStream, source: Arc<S>) {
    let peer = stream.peer_cred().ok().and_then(|peer| peer.pid()).map_or(0, |pid| pid as u32);
    let service = service_fn(move |request| {
        let source = Arc::clone(&source);
        async move { Ok::<_, Infallible>(answer(request, peer, &*source).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin socket: connection failed");
    }
}

async fn answer<S: Source>(request: Request<Incoming>, peer: u32, source: &S) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    match (head.uri.path(), &head.method) {
        ("/v1/status", &Method::GET) => json(&source.status().await),
        ("/v1/policy/audit", &Method::GET) => audit(head.uri.query().unwrap_or_default(), source).await,
        ("/v1/policy/certificates", &Method::GET) => json(&source.certificates()),
        ("/v1/policy/explain", &Method::GET) => explain(head.uri.query().unwrap_or_default(), source).await,
        ("/healthz", &Method::GET) => text(StatusCode::OK, "ok".to_owned()),
        ("/readyz", &Method::GET) => match source.waiting_for() {
            waiting if waiting.is_empty() => text(StatusCode::OK, "ready".to_owned()),
            waiting => text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}", waiting.join(", "))),
        },
        ("/v1/handover", &Method::GET) => json(&source.draining()),
        ("/v1/handover", &Method::POST) => hand_over(body, peer, source).await,
        ("/v1/log-level", &Method::PUT) => set_log_filter(body, source).await,
        (
            "/v1/status"
            | "/v1/policy/audit"
            | "/v1/policy/certificates"
            | "/v1/policy/explain"
            | "/v1/handover"
            | "/healthz"
            | "/readyz"
            | "/v1/log-level",
            method,
        ) => text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not for this path")),
        (path, _) => text(
            StatusCode::NOT_FOUND,
            format!(
                "no {path} here; there are GET /v1/status, /v1/policy/audit?since=SECONDS, /v1/policy/certificates, \
                 /v1/policy/explain?source=&destination=&port=, /healthz, /readyz and PUT /v1/log-level"
            ),
        ),
    }
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(json) => response(StatusCode::OK, "application/json", json),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode the answer: {error}")),
    }
}

async fn audit<S: Source>(query: &str, source: &S) -> Response<Full<Bytes>> {
    match query::value(query, "since").map_or(Ok(3600), |seconds| seconds.parse()) {
        Ok(period) => json(&source.audit(period).await),
        Err(_) => text(StatusCode::BAD_REQUEST, "since must be a number of seconds".to_owned()),
    }
}

async fn explain<S: Source>(query: &str, source: &S) -> Response<Full<Bytes>> {
    let of = |name| query::value(query, name);
    let port = of("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    let (Some(from), Some(to), Some(port)) = (of("source"), of("destination"), port) else {
        return text(StatusCode::BAD_REQUEST, "source, destination and port (1 to 65535) are needed".to_owned());
    };
    match source.explain(from, to, port).await {
        Ok(explanation) => json(&explanation),
        Err(error) => text(StatusCode::NOT_FOUND, error),
    }
}

async fn hand_over<S: Source>(body: Incoming, peer: u32, source: &S) -> Response<Full<Bytes>> {
    let Ok(body) = Limited::new(body, MAX_HANDOVER).collect().await else {
        return text(StatusCode::BAD_REQUEST, format!("the body must be JSON of at most {MAX_HANDOVER} bytes"));
    };
    let request = match serde_json::from_slice(&body.to_bytes()) {
        Ok(request) => request,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("not a step of a hand-over: {error}")),
    };
    match source.hand_over(request, peer).await {
        Ok(answer) => json(&answer),
        Err(HandoverRefusal::Later(why)) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        Err(HandoverRefusal::Never(why)) => text(StatusCode::CONFLICT, why),
    }
}

async fn set_log_filter<S: Source>(body: Incoming, source: &S) -> Response<Full<Bytes>> {
    let Ok(body) = Limited::new(body, MAX_BODY).collect().await else {
        return text(StatusCode::BAD_REQUEST, format!("the body must be a log filter of at most {MAX_BODY} bytes"));
    };
    let body = body.to_bytes();
    let filter = String::from_utf8_lossy(&body);
    match source.set_log_filter(filter.trim()) {
        Ok(()) => text(StatusCode::OK, format!("log filter is now {}", filter.trim())),
        Err(error) => text(StatusCode::BAD_REQUEST, error),
    }
}

fn text(status: StatusCode, mut body: String) -> Response<Full<Bytes>> {
    body.push('\n');
    response(status, "text/plain; charset=utf-8", body.into_bytes())
}

fn response(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
