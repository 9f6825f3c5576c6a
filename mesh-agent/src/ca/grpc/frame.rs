//! Messages in a stream of bytes: a flag, a length, the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use super::{Code, Status};

const PREFIX: usize = 5;

/// A message as it goes onto the wire.
pub fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length as u32);
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// Cuts what arrives into messages.
#[derive(Debug)]
pub struct Frames {
    buffer: BytesMut,
    /// Longest message, in bytes.
    limit: usize,
}

impl Frames {
    /// `limit` is the longest message, in bytes: a longer one is refused when its length is known, not when it is there.
    pub fn new(limit: usize) -> Self {
        Self { buffer: BytesMut::new(), limit }
    }

    /// More has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if all of it is there.
    ///
    /// # Errors
    /// It is too long, compressed, or not of this type.
    pub fn take<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        let Some(mut prefix) = self.buffer.get(..PREFIX) else { return Ok(None) };
        let (is_compressed, length) = (prefix.get_u8() != 0, prefix.get_u32() as usize);
        if is_compressed {
            return Err(Status::new(Code::Unimplemented, "the message is compressed"));
        }
        if length > self.limit {
            let message = format!("the message has {length} bytes; {} is the most", self.limit);
            return Err(Status::new(Code::ResourceExhausted, &message));
        }
        if self.buffer.len() < PREFIX + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        let message = M::decode(self.buffer.split_to(length));
        message
            .map(Some)
            .map_err(|error| Status::new(Code::InvalidArgument, &format!("the message is malformed: {error}")))
    }

    /// Whether nothing is left over.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::wire::IstioCertificateResponse as Response;

    fn response(text: &str) -> Response {
        Response { cert_chain: vec![text.to_owned()] }
    }

    #[test]
    fn messages_arrive_in_any_pieces() {
        let sent = [response("one"), response(""), response("three")];
        let bytes: Vec<u8> = sent.iter().flat_map(|message| encode(message).to_vec()).collect();
        for size in 1..bytes.len() {
            let mut frames = Frames::new(100);
            let mut got = Vec::new();
            for piece in bytes.chunks(size) {
                frames.push(piece);
                while let Some(message) = frames.take::<Response>().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, sent, "pieces of {size}");
            assert!(frames.is_empty());
        }
    }

    proptest::proptest! {
        #[test]
        fn noise_in_any_pieces_is_survived(
            pieces in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), 0..20),
        ) {
            let mut frames = Frames::new(64);
            for piece in pieces {
                frames.push(&piece);
                while let Ok(Some(_)) = frames.take::<Response>() {}
            }
        }
    }

    #[test]
    fn a_long_message_is_refused_by_its_length_alone() {
        let mut frames = Frames::new(100);
        frames.push(&[0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(frames.take::<Response>().unwrap_err().code, Code::ResourceExhausted);
    }

    #[test]
    fn compressed_and_malformed_messages_are_refused() {
        let mut frames = Frames::new(100);
        frames.push(&[1, 0, 0, 0, 0]);
        assert_eq!(frames.take::<Response>().unwrap_err().code, Code::Unimplemented);
        let mut frames = Frames::new(100);
        frames.push(&[0, 0, 0, 0, 2, 0x0a, 0x7f]);
        assert_eq!(frames.take::<Response>().unwrap_err().code, Code::InvalidArgument);
    }
}
