//! Bodies of answers: whole, in chunks, or fed by a task for as long as a watch lasts.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::mpsc;

/// The body of any answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Size from which pieces of a list are sent.
const CHUNK: usize = 64 * 1024;

/// All at once.
pub(super) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Many small pieces in chunks, put together when the client takes them.
pub(super) fn pieces(pieces: Vec<Bytes>) -> Body {
    Pieces(pieces.into_iter()).boxed_unsync()
}

struct Pieces(std::vec::IntoIter<Bytes>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        while chunk.len() < CHUNK
            && let Some(piece) = self.0.next()
        {
            chunk.extend_from_slice(&piece);
        }
        Poll::Ready((!chunk.is_empty()).then(|| Ok(Frame::data(chunk.freeze()))))
    }
}

/// Where a task puts what the client is to read. An error breaks the connection (HTTP/1) or the stream (HTTP/2).
pub(super) type Feed = mpsc::Sender<io::Result<Bytes>>;

/// A body fed by a task; few pieces are kept for a client that does not read.
pub(super) fn fed() -> (Feed, Body) {
    let (feed, pieces) = mpsc::channel(16);
    (feed, Fed(pieces).boxed_unsync())
}

struct Fed(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }
}

/// How a body is spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Bytes of a piece.
    pub bytes: usize,
    /// Time between two pieces.
    pub every: Duration,
    /// Break off after so many bytes.
    pub cut_after: Option<usize>,
}

/// Passes `inner` on at a pace.
pub(super) fn paced(mut inner: Body, pace: Pace) -> Body {
    let (feed, body) = fed();
    tokio::spawn(async move {
        let mut sent = 0;
        while let Some(Ok(frame)) = inner.frame().await {
            let Ok(mut data) = frame.into_data() else { continue };
            while !data.is_empty() {
                let piece = data.split_to(pace.bytes.clamp(1, data.len()));
                sent += piece.len();
                let over = pace.cut_after.is_some_and(|limit| sent > limit);
                let item = if over { Err(io::Error::other("cut off by a fault")) } else { Ok(piece) };
                if feed.send(item).await.is_err() || over {
                    return;
                }
                tokio::time::sleep(pace.every).await;
            }
        }
    });
    body
}
