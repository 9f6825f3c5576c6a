//! A TLS stream: an established connection on a socket, driven by the socket's readiness.
//!
//! Received records are opened where they stand, and their content is copied once, to the reader. Sent ones are sealed from
//! the writer's bytes to where they are sent from.

use std::{
    io::{self, IoSlice},
    net::Shutdown,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::pki_types::CertificateDer;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    buffer::Buffer,
    established::{Established, Opened},
    record::{self, HEADER, MOST_PLAIN},
};
use crate::proxy::relay;

/// The most plaintext that is sealed and sent at once: a write of the socket for it.
const SENT: usize = 4 * MOST_PLAIN + 1024;
/// Pieces at least as long get records of their own: that is cheaper than to copy them behind their neighbour.
const LONG: usize = 2 * 1024;
/// Pieces that share a record.
const SHORT_PIECES: usize = 8;

/// A TLS stream whose handshake is over.
#[derive(Debug)]
pub(in crate::proxy) struct TlsStream {
    socket: TcpStream,
    pub(super) session: Established,
    /// Received and not opened yet; none while there is nothing.
    incoming: Option<Buffer>,
    /// In `incoming`: opened and not read yet.
    plain: Range<usize>,
    /// What was opened already while the hands were still being shaken.
    early: Vec<u8>,
    /// The beginning of a record whose rest is awaited.
    kept: Vec<u8>,
    /// Sealed and not sent yet.
    unsent: Option<Buffer>,
    /// The peer sends no more.
    is_ended: bool,
    has_closed: bool,
}

impl TlsStream {
    pub(super) fn new(socket: TcpStream, session: Established, early: Vec<u8>, kept: Vec<u8>) -> Self {
        let (incoming, unsent) = (None, None);
        Self { socket, session, incoming, plain: 0..0, early, kept, unsent, is_ended: false, has_closed: false }
    }

    /// The other end's certificates, leaf first.
    pub(in crate::proxy) fn peer(&self) -> &[CertificateDer<'static>] {
        self.session.peer()
    }

    /// The protocol that both ends have agreed on.
    pub(in crate::proxy) fn protocol(&self) -> Option<&[u8]> {
        self.session.protocol()
    }

    /// Gives what is opened to the reader.
    fn hand_over(&mut self, buffer: &mut ReadBuf<'_>) {
        if !self.early.is_empty() {
            let count = self.early.len().min(buffer.remaining());
            buffer.put_slice(self.early.get(..count).unwrap_or_default());
            self.early.drain(..count);
        }
        if let Some(incoming) = &self.incoming
            && !self.plain.is_empty()
        {
            let count = self.plain.len().min(buffer.remaining());
            buffer.put_slice(incoming.at(self.plain.start..self.plain.start + count));
            self.plain.start += count;
        }
    }

    /// Opens the next record that is there as a whole; false if none is.
    fn open_next(&mut self) -> Result<bool, rustls::Error> {
        if self.is_ended {
            return Ok(false);
        }
        let Some(incoming) = &mut self.incoming else { return Ok(false) };
        let Some(length) = record::length(incoming.filled())? else { return Ok(false) };
        if incoming.filled().len() < length {
            return Ok(false);
        }
        let position = incoming.position();
        let opened = self.session.open(incoming.front(length))?;
        incoming.take(length);
        match opened {
            Opened::Data(length) => self.plain = position + HEADER..position + HEADER + length,
            Opened::Done => {}
            Opened::End => self.is_ended = true,
        }
        Ok(true)
    }

    /// Receives once; at the end, the beginning of a record is all that is kept.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let incoming = self.incoming.get_or_insert_with(Buffer::lend);
        if !self.kept.is_empty() {
            incoming.put(&self.kept);
            self.kept = Vec::new();
        }
        incoming.make_room();
        let read = match relay::poll_read(cx, &self.socket, incoming.space()) {
            Poll::Ready(read) => read?,
            Poll::Pending => {
                self.kept = incoming.filled().to_vec();
                self.incoming = None;
                return Poll::Pending;
            }
        };
        incoming.fill(read);
        // Without a word of goodbye: it may have been cut off.
        Poll::Ready(if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) })
    }

    /// Says why it ends here, as far as the socket takes it.
    fn complain(&mut self, error: rustls::Error) -> io::Error {
        let mut buffer = Buffer::lend();
        if !self.has_closed
            && self.unsent.is_none()
            && let Ok(length) = self.session.alert(&error, buffer.space())
        {
            self.has_closed = true;
            buffer.fill(length);
            let _ = self.socket.try_write(buffer.filled());
        }
        invalid(error)
    }

    /// Sends what could not be sent before, and what is due before anything else.
    fn poll_flush_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while let Some(unsent) = &mut self.unsent {
                ready!(self.socket.poll_write_ready(cx))?;
                match self.socket.try_write(unsent.filled()) {
                    Ok(sent) => unsent.take(sent),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                }
                if unsent.is_empty() {
                    self.unsent = None;
                }
            }
            if self.has_closed || !self.session.owes_update() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = Buffer::lend();
            let length = self.session.update(buffer.space()).map_err(invalid)?;
            buffer.fill(length);
            self.unsent = Some(buffer);
        }
    }

    /// Seals and sends what is in `pieces`, at most [`SENT`] of it. What the socket does not take is kept: all of it is on its
    /// way.
    fn send<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
        if self.has_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut buffer = Buffer::lend();
        let sealed = seal(&mut self.session, pieces, &mut buffer)?;
        match self.socket.try_write(buffer.filled()) {
            Ok(sent) => buffer.take(sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if !buffer.is_empty() {
            self.unsent = Some(buffer);
        }
        Ok(sealed)
    }
}

/// Seals pieces: short neighbours in one record, long ones from where they are.
fn seal<'a>(
    session: &mut Established,
    pieces: impl Iterator<Item = &'a [u8]>,
    buffer: &mut Buffer,
) -> io::Result<usize> {
    let mut short: [&[u8]; SHORT_PIECES] = [&[]; SHORT_PIECES];
    let (mut count, mut waiting, mut sealed) = (0, 0, 0);
    let mut flush = |pieces: &[&[u8]]| -> io::Result<()> {
        let length = session.seal(pieces, buffer.space()).map_err(invalid)?;
        buffer.fill(length);
        Ok(())
    };
    for mut piece in pieces {
        while !piece.is_empty() && sealed < SENT {
            let (part, rest) = piece.split_at(piece.len().min(MOST_PLAIN).min(SENT - sealed));
            let is_long = part.len() >= LONG;
            if count > 0 && (is_long || count == SHORT_PIECES || waiting + part.len() > MOST_PLAIN) {
                flush(short.get(..count).unwrap_or_default())?;
                (count, waiting) = (0, 0);
            }
            if is_long {
                flush(&[part])?;
            } else if let Some(place) = short.get_mut(count) {
                *place = part;
                count += 1;
                waiting += part.len();
            }
            sealed += part.len();
            piece = rest;
        }
    }
    if count > 0 {
        flush(short.get(..count).unwrap_or_default())?;
    }
    Ok(sealed)
}

/// An error of rustls, which [`super::reason`] finds again.
pub(super) fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        loop {
            this.hand_over(buffer);
            if buffer.remaining() == 0 || !this.plain.is_empty() {
                break;
            }
            match this.open_next() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => return Poll::Ready(Err(this.complain(error))),
            }
            if this.is_ended || buffer.filled().len() > before {
                break;
            }
            // An answer to a key update, at times.
            if let Poll::Ready(Err(error)) = this.poll_flush_unsent(cx) {
                return Poll::Ready(Err(error));
            }
            ready!(this.poll_receive(cx))?;
        }
        if this.plain.is_empty() && this.incoming.as_ref().is_some_and(Buffer::is_empty) {
            this.incoming = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, plain: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_flush_unsent(cx))?;
        Poll::Ready(this.send(std::iter::once(plain)))
    }

    /// One write of the socket for several pieces.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_flush_unsent(cx))?;
        Poll::Ready(this.send(pieces.iter().map(|piece| &**piece)))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush_unsent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_flush_unsent(cx))?;
        if !this.has_closed {
            let mut buffer = Buffer::lend();
            let length = this.session.close(buffer.space()).map_err(invalid)?;
            this.has_closed = true;
            buffer.fill(length);
            this.unsent = Some(buffer);
        }
        ready!(this.poll_flush_unsent(cx))?;
        Poll::Ready(SockRef::from(&this.socket).shutdown(Shutdown::Write))
    }
}
