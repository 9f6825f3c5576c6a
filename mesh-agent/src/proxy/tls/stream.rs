//! A TLS stream: a session on a socket, driven by the socket's readiness. Received bytes are decrypted in one buffer per
//! worker, and sent ones encrypted in another; a stream keeps only what could not be passed on.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::session::{Outgoing, Session};
use crate::proxy::relay;

/// Bytes that are received and decrypted at once.
const RECEIVED: usize = 64 * 1024;
/// Bytes that are encrypted and sent at once; what is held of them when the socket takes none.
pub(in crate::proxy) const SENT: usize = 64 * 1024;
/// The most that may be kept from one read to the next: a handshake message of the largest size.
const KEPT: usize = 72 * 1024;

/// A worker's buffers.
struct Buffers {
    incoming: Box<[u8]>,
    gathered: Vec<u8>,
    outgoing: Outgoing,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        incoming: vec![0; RECEIVED + KEPT].into_boxed_slice(),
        gathered: Vec::new(),
        outgoing: Outgoing::default(),
    });
}

/// Bytes that wait, and how many of them wait no more.
#[derive(Debug, Default)]
struct Rest {
    bytes: Vec<u8>,
    taken: usize,
}

impl Rest {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.taken >= self.bytes.len()
    }

    /// An idle stream holds nothing.
    fn take(&mut self, count: usize) {
        self.taken += count;
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

/// A TLS stream whose handshake is over, or under way.
#[derive(Debug)]
pub(in crate::proxy) struct TlsStream {
    socket: TcpStream,
    session: Session,
    /// Received and taken in, but not done with: a record that is not complete yet.
    kept: Vec<u8>,
    /// Decrypted, for who reads next.
    plain: Rest,
    /// Encrypted, for when the socket takes it.
    unsent: Rest,
    /// The peer sends no more.
    is_ended: bool,
    is_handshaking: bool,
    has_closed: bool,
}

impl TlsStream {
    pub(super) fn new(socket: TcpStream, session: Session) -> Self {
        let (kept, plain, unsent) = Default::default();
        Self { socket, session, kept, plain, unsent, is_ended: false, is_handshaking: true, has_closed: false }
    }

    /// The other end's certificates, leaf first.
    pub(in crate::proxy) fn peer(&self) -> &[CertificateDer<'static>] {
        self.session.peer().unwrap_or_default()
    }

    /// The protocol that both ends have agreed on.
    pub(in crate::proxy) fn protocol(&self) -> Option<&[u8]> {
        self.session.protocol()
    }

    /// Goes on with the handshake.
    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A client speaks first.
        if let Err(error) = self.take_in(0, &mut |_| {}) {
            return Poll::Ready(Err(error));
        }
        while self.is_handshaking {
            ready!(self.poll_flush_unsent(cx))?;
            let mut early = Vec::new();
            let received = ready!(self.poll_receive(cx, &mut |bytes| early.extend_from_slice(bytes)));
            self.plain.bytes.append(&mut early);
            if let Err(error) = received {
                // So that the peer is told why.
                let _ = self.poll_flush_unsent(cx);
                return Poll::Ready(Err(error));
            }
            if self.is_ended {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        self.poll_flush_unsent(cx)
    }

    /// Receives once; plaintext goes to `take`. `Ok(false)` is the end.
    pub(in crate::proxy) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<bool>> {
        if self.is_ended {
            return Poll::Ready(Ok(false));
        }
        let read = BUFFERS.with_borrow_mut(|buffers| {
            let space = buffers.incoming.get_mut(self.kept.len()..).unwrap_or_default();
            relay::poll_read(cx, &self.socket, space)
        });
        match ready!(read)? {
            // Without a word of goodbye: it may have been cut off.
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            read => {
                self.take_in(read, take)?;
                Poll::Ready(Ok(!self.is_ended))
            }
        }
    }

    /// Takes in `read` bytes that stand in the worker's buffer behind the place for the kept ones.
    fn take_in(&mut self, read: usize, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        BUFFERS.with_borrow_mut(|buffers| {
            let kept = self.kept.len();
            let bytes = buffers.incoming.get_mut(..kept + read).unwrap_or_default();
            if let Some(front) = bytes.get_mut(..kept) {
                front.copy_from_slice(&self.kept);
            }
            let result = self.session.take_in(bytes, &mut buffers.outgoing, take);
            if !buffers.outgoing.bytes().is_empty() {
                self.unsent.bytes.extend_from_slice(buffers.outgoing.bytes());
                buffers.outgoing.clear();
            }
            let progress = result.map_err(invalid)?;
            self.is_handshaking = progress.is_handshaking;
            self.is_ended |= progress.is_ended;
            let rest = bytes.get(progress.consumed..).filter(|_| !self.is_ended).unwrap_or_default();
            if rest.len() > KEPT {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if rest.is_empty() {
                self.kept = Vec::new();
            } else {
                self.kept.clear();
                self.kept.extend_from_slice(rest);
            }
            Ok(())
        })
    }

    /// Encrypts and sends at most [`SENT`] of `plain`, all at once. Pending while what was sent before is not gone.
    pub(in crate::proxy) fn poll_send(&mut self, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_flush_unsent(cx))?;
        let plain = plain.get(..SENT).unwrap_or(plain);
        BUFFERS.with_borrow_mut(|buffers| self.send(plain, &mut buffers.outgoing))?;
        Poll::Ready(Ok(plain.len()))
    }

    fn send(&mut self, plain: &[u8], outgoing: &mut Outgoing) -> io::Result<()> {
        self.session.encrypt(&mut self.kept, plain, outgoing).map_err(invalid)?;
        let bytes = outgoing.bytes();
        let result = match self.socket.try_write(bytes) {
            Ok(sent) => {
                self.unsent.bytes.extend_from_slice(bytes.get(sent..).unwrap_or_default());
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.unsent.bytes.extend_from_slice(bytes);
                Ok(())
            }
            Err(error) => Err(error),
        };
        outgoing.clear();
        result
    }

    /// Sends what could not be sent before.
    pub(in crate::proxy) fn poll_flush_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(self.unsent.bytes()) {
                Ok(sent) => self.unsent.take(sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more is sent.
    pub(in crate::proxy) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.has_closed {
            self.has_closed = true;
            BUFFERS.with_borrow_mut(|buffers| {
                let result = self.session.close(&mut self.kept, &mut buffers.outgoing);
                self.unsent.bytes.extend_from_slice(buffers.outgoing.bytes());
                buffers.outgoing.clear();
                result.map_err(invalid)
            })?;
        }
        ready!(self.poll_flush_unsent(cx))?;
        Poll::Ready(SockRef::from(&self.socket).shutdown(Shutdown::Write))
    }
}

/// An error of rustls, which [`super::reason`] finds again.
fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.plain.is_empty() {
            let before = buffer.filled().len();
            let mut rest = Vec::new();
            while buffer.filled().len() == before {
                let received = this.poll_receive(cx, &mut |plain| {
                    let (fits, more) = plain.split_at(plain.len().min(buffer.remaining()));
                    buffer.put_slice(fits);
                    rest.extend_from_slice(more);
                });
                // An answer to a key update, at times.
                if let Poll::Ready(Err(error)) = this.poll_flush_unsent(cx) {
                    return Poll::Ready(Err(error));
                }
                if !ready!(received)? {
                    break;
                }
            }
            this.plain.bytes.append(&mut rest);
        } else {
            let bytes = this.plain.bytes();
            let bytes = bytes.get(..buffer.remaining()).unwrap_or(bytes);
            buffer.put_slice(bytes);
            let count = bytes.len();
            this.plain.take(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, plain)
    }

    /// One record, and one system call, for several pieces.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let [piece] = pieces {
            return this.poll_send(cx, piece);
        }
        ready!(this.poll_flush_unsent(cx))?;
        BUFFERS.with_borrow_mut(|buffers| {
            let Buffers { gathered, outgoing, .. } = buffers;
            gathered.clear();
            for piece in pieces {
                let space = SENT - gathered.len();
                gathered.extend_from_slice(piece.get(..space).unwrap_or(piece));
            }
            this.send(gathered, outgoing)?;
            Poll::Ready(Ok(gathered.len()))
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush_unsent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_close(cx)
    }
}
