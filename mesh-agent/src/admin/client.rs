//! The client half.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time};

use crate::{
    admin::{query, socket_path},
    model::{Audit, Certificates, DrainingAgent, Explanation, HandoverAnswer, HandoverRequest, Status},
};

/// How long an agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why no agent answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// There is no socket.
    Absent,
    /// There is one, and nobody listens on it.
    Refused,
    /// Somebody listens, and did not answer in time.
    Timeout,
    /// Somebody listened, and hung up.
    Closed,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent answers.
    #[error("no agent answers on {}: {}", .socket.display(), match .silence {
        Silence::Absent => "the socket does not exist",
        Silence::Refused => "nobody listens on the socket (the agent is gone)",
        Silence::Timeout => "the agent accepted the question and did not answer within 5 s",
        Silence::Closed => "the agent closed the connection without an answer",
    })]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// How it kept silent.
        silence: Silence,
    },
    /// The socket cannot be used, e.g. for want of permission.
    #[error("cannot reach the agent's socket {}: {source}", .socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The agent said no.
    #[error("the agent answered {status}: {body}")]
    Refused {
        /// Status of the answer.
        status: StatusCode,
        /// Body of the answer.
        body: String,
    },
    /// The answer is not what it should be.
    #[error("the agent's answer is nothing that this version understands: {0}")]
    Schema(#[from] serde_json::Error),
}

impl Error {
    /// Whether the agent does not know what it was asked for: it is of an older version.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::NOT_FOUND)
    }

    /// Whether the agent may be asked again at once.
    pub fn is_for_now(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// Asks the agent of `run_dir` for its status.
pub async fn status(run_dir: &Path) -> Result<Status, Error> {
    get(run_dir, "/v1/status").await
}

/// What crossed the node's edge within the last `period`.
pub async fn audit(run_dir: &Path, period: Duration) -> Result<Audit, Error> {
    get(run_dir, &format!("/v1/policy/audit?since={}", period.as_secs())).await
}

/// The certificates of the node's workloads.
pub async fn certificates(run_dir: &Path) -> Result<Certificates, Error> {
    get(run_dir, "/v1/policy/certificates").await
}

/// What would become of a connection.
pub async fn explain(run_dir: &Path, source: &str, destination: &str, port: u16) -> Result<Explanation, Error> {
    let (source, destination) = (query::encode(source), query::encode(destination));
    get(run_dir, &format!("/v1/policy/explain?source={source}&destination={destination}&port={port}")).await
}

async fn get<T: DeserializeOwned>(run_dir: &Path, path: &str) -> Result<T, Error> {
    let (code, body) = request(run_dir, Method::GET, path, "").await?;
    read(code, &body)
}

fn read<T: DeserializeOwned>(code: StatusCode, body: &[u8]) -> Result<T, Error> {
    if code != StatusCode::OK {
        return Err(Error::Refused { status: code, body: String::from_utf8_lossy(body).trim().to_owned() });
    }
    Ok(serde_json::from_slice(body)?)
}

/// A step of a hand-over, said to whoever answers on `socket`.
pub async fn hand_over(socket: &Path, request: &HandoverRequest) -> Result<HandoverAnswer, Error> {
    let body = serde_json::to_string(request)?;
    let (code, body) = request_at(socket, Method::POST, "/v1/handover", &body).await?;
    read(code, &body)
}

/// How many connections an agent that was relieved has left.
pub async fn draining(socket: &Path) -> Result<DrainingAgent, Error> {
    let (code, body) = request_at(socket, Method::GET, "/v1/handover", "").await?;
    read(code, &body)
}

/// One request; the answer's status and body.
pub async fn request(run_dir: &Path, method: Method, path: &str, body: &str) -> Result<(StatusCode, Bytes), Error> {
    request_at(&socket_path(run_dir), method, path, body).await
}

async fn request_at(socket: &Path, method: Method, path: &str, body: &str) -> Result<(StatusCode, Bytes), Error> {
    let socket = socket.to_path_buf();
    let silent = |silence| Error::NoAgent { socket: socket.clone(), silence };
    match time::timeout(TIMEOUT, exchange(&socket, method, path, body)).await {
        Err(_) => Err(silent(Silence::Timeout)),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(Failure::Http)) => Err(silent(Silence::Closed)),
        Ok(Err(Failure::Connect(source))) => Err(match source.kind() {
            io::ErrorKind::NotFound => silent(Silence::Absent),
            io::ErrorKind::ConnectionRefused => silent(Silence::Refused),
            _ => Error::Io { socket, source },
        }),
    }
}

enum Failure {
    Connect(io::Error),
    Http,
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        tracing::debug!(%error, "admin request failed");
        Self::Http
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: &str) -> Result<(StatusCode, Bytes), Failure> {
    let stream = UnixStream::connect(socket).await.map_err(Failure::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut request = Request::new(Full::new(Bytes::from(body.to_owned())));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| Failure::Http)?;
    request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("mesh-agent"));
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    // The connection must be driven along with its one request, and is of no use after it.
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}
