//! Relaying bytes both ways: small flows are copied through one buffer per worker, large ones are spliced. What is held
//! for a connection is bounded: a reader that stalls, stalls its sender.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

use super::Error;
use crate::{net::splice::Pipe, telemetry::Connection};

/// Size of a worker's buffer, and the most that is held for one direction of one connection.
const BUFFER: usize = 64 * 1024;
/// Full buffers in a row after which a direction is taken for a large flow.
const BULK_AFTER: u8 = 2;
/// How many meagre fills of a pipe it takes to be taken for a small flow again.
const BULK_PATIENCE: u8 = 8;
/// A pipe filled with less than this is meagre.
const BULK_AT_LEAST: usize = 16 * 1024;
/// Bytes that one direction moves before others get their turn.
const TURN: usize = 1024 * 1024;

thread_local! {
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Relays until both directions have ended, or one end fails.
pub async fn run(downstream: &TcpStream, upstream: &TcpStream, record: &mut Connection) -> Result<(), Error> {
    let mut up = Pump::new(downstream, upstream);
    let mut down = Pump::new(upstream, downstream);
    poll_fn(|cx| {
        match up.poll(cx, down.done, &mut |n| record.sent_upstream(n)) {
            Poll::Ready(Err(Failed::Reading(error))) => return Poll::Ready(Err(Error::Downstream(error))),
            Poll::Ready(Err(Failed::Writing(error))) => return Poll::Ready(Err(Error::Upstream(error))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match down.poll(cx, up.done, &mut |n| record.sent_downstream(n)) {
            Poll::Ready(Err(Failed::Reading(error))) => return Poll::Ready(Err(Error::Upstream(error))),
            Poll::Ready(Err(Failed::Writing(error))) => return Poll::Ready(Err(Error::Downstream(error))),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if up.done && down.done { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await
}

/// Which end of a direction failed.
enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

type Watch<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + 'a>>;

/// One direction.
struct Pump<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    /// Bytes that were read and could not be written yet, and how many of them have been since.
    held: Vec<u8>,
    written: usize,
    pipe: Option<Box<Pipe>>,
    /// Full buffers in a row; [`BULK_AFTER`] and more: splice.
    full: u8,
    /// The sender has ended; what is held is still to be written.
    ended: bool,
    done: bool,
    /// While the reader stalls, the sender is not read, but that it resets must be seen.
    watch: Option<Watch<'a>>,
}

impl<'a> Pump<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream) -> Self {
        Self { from, to, held: Vec::new(), written: 0, pipe: None, full: 0, ended: false, done: false, watch: None }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        other_is_done: bool,
        moved: &mut dyn FnMut(usize),
    ) -> Poll<Result<(), Failed>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        let mut turn = 0;
        loop {
            match self.flush(cx, moved) {
                Poll::Ready(result) => result.map_err(Failed::Writing)?,
                Poll::Pending => return self.stalled(cx),
            }
            self.watch = None;
            if self.ended {
                self.give_back();
                // Where the other direction has ended too, both sockets are closed in a moment, which says the same.
                if !other_is_done {
                    SockRef::from(self.to).shutdown(Shutdown::Write).map_err(Failed::Writing)?;
                }
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if turn >= TURN {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            turn += if self.full >= BULK_AFTER { ready!(self.fill(cx))? } else { ready!(self.copy(cx, moved))? };
        }
    }

    /// Reads into the worker's buffer and writes at once; what is not taken is held.
    fn copy(&mut self, cx: &mut Context<'_>, moved: &mut dyn FnMut(usize)) -> Poll<Result<usize, Failed>> {
        SHARED.with_borrow_mut(|buffer| {
            let read = ready!(poll_read(cx, self.from, buffer)).map_err(Failed::Reading)?;
            if read == 0 {
                self.ended = true;
                return Poll::Ready(Ok(0));
            }
            self.full = if read == BUFFER { self.full + 1 } else { 0 };
            let bytes = buffer.get(..read).unwrap_or_default();
            let taken = match self.to.try_write(bytes) {
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Poll::Ready(Err(Failed::Writing(error))),
            };
            moved(taken);
            self.held.extend_from_slice(bytes.get(taken..).unwrap_or_default());
            Poll::Ready(Ok(read))
        })
    }

    /// Fills the pipe; [`Self::flush`] empties it.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Failed>> {
        if self.pipe.is_none() {
            // No descriptors for a pipe: copying works as well.
            let Ok(pipe) = Pipe::take() else {
                self.full = 0;
                return Poll::Ready(Ok(0));
            };
            self.pipe = Some(Box::new(pipe));
        }
        loop {
            match ready!(self.from.poll_read_ready(cx)) {
                Ok(()) => {}
                Err(error) => return Poll::Ready(Err(Failed::Reading(error))),
            }
            let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(0)) };
            match pipe.fill(self.from) {
                Ok(filled) => {
                    self.ended = filled == 0;
                    self.full = if filled < BULK_AT_LEAST { self.full - 1 } else { BULK_AFTER + BULK_PATIENCE };
                    return Poll::Ready(Ok(filled));
                }
                // The pipe is empty here: an idle connection holds none.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.from.poll_read_ready(cx).is_pending() {
                        self.give_back();
                        return Poll::Pending;
                    }
                }
                Err(error) => return Poll::Ready(Err(Failed::Reading(error))),
            }
        }
    }

    /// Writes what is held, in the buffer or in the pipe.
    fn flush(&mut self, cx: &mut Context<'_>, moved: &mut dyn FnMut(usize)) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.written..).filter(|rest| !rest.is_empty()) {
            ready!(self.to.poll_write_ready(cx))?;
            match self.to.try_write(rest) {
                Ok(taken) => {
                    self.written += taken;
                    moved(taken);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if self.written > 0 {
            self.held = Vec::new();
            self.written = 0;
        }
        while let Some(pipe) = self.pipe.as_deref_mut().filter(|pipe| pipe.held() > 0) {
            ready!(self.to.poll_write_ready(cx))?;
            match pipe.drain(self.to) {
                Ok(taken) => moved(taken),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn stalled(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let from = self.from;
        let watch = self.watch.get_or_insert_with(|| Box::pin(from.ready(Interest::ERROR)));
        ready!(watch.as_mut().poll(cx)).map_err(Failed::Reading)?;
        self.watch = None;
        match from.take_error() {
            Ok(Some(error)) | Err(error) => Poll::Ready(Err(Failed::Reading(error))),
            Ok(None) => Poll::Pending,
        }
    }

    fn give_back(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }
}

/// A read that has not filled its buffer means that the socket is empty: readiness is cleared without asking the kernel
/// again; bytes that arrive meanwhile raise a new edge.
pub(super) fn is_drained(socket: &TcpStream) {
    let _: io::Result<()> = socket.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
}

/// Reads once.
pub(super) fn poll_read(cx: &mut Context<'_>, from: &TcpStream, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(from.poll_read_ready(cx))?;
        match from.try_read(buffer) {
            Ok(read) => {
                if read > 0 && read < buffer.len() {
                    is_drained(from);
                }
                return Poll::Ready(Ok(read));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}
