//! Relaying between a socket and a stream of HTTP/2. What is held is bounded by the flow control of both.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Reason as Code, RecvStream, SendStream};
use socket2::SockRef;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

use super::{Stream, Streams, starved::FIRST_WINDOW};
use crate::{
    proxy::{Error, relay},
    telemetry::{Connection, Direction},
};

/// Bytes that are read from the socket at once: with the header of their frame (RFC 9113, 4.1) they fill four records.
const CHUNK: usize = 64 * 1024 - 9;
/// Less than this is copied, so that a few bytes do not hold on to a whole chunk.
const SMALL: usize = 4 * 1024;
/// Pieces that are written to the socket at once, and the bytes in them.
const PIECES: usize = 16;
const PIECES_BYTES: usize = 128 * 1024;
/// Pieces of less that an app does not read are put together: a few bytes would hold on to all that was read with them.
const HOARD: usize = 16 * 1024;
/// Bytes that one direction moves before others get their turn.
const TURN: usize = 1024 * 1024;

thread_local! {
    static CHUNKS: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// Relays until both directions have ended, or one end fails. `direction` says which end is which: outbound, the socket
/// is downstream; inbound, the stream is.
pub(in crate::proxy) async fn run(
    socket: &TcpStream,
    stream: &mut Stream,
    direction: Direction,
    record: &mut Connection,
) -> Result<(), Error> {
    let Stream { send, receive, open } = stream;
    let mut relay = Relay { socket, send, receive, streams: &open.0, out: Out::default(), back: Back::default() };
    let result = poll_fn(|cx| {
        let out = relay.poll_out(cx, &mut |n| match direction {
            Direction::Outbound => record.sent_upstream(n),
            Direction::Inbound => record.sent_downstream(n),
        });
        if let Poll::Ready(Err(failed)) = out {
            return Poll::Ready(Err(failed));
        }
        let back = relay.poll_back(cx, &mut |n| match direction {
            Direction::Outbound => record.sent_downstream(n),
            Direction::Inbound => record.sent_upstream(n),
        });
        if let Poll::Ready(Err(failed)) = back {
            return Poll::Ready(Err(failed));
        }
        if relay.out.is_done && relay.back.is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    result.map_err(|failed| match (failed, direction) {
        (Failed::Socket(error), Direction::Outbound) | (Failed::Stream(error), Direction::Inbound) => {
            Error::Downstream(error)
        }
        (Failed::Socket(error), Direction::Inbound) | (Failed::Stream(error), Direction::Outbound) => {
            Error::Upstream(error)
        }
    })
}

/// Which end failed.
enum Failed {
    Socket(io::Error),
    Stream(io::Error),
}

impl From<h2::Error> for Failed {
    fn from(error: h2::Error) -> Self {
        Self::Stream(super::io_error(error))
    }
}

type Watch<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + 'a>>;

struct Relay<'a> {
    socket: &'a TcpStream,
    send: &'a mut SendStream<Bytes>,
    receive: &'a mut RecvStream,
    /// Those of the same connection.
    streams: &'a Streams,
    out: Out<'a>,
    back: Back,
}

/// From the socket to the stream.
#[derive(Default)]
struct Out<'a> {
    is_done: bool,
    /// Capacity of the stream is set aside for this direction.
    has_reserved: bool,
    /// Bytes that went over it.
    sent: usize,
    /// It waits with less than what any stream may send.
    is_starved: bool,
    /// While the stream takes nothing, the socket is not read, but that it resets must be seen.
    watch: Option<Watch<'a>>,
}

/// From the stream to the socket.
#[derive(Default)]
struct Back {
    held: VecDeque<Bytes>,
    held_bytes: usize,
    /// What came in small pieces after that, while the app did not read.
    small: BytesMut,
    /// The app does not read.
    is_stalled: bool,
    has_ended: bool,
    is_done: bool,
}

impl Relay<'_> {
    fn poll_out(&mut self, cx: &mut Context<'_>, moved: &mut dyn FnMut(usize)) -> Poll<Result<(), Failed>> {
        // Otherwise reading the stream tells of it.
        if (self.back.is_done || self.back.has_ended)
            && !self.out.is_done
            && let Poll::Ready(result) = self.send.poll_reset(cx)
        {
            return Poll::Ready(Err(result.map_or_else(Failed::from, |code| h2::Error::from(code).into())));
        }
        let mut turn = 0;
        while !self.out.is_done {
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Capacity that is set aside is kept from other streams: not for longer than there is something to send.
            match self.socket.poll_read_ready(cx) {
                Poll::Ready(result) => result.map_err(Failed::Socket)?,
                Poll::Pending => {
                    if std::mem::take(&mut self.out.has_reserved) {
                        self.send.reserve_capacity(0);
                    }
                    return Poll::Pending;
                }
            }
            let capacity = match self.poll_capacity(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    if self.out.sent < FIRST_WINDOW && !std::mem::replace(&mut self.out.is_starved, true) {
                        self.streams.starved.begin();
                    }
                    return self.stalled(cx);
                }
            };
            self.out.watch = None;
            if std::mem::take(&mut self.out.is_starved) {
                self.streams.starved.end();
            }
            match ready!(read(cx, self.socket, capacity)) {
                Ok(bytes) if bytes.is_empty() => {
                    self.send.send_data(bytes, true)?;
                    self.out.is_done = true;
                }
                Ok(bytes) => {
                    turn += bytes.len();
                    self.out.sent = self.out.sent.saturating_add(bytes.len());
                    moved(bytes.len());
                    self.send.send_data(bytes, false)?;
                }
                Err(error) => return Poll::Ready(Err(Failed::Socket(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Failed>> {
        self.send.reserve_capacity(CHUNK);
        self.out.has_reserved = true;
        loop {
            let capacity = self.send.capacity();
            if capacity > 0 {
                return Poll::Ready(Ok(capacity.min(CHUNK)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(result) => result.map(drop)?,
                None => return Poll::Ready(Err(h2::Error::from(Code::CANCEL).into())),
            }
        }
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let socket = self.socket;
        let watch = self.out.watch.get_or_insert_with(|| Box::pin(socket.ready(Interest::ERROR)));
        ready!(watch.as_mut().poll(cx)).map_err(Failed::Socket)?;
        self.out.watch = None;
        match socket.take_error() {
            Ok(Some(error)) | Err(error) => Poll::Ready(Err(Failed::Socket(error))),
            Ok(None) => Poll::Pending,
        }
    }

    fn poll_back(&mut self, cx: &mut Context<'_>, moved: &mut dyn FnMut(usize)) -> Poll<Result<(), Failed>> {
        let mut turn = 0;
        while !self.back.is_done {
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.gather(cx)?;
            if self.back.held.is_empty() {
                if !self.back.has_ended {
                    return Poll::Pending;
                }
                // Where the other direction has ended too, the socket is closed in a moment, which says the same.
                if !self.out.is_done {
                    SockRef::from(self.socket).shutdown(Shutdown::Write).map_err(Failed::Socket)?;
                }
                self.back.is_done = true;
                return Poll::Ready(Ok(()));
            }
            match self.socket.poll_write_ready(cx) {
                Poll::Ready(result) => result.map_err(Failed::Socket)?,
                Poll::Pending => {
                    // A stream that is not read does not tell that it was reset.
                    if let Poll::Ready(result) = self.send.poll_reset(cx) {
                        let failed = result.map_or_else(Failed::from, |code| h2::Error::from(code).into());
                        return Poll::Ready(Err(failed));
                    }
                    if !std::mem::replace(&mut self.back.is_stalled, true) {
                        self.streams.readers.stall();
                    }
                    return self.hoard(cx);
                }
            }
            let written = self.write()?;
            moved(written);
            turn += written;
            if written > 0 && std::mem::take(&mut self.back.is_stalled) {
                self.streams.readers.go_on();
            }
            self.receive.flow_control().release_capacity(written)?;
            self.streams.readers.released(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes what the stream has.
    fn gather(&mut self, cx: &mut Context<'_>) -> Result<(), Failed> {
        let back = &mut self.back;
        back.join();
        while !back.has_ended && back.held.len() < PIECES && back.held_bytes < PIECES_BYTES {
            match self.receive.poll_data(cx) {
                Poll::Ready(Some(Ok(piece))) if piece.is_empty() => {}
                Poll::Ready(Some(Ok(piece))) => {
                    back.held_bytes += piece.len();
                    back.held.push_back(piece);
                }
                Poll::Ready(Some(Err(error))) => return Err(error.into()),
                Poll::Ready(None) => back.has_ended = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Takes all that the stream has, which is no more than its window, while the app does not read. Left where they are,
    /// small pieces would cost a multiple of what is in them, and in the end the connection (`SMALL_FRAMES`).
    fn hoard(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let back = &mut self.back;
        while !back.has_ended {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(piece)) => back.keep(piece),
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => back.has_ended = true,
            }
        }
        Poll::Pending
    }

    /// Writes what is held, as far as the socket takes it.
    fn write(&mut self) -> Result<usize, Failed> {
        let back = &mut self.back;
        let mut slices = [IoSlice::new(&[]); PIECES];
        for (slice, piece) in slices.iter_mut().zip(&back.held) {
            *slice = IoSlice::new(piece);
        }
        let pieces = slices.get(..back.held.len()).unwrap_or(&slices);
        let written = match self.socket.try_write_vectored(pieces) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(Failed::Socket(error)),
        };
        back.held_bytes -= written;
        let mut rest = written;
        back.held.retain_mut(|piece| {
            let gone = rest.min(piece.len());
            rest -= gone;
            piece.advance(gone);
            !piece.is_empty()
        });
        if back.held.is_empty() {
            back.held = VecDeque::new();
        }
        Ok(written)
    }
}

impl Back {
    /// Holds another piece; many small ones become one.
    fn keep(&mut self, piece: Bytes) {
        if piece.len() >= HOARD {
            self.join();
            self.held_bytes += piece.len();
            self.held.push_back(piece);
            return;
        }
        if self.small.capacity() - self.small.len() < piece.len() {
            self.join();
            self.small = BytesMut::with_capacity(HOARD);
        }
        self.small.extend_from_slice(&piece);
    }

    /// What has come in small pieces is as the others.
    fn join(&mut self) {
        if !self.small.is_empty() {
            let piece = std::mem::take(&mut self.small).freeze();
            self.held_bytes += piece.len();
            self.held.push_back(piece);
        }
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if self.back.is_stalled {
            self.streams.readers.go_on();
        }
        // What nobody has read is dropped with the stream, which gives it back to the connection.
        let unread = self.receive.flow_control().used_capacity();
        self.streams.readers.released(unread);
    }
}

/// Reads once, at most `most` bytes; none at the end.
fn read(cx: &mut Context<'_>, socket: &TcpStream, most: usize) -> Poll<io::Result<Bytes>> {
    CHUNKS.with_borrow_mut(|chunk| {
        loop {
            ready!(socket.poll_read_ready(cx))?;
            chunk.clear();
            chunk.reserve(most);
            match socket.try_read_buf(&mut (&mut *chunk).limit(most)) {
                Ok(read) => {
                    if (1..most).contains(&read) {
                        relay::is_drained(socket);
                    }
                    let is_small = read < SMALL;
                    let bytes = if is_small { Bytes::copy_from_slice(chunk) } else { chunk.split().freeze() };
                    return Poll::Ready(Ok(bytes));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_put_together_in_order() {
        let mut back = Back::default();
        let mut expected = Vec::new();
        let lengths = (0..1000).map(|n| match n {
            200 | 500 => HOARD,
            n => n % 40 + 1,
        });
        for (n, length) in lengths.enumerate() {
            let piece = vec![n as u8; length];
            expected.extend_from_slice(&piece);
            back.keep(piece.into());
        }
        back.join();
        assert_eq!(back.held_bytes, expected.len());
        assert_eq!(back.held.iter().flatten().copied().collect::<Vec<_>>(), expected);
        assert!(back.held.len() < 10, "{} pieces of 1000", back.held.len());
    }
}
