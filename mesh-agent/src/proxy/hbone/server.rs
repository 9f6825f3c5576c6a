//! The spine of what comes in by mutual TLS: a connection of another agent to port 15008 of a pod, and the tunnels in it.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use bytes::Bytes;
use h2::{
    RecvStream,
    ext::Protocol,
    server::{Builder, SendResponse},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts};
use mesh_common::{INBOUND_PORT, OUTBOUND_PORT};
use rustls::ServerConfig;

use super::{Stream, Streams, headers, relay, window::Watch};
use crate::{
    model::{Identity, ObjectName, OrigDst, Reason, Transport, Workload},
    proxy::{
        Accepted, Error, Pod, Worker, permit,
        tls::{self, Session, TlsStream},
        upstream, worker,
    },
    telemetry::{Connection, Direction, Wire},
};

/// Tunnels that one connection may have open.
const MOST_STREAMS: u32 = 256;

/// Who has called, on which connection.
struct Caller {
    identity: Arc<Identity>,
    /// His end of the TCP connection. Its address is that of the app's pod: agents call from within it.
    address: SocketAddr,
    /// The address of the pod that he has called.
    local: SocketAddr,
    /// What he was offered. When that has changed, so may have whom this agent trusts.
    config: Arc<ServerConfig>,
    /// His tunnels.
    streams: Arc<Streams>,
}

/// Serves a connection to [`super::PORT`] of the pod, which is `local`.
pub(in crate::proxy) async fn serve(worker: Rc<Worker>, pod: Arc<Pod>, accepted: Accepted, local: SocketAddr) {
    worker.tunnel_accepted(&pod);
    let peer = accepted.peer;
    let result = match shake_hands(&worker, &pod, accepted, local).await {
        Ok((stream, caller)) => run(&worker, &pod, stream, Rc::new(caller)).await,
        Err(error) => Err(error),
    };
    // What was done is in the records of the tunnels; that it failed would be in none.
    if let Err(error) = result {
        let mut record = worker.open_tunneled(&pod, peer);
        record.original = Some(local);
        record.wire = Wire::Hbone;
        tracing::debug!(pod = %pod.name, %peer, %error, "mutual TLS failed");
        record.finish(error.reason());
    }
}

/// Finds out who is calling, within the limits of time and number.
async fn shake_hands(
    worker: &Worker,
    pod: &Pod,
    accepted: Accepted,
    local: SocketAddr,
) -> Result<(TlsStream, Caller), Error> {
    let timeout = worker.config.handshake_timeout;
    let handshake = async {
        let own = worker.mesh().workload(&pod.name).map(|workload| Arc::clone(&workload.identity));
        let own = own.ok_or(Error::Tunnel(Reason::CertificateMissing))?;
        let config = worker.certified(&own, || worker.server_config(pod), timeout).await?;
        let session = Session::server(Arc::clone(&config)).map_err(|_| Error::Tunnel(Reason::TlsHandshake))?;
        Ok((tls::handshake(accepted.socket, session, timeout, Reason::TlsHandshake).await?, config))
    };
    let mut open = worker.handshakes.begin();
    let (stream, config) = tokio::select! {
        done = handshake => done?,
        () = open.pushed_out() => return Err(Error::Tunnel(Reason::HandshakeLimit)),
    };
    let identity = worker.certificates.peer(stream.peer()).ok_or(Error::Tunnel(Reason::PeerUnidentified))?;
    Ok((
        stream,
        Caller { identity: Arc::new(identity), address: accepted.peer, local, config, streams: Arc::default() },
    ))
}

/// Takes tunnels until the caller or this agent has had enough; those that are open then go on.
async fn run(worker: &Rc<Worker>, pod: &Arc<Pod>, stream: TlsStream, caller: Rc<Caller>) -> Result<(), Error> {
    let handshake = builder().handshake::<_, Bytes>(stream);
    let mut connection = tokio::time::timeout(worker.config.handshake_timeout, handshake)
        .await
        .map_err(|_| Error::Tunnel(Reason::HandshakeTimeout))?
        .map_err(|_| Error::Tunnel(Reason::HboneBadRequest))?;
    let mut watch = Watch::new(Arc::clone(&caller.streams));
    let mut closing = worker.closing(pod);
    let mut is_closing = false;
    loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let is_current = |config| Arc::ptr_eq(&config, &caller.config);
                    if !is_closing && !worker.server_config(pod).is_ok_and(is_current) {
                        is_closing = true;
                        connection.graceful_shutdown();
                    }
                    let tunnel = serve_tunnel(Rc::clone(worker), Arc::clone(pod), Rc::clone(&caller), request, respond);
                    worker.serve(pod, tunnel);
                }
                // The caller has gone, or breaks the protocol; every open tunnel has noticed.
                Some(Err(error)) => {
                    tracing::debug!(pod = %pod.name, peer = %caller.address, %error, "a connection of another agent ended");
                    return Ok(());
                }
                None => return Ok(()),
            },
            window = watch.window() => connection.set_target_window_size(window),
            _ = closing.wait_for(|closing| *closing), if !is_closing => {
                is_closing = true;
                connection.graceful_shutdown();
            }
        }
    }
}

/// HTTP/2 as it is spoken with callers.
pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(super::STREAM_WINDOW)
        .initial_connection_window_size(super::CONNECTION_WINDOW)
        .max_frame_size(super::FRAME)
        .max_header_list_size(super::HEADERS * 4)
        .max_send_buffer_size(super::SEND_BUFFER)
        .data_frame_budget(super::SMALL_FRAMES)
        .max_concurrent_streams(MOST_STREAMS);
    builder
}

/// Serves one tunnel; it ends in exactly one record.
async fn serve_tunnel(
    worker: Rc<Worker>,
    pod: Arc<Pod>,
    caller: Rc<Caller>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let mut record = worker.open_tunneled(&pod, caller.address);
    record.wire = Wire::Hbone;
    record.peer = Some(Arc::clone(&caller.identity));
    let (request, receive) = request.into_parts();
    let app = match accept(&worker, &pod, &caller, &request, &mut record).await {
        Ok(app) => app,
        Err(error) => {
            tracing::debug!(pod = %pod.name, peer = %caller.address, %error, "a tunnel is refused");
            let _ = refusal(&error).map(|response| respond.send_response(response, true));
            return record.finish(error.reason());
        }
    };
    let app = upstream::Sockets::new(app);
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        return record.finish(Reason::DownstreamReset);
    };
    let mut stream = Stream { send, receive, open: caller.streams.begin() };
    record.goes(Transport::Mutual);
    let result = relay::run(&app.downstream, &mut stream, Direction::Inbound, &mut record).await;
    if result.is_err() {
        stream.reset();
    }
    worker::end(record, app, result);
}

/// Where does it lead, may it, and does the app answer?
async fn accept(
    worker: &Worker,
    pod: &Pod,
    caller: &Caller,
    request: &Parts,
    record: &mut Connection,
) -> Result<tokio::net::TcpStream, Error> {
    let Claims { trace, pod: peer_pod, client } = claims(&request.headers, caller.address);
    (record.trace, record.peer_pod) = (trace, peer_pod);
    let mesh = worker.mesh();
    let workload = mesh.workload(&pod.name);
    let destination = destination(request, workload.map(Arc::as_ref), caller.local)?;
    record.original = Some(destination);
    if let Some(workload) = workload {
        record.own = Some(Arc::clone(&workload.identity));
    }
    let flow = permit::from_certified(pod, &caller.identity, caller.address.ip(), destination);
    permit::check(worker, &mesh, &flow)?;
    worker.follow(pod, flow);
    record.upstream = Some(destination);
    upstream::connect_to_app(worker, pod, OrigDst(destination), client).await
}

/// What a caller says of himself beside his certificate; it decides nothing.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) trace: Option<u128>,
    pub(super) pod: Option<ObjectName>,
    /// Whom the app sees.
    pub(super) client: SocketAddr,
}

pub(super) fn claims(headers: &HeaderMap, peer: SocketAddr) -> Claims {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Claims {
        trace: header(headers::TRACEPARENT).and_then(headers::trace_in_traceparent),
        pod: header(headers::BAGGAGE).and_then(headers::pod_in_baggage),
        client: client(peer, header(headers::FORWARDED)),
    }
}

/// As HTTP/2 counts them (RFC 9113, 6.5.2).
fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// What a request asks for: a port of this very pod, and none of the agent's.
pub(super) fn destination(
    request: &Parts,
    workload: Option<&Workload>,
    local: SocketAddr,
) -> Result<SocketAddr, Error> {
    let bad = Error::Tunnel(Reason::HboneBadRequest);
    // Beyond four times as much the library refuses by itself, and nobody would be told.
    if size(&request.headers) > super::HEADERS as usize {
        return Err(bad);
    }
    if request.method != Method::CONNECT || request.extensions.get::<Protocol>().is_some() {
        return Err(bad);
    }
    let Some(asked) = request.uri.authority().and_then(|authority| authority.as_str().parse::<SocketAddr>().ok())
    else {
        return Err(bad);
    };
    let address = asked.ip().to_canonical();
    let is_own = address == local.ip() || workload.is_some_and(|workload| workload.addresses.contains(&address));
    let is_agents = [super::PORT, INBOUND_PORT, OUTBOUND_PORT, 0].contains(&asked.port());
    if is_own && !is_agents { Ok(SocketAddr::new(address, asked.port())) } else { Err(bad) }
}

/// Whom the app sees. The address is taken from the TCP connection, which nobody can claim; `forwarded` adds the port that
/// the app at the other end has.
pub(super) fn client(peer: SocketAddr, forwarded: Option<&str>) -> SocketAddr {
    forwarded
        .and_then(headers::client_in_forwarded)
        .filter(|client| client.ip() == peer.ip() && client.port() != 0)
        .unwrap_or(peer)
}

pub(super) fn refusal(error: &Error) -> Result<Response<()>, http::Error> {
    let status = match error {
        Error::Tunnel(_) => StatusCode::BAD_REQUEST,
        Error::Refused(_) => StatusCode::FORBIDDEN,
        Error::Connect(_) if error.reason() == Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    Response::builder().status(status).header(headers::REASON, error.reason().code()).body(())
}
