//! Shakes hands on a socket.

use std::{
    cell::RefCell,
    io,
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

use super::{
    session::Session,
    stream::{TlsStream, invalid},
};
use crate::proxy::relay;

/// Bytes that are received at once, and the most that may be kept for the next time: a message of the largest size.
const RECEIVED: usize = 16 * 1024;
const KEPT: usize = 72 * 1024;

thread_local! {
    static INCOMING: RefCell<Box<[u8]>> = RefCell::new(vec![0; RECEIVED + KEPT].into_boxed_slice());
}

/// A handshake under way. While it waits for the other end it holds little: thousands may.
pub(super) struct Handshake {
    socket: TcpStream,
    session: Session,
    /// Received, and not complete.
    kept: Vec<u8>,
    /// What the peer has sent right behind its handshake.
    early: Vec<u8>,
    outgoing: Vec<u8>,
    sent: usize,
    is_over: bool,
}

impl Handshake {
    pub(super) fn new(socket: TcpStream, session: Session) -> Self {
        let (kept, early, outgoing) = Default::default();
        Self { socket, session, kept, early, outgoing, sent: 0, is_over: false }
    }

    /// Goes on until it is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A client speaks first.
        if self.kept.is_empty() && !self.is_over {
            self.take_in(0)?;
        }
        while !self.is_over {
            ready!(self.poll_flush(cx))?;
            let read = INCOMING.with_borrow_mut(|incoming| {
                let from = self.kept.len();
                let space = incoming.get_mut(from..from + RECEIVED).unwrap_or_default();
                relay::poll_read(cx, &self.socket, space)
            });
            let read = ready!(read)?;
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            if let Err(error) = self.take_in(read) {
                // So that the peer is told why.
                let _ = self.poll_flush(cx);
                return Poll::Ready(Err(error));
            }
        }
        self.poll_flush(cx)
    }

    /// After it is over.
    pub(super) fn finish(self) -> io::Result<TlsStream> {
        let established = self.session.establish().map_err(invalid)?;
        Ok(TlsStream::new(self.socket, established, self.early, self.kept))
    }

    /// Takes in `read` bytes that stand in the worker's buffer behind the place for the kept ones.
    fn take_in(&mut self, read: usize) -> io::Result<()> {
        INCOMING.with_borrow_mut(|incoming| {
            let kept = self.kept.len();
            let bytes = incoming.get_mut(..kept + read).unwrap_or_default();
            if let Some(front) = bytes.get_mut(..kept) {
                front.copy_from_slice(&self.kept);
            }
            let early = &mut self.early;
            let result = self.session.take_in(bytes, &mut self.outgoing, &mut |data| early.extend_from_slice(data));
            let progress = result.map_err(invalid)?;
            if progress.is_ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.is_over = !progress.is_handshaking;
            let rest = bytes.get(progress.consumed..).unwrap_or_default();
            if rest.len() > KEPT {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.kept = rest.to_vec();
            Ok(())
        })
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(self.outgoing.get(self.sent..).unwrap_or_default()) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        (self.outgoing, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }
}
