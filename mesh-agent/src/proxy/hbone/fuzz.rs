//! What a caller with a good certificate may send: HTTP/2, and what we read in its requests.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::ext::Protocol;
use http::{Method, Request, Response};
use mesh_common::{INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{headers, server};
use crate::model::{Identity, ObjectName, Workload};

/// How a client begins (RFC 9113, 3.4), with settings that change nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The pod's, and its second address.
const LOCAL: &str = "10.1.2.3:15008";
const SECOND: &str = "2001:db8::3";
const PEER: &str = "10.9.8.7:4321";
/// Wake-ups that HTTP/2 may want after everything has been read: a few per stream.
const MOST_POLLS: usize = 100_000;

/// `baggage`, `forwarded` and `traceparent`: what is read in them is written so that it is read again.
pub fn hbone_headers(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(pod) = headers::pod_in_baggage(text) {
        assert_name(&pod);
        assert_eq!(headers::pod_in_baggage(&headers::baggage(&pod)), Some(pod));
    }
    if let Some(client) = headers::client_in_forwarded(text) {
        assert_eq!(client.ip(), client.ip().to_canonical());
        assert_eq!(headers::client_in_forwarded(&headers::forwarded(client)), Some(client));
    }
    if let Some(trace) = headers::trace_in_traceparent(text) {
        assert_eq!(headers::trace_in_traceparent(&headers::traceparent(trace, 1)), Some(trace));
    }
    if let Ok(peer) = PEER.parse::<SocketAddr>() {
        assert_seen(server::client(peer, Some(text)), peer);
    }
}

fn assert_name(pod: &ObjectName) {
    for name in [&pod.namespace, &pod.name] {
        let is_good = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-');
        assert!((1..=253).contains(&name.len()) && name.chars().all(is_good), "{name:?}");
    }
}

fn assert_seen(client: SocketAddr, peer: SocketAddr) {
    assert!(client.ip() == peer.ip() && client.port() != 0, "the app is shown {client}");
}

/// A connection to port 15008, by the first byte: frames without and with good headers, one request in words, or as it is.
pub fn hbone_server(input: &[u8]) {
    let Some((how, rest)) = input.split_first() else { return };
    let bytes = match how % 4 {
        0 => [PREFACE, rest].concat(),
        1 => frames(rest),
        2 => request(rest),
        _ => rest.to_vec(),
    };
    let wire = Wire { bytes, read: 0 };
    let (Ok(local), Ok(peer), Ok(second)) = (LOCAL.parse(), PEER.parse(), SECOND.parse()) else { return };
    let Ok(identity) = "spiffe://cluster.local/ns/shop/sa/cart".parse::<Identity>() else { return };
    let mut workload = Workload::new(ObjectName::new("shop", "cart-0"), Arc::new(identity));
    workload.addresses = vec![second];
    let mut serving = pin!(serve(wire, &workload, local, peer, how & 4 != 0));
    let mut cx = Context::from_waker(Waker::noop());
    // All has arrived before the first poll: nothing to wait for.
    let is_over = (0..MOST_POLLS).any(|_| serving.as_mut().poll(&mut cx).is_ready());
    assert!(is_over, "it does not end though the caller has gone");
}

/// As `server::run` and `serve_tunnel` do it, with an app that says nothing.
async fn serve(wire: Wire, workload: &Workload, local: SocketAddr, peer: SocketAddr, is_closing: bool) {
    let Ok(mut connection) = server::builder().handshake::<_, Bytes>(wire).await else { return };
    let mut tunnels = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if is_closing {
            connection.graceful_shutdown();
        }
        let (request, receive) = request.into_parts();
        let claims = server::claims(&request.headers, peer);
        assert_seen(claims.client, peer);
        assert!(claims.trace != Some(0));
        if let Some(pod) = &claims.pod {
            assert_name(pod);
        }
        match server::destination(&request, Some(workload), local) {
            Ok(destination) => {
                assert_allowed(&Request::from_parts(request, ()), destination, workload, local);
                if let Ok(send) = respond.send_response(Response::new(()), false) {
                    tunnels.push((send, receive));
                }
            }
            Err(error) => {
                let refusal = server::refusal(&error);
                assert!(refusal.as_ref().is_ok_and(|refusal| refusal.status().is_client_error()), "{error}");
                let _ = refusal.map(|response| respond.send_response(response, true));
            }
        }
    }
    for (mut send, mut receive) in tunnels {
        while let Some(Ok(bytes)) = receive.data().await {
            let _ = receive.flow_control().release_capacity(bytes.len());
        }
        send.send_reset(h2::Reason::CONNECT_ERROR);
    }
}

fn assert_allowed(request: &Request<()>, destination: SocketAddr, workload: &Workload, local: SocketAddr) {
    assert_eq!(request.method(), Method::CONNECT);
    assert!(request.extensions().get::<Protocol>().is_none(), "an extended CONNECT");
    let address = destination.ip();
    assert!(address == local.ip() || workload.addresses.contains(&address), "{destination} is not the pod's");
    let agents = [0, INBOUND_PORT, OUTBOUND_PORT, TUNNEL_PORT];
    assert!(!agents.contains(&destination.port()), "{destination} is the agent's");
    let asked = request.uri().authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    let port = asked.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    assert_eq!(port, Some(destination.port()), "{asked:?}");
    let length: usize = request.headers().values().map(http::HeaderValue::len).sum();
    assert!(length <= super::HEADERS as usize, "{length} bytes of headers");
}

/// Frames of type, flags, stream and length, a byte each, so that an input stays well formed when it is cut and joined.
fn frames(mut input: &[u8]) -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    while let Some(([kind, flags, stream, length], rest)) = input.split_first_chunk() {
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        frame(&mut bytes, *kind % 11, *flags, *stream, payload);
        input = rest;
    }
    bytes
}

/// One request of lines `name: value`, and data.
fn request(input: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for line in input.split(|byte| *byte == b'\n') {
        // The colon that a pseudo header begins with is none.
        let Some(colon) = line.iter().skip(1).position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon + 1);
        // A literal without indexing (RFC 7541, 6.2.2), nothing of it compressed.
        block.push(0);
        literal(&mut block, name);
        literal(&mut block, value.get(1..).unwrap_or_default().trim_ascii_start());
    }
    let mut bytes = PREFACE.to_vec();
    // No longer than a frame may be; what does not fit is continued.
    let mut pieces = block.chunks(16 * 1024).peekable();
    let mut kind = 1;
    while let Some(piece) = pieces.next() {
        frame(&mut bytes, kind, if pieces.peek().is_none() { 4 } else { 0 }, 1, piece);
        kind = 9;
    }
    frame(&mut bytes, 0, 1, 1, b"data of the app");
    bytes
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
    let length = (payload.len() as u32).to_be_bytes();
    bytes.extend_from_slice(length.get(1..).unwrap_or_default());
    bytes.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
    bytes.extend_from_slice(payload);
}

/// A string (RFC 7541, 5.2), its length an integer with a prefix of 7 bits.
fn literal(block: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 127 {
        block.push(text.len() as u8);
    } else {
        block.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            block.push((rest % 128 + 128) as u8);
            rest /= 128;
        }
        block.push(rest as u8);
    }
    block.extend_from_slice(text);
}

/// A connection on which everything has arrived, and whose end takes everything.
struct Wire {
    bytes: Vec<u8>,
    read: usize,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = self.bytes.get(self.read..).unwrap_or_default();
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..count).unwrap_or_default());
        self.read += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
