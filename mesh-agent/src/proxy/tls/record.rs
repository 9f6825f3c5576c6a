//! Records of an established TLS 1.3 connection (RFC 8446, 5.2), sealed and opened where they stand. Without IO.
//!
//! rustls shakes hands and keeps the secrets. Its own records take two copies and an allocation each on their way out; these
//! take none: a record is sealed from the bytes of the caller to where it is sent from.

use aws_lc_rs::{
    aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
};
use rustls::{ConnectionTrafficSecrets, Error};

/// The most plaintext of a record.
pub(super) const MOST_PLAIN: usize = 16 * 1024;
/// Type, version and length.
pub(super) const HEADER: usize = 5;
/// Of all three ciphers.
const TAG: usize = 16;
/// The content type within, and the tag.
const TAIL: usize = 1 + TAG;
/// The most that follows the header: others may pad.
const MOST_SEALED: usize = MOST_PLAIN + 256;
/// The longest record that can arrive.
pub(super) const MOST_WIRE: usize = HEADER + MOST_SEALED;

/// What is in a record (RFC 8446, B.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// One direction of a connection.
pub(super) struct Half {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Of the next record.
    sequence: u64,
}

impl Half {
    /// From what rustls has agreed on.
    pub(super) fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher that was not offered".into())),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| Error::EncryptError)?;
        let iv = iv.as_ref().try_into().map_err(|_| Error::EncryptError)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// Of the next record; as many were dealt with under this key.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Seals one record with what `pieces` hold, at most [`MOST_PLAIN`] together; returns its length. Of one piece nothing is
    /// copied.
    pub(super) fn seal(&mut self, content: Content, pieces: &[&[u8]], out: &mut [u8]) -> Result<usize, Error> {
        let plain: usize = pieces.iter().map(|piece| piece.len()).sum();
        let header = header(plain + TAIL);
        let nonce = self.nonce()?;
        let (head, rest) = out.split_at_mut_checked(HEADER).ok_or(Error::EncryptError)?;
        let (body, rest) = rest.split_at_mut_checked(plain).ok_or(Error::EncryptError)?;
        let tail = rest.get_mut(..TAIL).ok_or(Error::EncryptError)?;
        head.copy_from_slice(&header);
        let (aad, kind) = (Aad::from(header), [content as u8]);
        let sealed = if let [piece] = pieces {
            self.key.seal_out_of_place_scatter(nonce, aad, piece, body, &kind, tail)
        } else {
            let mut free = &mut *body;
            for piece in pieces {
                let (place, rest) = free.split_at_mut_checked(piece.len()).ok_or(Error::EncryptError)?;
                place.copy_from_slice(piece);
                free = rest;
            }
            self.key.seal_in_place_scatter(nonce, aad, body, &kind, tail)
        };
        sealed.map_err(|Unspecified| Error::EncryptError)?;
        Ok(HEADER + plain + TAIL)
    }

    /// Opens a whole record where it stands: its content begins behind the header.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<(Content, &'a [u8]), Error> {
        let nonce = self.nonce()?;
        let (head, sealed) = record.split_at_mut_checked(HEADER).ok_or(Error::DecryptError)?;
        let header: [u8; HEADER] = (&*head).try_into().map_err(|_| Error::DecryptError)?;
        let opened =
            self.key.open_in_place(nonce, Aad::from(header), sealed).map_err(|Unspecified| Error::DecryptError)?;
        // The last byte that is not padding says what it is.
        let length = opened.iter().rposition(|byte| *byte != 0).ok_or_else(unexpected)?;
        if length > MOST_PLAIN {
            return Err(Error::PeerSentOversizedRecord);
        }
        let (content, kind) = opened.split_at_checked(length).ok_or_else(unexpected)?;
        let kind = match kind.first() {
            Some(23) => Content::Data,
            Some(22) => Content::Handshake,
            Some(21) => Content::Alert,
            _ => return Err(unexpected()),
        };
        Ok((kind, content))
    }

    /// The number of the record upon the agreed start (RFC 8446, 5.3).
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let mut nonce = self.iv;
        nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()).for_each(|(byte, number)| *byte ^= number);
        self.sequence = self.sequence.checked_add(1).ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

fn header(sealed: usize) -> [u8; HEADER] {
    let [high, low] = (sealed as u16).to_be_bytes();
    [Content::Data as u8, 3, 3, high, low]
}

/// How long the record is that `bytes` begin with; `None` while too few of them are there to tell.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some([kind, major, _, high, low]) = bytes.first_chunk::<HEADER>().copied() else { return Ok(None) };
    // After the handshake all are of this type.
    if kind != Content::Data as u8 || major != 3 {
        return Err(unexpected());
    }
    match usize::from(u16::from_be_bytes([high, low])) {
        sealed @ TAIL..=MOST_SEALED => Ok(Some(HEADER + sealed)),
        0..TAIL => Err(Error::DecryptError),
        _ => Err(Error::PeerSentOversizedRecord),
    }
}

/// A record that must not come.
pub(super) fn unexpected() -> Error {
    Error::General("a TLS record that must not come here".into())
}
