//! Tunnels as Istio's ambient mesh speaks them (HBONE): HTTP/2 CONNECT over mutual TLS to port 15008 of the pod, one stream
//! per connection.

pub(super) mod client;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
pub(super) mod headers;
pub(super) mod relay;
pub(super) mod server;
mod starved;
mod window;

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use self::{
    starved::Starved,
    window::{CONNECTION_WINDOW, Readers, STREAM_WINDOW},
};

/// The port that mutual TLS is spoken on, at the address of the pod itself.
pub const PORT: u16 = mesh_common::TUNNEL_PORT;
/// ALPN of HTTP/2 (RFC 9113, 3.1).
pub(super) const ALPN: &[u8] = b"h2";

/// Larger frames mean fewer of them; smaller ones let other streams in between.
const FRAME: u32 = 64 * 1024;
/// What a stream holds of what could not be sent yet.
const SEND_BUFFER: usize = 256 * 1024;
/// What the headers of a request may take.
const HEADERS: u32 = 16 * 1024;
/// Overhead of small unread frames that a connection may cause: an app that does not read must not end its neighbours.
const SMALL_FRAMES: usize = 64 * 1024 * 1024;

/// One connection in a tunnel.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) send: SendStream<Bytes>,
    pub(super) receive: RecvStream,
    /// Counts among the streams of its connection.
    open: OpenStream,
}

impl Stream {
    /// Ends in the middle of things.
    pub(super) fn reset(&mut self) {
        self.send.send_reset(h2::Reason::CONNECT_ERROR);
    }
}

/// The streams of a connection.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: AtomicUsize,
    begun: AtomicUsize,
    /// The connection takes no more of them.
    is_over: AtomicBool,
    /// Of ours, who write what comes to apps.
    readers: Readers,
    /// Of those that send.
    starved: Starved,
}

impl Streams {
    /// No more of them.
    pub(super) fn retire(&self) {
        self.is_over.store(true, Relaxed);
    }

    /// Whether those that do not read have filled it, at either end: another one will do better.
    fn is_crowded(&self) -> bool {
        self.readers.are_short() || self.starved.has_lasted()
    }

    fn begin(self: &Arc<Self>) -> OpenStream {
        self.open.fetch_add(1, Relaxed);
        self.begun.fetch_add(1, Relaxed);
        OpenStream(Arc::clone(self))
    }
}

/// An open stream, until it is dropped.
#[derive(Debug)]
struct OpenStream(Arc<Streams>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// With the cause that the socket had, if it had one.
fn io_error(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
    } else {
        io::Error::new(io::ErrorKind::ConnectionReset, error)
    }
}
