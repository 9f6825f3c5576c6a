//! The calling end of HBONE: a connection that carries many tunnels.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{Builder, Connection, SendRequest},
};
use http::{Method, Request, Response, StatusCode, Uri, uri::Authority};

use super::{OpenStream, Stream, Streams, headers, window::Watch};
use crate::{
    model::{ObjectName, Reason},
    proxy::{
        Error,
        tls::{self, TlsStream},
    },
};

/// Tunnels that one connection carries.
const MOST_STREAMS: usize = 100;
/// How often the other end is asked whether it still lives, while it has streams; it has as long to answer.
const PING_EVERY: Duration = Duration::from_secs(30);
/// How long a connection without streams is kept, in periods of [`PING_EVERY`]: five minutes.
const IDLE_TICKS: u32 = 10;

/// What a tunnel is asked for.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Call<'a> {
    /// What to connect to: an address of the pod and a port.
    pub(in crate::proxy) destination: SocketAddr,
    /// The app that asks.
    pub(in crate::proxy) client: SocketAddr,
    /// Its pod.
    pub(in crate::proxy) source: &'a ObjectName,
    /// `traceparent`.
    pub(in crate::proxy) trace: &'a str,
    /// How long the answer may take.
    pub(in crate::proxy) timeout: Duration,
}

/// Why there is no tunnel.
pub(in crate::proxy) enum Refused {
    /// The other end has not looked at it: another connection may be tried.
    Unseen,
    /// It has, or it is not to be reached.
    For(Error),
}

/// A connection, to open streams on.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Tunnels {
    send: SendRequest<Bytes>,
    streams: Arc<Streams>,
}

impl Tunnels {
    /// Whether another stream has room.
    pub(in crate::proxy) fn has_room(&self) -> bool {
        self.streams.open.load(Relaxed) < MOST_STREAMS.min(self.send.current_max_send_streams())
    }

    /// Whether another stream would hardly get on.
    pub(in crate::proxy) fn is_crowded(&self) -> bool {
        self.streams.is_crowded()
    }

    /// Whether it takes no more streams.
    pub(in crate::proxy) fn is_over(&self) -> bool {
        self.streams.is_over.load(Relaxed)
    }

    /// The streams that are open.
    pub(in crate::proxy) fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// Asks for a tunnel.
    pub(in crate::proxy) async fn call(&self, call: Call<'_>) -> Result<Stream, Refused> {
        let open = self.streams.begin();
        match tokio::time::timeout(call.timeout, self.ask(call, open)).await {
            Ok(result) => result,
            Err(_) => Err(Refused::For(Error::Tunnel(Reason::UpstreamTimeout))),
        }
    }

    async fn ask(&self, call: Call<'_>, open: OpenStream) -> Result<Stream, Refused> {
        let request = request(call).map_err(|_| Refused::For(Error::Tunnel(Reason::Internal)))?;
        // What fails here was never sent.
        let mut sender = self.send.clone().ready().await.map_err(|_| Refused::Unseen)?;
        let (response, send) = sender.send_request(request, false).map_err(|_| Refused::Unseen)?;
        let response = response.await.map_err(refused)?;
        if response.status() != StatusCode::OK {
            return Err(Refused::For(Error::Tunnel(reason(&response))));
        }
        Ok(Stream { send, receive: response.into_body(), open })
    }
}

fn request(call: Call<'_>) -> Result<Request<()>, http::Error> {
    let authority = Authority::try_from(call.destination.to_string())?;
    let mut uri = Uri::default().into_parts();
    uri.scheme = None;
    uri.path_and_query = None;
    uri.authority = Some(authority);
    Request::builder()
        .method(Method::CONNECT)
        .uri(Uri::from_parts(uri)?)
        .header(headers::BAGGAGE, headers::baggage(call.source))
        .header(headers::FORWARDED, headers::forwarded(call.client))
        .header(headers::TRACEPARENT, call.trace)
        .body(())
}

fn refused(error: h2::Error) -> Refused {
    // A graceful end (RFC 9113, 6.8) and a refused stream (8.7) say that nothing was done. A connection that is gone says
    // nothing, but no byte of the app has gone over it.
    if error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        return Refused::Unseen;
    }
    let is_io = error.is_io();
    let error = super::io_error(error);
    match tls::reason(&error) {
        Some(reason) => Refused::For(Error::Tunnel(reason)),
        None if is_io => Refused::Unseen,
        None => Refused::For(Error::Tunnel(Reason::UpstreamReset)),
    }
}

/// What a refusal means: in the words of our own agents, or by what others answer.
fn reason<T>(response: &Response<T>) -> Reason {
    let said = response.headers().get(headers::REASON).and_then(|code| code.to_str().ok()?.parse().ok());
    said.unwrap_or(match response.status() {
        StatusCode::SERVICE_UNAVAILABLE => Reason::UpstreamRefused,
        StatusCode::GATEWAY_TIMEOUT => Reason::UpstreamTimeout,
        _ => Reason::HboneRefused,
    })
}

/// Begins to speak HTTP/2 on a stream whose handshake is over. The second part has to be run.
pub(in crate::proxy) async fn start(stream: TlsStream) -> Result<(Tunnels, Connection<TlsStream, Bytes>), Error> {
    let handshake = Builder::new()
        .initial_window_size(super::STREAM_WINDOW)
        .initial_connection_window_size(super::CONNECTION_WINDOW)
        .max_frame_size(super::FRAME)
        .max_header_list_size(super::HEADERS)
        .max_send_buffer_size(super::SEND_BUFFER)
        .data_frame_budget(super::SMALL_FRAMES)
        .initial_max_send_streams(MOST_STREAMS)
        .enable_push(false)
        .handshake(stream);
    let (send, connection) = handshake.await.map_err(|error| {
        let error = super::io_error(error);
        tls::reason(&error).map_or(Error::Upstream(error), Error::Tunnel)
    })?;
    Ok((Tunnels { send, streams: Arc::default() }, connection))
}

/// Runs a connection until it ends, or has carried nothing for a while, or the other end no longer answers.
pub(in crate::proxy) async fn run(mut connection: Connection<TlsStream, Bytes>, streams: Arc<Streams>) {
    let mut pings = connection.ping_pong();
    let mut watch = Watch::new(Arc::clone(&streams));
    let mut ticks = tokio::time::interval(PING_EVERY);
    let (mut is_asked, mut idle_ticks, mut begun) = (false, 0, 0);
    let ended = loop {
        tokio::select! {
            result = &mut connection => break result.err().map(|error| error.to_string()),
            window = watch.window() => connection.set_target_window_size(window),
            () = pong(pings.as_mut()), if is_asked => is_asked = false,
            _ = ticks.tick() => {
                let is_idle = streams.open.load(Relaxed) == 0 && streams.begun.load(Relaxed) == begun;
                begun = streams.begun.load(Relaxed);
                idle_ticks = if is_idle { idle_ticks + 1 } else { 0 };
                if idle_ticks > IDLE_TICKS {
                    break None;
                }
                if is_asked {
                    break Some("it does not answer any more".to_owned());
                }
                is_asked = !is_idle && pings.as_mut().is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok());
            }
        }
    };
    streams.retire();
    if let Some(error) = ended {
        tracing::debug!(%error, "a connection to another agent ended");
    }
}

/// Waits for the answer to a ping.
async fn pong(pings: Option<&mut PingPong>) {
    match pings {
        Some(pings) => drop(poll_fn(|cx| pings.poll_pong(cx)).await),
        None => poll_fn(|_| Poll::Pending).await,
    }
}
