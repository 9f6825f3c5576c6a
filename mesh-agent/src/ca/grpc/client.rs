//! Calling.

use bytes::Bytes;
use h2::{
    RecvStream,
    client::{self, SendRequest},
};
use http::{HeaderMap, HeaderValue, Method, Request, header};
use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};

use super::{Code, Frames, Status, encode};

/// Longest message that an authority may send, in bytes: SPIRE sends all identities in one.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// HTTP/2 flow control windows, in bytes.
const WINDOW: u32 = 1024 * 1024;

/// An HTTP/2 connection to a server.
#[derive(Debug)]
pub struct Channel {
    /// `http://...`, without a path.
    base: String,
    requests: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Channel {
    /// Speaks HTTP/2 over a connection. `base` is what stands before the paths, e.g. `https://ca:15012`.
    pub async fn open(base: String, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Self, Status> {
        let mut builder = client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).enable_push(false);
        let (requests, connection) = builder.handshake(io).await.map_err(unavailable)?;
        let connection = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the authority ended");
            }
        });
        Ok(Self { base, requests, connection })
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.connection.is_finished()
    }

    /// Another handle for calls, so that several can be under way.
    pub fn call(&self, path: &str, metadata: HeaderMap, request: &impl Message) -> Call {
        let uri = format!("{}{path}", self.base);
        Call { uri, metadata, request: encode(request), requests: self.requests.clone() }
    }
}

/// A call that is about to be made.
#[derive(Debug)]
pub struct Call {
    uri: String,
    metadata: HeaderMap,
    request: Bytes,
    requests: SendRequest<Bytes>,
}

impl Call {
    /// Makes it; the answers are read from what is returned.
    pub async fn start(self) -> Result<Responses, Status> {
        let mut head = Request::new(());
        *head.method_mut() = Method::POST;
        *head.uri_mut() = self.uri.parse().map_err(|_| Status::new(Code::Internal, "the address makes no URI"))?;
        *head.headers_mut() = self.metadata;
        head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        head.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        let mut requests = self.requests.ready().await.map_err(unavailable)?;
        let (response, mut body) = requests.send_request(head, false).map_err(unavailable)?;
        body.send_data(self.request, true).map_err(unavailable)?;
        let (head, body) = response.await.map_err(unavailable)?.into_parts();
        if let Some(status) = Status::read(&head.headers).filter(|status| status.code != Code::Ok) {
            return Err(status);
        }
        if head.status != http::StatusCode::OK {
            return Err(Status::new(Code::Unavailable, &format!("HTTP status {}", head.status)));
        }
        Ok(Responses { body, frames: Frames::new(MAX_MESSAGE) })
    }

    /// Makes it, and waits for the one answer.
    pub async fn unary<A: Message + Default>(self) -> Result<A, Status> {
        let mut responses = self.start().await?;
        let answer = responses.next().await?.ok_or_else(|| Status::new(Code::Internal, "there was no answer"))?;
        // How it ended is said after the answer.
        match responses.next::<A>().await? {
            None => Ok(answer),
            Some(_) => Err(Status::new(Code::Internal, "there was more than one answer")),
        }
    }
}

/// The answers to a call.
#[derive(Debug)]
pub struct Responses {
    body: RecvStream,
    frames: Frames,
}

impl Responses {
    /// The next one; `None` when the server has ended the call well.
    pub async fn next<A: Message + Default>(&mut self) -> Result<Option<A>, Status> {
        loop {
            if let Some(message) = self.frames.take()? {
                return Ok(Some(message));
            }
            match self.body.data().await {
                Some(Ok(bytes)) => {
                    self.frames.push(&bytes);
                    self.body.flow_control().release_capacity(bytes.len()).map_err(unavailable)?;
                }
                Some(Err(error)) => return Err(unavailable(error)),
                None => break,
            }
        }
        let trailers = self.body.trailers().await.map_err(unavailable)?;
        match trailers.as_ref().and_then(Status::read) {
            Some(status) if status.code != Code::Ok => Err(status),
            Some(_) if self.frames.is_empty() => Ok(None),
            _ => Err(Status::new(Code::Unavailable, "the answer was cut short")),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "as map_err hands it over")]
fn unavailable(error: h2::Error) -> Status {
    Status::new(Code::Unavailable, &error.to_string())
}
