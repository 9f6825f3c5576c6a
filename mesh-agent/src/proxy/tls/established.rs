//! A connection after the handshake: its records, and what the two ends may still say to each other beside data: tickets
//! for later, other keys, goodbye (RFC 8446, 4.6 and 6). Without IO.

use std::fmt;

use rustls::{
    AlertDescription, Error, HandshakeType, client::ClientConnectionData, kernel::KernelConnection,
    pki_types::CertificateDer, server::ServerConnectionData,
};

use super::record::{self, Content, Half};

/// The longest message that is put together of several records: a ticket is a few hundred bytes.
const MOST_MESSAGE: usize = 64 * 1024;
/// Key updates that may follow each other without a byte of data: each costs us more than him.
const MOST_UPDATES: u32 = 32;
/// A key update that asks for none in return; one that does ends in 1.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Keeps the secrets.
pub(super) enum Secrets {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// An established connection.
pub(super) struct Established {
    send: Half,
    receive: Half,
    secrets: Secrets,
    peer: Vec<CertificateDer<'static>>,
    protocol: Option<Vec<u8>>,
    /// The beginning of a message that goes on in the next record.
    message: Vec<u8>,
    updates: u32,
    /// The peer has other keys now, and wants the same of us.
    owes_update: bool,
    /// Records after which there have to be other keys.
    pub(super) limit: u64,
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// So many bytes of data, behind the header.
    Data(usize),
    /// Nothing for the caller.
    Done,
    /// The peer sends no more.
    End,
}

impl Established {
    pub(super) fn new(
        send: Half,
        receive: Half,
        secrets: Secrets,
        peer: Vec<CertificateDer<'static>>,
        protocol: Option<Vec<u8>>,
    ) -> Self {
        let suite = match &secrets {
            Secrets::Client(kernel) => kernel.negotiated_cipher_suite(),
            Secrets::Server(kernel) => kernel.negotiated_cipher_suite(),
        };
        let limit = suite.tls13().map_or(u64::MAX, |suite| suite.common.confidentiality_limit / 2);
        Self { send, receive, secrets, peer, protocol, message: Vec::new(), updates: 0, owes_update: false, limit }
    }

    /// The other end's certificates, leaf first.
    pub(super) fn peer(&self) -> &[CertificateDer<'static>] {
        &self.peer
    }

    /// The protocol that both ends have agreed on.
    pub(super) fn protocol(&self) -> Option<&[u8]> {
        self.protocol.as_deref()
    }

    /// Seals a record of data.
    pub(super) fn seal(&mut self, pieces: &[&[u8]], out: &mut [u8]) -> Result<usize, Error> {
        self.send.seal(Content::Data, pieces, out)
    }

    /// Seals whatever the other end may not like.
    #[cfg(any(fuzzing, test))]
    pub(super) fn say(&mut self, content: Content, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        self.send.seal(content, &[plain], out).ok()
    }

    /// Whether a key update is to be sent before anything else.
    pub(super) fn owes_update(&self) -> bool {
        self.owes_update || self.send.sequence() >= self.limit
    }

    /// Seals a key update; what follows is sealed with the next key.
    pub(super) fn update(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let length = self.send.seal(Content::Handshake, &[&KEY_UPDATE], out)?;
        let next = match &mut self.secrets {
            Secrets::Client(kernel) => kernel.update_tx_secret(),
            Secrets::Server(kernel) => kernel.update_tx_secret(),
        };
        self.send = Half::new(next?)?;
        self.owes_update = false;
        Ok(length)
    }

    /// Seals the last record: that nothing more comes.
    pub(super) fn close(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        self.send.seal(Content::Alert, &[&[1, u8::from(AlertDescription::CloseNotify)]], out)
    }

    /// Seals why it ends here.
    pub(super) fn alert(&mut self, error: &Error, out: &mut [u8]) -> Result<usize, Error> {
        let alert = match error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            _ => AlertDescription::UnexpectedMessage,
        };
        self.send.seal(Content::Alert, &[&[2, u8::from(alert)]], out)
    }

    /// Opens a whole record where it stands.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<Opened, Error> {
        let (content, bytes) = self.receive.open(record)?;
        match content {
            // A message must not be interrupted (RFC 8446, 5.1).
            Content::Data if self.message.is_empty() => {
                self.updates = 0;
                Ok(Opened::Data(bytes.len()))
            }
            Content::Handshake => {
                let bytes = bytes.to_vec();
                self.take_messages(&bytes).map(|()| Opened::Done)
            }
            Content::Alert if self.message.is_empty() => match *bytes {
                [_, 0] => Ok(Opened::End),
                [_, 90] => Ok(Opened::Done),
                [_, code] => Err(Error::AlertReceived(AlertDescription::from(code))),
                _ => Err(record::unexpected()),
            },
            Content::Data | Content::Alert => Err(record::unexpected()),
        }
    }

    fn take_messages(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() || self.message.len() + bytes.len() > MOST_MESSAGE {
            return Err(record::unexpected());
        }
        self.message.extend_from_slice(bytes);
        let message = std::mem::take(&mut self.message);
        let mut rest = message.as_slice();
        while let Some(([kind, length @ ..], after)) = rest.split_first_chunk::<4>() {
            let [a, b, c] = *length;
            let Some((body, after)) = after.split_at_checked(u32::from_be_bytes([0, a, b, c]) as usize) else { break };
            self.take_message(HandshakeType::from(*kind), body, after.is_empty())?;
            rest = after;
        }
        self.message = rest.to_vec();
        Ok(())
    }

    fn take_message(&mut self, kind: HandshakeType, body: &[u8], is_last: bool) -> Result<(), Error> {
        match (kind, &mut self.secrets) {
            (HandshakeType::NewSessionTicket, Secrets::Client(kernel)) => kernel.handle_new_session_ticket(body),
            // What follows is of the next key: it ends its record.
            (HandshakeType::KeyUpdate, _) if is_last => {
                self.updates += 1;
                self.owes_update |= match body {
                    [0] => false,
                    [1] => true,
                    _ => return Err(record::unexpected()),
                };
                if self.updates > MOST_UPDATES {
                    return Err(record::unexpected());
                }
                let next = match &mut self.secrets {
                    Secrets::Client(kernel) => kernel.update_rx_secret(),
                    Secrets::Server(kernel) => kernel.update_rx_secret(),
                };
                self.receive = Half::new(next?)?;
                Ok(())
            }
            _ => Err(record::unexpected()),
        }
    }
}

impl fmt::Debug for Established {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Established").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}
