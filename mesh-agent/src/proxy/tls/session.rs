//! The handshake of either side, without IO: what arrives goes in, what is to be sent comes out. `established` is what
//! comes of it.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, Error, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, ServerName},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus},
};

use super::{
    established::{Established, Secrets},
    record::Half,
};

/// A session of either side.
pub(in crate::proxy) enum Session {
    /// It called.
    Client(Box<UnbufferedClientConnection>),
    /// It was called.
    Server(Box<UnbufferedServerConnection>),
}

/// What [`Session::take_in`] has done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes that are done with; the rest belongs before what arrives next.
    pub(super) consumed: usize,
    /// The peer has said that it sends no more.
    pub(super) is_ended: bool,
    /// The handshake goes on when more has arrived.
    pub(super) is_handshaking: bool,
}

impl Session {
    /// To call the server that `name` stands for in the cache of sessions; it is not sent where `config` says so.
    pub(in crate::proxy) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        protocols: &[&[u8]],
    ) -> Result<Self, Error> {
        let protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let connection = UnbufferedClientConnection::new_with_alpn(config, name, protocols)?;
        Ok(Self::Client(Box::new(connection)))
    }

    /// To be called.
    pub(in crate::proxy) fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::Server(Box::new(UnbufferedServerConnection::new(config)?)))
    }

    /// The other end's certificates, leaf first; `None` before the handshake is over.
    pub(in crate::proxy) fn peer(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Self::Client(connection) => connection.peer_certificates(),
            Self::Server(connection) => connection.peer_certificates(),
        }
    }

    /// The protocol that both ends have agreed on.
    pub(in crate::proxy) fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Client(connection) => connection.alpn_protocol(),
            Self::Server(connection) => connection.alpn_protocol(),
        }
    }

    /// Takes in all of `bytes`; plaintext goes to `take`, what is to be sent to the end of `outgoing`.
    pub(super) fn take_in(
        &mut self,
        bytes: &mut [u8],
        outgoing: &mut Vec<u8>,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<Progress, Error> {
        match self {
            Self::Client(connection) => take_in(connection.as_mut(), bytes, outgoing, take),
            Self::Server(connection) => take_in(connection.as_mut(), bytes, outgoing, take),
        }
    }

    /// Ends the handshake, which must be over and all of it sent: its secrets go on.
    pub(super) fn establish(self) -> Result<Established, Error> {
        let peer = self.peer().unwrap_or_default().to_vec();
        let protocol = self.protocol().map(<[u8]>::to_vec);
        let (secrets, kernel) = match self {
            Self::Client(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                (secrets, Secrets::Client(kernel))
            }
            Self::Server(connection) => {
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                (secrets, Secrets::Server(kernel))
            }
        };
        Ok(Established::new(Half::new(secrets.tx)?, Half::new(secrets.rx)?, kernel, peer, protocol))
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Client",
            Self::Server(_) => "Server",
        })
    }
}

/// What both sides of rustls have in common without saying so.
trait Records {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

fn take_in<R: Records>(
    records: &mut R,
    bytes: &mut [u8],
    outgoing: &mut Vec<u8>,
    take: &mut dyn FnMut(&[u8]),
) -> Result<Progress, Error> {
    let mut progress = Progress::default();
    loop {
        let rest = bytes.get_mut(progress.consumed..).unwrap_or_default();
        let UnbufferedStatus { mut discard, state, .. } = records.process(rest);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                alert(records, bytes.get_mut(progress.consumed..).unwrap_or_default(), outgoing);
                return Err(error);
            }
        };
        let mut is_done = false;
        match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    take(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(data) => encode(data, outgoing)?,
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => progress.is_ended = true,
            ConnectionState::BlockedHandshake => (is_done, progress.is_handshaking) = (true, true),
            ConnectionState::WriteTraffic(_) | ConnectionState::Closed => is_done = true,
            _ => return Err(Error::General("early data was not asked for".into())),
        }
        progress.consumed += discard;
        if is_done {
            return Ok(progress);
        }
    }
}

/// What the peer is told of an error.
fn alert<R: Records>(records: &mut R, bytes: &mut [u8], outgoing: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(data)) = records.process(bytes).state {
        let _ = encode(data, outgoing);
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let needed = match data.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Err(EncodeError::AlreadyEncoded) => return Err(Error::General("encoded twice".into())),
    };
    let start = outgoing.len();
    outgoing.resize(start + needed, 0);
    let space = outgoing.get_mut(start..).unwrap_or_default();
    let written = data.encode(space).map_err(|error| Error::General(error.to_string()))?;
    outgoing.truncate(start + written);
    Ok(())
}
