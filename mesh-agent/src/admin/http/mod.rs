//! The HTTP listener for the cluster: probes of the kubelet, Prometheus, and `mesh-agent status --cluster` by
//! `kubectl port-forward`. `mesh-agent ca` has one, too.
//!
//! Anybody may ask, so places and times are limited, and what costs the agent something is answered at most once a second
//! ([`Pages`] sees to that). Those on this machine have places of their own: a flood from elsewhere must not make the
//! kubelet believe that the agent is dead.

use std::{
    convert::Infallible,
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time,
};

use crate::telemetry::Format;

/// Where it listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "[::]:15020";
/// Port of [`DEFAULT_ADDRESS`].
pub const DEFAULT_PORT: u16 = 15020;

/// Connections from elsewhere that are served at once, and those from this machine. What is beyond is closed.
const PLACES_FAR: usize = 32;
const PLACES_NEAR: usize = 32;
/// How long a request's head may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a whole connection may take.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest head of a request, in bytes: the least that hyper allows.
const MAX_HEAD: usize = 8192;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether a port that somebody else has is free.
const RETRY: Duration = Duration::from_secs(1);
/// After so many attempts it is somebody else's.
const LONG: u32 = 10;

/// `--http-address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// `none`: nothing listens.
    None,
    /// An address and a port.
    At(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "none" {
            return Ok(Self::None);
        }
        let wrong = |_| "write it like [::]:15020, 0.0.0.0:15020 or 10.0.0.1:15020, or none".to_owned();
        text.parse().map(Self::At).map_err(wrong)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// What is told. Whoever listens implements it; everybody may ask all but [`Self::json`].
pub trait Pages: Send + Sync + 'static {
    /// What is stuck, for `/livez`; empty when nothing is.
    fn stuck(&self) -> impl Future<Output = Vec<String>> + Send;
    /// What is still waited for, for `/readyz`; empty when it is ready.
    fn waiting_for(&self) -> impl Future<Output = Vec<String>> + Send;
    /// The metrics, for `/metrics`.
    fn metrics(&self, format: Format) -> impl Future<Output = String> + Send;
    /// What is at a path below `/v1/`, as JSON, only to those who come over loopback; `None` where there is nothing.
    fn json(&self, _path: &str, _query: &str) -> impl Future<Output = Option<Vec<u8>>> + Send {
        std::future::ready(None)
    }
}

/// The listener, or the wish for it: the port may be an earlier agent's still.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    bound: Option<TcpListener>,
}

impl Listener {
    /// Listens. A port that is taken is no error: it is the earlier agent's while this one takes over, and waited for.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// The address cannot be had, now or later.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        match listen(address) {
            Ok(bound) => Ok(Self { address, bound: Some(bound) }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                tracing::info!(%address, "the HTTP address is taken, by an earlier agent or somebody else; waiting for it");
                Ok(Self { address, bound: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Where it listens, if it does: with the port that the kernel chose for 0.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.bound.as_ref()?.local_addr().ok()
    }

    /// Serves for ever. Whatever is open ends with the future.
    pub async fn run<P: Pages>(self, pages: Arc<P>) {
        let listener = match self.bound {
            Some(bound) => bound,
            None => wait_for(self.address).await,
        };
        tracing::info!(address = %self.address, "HTTP: /livez /readyz /metrics");
        let (near, far) = (Arc::new(Semaphore::new(PLACES_NEAR)), Arc::new(Semaphore::new(PLACES_FAR)));
        let mut connections = JoinSet::new();
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "HTTP: accept failed");
                    time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            while connections.try_join_next().is_some() {}
            let Some(from) = From::of(&stream) else { continue };
            let places = if from == From::Elsewhere { &far } else { &near };
            let Ok(place) = Arc::clone(places).try_acquire_owned() else {
                tracing::debug!(?from, "HTTP: no place left; closed");
                continue;
            };
            let pages = Arc::clone(&pages);
            connections.spawn(async move {
                if time::timeout(CONNECTION_TIMEOUT, serve(stream, from, pages)).await.is_err() {
                    tracing::debug!("HTTP: connection closed at its time limit");
                }
                drop(place);
            });
        }
    }
}

/// Where somebody calls from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// Over loopback: `kubectl port-forward` arrives so.
    Loopback,
    /// From an address of this machine: the kubelet's probes.
    Here,
    Elsewhere,
}

impl From {
    fn of(stream: &TcpStream) -> Option<Self> {
        let peer = stream.peer_addr().ok()?.ip().to_canonical();
        let own = stream.local_addr().ok()?.ip().to_canonical();
        Some(match (peer.is_loopback(), peer == own) {
            (true, _) => Self::Loopback,
            (_, true) => Self::Here,
            _ => Self::Elsewhere,
        })
    }
}

/// Listens; `[::]` is both families, or IPv4 alone where the kernel has no other.
///
/// # Errors
/// As of bind(2) and listen(2).
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match socket(address) {
        // A kernel booted with ipv6.disable=1.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip().is_unspecified() => {
            socket((IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()).into())
        }
        result => result,
    }
}

/// No SO_REUSEPORT: of two agents the kernel would choose by chance who answers the probes of both.
fn socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn wait_for(address: SocketAddr) -> TcpListener {
    let mut tried = 0_u32;
    loop {
        time::sleep(RETRY).await;
        tried = tried.saturating_add(1);
        match listen(address) {
            Ok(listener) => return listener,
            // An earlier agent lets go of it at once.
            Err(error) if tried == LONG => {
                tracing::warn!(%address, %error, "HTTP: not free yet; probes are not answered");
            }
            Err(error) => tracing::debug!(%address, %error, "HTTP: not free yet"),
        }
    }
}

async fn serve<P: Pages>(stream: TcpStream, from: From, pages: Arc<P>) {
    let service = service_fn(move |request| {
        let pages = Arc::clone(&pages);
        async move { Ok::<_, Infallible>(answer(&request, from, &*pages).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "HTTP: connection failed");
    }
}

async fn answer<P: Pages>(request: &Request<Incoming>, from: From, pages: &P) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD".to_owned());
    }
    match path {
        "/livez" => verdict("live", "stuck", &pages.stuck().await),
        "/readyz" => verdict("ready", "waiting for", &pages.waiting_for().await),
        "/metrics" => {
            let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
            let format = Format::accepted(accept.unwrap_or_default());
            response(StatusCode::OK, format.content_type(), pages.metrics(format).await.into_bytes())
        }
        path if path.starts_with("/v1/") && from == From::Loopback => {
            match pages.json(path, request.uri().query().unwrap_or_default()).await {
                Some(json) => response(StatusCode::OK, "application/json", json),
                None => nothing(path),
            }
        }
        path if path.starts_with("/v1/") => {
            text(StatusCode::FORBIDDEN, "only to those who call over loopback, as kubectl port-forward does".to_owned())
        }
        _ => nothing(path),
    }
}

fn nothing(path: &str) -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, format!("no {path} here; there are /livez, /readyz, /metrics and /v1/status"))
}

fn verdict(well: &str, ill: &str, what: &[String]) -> Response<Full<Bytes>> {
    if what.is_empty() {
        return text(StatusCode::OK, well.to_owned());
    }
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{ill}: {}", what.join("; ")))
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

#[cfg(test)]
mod tests;
