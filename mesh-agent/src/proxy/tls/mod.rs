//! Mutual TLS on a socket: the handshake, its time limit, and what its failures mean.

mod buffer;
mod established;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
mod handshake;
mod handshakes;
mod offers;
mod record;
mod session;
mod stream;
#[cfg(test)]
mod tests;

use std::{future::poll_fn, io, time::Duration};

use tokio::net::TcpStream;

pub(super) use handshakes::Handshakes;
pub(super) use offers::Offers;
pub(super) use session::Session;
pub(super) use stream::TlsStream;

use handshake::Handshake;

use super::Error;
use crate::{identity, model::Reason};

/// Shakes hands. `lost` is what it means if the other end goes away without a word.
pub(super) async fn handshake(
    socket: TcpStream,
    session: Session,
    timeout: Duration,
    lost: Reason,
) -> Result<TlsStream, Error> {
    let mut handshake = Handshake::new(socket, session);
    match tokio::time::timeout(timeout, poll_fn(|cx| handshake.poll(cx))).await {
        Ok(Ok(())) => handshake.finish().map_err(|_| Error::Tunnel(Reason::TlsHandshake)),
        Ok(Err(error)) => {
            let unsaid = if is_lost(&error) { lost } else { Reason::TlsHandshake };
            Err(Error::Tunnel(reason(&error).unwrap_or(unsaid)))
        }
        Err(_) => Err(Error::Tunnel(Reason::HandshakeTimeout)),
    }
}

fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// What an error of a TLS stream means; `None` if it is none of TLS. In TLS 1.3 a client learns only after the handshake that
/// its certificate was refused.
pub(super) fn reason(error: &io::Error) -> Option<Reason> {
    error.get_ref()?.downcast_ref().map(identity::handshake_reason)
}
